/// @file
/// Does a dump become the problem that its file describes, and does each kind
/// of unusable dump get a message that says what is wrong?
#include "program/dump.hpp"

#include <limits>

#include "catch.hpp"
#include "program/fixtures.hpp"
#include "program/verify.hpp"

namespace st = carve::safetensors;
using carve::tensor_shape;
using carve::program::dump;
using carve::program::settings;
using fixtures::editable;

namespace {

std::string refusal(const editable& e, const settings& given = {}) {
  return fixtures::message([&] { e.read(given); });
}

std::string verify_refusal(const editable& e,
                           const carve::program::verify_settings& how = {}) {
  return fixtures::message([&] { carve::program::verify(e.read(), how); });
}

const editable small = fixtures::small();

}  // namespace

TEST_CASE("a dump is read with its sizes, settings and outputs") {
  editable e = small;
  e.metadata = {{"family", "gdn2"},
                {"scale", "0.25"},
                {"layout", "[B,T,H,D]"},
                {"state_layout", "[N,H,K,V]"},
                {"device", "some GPU"}};
  const dump d = e.read();
  REQUIRE(d.in.family == carve::family::gdn2);
  REQUIRE(d.in.scale == 0.25);
  REQUIRE_FALSE(d.in.state_v_first);
  REQUIRE(d.in.read == carve::readout::after);
  REQUIRE(d.size.T == 5);
  REQUIRE(d.size.K == 3);
  REQUIRE(d.size.V == 4);
  REQUIRE(d.dtype == st::dtype::f32);
  std::vector<std::string> names;
  for (const auto& x : d.judged) names.push_back(x.name);
  REQUIRE(names == std::vector<std::string>{"o", "final_state", "dq"});
}

TEST_CASE("a setting given by the caller replaces the file's") {
  editable e = small;
  e.metadata["scale"] = "0.25";
  e.metadata["read_out"] = "after";
  const dump d = e.read({{"scale", "2"}, {"read_out", "before"}});
  REQUIRE(d.in.scale == 2.0);
  REQUIRE(d.in.read == carve::readout::before);
  e.metadata.erase("family");
  REQUIRE(refusal(e) ==
          "family: not in the file's metadata; name it by --family");
  REQUIRE(refusal(e, {{"family", "gdn2"}}).empty());
}

TEST_CASE("heads before tokens is the same problem") {
  editable e = small;
  for (auto& [name, x] : e.tensors) {
    if (!carve::program::has_tokens(name)) continue;
    const carve::tensor<double> y = carve::program::exchange_axes(
        carve::tensor<double>({x.shape.begin(), x.shape.end()}, x.values));
    x.shape = {y.shape.begin(), y.shape.end()}, x.values = y.data;
  }
  REQUIRE(e.tensors["q"].shape == std::vector<std::int64_t>{1, 2, 5, 3});
  const dump d = small.read();
  const dump same = e.read({{"layout", "[B,H,T,D]"}});
  REQUIRE(same.in.in.q.data == d.in.in.q.data);
  REQUIRE(same.in.in.q.shape == d.in.in.q.shape);
  REQUIRE(same.judged[0].values.data == d.judged[0].values.data);
  REQUIRE(same.judged[1].values.data == d.judged[1].values.data);
  REQUIRE(refusal(e) ==
          "final_state: expected [1,5,3,4] ([N,HV,K,V]), got [1,2,3,4]");
  e.tensors["o"].shape = {1, 5, 2, 4};
  REQUIRE(refusal(e, {{"layout", "BHTD"}}) ==
          "o: expected [1,2,5,4] ([B,HV,T,V]), got [1,5,2,4]");
}

TEST_CASE("activations, window and state layout are settings too") {
  editable e = small;
  e.tensors["A_log"] = {st::dtype::f32, {2}, {0.1, 0.2}};
  e.tensors["dt_bias"] = {st::dtype::f32, {2, 3}, {0, 1, 2, 3, 4, 5}};
  e.tensors["final_state"].shape = {1, 2, 4, 3};
  const dump d = e.read({{"decay_activation", "softplus"},
                         {"b_activation", "doubled_sigmoid"},
                         {"w_activation", "sigmoid"},
                         {"l2norm", "true"},
                         {"state_layout", "NHVK"}});
  REQUIRE(d.in.act.decay == carve::decay_activation::softplus);
  REQUIRE(d.in.act.b == carve::gate_activation::doubled_sigmoid);
  REQUIRE(d.in.act.w == carve::gate_activation::sigmoid);
  REQUIRE(d.in.act.l2norm);
  REQUIRE(d.in.state_v_first);
}

