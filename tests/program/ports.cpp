/// @file
/// Is every port of the collection judged as it should be?
///
/// A folder holds `sound/`, `wrong/` and `unjudged/`; the one in tests/ports,
/// unless the environment variable CARVE_PORTS names another.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <set>

#include "catch.hpp"
#include "program/diagnose.hpp"
#include "program/fixtures.hpp"
#include "program/verify.hpp"

namespace {

using namespace carve::program;

std::set<std::filesystem::path> files_in(const std::string& folder) {
  const char* const other = std::getenv("CARVE_PORTS");
  const std::filesystem::path top = other ? other : CARVE_PORTS;
  std::set<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(top / folder)) {
    if (entry.path().extension() == ".safetensors") files.insert(entry.path());
  }
  REQUIRE_FALSE(files.empty());
  return files;
}

/// Verifies every file of a folder and prints how near it comes to the limits.
void check_folder(const std::string& folder, outcome expected) {
  for (const auto& file : files_in(folder)) {
    const dump d = read_dump(fixtures::st::file::open(file), {});
    const verification v = verify(d);
    const auto share = [&](const verdict& t) {
      return std::max(t.errors.ratio / v.limit.rms,
                      t.errors.max_ratio / v.limit.largest);
    };
    const verdict& worst =
        *std::max_element(v.tensors.begin(), v.tensors.end(),
                          [&](const verdict& a, const verdict& b) {
                            return share(a) < share(b);
                          });
    std::cout << std::left << std::setw(9) << folder << std::setw(46)
              << file.stem().string() << std::setw(15) << worst.name
              << " ratio " << std::setprecision(3) << worst.errors.ratio
              << ", largest " << worst.errors.max_ratio << '\n';
    INFO(file.string());
    CHECK(v.result() == expected);
  }
}

}  // namespace

TEST_CASE("sound ports pass") { check_folder("sound", outcome::pass); }
TEST_CASE("wrong ports fail") { check_folder("wrong", outcome::fail); }
TEST_CASE("where no kernel has a digit nothing is said") {
  check_folder("unjudged", outcome::not_judged);
}

TEST_CASE(
    "what is wrong with the wrong ports is named, and sound ones have none") {
  // What the beginning of a file's name says of its port, as found by reading
  // the port or by computing it again; tests/ports/README.md has the words.
  const std::pair<std::string, std::string> causes[] = {
      {"01_opengdn_chunk_alpha0.2", "decay-underflow + grad-masked-after-exp"},
      {"opengdn.chunk_alpha0.25", "grad-masked-after-exp"},
      {"opengdn.chunk_", "decay-underflow + grad-masked-after-exp"},
      {"03_fla_naive_chunk_kda", "grad-masked-after-exp"},
      {"fla.gdn2.chunk64_", "grad-masked-after-exp"},
      {"20_deltanet_tpu_", "inverse-unstable"},
      {"dtpu2.", "inverse-unstable"},
      {"bf16.opengdn.rec_", "state-low-precision"}};
  for (const auto& file : files_in("wrong")) {
    const std::string name = file.stem().string();
    const auto* const cause =
        std::find_if(std::begin(causes), std::end(causes),
                     [&](const auto& c) { return name.starts_with(c.first); });
    INFO(name);
    REQUIRE(cause != std::end(causes));
    const dump d = read_dump(fixtures::st::file::open(file), {});
    const diagnosis why = diagnose(d, verify(d));
    for (const explanation& e : why.found) UNSCOPED_INFO(e.text);
    REQUIRE_FALSE(why.found.empty());
    std::cout << "wrong    " << std::setw(46) << name << why.found[0].id
              << '\n';
    CHECK(why.found[0].id == cause->second);
    CHECK(why.left.empty());
  }
  for (const auto& file : files_in("sound")) {
    INFO(file.string());
    const dump d = read_dump(fixtures::st::file::open(file), {});
    CHECK(diagnose(d, verify(d)).found.empty());
  }
}

TEST_CASE("no verdict depends on the draws") {
  const std::pair<const char*, outcome> folders[] = {
      {"sound", outcome::pass},
      {"wrong", outcome::fail},
      {"unjudged", outcome::not_judged}};
  for (const auto& [folder, expected] : folders) {
    for (const auto& file : files_in(folder)) {
      const dump d = read_dump(fixtures::st::file::open(file), {});
      for (std::uint32_t seed = 1; seed <= 20; ++seed) {
        verify_settings how;
        how.facts.seed = seed;
        INFO(file.string() << ", seed " << seed);
        CHECK(verify(d, how).result() == expected);
      }
    }
  }
}
