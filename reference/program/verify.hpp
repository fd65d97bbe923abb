/// @file
/// Is a dump right?  Exact results, the ensemble of sound ways, and one verdict
/// for each output that the dump holds.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "carve/compare.hpp"
#include "carve/replay.hpp"
#include "program/dump.hpp"
#include "program/ensemble.hpp"
#include "program/exercise.hpp"
#include "program/locate.hpp"

namespace carve::program {

/// The scalar in which exact results are computed.
struct precision {
  std::string_view name;    ///< on the command line
  std::string_view scalar;  ///< in words
  int digits;
};

inline constexpr std::array precisions{
    precision{"double", "double", 15}, precision{"dd", "double-double", 31},
    precision{"50", "50 decimal digits", 50},
    precision{"100", "100 decimal digits", 100}};

/// Threads, and who is told how far a long computation is: (what, done, total).
struct run_settings {
  unsigned threads = 0;
  std::function<void(std::string_view, index_t, index_t)> progress = {};
};

/// Outputs, and gradients where the dump has cotangents, computed in the scalar
/// of that precision and rounded to double-double.
/// @param[in] by  name of one of `precisions`
/// @throws carve::error  for another name, and for a result that a double
///                       cannot hold.
gradient_result<double_double> exact_result(const dump& d, std::string_view by,
                                            const run_settings& run = {});

/// What a run of `verify` is told.
struct verify_settings {
  kernel_facts facts;  ///< what is known of the kernel
  tolerance limit;
  /// The distance from the replay that is allowed as well, in the replay's
  /// errors: for a kernel that claims to round where the replay does.
  std::optional<double> bitlike;
  run_settings run;
  bool strict = false;  ///< what the inputs do not exercise is not judged
};

/// One judged output.
struct verdict {
  std::string name;
  safetensors::dtype dtype;
  tensor_shape shape;  ///< [B,T,H,D] whatever the layout of the file
  comparison errors;
  double reference_value = 0;  ///< where errors.worst is
  double actual_value = 0;
  bool too_far = false;         ///< beyond verify_settings::bitlike
  std::string nearest;          ///< the plain way that came nearest, in words
  double nearest_distance = 0;  ///< from it, in units
  /// Set where the inputs are BF16 or F16 and this output is F32: the RMS ratio
  /// by which it would be judged if all arithmetic were in fp32.
  std::optional<double> fp32_ratio;
  std::string where;  ///< it is wrong, in words; where it fails
  error_map map;      ///< of a tensor that fails

  bool pass() const { return errors.pass() && !too_far; }
  bool fails() const { return errors.fails() || too_far; }
};

/// What comes of it all.
enum class outcome { pass, fail, not_judged };

/// All that a run of `verify` found out.
struct verification {
  std::string file;
  family of = family::gdn2;
  dimensions size;
  double scale = 0;
  readout read = readout::after;
  bool packed = false;  ///< sequences of different lengths
  profile as = profile::tensor_core;
  std::string replay;                 ///< the first way, in words
  std::vector<std::string> freedoms;  ///< granted to the kernel
  std::size_t ways = 0;               ///< in the ensemble
  std::string nearest;  ///< the plain way that came nearest over all tensors
  safetensors::dtype dtype = safetensors::dtype::f64;
  tolerance limit;
  std::optional<double> bitlike;
  input_notes inputs;   ///< what they leave untested
  bool strict = false;  ///< and that alone is enough for not_judged
  std::vector<verdict> tensors;
  std::vector<std::string> notes;  ///< the dump's

  /// Fail where a tensor fails; else not judged where one was not, or, when
  /// strict, where the inputs leave something untested.
  outcome result() const;
  bool pass() const { return result() == outcome::pass; }
  /// The failing tensor with the largest ratio; null where none fails.
  const verdict* worst() const;
};

/// What a dump's outputs are compared with.
struct expectation {
  profile as = profile::tensor_core;
  gradient_result<double_double> exact;
  ensemble sound;  ///< units of the dump's own judged tensors
};

/// Exact results and the ensemble's errors; gradients where the dump has
/// cotangents.
/// @throws carve::error  for facts that do not apply.
expectation expect(const dump& d, const kernel_facts& facts = {},
                   const run_settings& run = {});

/// Judges one output; its name is one of the dump's that `e` was made for.
verdict judge(const expectation& e, const judged_tensor& x,
              const tolerance& limit = {});

/// Judges every output of `d`.
/// @throws carve::error  as expect() does, and for a dump without outputs.
verification verify(const dump& d, const verify_settings& how = {});

}  // namespace carve::program
