/// @file
/// What would 100 digits say?
#pragma once

#include "carve/double_double.hpp"
#include "carve/multiprecision.hpp"

namespace carve::exact {

/// The same number with 100 digits; exact for every scalar of fewer.
template <class T>
real100 widen(const T& x) {
  if constexpr (std::is_same_v<T, double_double>) {
    return real100(x.hi) + real100(x.lo);
  } else {
    return real100(x);
  }
}

/// |x - exact| / |exact|; zero when both are zero.
template <class T>
double relative_error(const T& x, const real100& expected) {
  const real100 difference = abs(widen(x) - expected);
  if (difference == 0) return 0;
  return static_cast<double>(difference / abs(expected));
}

/// The largest error seen so far, for one assertion at the end; a NaN stays.
struct worst {
  double value = 0;
  void see(double error) {
    if (!(value != value) && !(error <= value)) value = error;
  }
};

}  // namespace carve::exact
