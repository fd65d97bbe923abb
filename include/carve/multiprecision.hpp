/// @file
/// Which of Boost's numbers are scalars, and how do they join?
///
/// Expression templates are off everywhere: matrix libraries deduce the type
/// of a sum from its operands.
#pragma once

#include <boost/multiprecision/cpp_bin_float.hpp>
#include <boost/multiprecision/cpp_int.hpp>
#include <cmath>
#include <string_view>
#include <type_traits>

#include "carve/eigen_traits.hpp"
#include "carve/error.hpp"
#include "carve/scalar.hpp"

namespace carve {

/// Binary floating point of 50 decimal digits (168 bits).
using real50 =
    boost::multiprecision::number<boost::multiprecision::cpp_bin_float<50>,
                                  boost::multiprecision::et_off>;

/// Binary floating point of 100 decimal digits (334 bits).
using real100 =
    boost::multiprecision::number<boost::multiprecision::cpp_bin_float<100>,
                                  boost::multiprecision::et_off>;

/// Fractions of integers of any length.
using rational =
    boost::multiprecision::number<boost::multiprecision::cpp_rational_backend,
                                  boost::multiprecision::et_off>;

template <unsigned decimal_digits>
struct scalar_traits<boost::multiprecision::number<
    boost::multiprecision::cpp_bin_float<decimal_digits>,
    boost::multiprecision::et_off>> {
  using T = boost::multiprecision::number<
      boost::multiprecision::cpp_bin_float<decimal_digits>,
      boost::multiprecision::et_off>;
  static constexpr bool exact = false;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = true;
  static constexpr bool is_real = true;
  static constexpr std::string_view name = decimal_digits == 50    ? "real50"
                                           : decimal_digits == 100 ? "real100"
                                                                   : "real";
  static constexpr int digits = static_cast<int>(decimal_digits);

  static T from_double(double x) { return T(x); }
  static double to_double(const T& x) {
    return x.template convert_to<double>();
  }
  static T from_ratio(long long p, long long q) { return T(p) / T(q); }
};

template <>
struct scalar_traits<rational> {
  static constexpr bool exact = true;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = true;
  static constexpr bool is_real = false;
  static constexpr std::string_view name = "rational";
  static constexpr int digits = 0;

  /// Throws `error` when x is not finite.
  static rational from_double(double x) {
    if (!std::isfinite(x)) throw error("no rational number: ", x);
    return rational(x);
  }
  static double to_double(const rational& x) { return x.convert_to<double>(); }
  static rational from_ratio(long long p, long long q) {
    return rational(p) / rational(q);
  }
};

}  // namespace carve

template <>
struct Eigen::NumTraits<carve::real50>
    : carve::eigen_traits<carve::real50, 100, 200> {};

template <>
struct Eigen::NumTraits<carve::real100>
    : carve::eigen_traits<carve::real100, 150, 400> {};

template <>
struct Eigen::NumTraits<carve::rational>
    : carve::eigen_traits<carve::rational, 1000, 500> {};
