/// @file
/// What is a scalar, and which functions has it?
///
/// The recurrence and its chunked form need a commutative ring only; division
/// and the transcendental functions belong to gates, norms and comparisons.
/// A scalar joins by specialising `scalar_traits`, and `real_functions` when
/// its own `exp`, `log`, ... are not found by argument-dependent lookup.
#pragma once

#include <cmath>
#include <concepts>
#include <limits>
#include <string_view>

#include "carve/cxx20.hpp"
#include "carve/macros.hpp"

namespace carve {

/// What the library asks of a scalar type.
///
/// - `exact`: arithmetic never rounds.
/// - `is_field`: `/` by every element but zero (for dual numbers, by every
///   invertible one).
/// - `is_ordered`: `<` agrees with the arithmetic, and `abs` exists.
/// - `is_real`: `exp`, `log`, `sqrt` and `to_double` exist.
/// - `name`: for reports.
/// - `digits`: decimal digits carried; 0 for an exact scalar.
/// - `from_double(x)`: exact wherever the scalar can hold `x`.
/// - `from_ratio(p, q)`: `p / q`; fields only.
/// - `to_double(x)`: the nearest double or one next to it; ordered scalars
/// only.
template <class T>
struct scalar_traits;

template <std::floating_point T>
struct scalar_traits<T> {
  static constexpr bool exact = false;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = true;
  static constexpr bool is_real = true;
  static constexpr std::string_view name = std::same_as<T, float> ? "float"
                                           : std::same_as<T, double>
                                               ? "double"
                                               : "long double";
  static constexpr int digits = std::numeric_limits<T>::digits10;

  static constexpr T from_double(double x) { return static_cast<T>(x); }
  static constexpr double to_double(T x) { return static_cast<double>(x); }
  static constexpr T from_ratio(long long p, long long q) {
    return static_cast<T>(p) / static_cast<T>(q);
  }
};

/// The functions of a real scalar; this default finds the ones of the
/// standard library and of the scalar's own namespace.
template <class T>
struct real_functions {
  /// What carve::exp, carve::log, carve::log1p, carve::expm1, carve::sqrt and
  /// carve::isfinite call.
  ///@{
  static CARVE_INLINE T exp(const T& x) {
    using std::exp;
    return exp(x);
  }
  static CARVE_INLINE T log(const T& x) {
    using std::log;
    return log(x);
  }
  static CARVE_INLINE T log1p(const T& x) {
    using std::log1p;
    return log1p(x);
  }
  static CARVE_INLINE T expm1(const T& x) {
    using std::expm1;
    return expm1(x);
  }
  static CARVE_INLINE T sqrt(const T& x) {
    using std::sqrt;
    return sqrt(x);
  }
  static CARVE_INLINE bool isfinite(const T& x) {
    using std::isfinite;
    return isfinite(x);
  }
  ///@}
};

namespace detail {

template <class T>
concept real_scalar = scalar_traits<T>::is_real;

template <class T>
concept ordered_scalar = scalar_traits<T>::is_ordered;

template <class T>
concept any_scalar = requires {
  scalar_traits<T>::exact;
};

}  // namespace detail

/// \f$ e^x \f$
template <detail::real_scalar T>
CARVE_INLINE T exp(const T& x) {
  return real_functions<T>::exp(x);
}

/// Natural logarithm.
template <detail::real_scalar T>
CARVE_INLINE T log(const T& x) {
  return real_functions<T>::log(x);
}

/// \f$ \log(1 + x) \f$ with full relative accuracy near zero.
template <detail::real_scalar T>
CARVE_INLINE T log1p(const T& x) {
  return real_functions<T>::log1p(x);
}

/// \f$ e^x - 1 \f$ with full relative accuracy near zero.
template <detail::real_scalar T>
CARVE_INLINE T expm1(const T& x) {
  return real_functions<T>::expm1(x);
}

/// \f$ \sqrt{x} \f$
template <detail::real_scalar T>
CARVE_INLINE T sqrt(const T& x) {
  return real_functions<T>::sqrt(x);
}

/// \f$ |x| \f$; the sign of a zero is kept.
template <detail::ordered_scalar T>
CARVE_INLINE T abs(const T& x) {
  return x < T(0) ? T(-x) : x;
}

/// Neither infinite nor NaN; true for every element of an exact scalar.
template <detail::any_scalar T>
CARVE_INLINE bool isfinite(const T& x) {
  if constexpr (scalar_traits<T>::is_real) {
    return real_functions<T>::isfinite(x);
  } else {
    return true;
  }
}

/// \f$ 1 / (1 + e^{-x}) \f$, written so that `exp` never overflows and small
/// results keep their relative accuracy.
template <detail::real_scalar T>
T sigmoid(const T& x) {
  if (x < T(0)) {
    const T e = carve::exp(x);
    return e / (T(1) + e);
  }
  return T(1) / (T(1) + carve::exp(T(-x)));
}

/// \f$ \log(1 + e^x) \f$ for every x, without a threshold beyond which it
/// turns linear.
template <detail::real_scalar T>
T softplus(const T& x) {
  if (x < T(0)) return carve::log1p(carve::exp(x));
  return x + carve::log1p(carve::exp(T(-x)));
}

/// A commutative ring with one, whose integers are constructed from `int`.
template <class T>
concept ring = detail::any_scalar<T> && std::regular<T> &&
    std::constructible_from<T, int> && requires(const T a, T c) {
  { a + a } -> std::convertible_to<T>;
  { a - a } -> std::convertible_to<T>;
  { a* a } -> std::convertible_to<T>;
  { -a } -> std::convertible_to<T>;
  { a == a } -> std::convertible_to<bool>;
  c += a;
  c -= a;
  c *= a;
};

/// A ring with division.
template <class T>
concept field = ring<T> && scalar_traits<T>::is_field && requires(const T a) {
  { a / a } -> std::convertible_to<T>;
  { scalar_traits<T>::from_ratio(1LL, 2LL) } -> std::same_as<T>;
};

/// An ordered field with the transcendental functions.
template <class T>
concept real = field<T> && scalar_traits<T>::is_real && requires(const T a) {
  { a < a } -> std::convertible_to<bool>;
  { carve::exp(a) } -> std::same_as<T>;
  { carve::log(a) } -> std::same_as<T>;
  { carve::sqrt(a) } -> std::same_as<T>;
  { scalar_traits<T>::to_double(a) } -> std::same_as<double>;
};

}  // namespace carve
