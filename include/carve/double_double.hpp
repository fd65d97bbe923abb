/// @file
/// How is a number carried to 32 digits at nearly the speed of the hardware?
///
/// A double-double is the unevaluated sum of two doubles, 106 bits.  The
/// algorithms are those of Joldes, Muller and Popescu, "Tight and rigorous
/// error bounds for basic building blocks of double-word arithmetic", ACM
/// TOMS 44(2), 2017.  They need round-to-nearest, no contraction of products
/// into sums (`-ffp-contract=off`) and no `-ffast-math`.
#pragma once

#include <cfloat>
#include <cmath>
#include <concepts>
#include <limits>
#include <string_view>

#include "carve/eigen_traits.hpp"
#include "carve/macros.hpp"
#include "carve/scalar.hpp"

#if defined(__FAST_MATH__)
#error "carve/double_double.hpp: -ffast-math removes the error terms"
#endif

namespace carve {

static_assert(FLT_EVAL_METHOD == 0,
              "double-double needs doubles that are rounded to double");

/// \f$ hi + lo \f$ with \f$ |lo| \le \frac12 \mathrm{ulp}(hi) \f$.
///
/// With \f$ u = 2^{-53} \f$ the relative errors are at most
/// - \f$ 3u^2/(1-4u) \f$ for `+` and `-` (Algorithm 6 of the paper above),
/// - \f$ 5u^2 \f$ for `*` (its Algorithm 10, there with \f$ 7u^2 \f$; lowered
///   by Muller and Rideau, "Formalization of double-word arithmetic", ACM TOMS
///   48(1), 2022),
/// - \f$ 15u^2 + 56u^3 \f$ for `/` (its Algorithm 17; the bound is proved for a
///   product by Algorithm 7 within, and said there to change little with the
///   shorter Algorithm 9 that stands here),
/// - \f$ \frac{25}{8}u^2 \f$ for `sqrt` (Lefevre, Louvet, Muller, Picot and
///   Rideau, ACM TOMS 49(1), 2023),
///
/// as long as no error term falls below \f$ 2^{-1074} \f$: products under about
/// \f$ 2^{-968} \f$ keep only an absolute accuracy of a few \f$ 2^{-1074} \f$.
/// A result that overflows, or stems from an infinity or a NaN, is not finite;
/// `+` and `*` may turn an infinity into a NaN.  They do not keep the sign of
/// zero.
struct double_double {
  double hi = 0;  ///< the number, rounded to double
  double lo = 0;  ///< what that rounding left

  constexpr double_double() = default;

  /// The parts as they are; the caller vouches for \f$ |lo| \f$.
  constexpr double_double(double high, double low) : hi(high), lo(low) {}

  /// Exact for every floating-point type of at most 106 bits.
  template <std::floating_point F>
  constexpr double_double(F x) : hi(static_cast<double>(x)) {
    // An infinity minus itself would leave a NaN in the low part.
    if constexpr (sizeof(F) > sizeof(double)) {
      const F rest = x - static_cast<F>(hi);
      lo = rest == rest ? static_cast<double>(rest) : 0;
    }
  }

  /// Exact for every integer of at most 64 bits.
  template <std::integral I>
  constexpr double_double(I n) : hi(static_cast<double>(n)) {
    if constexpr (sizeof(I) > 4) {
      const I upper = n / 4096;
      const double high = static_cast<double>(upper) * 4096;
      const double low = static_cast<double>(n % 4096);
      hi = high + low;
      lo = low - (hi - high);
    }
  }

