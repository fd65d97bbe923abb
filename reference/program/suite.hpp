/// @file
/// What is a suite of test vectors on disk, and how is a port scored over it?
///
/// A suite is a folder: a safetensors file for each vector, with inputs and
/// exact outputs, and `manifest.json`, which docs/vectors.schema.json
/// describes. The manifest holds the unit of every output in every profile, so
/// that a score needs no ensemble.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "carve/compare.hpp"
#include "program/dump.hpp"
#include "program/verify.hpp"

namespace carve::program {

/// The file beside the vectors.
inline constexpr std::string_view manifest_name = "manifest.json";

/// A profile and the format of the port's operands: "fp32" and the like, and
/// "tensor-core/BF16" and "tensor-core/F16".
std::string unit_key(profile as, safetensors::dtype inputs);

/// The regimes: factors and the values of each.
using regime_matrix =
    std::vector<std::pair<std::string, std::vector<std::string>>>;

/// An input of a vector.
struct vector_input {
  std::string name;
  safetensors::dtype dtype = safetensors::dtype::f32;
  tensor_shape shape;
  std::vector<std::string> exact_in;  ///< dtypes that hold each number of it
};

/// An exact output of a vector.
struct vector_output {
  std::string name;
  tensor_shape shape;
  double rms = 0, largest = 0;  ///< of the exact result
  /// By unit_key(), then by the dtype in which a port stores it.
  std::map<std::string, std::map<std::string, error_unit>> units;
};

/// What the manifest says of a vector.
struct vector_entry {
  std::string name, file, sha256;
  std::uint64_t bytes = 0;
  carve::family family = family::gdn2;
  /// Value of each factor, in the order of manifest::factors.
  std::vector<std::string> regime;
  dimensions size;
  double scale = 0;  ///< 1/sqrt(K), rounded to double
  erase_order erase_reads = erase_order::after_decay;
  program::settings settings;  ///< the file's metadata
  std::vector<vector_input> inputs;
  std::vector<vector_output> outputs;
};

/// What `manifest.json` holds.
struct manifest {
  std::string suite;
  std::uint64_t seed = 1;
  std::size_t strength = 2;  ///< every admissible tuple of so many factors
  regime_matrix factors;
  std::vector<vector_entry> vectors;
};

/// The manifest as JSON.
std::string manifest_text(const manifest& m);

/// The manifest of the suite in `folder`.
/// @throws carve::error  naming the file and what in it is not as it must be.
manifest read_manifest(const std::filesystem::path& folder);

/// Values of factors, any of which will do, by factor.
using selection = std::map<std::string, std::vector<std::string>>;

/// `FACTOR=VALUE[,VALUE]`, several of them.
/// @throws carve::error  where a factor or a value is not among `factors`.
selection selection_of(const std::vector<std::string>& words,
                       const regime_matrix& factors);

/// Whether a vector with those values of the factors is selected.
bool selected(const selection& s, const std::vector<std::string>& regime,
              const regime_matrix& factors);

/// What a score is told.
struct check_settings {
  std::optional<profile> as;                 ///< absent: as `verify` implies
  std::optional<safetensors::dtype> inputs;  ///< absent: that of the outputs
  tolerance limit;
  selection only;  ///< the vectors in question
  /// What was not run, vectors or outputs of one, does not count.
  bool partial = false;
};

/// What comes of one vector.
enum class mark {
  pass,        ///< no output fails
  fail,        ///< one does
  incomplete,  ///< none fails, and some were not run
  not_run,     ///< there are no results
  unusable,    ///< those that there are cannot be read
};

/// A vector, judged.
struct scored_vector {
  const vector_entry* of = nullptr;
  mark state = mark::not_run;
  std::string error;                ///< why its results are unusable
  std::string unit;                 ///< the unit_key() by which it was judged
  std::vector<verdict> tensors;     ///< those that the results hold
  std::vector<std::string> absent;  ///< outputs that they do not hold
};

/// A suite, judged.
struct score {
  const manifest* suite = nullptr;
  tolerance limit;
  bool partial = false;
  std::vector<scored_vector> vectors;  ///< those selected

  std::size_t count(mark state) const;
  /// Fail where a vector fails; else not judged where one is unusable or,
  /// unless partial, incomplete or not run.
  outcome result() const;
};

/// Judges one output by the units of the manifest.
/// @param[in] exact  the output in the vector's file
/// @throws carve::error  where the manifest has no unit for it.
verdict judge_output(const vector_entry& of, const std::vector<double>& exact,
                     const judged_tensor& x, const std::string& key,
                     const tolerance& limit);

/// Judges what a port made of one vector's inputs.
/// @param[in] file     the vector's
/// @param[in] results  of the port, under the names of the vector's outputs
/// @throws carve::error  for a tensor in `results` that the vector does not
///                       know, or of another shape or dtype than it must have,
///                       where it holds no output, and as judge_output() does.
scored_vector judge_vector(const vector_entry& of,
                           const safetensors::file& file,
                           const safetensors::file& results,
                           const check_settings& how);

/// Judges a folder of results, a file for each vector under the vector's name.
/// @throws carve::error  where the suite is not whole, or nothing was run.
score check_suite(const manifest& m, const std::filesystem::path& folder,
                  const std::filesystem::path& results,
                  const check_settings& how);

/// The score, a row for each value of the regime; at most 80 columns wide but
/// for the lines about single vectors.
void write_score(std::ostream& out, const score& s, bool colour);

/// The same as one object.
void write_score_json(std::ostream& out, const score& s);

/// One test case for each output of each vector; what was not run is skipped.
void write_score_junit(std::ostream& out, const score& s);

}  // namespace carve::program
