/// @file
/// The token by token solver for the widest vector instructions of the machine
/// that it runs on, from the compiled library `carve::reference`.
#pragma once

#include <concepts>

#include "carve/dispatch.hpp"
#include "carve/double_double.hpp"
#include "carve/tiled_walk.hpp"

namespace carve {

/// Token by token on the widest vector instructions of this machine for float,
/// double and double_double; recurrent_solver for every other scalar.
struct reference_solver {
  instruction_set level = widest_instruction_set();  ///< to run on

  /// T has code of its own for each set of vector instructions.
  template <class T>
  static constexpr bool dispatched =
      std::same_as<T, float> || std::same_as<T, double> ||
      std::same_as<T, double_double>;

  /// One head: outputs `[T,V]` and final state `[K,V]`; in `backward` gradients
  /// as well, and the two may be null views.
  ///@{
  template <class T>
  void forward(const head<T>& p, rows<T> o, state_view<T> S) const {
    if constexpr (dispatched<T>) {
      recurrent_forward_on(level, p, o, S);
    } else {
      recurrent_forward(p, o, S);
    }
  }
  template <class T>
  void backward(const head<T>& p, const head_cotangents<T>& in,
                const head_gradients<T>& out, rows<T> o = {},
                state_view<T> S = {}) const {
    if constexpr (dispatched<T>) {
      recurrent_backward_on(level, p, in, out, o, S);
    } else {
      recurrent_backward(p, in, out, o, S);
    }
  }
  ///@}
};

}  // namespace carve