  /// To a narrower type: `double` takes `hi`, which is the nearest, `float`
  /// rounds `hi` again, `long double` rounds the sum.
  ///@{
  explicit constexpr operator float() const { return static_cast<float>(hi); }
  explicit constexpr operator double() const { return hi; }
  explicit constexpr operator long double() const {
    return static_cast<long double>(hi) + static_cast<long double>(lo);
  }
  ///@}
};

namespace detail {

/// \f$ s + e = a + b \f$ exactly (Knuth).
CARVE_INLINE double_double two_sum(double a, double b) {
  const double s = a + b;
  const double part = s - a;
  return {s, (a - (s - part)) + (b - part)};
}

/// \f$ s + e = a + b \f$ exactly when \f$ |a| \ge |b| \f$ (Dekker).
CARVE_INLINE double_double fast_two_sum(double a, double b) {
  const double s = a + b;
  return {s, b - (s - a)};
}

/// \f$ p + e = ab \f$ exactly.
CARVE_INLINE double_double two_prod(double a, double b) {
  const double p = a * b;
  return {p, std::fma(a, b, -p)};
}

}  // namespace detail

/// Arithmetic with the error bounds of the class; negation is exact.
///@{
CARVE_INLINE double_double operator-(double_double a) { return {-a.hi, -a.lo}; }

CARVE_INLINE double_double operator+(double_double a, double_double b) {
  const double_double s = detail::two_sum(a.hi, b.hi);
  const double_double t = detail::two_sum(a.lo, b.lo);
  const double_double v = detail::fast_two_sum(s.hi, s.lo + t.hi);
  return detail::fast_two_sum(v.hi, t.lo + v.lo);
}

CARVE_INLINE double_double operator-(double_double a, double_double b) {
  return a + -b;
}

// The two cross products are added to each other first, so that a * b and
// b * a agree in every bit.
CARVE_INLINE double_double operator*(double_double a, double_double b) {
  const double_double p = detail::two_prod(a.hi, b.hi);
  return detail::fast_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

CARVE_INLINE double_double operator/(double_double a, double_double b) {
  const double q = a.hi / b.hi;
  // The remainder of an infinite quotient, or by an infinite divisor, is NaN.
  if (!(std::fabs(q) <= DBL_MAX && std::fabs(b.hi) <= DBL_MAX)) return {q, 0};
  const double_double p = detail::two_prod(b.hi, q);
  const double_double r = detail::fast_two_sum(p.hi, std::fma(b.lo, q, p.lo));
  return detail::fast_two_sum(q, ((a.hi - r.hi) + (a.lo - r.lo)) / b.hi);
}

CARVE_INLINE double_double& operator+=(double_double& a, double_double b) {
  return a = a + b;
}
CARVE_INLINE double_double& operator-=(double_double& a, double_double b) {
  return a = a - b;
}
CARVE_INLINE double_double& operator*=(double_double& a, double_double b) {
  return a = a * b;
}
CARVE_INLINE double_double& operator/=(double_double& a, double_double b) {
  return a = a / b;
}
///@}

/// Comparisons of the exact values; false where a NaN stands.
///@{
CARVE_INLINE bool operator==(double_double a, double_double b) {
  return a.hi == b.hi && a.lo == b.lo;
}
CARVE_INLINE bool operator<(double_double a, double_double b) {
  return a.hi < b.hi || (a.hi == b.hi && a.lo < b.lo);
}
CARVE_INLINE bool operator<=(double_double a, double_double b) {
  return a.hi < b.hi || (a.hi == b.hi && a.lo <= b.lo);
}
CARVE_INLINE bool operator>(double_double a, double_double b) { return b < a; }
CARVE_INLINE bool operator>=(double_double a, double_double b) {
  return b <= a;
}
///@}

/// \f$ 2^k x \f$
inline double_double ldexp(double_double x, int k) {
  return {std::ldexp(x.hi, k), std::ldexp(x.lo, k)};
}

template <>
struct scalar_traits<double_double> {
  static constexpr bool exact = false;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = true;
  static constexpr bool is_real = true;
  static constexpr std::string_view name = "double-double";
  static constexpr int digits = 31;

  static constexpr double_double from_double(double x) { return x; }
  static constexpr double to_double(double_double x) { return x.hi; }
  static double_double from_ratio(long long p, long long q) {
    return double_double(p) / double_double(q);
  }
};

namespace detail {

// ln 2 in three pieces; the first two have 42 bits or fewer, so their products
// with an exponent are exact.
inline constexpr double ln2_1 = 0x1.62e42fefa3800p-1;
inline constexpr double ln2_2 = 0x1.ef35793c76000p-45;
inline constexpr double ln2_3 = 0x1.cc01f97b57a08p-87;

/// e^(j/32) - 1 for j = -11, ..., 11.
inline constexpr double_double expm1_table[] = {
    {-0x1.29e011a428ec6p-2, -0x1.dabf5975c0c02p-57},
    {-0x1.12d35a41ba104p-2, 0x1.3445f7544e0efp-57},
    {-0x1.f616a79dda3a8p-3, -0x1.6b2eab63020c1p-57},
    {-0x1.c5041854df7d4p-3, -0x1.797d4686c5393p-57},
    {-0x1.9262c1c3430a1p-3, -0x1.46ff6ec4a4251p-57},
    {-0x1.5e25fb4fde211p-3, 0x1.64eec82915df3p-63},
    {-0x1.2840b5836cf67p-3, -0x1.85405051eb425p-57},
    {-0x1.e14aed893eef4p-4, 0x1.e1f58934f97afp-59},
    {-0x1.6e8caff341feap-4, -0x1.9573ded7888b2p-58},
    {-0x1.f0540438fd5c3p-5, -0x1.a1ce01f9f6ca7p-61},
    {-0x1.f8152aee9450ep-6, 0x1.4b00abf977627p-61},
    {0, 0},
    {0x1.040ac0224fd93p-5, 0x1.c17a107575019p-61},
    {0x1.082b577d34ed8p-4, -0x1.5272ff30eed1bp-59},
    {0x1.92937074e0cd7p-4, -0x1.db0b9cc915fc5p-58},
    {0x1.10b022db7ae68p-3, -0x1.8c4a5df1ec7e5p-58},
    {0x1.5a5ac59b963cbp-3, -0x1.fd91307e74c50p-57},
    {0x1.a65c0b85ac1a9p-3, 0x1.a9c189196f8cdp-57},
    {0x1.f4c6f5508ee5dp-3, 0x1.46ef7b808180ap-57},
    {0x1.22d78f0fa061ap-2, -0x1.89843c4964554p-56},
    {0x1.4c946033eb3dep-2, -0x1.35d267d66dc96p-56},
    {0x1.77a45d8117fd5p-2, -0x1.2bb36e6b3a2afp-58},
    {0x1.a4124b2fe50cbp-2, 0x1.fb5f3020a46f5p-57}};

/// log(j/32) for j = 22, ..., 46.
inline constexpr double_double log_table[] = {
    {-0x1.7fafa3bd8151cp-2, 0x1.219024acd3b77p-58},
    {-0x1.522ae0738a3d8p-2, 0x1.8f7e9b38a6979p-57},
    {-0x1.269621134db92p-2, -0x1.e0efadd9db02bp-56},
    {-0x1.f991c6cb3b379p-3, -0x1.f665066f980a2p-57},
    {-0x1.a93ed3c8ad9e3p-3, -0x1.bcafa9de97203p-57},
    {-0x1.5bf406b543db2p-3, 0x1.1f5b44c0df7e7p-61},
    {-0x1.1178e8227e47cp-3, 0x1.0e63a5f01c691p-58},
    {-0x1.9335e5d594989p-4, 0x1.478a85704ccb7p-58},
    {-0x1.08598b59e3a07p-4, 0x1.dd7009902bf32p-58},
    {-0x1.0415d89e74444p-5, -0x1.c05cf1d753622p-59},
    {0, 0},
    {0x1.f829b0e783300p-6, 0x1.33e3f04f1ef23p-60},
    {0x1.f0a30c01162a6p-5, 0x1.85f325c5bbacdp-59},
    {0x1.6f0d28ae56b4cp-4, -0x1.906d99184b992p-58},
    {0x1.e27076e2af2e6p-4, -0x1.61578001e0162p-60},
    {0x1.29552f81ff523p-3, 0x1.301771c407dbfp-57},
    {0x1.5ff3070a793d4p-3, -0x1.bc60efafc6f6ep-58},
    {0x1.9525a9cf456b4p-3, 0x1.d904c1d4e2e26p-57},
    {0x1.c8ff7c79a9a22p-3, -0x1.4f689f8434012p-57},
    {0x1.fb9186d5e3e2bp-3, -0x1.caaae64f21acbp-57},
    {0x1.1675cababa60ep-2, 0x1.ce63eab883717p-61},
    {0x1.2e8e2bae11d31p-2, -0x1.8f4cdb95ebdf9p-56},
    {0x1.4618bc21c5ec2p-2, 0x1.f42decdeccf1dp-56},
    {0x1.5d1bdbf5809cap-2, 0x1.4236383dc7fe1p-56},
    {0x1.739d7f6bbd007p-2, -0x1.8c76ceb014b04p-56}};

/// 1/n! for n = 2, ..., 7.
inline constexpr double_double inverse_factorial[] = {
    {0x1p-1, 0},
    {0x1.5555555555555p-3, 0x1.5555555555555p-57},
    {0x1.5555555555555p-5, 0x1.5555555555555p-59},
    {0x1.1111111111111p-7, 0x1.1111111111111p-63},
    {0x1.6c16c16c16c17p-10, -0x1.f49f49f49f49fp-65},
    {0x1.a01a01a01a01ap-13, 0x1.a01a01a01a01ap-73}};

/// 1/n! for n = 8, ..., 14.
inline constexpr double tail_factorial[] = {
    1 / 40320.,     1 / 362880.,     1 / 3628800.,    1 / 39916800.,
    1 / 479001600., 1 / 6227020800., 1 / 87178291200.};

/// 1/(2i + 1) for i = 1, ..., 4.
inline constexpr double_double inverse_odd[] = {
    {0x1.5555555555555p-2, 0x1.5555555555555p-56},
    {0x1.999999999999ap-3, -0x1.999999999999ap-57},
    {0x1.2492492492492p-3, 0x1.2492492492492p-57},
    {0x1.c71c71c71c71cp-4, 0x1.c71c71c71c71cp-58}};

/// e^r - 1 for |r| <= 0.36: with s = r - j/32 and t = e^(j/32) - 1 it is
/// t + (1 + t)(e^s - 1).  As |s| <= 1/64, the terms from s^8 on lie below the
/// last bit of a double and need no more than one.
inline double_double expm1_reduced(double_double r) {
  const int j = static_cast<int>(std::nearbyint(32 * r.hi));
  const double_double s = r - double_double(j / 32.0);
  double tail = 0;
  for (int n = 14; n >= 8; --n) tail = tail * s.hi + tail_factorial[n - 8];
  double_double q = double_double(tail);
  for (int n = 7; n >= 2; --n) q = q * s + inverse_factorial[n - 2];
  const double_double e = s + s * s * q;
  const double_double t = expm1_table[j + 11];
  return j == 0 ? e : t + (e + t * e);
}

/// log(j/32) + 2 artanh(s) with s = (m - j/32) / (m + j/32), |s| <= 1/88.
inline double_double log_reduced(int j, double_double s) {
  const double_double z = s * s;
  double tail = 0;
  for (double n = 21; n >= 11; n -= 2) tail = 1 / n + z.hi * tail;
  double_double q = double_double(tail);
  for (int i = 4; i >= 1; --i) q = q * z + inverse_odd[i - 1];
  return log_table[j - 22] + ldexp(s + s * z * q, 1);
}

/// x = 2^k e^r: returns k, and e^r - 1 in `rest`.
inline int reduce_exp(double_double x, double_double& rest) {
  const double k = std::nearbyint(x.hi * 0x1.71547652b82fep+0);
  const double_double r =
      ((x - double_double(k * ln2_1)) - double_double(k * ln2_2)) -
      double_double(k * ln2_3);
  rest = expm1_reduced(r);
  return static_cast<int>(k);
}

}  // namespace detail

/// The functions of a double-double.  Relative errors, measured against 100
/// digits, stay below \f$ 8u^2 = 9.9 \cdot 10^{-32} \f$ with
/// \f$ u = 2^{-53} \f$.
template <>
struct real_functions<double_double> {
  static bool isfinite(double_double x) {
    return std::isfinite(x.hi) && std::isfinite(x.lo);
  }

  static double_double exp(double_double x) {
    if (!(x.hi >= -746 && x.hi <= 710)) return std::exp(x.hi);
    double_double rest;
    const int k = detail::reduce_exp(x, rest);
    const double_double y = ldexp(double_double(1) + rest, k);
    return std::isfinite(y.hi) ? y : double_double(y.hi);
  }

  static double_double expm1(double_double x) {
    if (!(x.hi >= -80 && x.hi <= 80)) return exp(x) - double_double(1);
    double_double rest;
    const int k = detail::reduce_exp(x, rest);
    if (k == 0) return rest;
    return ldexp(double_double(1) + rest, k) - double_double(1);
  }

  static double_double log(double_double x) {
    if (!(x.hi > 0 && x.hi <= DBL_MAX)) return std::log(x.hi);
    int k;
    const double m = std::frexp(x.hi, &k);
    // m in [sqrt(1/2), sqrt(2)), so that log(x) is small only where k = 0.
    if (m < 0x1.6a09e667f3bcdp-1) --k;
    x = ldexp(x, -k);
    const int j = static_cast<int>(std::nearbyint(32 * x.hi));
    const double_double c(j / 32.0);
    const double_double y = detail::log_reduced(j, (x - c) / (x + c));
    if (k == 0) return y;
    const double_double high =
        detail::fast_two_sum(k * detail::ln2_1, k * detail::ln2_2);
    return high + double_double(k * detail::ln2_3) + y;
  }

  static double_double log1p(double_double x) {
    if (!(std::fabs(x.hi) < 0.25)) return log(double_double(1) + x);
    // Below, the remainder of the division could fall under the subnormals;
    // x - x^2/2 rounds to x.
    if (std::fabs(x.hi) < 0x1p-110) return x;
    const int j = static_cast<int>(std::nearbyint(32 * (1 + x.hi)));
    const double_double num = x + double_double(1 - j / 32.0);
    const double_double den = x + double_double(1 + j / 32.0);
    return detail::log_reduced(j, num / den);
  }

  static double_double sqrt(double_double x) {
    if (!(x.hi > 0 && x.hi <= DBL_MAX)) return std::sqrt(x.hi);
    // The square of the root must have its error term in range.
    if (x.hi < 0x1p-900) return ldexp(sqrt(ldexp(x, 200)), -100);
    const double s = std::sqrt(x.hi);
    return detail::fast_two_sum(s, (std::fma(-s, s, x.hi) + x.lo) / (2 * s));
  }
};

}  // namespace carve

/// A double-double as a number of 106 bits; the largest and smallest values
/// are those between which all 106 bits exist.
template <>
struct std::numeric_limits<carve::double_double> : std::numeric_limits<double> {
  using value = carve::double_double;
  static constexpr bool is_iec559 = false;
  static constexpr int digits = 106;
  static constexpr int digits10 = 31;
  static constexpr int max_digits10 = 33;
  static constexpr value min() { return 0x1p-968; }
  static constexpr value max() { return {DBL_MAX, DBL_MAX * 0x1p-54}; }
  static constexpr value lowest() { return {-DBL_MAX, -DBL_MAX * 0x1p-54}; }
  static constexpr value epsilon() { return 0x1p-105; }
  static constexpr value round_error() { return 0.5; }
  static constexpr value infinity() {
    return numeric_limits<double>::infinity();
  }
  static constexpr value quiet_NaN() {
    return numeric_limits<double>::quiet_NaN();
  }
  static constexpr value signaling_NaN() {
    return numeric_limits<double>::signaling_NaN();
  }
  static constexpr value denorm_min() {
    return numeric_limits<double>::denorm_min();
  }
};

template <>
struct Eigen::NumTraits<carve::double_double>
    : carve::eigen_traits<carve::double_double, 20, 9> {};

#include "carve/double_double_text.hpp"
