/// @file
/// Do the error measures and the verdict do what they say, at their edges too?
#include "carve/compare.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "catch.hpp"

using carve::compare;
using carve::comparison;
using carve::double_double;
using carve::fault;
using carve::format;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

using exact_values = std::vector<double_double>;
using values = std::vector<double>;

}  // namespace

TEST_CASE("errors are measured against all digits of the exact result") {
  const exact_values y{{1, 0x1p-60}, {-2, 0}, {3, 0x1p-54}};
  const carve::tensor_error e = carve::measure(values{1, -2, 3}, y);
  REQUIRE(e.largest == 0x1p-54);
  REQUIRE(e.worst == 2);
  REQUIRE(e.nonfinite == 0);
  const double expected = 0x1p-54 * std::sqrt((1 + 0x1p-12) / 3);
  REQUIRE(std::abs(e.rms - expected) <= 1e-15 * expected);
}

TEST_CASE("of equal errors the first is the worst") {
  const exact_values y{1, 1, 1};
  REQUIRE(carve::measure(values{1, 2, 0}, y).worst == 1);
}

TEST_CASE("the RMS of huge and of tiny numbers is neither infinite nor zero") {
  REQUIRE(carve::root_mean_square(values{3e300, 4e300}) ==
          Approx(std::sqrt(12.5) * 1e300));
  REQUIRE(carve::root_mean_square(values{3e-300, 4e-300}) ==
          Approx(std::sqrt(12.5) * 1e-300));
  REQUIRE(carve::root_mean_square(values{}) == 0);
}

TEST_CASE("rounding a double-double looks at its low part") {
  const double middle = 1 + 0x1p-8;  // of 1 and the next bf16 number
  const auto bf16 = [](double high, double low) {
    return carve::rounded(format::bf16, {high, low});
  };
  REQUIRE(bf16(middle, 0) == 1);
  REQUIRE(bf16(middle, 0x1p-80) == 1 + 0x1p-7);
  REQUIRE(bf16(middle, -0x1p-80) == 1);
  REQUIRE(bf16(-middle, -0x1p-80) == -1 - 0x1p-7);
  // The middle above is the even one's: the low part pulls back.
  const double next = 1 + 0x1p-7 + 0x1p-8;
  REQUIRE(bf16(next, 0) == 1 + 0x1p-6);
  REQUIRE(bf16(next, -0x1p-80) == 1 + 0x1p-7);
  REQUIRE(carve::rounded(format::f64, {middle, 0x1p-80}) == middle);
}

TEST_CASE("ratios are errors in units of the replay's") {
  const exact_values y{1, 2, 4};
  const comparison c =
      compare(y, values{1.25, 2, 4}, values{1, 2.125, 4}, format::f32);
  REQUIRE(c.ratio == Approx(2));
  REQUIRE(c.max_ratio == Approx(2));
  REQUIRE(c.rel_rms == Approx(0.25 / std::sqrt(21)));
  REQUIRE(c.unit_rel_rms == Approx(0.125 / std::sqrt(21)));
  REQUIRE(c.replay_distance == Approx(std::sqrt(5)));
  REQUIRE(c.worst == 0);
  REQUIRE(c.fault == fault::rms);
  REQUIRE(compare(y, values{1.25, 2, 4}, values{1, 2.125, 4}, format::f32,
                  {2.1, 2.1})
              .pass());
  REQUIRE(compare(y, values{1.25, 2, 4}, values{1, 2.125, 4}, format::f32,
                  {2.1, 1.9})
              .fault == fault::largest);
}

TEST_CASE("a replay without error leaves half a unit in the last place") {
  const exact_values y(64, 1.5);
  const values replay(64, 1.5);
  values actual(64, 1.5);
  const double half_ulp = 1.5 * 0x1p-25;  // at least, of an F32 number near 1.5
  actual[7] = 1.5 + 3.9 * half_ulp;
  REQUIRE(compare(y, actual, replay, format::f32).pass());
  actual[7] = 1.5 + 4.1 * half_ulp;
  const comparison c = compare(y, actual, replay, format::f32);
  REQUIRE(c.fault == fault::largest);
  REQUIRE(c.max_ratio == Approx(4.1));
  REQUIRE(compare(y, replay, replay, format::f32).ratio == 0);
}

TEST_CASE("the exact result rounded to storage passes whatever the replay") {
  // Half way between two bf16 numbers each: rounding errors are the largest.
  const exact_values y(8, 1 + 0x1p-8 - 0x1p-40);
  const values nearest(8, 1), replay(8, 1 + 0x1p-8);
  const comparison c = compare(y, nearest, replay, format::bf16, {0.01, 0.01});
  REQUIRE(c.ratio >= 1.9);
  REQUIRE(c.pass());
  REQUIRE_FALSE(
      compare(y, values(8, 1 + 0x1p-7), replay, format::bf16, {0.01, 0.01})
          .pass());
}

TEST_CASE("a NaN or an infinity fails, whatever the thresholds") {
  const exact_values y{1, 2, 3, 4};
  const values replay{1.1, 2.1, 3.1, 4.1};
  for (const double bad : {not_a_number, infinity, -infinity}) {
    CAPTURE(bad);
    const comparison c = compare(y, values{1, 2, bad, bad}, replay,
                                 format::bf16, {infinity, infinity});
    REQUIRE(c.fault == fault::nonfinite);
    REQUIRE(c.actual.nonfinite == 2);
    REQUIRE(c.actual.first_nonfinite == 2);
    REQUIRE(c.worst == 2);
    REQUIRE(std::isinf(c.ratio));
    REQUIRE(std::isinf(c.max_ratio));
    REQUIRE(std::isinf(c.replay_distance));
  }
}

