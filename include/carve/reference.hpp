/// @file
/// All that the compiled library `carve::reference` holds: the token by token
/// recurrence for the widest vector instructions of the machine it runs on, and
/// every solver instantiated once for the common scalars.
///
/// A target that links the library runs its code without including this; what
/// is included here besides is not compiled again either.
#pragma once

#include "carve/multiprecision.hpp"
#include "carve/reference_batch.hpp"
#include "carve/solver.hpp"

// `how` and `T` are words of a declaration, which parentheses would break.
// NOLINTBEGIN(bugprone-macro-parentheses)

/// Declares (`how` is `extern`) or defines (`how` is empty) the solvers in
/// chunks of one scalar.
#define CARVE_CHUNKED_TEMPLATES(how, T)                                      \
  how template void chunked_forward<T, exact_policy>(                        \
      const head<T>&, index_t, rows<T>, state_view<T>, const exact_policy&); \
  how template void chunked_backward<T, exact_policy>(                       \
      const head<T>&, index_t, const head_cotangents<T>&,                    \
      const head_gradients<T>&, rows<T>, state_view<T>, const exact_policy&);

/// The same for the solver of one value column after the other.
#define CARVE_COLUMNWISE_TEMPLATES(how, T)                                  \
  how template void columnwise_forward<T>(const head<T>&, index_t, rows<T>, \
                                          state_view<T>);                   \
  how template void columnwise_backward<T>(                                 \
      const head<T>&, index_t, const head_cotangents<T>&,                   \
      const head_gradients<T>&, rows<T>, state_view<T>);

/// All solvers of one scalar.
#define CARVE_INSTANTIATE(how, T)   \
  CARVE_RECURRENT_TEMPLATES(how, T) \
  CARVE_CHUNKED_TEMPLATES(how, T)   \
  CARVE_COLUMNWISE_TEMPLATES(how, T)

// NOLINTEND(bugprone-macro-parentheses)

namespace carve {

CARVE_CHUNKED_TEMPLATES(extern, float)
CARVE_COLUMNWISE_TEMPLATES(extern, float)
CARVE_CHUNKED_TEMPLATES(extern, double)
CARVE_COLUMNWISE_TEMPLATES(extern, double)
CARVE_CHUNKED_TEMPLATES(extern, long double)
CARVE_COLUMNWISE_TEMPLATES(extern, long double)
CARVE_CHUNKED_TEMPLATES(extern, double_double)
CARVE_COLUMNWISE_TEMPLATES(extern, double_double)
CARVE_INSTANTIATE(extern, real50)
CARVE_INSTANTIATE(extern, real100)

}  // namespace carve
