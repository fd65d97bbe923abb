/// @file
/// In which ways may a sound kernel compute, and how wrong is each?
///
/// One replay fixes choices that a kernel is free to make. The ensemble makes
/// them in every way that is granted, and the largest error is the unit of a
/// tensor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "carve/compare.hpp"
#include "carve/drawn.hpp"
#include "carve/replay.hpp"
#include "program/dump.hpp"

namespace carve::program {

/// What is known of a kernel; what is not is granted.
struct kernel_facts {
  std::optional<profile> as;       ///< absent: what the dtypes imply
  std::optional<index_t> chunk;    ///< chunk length
  std::optional<exponential> exp;  ///< how it comes to e^x
  std::uint32_t seed = 1;          ///< of the draws; not a fact
};

/// One sound way to compute a dump's outputs and gradients.
struct way {
  profile as = profile::fp32;
  index_t chunk = 0;          ///< 0: token by token
  operand_rounding rounding;  ///< of tensor-core and tf32
  bool columns = false;       ///< one triangular solve for each value column
  bool stored = false;        ///< activations are made in the input format
  bool scaled = false;        ///< q is scaled and rounded before it is used
  bool stored_state = false;  ///< the final state may pass through it as well
  bool few_only = false;      ///< a draw that speaks of few numbers alone
  std::uint32_t draw = 0;     ///< not 0: fp32 errors drawn by this seed
  exponential exp = exponential::rounded;  ///< of a draw

  /// It stands for itself and not for its distribution of errors.
  bool plain() const { return draw == 0 && rounding.draw == 0; }
};

/// "chunks of 64, operands rounded to BF16".
std::string words_of(const way& w);

/// The ways that the facts leave open for a dump.  The first is the replay.
/// @throws carve::error  for facts that contradict each other or the dump.
std::vector<way> ways_of(const dump& d, const kernel_facts& facts);

/// What is granted to the kernel, each freedom in a few words.
std::vector<std::string> freedoms_of(const dump& d, const kernel_facts& facts);

/// The profile that a dump's dtypes imply: tensor-core for BF16 and F16 with
/// operands in that format; fp32 for F32 and F64. A family whose erase gate
/// has no WY form is implied to run token by token: ieee-recurrent.
profile implied_profile(const dump& d);

/// The problem whose normalised q and k and whose gates have been made in
/// format `f`.
problem<float> with_stored_activations(problem<float> p, format f);

/// The dump's outputs and gradients computed in that way, not yet rounded to
/// the formats in which they are stored.
gradient_result<double> compute(const dump& d, const way& w,
                                const run_options& run = {});

/// Tensors of at most so many numbers have few independent errors: each number
/// is allowed its own largest error over the ensemble.
inline constexpr std::size_t few_numbers = 64;

/// The unit of one tensor.
struct tensor_unit {
  std::string name;
  error_unit unit;
  std::size_t largest_way = 0;  ///< the way whose RMS error is the largest
};

/// The ways, their errors, and what the plain ones among them computed.
struct ensemble {
  std::vector<way> ways;
  std::vector<tensor_unit> units;  ///< of dump::judged, in its order
  /// By way; empty for draws.
  std::vector<gradient_result<double>> results;
};

/// Runs all ways.
/// @param[in] exact  the exact result.
ensemble run_ensemble(const dump& d, const std::vector<way>& ways,
                      const gradient_result<double_double>& exact,
                      const run_options& run = {});

/// `values` rounded to the format in which a tensor is stored.
std::vector<double> stored_as(format storage,
                              const std::vector<double>& values);

}  // namespace carve::program
