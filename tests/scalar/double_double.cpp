/// @file
/// Does double-double arithmetic keep the error bounds that it states?
#include "carve/double_double.hpp"

#include <cmath>
#include <limits>
#include <sstream>

#include "catch.hpp"
#include "exact.hpp"
#include "samples.hpp"

using carve::double_double;
using carve::real100;
using carve::exact::relative_error;
using carve::exact::widen;
using carve::exact::worst;

namespace {

constexpr double u = 0x1p-53;
constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double no_number = std::numeric_limits<double>::quiet_NaN();

bool normalised(double_double x) { return x.hi + x.lo == x.hi; }

/// Operands that stress the error terms: random ones, low parts near half an
/// ulp of either sign, near-cancelling pairs, and all-ones significands.
template <class F>
void for_pairs(F f) {
  carve::samples::generator bits(8);
  const auto random = [&] { return carve::samples::any<double_double>(bits); };
  const auto hard = [&] {
    const double hi = std::ldexp(2 - 0x1p-52 * static_cast<double>(bits() % 4),
                                 static_cast<int>(bits() % 9) - 4);
    const double lo = std::ldexp(hi, -54) * carve::samples::signed_unit(bits);
    const double_double x = carve::detail::fast_two_sum(hi, lo);
    return bits() & 1 ? x : -x;
  };
  for (int i = 0; i < 4000; ++i) {
    f(random(), random());
    f(hard(), hard());
    f(random(), hard());
    const double_double a = random();
    const double e = 1 + std::ldexp(1.0, -static_cast<int>(bits() % 106));
    f(a, -(a * double_double(e)));
    f(a, double_double(-a.hi));
  }
}

}  // namespace

TEST_CASE("addition errs by at most 3u^2", "[double_double]") {
  worst w;
  for_pairs([&](double_double a, double_double b) {
    const double_double s = a + b, d = a - b;
    REQUIRE(normalised(s));
    w.see(relative_error(s, widen(a) + widen(b)));
    w.see(relative_error(d, widen(a) - widen(b)));
  });
  REQUIRE(w.value <= 3 * u * u / (1 - 4 * u));
  REQUIRE(w.value >= u * u);  // the samples do reach the hard cases
}

TEST_CASE("multiplication errs by at most 5u^2", "[double_double]") {
  worst w;
  for_pairs([&](double_double a, double_double b) {
    const double_double p = a * b;
    REQUIRE(normalised(p));
    w.see(relative_error(p, widen(a) * widen(b)));
  });
  REQUIRE(w.value <= 5 * u * u);
  REQUIRE(w.value >= u * u);
}

TEST_CASE("division errs by at most 15u^2", "[double_double]") {
  worst w;
  for_pairs([&](double_double a, double_double b) {
    const double_double q = a / b;
    REQUIRE(normalised(q));
    w.see(relative_error(q, widen(a) / widen(b)));
  });
  REQUIRE(w.value <= 15 * u * u + 56 * u * u * u);
  REQUIRE(w.value >= u * u);
}

TEST_CASE("the square root errs by at most 25/8 u^2", "[double_double]") {
  worst w;
  for_pairs([&](double_double a, double_double) {
    a = carve::abs(a);
    const double_double r = carve::sqrt(a);
    REQUIRE(normalised(r));
    w.see(relative_error(r, sqrt(widen(a))));
  });
  for (int e = -1074; e < 1024; ++e) {
    const double x = std::ldexp(1 + 0x1p-50, e);
    w.see(relative_error(carve::sqrt(double_double(x)), sqrt(real100(x))));
  }
  REQUIRE(w.value <= 25.0 / 8 * u * u);
}

TEST_CASE("every integer and long double is held exactly", "[double_double]") {
  for (const long long n : {0LL, -1LL, (1LL << 53) + 1, -(1LL << 62) - 12345,
                            std::numeric_limits<long long>::max(),
                            std::numeric_limits<long long>::min()}) {
    REQUIRE(widen(double_double(n)) == real100(n));
  }
  const unsigned long long most = ~0ULL;
  REQUIRE(widen(double_double(most)) == real100(most));
  REQUIRE(normalised(double_double(most)));
  const long double x = 1.0L / 3;
  REQUIRE(widen(double_double(x)) == real100(x));
  REQUIRE(static_cast<long double>(double_double(x)) == x);
  const long double huge = std::numeric_limits<long double>::infinity();
  REQUIRE(double_double(huge) == double_double(inf));
}

TEST_CASE("what is not finite stays so", "[double_double]") {
  const double_double one = 1, big = std::numeric_limits<double>::max();
  for (const double_double x :
       {double_double(inf), double_double(-inf), double_double(no_number),
        big + big, big * big, one / double_double(0)}) {
    REQUIRE_FALSE(carve::isfinite(x));
    REQUIRE_FALSE(carve::isfinite(x + one));
    REQUIRE_FALSE(carve::isfinite(one - x));
    REQUIRE_FALSE(carve::isfinite(x * one));
    REQUIRE_FALSE(carve::isfinite(x * double_double(0)));
    REQUIRE_FALSE(carve::isfinite(x / one));
  }
  REQUIRE(one / double_double(inf) == double_double(0));
  REQUIRE(one / double_double(0) == double_double(inf));
  REQUIRE(carve::isfinite(std::numeric_limits<double_double>::max()));
  REQUIRE(carve::isfinite(big - big));
}

