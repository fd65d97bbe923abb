/// @file
/// The recurrence, compiled once for each set of vector instructions; chosen
/// when the program runs.
#pragma once

#include <cstdint>
#include <string_view>

#include "carve/double_double.hpp"
#include "carve/head.hpp"

namespace carve {

/// Vector instructions a binary may use.  The results are the same in every
/// bit: no loop's order of summation depends on them.
enum class instruction_set {
  baseline,  ///< whatever the library was compiled for
  avx2,      ///< x86-64-v3: 256 bits, fused multiply-add
  avx512,    ///< x86-64-v4: 512 bits
};

/// `baseline`, `avx2` or `avx512`.
std::string_view name_of(instruction_set level);

/// The widest set that the library has code for and this machine executes.
/// @throws carve::error  there is none: the library was compiled for some of
///                       them only.
instruction_set widest_instruction_set();

/// Heads that this process has handed to the functions below: who linked the
/// library can see that it is used.
std::int64_t dispatched_heads();

/// recurrent_forward as compiled for `level`, which the machine must have.
/// @throws carve::error  the library was not compiled for it.
void recurrent_forward_on(instruction_set level, const head<float>& p,
                          const rows<float>& o, const state_view<float>& S);
/// \copydoc recurrent_forward_on
void recurrent_forward_on(instruction_set level, const head<double>& p,
                          const rows<double>& o, const state_view<double>& S);
/// \copydoc recurrent_forward_on
void recurrent_forward_on(instruction_set level, const head<double_double>& p,
                          const rows<double_double>& o,
                          const state_view<double_double>& S);

/// recurrent_backward as compiled for `level`, which the machine must have.
/// @throws carve::error  the library was not compiled for it.
void recurrent_backward_on(instruction_set level, const head<float>& p,
                           const head_cotangents<float>& in,
                           const head_gradients<float>& out,
                           const rows<float>& o, const state_view<float>& S);
/// \copydoc recurrent_backward_on
void recurrent_backward_on(instruction_set level, const head<double>& p,
                           const head_cotangents<double>& in,
                           const head_gradients<double>& out,
                           const rows<double>& o, const state_view<double>& S);
/// \copydoc recurrent_backward_on
void recurrent_backward_on(instruction_set level, const head<double_double>& p,
                           const head_cotangents<double_double>& in,
                           const head_gradients<double_double>& out,
                           const rows<double_double>& o,
                           const state_view<double_double>& S);

}  // namespace carve
