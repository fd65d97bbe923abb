// A head with random tensors, for tests: owns what the views point at.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "carve/head.hpp"
#include "carve/scalar.hpp"

namespace carve::tests {

// Which axis the erase gate has.
enum class erase { key, value, mask, none };

struct head_shape {
  index_t T, K, V;
  index_t n = 1;  // sub-steps a token
};

// What is given of the general step.
struct given {
  bool r = false, y = false;  // an erase address; an erase direction
  erase_order erase_reads = erase_order::after_decay;
};

// One vector per tensor of a head; inputs, gradients and directions alike.
template <class X>
struct head_tensors {
  std::vector<X> q, k, v, a, d, b, e, w, r, y, mask, S0;

  template <class F>
  static void for_each(F&& f) {
    f(&head_tensors::q), f(&head_tensors::k), f(&head_tensors::v);
    f(&head_tensors::a), f(&head_tensors::d), f(&head_tensors::b);
    f(&head_tensors::e), f(&head_tensors::w), f(&head_tensors::r);
    f(&head_tensors::y), f(&head_tensors::mask), f(&head_tensors::S0);
  }
  bool operator==(const head_tensors&) const = default;
};

// Tensors that a head with that erase gate has; the others stay empty.
template <class X, class F>
head_tensors<X> fill(const head_shape& s, erase along, F&& draw,
                     const given& step = {}) {
  head_tensors<X> x;
  const auto some = [&](index_t n) {
    std::vector<X> v;
    for (index_t i = 0; i < n; ++i) v.push_back(draw());
    return v;
  };
  const index_t steps = s.T * s.n;
  x.q = some(s.T * s.K), x.k = some(steps * s.K), x.v = some(steps * s.V);
  x.a = some(s.T * s.K), x.d = some(s.T * s.V), x.w = some(steps * s.V);
  x.S0 = some(s.K * s.V);
  const bool gated = along == erase::key || along == erase::value;
  if (gated && !step.r) x.b = some(steps * s.K);
  if (along == erase::value) x.e = some(steps * s.V);
  if (along == erase::mask) x.mask = some(steps * s.K * s.V);
  if (step.r) x.r = some(steps * s.K);
  if (step.y) x.y = some(steps * s.K);
  return x;
}

// The general step in all its choices, and n = 1, 2, 3 sub-steps.
struct general {
  erase along;
  given step;
  index_t n;
};

inline std::vector<general> every_step() {
  std::vector<general> all;
  for (const erase along :
       {erase::key, erase::value, erase::mask, erase::none}) {
    for (const bool r : {false, true}) {
      for (const bool y : {false, true}) {
        if (r && along == erase::mask) continue;
        if ((r || y) && along == erase::none) continue;
        for (const erase_order reads :
             {erase_order::after_decay, erase_order::before_decay}) {
          for (const index_t n : {1, 2, 3}) {
            all.push_back({along, {r, y, reads}, n});
          }
        }
      }
    }
  }
  return all;
}

template <class U, class V>
rows<U> rows_of(V& x, index_t channels) {
  return x.empty() ? rows<U>{} : rows<U>{x.data(), channels, 1};
}
template <class U, class V>
state_view<U> state_of(V& x, const head_shape& s) {
  return x.empty() ? state_view<U>{} : state_view<U>{x.data(), s.V, 1};
}
template <class U, class V>
masks<U> masks_of(V& x, const head_shape& s) {
  return x.empty() ? masks<U>{} : masks<U>{x.data(), s.K * s.V, s.V, 1};
}

template <class X>
head<X> head_of(const head_tensors<X>& x, const head_shape& s, readout read) {
  head<X> h;
  h.tokens = s.T, h.keys = s.K, h.values = s.V, h.substeps = s.n;
  h.q = rows_of<const X>(x.q, s.K), h.k = rows_of<const X>(x.k, s.K);
  h.v = rows_of<const X>(x.v, s.V), h.a = rows_of<const X>(x.a, s.K);
  h.d = rows_of<const X>(x.d, s.V), h.b = rows_of<const X>(x.b, s.K);
  h.e = rows_of<const X>(x.e, s.V), h.w = rows_of<const X>(x.w, s.V);
  h.r = rows_of<const X>(x.r, s.K), h.y = rows_of<const X>(x.y, s.K);
  h.mask = masks_of<const X>(x.mask, s);
  h.S0 = state_of<const X>(x.S0, s);
  h.erases = !x.b.empty() || !x.r.empty() || !x.mask.empty();
  h.scale = X(3);
  h.read = read;
  return h;
}

template <class X>
head_gradients<X> gradients_of(head_tensors<X>& x, const head_shape& s) {
  head_gradients<X> h;
  h.q = rows_of<X>(x.q, s.K), h.k = rows_of<X>(x.k, s.K);
  h.v = rows_of<X>(x.v, s.V), h.g = rows_of<X>(x.a, s.K);
  h.gd = rows_of<X>(x.d, s.V), h.b = rows_of<X>(x.b, s.K);
  h.e = rows_of<X>(x.e, s.V), h.w = rows_of<X>(x.w, s.V);
  h.r = rows_of<X>(x.r, s.K), h.y = rows_of<X>(x.y, s.K);
  h.mask = masks_of<X>(x.mask, s);
  h.S0 = state_of<X>(x.S0, s);
  return h;
}

// Outputs, final state and gradients of one solver.
template <class X>
struct walk_result {
  std::vector<X> o, S;
  head_tensors<X> gradients;
  bool operator==(const walk_result&) const = default;
};

template <class X, class Solver>
walk_result<X> walk(const head<X>& p, const head_shape& s, erase along,
                    const std::vector<X>& dO, const std::vector<X>& dS,
                    const Solver& solver, const given& step = {}) {
  walk_result<X> r;
  r.o.assign(static_cast<std::size_t>(s.T * s.V), X(0));
  r.S.assign(static_cast<std::size_t>(s.K * s.V), X(0));
  r.gradients = fill<X>(
      s, along, [] { return X(0); }, step);
  const head_cotangents<X> in{rows_of<const X>(dO, s.V),
                              state_of<const X>(dS, s)};
  solver.backward(p, in, gradients_of(r.gradients, s), rows_of<X>(r.o, s.V),
                  state_of<X>(r.S, s));
  return r;
}

}  // namespace carve::tests
