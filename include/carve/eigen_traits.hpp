/// @file
/// What must Eigen know of a scalar before it may stand in a matrix?
///
/// Eigen itself is not included: its traits template is declared here and
/// specialised next to each scalar.
#pragma once

#include <limits>

#include "carve/scalar.hpp"

namespace Eigen {
template <typename T>
struct NumTraits;
}  // namespace Eigen

namespace carve {

/// Base of a specialisation of `Eigen::NumTraits`.  An exact scalar has
/// `epsilon() = 0` and `digits10() = 0`: products and triangular solves are
/// meaningful for it, norms and decompositions with pivots are not.
template <class T, int add_cost, int multiply_cost>
struct eigen_traits {
  /// The types that Eigen derives from a scalar: all are the scalar itself.
  ///@{
  using Real = T;
  using NonInteger = T;
  using Nested = T;
  using Literal = T;
  ///@}

  enum {
    IsComplex = 0,
    IsInteger = 0,
    IsSigned = 1,
    RequireInitialization = 1,
    ReadCost = 1,
    AddCost = add_cost,
    MulCost = multiply_cost
  };

  /// Distance from one to the next number; 0 for an exact scalar.
  static T epsilon() {
    if constexpr (scalar_traits<T>::exact) {
      return T(0);
    } else {
      return std::numeric_limits<T>::epsilon();
    }
  }
  /// What Eigen's fuzzy comparisons call equal: 1000 epsilon.
  static T dummy_precision() { return epsilon() * T(1000); }
  /// As in `std::numeric_limits<T>`.
  ///@{
  static T highest() { return std::numeric_limits<T>::max(); }
  static T lowest() { return std::numeric_limits<T>::lowest(); }
  static T infinity() { return std::numeric_limits<T>::infinity(); }
  static T quiet_NaN() { return std::numeric_limits<T>::quiet_NaN(); }
  ///@}
  /// Decimal digits carried, and digits that print a number without loss; 0 for
  /// an exact scalar.
  ///@{
  static constexpr int digits10() { return scalar_traits<T>::digits; }
  static constexpr int max_digits10() {
    return scalar_traits<T>::exact ? 0 : scalar_traits<T>::digits + 2;
  }
  ///@}
};

}  // namespace carve
