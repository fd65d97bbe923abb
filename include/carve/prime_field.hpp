/// @file
/// How are identities over every commutative ring tested without rounding,
/// and at a fixed cost a step?  By arithmetic modulo a large prime.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <ostream>
#include <string_view>
#include <type_traits>

#include "carve/eigen_traits.hpp"
#include "carve/error.hpp"
#include "carve/scalar.hpp"

namespace carve {

namespace detail {

__extension__ using wide = unsigned __int128;

constexpr std::uint64_t multiply_mod(std::uint64_t a, std::uint64_t b,
                                     std::uint64_t modulus) {
  return static_cast<std::uint64_t>(static_cast<wide>(a) * b % modulus);
}

constexpr std::uint64_t power_mod(std::uint64_t base, std::uint64_t exponent,
                                  std::uint64_t modulus) {
  std::uint64_t result = 1;
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1) result = multiply_mod(result, base, modulus);
    base = multiply_mod(base, base, modulus);
  }
  return result;
}

/// Miller and Rabin's test; with the first twelve primes as bases it errs for
/// no number below 3.18e23 (Sorenson and Webster, "Strong pseudoprimes to
/// twelve prime bases", Math. Comp. 86, 2017), so for none of 64 bits.
constexpr bool is_prime(std::uint64_t n) {
  constexpr std::uint64_t bases[] = {2,  3,  5,  7,  11, 13,
                                     17, 19, 23, 29, 31, 37};
  if (n < 2) return false;
  for (const std::uint64_t p : bases) {
    if (n % p == 0) return n == p;
  }
  int twos = 0;
  std::uint64_t odd = n - 1;
  for (; odd % 2 == 0; odd /= 2) ++twos;
  for (const std::uint64_t a : bases) {
    std::uint64_t x = power_mod(a, odd, n);
    bool passed = x == 1 || x == n - 1;
    for (int i = 1; i < twos && !passed; ++i) {
      x = multiply_mod(x, x, n);
      passed = x == n - 1;
    }
    if (!passed) return false;
  }
  return true;
}

}  // namespace detail

/// The integers modulo the prime P, 2 < P < 2^63.
///
/// By the lemma of Schwartz and Zippel a polynomial of degree d that is not
/// zero vanishes at a uniform point with probability at most d / P.
template <std::uint64_t P = (1ULL << 61) - 1>
class prime_field {
  static_assert(P > 2 && P < (1ULL << 63) && detail::is_prime(P));

 public:
  /// P
  static constexpr std::uint64_t modulus = P;

  constexpr prime_field() = default;

  /// The residue of n; -1 is P - 1.
  template <std::integral I>
  constexpr prime_field(I n) {
    if constexpr (std::is_signed_v<I>) {
      const auto rest =
          static_cast<std::int64_t>(n) % static_cast<std::int64_t>(P);
      value_ = static_cast<std::uint64_t>(
          rest < 0 ? rest + static_cast<std::int64_t>(P) : rest);
    } else {
      value_ = n % P;
    }
  }

  /// 64 uniform bits modulo P.  No element is likelier than
  /// ceil(2^64 / P) / 2^64, which is 1.125 / P for P = 2^61 - 1.
  static constexpr prime_field uniform(std::uint64_t bits) {
    return prime_field(bits);
  }

  /// An exactly uniform element from a generator of uniform 64-bit words.
  template <class Generator>
  static prime_field uniform(Generator& generator) {
    static_assert(Generator::min() == 0 && Generator::max() == ~0ULL);
    constexpr std::uint64_t whole = ~0ULL / P * P;
    std::uint64_t bits = generator();
    while (bits >= whole) bits = generator();
    return prime_field(bits);
  }

  /// The representative in 0, ..., P - 1.
  constexpr std::uint64_t value() const { return value_; }

