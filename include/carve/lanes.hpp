/// @file
/// How do scalars lie in memory so that loops over them vectorise?
///
/// `lanes<T>` owns n scalars, `lanes_view<T>` points at some of them and is
/// passed by value into loops.  A double-double is stored planar, all high
/// parts and then all low parts, because a vector register takes either from
/// one load.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <new>
#include <type_traits>
#include <vector>

#include "carve/double_double.hpp"
#include "carve/macros.hpp"

namespace carve {

namespace detail {

/// Begins every array on a cache line, so full vector loads never straddle.
template <class T>
struct aligned_allocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{alignof(T) > 64 ? alignof(T)
                                                              : 64};

  aligned_allocator() = default;
  template <class U>
  aligned_allocator(const aligned_allocator<U>&) {}

  T* allocate(std::size_t n) {
    return static_cast<T*>(::operator new(n * sizeof(T), alignment));
  }
  void deallocate(T* p, std::size_t) { ::operator delete(p, alignment); }

  friend bool operator==(aligned_allocator, aligned_allocator) { return true; }
};

template <class T>
using aligned_vector = std::vector<T, aligned_allocator<T>>;

}  // namespace detail

/// Points at scalars of type T, which may be const; owns nothing.  Element i
/// exists as long as the `lanes` behind it do.
template <class T>
class lanes_view {
 public:
  using value_type = std::remove_const_t<T>;  ///< T, not const

  lanes_view() = default;
  /// Begins at `first`.
  explicit lanes_view(T* first) : first_(first) {}
  /// The same view, read-only.
  CARVE_INLINE operator lanes_view<const T>() const
      requires(!std::is_const_v<T>) {
    return lanes_view<const T>(first_);
  }

  /// Element i; for a double-double the value, or a double_double_lane.
  CARVE_INLINE T& operator[](std::ptrdiff_t i) const { return first_[i]; }

  /// The view that begins at element `offset`.
  CARVE_INLINE lanes_view sub(std::ptrdiff_t offset) const {
    return lanes_view(first_ + offset);
  }

 private:
  T* first_ = nullptr;
};

/// Stands for one double-double in planar storage; name the type when keeping
/// a value (`double_double x = a[i]`), since `auto x` would keep the place.
class double_double_lane {
 public:
  /// The place of the two parts.
  CARVE_INLINE double_double_lane(double* high, double* low)
      : high_(high), low_(low) {}
  /// The same place, not the value.
  double_double_lane(const double_double_lane&) = default;

  /// The value that stands there.
  CARVE_INLINE operator double_double() const { return {*high_, *low_}; }

  /// Writes the value through to the place, as the arithmetic of double_double
  /// gives it.
  ///@{
  CARVE_INLINE const double_double_lane& operator=(double_double x) const {
    *high_ = x.hi;
    *low_ = x.lo;
    return *this;
  }
  CARVE_INLINE const double_double_lane& operator=(
      const double_double_lane& x) const {
    return *this = double_double(x);
  }
  CARVE_INLINE const double_double_lane& operator+=(double_double x) const {
    return *this = *this + x;
  }
  CARVE_INLINE const double_double_lane& operator-=(double_double x) const {
    return *this = *this - x;
  }
  CARVE_INLINE const double_double_lane& operator*=(double_double x) const {
    return *this = *this * x;
  }
  CARVE_INLINE const double_double_lane& operator/=(double_double x) const {
    return *this = *this / x;
  }
  ///@}

 private:
  double *high_, *low_;
};

template <>
class lanes_view<const double_double> {
 public:
  using value_type = double_double;

  lanes_view() = default;
  CARVE_INLINE lanes_view(const double* high, const double* low)
      : high_(high), low_(low) {}

  CARVE_INLINE double_double operator[](std::ptrdiff_t i) const {
    return {high_[i], low_[i]};
  }
  CARVE_INLINE lanes_view sub(std::ptrdiff_t offset) const {
    return {high_ + offset, low_ + offset};
  }

 private:
  const double *high_ = nullptr, *low_ = nullptr;
};

template <>
class lanes_view<double_double> {
 public:
  using value_type = double_double;

  lanes_view() = default;
  CARVE_INLINE lanes_view(double* high, double* low) : high_(high), low_(low) {}
  CARVE_INLINE operator lanes_view<const double_double>() const {
    return {high_, low_};
  }

  CARVE_INLINE double_double_lane operator[](std::ptrdiff_t i) const {
    return {high_ + i, low_ + i};
  }
  CARVE_INLINE lanes_view sub(std::ptrdiff_t offset) const {
    return {high_ + offset, low_ + offset};
  }

 private:
  double *high_ = nullptr, *low_ = nullptr;
};

/// n scalars, zero at first, in memory aligned for vector loads.
template <class T>
class lanes {
 public:
  lanes() = default;
  /// n zeros.
  explicit lanes(std::ptrdiff_t n)
      : values_(static_cast<std::size_t>(n), T(0)) {}

