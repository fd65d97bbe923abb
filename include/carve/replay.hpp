/// @file
/// The rounding replay: the chunked form in fp32, rounded where a tensor-core
/// kernel rounds. Its error is the unit in which a kernel's error is measured.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "carve/batch.hpp"
#include "carve/drawn.hpp"
#include "carve/error.hpp"
#include "carve/precision.hpp"
#include "carve/solver.hpp"

namespace carve {

/// What is replayed.
enum class profile {
  tensor_core,     ///< chunked, operands in the input format
  tf32,            ///< chunked, operands in tf32
  fp32,            ///< chunked, fp32 throughout
  ieee_recurrent,  ///< token by token, fp32 throughout
};

/// The profiles by the names of the command line.
inline constexpr std::array<std::string_view, 4> profile_names{
    "tensor-core", "tf32", "fp32", "ieee-recurrent"};

/// The name of a profile, as in profile_names.
constexpr std::string_view name(profile p) {
  return profile_names[static_cast<std::size_t>(p)];
}

/// The profile called `text`.
/// @throws carve::error  naming all profiles, when there is none.
inline profile profile_named(std::string_view text) {
  for (std::size_t i = 0; i < profile_names.size(); ++i) {
    if (profile_names[i] == text) return static_cast<profile>(i);
  }
  throw error("profile: expected one of ", profile_names, ", got \"", text,
              "\"");
}

/// Chunk length of a replay, that of the kernels it was found from.
inline constexpr index_t replay_chunk = 64;

/// How a number becomes an operand of the tensor cores.
struct operand_rounding {
  format operand = format::f32;  ///< f32: not at all
  bool cut = false;  ///< tf32 alone: the low bits are dropped, not rounded
  /// Not 0: each rounding to nearest is replaced by an error of the same size,
  /// drawn by this seed.
  std::uint32_t draw = 0;
  /// A decay per head multiplies operands before they are rounded, as one per
  /// channel does, and what comes out of products is rounded as well.
  bool decayed = false;
};

/// Rounds at each rounding_point as the table in `treatment` says; products
/// accumulate in fp32.
class operand_policy {
 public:
  /// Decay ratios are `exp(G_t - G_s)`, as kernels form them.
  static constexpr bool exponentials = true;

  /// @param operand  format of the tensor cores' operands; f32 rounds nothing.
  explicit operand_policy(format operand = format::f32) : how_{operand} {}
  /// @param how  format and manner of the roundings.
  explicit operand_policy(const operand_rounding& how) : how_(how) {}

  /// Tensor cores sum in fp32, on the way.
  template <class M>
  void accumulate(M&, index_t) const {}

  /// Rounds every element of `m` as the table says; with operand format f32
  /// none.
  void round(rounding_point at, bool per_channel, matrix<float>& m) const {
    round(at, per_channel,
          std::span(m.data(), static_cast<std::size_t>(m.size())));
  }

  /// A sum whose products and partial sums are numbers of the operand format,
  /// halved until one is left.
  float sum(rounding_point at, bool per_channel, std::vector<float>& x) const {
    x.resize(std::bit_ceil(x.size()), 0.0f);
    round(at, per_channel, std::span(x));
    for (std::size_t n = x.size() / 2; n > 0; n /= 2) {
      for (std::size_t j = 0; j < n; ++j) x[j] += x[j + n];
      round(at, per_channel, std::span(x).first(n));
    }
    return x[0];
  }

 private:
  enum class treatment { none, operand, cut_tf32 };

  /// Which roundings the kernels of a widely used Triton library make; found
  /// from its kernels' outputs and gradients, see docs/rounding.md. They
  /// depend on nothing but whether the decay varies along the key axis.
  static constexpr treatment treated(rounding_point at, bool per_channel,
                                     bool decayed) {
    switch (at) {
      case rounding_point::score:
        return per_channel ? treatment::cut_tf32 : treatment::none;
      case rounding_point::inverse:
        return treatment::cut_tf32;
      case rounding_point::qg_back:
        return per_channel ? treatment::none
               : decayed   ? treatment::operand
                           : treatment::cut_tf32;
      case rounding_point::qg:
      case rounding_point::kg:
        return per_channel || decayed ? treatment::operand : treatment::none;
      case rounding_point::U_tail:
      case rounding_point::dscore:
      case rounding_point::dk_part:
        return per_channel ? treatment::none : treatment::operand;
      default:
        return treatment::operand;
    }
  }

  void round(rounding_point at, bool per_channel, std::span<float> x) const {
    if (how_.operand == format::f32) return;
    switch (treated(at, per_channel, how_.decayed)) {
      case treatment::none:
        return;
      case treatment::operand:
        if (how_.cut) return cut(x);
        if (how_.draw == 0) return round_all(how_.operand, x);
        for (float& e : x) {
          e = static_cast<float>(detail::drawn_rounding(
              how_.operand, e,
              std::uint64_t{how_.draw} << 8 | static_cast<std::uint64_t>(at)));
        }
        return;
      case treatment::cut_tf32:
        return cut(x);
    }
  }

  /// fp32 operands of tensor cores lose their low bits, unrounded.
  static void cut(std::span<float> x) {
    for (float& e : x) {
      e = std::bit_cast<float>(std::bit_cast<std::uint32_t>(e) & 0xFFFFE000u);
    }
  }

  operand_rounding how_;
};

/// Rounds nothing, but forms decay ratios as `exp(G_t - G_s)`: plain arithmetic
/// of the scalar in the order of a kernel.
struct difference_policy : exact_policy {
  static constexpr bool exponentials = true;  ///< from cumulated logs
};

/// The same, with gradients summed as automatic differentiation sums them: one
/// contribution after the other to the whole, with an error each time.
struct accumulating_policy : difference_policy {
  /// Equal shares stand for the contributions, which differ.
  template <class M>
  void accumulate(M& x, index_t parts) const {
    using T = typename M::Scalar;
    const M share = x / T(static_cast<double>(parts));
    x = share;
    for (index_t i = 1; i < parts; ++i) x += share;
  }
};

/// Outputs and gradients of the replay. They are fp32 numbers, not yet rounded
/// to the formats in which a kernel stores them.
/// @param[in] p           the problem, its inputs exact in fp32.
/// @param[in] cotangents  of outputs and final states; an absent one is zero.
/// @param[in] operand     operand format of profile::tensor_core.
/// @param[in] chunk       chunk length, unless the profile is ieee_recurrent.
/// @throws carve::error   as backward() does; also for a gate on the value
///                        axis that has no WY form, unless the profile is
///                        ieee_recurrent.
inline gradient_result<float> replay(const problem<float>& p,
                                     const outputs<float>& cotangents,
                                     profile what, format operand,
                                     const run_options& run = {},
                                     index_t chunk = replay_chunk) {
  if (what == profile::ieee_recurrent) {
    return backward(p, cotangents, recurrent_solver{}, run);
  }
  if (what == profile::tf32) operand = format::tf32;
  if (what == profile::fp32) operand = format::f32;
  const chunked_solver<operand_policy> solver{chunk, operand_policy(operand)};
  return backward(p, cotangents, solver, run);
}

}  // namespace carve
