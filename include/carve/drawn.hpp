/// @file
/// What else might fp32 arithmetic have given?  A scalar of which every
/// operation errs as a float's may, by an amount drawn anew from a seed.
///
/// A single run in float is one draw of its rounding errors.  Where a tensor
/// holds few independent errors - one number a head, one token, a cumulated
/// decay that a whole channel shares - one draw says little about their size;
/// runs in `drawn` with several seeds say it.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

#include "carve/eigen_traits.hpp"
#include "carve/error.hpp"
#include "carve/precision.hpp"
#include "carve/scalar.hpp"

namespace carve {

/// How fp32 code comes to \f$ e^x \f$.
enum class exponential {
  rounded,  ///< correctly rounded
  exp2,     ///< \f$ 2^y \f$ of the float \f$ y = x \log_2 e \f$
  /// The same by a GPU's `ex2.approx.f32`, whose error on arguments near zero
  /// has mean -0.38 and RMS 0.64 of \f$ 2^{-24} \f$.
  approximate,
};

/// Their names on the command line.
inline constexpr std::array<std::string_view, 3> exponential_names{
    "rounded", "exp2", "approx"};

/// The one called `text`.
/// @throws carve::error  naming all, when there is none.
inline exponential exponential_named(std::string_view text) {
  for (std::size_t i = 0; i < exponential_names.size(); ++i) {
    if (exponential_names[i] == text) return static_cast<exponential>(i);
  }
  throw error("exp: expected one of ", exponential_names, ", got \"", text,
              "\"");
}

namespace detail {

/// Bits that depend on all bits of `x`.
constexpr std::uint64_t scrambled(std::uint64_t x) {
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

/// Uniform in [-1, 1), a function of the two and of nothing else.
inline double uniform_of(double x, std::uint64_t seed) {
  const std::uint64_t bits =
      scrambled(std::bit_cast<std::uint64_t>(x) + seed * 0x9e3779b97f4a7c15u);
  return static_cast<double>(static_cast<std::int64_t>(bits)) * 0x1p-63;
}

/// Half the distance between the numbers of format `f` near `x`, finite.
inline double half_spacing(format f, double x) {
  const std::uint64_t power =
      std::bit_cast<std::uint64_t>(x) & 0x7ff0000000000000u;
  return std::max(smallest_subnormal(f) / 2,
                  std::bit_cast<double>(power) * unit_roundoff(f));
}

/// `x` and, unless it is a number of format `f`, an error that is uniform
/// within half a unit in the last place: what rounding to nearest adds, but
/// drawn by `seed`.
inline double drawn_rounding(format f, double x, std::uint64_t seed) {
  if (round_to(f, x) == x || !std::isfinite(x)) return x;
  return x + half_spacing(f, x) * uniform_of(x, seed);
}

}  // namespace detail

/// A real number, and which draw of errors it belongs to.
///
/// An operation is exact in double; then, unless the result is a float (as
/// that of a product by a power of two or a sum with zero is), an error is
/// added that is uniform within half a unit in the last place: what rounding
/// to nearest adds, but independent of it.  The error is a function of seed
/// and result alone, so runs do not depend on threads or on their order, and
/// the same operation on the same numbers errs alike wherever it stands, as in
/// real arithmetic.  The value is not on the grid of floats.
class drawn {
 public:
  constexpr drawn() = default;
  /// A constant, of no draw.
  constexpr drawn(int x) : value_(x) {}
  /// An input of the draw `seed`, below 2^30.
  drawn(double x, std::uint32_t seed, exponential how)
      : value_(x), draw_(seed << 2 | static_cast<std::uint32_t>(how)) {}

  /// The value, on no grid.
  constexpr double value() const { return value_; }

  /// Arithmetic with an error each.
  ///@{
  friend drawn operator+(const drawn& x, const drawn& y) {
    const double sum = x.value_ + y.value_;
    if (x.value_ == 0 || y.value_ == 0) return {sum, x.draw_ | y.draw_};
    return erring(sum, x.draw_ | y.draw_);
  }
  friend drawn operator-(const drawn& x, const drawn& y) { return x + -y; }
  friend drawn operator*(const drawn& x, const drawn& y) {
    const double product = x.value_ * y.value_;
    if (is_power(x.value_) || is_power(y.value_)) {
      return {product, x.draw_ | y.draw_};
    }
    return erring(product, x.draw_ | y.draw_);
  }
  friend drawn operator/(const drawn& x, const drawn& y) {
    const double quotient = x.value_ / y.value_;
    if (is_power(y.value_)) return {quotient, x.draw_ | y.draw_};
    return erring(quotient, x.draw_ | y.draw_);
  }
  drawn operator-() const { return {-value_, draw_}; }
  drawn& operator+=(const drawn& x) { return *this = *this + x; }
  drawn& operator-=(const drawn& x) { return *this = *this - x; }
  drawn& operator*=(const drawn& x) { return *this = *this * x; }
  drawn& operator/=(const drawn& x) { return *this = *this / x; }
  ///@}

