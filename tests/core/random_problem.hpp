// A batched problem with random tensors of plausible sizes, for tests.
#pragma once

#include <random>
#include <string_view>

#include "carve/problem.hpp"

namespace carve::tests {

struct problem_shape {
  index_t B = 1, T = 8, H = 2, HV = 2, K = 4, V = 3;
};

// Unit-size entries; gates in (0, 1); log decays in (-1, 0).
template <class T>
problem<T> random_problem(family f, const problem_shape& s, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> unit(0.01, 0.99);
  const auto numbers = [&](tensor_shape shape, auto draw) {
    tensor<T> x(std::move(shape));
    // Rounded to float so that every scalar holds the same numbers.
    for (T& e : x.data) {
      e = scalar_traits<T>::from_double(static_cast<float>(draw()));
    }
    return x;
  };
  const auto plain = [&] { return normal(random) / 2; };
  const auto gate = [&] { return unit(random); };
  const auto log_decay = [&] { return -unit(random); };
  const family_info& row = info(f);
  const index_t rows = row.steps == substeps::given ? 2 * s.T : s.T;
  const auto along = [&](axis a, auto draw) {
    tensor_shape shape{s.B, s.T, s.HV};
    if (a == axis::key) shape.push_back(s.K);
    if (a == axis::value) shape.push_back(s.V);
    if (a == axis::mask) shape = {s.B, s.T, s.HV, s.K, s.V};
    return numbers(shape, draw);
  };
  problem<T> p;
  p.family = f;
  p.in.q = numbers({s.B, s.T, s.H, s.K}, plain);
  p.in.k = numbers({s.B, rows, s.H, s.K}, plain);
  p.in.v = numbers({s.B, rows, s.HV, s.V}, plain);
  if (row.decay != axis::none) p.in.g = along(row.decay, log_decay);
  if (row.tied) {
    p.in.beta = numbers({s.B, rows, s.HV}, gate);
  } else {
    if (row.erase == axis::key) {
      p.in.b =
          row.content_gate ? along(row.erase, plain) : along(row.erase, gate);
    }
    if (row.erase == axis::value) p.in.e = along(row.erase, gate);
    if (row.erase == axis::mask) p.in.E = along(row.erase, gate);
    if (row.write != axis::none) p.in.w = along(row.write, gate);
  }
  using carve::erase_address, carve::erase_direction;
  if (row.address == erase_address::gated_p) p.in.p = along(axis::key, plain);
  if (row.steps == substeps::erase_then_delta) {
    p.in.p = along(axis::key, plain), p.in.eta = along(axis::head, gate);
  }
  if (row.steps == substeps::trapezoid) p.in.w_last = along(axis::head, gate);
  if (row.address == erase_address::given) p.in.r = along(axis::key, plain);
  if (row.direction == erase_direction::given) {
    p.in.y = along(axis::key, plain);
  }
  p.in.initial_state = numbers({s.B, s.HV, s.K, s.V}, plain);
  if (row.content_gate) {
    p.window = 3;
    p.in.w_down = numbers({s.HV, 2, s.V}, plain);
    p.in.w_up = numbers({s.HV, s.K, 2}, plain);
  }
  return p;
}

// Cotangents of everything that comes out.
template <class T>
outputs<T> random_cotangents(const problem<T>& p, unsigned seed = 2) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  outputs<T> c{
      tensor<T>({p.in.q.dim(0), p.in.q.dim(1), p.in.v.dim(2), p.in.v.dim(3)}),
      tensor<T>(p.in.initial_state.shape)};
  for (tensor<T>* x : {&c.o, &c.final_state}) {
    for (T& e : x->data) {
      e = scalar_traits<T>::from_double(static_cast<float>(normal(random)));
    }
  }
  return c;
}

}  // namespace carve::tests
