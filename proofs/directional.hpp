/// @file
/// Does a gradient match the derivative along a random direction?
///
/// Inputs become dual numbers whose derivative is a free variable each; decays
/// move along their logs, `a (1 + z eps)`.  Then `<cotangent, derivative of the
/// outputs> = <gradient, z>` is a polynomial identity in inputs, cotangents and
/// z, which holds only if every entry of the gradient is right.
#pragma once

#include <array>
#include <vector>

#include "carve/dual.hpp"
#include "mutants.hpp"
#include "solvers.hpp"

namespace carve::proofs {

template <class T>
using tensor_values = std::array<std::vector<T>, tensor_count>;

/// `in` with a direction, which is stored in z (empty for what stands still).
template <class T>
tensors<dual<T>> with_direction(const tensors<T>& in, tensor_values<T>& z) {
  tensors<dual<T>> r;
  r.shape = in.shape;
  r.scale = in.scale;
  r.fresh = [] { return dual<T>(0); };
  for (int i = 0; i < tensor_count; ++i) {
    const bool moves = i != dout && i != dstate;
    const bool log = i == a || i == d;
    for (const T& x : in.x[i]) {
      z[i].push_back(moves ? in.fresh() : T(0));
      r.x[i].emplace_back(x, log ? T(x * z[i].back()) : z[i].back());
    }
  }
  return r;
}

/// `sum gradient * z` over everything that has a gradient.
template <class T>
T pairing(const tensor_values<T>& gradient, const tensor_values<T>& z) {
  T sum(0);
  for (int i = 0; i < tensor_count; ++i) {
    for (std::size_t n = 0; n < gradient[i].size(); ++n) {
      sum += gradient[i][n] * z[i][n];
    }
  }
  return sum;
}

/// `sum cotangent * derivative` over outputs and final state.
template <class T>
T pulled_back(const std::vector<dual<T>>& values, const tensors<T>& in) {
  const auto outputs = static_cast<std::size_t>(
      in.shape.tokens / in.shape.substeps * in.shape.values);
  T sum(0);
  for (std::size_t n = 0; n < values.size(); ++n) {
    const T& cotangent =
        n < outputs ? in.x[dout][n] : in.x[dstate][n - outputs];
    sum += cotangent * values[n].derivative;
  }
  return sum;
}

/// Law: the reverse walk is the derivative of the recurrence.
struct reverse_is_derivative {
  actor who = actor::recurrent;
  fault f = fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    tensor_values<T> z;
    const auto moved = with_direction(in, z);
    gradient_store<T> store(in.shape);
    make<T>(who, in.shape.chunk, f)
        .backward(in.view(), in.cotangents(), store.views());
    sides<T> both;
    both.add(pulled_back(values(recurrent<dual<T>>(), moved), in),
             pairing(store.x, z));
    return both;
  }
};

}  // namespace carve::proofs
