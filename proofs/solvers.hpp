/// @file
/// The library's solvers as values, so that a law takes a right or a wrong one
/// without knowing which.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "carve/content_gate.hpp"
#include "carve/double_double.hpp"
#include "carve/dual.hpp"
#include "carve/multiprecision.hpp"
#include "carve/prime_field.hpp"
#include "degree.hpp"
#include "instance.hpp"

namespace carve::proofs {

/// A solver with the interface of recurrent_solver, bound at run time.
template <class T>
struct solver {
  std::function<void(const head<T>&, rows<T>, state_view<T>)> run;
  std::function<void(const head<T>&, const head_cotangents<T>&,
                     const head_gradients<T>&, rows<T>, state_view<T>)>
      back;

  void forward(const head<T>& p, rows<T> o, state_view<T> S) const {
    run(p, o, S);
  }
  void backward(const head<T>& p, const head_cotangents<T>& in,
                const head_gradients<T>& out, rows<T> o = {},
                state_view<T> S = {}) const {
    back(p, in, out, o, S);
  }
};

template <class T>
solver<T> recurrent();
template <class T>
solver<T> chunked(index_t chunk);
template <class T>
solver<T> columnwise(index_t chunk);

/// An activation over a ring, in place of the sigmoid: `f(x) = x^3 + x`, one
/// to one over the rationals.  Like the sigmoid's, its derivative is found from
/// its value: it remembers where it was evaluated.
template <class T>
class polynomial_activation {
 public:
  T value(const T& x) const {
    seen_.emplace_back(x * x * x + x, x);
    return seen_.back().first;
  }
  T derivative(const T&, const T& y) const {
    for (const auto& [value, x] : seen_) {
      if (value == y) return T(3) * x * x + T(1);
    }
    throw error("activation: a derivative where there was no value");
  }

 private:
  mutable std::vector<std::pair<T, T>> seen_;
};

/// Outputs, then the final state.
template <class T>
std::vector<T> values(const solver<T>& s, const tensors<T>& in);
/// The same of one head.
template <class T>
std::vector<T> values(const solver<T>& s, const head<T>& p);
/// Gradients of everything that is there, in the order of `tensor`; those of
/// decays are of their logs.
template <class T>
std::vector<T> gradients(const solver<T>& s, const tensors<T>& in);

/// The same through the content gate with the polynomial activation; logits
/// are in `b`.
template <class T>
std::vector<T> content_values(const solver<T>& s, const tensors<T>& in);
template <class T>
std::vector<T> content_gradients(const solver<T>& s, const tensors<T>& in);

/// The content gate of a head, and where its gradients go.
template <class T>
content_gate<T> gate_of(const tensors<T>& in) {
  return {in.shape.window, in.shape.rank, in.state(down), in.state(up)};
}

/// Zeroed gradients with views into them.
template <class T>
struct gradient_store {
  std::array<std::vector<T>, tensor_count> x;

  explicit gradient_store(const layout& shape) : shape_(shape) {
    for (int i = 0; i < tensor_count; ++i) {
      x[i].assign(shape.size(static_cast<tensor>(i)), T(0));
    }
  }
  rows<T> view(tensor i) {
    if (x[i].empty()) return {};
    const bool one = i >= a && i <= w && shape_.gate(i) == along::head;
    const bool key =
        i == q || i == k || i == a || i == b || i == address || i == direction;
    return {x[i].data(),
            one   ? 1
            : key ? shape_.keys
                  : shape_.values,
            one ? 0 : 1};
  }
  state_view<T> state(tensor i) {
    if (x[i].empty()) return {};
    return {x[i].data(), i == up ? shape_.rank : shape_.values, 1};
  }
  head_gradients<T> views() {
    head_gradients<T> g;
    g.q = view(q), g.k = view(k), g.v = view(v);
    g.g = view(a), g.gd = view(d);
    g.b = view(b), g.e = view(e), g.w = view(w);
    if (!x[mask].empty()) {
      g.mask = {x[mask].data(), shape_.keys * shape_.values, shape_.values, 1};
    }
    g.r = view(address), g.y = view(direction);
    g.S0 = state(start);
    return g;
  }
  std::vector<T> all() const {
    std::vector<T> r;
    for (const auto& y : x) r.insert(r.end(), y.begin(), y.end());
    return r;
  }

 private:
  layout shape_;
};

}  // namespace carve::proofs