  /// The number of scalars.
  std::size_t size() const { return values_.size(); }
  /// Element i; of a double-double the value, or a double_double_lane.
  ///@{
  T& operator[](std::ptrdiff_t i) { return *(values_.data() + i); }
  const T& operator[](std::ptrdiff_t i) const { return *(values_.data() + i); }
  ///@}
  /// Sets every element to x.
  void fill(const T& x) { std::fill(values_.begin(), values_.end(), x); }

  /// A view of all elements.
  ///@{
  lanes_view<T> view() { return lanes_view<T>(values_.data()); }
  lanes_view<const T> view() const {
    return lanes_view<const T>(values_.data());
  }
  ///@}

 private:
  detail::aligned_vector<T> values_;
};

template <>
class lanes<double_double> {
 public:
  lanes() = default;
  explicit lanes(std::ptrdiff_t n)
      : high_(static_cast<std::size_t>(n)), low_(high_.size()) {}

  std::size_t size() const { return high_.size(); }
  double_double_lane operator[](std::ptrdiff_t i) {
    return {high_.data() + i, low_.data() + i};
  }
  double_double operator[](std::ptrdiff_t i) const {
    return {*(high_.data() + i), *(low_.data() + i)};
  }
  void fill(double_double x) {
    std::fill(high_.begin(), high_.end(), x.hi);
    std::fill(low_.begin(), low_.end(), x.lo);
  }

  lanes_view<double_double> view() { return {high_.data(), low_.data()}; }
  lanes_view<const double_double> view() const {
    return {high_.data(), low_.data()};
  }

 private:
  detail::aligned_vector<double> high_, low_;
};

/// W scalars side by side, not set at first: as many columns as a loop of
/// constant length keeps in registers.  W = 1 for a scalar without vector
/// instructions.
template <class T, std::ptrdiff_t W>
class alignas(W > 1 ? 64 : alignof(T)) tile {
 public:
  using value_type = T;  ///< of one element

  tile() = default;
  /// Every element x.
  CARVE_INLINE explicit tile(const T& x) { fill(x); }
  /// Element i; of a double-double the value, or a double_double_lane.
  ///@{
  CARVE_INLINE T& operator[](std::ptrdiff_t i) { return values_[i]; }
  CARVE_INLINE const T& operator[](std::ptrdiff_t i) const {
    return values_[i];
  }
  ///@}
  /// Sets every element to x.
  CARVE_INLINE void fill(const T& x) {
    for (std::ptrdiff_t i = 0; i < W; ++i) values_[i] = x;
  }

 private:
  T values_[static_cast<std::size_t>(W)];
};

template <std::ptrdiff_t W>
class alignas(64) tile<double_double, W> {
 public:
  using value_type = double_double;

  tile() = default;
  CARVE_INLINE explicit tile(double_double x) { fill(x); }
  CARVE_INLINE double_double_lane operator[](std::ptrdiff_t i) {
    return {high_ + i, low_ + i};
  }
  CARVE_INLINE double_double operator[](std::ptrdiff_t i) const {
    return {high_[i], low_[i]};
  }
  CARVE_INLINE void fill(double_double x) {
    for (std::ptrdiff_t i = 0; i < W; ++i) high_[i] = x.hi;
    for (std::ptrdiff_t i = 0; i < W; ++i) low_[i] = x.lo;
  }

 private:
  double high_[static_cast<std::size_t>(W)], low_[static_cast<std::size_t>(W)];
};

namespace detail {

template <std::ptrdiff_t P, std::ptrdiff_t Half, class Tile>
CARVE_INLINE void fold_halves(Tile& x) {
  using T = typename Tile::value_type;
  CARVE_IVDEP
  for (std::ptrdiff_t i = 0; i < Half; ++i) x[i] = T(x[i]) + T(x[Half + i]);
  if constexpr (Half > P) fold_halves<P, Half / 2>(x);
}

#if defined(__GNUC__)
// The same sums.  GCC unrolls the short loops above before it vectorises, and
// then takes hardware scalars one by one.
template <std::ptrdiff_t P, std::floating_point T, std::ptrdiff_t W>
CARVE_INLINE void fold_packs(tile<T, W>& x) {
  typedef T pack __attribute__((
      vector_size(static_cast<std::size_t>(P) * sizeof(T)), may_alias));
  pack y[static_cast<std::size_t>(W / P)];
  for (std::ptrdiff_t m = 0; m < W / P; ++m) {
    y[m] = *reinterpret_cast<const pack*>(&x[m * P]);
  }
  for (std::ptrdiff_t half = W / P / 2; half > 0; half /= 2) {
    for (std::ptrdiff_t m = 0; m < half; ++m) y[m] += y[half + m];
  }
  *reinterpret_cast<pack*>(&x[0]) = y[0];
}
#endif

}  // namespace detail

/// Adds the halves of a tile onto each other until P sums are left in its first
/// P places.
template <std::ptrdiff_t P, class T, std::ptrdiff_t W>
CARVE_INLINE void fold(tile<T, W>& x) {
#if defined(__GNUC__)
  if constexpr (std::floating_point<T> && W > P) {
    return detail::fold_packs<P>(x);
  }
#endif
  if constexpr (W > P) detail::fold_halves<P, W / 2>(x);
}

}  // namespace carve
