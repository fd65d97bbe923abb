/// @file
/// The unit triangular system of a chunk: the inverse of `I + L`, `L` strictly
/// lower, in the three ways that kernels use.
#pragma once

#include <algorithm>

#include "carve/index.hpp"
#include "carve/matrix.hpp"

namespace carve {

/// Rounds nothing: the arithmetic of the scalar itself.
struct no_rounding {
  /// Leaves the matrix as it is.
  template <class M>
  void operator()(M&) const {}
};

/// `(I + L)^-1` by forward substitution, row by row; `C^3 / 6` multiply-adds.
/// @param[in] L  C×C, read strictly below the diagonal.
/// @return T, unit lower triangular: `T_ts = -sum_{s<=m<t} L_tm T_ms`.
template <class T>
matrix<T> inverse_by_substitution(const matrix<T>& L) {
  const index_t C = L.rows();
  matrix<T> inverse = matrix<T>::Constant(C, C, T(0));
  for (index_t t = 0; t < C; ++t) {
    for (index_t m = 0; m < t; ++m) {
      const T l = L(t, m);
      for (index_t s = 0; s <= m; ++s) inverse(t, s) -= l * inverse(m, s);
    }
    inverse(t, t) = T(1);
  }
  return inverse;
}

/// `(I + L)^-1` from inverted diagonal blocks: block (i, j) below them is
/// `X_ij = -X_ii sum_{j<=m<i} L_im X_mj`, one block diagonal after the other.
/// @param[in] block  rows of the blocks inverted by substitution; at least 1.
/// @param[in] round  called on every factor of a product of blocks.
template <class T, class Round = no_rounding>
matrix<T> inverse_by_blocks(const matrix<T>& L, index_t block,
                            const Round& round = {}) {
  const index_t C = L.rows();
  matrix<T> inverse = matrix<T>::Constant(C, C, T(0));
  for (index_t t = 0; t < C; t += block) {
    const index_t n = std::min(block, C - t);
    inverse.block(t, t, n, n) = inverse_by_substitution<T>(L.block(t, t, n, n));
  }
  const auto factor = [&](const matrix<T>& from, index_t t, index_t s) {
    matrix<T> x = from.block(t, s, std::min(block, C - t), block);
    round(x);
    return x;
  };
  for (index_t d = block; d < C; d += block) {
    for (index_t t = d; t < C; t += block) {
      const index_t n = std::min(block, C - t), s = t - d;
      matrix<T> diagonal = inverse.block(t, t, n, n);
      round(diagonal);
      matrix<T> sum;
      if (d == block) {
        // Associated to the left, as the kernels have it.
        sum = diagonal * factor(L, t, s);
        round(sum);
        inverse.block(t, s, n, block) = -(sum * factor(inverse, s, s));
        continue;
      }
      sum = factor(L, t, s) * factor(inverse, s, s);
      for (index_t m = s + block; m < t; m += block) {
        sum += factor(L, t, m) * factor(inverse, m, s);
      }
      round(sum);
      inverse.block(t, s, n, block) = -(diagonal * sum);
    }
  }
  return inverse;
}

/// `(I + L)^-1` by the Neumann series in product form,
/// `(I - L)(I + L^2)(I + L^4)...`, finite because `L^C = 0`.
/// @param[in] round  called on every matrix that enters or leaves a product.
template <class T, class Round = no_rounding>
matrix<T> inverse_by_doubling(const matrix<T>& L, const Round& round = {}) {
  const index_t C = L.rows();
  const matrix<T> one = matrix<T>::Identity(C, C);
  matrix<T> power = L;
  for (index_t t = 0; t < C; ++t) {
    for (index_t s = t; s < C; ++s) power(t, s) = T(0);
  }
  round(power);
  matrix<T> inverse = one - power;
  for (index_t n = 2; n < C; n *= 2) {
    power = matrix<T>(power * power);
    round(power);
    round(inverse);
    inverse = matrix<T>(inverse * (one + power));
  }
  return inverse;
}

}  // namespace carve
