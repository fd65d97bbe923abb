/// @file
/// Which problems make a suite of test vectors, and what are their numbers?
///
/// A matrix of regimes, of which a covering keeps every admissible pair or
/// triple; from its rows and a seed, by integer arithmetic alone, the inputs.
/// Each is a number that few bits hold, so that a port may take it in its own
/// format; the exact results come from double-double, in which no function
/// depends on a library's: so every file is the same in every bit wherever it
/// is made. The units in the manifest are measured in float, whose functions
/// are the machine's, and told to three digits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "program/covering.hpp"
#include "program/suite.hpp"
#include "program/verify.hpp"

namespace carve::program {

/// What is taken of the matrix, and how wide its problems are.
struct suite_row {
  std::string_view name;
  std::size_t strength;  ///< of the covering
  index_t narrow, wide;  ///< K and V: both narrow, or one of them wide
  index_t part;          ///< they are divided by it where T is above 17
  std::string_view meaning;
};

/// The suites. To add one is to add its row here.
inline constexpr suite_row suites[] = {
    {"smoke", 2, 8, 16, 2, "every pair of regimes, 4 to 16 channels a head"},
    {"standard", 2, 32, 64, 1, "every pair of regimes, 32 and 64 channels"},
    {"full", 3, 16, 32, 1, "every triple of regimes, 16 and 32 channels"},
};

/// The one of that name.
/// @throws carve::error  where there is none.
const suite_row& suite_named(std::string_view name);

/// The regime matrix.
regime_matrix regime_factors();

/// The covering of the matrix, or of those values of it; all constraints are
/// in its rule.
covering regime_covering(const selection& only = {});

/// A vector before its numbers: of a suite, a row of the covering.
struct vector_plan {
  std::string name;                 ///< "gdn-03"
  std::vector<std::string> regime;  ///< in the order of regime_factors()
  carve::family family = family::gdn2;
  dimensions size;
  std::vector<std::int64_t> cu_seqlens;
  program::settings settings;  ///< the file's metadata
};

/// The vectors of a suite, or of one that has those regimes alone.
/// @throws carve::error  where no problem has them.
std::vector<vector_plan> plan_of(const suite_row& suite,
                                 const selection& only = {});

/// The bytes of a vector's file: a dump whose outputs are exact.
std::vector<std::byte> make_vector(const vector_plan& plan, std::uint64_t seed);

/// What the manifest says of it.
/// @param[in] profiles  those whose units are measured.
vector_entry describe(const vector_plan& plan, std::span<const std::byte> file,
                      std::span<const profile> profiles);

/// What `write_suite` is told.
struct vectors_settings {
  std::uint64_t seed = 1;
  std::vector<profile> profiles;  ///< none: all
  selection only;                 ///< the regimes wanted
  run_settings run;
};

/// Makes the vectors and their manifest, and with a folder writes them there.
/// @throws carve::error  where the folder holds anything but a suite.
manifest write_suite(const suite_row& suite, const vectors_settings& how,
                     const std::filesystem::path& folder);

/// In how many vectors a deviation is caught.
struct catches {
  std::size_t tried = 0;  ///< vectors in which there is something to deviate in
  std::size_t caught = 0;  ///< of those, the ones that fail
  std::string vector;      ///< that in which an error is furthest beyond bounds
  double excess = 0;       ///< by what factor

  /// @param[in] beyond  by what factor an error is beyond its bound; at most
  ///                    one: none is.
  void add(double beyond, const std::string& name);
};

/// What a suite says of one deviation.
struct power_row {
  std::string id, sentence;  ///< with the choice's words
  catches f32, bf16;         ///< of a port in that format
};

/// Which deviations of the catalogue does a suite catch?  In its order.
std::vector<power_row> power_of(const suite_row& suite,
                                const vectors_settings& how);

/// By what factor the worst error of a port's outputs is beyond its bound, the
/// port computing `outputs` and storing them in `port`; zero where none fails.
double beyond_bounds(const vector_entry& v, const dump& d,
                     const gradient_result<double>& outputs,
                     safetensors::dtype port);

/// The rows as a table in Markdown.
void write_power(std::ostream& out, const std::vector<power_row>& rows);

}  // namespace carve::program