  /// Comparison of the values.
  ///@{
  friend bool operator==(const drawn& x, const drawn& y) {
    return x.value_ == y.value_;
  }
  friend bool operator<(const drawn& x, const drawn& y) {
    return x.value_ < y.value_;
  }
  friend bool operator>(const drawn& x, const drawn& y) { return y < x; }
  ///@}

  /// \f$ e^x \f$ in the way of the draw.
  friend drawn exp(const drawn& x) {
    const auto how = static_cast<exponential>(x.draw_ & 3u);
    if (x.value_ == 0) return {1.0, x.draw_};
    if (how == exponential::rounded) {
      return erring(std::exp(x.value_), x.draw_);
    }
    constexpr double log2_e = static_cast<double>(1.44269504f);
    const double y = erring(x.value_ * log2_e, x.draw_).value_;
    const double z = std::exp2(y);
    if (how == exponential::exp2) return erring(z, x.draw_);
    // A table of coefficients is looked up by the leading bits of the argument,
    // so that what the polynomial lacks is nearly the same for neighbours: one
    // number for a whole draw. What its last bits lack is another for each.
    // Mean square: 0.38^2 + 0.43^2 + 0.5^2 / 3 = 0.64^2.
    const double shared = (x.draw_ >> 3 & 1u) != 0 ? -0.43 : 0.43;
    const double error = -0.38 + shared + 0.5 * detail::uniform_of(z, x.draw_);
    return {flushed(z * (1 + error * 0x1p-24)), x.draw_};
  }

  /// Other functions, each as if correctly rounded.
  ///@{
  friend drawn log(const drawn& x) { return of(std::log(x.value_), x); }
  friend drawn log1p(const drawn& x) { return of(std::log1p(x.value_), x); }
  friend drawn expm1(const drawn& x) { return of(std::expm1(x.value_), x); }
  friend drawn sqrt(const drawn& x) { return of(std::sqrt(x.value_), x); }
  friend bool isfinite(const drawn& x) { return std::isfinite(x.value_); }
  ///@}

 private:
  constexpr drawn(double x, std::uint32_t draw) : value_(x), draw_(draw) {}

  static drawn of(double y, const drawn& x) { return erring(y, x.draw_); }

  /// Zero or a power of two, by which products are exact.
  static bool is_power(double x) {
    return (std::bit_cast<std::uint64_t>(x) & 0x000fffffffffffffu) == 0;
  }

  /// Beyond the floats at either end.
  static double flushed(double x) {
    const double magnitude = std::fabs(x);
    if (magnitude < 0x1p-150) return 0;
    if (magnitude >= 0x1p128) return std::copysign(HUGE_VAL, x);
    return x;
  }

  static drawn erring(double x, std::uint32_t draw) {
    if (static_cast<double>(static_cast<float>(x)) == x || !std::isfinite(x)) {
      return {x, draw};
    }
    const double error =
        detail::half_spacing(format::f32, x) * detail::uniform_of(x, draw);
    return {flushed(x + error), draw};
  }

  double value_ = 0;
  std::uint32_t draw_ = 0;
};

template <>
struct scalar_traits<drawn> {
  static constexpr bool exact = false;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = true;
  static constexpr bool is_real = true;
  static constexpr std::string_view name = "drawn float";
  static constexpr int digits = std::numeric_limits<float>::digits10;

  static drawn from_double(double x) {
    return drawn(x, 0, exponential::rounded);
  }
  static double to_double(const drawn& x) { return x.value(); }
  static drawn from_ratio(long long p, long long q) {
    return from_double(static_cast<double>(p)) /
           from_double(static_cast<double>(q));
  }
};

}  // namespace carve

/// What Eigen needs to know.
template <>
struct Eigen::NumTraits<carve::drawn>
    : carve::eigen_traits<carve::drawn, 8, 8> {};
