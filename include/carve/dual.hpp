/// @file
/// How is a directional derivative computed beside a value, by the same code?
/// With dual numbers: \f$ a + a' \varepsilon \f$, \f$ \varepsilon^2 = 0 \f$.
#pragma once

#include <limits>
#include <ostream>
#include <string_view>

#include "carve/eigen_traits.hpp"
#include "carve/scalar.hpp"

namespace carve {

/// A value and its derivative along one direction.
///
/// Over a ring this is again a commutative ring, `T[eps] / eps^2`, so exact
/// derivatives exist over rationals and prime fields.  `==` is the equality of
/// that ring; `<`, `>`, `<=`, `>=` compare values only, as branches must.  A
/// quotient needs a divisor whose value is invertible.
template <class T>
struct dual {
  T value{};       ///< a
  T derivative{};  ///< a', the derivative along the direction

  constexpr dual() = default;

  /// A constant, of derivative zero.
  template <class U>
  requires std::convertible_to<U, T>
  constexpr dual(const U& constant) : value(constant), derivative(0) {}

  /// A variable: derivative 1 along the direction that is asked for.
  constexpr dual(const T& v, const T& d) : value(v), derivative(d) {}

  /// Sum, difference and product by the rules of differentiation:
  /// \f$ (ab)' = ab' + a'b \f$.
  ///@{
  friend dual operator+(const dual& a, const dual& b) {
    return {a.value + b.value, a.derivative + b.derivative};
  }
  friend dual operator-(const dual& a, const dual& b) {
    return {a.value - b.value, a.derivative - b.derivative};
  }
  friend dual operator-(const dual& a) { return {-a.value, -a.derivative}; }
  friend dual operator*(const dual& a, const dual& b) {
    return {a.value * b.value, a.value * b.derivative + a.derivative * b.value};
  }
  ///@}
  /// \f$ (a/b)' = (a' - (a/b) b') / b \f$
  friend dual operator/(const dual& a,
                        const dual& b) requires(scalar_traits<T>::is_field) {
    const T q = a.value / b.value;
    return {q, (a.derivative - q * b.derivative) / b.value};
  }

  /// The same in place.
  ///@{
  dual& operator+=(const dual& b) { return *this = *this + b; }
  dual& operator-=(const dual& b) { return *this = *this - b; }
  dual& operator*=(const dual& b) { return *this = *this * b; }
  dual& operator/=(const dual& b) requires(scalar_traits<T>::is_field) {
    return *this = *this / b;
  }
  ///@}

  /// `==` compares values and derivatives, the others values alone.
  ///@{
  friend bool operator==(const dual& a, const dual& b) {
    return a.value == b.value && a.derivative == b.derivative;
  }
  friend bool operator<(const dual& a, const dual& b) {
    return a.value < b.value;
  }
  friend bool operator>(const dual& a, const dual& b) { return b < a; }
  friend bool operator<=(const dual& a, const dual& b) {
    return a.value <= b.value;
  }
  friend bool operator>=(const dual& a, const dual& b) { return b <= a; }
  ///@}

  /// Writes `a + a' eps`.
  friend std::ostream& operator<<(std::ostream& out, const dual& a) {
    return out << a.value << " + " << a.derivative << " eps";
  }
};

template <class T>
struct scalar_traits<dual<T>> {
  using inner = scalar_traits<T>;
  static constexpr bool exact = inner::exact;
  static constexpr bool is_field = inner::is_field;
  static constexpr bool is_ordered = inner::is_ordered;
  static constexpr bool is_real = inner::is_real;
  static constexpr std::string_view name = "dual";
  static constexpr int digits = inner::digits;

  static dual<T> from_double(double x) { return inner::from_double(x); }
  static double to_double(const dual<T>& x) requires(is_ordered) {
    return inner::to_double(x.value);
  }
  static dual<T> from_ratio(long long p, long long q) requires(is_field) {
    return inner::from_ratio(p, q);
  }
};

/// Chain rules.
template <class T>
requires(scalar_traits<T>::is_real) struct real_functions<dual<T>> {
  static dual<T> exp(const dual<T>& x) {
    const T y = carve::exp(x.value);
    return {y, y * x.derivative};
  }
  static dual<T> expm1(const dual<T>& x) {
    return {carve::expm1(x.value), carve::exp(x.value) * x.derivative};
  }
  static dual<T> log(const dual<T>& x) {
    return {carve::log(x.value), x.derivative / x.value};
  }
  static dual<T> log1p(const dual<T>& x) {
    return {carve::log1p(x.value), x.derivative / (T(1) + x.value)};
  }
  static dual<T> sqrt(const dual<T>& x) {
    const T y = carve::sqrt(x.value);
    return {y, x.derivative / (y + y)};
  }
  static bool isfinite(const dual<T>& x) {
    return carve::isfinite(x.value) && carve::isfinite(x.derivative);
  }
};

}  // namespace carve

template <class T>
struct std::numeric_limits<carve::dual<T>> : std::numeric_limits<T> {};

template <class T>
struct Eigen::NumTraits<carve::dual<T>>
    : carve::eigen_traits<carve::dual<T>, 2, 4> {};
