/// @file
/// What batch.hpp leaves to the compiled library `carve::reference`: whole
/// problems under the token by token solvers, for the scalars that need no
/// further header.
#pragma once

#include "carve/batch.hpp"
#include "carve/double_double.hpp"
#include "carve/recurrent_solver.hpp"
#include "carve/reference_solver.hpp"

// `how` and `T` are words of a declaration, which parentheses would break.
// NOLINTBEGIN(bugprone-macro-parentheses)

/// Declares (`how` is `extern`) or defines (`how` is empty) whole problems of
/// one scalar under one solver.
#define CARVE_BATCH_TEMPLATES(how, T, Solver)                                  \
  how template outputs<T> forward<T, Solver>(const problem<T>&, const Solver&, \
                                             const run_options&);              \
  how template gradient_result<T> backward<T, Solver>(                         \
      const problem<T>&, const outputs<T>&, const Solver&,                     \
      const run_options&);

/// The same with the recurrence itself.
#define CARVE_RECURRENT_TEMPLATES(how, T)                                  \
  how template void recurrent_forward<T>(const head<T>&, rows<T>,          \
                                         state_view<T>);                   \
  how template void recurrent_backward<T>(                                 \
      const head<T>&, const head_cotangents<T>&, const head_gradients<T>&, \
      rows<T>, state_view<T>);                                             \
  CARVE_BATCH_TEMPLATES(how, T, recurrent_solver)                          \
  CARVE_BATCH_TEMPLATES(how, T, reference_solver)

// NOLINTEND(bugprone-macro-parentheses)

namespace carve {

CARVE_RECURRENT_TEMPLATES(extern, float)
CARVE_RECURRENT_TEMPLATES(extern, double)
CARVE_RECURRENT_TEMPLATES(extern, long double)
CARVE_RECURRENT_TEMPLATES(extern, double_double)

}  // namespace carve