TEST_CASE("what the erase looks into is a setting") {
  REQUIRE_FALSE(small.read().in.erase_reads.has_value());
  REQUIRE(small.read({{"erase_order", "before"}}).in.erase_reads ==
          carve::erase_order::before_decay);
  REQUIRE(small.read({{"erase_order", "after"}}).in.erase_reads ==
          carve::erase_order::after_decay);
}

TEST_CASE("the lower bound of a decay is a setting") {
  const settings bounded{{"decay_activation", "bounded"},
                         {"lower_bound", "-2.5"}};
  REQUIRE(small.read(bounded).in.act.lower_bound == -2.5);
  REQUIRE(small.read().in.act.lower_bound == -5);
}

TEST_CASE("parameters and their gradients have no tokens to exchange") {
  for (const char* name : {"w_down", "dw_down", "w_up", "dw_up", "A_log",
                           "dA_log", "dt_bias", "ddt_bias", "initial_state",
                           "dinitial_state", "final_state", "dfinal_state"}) {
    INFO(name);
    REQUIRE_FALSE(carve::program::has_tokens(name));
  }
  for (const char* name : {"q", "dq", "E", "o", "do", "dbeta"}) {
    INFO(name);
    REQUIRE(carve::program::has_tokens(name));
  }
  // One token, so that only the heads' place tells the layouts apart.
  editable e;
  e.metadata = {{"family", "carve"}, {"window", "1"}, {"layout", "BHTD"}};
  const auto add = [&](const char* name, std::vector<std::int64_t> shape) {
    std::size_t n = 1;
    for (const auto d : shape) n *= static_cast<std::size_t>(d);
    std::vector<double> values(n);
    for (std::size_t i = 0; i < n; ++i) values[i] = -double(i) / 16;
    e.tensors[name] = {st::dtype::f32, shape, values};
  };
  for (const char* name : {"q", "k", "g", "b"}) add(name, {1, 2, 1, 3});
  for (const char* name : {"v", "do"}) add(name, {1, 2, 1, 4});
  add("w", {1, 2, 1});
  for (const char* name : {"w_down", "dw_down"}) add(name, {2, 5, 4});
  for (const char* name : {"w_up", "dw_up"}) add(name, {2, 3, 5});
  const dump d = e.read();
  REQUIRE(d.judged.size() == 2);
  for (const auto& x : d.judged) {
    REQUIRE(x.values.data == e.tensors[x.name].values);
  }
}

TEST_CASE("a setting that is not understood is refused by name") {
  REQUIRE(refusal(small, {{"family", "gdn3"}}) ==
          "family: expected one of linear, mamba2, gla, delta, gdn, kda, gdn2, "
          "value_erase, full_erase, carve, comba, dplr, rwkv7, "
          "gated_delta_product, eda, mamba3, got \"gdn3\"; did you mean gdn or "
          "gdn2?");
  REQUIRE(refusal(small, {{"scale", "large"}}) ==
          "scale: expected a finite number, got \"large\"");
  REQUIRE(refusal(small, {{"scale", "nan"}}) ==
          "scale: expected a finite number, got \"nan\"");
  REQUIRE(refusal(small, {{"read_out", "never"}}) ==
          "read_out: expected one of [after,before], got \"never\"");
  REQUIRE(refusal(small, {{"layout", "[T,B,H,D]"}}) ==
          "layout: expected one of [BTHD,BHTD], got \"[T,B,H,D]\"");
  REQUIRE(refusal(small, {{"state_layout", "KV"}}) ==
          "state_layout: expected one of [NHKV,NHVKV,NHVK,NHVVK], got \"KV\"");
  REQUIRE(refusal(small, {{"window", "1.5"}}) ==
          "window: expected an integer, got \"1.5\"");
  REQUIRE(refusal(small, {{"l2norm", "yes"}}) ==
          "l2norm: expected one of [false,true,mean,max,0,1,none,inside], got "
          "\"yes\"");
  REQUIRE(refusal(small, {{"b_activation", "relu"}}) ==
          "b_activation: gate activation: expected none, sigmoid or "
          "doubled_sigmoid, got \"relu\"");
}

