/// @file
/// Has the double-double reference the digits that it claims?
#include <algorithm>
#include <cmath>

#include "catch.hpp"
#include "program/fixtures.hpp"
#include "program/verify.hpp"

namespace {

/// Every output and gradient of a bundled dump, all heads, against 100 digits.
/// The 100 digits are read as a double-double, which costs 1e-32.
void check_digits(const std::string& name) {
  const carve::program::dump d = fixtures::read(name);
  const auto dd = carve::program::exact_result(d, "dd", {2, {}});
  const auto all_digits = carve::program::exact_result(d, "100", {2, {}});
  REQUIRE(d.judged.size() >= 7);
  for (const auto& x : d.judged) {
    const auto& a = carve::program::result_named(dd, x.name).data;
    const auto& b = carve::program::result_named(all_digits, x.name).data;
    REQUIRE(a.size() == x.values.data.size());
    REQUIRE(b.size() == a.size());
    bool finite = true;
    double largest = 0, largest_error = 0, sum = 0, sum_error = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double e = std::abs(static_cast<double>(a[i] - b[i]));
      const double y = std::abs(static_cast<double>(b[i]));
      finite = finite && std::isfinite(e);
      largest = std::max(largest, y);
      largest_error = std::max(largest_error, e);
      sum += y * y;
      sum_error += e * e;
    }
    const double rms = std::sqrt(sum_error / sum);
    CAPTURE(name, x.name, rms, largest_error / largest);
    REQUIRE(finite);
    REQUIRE(largest > 0);
    REQUIRE(rms <= 1e-28);
    REQUIRE(largest_error <= 1e-28 * largest);
    // Two ways to one number, and not one way twice.
    REQUIRE(largest_error > 0);
  }
}

}  // namespace

TEST_CASE("delta: double-double agrees with 100 digits to 1e-28") {
  check_digits("delta_bf16");
}
TEST_CASE("gdn: double-double agrees with 100 digits to 1e-28") {
  check_digits("gdn_bf16");
}
TEST_CASE("gdn, no decay: double-double agrees with 100 digits to 1e-28") {
  check_digits("gdn_no_decay_bf16");
}
TEST_CASE("kda: double-double agrees with 100 digits to 1e-28") {
  check_digits("kda_bf16");
}
TEST_CASE("kda, strong decay: double-double agrees with 100 digits to 1e-28") {
  check_digits("kda_strong_decay_bf16");
}
TEST_CASE("gdn2: double-double agrees with 100 digits to 1e-28") {
  check_digits("gdn2_bf16");
}
