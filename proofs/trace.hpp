/// @file
/// Which inputs does a result depend on?
///
/// `trace` runs through the same templates as numbers do and carries the set
/// of tokens (or heads) whose inputs went into a result.  A zero that the code
/// put there itself, such as the entries of a matrix above its diagonal, stays
/// zero in a product: so a result is free of what it is multiplied by, as it
/// is in floating point as long as that is finite.
#pragma once

#include <cstdint>
#include <ostream>
#include <string_view>

#include "carve/eigen_traits.hpp"
#include "carve/scalar.hpp"

namespace carve::proofs {

struct trace {
  bool zero = true;          ///< known to be zero, whatever the inputs
  std::uint64_t inputs = 0;  ///< bit n: inputs of token or head n

  constexpr trace() = default;
  constexpr trace(int n) : zero(n == 0) {}
  static trace of(std::int64_t bit) {
    trace x(1);
    x.inputs = std::uint64_t{1} << bit;
    return x;
  }

  friend trace operator+(const trace& x, const trace& y) {
    trace z;
    z.zero = x.zero && y.zero;
    z.inputs = x.inputs | y.inputs;
    return z;
  }
  friend trace operator-(const trace& x) { return x; }
  friend trace operator-(const trace& x, const trace& y) { return x + y; }
  friend trace operator*(const trace& x, const trace& y) {
    return x.zero || y.zero ? trace() : x + y;
  }
  friend trace operator/(const trace& x, const trace& y) { return x * y; }
  trace& operator+=(const trace& x) { return *this = *this + x; }
  trace& operator-=(const trace& x) { return *this = *this - x; }
  trace& operator*=(const trace& x) { return *this = *this * x; }
  trace& operator/=(const trace& x) { return *this = *this / x; }
  friend bool operator==(const trace&, const trace&) = default;
  friend std::ostream& operator<<(std::ostream& out, const trace& x) {
    return out << x.inputs;
  }
};

}  // namespace carve::proofs

namespace carve {

template <>
struct scalar_traits<proofs::trace> {
  static constexpr bool exact = true;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = false;
  static constexpr bool is_real = false;
  static constexpr std::string_view name = "trace";
  static constexpr int digits = 0;
  static proofs::trace from_ratio(long long p, long long) {
    return proofs::trace(p != 0);
  }
};

}  // namespace carve

template <>
struct Eigen::NumTraits<carve::proofs::trace>
    : carve::eigen_traits<carve::proofs::trace, 1, 1> {
  static carve::proofs::trace highest() { return 1; }
  static carve::proofs::trace lowest() { return 0; }
};
