/// @file
/// Is a dump right?  Exact results, the rounding replay, and one verdict for
/// each output that the dump holds.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "carve/compare.hpp"
#include "carve/replay.hpp"
#include "program/dump.hpp"

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
  std::optional<profile> as;  ///< absent: what the dtypes imply
  tolerance limit;
  run_settings run;
};

/// One judged output.
struct verdict {
  std::string name;
  safetensors::dtype dtype;
  tensor_shape shape;  ///< [B,T,H,D] whatever the layout of the file
  comparison errors;
  double reference_value = 0;  ///< where errors.worst is
  double actual_value = 0;
};

/// All that a run of `verify` found out.
struct verification {
  std::string file;
  family of = family::gdn2;
  dimensions size;
  double scale = 0;
  readout read = readout::after;
  bool packed = false;  ///< sequences of different lengths
  profile as = profile::tensor_core;
  safetensors::dtype dtype = safetensors::dtype::f64;
  tolerance limit;
  std::vector<verdict> tensors;
  std::vector<std::string> notes;  ///< the dump's

  bool pass() const;
};

/// The profile that a dump's dtypes imply: tensor-core for BF16 and F16 with
/// operands in that format; fp32 for F32 and F64. A family whose erase gate
/// has no WY form is implied to run token by token: ieee-recurrent.
profile implied_profile(const dump& d);

/// What a dump's outputs are compared with.
struct expectation {
  profile as = profile::tensor_core;
  gradient_result<double_double> exact;
  gradient_result<float> replayed;
};

/// Exact results and the replay's; gradients where the dump has cotangents.
/// @param[in] as  absent: what the dtypes imply
/// @throws carve::error  for a profile that does not apply.
expectation expect(const dump& d, std::optional<profile> as = {},
                   const run_settings& run = {});

/// Judges one output.
verdict judge(const expectation& e, const judged_tensor& x,
              const tolerance& limit = {});

/// Judges every output of `d`.
/// @throws carve::error  as expect() does, and for a dump without outputs.
verification verify(const dump& d, const verify_settings& how = {});

}  // namespace carve::program
