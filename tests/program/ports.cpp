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
