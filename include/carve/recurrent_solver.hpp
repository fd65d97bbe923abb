/// @file
/// The token by token solver, with the interface of @ref solver.hpp and all
/// that a batch needs; the only one that needs no Eigen.
#pragma once

#include "carve/head.hpp"
#include "carve/tiled_walk.hpp"

namespace carve {

/// Token by token: recurrent_forward and recurrent_backward.
struct recurrent_solver {
  /// One head: outputs `[T,V]` and final state `[K,V]`; in `backward` gradients
  /// as well, and the two may be null views.
  ///@{
  template <class T>
  void forward(const head<T>& p, rows<T> o, state_view<T> S) const {
    recurrent_forward(p, o, S);
  }
  template <class T>
  void backward(const head<T>& p, const head_cotangents<T>& in,
                const head_gradients<T>& out, rows<T> o = {},
                state_view<T> S = {}) const {
    recurrent_backward(p, in, out, o, S);
  }
  ///@}
};

}  // namespace carve