TEST_CASE("a missing tensor is named with those that the family needs") {
  editable e = small;
  e.tensors.erase("w");
  REQUIRE(refusal(e) == "w: missing; family gdn2 needs [q,k,v,g,b,w]");
  e.tensors.erase("q");
  REQUIRE(refusal(e) == "q: missing; family gdn2 needs [q,k,v,g,b,w]");
}

TEST_CASE("a tensor of another family is refused") {
  editable e = small;
  e.tensors["beta"] = {st::dtype::f32, {1, 5, 2}, std::vector<double>(10, 1)};
  REQUIRE(refusal(e) ==
          "beta: not a tensor of family gdn2, which takes [q,k,v,g,b,w]");
}

TEST_CASE("a wrong shape is named with the right one") {
  const auto with_shape = [](const char* name,
                             std::vector<std::int64_t> shape) {
    editable e = small;
    std::size_t n = 1;
    for (const auto d : shape) n *= static_cast<std::size_t>(d);
    e.tensors[name] = {st::dtype::f32, shape, std::vector<double>(n, 0.5)};
    return refusal(e);
  };
  REQUIRE(with_shape("k", {1, 5, 2, 4}) ==
          "k: expected [1,5,2,3] like q, got [1,5,2,4]");
  REQUIRE(with_shape("q", {5, 2, 3}) == "q: expected [B,T,H,K], got [5,2,3]");
  REQUIRE(with_shape("v", {1, 5, 3, 4}) ==
          "v: expected [1,5,HV,V] with HV a multiple of 2, got [1,5,3,4]");
  REQUIRE(with_shape("o", {1, 5, 2, 3}) ==
          "o: expected [1,5,2,4] ([B,T,HV,V]), got [1,5,2,3]");
  REQUIRE(with_shape("do", {1, 4, 2, 4}) ==
          "do: expected [1,5,2,4] ([B,T,HV,V]), got [1,4,2,4]");
  REQUIRE(with_shape("final_state", {1, 2, 4, 3}) ==
          "final_state: expected [1,2,3,4] ([N,HV,K,V]), got [1,2,4,3]");
  REQUIRE(with_shape("dq", {1, 5, 2, 4}) ==
          "dq: expected [1,5,2,3] like q, got [1,5,2,4]");
  REQUIRE(with_shape("q", {}) ==
          "q: expected at least one element on at least one axis, got []");
  REQUIRE(with_shape("q", {1, 0, 2, 3}) ==
          "q: expected at least one element on at least one axis, got "
          "[1,0,2,3]");
}

TEST_CASE("a wrong dtype is named with the right one") {
  editable e = small;
  e.tensors["q"].dtype = st::dtype::i64;
  REQUIRE(refusal(e) == "q: expected a floating-point tensor, got I64");
  e = small;
  e.tensors["v"].dtype = st::dtype::bf16;
  REQUIRE(refusal(e) == "v: expected F32 like q, got BF16");
  e = small;
  e.tensors["o"].dtype = st::dtype::i64;
  REQUIRE(refusal(e) == "o: expected a floating-point tensor, got I64");
  e = small;
  e.tensors["cu_seqlens"] = {st::dtype::f32, {2}, {0, 5}};
  REQUIRE(refusal(e) == "cu_seqlens: expected I32 or I64, got F32");
}

TEST_CASE("a NaN or an infinity in an input is refused where it is") {
  editable e = small;
  e.tensors["k"].values[7] = std::numeric_limits<double>::quiet_NaN();
  REQUIRE(refusal(e) ==
          "k: expected finite numbers, got a NaN or an infinity at "
          "[0,1,0,1]");
  e = small;
  e.tensors["do"].values[0] = std::numeric_limits<double>::infinity();
  REQUIRE(refusal(e) ==
          "do: expected finite numbers, got a NaN or an infinity at "
          "[0,0,0,0]");
  e = small;
  e.tensors["o"].values[0] = std::numeric_limits<double>::quiet_NaN();
  REQUIRE(refusal(e).empty());  // an output may hold anything
}

