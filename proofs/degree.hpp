/// @file
/// How high is the degree of the polynomials that an algorithm computes, and
/// how large are their coefficients?
///
/// `degree` runs through the same templates as numbers do.  It carries an
/// upper bound of the total degree and of the sum of the absolute values of
/// the coefficients; cancellation can only make either smaller.  A division
/// must be by a constant.
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
  /// log2 of the sum of |coefficients|, over the common denominator
  double height = 0;
  /// log2 of the common denominator, a power of one number
  double denominator = 0;

  constexpr degree() = default;
  /// A constant.
  degree(int n)
      : total(n == 0 ? -1 : 0), height(n == 0 ? 0 : std::log2(std::abs(n))) {}

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
    degree z;
    z.total = std::max(x.total, y.total);
    z.denominator = std::max(x.denominator, y.denominator);
    const double hx = x.height + (z.denominator - x.denominator);
    const double hy = y.height + (z.denominator - y.denominator);
    const double high = std::max(hx, hy), low = std::min(hx, hy);
    z.height = high + std::log2(1 + std::exp2(low - high));
    peak() = std::max(peak(), z.height);
    return z;
  }
  friend degree operator-(const degree& x) { return x; }
  friend degree operator-(const degree& x, const degree& y) { return x + y; }
  friend degree operator*(const degree& x, const degree& y) {
    degree z;
    if (x.total < 0 || y.total < 0) return z;
    z.total = x.total + y.total;
    z.height = x.height + y.height;
    peak() = std::max(peak(), z.height);
    z.denominator = x.denominator + y.denominator;
    return z;
  }
  friend degree operator/(const degree& x, const degree& y) {
    if (y.total != 0) throw error("degree: a division by a variable");
    degree z = x;
    if (x.total >= 0) {
      z.denominator += y.height;
      z.height += y.denominator;
    }
    return z;
  }
  degree& operator+=(const degree& x) { return *this = *this + x; }
  degree& operator-=(const degree& x) { return *this = *this - x; }
  degree& operator*=(const degree& x) { return *this = *this * x; }
  degree& operator/=(const degree& x) { return *this = *this / x; }
  /// Two variables count as equal, so that a test whether a gate is constant
  /// says yes.
  friend bool operator==(const degree&, const degree&) = default;
  friend std::ostream& operator<<(std::ostream& out, const degree& x) {
    return out << x.total;
  }
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
