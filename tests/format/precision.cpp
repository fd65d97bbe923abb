/// @file
/// Do the number formats round as IEEE 754 says, for every bf16 and fp16 word,
/// every midpoint between two of them, and a sample of all floats and doubles?
#include "carve/precision.hpp"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "catch.hpp"

using carve::format;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Rounding from the definition: the multiple of the spacing that is nearest,
/// the even multiple in a tie.  Slow, and exact because a long double holds
/// every quotient.
double nearest(format f, double x) {
  static_assert(LDBL_MANT_DIG >= DBL_MANT_DIG && LDBL_MAX_EXP >= DBL_MAX_EXP);
  if (std::isnan(x) || std::isinf(x) || x == 0) return x;
  const int spacing = std::max(std::ilogb(x), carve::min_exponent(f)) -
                      carve::precision_bits(f) + 1;
  const long double multiple = std::ldexp((long double)std::fabs(x), -spacing);
  long double whole = std::floor(multiple);
  const long double rest = multiple - whole;
  const bool odd = std::fmod(whole, 2.0L) == 1;
  if (rest > 0.5L || (rest == 0.5L && odd)) whole += 1;
  const long double result = std::ldexp(whole, spacing);
  const bool over = result >= std::ldexp(1.0L, carve::max_exponent(f) + 1);
  return std::copysign(over ? infinity : static_cast<double>(result), x);
}

/// Equal as values, zeros with their signs, any NaN equal to any NaN.
bool same(double x, double y) {
  if (std::isnan(x) || std::isnan(y)) return std::isnan(x) && std::isnan(y);
  return x == y && std::signbit(x) == std::signbit(y);
}

/// A word's value from the definition of its fields.
double decode(format f, unsigned word) {
  const int fraction_bits = carve::precision_bits(f) - 1;
  const unsigned ones = (1u << (15 - fraction_bits)) - 1;
  const unsigned exponent = (word >> fraction_bits) & ones;
  const unsigned fraction = word & ((1u << fraction_bits) - 1);
  double value;
  if (exponent == ones) {
    value = fraction ? std::numeric_limits<double>::quiet_NaN() : infinity;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, carve::min_exponent(f) - fraction_bits);
  } else {
    value = std::ldexp(fraction + (1u << fraction_bits),
                       carve::min_exponent(f) - fraction_bits +
                           static_cast<int>(exponent) - 1);
  }
  return std::copysign(value, word & 0x8000u ? -1.0 : 1.0);
}

float from_bits(format f, unsigned word) {
  const auto w = static_cast<std::uint16_t>(word);
  return f == format::bf16 ? carve::from_bf16_bits(w) : carve::from_f16_bits(w);
}

template <class T>
unsigned to_bits(format f, T x) {
  return f == format::bf16 ? carve::to_bf16_bits(x) : carve::to_f16_bits(x);
}

std::vector<double> sample_doubles(int count) {
  std::mt19937_64 random(20240611);
  std::vector<double> out;
  for (int i = 0; i < count; ++i) {
    // All bit patterns, and more densely the exponents near the small formats'.
    double any;
    const std::uint64_t word = random();
    std::memcpy(&any, &word, sizeof(any));
    out.push_back(any);
    const double unit = std::ldexp(static_cast<double>(random()), -64);
    const int exponent = static_cast<int>(random() % 310) - 160;
    out.push_back(std::ldexp(1 + unit, exponent) * (random() % 2 ? 1 : -1));
  }
  return out;
}

}  // namespace

TEST_CASE("formats have the limits that IEEE 754 and their makers state") {
  CHECK(carve::largest_finite(format::f64) == DBL_MAX);
  CHECK(carve::largest_finite(format::f32) == FLT_MAX);
  CHECK(carve::largest_finite(format::f16) == 65504);
  CHECK(carve::largest_finite(format::bf16) == 0x1.fep127);
  CHECK(carve::largest_finite(format::tf32) == 0x1.ffcp127);
  CHECK(carve::smallest_normal(format::f16) == 0x1p-14);
  CHECK(carve::smallest_normal(format::bf16) == FLT_MIN);
  CHECK(carve::smallest_subnormal(format::f64) ==
        std::numeric_limits<double>::denorm_min());
  CHECK(carve::smallest_subnormal(format::f32) ==
        std::numeric_limits<float>::denorm_min());
  CHECK(carve::smallest_subnormal(format::f16) == 0x1p-24);
  CHECK(carve::smallest_subnormal(format::bf16) == 0x1p-133);
  CHECK(carve::unit_roundoff(format::f64) == DBL_EPSILON / 2);
  CHECK(carve::unit_roundoff(format::f32) == FLT_EPSILON / 2);
  CHECK(carve::unit_roundoff(format::tf32) == 0x1p-11);
  CHECK(carve::unit_roundoff(format::bf16) == 0x1p-8);
  CHECK(carve::unit_roundoff(format::f16) == 0x1p-11);
}

