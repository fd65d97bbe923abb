/// @file
/// Are the derivatives right?
#include "carve/dual.hpp"

#include <cmath>

#include "carve/double_double.hpp"
#include "carve/prime_field.hpp"
#include "catch.hpp"
#include "samples.hpp"

namespace {

using T = carve::dual<carve::double_double>;
using carve::double_double;

/// The derivative of f at x along 3, against its closed form.
template <class F>
void derivative(F f, double_double x, double_double value,
                double_double slope) {
  const T y = f(T(x, 3));
  const double_double scale = 1e-30;
  REQUIRE(y.value == value);
  const double_double expected = slope * 3;
  REQUIRE(carve::abs(double_double(y.derivative - expected)) <=
          scale * carve::abs(expected));
}

}  // namespace

TEST_CASE("chain rules of the transcendental functions", "[dual]") {
  for (const double at : {0.01, 0.3, 1.0, 2.5, 17.0}) {
    const double_double x = at, one = 1;
    const double_double e = carve::exp(x), s = carve::sigmoid(x);
    derivative([](T z) { return carve::exp(z); }, x, e, e);
    derivative([](T z) { return carve::expm1(z); }, x, carve::expm1(x), e);
    derivative([](T z) { return carve::log(z); }, x, carve::log(x), one / x);
    derivative([](T z) { return carve::log1p(z); }, x, carve::log1p(x),
               one / (one + x));
    derivative([](T z) { return carve::sqrt(z); }, x, carve::sqrt(x),
               one / (2 * carve::sqrt(x)));
    derivative([](T z) { return carve::sigmoid(z); }, x, s,
               s * carve::sigmoid(-x));
    derivative([](T z) { return carve::softplus(z); }, x, carve::softplus(x),
               s);
    derivative([](T z) { return carve::abs(T(-z)); }, x, x, one);
    derivative([](T z) { return T(2) / z; }, x, 2 / x, -2 / (x * x));
    derivative([](T z) { return z * z * z; }, x, x * x * x, 3 * x * x);
  }
}

TEST_CASE("the gates are smooth where their branches meet", "[dual]") {
  REQUIRE(carve::sigmoid(T(0, 1)).derivative == double_double(0.25));
  REQUIRE(carve::softplus(T(0, 1)).derivative == double_double(0.5));
}

TEST_CASE("derivatives of polynomials are exact over a prime field", "[dual]") {
  using p = carve::prime_61;
  carve::samples::generator bits(6);
  for (int i = 0; i < 50; ++i) {
    const p at = p::uniform(bits), along = p::uniform(bits);
    carve::dual<p> x(at, along), power(1);
    for (int n = 0; n < 5; ++n) power *= x;
    REQUIRE(power.value == at.power(5));
    REQUIRE(power.derivative == p(5) * at.power(4) * along);
  }
}

TEST_CASE("second derivatives come from duals of duals", "[dual]") {
  using twice = carve::dual<carve::dual<double>>;
  const twice x(carve::dual<double>(1.5, 1), carve::dual<double>(1, 0));
  const twice y = x * x * x;
  REQUIRE(y.derivative.derivative == 6 * 1.5);
}

TEST_CASE("a dual number is finite when both its parts are", "[dual]") {
  REQUIRE(carve::isfinite(carve::dual<double>(1, 2)));
  REQUIRE_FALSE(carve::isfinite(carve::dual<double>(1, INFINITY)));
  REQUIRE_FALSE(carve::isfinite(carve::dual<double>(NAN, 0)));
}
