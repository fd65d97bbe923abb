/// @file
/// How wrong is a tensor, and is that more than its number formats explain?
///
/// A kernel's error is measured in units of the error that the rounding replay
/// makes on the same inputs: the same algorithm with the same roundings, and
/// nothing else. The ratio of the two has no scale and is about 1 for a sound
/// kernel, whatever the format, the size or the gates.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "carve/double_double.hpp"
#include "carve/error.hpp"
#include "carve/precision.hpp"

namespace carve {

/// `x` rounded once to format `f`, to nearest even: all 106 bits decide, so a
/// number just beside the middle of two neighbours goes to the right one.
inline double rounded(format f, double_double x) {
  if (f == format::f64 || x.lo == 0 || !std::isfinite(x.hi)) {
    return round_to(f, x.hi);
  }
  // To odd first: the last bit set stands for "and something more", which is
  // all that a second rounding to fewer bits needs to know.
  const bool beyond = (x.lo < 0) != (x.hi < 0);
  const double cut = beyond ? std::nextafter(x.hi, 0.0) : x.hi;
  return round_to(f, std::bit_cast<double>(std::bit_cast<std::uint64_t>(cut) |
                                           std::uint64_t{1}));
}

/// The error of a tensor's finite elements, and how many are not finite.
struct tensor_error {
  double rms = 0;                   ///< \f$ \sqrt{\sum_i (x_i - y_i)^2 / n} \f$
  double largest = 0;               ///< \f$ \max_i |x_i - y_i| \f$
  std::size_t worst = 0;            ///< where the largest is, counted row-major
  std::size_t nonfinite = 0;        ///< elements that are NaN or infinite
  std::size_t first_nonfinite = 0;  ///< the first of them
};

/// Root of the mean square; neither overflows nor underflows.
inline double root_mean_square(std::span<const double> x) {
  double largest = 0, sum = 0;
  for (const double e : x) largest = std::max(largest, std::fabs(e));
  if (largest == 0 || !std::isfinite(largest)) return largest;
  for (const double e : x) sum += (e / largest) * (e / largest);
  return largest * std::sqrt(sum / static_cast<double>(x.size()));
}

/// The error of `x` against `y`, subtracted in double-double: nothing cancels.
/// @throws carve::error  when the two differ in length.
inline tensor_error measure(std::span<const double> x,
                            std::span<const double_double> y) {
  if (x.size() != y.size()) {
    throw error("expected ", y.size(), " elements, got ", x.size());
  }
  tensor_error e;
  std::vector<double> differences;
  differences.reserve(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double d = std::fabs(static_cast<double>(double_double(x[i]) - y[i]));
    if (!std::isfinite(d)) {
      if (e.nonfinite++ == 0) e.first_nonfinite = i;
      continue;
    }
    differences.push_back(d);
    if (d > e.largest) e.largest = d, e.worst = i;
  }
  e.rms = root_mean_square(differences);
  return e;
}

/// How many times the replay's error a tensor's may be.
///
/// 1.5 for the RMS is wide: kernels of a public library measure 0.99 to 1.10.
/// The largest element is a noisier number: replays with another chunk length
/// are as sound as the standard one, and their largest errors differ from its
/// by more than a factor of 2, never by 4. docs/rounding.md has the evidence.
struct tolerance {
  double rms = 1.5;      ///< of the root mean square
  double largest = 4.0;  ///< of the largest error
};

/// Why a tensor does not pass.
enum class fault {
  none,
  nonfinite,  ///< a NaN or an infinity
  zeros,      ///< nothing but zeros, where the exact result has others
  rms,        ///< the RMS error is beyond the tolerance
  largest,    ///< the largest error is beyond the tolerance
  /// Not a fault: sound ways leave no correct digit, and neither does this.
  undetermined,
};

/// The error that sound ways of computing a tensor make.
struct error_unit {
  double rms = 0;      ///< root of the mean square
  double largest = 0;  ///< of one element
};

/// One tensor against the exact result and the unit.
struct comparison {
  tensor_error actual;         ///< of the tensor
  error_unit unit;             ///< as given, no floor applied
  double rel_rms = 0;          ///< RMS error / RMS of the exact result
  double unit_rel_rms = 0;     ///< the same of the unit
  double ratio = 0;            ///< RMS error / the unit
  double max_abs = 0;          ///< largest error
  double max_ratio = 0;        ///< largest error / the unit's
  double replay_distance = 0;  ///< rms(tensor - replay) / the replay's error
  std::size_t worst = 0;       ///< of max_abs; the first non-finite, if any
  carve::fault fault = fault::none;  ///< why it fails, if it does

