/// @file
/// Definitions of solvers.hpp, instantiated once for each scalar.
#pragma once

#include "carve/solver.hpp"
#include "solvers.hpp"

namespace carve::proofs {

template <class T>
solver<T> recurrent() {
  return {[](const head<T>& p, rows<T> o, state_view<T> S) {
            recurrent_forward(p, o, S);
          },
          [](const head<T>& p, const head_cotangents<T>& in,
             const head_gradients<T>& out, rows<T> o,
             state_view<T> S) { recurrent_backward(p, in, out, o, S); }};
}

template <class T>
solver<T> chunked(index_t chunk) {
  return {[chunk](const head<T>& p, rows<T> o, state_view<T> S) {
            chunked_forward(p, chunk, o, S);
          },
          [chunk](const head<T>& p, const head_cotangents<T>& in,
                  const head_gradients<T>& out, rows<T> o, state_view<T> S) {
            chunked_backward(p, chunk, in, out, o, S);
          }};
}

template <class T>
solver<T> columnwise(index_t chunk) {
  return {[chunk](const head<T>& p, rows<T> o, state_view<T> S) {
            columnwise_forward(p, chunk, o, S);
          },
          [chunk](const head<T>& p, const head_cotangents<T>& in,
                  const head_gradients<T>& out, rows<T> o, state_view<T> S) {
            columnwise_backward(p, chunk, in, out, o, S);
          }};
}

template <class T>
std::vector<T> values(const solver<T>& s, const head<T>& p) {
  std::vector<T> r((p.tokens + p.keys) * p.values, T(0));
  s.forward(p, rows<T>{r.data(), p.values, 1},
            state_view<T>{r.data() + p.tokens * p.values, p.values, 1});
  return r;
}

template <class T>
std::vector<T> values(const solver<T>& s, const tensors<T>& in) {
  return values(s, in.view());
}

template <class T>
std::vector<T> gradients(const solver<T>& s, const tensors<T>& in) {
  gradient_store<T> store(in.shape);
  s.backward(in.view(), in.cotangents(), store.views());
  return store.all();
}

template <class T>
std::vector<T> content_values(const solver<T>& s, const tensors<T>& in) {
  const head<T> p = in.view();
  std::vector<T> r((p.tokens + p.keys) * p.values, T(0));
  content_forward(p, gate_of(in), s, rows<T>{r.data(), p.values, 1},
                  state_view<T>{r.data() + p.tokens * p.values, p.values, 1},
                  polynomial_activation<T>{});
  return r;
}

template <class T>
std::vector<T> content_gradients(const solver<T>& s, const tensors<T>& in) {
  gradient_store<T> store(in.shape);
  content_backward(in.view(), gate_of(in), s, in.cotangents(), store.views(),
                   {store.state(down), store.state(up)}, rows<T>{},
                   state_view<T>{}, polynomial_activation<T>{});
  return store.all();
}

}  // namespace carve::proofs

/// Everything for one scalar; duals only need to go forward.
#define CARVE_PROOFS_FORWARD(T)                                                \
  namespace carve::proofs {                                                    \
  template solver<T> recurrent<T>();                                           \
  template std::vector<T> values(const solver<T>&, const head<T>&);            \
  template std::vector<T> values(const solver<T>&, const tensors<T>&);         \
  template std::vector<T> content_values(const solver<T>&, const tensors<T>&); \
  }
#define CARVE_PROOFS_SOLVERS(T)                                           \
  CARVE_PROOFS_FORWARD(T)                                                 \
  namespace carve::proofs {                                               \
  template solver<T> chunked<T>(index_t);                                 \
  template solver<T> columnwise<T>(index_t);                              \
  template std::vector<T> gradients(const solver<T>&, const tensors<T>&); \
  template std::vector<T> content_gradients(const solver<T>&,             \
                                            const tensors<T>&);           \
  }