TEST_CASE("cu_seqlens that are no offsets are refused") {
  const auto with = [](std::vector<double> offsets) {
    editable e = small;
    const auto n = static_cast<std::int64_t>(offsets.size());
    e.tensors["cu_seqlens"] = {st::dtype::i64, {n}, offsets};
    return refusal(e);
  };
  REQUIRE(with({0, 4, 2, 5}) ==
          "cu_seqlens: expected offsets that never decrease, got 4 then 2 at "
          "entry 2");
  REQUIRE(with({1, 5}) ==
          "cu_seqlens: expected at least two offsets, the first 0, got [1,5]");
  REQUIRE(with({0, 6}) ==
          "cu_seqlens: expected the last offset to be at most T = 5, got 6");
  REQUIRE(with({}) == "cu_seqlens: expected at least two offsets, got none");
  editable e = small;
  e.tensors["cu_seqlens"] = {st::dtype::i64, {1, 2}, {0, 5}};
  REQUIRE(refusal(e) ==
          "cu_seqlens: expected one axis of N+1 offsets, got [1,2]");
}

TEST_CASE("states too large for any memory are refused") {
  editable e;
  e.metadata = {{"family", "linear"}};
  const std::vector<double> many(20000, 0.0);
  for (const char* name : {"q", "k", "v"}) {
    e.tensors[name] = {st::dtype::f32, {1, 1, 1, 20000}, many};
  }
  e.tensors["cu_seqlens"] = {st::dtype::i32, {20000}, many};
  e.tensors["cu_seqlens"].values.back() = 1;
  REQUIRE(refusal(e) ==
          "states of 19999 sequences, 1 heads, K 20000 and V 20000 are too "
          "large");
}

TEST_CASE("a tensor that carve does not know is refused") {
  editable e = small;
  e.tensors["dh0"] = e.tensors["q"];
  REQUIRE(refusal(e).starts_with("dh0: unknown tensor; expected q, k, v, "));
}

TEST_CASE("a gradient needs its input and a cotangent") {
  editable e = small;
  e.tensors["dinitial_state"] = e.tensors["final_state"];
  REQUIRE(refusal(e) ==
          "dinitial_state: the gradient of initial_state, which the file does "
          "not hold");
  e = small;
  e.tensors.erase("do");
  REQUIRE(refusal(e) ==
          "dq: a gradient needs the cotangent it came from: the file holds "
          "neither do nor dfinal_state");
}

TEST_CASE("a dump without outputs cannot be verified") {
  editable e = small;
  for (const char* name : {"o", "final_state", "dq"}) e.tensors.erase(name);
  REQUIRE(verify_refusal(e) ==
          "no output to judge: expected o, final_state or a gradient beside "
          "the inputs");
}

TEST_CASE("dtypes and family imply the profile") {
  using carve::profile;
  const auto implied = [](const editable& e) {
    return carve::program::implied_profile(e.read());
  };
  REQUIRE(implied(small) == profile::fp32);
  REQUIRE(implied(fixtures::small(st::dtype::f64)) == profile::fp32);
  REQUIRE(implied(fixtures::small(st::dtype::bf16)) == profile::tensor_core);
  REQUIRE(implied(fixtures::small(st::dtype::f16)) == profile::tensor_core);
  editable e = fixtures::small(st::dtype::bf16);
  e.metadata["family"] = "value_erase";
  e.tensors["e"] = e.tensors["w"];
  e.tensors.erase("b");
  REQUIRE(implied(e) == profile::ieee_recurrent);
  REQUIRE_FALSE(carve::program::verify(e.read()).pass());
  carve::program::verify_settings tensor_core;
  tensor_core.facts.as = profile::tensor_core;
  REQUIRE(verify_refusal(small, tensor_core) ==
          "profile: tensor-core is for BF16 and F16 operands, q is F32; "
          "expected tf32, fp32 or ieee-recurrent");
}

TEST_CASE("an exact result beyond the range of a double is refused") {
  editable e = small;
  e.metadata["scale"] = "1e308";
  for (double& x : e.tensors["q"].values) x = 1e38;
  REQUIRE(verify_refusal(e) ==
          "o: the exact result is beyond the range of a double at [0,0,0,0]");
}

TEST_CASE("the first tokens of a packed dump end its sequences with them") {
  editable e = small;
  e.tensors["cu_seqlens"] = {st::dtype::i64, {3}, {0, 2, 5}};
  e.tensors.erase("final_state");
  const carve::program::dump first = carve::program::first_tokens(e.read(), 3);
  REQUIRE(first.size.T == 3);
  REQUIRE(first.in.cu_seqlens == std::vector<std::int64_t>{0, 2, 3});
  REQUIRE(carve::program::verify(first).tensors.size() == 2);
}