  /// Nothing is wrong.
  bool pass() const { return fault == fault::none; }
  /// Pass or fail: something can be said.
  bool judged() const { return fault != fault::undetermined; }
  /// Something is wrong.
  bool fails() const { return judged() && !pass(); }
};

/// Below this no error counts: the smallest normal number of the format, since
/// subnormals may be flushed to zero; for f16, whose subnormals every machine
/// keeps, half the smallest subnormal.
constexpr double negligible_error(format storage) {
  return storage == format::f16 ? smallest_subnormal(storage) / 2
                                : smallest_normal(storage);
}

namespace detail {

/// `a / b`; zero over zero is zero and anything else over zero infinite.
inline double over(double a, double b) {
  return b > 0 ? a / b : a == 0 ? 0 : std::numeric_limits<double>::infinity();
}

}  // namespace detail

/// Judges `actual`, stored in format `storage`, by a unit.
///
/// With e the unit's RMS and r the RMS of the exact result, the RMS ratio is
/// \f$ \mathrm{rms}(x - y) / \max(e, \frac u2 r, m) \f$, where u is the unit
/// roundoff of `storage` and m its negligible_error. \f$ \frac u2 |y| \f$ is
/// the least that half a unit in the last place of y can be. The floor acts
/// where the sound ways happen to be exact, or nearly: no kernel that rounds to
/// `storage` should need to be better. The ratio of the largest errors has the
/// same floor with the largest |y| for r. So a tensor that should be all zeros
/// must be zero, or within the tolerance of the unit.
///
/// - A NaN or an infinity fails; its error is infinite. (`exact` is finite.)
/// - Zeros alone fail, unless the exact result itself rounds to zeros or is
///   negligible.
/// - The exact result rounded to `storage`, each element, passes.
/// - Where e exceeds r / 10, sound ways have no correct digit. Then a tensor
///   within r / 100 passes, one beyond ten times the tolerance fails, and of
///   one between nothing can be said.
/// - Otherwise both ratios decide.
///
/// @param[in] exact   the exact result, finite
/// @param[in] actual  the tensor judged
/// @throws carve::error  when they differ in length.
inline comparison compare(std::span<const double_double> exact,
                          std::span<const double> actual,
                          const error_unit& unit, format storage,
                          const tolerance& limit = {}) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  comparison c;
  c.actual = measure(actual, exact);
  c.unit = unit;
  const double negligible = negligible_error(storage);
  std::vector<double> size;
  double largest = 0;
  bool faithful = true, zeros = true, zero_expected = true;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double nearest = rounded(storage, exact[i]);
    faithful = faithful && actual[i] == nearest;
    zeros = zeros && actual[i] == 0;
    size.push_back(static_cast<double>(exact[i]));
    zero_expected =
        zero_expected && (nearest == 0 || std::fabs(size.back()) < negligible);
    largest = std::max(largest, std::fabs(size.back()));
  }
  const double r = root_mean_square(size), half = unit_roundoff(storage) / 2;
  const bool broken = c.actual.nonfinite > 0;
  const double rms = broken ? infinity : c.actual.rms;
  c.max_abs = broken ? infinity : c.actual.largest;
  c.worst = broken ? c.actual.first_nonfinite : c.actual.worst;
  c.rel_rms = detail::over(rms, r);
  c.unit_rel_rms = detail::over(unit.rms, r);
  c.ratio = rms / std::max({unit.rms, half * r, negligible});
  c.max_ratio =
      c.max_abs / std::max({unit.largest, half * largest, negligible});
  const bool no_digit = unit.rms > r / 10 && r >= negligible;
  if (broken) {
    c.fault = fault::nonfinite;
  } else if (zeros && !zero_expected) {
    c.fault = fault::zeros;
  } else if (faithful) {
    c.fault = fault::none;
  } else if (no_digit && rms > r / 100 && c.ratio <= 10 * limit.rms &&
             c.max_ratio <= 10 * limit.largest) {
    c.fault = fault::undetermined;
  } else if (!(c.ratio <= limit.rms)) {
    c.fault = fault::rms;
  } else if (!(c.max_ratio <= limit.largest)) {
    c.fault = fault::largest;
  }
  return c;
}

/// The distance of a tensor from a replay, in units of the replay's own error
/// (floors as in compare()): 0 for the same numbers, about 1.4 for two sound
/// tensors that round independently, infinite with a NaN in the tensor.
inline double distance_from(std::span<const double> replay,
                            std::span<const double_double> exact,
                            std::span<const double> actual, format storage) {
  const tensor_error of_replay = measure(replay, exact);
  std::vector<double> size, apart;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    size.push_back(static_cast<double>(exact[i]));
    const double d = actual[i] - replay[i];
    if (!std::isfinite(actual[i])) {
      return std::numeric_limits<double>::infinity();
    }
    if (std::isfinite(d)) apart.push_back(d);
  }
  return root_mean_square(apart) /
         std::max({of_replay.rms,
                   unit_roundoff(storage) / 2 * root_mean_square(size),
                   negligible_error(storage)});
}

/// Judges `actual` by a single replay: its error is the unit. Elements of the
/// replay that are not finite allow nothing: they are left out of its error.
/// @param[in] replay  the replay's tensor, rounded to `storage`
/// @throws carve::error  when they differ in length.
inline comparison compare(std::span<const double_double> exact,
                          std::span<const double> actual,
                          std::span<const double> replay, format storage,
                          const tolerance& limit = {}) {
  const tensor_error e = measure(replay, exact);
  comparison c =
      compare(exact, actual, error_unit{e.rms, e.largest}, storage, limit);
  c.replay_distance = distance_from(replay, exact, actual, storage);
  return c;
}

}  // namespace carve
