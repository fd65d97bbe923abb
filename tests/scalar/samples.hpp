/// @file
/// Which elements of a scalar are tried?
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>

#include "carve/scalar.hpp"

namespace carve::samples {

/// The seed is fixed: a failure repeats.
using generator = std::mt19937_64;

/// Uniform in (-1, 1), never zero.
inline double signed_unit(generator& bits) {
  const double x = (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53;
  return bits() & 1 ? x : -x;
}

/// An element without structure: every digit random, magnitudes from 2^-20
/// to 2^20 where the scalar has them.
template <class T>
T any(generator& bits) {
  using traits = scalar_traits<T>;
  if constexpr (requires { T::uniform(bits); }) {
    return T::uniform(bits);
  } else if constexpr (requires(T x) { x.derivative; }) {
    using inner = std::remove_cvref_t<decltype(T().value)>;
    const inner value = any<inner>(bits);
    return {value, any<inner>(bits)};
  } else if constexpr (traits::exact) {
    const auto p = static_cast<long long>(bits() % 2001) - 1000;
    return traits::from_ratio(p, static_cast<long long>(bits() % 999) + 1);
  } else {
    // One double for each 15 digits, each below the last bit of the former.
    T x = traits::from_double(0);
    double weight = std::ldexp(1.0, static_cast<int>(bits() % 41) - 20);
    for (int digits = 0; digits < traits::digits; digits += 15) {
      x += traits::from_double(weight * signed_unit(bits));
      weight *= 0x1p-53;
    }
    return x;
  }
}

/// As `any`, with a divisor's value: not zero.
template <class T>
T invertible(generator& bits) {
  for (;;) {
    const T x = any<T>(bits);
    if constexpr (requires { x.derivative; }) {
      if (!(x.value == decltype(x.value)(0))) return x;
    } else {
      if (!(x == T(0))) return x;
    }
  }
}

}  // namespace carve::samples