TEST_CASE("formats are found by the names they print") {
  for (format f : carve::all_formats) {
    CHECK(carve::format_named(carve::format_name(f)) == f);
  }
  CHECK_FALSE(carve::format_named("fp8").has_value());
  CHECK_FALSE(carve::format_named("").has_value());
}

TEST_CASE("every 16-bit word has its value and comes back from it") {
  const format f = GENERATE(format::bf16, format::f16);
  int bad = 0;
  for (unsigned word = 0; word < 0x10000; ++word) {
    const float value = from_bits(f, word);
    const double expected = decode(f, word);
    const unsigned back = std::isnan(expected) ? 0x7fff : word;
    bad += !(same(value, expected) && to_bits(f, value) == back &&
             to_bits(f, double{value}) == back);
  }
  CHECK(bad == 0);
}

TEST_CASE("a 16-bit word is its own rounding") {
  const format f = GENERATE(format::bf16, format::f16);
  int bad = 0;
  for (unsigned word = 0; word < 0x10000; ++word) {
    const float value = from_bits(f, word);
    bad += !same(carve::round_to(f, value), value);
    bad += !same(carve::round_to(f, double{value}), value);
  }
  CHECK(bad == 0);
}

TEST_CASE(
    "a midpoint of neighbours goes to the even one, anything off it to "
    "the nearer") {
  const format f = GENERATE(format::bf16, format::f16);
  // The word after the largest finite one is infinity; the midpoint below it
  // is where the next number would have been spaced.
  const unsigned words = f == format::bf16 ? 0x7f80 : 0x7c00;
  int bad = 0;
  for (unsigned word = 0; word < words; ++word) {
    const double low = decode(f, word);
    const double high = word + 1 == words
                            ? std::ldexp(1.0, carve::max_exponent(f) + 1)
                            : decode(f, word + 1);
    const double middle = (low + high) / 2;
    const unsigned even = word % 2 ? word + 1 : word;
    for (const unsigned sign : {0u, 0x8000u}) {
      const double s = sign ? -1 : 1;
      const auto middle_float = static_cast<float>(middle);
      REQUIRE(double{middle_float} == middle);
      bad += to_bits(f, s * middle) != (even | sign);
      bad += to_bits(f, float(s) * middle_float) != (even | sign);
      bad += to_bits(f, s * std::nextafter(middle, 0)) != (word | sign);
      bad += to_bits(f, s * std::nextafter(middle, infinity)) !=
             ((word + 1) | sign);
      bad += to_bits(f, float(s) * std::nextafterf(middle_float, 0)) !=
             (word | sign);
      bad += to_bits(f, float(s) * std::nextafterf(middle_float, INFINITY)) !=
             ((word + 1) | sign);
    }
  }
  CHECK(bad == 0);
}

TEST_CASE("floats round as the definition says") {
  const format f = GENERATE(format::tf32, format::bf16, format::f16);
  int bad = 0;
  // A stride coprime to 2^32 visits every exponent and low bit pattern.
  std::uint32_t word = 0;
  for (int i = 0; i < 400'000; ++i, word += 2'654'435'769u) {
    float x;
    std::memcpy(&x, &word, sizeof(x));
    bad += !same(carve::round_to(f, x), nearest(f, x));
  }
  CHECK(bad == 0);
}

