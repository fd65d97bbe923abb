/// @file
/// How does a double-double become decimal text, and text a double-double?
///
/// Every double is a finite decimal fraction, so both ways go through exact
/// decimal arithmetic and round once.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ostream>
#include <string>
#include <string_view>

#include "carve/double_double.hpp"
#include "carve/error.hpp"

namespace carve {

namespace detail {

/// A decimal number with digits of signed value, so that a sum needs carries
/// only at its end.  `places[i]` weighs 10^(top - 1 - i).
class decimal {
 public:
  static constexpr int top = 330, size = top + 1200;

  /// Adds `sign` times a finite double, exactly.
  void add(double x, int sign) {
    std::array<char, 1500> buffer;
    std::snprintf(buffer.data(), buffer.size(), "%.1074f", std::fabs(x));
    add_digits(buffer.data(), 0, std::signbit(x) ? -sign : sign);
  }

  /// Adds a plain decimal such as "12.5", times 10^exponent.  Digits below
  /// 10^-1200 are dropped: they cannot move a double-double by one bit.
  void add_digits(std::string_view digits, int exponent, int sign) {
    int at = top - exponent -
             static_cast<int>(std::min(digits.find('.'), digits.size()));
    for (const char digit : digits) {
      if (digit == '.') continue;
      if (digit != '0' && at < 0) throw error("number out of range");
      if (at >= 0 && at < size) places_[at] += sign * (digit - '0');
      ++at;
    }
  }

  /// Carries until every digit is in 0..9; returns the sign, -1, 0 or 1.
  int normalise() {
    const auto first = std::find_if(places_, places_ + size,
                                    [](int digit) { return digit != 0; });
    if (first == places_ + size) return 0;
    carry();
    // A negative number leaves its borrow in the first place.
    if (places_[0] >= 0) return 1;
    for (int& digit : places_) digit = -digit;
    carry();
    return -1;
  }

  /// Position of the first digit that is not zero.
  int first() const {
    int i = 0;
    while (i < size && places_[i] == 0) ++i;
    return i;
  }

  /// Rounds a positive number to `count` digits, half away from zero.
  void round(int count) {
    const int end = first() + count;
    if (end >= size) return;
    if (places_[end] >= 5) ++places_[end - 1];
    std::fill(places_ + end, places_ + size, 0);
    carry();
  }

  int operator[](int i) const { return i < size ? places_[i] : 0; }

  /// The nearest double of a non-negative number.
  double nearest() const {
    std::string text = "0.";
    for (const int digit : places_) text += static_cast<char>('0' + digit);
    return std::strtod((text + "e" + std::to_string(top)).c_str(), nullptr);
  }

 private:
  void carry() {
    for (int i = size - 1; i > 0; --i) {
      int over = places_[i] / 10;
      if (places_[i] < over * 10) --over;
      places_[i] -= 10 * over;
      places_[i - 1] += over;
    }
  }

  int places_[size] = {};
};

}  // namespace detail

/// Scientific notation with `digits` significant digits, correctly rounded:
/// `1.4142135623730950488016887242097e+00`.
inline std::string to_string(double_double x, int digits = 32) {
  if (!carve::isfinite(x)) {
    return std::isnan(x.hi) || std::isnan(x.lo) ? "nan"
           : x.hi < 0                           ? "-inf"
                                                : "inf";
  }
  detail::decimal exact;
  exact.add(x.hi, 1);
  exact.add(x.lo, 1);
  const int sign = exact.normalise();
  int exponent = 0, at = 0;
  if (sign != 0) {
    exact.round(digits);
    at = exact.first();
    exponent = detail::decimal::top - 1 - at;
  }
  std::string out = sign < 0 || (sign == 0 && std::signbit(x.hi)) ? "-" : "";
  for (int i = 0; i < digits; ++i) {
    if (i == 1) out += '.';
    out += static_cast<char>('0' + exact[at + i]);
  }
  std::array<char, 16> tail;
  std::snprintf(tail.data(), tail.size(), "e%+03d", exponent);
  return out + tail.data();
}

/// Reads decimal text such as `-12.5e-3`, `inf` or `nan`; both parts are
/// correctly rounded.  Throws `error` when the text is no number or its
/// exponent is beyond the range of a double.
inline double_double double_double_from_string(const std::string& text) {
  char* end = nullptr;
  const double high = std::strtod(text.c_str(), &end);
  const std::string_view all = text;
  if (all.empty() || *end != '\0' || end != text.c_str() + text.size() ||
      all.find_first_of("xXpP (") != std::string_view::npos) {
    throw error("expected a decimal number, got '", text, "'");
  }
  if (all.find_first_of("nN") != std::string_view::npos) return high;
  if (!std::isfinite(high)) throw error("number out of range: ", text);

  const bool negative = all[0] == '-';
  const std::size_t start = negative || all[0] == '+' ? 1 : 0;
  const std::size_t mark = std::min(all.find_first_of("eE"), all.size());
  const int exponent =
      mark < all.size() ? std::atoi(text.c_str() + mark + 1) : 0;
  if (std::abs(exponent) > 5000) {
    if (high == 0) return high;
    throw error("number out of range: ", text);
  }
  detail::decimal rest;
  rest.add_digits(all.substr(start, mark - start), exponent, negative ? -1 : 1);
  rest.add(high, -1);
  const int sign = rest.normalise();
  return sign == 0 ? double_double(high)
                   : double_double(high, sign * rest.nearest());
}

/// As many digits as the stream's precision, but all 32 at its default of 6.
inline std::ostream& operator<<(std::ostream& out, double_double x) {
  const int digits = static_cast<int>(out.precision());
  return out << to_string(x, digits == 6 || digits < 1 ? 32 : digits);
}

}  // namespace carve