TEST_CASE("a NaN compares with nothing", "[double_double]") {
  const double_double x = no_number, one = 1;
  REQUIRE_FALSE(x == x);
  REQUIRE(x != x);
  REQUIRE_FALSE(x < one);
  REQUIRE_FALSE(x <= one);
  REQUIRE_FALSE(x > one);
  REQUIRE_FALSE(x >= one);
  REQUIRE_FALSE(one < x);
  REQUIRE_FALSE(one <= x);
}

TEST_CASE("low parts decide between equal high parts", "[double_double]") {
  const double_double a(1, 0x1p-60), b(1, 0x1p-61), c(1, 0);
  REQUIRE(b < a);
  REQUIRE(c < b);
  REQUIRE(a > c);
  REQUIRE(a >= a);
  REQUIRE(a <= a);
  REQUIRE_FALSE(a <= b);
  REQUIRE_FALSE(a == b);
}

TEST_CASE("zeros are equal whatever their signs", "[double_double]") {
  const double_double zero = 0.0, negative = -0.0, one = 1;
  REQUIRE(zero == negative);
  REQUIRE_FALSE(zero < negative);
  REQUIRE(negative + one == one);
  REQUIRE(negative * one == zero);
  REQUIRE(carve::sqrt(negative) == zero);
}

TEST_CASE("near the subnormals accuracy is absolute", "[double_double]") {
  const double tiny = std::numeric_limits<double>::denorm_min();
  REQUIRE(double_double(tiny) + double_double(tiny) == double_double(2 * tiny));
  REQUIRE(double_double(tiny) * double_double(0.25) == double_double(0));
  carve::samples::generator bits(9);
  for (int i = 0; i < 2000; ++i) {
    const auto a = carve::ldexp(carve::samples::any<double_double>(bits), -500);
    const auto b = carve::ldexp(carve::samples::any<double_double>(bits), -500);
    const real100 product = widen(a) * widen(b);
    REQUIRE(abs(widen(double_double(a * b)) - product) <=
            abs(product) * (5 * u * u) + real100(tiny) * 4);
  }
}

TEST_CASE("text holds all 32 digits", "[double_double]") {
  const auto sqrt2 = carve::sqrt(double_double(2));
  REQUIRE(carve::to_string(sqrt2).substr(0, 32) ==
          "1.414213562373095048801688724209");
  REQUIRE(carve::to_string(double_double(0)) ==
          "0.0000000000000000000000000000000e+00");
  REQUIRE(carve::to_string(double_double(-1) / double_double(4), 3) ==
          "-2.50e-01");
  REQUIRE(carve::to_string(double_double(1) - double_double(0x1p-100), 10) ==
          "1.000000000e+00");
  REQUIRE(carve::to_string(double_double(9.96), 2) == "1.0e+01");
  REQUIRE(carve::to_string(double_double(1e300)).substr(33) == "e+300");
  REQUIRE(carve::to_string(double_double(no_number)) == "nan");
  REQUIRE(carve::to_string(double_double(-inf)) == "-inf");
  std::ostringstream out;
  out << double_double(0.1);
  REQUIRE(out.str() == "1.0000000000000000555111512312578e-01");
}

TEST_CASE("text and back changes no bit", "[double_double]") {
  carve::samples::generator bits(10);
  for (int i = 0; i < 200; ++i) {
    const int scale = static_cast<int>(bits() % 1600) - 800;
    const auto x =
        carve::ldexp(carve::samples::any<double_double>(bits), scale);
    // The low part may lie far below the high one: 40 digits are not enough
    // for every double-double, 120 are for these.
    const auto text = carve::to_string(x, 120);
    REQUIRE(carve::double_double_from_string(text) == x);
    const auto rounded =
        carve::double_double_from_string(carve::to_string(x, 34));
    REQUIRE(relative_error(rounded, widen(x)) <= 1e-32);
  }
  for (const double x : {0.0, 0x1p-1074, std::numeric_limits<double>::max()}) {
    REQUIRE(carve::double_double_from_string(carve::to_string(x, 800)) ==
            double_double(x));
  }
}

TEST_CASE("decimal text is rounded in both parts", "[double_double]") {
  for (const char* text :
       {"0.1", "-3.14159265358979323846264338327950288419716939937510582",
        "1e-200", "+123456789012345678901234567890", ".5", "7.", "1E+22"}) {
    const auto x = carve::double_double_from_string(text);
    REQUIRE(relative_error(x, real100(text)) <= u * u);
  }
  REQUIRE(carve::double_double_from_string("-inf") == double_double(-inf));
  REQUIRE_FALSE(carve::isfinite(carve::double_double_from_string("nan")));
  for (const char* text : {"", "x", "1.0q", "1 2", "0x10", " 1", "1e", "--1",
                           "1e400", "1e99999"}) {
    INFO(text);
    REQUIRE_THROWS_AS(carve::double_double_from_string(text), carve::error);
  }
}

TEST_CASE("the limits are those of 106 bits", "[double_double]") {
  using limits = std::numeric_limits<double_double>;
  const double_double one = 1;
  REQUIRE(one + limits::epsilon() > one);
  REQUIRE(limits::epsilon() == double_double(2 * u * u));
  REQUIRE(normalised(limits::max()));
  REQUIRE_FALSE(carve::isfinite(limits::max() * (one + limits::epsilon() * 4)));
  REQUIRE(limits::lowest() == -limits::max());
  REQUIRE_FALSE(carve::isfinite(limits::infinity()));
  REQUIRE(limits::quiet_NaN() != limits::quiet_NaN());
}
