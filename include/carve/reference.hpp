/// @file
/// What the compiled library `carve::reference` holds: the token by token
/// recurrence for the widest vector instructions of the machine it runs on, and
/// the solvers instantiated once for the common scalars.
#pragma once

#include <concepts>

#include "carve/batch.hpp"
#include "carve/dispatch.hpp"
#include "carve/double_double.hpp"
#include "carve/multiprecision.hpp"

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

// `how` and `T` are words of a declaration, which parentheses would break.
// NOLINTBEGIN(bugprone-macro-parentheses)

/// Declares (`how` is `extern`) or defines (`how` is empty) the solvers of one
/// scalar.
#define CARVE_SOLVER_TEMPLATES(how, T)                                        \
  how template void recurrent_forward<T>(const head<T>&, rows<T>,             \
                                         state_view<T>);                      \
  how template void recurrent_backward<T>(                                    \
      const head<T>&, const head_cotangents<T>&, const head_gradients<T>&,    \
      rows<T>, state_view<T>);                                                \
  how template void chunked_forward<T, exact_policy>(                         \
      const head<T>&, index_t, rows<T>, state_view<T>, const exact_policy&);  \
  how template void chunked_backward<T, exact_policy>(                        \
      const head<T>&, index_t, const head_cotangents<T>&,                     \
      const head_gradients<T>&, rows<T>, state_view<T>, const exact_policy&); \
  how template void columnwise_forward<T>(const head<T>&, index_t, rows<T>,   \
                                          state_view<T>);                     \
  how template void columnwise_backward<T>(                                   \
      const head<T>&, index_t, const head_cotangents<T>&,                     \
      const head_gradients<T>&, rows<T>, state_view<T>);

/// The same for whole problems under one solver.
#define CARVE_BATCH_TEMPLATES(how, T, Solver)                                  \
  how template outputs<T> forward<T, Solver>(const problem<T>&, const Solver&, \
                                             const run_options&);              \
  how template gradient_result<T> backward<T, Solver>(                         \
      const problem<T>&, const outputs<T>&, const Solver&,                     \
      const run_options&);

/// Both, with batches under the two recurrent solvers.
#define CARVE_INSTANTIATE(how, T)                 \
  CARVE_SOLVER_TEMPLATES(how, T)                  \
  CARVE_BATCH_TEMPLATES(how, T, recurrent_solver) \
  CARVE_BATCH_TEMPLATES(how, T, reference_solver)

// NOLINTEND(bugprone-macro-parentheses)

namespace carve {

CARVE_INSTANTIATE(extern, float)
CARVE_INSTANTIATE(extern, double)
CARVE_INSTANTIATE(extern, long double)
CARVE_INSTANTIATE(extern, double_double)
CARVE_INSTANTIATE(extern, real50)
CARVE_INSTANTIATE(extern, real100)

}  // namespace carve