TEST_CASE("a replay that is not finite allows nothing") {
  const exact_values y{1, 2, 3, 4};
  const values replay{1.001, not_a_number, infinity, 4};
  REQUIRE(compare(y, values{1.001, 2, 3, 4}, replay, format::f32).pass());
  REQUIRE(
      compare(y, values{1, 2.1, 3, 4}, replay, format::f32).replay_distance ==
      Approx(1));
  REQUIRE(compare(y, values{1, 2.1, 3, 4}, replay, format::f32).fault ==
          fault::rms);
  REQUIRE_FALSE(compare(y, values{1.1, 2.1, 3.1, 4.1}, values(4, not_a_number),
                        format::f32)
                    .pass());
}

TEST_CASE("zeros never pass for something else") {
  const exact_values y(4, 1e-3);
  const values zeros(4, 0.0), replay(4, -1.0);  // the replay is far worse
  const comparison c = compare(y, zeros, replay, format::f32);
  REQUIRE(c.ratio <= 0.01);
  REQUIRE(c.fault == fault::zeros);
  // Nor where the unit leaves no digit.
  REQUIRE(compare(y, zeros, carve::error_unit{1, 1}, format::f32).fault ==
          fault::zeros);
  // Where the format has nothing nearer, zeros are right.
  REQUIRE(compare(exact_values(4, 1e-9), zeros, zeros, format::f16).pass());
}

TEST_CASE("what should be zeros must be, or err by no more than the replay") {
  const exact_values y(4, 0.0);
  const values zeros(4, 0.0), noise(4, 1e-9);
  const comparison right = compare(y, zeros, zeros, format::f32);
  REQUIRE(right.pass());
  REQUIRE(right.rel_rms == 0);
  const comparison wrong = compare(y, noise, zeros, format::f32);
  REQUIRE(wrong.fault == fault::rms);
  REQUIRE(std::isinf(wrong.rel_rms));
  REQUIRE(compare(y, noise, noise, format::f32).pass());
  REQUIRE(compare(y, values{0, 0, 0, 1e-8}, noise, format::f32).fault ==
          fault::rms);
}

TEST_CASE("an error at the limit itself is within it") {
  // Errors of powers of two: the ratios are exactly 2 and 4.
  const carve::error_unit unit{0x1p-10, 0x1p-9};
  const comparison c = compare(exact_values(4, 1.0), values(4, 1 + 0x1p-9),
                               unit, format::f32, {2, 1});
  REQUIRE(c.ratio == 2);
  REQUIRE(c.max_ratio == 1);
  REQUIRE(c.pass());
  REQUIRE(compare(exact_values(4, 1.0), values(4, 1 + 0x1p-9), unit,
                  format::f32, {1.999, 1})
              .fault == fault::rms);
  REQUIRE(compare(exact_values(4, 1.0), values(4, 1 + 0x1p-9), unit,
                  format::f32, {2, 0.999})
              .fault == fault::largest);
}

TEST_CASE("where sound ways have no digit, nothing is said") {
  const exact_values y(100, 1.0);
  const carve::error_unit noise{0.2, 0.5}, just_enough{0.1, 0.5};
  const auto off = [&](double by, const carve::error_unit& unit) {
    return compare(y, values(100, 1 + by), unit, format::f32);
  };
  REQUIRE(off(0.15, noise).fault == fault::undetermined);
  REQUIRE_FALSE(off(0.15, noise).pass());
  REQUIRE_FALSE(off(0.15, noise).fails());
  REQUIRE_FALSE(off(0.15, noise).judged());
  // Far better than noise: right.
  REQUIRE(off(0.0099, noise).pass());
  REQUIRE(off(0.0101, noise).fault == fault::undetermined);
  // Far worse: wrong. Ten times the tolerance of 1.5 is 15 units.
  REQUIRE(off(2.99, noise).fault == fault::undetermined);
  REQUIRE(off(3.01, noise).fault == fault::rms);
  REQUIRE(off(not_a_number, noise).fault == fault::nonfinite);
  // A tenth of the RMS is a digit.
  REQUIRE(off(0.149, just_enough).pass());
  REQUIRE(off(0.151, just_enough).fault == fault::rms);
}

TEST_CASE("what underflows may be flushed to zero") {
  const values zeros(4, 0.0);
  REQUIRE(
      compare(exact_values(4, 1e-40), zeros, carve::error_unit{}, format::f32)
          .pass());
  REQUIRE(
      compare(exact_values(4, 1e-40), zeros, carve::error_unit{}, format::bf16)
          .pass());
  REQUIRE(
      compare(exact_values(4, 1.2e-38), zeros, carve::error_unit{}, format::f32)
          .fault == fault::zeros);
  // One that underflows beside one that does not.
  REQUIRE(compare(exact_values{1e-40, 1}, values{0, 1}, carve::error_unit{},
                  format::f32)
              .pass());
  // Every machine keeps the subnormals of fp16.
  REQUIRE(
      compare(exact_values(4, 1e-6), zeros, carve::error_unit{}, format::f16)
          .fault == fault::zeros);
}

TEST_CASE("tensors of different length are refused") {
  REQUIRE_THROWS_AS(compare(exact_values(3), values(4), values(3), format::f32),
                    carve::error);
}

TEST_CASE("what is negligible is half of what a format can hold") {
  // Of f16 even a subnormal counts; those of bf16 may be flushed.
  CHECK(carve::negligible_error(carve::format::f16) == 0x1p-25);
  CHECK(carve::negligible_error(carve::format::bf16) ==
        carve::smallest_normal(carve::format::bf16));
}
