/// @file
/// How many operations does an algorithm take, and how many of them must wait
/// for one another?
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <ostream>
#include <string_view>

#include "carve/eigen_traits.hpp"
#include "carve/scalar.hpp"

namespace carve {

/// Operations of this thread since the last reset.  A difference counts as an
/// addition; negation, comparison and `abs` are free.
struct operation_counts {
  std::uint64_t additions = 0;        ///< sums and differences
  std::uint64_t multiplications = 0;  ///< products
  std::uint64_t divisions = 0;        ///< quotients
  /// exp, expm1, log, log1p and sqrt
  std::uint64_t transcendentals = 0;

  /// All four counts agree.
  friend bool operator==(const operation_counts&,
                         const operation_counts&) = default;

  /// The counts of the calling thread so far.
  static operation_counts read() { return now(); }
  /// Sets the counts of the calling thread to zero.
  static void reset() { now() = {}; }

  /// The counters of the calling thread.
  static operation_counts& now() {
    thread_local operation_counts counts;
    return counts;
  }
};

/// A scalar that counts its operations, and knows in `depth` the length of
/// the longest chain of them that it is the end of.  Numbers read from
/// outside have depth zero.  The value is computed as T computes it, bit for
/// bit.
template <class T>
struct counting {
  T value{};                ///< what T computes
  std::uint64_t depth = 0;  ///< operations on the longest chain up to here

  constexpr counting() = default;

  /// An input or a literal.
  template <class U>
  requires std::convertible_to<U, T>
  constexpr counting(const U& input) : value(input) {}

  /// A value at the end of a chain of that length.
  constexpr counting(const T& v, std::uint64_t chain)
      : value(v), depth(chain) {}

  /// Arithmetic of T; all but the negation count one operation, whose result
  /// has depth `max(depth a, depth b) + 1`.
  ///@{
  friend counting operator+(const counting& a, const counting& b) {
    ++operation_counts::now().additions;
    return {a.value + b.value, after(a, b)};
  }
  friend counting operator-(const counting& a, const counting& b) {
    ++operation_counts::now().additions;
    return {a.value - b.value, after(a, b)};
  }
  friend counting operator-(const counting& a) { return {-a.value, a.depth}; }
  friend counting operator*(const counting& a, const counting& b) {
    ++operation_counts::now().multiplications;
    return {a.value * b.value, after(a, b)};
  }
  friend counting operator/(const counting& a, const counting& b) requires(
      scalar_traits<T>::is_field) {
    ++operation_counts::now().divisions;
    return {a.value / b.value, after(a, b)};
  }

  counting& operator+=(const counting& b) { return *this = *this + b; }
  counting& operator-=(const counting& b) { return *this = *this - b; }
  counting& operator*=(const counting& b) { return *this = *this * b; }
  counting& operator/=(const counting& b) requires(scalar_traits<T>::is_field) {
    return *this = *this / b;
  }
  ///@}

  /// Comparisons look at the values alone and are free.
  ///@{
  friend bool operator==(const counting& a, const counting& b) {
    return a.value == b.value;
  }
  friend bool operator<(const counting& a, const counting& b) {
    return a.value < b.value;
  }
  friend bool operator>(const counting& a, const counting& b) { return b < a; }
  friend bool operator<=(const counting& a, const counting& b) {
    return a.value <= b.value;
  }
  friend bool operator>=(const counting& a, const counting& b) {
    return b <= a;
  }
  ///@}

  /// Writes the value.
  friend std::ostream& operator<<(std::ostream& out, const counting& a) {
    return out << a.value;
  }

 private:
  static std::uint64_t after(const counting& a, const counting& b) {
    return std::max(a.depth, b.depth) + 1;
  }
};

template <class T>
struct scalar_traits<counting<T>> {
  using inner = scalar_traits<T>;
  static constexpr bool exact = inner::exact;
  static constexpr bool is_field = inner::is_field;
  static constexpr bool is_ordered = inner::is_ordered;
  static constexpr bool is_real = inner::is_real;
  static constexpr std::string_view name = "counting";
  static constexpr int digits = inner::digits;

  static counting<T> from_double(double x) { return inner::from_double(x); }
  static double to_double(const counting<T>& x) requires(is_ordered) {
    return inner::to_double(x.value);
  }
  /// A literal: not counted.
  static counting<T> from_ratio(long long p, long long q) requires(is_field) {
    return inner::from_ratio(p, q);
  }
};

template <class T>
requires(scalar_traits<T>::is_real) struct real_functions<counting<T>> {
  static counting<T> exp(const counting<T>& x) {
    return counted(carve::exp(x.value), x);
  }
  static counting<T> expm1(const counting<T>& x) {
    return counted(carve::expm1(x.value), x);
  }
  static counting<T> log(const counting<T>& x) {
    return counted(carve::log(x.value), x);
  }
  static counting<T> log1p(const counting<T>& x) {
    return counted(carve::log1p(x.value), x);
  }
  static counting<T> sqrt(const counting<T>& x) {
    return counted(carve::sqrt(x.value), x);
  }
  static bool isfinite(const counting<T>& x) {
    return carve::isfinite(x.value);
  }

 private:
  static counting<T> counted(const T& y, const counting<T>& x) {
    ++operation_counts::now().transcendentals;
    return {y, x.depth + 1};
  }
};

}  // namespace carve

template <class T>
struct std::numeric_limits<carve::counting<T>> : std::numeric_limits<T> {};

template <class T>
struct Eigen::NumTraits<carve::counting<T>>
    : carve::eigen_traits<carve::counting<T>, 2, 2> {};
