/// @file
/// What is a matrix?
#pragma once

#include <Eigen/Core>

namespace carve {

/// Dense row-major matrix over any scalar.
template <class T>
using matrix =
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace carve
