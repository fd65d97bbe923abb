/// @file
/// Which laws does every scalar obey?
///
/// Exact scalars obey the axioms of a commutative ring or field to the letter.
/// A rounding scalar obeys some of them to the letter too (commutativity,
/// identities, negation), the others up to the roundings on both sides, whose
/// sizes are given by `rounding<T>`.
#pragma once

#include <limits>

#include "carve/scalar.hpp"
#include "catch.hpp"
#include "samples.hpp"

namespace carve::laws {

/// Largest relative error of one operation, in units of the machine epsilon.
template <class T>
struct rounding {
  static constexpr double add = 0.5, multiply = 0.5, divide = 0.5;
};

constexpr int trials = 200;

template <class T>
void exact_for_all(const T& a, const T& b) {
  const T zero(0), one(1);
  REQUIRE(a + b == b + a);
  REQUIRE(a * b == b * a);
  REQUIRE(a + zero == a);
  REQUIRE(a * one == a);
  REQUIRE(a * zero == zero);
  REQUIRE(a - a == zero);
  REQUIRE(-(-a) == a);
  REQUIRE(a + (-b) == a - b);
  REQUIRE(-(a + b) == -a + -b);
  REQUIRE((-a) * b == -(a * b));
  REQUIRE((-a) * (-b) == a * b);
  REQUIRE(a + a == T(2) * a);
  REQUIRE(a - b == -(b - a));
  REQUIRE_FALSE(a == a + one);
  T c = a;
  c += b;
  REQUIRE(c == a + b);
  c = a;
  c -= b;
  REQUIRE(c == a - b);
  c = a;
  c *= b;
  REQUIRE(c == a * b);
}

template <class T>
void ring_exactly(const T& a, const T& b, const T& c) {
  REQUIRE((a + b) + c == a + (b + c));
  REQUIRE((a * b) * c == a * (b * c));
  REQUIRE(a * (b + c) == a * b + a * c);
  REQUIRE((a + b) - b == a);
}

template <class T>
void field_exactly(const T& a, const T& b, const T& d) {
  REQUIRE(d * (T(1) / d) == T(1));
  REQUIRE(d / d == T(1));
  REQUIRE((a / d) * d == a);
  REQUIRE((a + b) / d == a / d + b / d);
}

/// |x - y| <= n eps size
template <class T>
void near(const T& x, const T& y, double n, const T& size) {
  const T eps = std::numeric_limits<T>::epsilon();
  const T bound = scalar_traits<T>::from_double(n * 1.0001) * eps * size;
  REQUIRE(carve::abs(T(x - y)) <= bound);
}

template <class T>
void ring_nearly(const T& a, const T& b, const T& c) {
  using r = rounding<T>;
  const T sizes = carve::abs(a) + carve::abs(b) + carve::abs(c);
  near<T>((a + b) + c, a + (b + c), 4 * r::add, sizes);
  near<T>((a * b) * c, a * (b * c), 4 * r::multiply, carve::abs(T(a * b * c)));
  near<T>(a * (b + c), a * b + a * c, 2 * r::multiply + 2 * r::add,
          carve::abs(a) * (carve::abs(b) + carve::abs(c)));
  near<T>((a + b) - b, a, 2 * r::add, sizes + carve::abs(b));
}

template <class T>
void field_nearly(const T& a, const T& b, const T& d) {
  using r = rounding<T>;
  const T whole = (carve::abs(a) + carve::abs(b)) / carve::abs(d);
  near<T>(d * (T(1) / d), T(1), r::divide + r::multiply, T(1));
  REQUIRE(d / d == T(1));
  REQUIRE(a / T(1) == a);
  near<T>((a / d) * d, a, r::divide + r::multiply, carve::abs(a));
  near<T>((a + b) / d, a / d + b / d, 2 * r::divide + 2 * r::add, whole);
}

template <class T>
void order(const T& a, const T& b) {
  REQUIRE((a < b) + (b < a) + (a == b) == 1);
  REQUIRE((a <= b) == !(b < a));
  REQUIRE((a > b) == (b < a));
  REQUIRE((a >= b) == (b <= a));
  REQUIRE(a < a + T(1));
  REQUIRE((a < b) == (-b < -a));
  REQUIRE(carve::abs(a) >= T(0));
  REQUIRE((carve::abs(a) == a || carve::abs(a) == -a));
}

/// The integers map into the scalar as a ring, as far as they are exact.
template <class T>
void integers() {
  for (int m = -40; m <= 40; m += 3) {
    for (int n = -40; n <= 40; n += 7) {
      REQUIRE(T(m) + T(n) == T(m + n));
      REQUIRE(T(m) * T(n) == T(m * n));
      REQUIRE((T(m) == T(n)) == (m == n));
    }
  }
}

/// Doubles of few bits are held by every scalar, `float` included.
template <class T>
void doubles() {
  using traits = scalar_traits<T>;
  for (const double x : {0.0, 1.0, -1.0, 0.75, -3.625, 0x1.8p-30, 0x1p40}) {
    const T y = traits::from_double(x);
    REQUIRE(y + y == traits::from_double(2 * x));
    REQUIRE(y * y == traits::from_double(x * x));
    if constexpr (traits::is_ordered) REQUIRE(traits::to_double(y) == x);
    if constexpr (traits::is_field) {
      REQUIRE(y / T(4) == traits::from_double(x / 4));
    }
  }
  if constexpr (traits::is_field) {
    REQUIRE(traits::from_ratio(-7, 8) == traits::from_double(-0.875));
    REQUIRE(traits::from_ratio(1, 3) == T(1) / T(3));
  }
}

/// Every law that the traits of T promise.
template <class T>
void all() {
  using traits = scalar_traits<T>;
  static_assert(ring<T>);
  static_assert(field<T> == traits::is_field);
  static_assert(real<T> == traits::is_real);
  static_assert(traits::exact == (traits::digits == 0));
  INFO("scalar: " << traits::name);
  integers<T>();
  doubles<T>();
  samples::generator bits(20);
  for (int i = 0; i < trials; ++i) {
    const T a = samples::any<T>(bits), b = samples::any<T>(bits);
    const T c = samples::any<T>(bits), d = samples::invertible<T>(bits);
    exact_for_all(a, b);
    REQUIRE(carve::isfinite(a));
    // A dual number's order is of its values, its equality of both parts.
    constexpr bool is_dual = requires { a.derivative; };
    if constexpr (traits::is_ordered && !is_dual) order(a, b);
    if constexpr (traits::exact) {
      ring_exactly(a, b, c);
      if constexpr (traits::is_field) field_exactly(a, b, d);
    } else if constexpr (!is_dual) {
      ring_nearly(a, b, c);
      if constexpr (traits::is_field) field_nearly(a, b, d);
    }
  }
}

}  // namespace carve::laws