TEST_CASE("doubles round as the definition says, in one step") {
  const format f =
      GENERATE(format::f32, format::tf32, format::bf16, format::f16);
  int bad = 0;
  for (double x : sample_doubles(200'000)) {
    bad += !same(carve::round_to(f, x), nearest(f, x));
  }
  CHECK(bad == 0);
}

TEST_CASE("a double just above a midpoint is not rounded twice") {
  // Through fp32 each of these first falls on the midpoint, then to the even
  // neighbour below it.
  const double above = 0x1p-40;
  CHECK(carve::round_to(format::bf16, 1 + 0x1p-8 + above) == 1 + 0x1p-7);
  CHECK(carve::round_to(format::f16, 1 + 0x1p-11 + above) == 1 + 0x1p-10);
  CHECK(carve::round_to(format::tf32, 1 + 0x1p-11 + above) == 1 + 0x1p-10);
  CHECK(carve::round_to(format::f16, 0x1p-25 * (1 + above)) == 0x1p-24);
  CHECK(carve::round_to(format::bf16, 0x1p-134 * (1 + above)) == 0x1p-133);
}

TEST_CASE("fp32 from double is the processor's own conversion") {
  int bad = 0;
  for (double x : sample_doubles(200'000)) {
    if (std::fabs(x) > FLT_MAX) continue;
    bad += !same(carve::round_to(format::f32, x), static_cast<float>(x));
  }
  CHECK(bad == 0);
}

#ifdef __FLT16_MAX__
TEST_CASE("fp16 is the compiler's _Float16") {
  __extension__ typedef _Float16 half;
  int bad = 0;
  for (double x : sample_doubles(200'000)) {
    bad += !same(carve::round_to(format::f16, x),
                 static_cast<double>(static_cast<half>(x)));
    const auto narrow = static_cast<float>(carve::round_to(format::f32, x));
    bad += !same(carve::round_to(format::f16, narrow),
                 static_cast<float>(static_cast<half>(narrow)));
  }
  CHECK(bad == 0);
}
#endif

TEST_CASE("overflow begins half a spacing above the largest number") {
  for (format f : {format::tf32, format::bf16, format::f16, format::f32}) {
    const double largest = carve::largest_finite(f);
    const double threshold =
        (2 - carve::unit_roundoff(f)) * std::ldexp(1, carve::max_exponent(f));
    CHECK(carve::round_to(f, threshold) == infinity);
    CHECK(carve::round_to(f, -threshold) == -infinity);
    CHECK(carve::round_to(f, std::nextafter(threshold, 0)) == largest);
    CHECK(carve::round_to(f, DBL_MAX) == infinity);
  }
  CHECK(carve::to_f16_bits(65520.0f) == 0x7c00);
  CHECK(carve::to_f16_bits(65519.996f) == 0x7bff);
  CHECK(carve::to_bf16_bits(FLT_MAX) == 0x7f80);
}

TEST_CASE("a NaN becomes the conversion instructions' NaN") {
  const float negative = std::copysign(std::nanf("1"), -1.0f);
  CHECK(carve::to_bf16_bits(negative) == 0x7fff);
  CHECK(carve::to_f16_bits(negative) == 0x7fff);
  CHECK(carve::to_bf16_bits(double{negative}) == 0x7fff);
  CHECK(carve::to_f16_bits(double{negative}) == 0x7fff);
  CHECK(std::isnan(carve::round_to(format::tf32, negative)));
  // The payload in the bits that are dropped must not leave an infinity.
  const auto low = std::bit_cast<float>(0x7f800001u);
  for (format f : {format::tf32, format::bf16, format::f16}) {
    CHECK(std::isnan(carve::round_to(f, low)));
  }
}

TEST_CASE("a format that is wide enough leaves values untouched") {
  const auto payload = std::bit_cast<float>(0xffc12345u);
  for (format f : {format::f32, format::f64}) {
    const float x = carve::round_to(f, payload);
    CHECK(std::bit_cast<std::uint32_t>(x) == 0xffc12345u);
  }
  CHECK(carve::round_to(format::f64, 0.1) == 0.1);
}

TEST_CASE("an array rounds as its elements do") {
  std::vector<double> wide = sample_doubles(1000);
  std::vector<float> narrow;
  for (double x : wide) {
    narrow.push_back(static_cast<float>(carve::round_to(format::f32, x)));
  }
  for (format f : carve::all_formats) {
    std::vector<double> w = wide;
    std::vector<float> n = narrow;
    carve::round_all(f, std::span(w));
    carve::round_all(f, std::span(n));
    int bad = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      bad += !same(w[i], carve::round_to(f, wide[i]));
      bad += !same(n[i], carve::round_to(f, narrow[i]));
    }
    CHECK(bad == 0);
  }
}

TEST_CASE("roundings are constants where their input is") {
  STATIC_REQUIRE(carve::round_to<format::bf16>(1.0f + 0x1p-8f) == 1.0f);
  STATIC_REQUIRE(carve::round_to<format::f16>(0x1p-25) == 0.0);
  STATIC_REQUIRE(carve::from_f16_bits(0x3c00) == 1.0f);
  STATIC_REQUIRE(carve::to_f16_bits(-2.0) == 0xc000);
}
