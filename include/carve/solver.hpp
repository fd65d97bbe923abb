/// @file
/// The solvers behind one interface, for whoever walks a sequence in
/// pieces: batches, content windows, segments.
#pragma once

#include "carve/chunked.hpp"
#include "carve/columnwise.hpp"
#include "carve/head.hpp"
#include "carve/recurrence.hpp"
#include "carve/recurrent_solver.hpp"

namespace carve {

/// The definition: definition_forward and definition_backward. It keeps every
/// state on the way back and is slow; recurrent_solver gives the same numbers.
struct definition_solver {
  /// One head: outputs `[T,V]` and final state `[K,V]`; in `backward` gradients
  /// as well, and the two may be null views.
  ///@{
  template <class T>
  void forward(const head<T>& p, rows<T> o, state_view<T> S) const {
    definition_forward(p, o, S);
  }
  template <class T>
  void backward(const head<T>& p, const head_cotangents<T>& in,
                const head_gradients<T>& out, rows<T> o = {},
                state_view<T> S = {}) const {
    definition_backward(p, in, out, o, S);
  }
  ///@}
};

/// Chunked WY form: chunked_forward and chunked_backward.
template <class Policy = exact_policy>
struct chunked_solver {
  index_t chunk = 64;  ///< chunk length, at least 1
  Policy policy = {};  ///< where and how to round

  /// One head: outputs `[T,V]` and final state `[K,V]`; in `backward` gradients
  /// as well, and the two may be null views.
  ///@{
  template <class T>
  void forward(const head<T>& p, rows<T> o, state_view<T> S) const {
    chunked_forward(p, chunk, o, S, policy);
  }
  template <class T>
  void backward(const head<T>& p, const head_cotangents<T>& in,
                const head_gradients<T>& out, rows<T> o = {},
                state_view<T> S = {}) const {
    chunked_backward(p, chunk, in, out, o, S, policy);
  }
  ///@}
};

/// One triangular solve per value column: columnwise_forward and
/// columnwise_backward.
struct columnwise_solver {
  index_t chunk = 64;  ///< chunk length, at least 1

  /// One head: outputs `[T,V]` and final state `[K,V]`; in `backward` gradients
  /// as well, and the two may be null views.
  ///@{
  template <class T>
  void forward(const head<T>& p, rows<T> o, state_view<T> S) const {
    columnwise_forward(p, chunk, o, S);
  }
  template <class T>
  void backward(const head<T>& p, const head_cotangents<T>& in,
                const head_gradients<T>& out, rows<T> o = {},
                state_view<T> S = {}) const {
    columnwise_backward(p, chunk, in, out, o, S);
  }
  ///@}
};

}  // namespace carve
