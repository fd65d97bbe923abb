/// @file
/// Which deviation explains a dump that fails?  Each of the catalogue in
/// @ref deviation.hpp is computed and held against the file.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "program/dump.hpp"
#include "program/verify.hpp"

namespace carve {
struct deviation;
struct deviation_choice;
enum class likeness;
}  // namespace carve

namespace carve::program {

/// A row of the catalogue with one of its choices.
struct suspect {
  const deviation* row = nullptr;
  const deviation_choice* choice = nullptr;
};

/// Every row with every choice, in the order of the table.
std::vector<suspect> suspects();
/// Those of one row.
/// @throws carve::error  where no row has that name.
std::vector<suspect> suspects(std::string_view id);

/// The name of a suspect's row; of several, with " + " between them.
std::string name_of(const std::vector<suspect>& together);
/// "numbers", "size" or "shape".
std::string_view name_of(likeness by);
/// What follows "if".
std::string sentence_of(const suspect& s);
/// Whether one of them may touch that tensor.
bool may_touch(const std::vector<suspect>& together, std::string_view tensor);

/// What the dump's inputs give under deviations, the first applied first.
/// @returns nothing where one of them has nothing to deviate in, or where the
///          deviating computation cannot be made.
std::optional<gradient_result<double>> deviating_result(
    const dump& d, const std::vector<suspect>& together,
    const run_settings& run = {});

/// What deviations give, kept for more than one diagnosis of the same inputs;
/// may be asked from several threads.
class known_results {
 public:
  /// As deviating_result; `d` has the inputs of the first call.
  std::shared_ptr<const std::optional<gradient_result<double>>> of(
      const dump& d, const std::vector<suspect>& together);

 private:
  std::mutex mutex_;
  std::map<std::vector<std::pair<const deviation*, const deviation_choice*>>,
           std::shared_ptr<const std::optional<gradient_result<double>>>>
      known_;
};

/// The dump with its outputs replaced by those of `r`, rounded to storage.
dump with_outputs(dump d, const gradient_result<double>& r);

/// One explanation of a dump.
struct explanation {
  std::string id;                    ///< as name_of has it
  std::vector<std::string> tensors;  ///< that fail, and match under it
  /// The largest of theirs; the least correlation where they are alike in
  /// shape.
  double ratio = 0;
  std::string text;   ///< a sentence
  likeness by = {};   ///< in what they match
  bool same = false;  ///< these inputs cannot tell it from the best one
};

/// A tensor that fails and that the best explanation does not explain.
struct unexplained {
  std::string name;
  std::string where;  ///< it is wrong, in words
};

/// What came of a diagnosis.
struct diagnosis {
  std::vector<explanation> found;  ///< best first
  std::vector<std::string> wrong;  ///< the tensors that fail
  std::vector<unexplained> left;   ///< those that found[0] leaves
  std::size_t tried = 0;           ///< deviations that change something
};

/// How near to one of its deviations a tensor must be to match it, in units;
/// three where the deviation takes nine tenths of the error away. A unit is
/// measured at the right result, and the deviating one has its own roundings.
inline constexpr double matching_ratio = 1.5;

/// How far errors must lie in the same tokens to be alike in shape.
inline constexpr double matching_correlation = 0.85;

/// How long a diagnosis takes one core, in seconds and roughly: the work is
/// proportional to the numbers of all states, and is done for each suspect.
double seconds_to_diagnose(const dump& d);

/// What `verify` spends on a diagnosis that nobody asked for, in those seconds.
inline constexpr double unasked_seconds = 60;

/// Holds every deviation, and pairs of the best few, against a dump that was
/// verified. Where nothing fails nothing is tried and nothing is found.
/// Deviations are tried on `run.threads` threads; the order in which they are
/// found does not depend on it.
/// @param[in,out] known  null, or what other dumps of the same inputs gave
diagnosis diagnose(const dump& d, const verification& v,
                   const run_settings& run = {},
                   known_results* known = nullptr);

}  // namespace carve::program
