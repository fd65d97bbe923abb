/// @file
/// Do Boost's numbers obey the laws?
#include "carve/dual.hpp"
#include "carve/multiprecision.hpp"
#include "laws.hpp"

TEMPLATE_TEST_CASE("multiprecision reals obey their laws", "[scalar][laws]",
                   carve::real50, carve::real100) {
  carve::laws::all<TestType>();
}

TEST_CASE("rationals and dual rationals obey every axiom", "[scalar][laws]") {
  carve::laws::all<carve::rational>();
  carve::laws::all<carve::dual<carve::rational>>();
}

TEST_CASE("every finite double is exact in Boost's numbers", "[scalar]") {
  for (const double x : {0.1, 1e300, 0x1.fffffffffffffp1023, 0x1p-1074,
                         -0x1.23456789abcdep-1030}) {
    REQUIRE(carve::scalar_traits<carve::real50>::to_double(
                carve::scalar_traits<carve::real50>::from_double(x)) == x);
    const auto r = carve::scalar_traits<carve::rational>::from_double(x);
    int exponent;
    const double m = std::frexp(x, &exponent);
    carve::rational two_power(1);
    for (int i = 0; i < std::abs(exponent - 53); ++i) two_power *= 2;
    const carve::rational integer(static_cast<long long>(std::ldexp(m, 53)));
    REQUIRE((exponent < 53 ? r * two_power : r / two_power) == integer);
  }
}

TEST_CASE("a rational is not made from an infinity or a NaN", "[scalar]") {
  using traits = carve::scalar_traits<carve::rational>;
  REQUIRE_THROWS_AS(traits::from_double(INFINITY), carve::error);
  REQUIRE_THROWS_AS(traits::from_double(NAN), carve::error);
}