  /// Sum, difference, opposite and product modulo P.
  ///@{
  friend constexpr prime_field operator+(prime_field a, prime_field b) {
    return reduced(a.value_ + b.value_);
  }
  friend constexpr prime_field operator-(prime_field a, prime_field b) {
    return reduced(a.value_ + (P - b.value_));
  }
  friend constexpr prime_field operator-(prime_field a) {
    return reduced(P - a.value_);
  }
  friend constexpr prime_field operator*(prime_field a, prime_field b) {
    if constexpr (P == (1ULL << 61) - 1) {
      // 2^61 = 1, so the bits above 61 are added to the ones below.
      const detail::wide product =
          static_cast<detail::wide>(a.value_) * b.value_;
      return reduced((static_cast<std::uint64_t>(product) & P) +
                     static_cast<std::uint64_t>(product >> 61));
    } else {
      prime_field result;
      result.value_ = detail::multiply_mod(a.value_, b.value_, P);
      return result;
    }
  }
  ///@}

  /// \f$ a b^{-1} \f$; throws `error` when b is zero.
  friend constexpr prime_field operator/(prime_field a, prime_field b) {
    return a * b.inverse();
  }

  /// The same in place; `/=` throws `error` when b is zero.
  ///@{
  prime_field& operator+=(prime_field b) { return *this = *this + b; }
  prime_field& operator-=(prime_field b) { return *this = *this - b; }
  prime_field& operator*=(prime_field b) { return *this = *this * b; }
  prime_field& operator/=(prime_field b) { return *this = *this / b; }
  ///@}

  /// Equality of residues.
  friend constexpr bool operator==(prime_field, prime_field) = default;

  /// \f$ a^{-1} = a^{P-2} \f$ (Fermat); throws `error` for zero.
  constexpr prime_field inverse() const {
    if (value_ == 0) throw error("division by zero modulo ", P);
    return power(P - 2);
  }

  /// \f$ a^n \f$, with \f$ 0^0 = 1 \f$.
  constexpr prime_field power(std::uint64_t n) const {
    prime_field result(1), base = *this;
    for (; n != 0; n >>= 1) {
      if (n & 1) result = result * base;
      base = base * base;
    }
    return result;
  }

  /// Writes the representative in 0, ..., P - 1.
  friend std::ostream& operator<<(std::ostream& out, prime_field a) {
    return out << a.value_;
  }

 private:
  /// For x < 2P.
  static constexpr prime_field reduced(std::uint64_t x) {
    prime_field result;
    result.value_ = x >= P ? x - P : x;
    return result;
  }

  std::uint64_t value_ = 0;
};

/// Two fields, for identities whose integer coefficients could vanish in one.
///@{
using prime_61 = prime_field<(1ULL << 61) - 1>;
using prime_61_31 = prime_field<(1ULL << 61) - 31>;
///@}

template <std::uint64_t P>
struct scalar_traits<prime_field<P>> {
  using T = prime_field<P>;
  static constexpr bool exact = true;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = false;
  static constexpr bool is_real = false;
  static constexpr std::string_view name =
      P == prime_61::modulus      ? "integers mod 2^61-1"
      : P == prime_61_31::modulus ? "integers mod 2^61-31"
                                  : "integers mod a prime";
  static constexpr int digits = 0;

  /// A finite double is \f$ m 2^e \f$ with integer m; so is its image.  Throws
  /// `error` when it is not finite.
  static T from_double(double x) {
    if (!std::isfinite(x)) throw error("no residue modulo ", P, ": ", x);
    int exponent;
    const double fraction = std::frexp(x, &exponent);
    const T mantissa(static_cast<std::int64_t>(std::ldexp(fraction, 53)));
    exponent -= 53;
    const T base = exponent < 0 ? T(2).inverse() : T(2);
    return mantissa * base.power(static_cast<std::uint64_t>(
                          exponent < 0 ? -exponent : exponent));
  }
  static constexpr T from_ratio(long long p, long long q) {
    return T(p) / T(q);
  }
};

}  // namespace carve

template <std::uint64_t P>
struct Eigen::NumTraits<carve::prime_field<P>>
    : carve::eigen_traits<carve::prime_field<P>, 2, 4> {
  static carve::prime_field<P> highest() { return -1; }
  static carve::prime_field<P> lowest() { return 0; }
};
