// Do the kernels of the general step give what the library gives: every family
// of the table that takes no delta step, and every option that the others' own
// kernels refuse?
#include <algorithm>
#include <cmath>
#include <string>

#include "carve/reference_batch.hpp"
#include "catch.hpp"
#include "core/random_problem.hpp"
#include "program/device.hpp"
#include "program/device_session.hpp"

namespace {

using carve::tensor;
using carve::program::dump;
using carve::program::judged_tensor;
using carve::safetensors::dtype;

/// What a test of one family asks for.
struct options {
  carve::tests::problem_shape shape;
  dtype input = dtype::f32;
  carve::readout read = carve::readout::after;
  std::optional<carve::erase_order> erase_reads = {};
  bool value_decay = false;
  std::vector<std::int64_t> cu_seqlens = {};
};

void round_to(carve::cuda::format as, tensor<double>& x) {
  x.data = carve::program::decode(as, carve::program::encode(as, x.data));
}

/// A problem and its cotangents, every number one that the kernels hold.
dump drawn(carve::family f, const options& with, unsigned seed) {
  dump d;
  d.in = carve::tests::random_problem<double>(f, with.shape, seed);
  d.in.read = with.read, d.in.erase_reads = with.erase_reads;
  carve::tensors<double>& x = d.in.in;
  // Keys and whatever erases near unit length, so that nothing grows.
  for (tensor<double>* y : {&x.k, &x.p, &x.r, &x.y})
    for (double& e : y->data) e *= 2 / std::sqrt(with.shape.K);
  if (with.value_decay) {
    const auto& n = with.shape;
    x.gd = tensor<double>({n.B, n.T, n.HV, n.V});
    for (std::size_t i = 0; i < x.gd.data.size(); ++i)
      x.gd.data[i] = -std::abs(x.v.data[i]);
  }
  d.in.scale = static_cast<float>(1 / std::sqrt(with.shape.K));
  d.cotangents = carve::tests::random_cotangents(d.in, seed + 1);
  if (!with.cu_seqlens.empty()) {
    d.in.cu_seqlens = with.cu_seqlens;
    const carve::tensor_shape states{
        static_cast<carve::index_t>(with.cu_seqlens.size()) - 1, with.shape.HV,
        with.shape.K, with.shape.V};
    for (tensor<double>* s : {&x.initial_state, &d.cotangents.final_state}) {
      tensor<double> many(states);
      for (std::size_t i = 0; i < many.data.size(); ++i)
        many.data[i] = s->data[i % s->data.size()];
      *s = many;
    }
  }
  d.dtype = with.input;
  const auto input = with.input == dtype::f32    ? carve::cuda::format::fp32
                     : with.input == dtype::bf16 ? carve::cuda::format::bf16
                                                 : carve::cuda::format::fp16;
  for (const auto& m : carve::tensors<double>::members()) {
    const bool wide =
        m.name == "g" || m.name == "gd" || m.role != carve::tensor_role::token;
    round_to(wide ? carve::cuda::format::fp32 : input, x.*m.at);
  }
  round_to(input, d.cotangents.o);
  round_to(carve::cuda::format::fp32, d.cotangents.final_state);
  d.size = carve::check(d.in);
  return d;
}

double relative_rms(const tensor<double>& got, const tensor<double>& expected) {
  REQUIRE(got.shape == expected.shape);
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.data.size(); ++i) {
    error += std::pow(got.data[i] - expected.data[i], 2);
    norm += std::pow(expected.data[i], 2);
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

void check(carve::family f, const options& with, unsigned seed) {
  const dump d = drawn(f, with, seed);
  const auto expected =
      carve::backward(d.in, d.cotangents, carve::reference_solver{});
  const std::vector<judged_tensor> got = carve::program::run_on_device(d);
  // An output and a state, and a gradient for every tensor.
  const auto members = carve::tensors<double>::members();
  REQUIRE(got.size() ==
          2 + static_cast<std::size_t>(std::count_if(
                  members.begin(), members.end(),
                  [&](const auto& m) { return (d.in.in.*m.at).present(); })));
  for (const judged_tensor& x : got) {
    const double error =
        relative_rms(x.values, carve::program::result_named(expected, x.name));
    INFO(carve::info(f).name << " " << x.name << " seed " << seed << ": "
                             << error);
    // Sums in fp32; else one rounding, whose relative error is at most 2^-8 or
    // 2^-11, of every number and so of all of them.
    CHECK(error <= (x.dtype == dtype::f32    ? 1e-5
                    : x.dtype == dtype::bf16 ? 0x1p-8
                                             : 0x1p-11));
  }
}

constexpr carve::tests::problem_shape shapes[] = {
    {.B = 2, .T = 75, .H = 2, .HV = 4, .K = 48, .V = 32},
    {.B = 1, .T = 40, .H = 1, .HV = 1, .K = 128, .V = 64},
    {.B = 1, .T = 33, .H = 1, .HV = 2, .K = 144, .V = 16},
};

bool has_steps(carve::family f) {
  return !carve::info(f).content_gate;  // its other options have no kernel
}

}  // namespace

TEST_CASE("the general step agrees with the library", "[steps]") {
  unsigned seed = 1;
  for (const carve::family_info& row : carve::families) {
    if (carve::cuda::takes_delta_steps(row.id)) continue;
    for (const auto& shape : shapes)
      for (const auto read : {carve::readout::after, carve::readout::before})
        for (const dtype input : {dtype::f32, dtype::bf16, dtype::f16})
          check(row.id, {.shape = shape, .input = input, .read = read}, ++seed);
  }
}

TEST_CASE("the erase before the decay and after it, for every family",
          "[steps]") {
  unsigned seed = 300;
  for (const carve::family_info& row : carve::families) {
    if (!has_steps(row.id) || !row.erases()) continue;
    for (const auto order :
         {carve::erase_order::before_decay, carve::erase_order::after_decay})
      for (const bool value_decay : {false, true})
        check(row.id,
              {.shape = shapes[0],
               .erase_reads = order,
               .value_decay = value_decay},
              ++seed);
  }
}

TEST_CASE("the general step on packed sequences", "[steps]") {
  unsigned seed = 400;
  for (const carve::family_info& row : carve::families) {
    if (carve::cuda::takes_delta_steps(row.id)) continue;
    for (const auto read : {carve::readout::after, carve::readout::before})
      check(row.id,
            {.shape = {.B = 1, .T = 90, .H = 2, .HV = 2, .K = 64, .V = 32},
             .read = read,
             .value_decay = true,
             .cu_seqlens = {0, 0, 1, 34, 34, 90}},
            ++seed);
  }
}
