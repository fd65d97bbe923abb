/// @file
/// How high is the degree of the polynomials that an algorithm computes, and
/// how large are their coefficients?
///
/// `degree` runs through the same templates as numbers do.  It carries an
/// upper bound of the total degree and of the sum of the absolute values of
/// the coefficients; cancellation can only make either smaller.  A division
/// must be by a constant that no prime of the fields divides.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string_view>

#include "carve/eigen_traits.hpp"
#include "carve/error.hpp"
#include "carve/scalar.hpp"

namespace carve::proofs {

struct degree {
  int total = -1;  ///< -1: the zero polynomial
  /// log2 of the sum of |coefficients| of the numerator
  double height = 0;
  /// The denominator, of all coefficients in common: a power of `base`.
  int base = 1;
  int power = 0;  ///< which power

  constexpr degree() = default;
  /// A constant.
  degree(int n)
      : total(n == 0 ? -1 : 0),
        height(n == 0 ? 0 : std::log2(std::abs(n))),
        constant(n) {}

  /// The largest height of a result on this thread since it was set.
  static double& peak() {
    thread_local double highest = 0;
    return highest;
  }

  static degree variable() {
    degree x(1);
    x.total = 1;
    return x;
  }

  friend degree operator+(const degree& x, const degree& y) {
    if (x.total < 0) return y;
    if (y.total < 0) return x;
    degree z = over_common(x, y);
    z.total = std::max(x.total, y.total);
    const double hx = x.height + z.log2_denominator() - x.log2_denominator();
    const double hy = y.height + z.log2_denominator() - y.log2_denominator();
    const double high = std::max(hx, hy), low = std::min(hx, hy);
    z.height = high + std::log2(1 + std::exp2(low - high));
    peak() = std::max(peak(), z.height);
    return z;
  }
  friend degree operator-(const degree& x) { return x; }
  friend degree operator-(const degree& x, const degree& y) { return x + y; }
  friend degree operator*(const degree& x, const degree& y) {
    if (x.total < 0 || y.total < 0) return {};
    degree z = over_common(x, y);
    z.power = x.power + y.power;
    z.total = x.total + y.total;
    z.height = x.height + y.height;
    peak() = std::max(peak(), z.height);
    return z;
  }
  /// @throws carve::error  unless y is a plain number that is not zero: as an
  ///                       int it is below both primes, so that neither divides
  ///                       it.
  friend degree operator/(const degree& x, const degree& y) {
    if (y.constant == 0) {
      throw error("degree: a division by something else than a number");
    }
    if (x.total < 0) return x;
    degree z = x;
    const int by = std::abs(y.constant);
    if (by == 1) return z;
    if (z.power == 0) z.base = by;
    if (z.base != by) refuse(z.base, by);
    ++z.power;
    z.constant = 0;
    return z;
  }
  degree& operator+=(const degree& x) { return *this = *this + x; }
  degree& operator-=(const degree& x) { return *this = *this - x; }
  degree& operator*=(const degree& x) { return *this = *this * x; }
  degree& operator/=(const degree& x) { return *this = *this / x; }
  /// Two variables count as equal, so that a test whether a gate is constant
  /// says yes.
  friend bool operator==(const degree&, const degree&) = default;
  /// log2 of the denominator
  double log2_denominator() const { return power * std::log2(base); }
  friend std::ostream& operator<<(std::ostream& out, const degree& x) {
    return out << x.total;
  }

 private:
  [[noreturn]] static void refuse(int x, int y) {
    throw error("degree: denominators that are powers of ", x, " and of ", y,
                " have no common bound here");
  }
  /// The larger of the two denominators, which both divide.
  static degree over_common(const degree& x, const degree& y) {
    if (x.power > 0 && y.power > 0 && x.base != y.base) refuse(x.base, y.base);
    degree z;
    z.base = x.power > 0 ? x.base : y.base;
    z.power = std::max(x.power, y.power);
    return z;
  }

  int constant = 0;  // the number itself, where it is one; else 0
};

}  // namespace carve::proofs

namespace carve {

template <>
struct scalar_traits<proofs::degree> {
  static constexpr bool exact = true;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = false;
  static constexpr bool is_real = false;
  static constexpr std::string_view name = "degree";
  static constexpr int digits = 0;
  static proofs::degree from_ratio(long long p, long long q) {
    return proofs::degree(static_cast<int>(p)) /
           proofs::degree(static_cast<int>(q));
  }
};

}  // namespace carve

template <>
struct Eigen::NumTraits<carve::proofs::degree>
    : carve::eigen_traits<carve::proofs::degree, 2, 2> {
  static carve::proofs::degree highest() { return 1; }
  static carve::proofs::degree lowest() { return 0; }
};
