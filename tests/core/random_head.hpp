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
};

// One vector per tensor of a head; inputs, gradients and directions alike.
template <class X>
struct head_tensors {
  std::vector<X> q, k, v, a, d, b, e, w, mask, S0;

  template <class F>
  static void for_each(F&& f) {
    f(&head_tensors::q), f(&head_tensors::k), f(&head_tensors::v);
    f(&head_tensors::a), f(&head_tensors::d), f(&head_tensors::b);
    f(&head_tensors::e), f(&head_tensors::w), f(&head_tensors::mask);
    f(&head_tensors::S0);
  }
  bool operator==(const head_tensors&) const = default;
};

// Tensors that a head with that erase gate has; the others stay empty.
template <class X, class F>
head_tensors<X> fill(const head_shape& s, erase along, F&& draw) {
  head_tensors<X> x;
  const auto some = [&](index_t n) {
    std::vector<X> v;
    for (index_t i = 0; i < n; ++i) v.push_back(draw());
    return v;
  };
  x.q = some(s.T * s.K), x.k = some(s.T * s.K), x.v = some(s.T * s.V);
  x.a = some(s.T * s.K), x.d = some(s.T * s.V), x.w = some(s.T * s.V);
  x.S0 = some(s.K * s.V);
  if (along == erase::key || along == erase::value) x.b = some(s.T * s.K);
  if (along == erase::value) x.e = some(s.T * s.V);
  if (along == erase::mask) x.mask = some(s.T * s.K * s.V);
  return x;
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
  h.tokens = s.T, h.keys = s.K, h.values = s.V;
  h.q = rows_of<const X>(x.q, s.K), h.k = rows_of<const X>(x.k, s.K);
  h.v = rows_of<const X>(x.v, s.V), h.a = rows_of<const X>(x.a, s.K);
  h.d = rows_of<const X>(x.d, s.V), h.b = rows_of<const X>(x.b, s.K);
  h.e = rows_of<const X>(x.e, s.V), h.w = rows_of<const X>(x.w, s.V);
  h.mask = masks_of<const X>(x.mask, s);
  h.S0 = state_of<const X>(x.S0, s);
  h.erases = !x.b.empty() || !x.mask.empty();
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
                    const Solver& solver) {
  walk_result<X> r;
  r.o.assign(static_cast<std::size_t>(s.T * s.V), X(0));
  r.S.assign(static_cast<std::size_t>(s.K * s.V), X(0));
  r.gradients = fill<X>(s, along, [] { return X(0); });
  const head_cotangents<X> in{rows_of<const X>(dO, s.V),
                              state_of<const X>(dS, s)};
  solver.backward(p, in, gradients_of(r.gradients, s), rows_of<X>(r.o, s.V),
                  state_of<X>(r.S, s));
  return r;
}

}  // namespace carve::tests
