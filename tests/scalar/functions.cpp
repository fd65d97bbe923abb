/// @file
/// Are exp, log and their kin accurate in every real scalar?
#include <cmath>
#include <limits>

#include "carve/double_double.hpp"
#include "carve/multiprecision.hpp"
#include "catch.hpp"
#include "exact.hpp"
#include "samples.hpp"

using carve::double_double;
using carve::real100;
using carve::real50;
using carve::exact::relative_error;
using carve::exact::widen;
using carve::exact::worst;

namespace {

/// Largest relative error allowed, in units of the machine epsilon: of a
/// function, and of the operations after it in sigmoid and softplus.
template <class T>
struct allowed {
  static constexpr double function = 2, operation = 0.5;
};
template <>
struct allowed<double_double> {
  static constexpr double function = 4, operation = 7.5;
};
// Boost's exp loses some bits when it undoes its argument reduction.
template <>
struct allowed<real50> {
  static constexpr double function = 40, operation = 0.5;
};

template <class T>
double epsilon() {
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

/// Calls f with arguments of both signs, magnitudes 2^low to 2^high.
template <class T, class F>
void for_arguments(int low, int high, F f) {
  carve::samples::generator bits(11);
  const int count = std::numeric_limits<T>::digits > 120 ? 100 : 1500;
  for (int i = 0; i < count; ++i) {
    using std::frexp;
    using std::ldexp;
    const T x = carve::samples::any<T>(bits);
    int ignored;
    const int to = low + i % (high - low + 1);
    f(T(ldexp(T(frexp(x, &ignored)), to)));
  }
}

}  // namespace

namespace carve {
double_double frexp(double_double x, int* exponent) {
  const double m = std::frexp(x.hi, exponent);
  return {m, std::ldexp(x.lo, -*exponent)};
}
}  // namespace carve

#define REAL_SCALARS float, double, long double, double_double, real50

TEMPLATE_TEST_CASE("exp and expm1", "[functions]", REAL_SCALARS) {
  using T = TestType;
  worst e, m;
  for_arguments<T>(-40, 6, [&](const T& x) {
    e.see(relative_error(carve::exp(x), exp(widen(x))));
    m.see(relative_error(carve::expm1(x), expm1(widen(x))));
  });
  REQUIRE(e.value <= allowed<T>::function * epsilon<T>());
  REQUIRE(m.value <= allowed<T>::function * epsilon<T>());
  REQUIRE(carve::exp(T(0)) == T(1));
  REQUIRE(carve::expm1(T(0)) == T(0));
}

TEMPLATE_TEST_CASE("log and log1p", "[functions]", REAL_SCALARS) {
  using T = TestType;
  worst l, near_one, p;
  for_arguments<T>(-100, 100, [&](const T& x) {
    l.see(relative_error(carve::log(carve::abs(x)), log(widen(carve::abs(x)))));
  });
  for_arguments<T>(-22, -1, [&](const T& x) {
    const T y = T(1) + x;
    near_one.see(relative_error(carve::log(y), log(widen(y))));
  });
  for_arguments<T>(-40, 0, [&](const T& x) {
    p.see(relative_error(carve::log1p(x), log1p(widen(x))));
  });
  REQUIRE(l.value <= allowed<T>::function * epsilon<T>());
  REQUIRE(near_one.value <= allowed<T>::function * epsilon<T>());
  REQUIRE(p.value <= allowed<T>::function * epsilon<T>());
  REQUIRE(carve::log(T(1)) == T(0));
  REQUIRE(carve::log1p(T(0)) == T(0));
}

TEMPLATE_TEST_CASE("sqrt", "[functions]", REAL_SCALARS) {
  using T = TestType;
  worst w;
  for_arguments<T>(-90, 90, [&](const T& x) {
    const T a = carve::abs(x);
    w.see(relative_error(carve::sqrt(a), sqrt(widen(a))));
  });
  REQUIRE(w.value <= allowed<T>::function * epsilon<T>());
  REQUIRE(carve::sqrt(T(9)) == T(3));
}

TEMPLATE_TEST_CASE("sigmoid and softplus", "[functions]", REAL_SCALARS) {
  using T = TestType;
  worst s, p;
  for_arguments<T>(-20, 6, [&](const T& x) {
    const real100 y = widen(x);
    s.see(relative_error(carve::sigmoid(x), real100(1 / (1 + exp(-y)))));
    p.see(relative_error(carve::softplus(x), log1p(exp(y))));
  });
  REQUIRE(s.value <=
          (allowed<T>::function + 2 * allowed<T>::operation) * epsilon<T>());
  REQUIRE(p.value <=
          (2 * allowed<T>::function + allowed<T>::operation) * epsilon<T>());
  REQUIRE(carve::sigmoid(T(0)) == T(1) / T(2));
}

TEMPLATE_TEST_CASE("the gates saturate without overflow", "[functions]",
                   REAL_SCALARS) {
  using T = TestType;
  const T far = T(100000);
  REQUIRE(carve::sigmoid(far) == T(1));
  REQUIRE(carve::softplus(far) == far);
  REQUIRE(carve::isfinite(carve::sigmoid(T(-far))));
  REQUIRE(carve::sigmoid(T(-far)) <= std::numeric_limits<T>::epsilon());
  REQUIRE(carve::softplus(T(-far)) <= std::numeric_limits<T>::epsilon());
  REQUIRE(carve::softplus(T(-far)) >= T(0));
}

TEMPLATE_TEST_CASE("infinities and NaN pass through", "[functions]",
                   REAL_SCALARS) {
  using T = TestType;
  const T inf = std::numeric_limits<T>::infinity();
  const T nan = std::numeric_limits<T>::quiet_NaN();
  REQUIRE(carve::exp(inf) == inf);
  REQUIRE(carve::exp(T(-inf)) == T(0));
  REQUIRE(carve::log(inf) == inf);
  REQUIRE(carve::log(T(0)) == -inf);
  REQUIRE(carve::sqrt(inf) == inf);
  REQUIRE(carve::sigmoid(inf) == T(1));
  REQUIRE(carve::sigmoid(T(-inf)) == T(0));
  for (const T& x : {carve::exp(nan), carve::log(nan), carve::sqrt(nan),
                     carve::sigmoid(nan), carve::softplus(nan), carve::abs(nan),
                     carve::sqrt(T(-1)), carve::log(T(-1))}) {
    REQUIRE(x != x);
  }
  REQUIRE_FALSE(carve::isfinite(inf));
  REQUIRE_FALSE(carve::isfinite(T(-inf)));
  REQUIRE_FALSE(carve::isfinite(nan));
  REQUIRE(carve::isfinite(std::numeric_limits<T>::max()));
}

TEST_CASE("double-double exp at the ends of its range", "[functions]") {
  for (const double x : {709.0, 709.78, -708.0, -650.5, 0.34657, -0.34658,
                         0x1p-200, 0x1p-1074, 80.5, -80.5, 0x1.8p-6}) {
    const double_double y = carve::exp(double_double(x));
    const real100 difference = abs(widen(y) - exp(real100(x)));
    const real100 bound = exp(real100(x)) * (8 * 0x1p-106) + real100(0x1p-1074);
    REQUIRE(difference <= bound);
    if (x > -1) {
      REQUIRE(relative_error(carve::expm1(double_double(x)),
                             expm1(real100(x))) <= 8 * 0x1p-106);
    }
  }
  REQUIRE_FALSE(carve::isfinite(carve::exp(double_double(709.79))));
  REQUIRE(carve::exp(double_double(-745)).hi == std::exp(-745.0));
  REQUIRE(carve::exp(double_double(-746)) == double_double(0));
  REQUIRE(carve::expm1(double_double(-1000)) == double_double(-1));
}

TEST_CASE("double-double log at the ends of its range", "[functions]") {
  for (const double x :
       {0x1p-1074, 0x1.8p-1060, 0x1p-1022, 0.70710678, 0.7071068, 1.4142135,
        1.4142136, 1 - 0x1p-53, 1 + 0x1p-52, 0x1.fffffffffffffp1023}) {
    REQUIRE(relative_error(carve::log(double_double(x)), log(real100(x))) <=
            2e-31);
  }
  for (const double x : {0x1p-1074, -0x1p-900, 0x1p-109, -0.2499999, 0.25,
                         -0.75, -1 + 0x1p-53, 1e300}) {
    REQUIRE(relative_error(carve::log1p(double_double(x)), log1p(real100(x))) <=
            2e-31);
  }
}
