/// @file
/// What do claims about stability share?  Exact linear algebra in a few
/// dimensions, the matrix of one erase step, and unit keys over the rationals.
#pragma once

#include <vector>

#include "carve/head.hpp"
#include "carve/multiprecision.hpp"
#include "carve/tiled_walk.hpp"
#include "carve/triangular.hpp"
#include "law.hpp"

namespace carve::proofs {

/// `I - k (b * k)^T / |k|^2`, one key-axis erase step without decay; rational
/// for every rational k, of whatever length.
template <class T>
matrix<T> erase_step(const std::vector<T>& key, const std::vector<T>& gate) {
  const auto K = static_cast<index_t>(key.size());
  T norm(0);
  for (const T& x : key) norm += x * x;
  matrix<T> step = matrix<T>::Identity(K, K);
  for (index_t i = 0; i < K; ++i) {
    for (index_t j = 0; j < K; ++j) {
      step(i, j) -= key[i] * gate[j] * key[j] / norm;
    }
  }
  return step;
}

/// By the first row; any commutative ring, a handful of rows.
template <class T>
T determinant(const matrix<T>& m) {
  const index_t n = m.rows();
  if (n == 0) return T(1);
  T sum(0);
  for (index_t j = 0; j < n; ++j) {
    matrix<T> minor(n - 1, n - 1);
    for (index_t i = 1; i < n; ++i) {
      for (index_t l = 0; l < n; ++l) {
        if (l != j) minor(i - 1, l < j ? l : l - 1) = m(i, l);
      }
    }
    const T term = m(0, j) * determinant(minor);
    if (j % 2 == 0) {
      sum += term;
    } else {
      sum -= term;
    }
  }
  return sum;
}

/// `det(x I - m)`.
template <class T>
T characteristic(const matrix<T>& m, const T& x) {
  matrix<T> shifted = -m;
  for (index_t i = 0; i < m.rows(); ++i) shifted(i, i) += x;
  return determinant(shifted);
}

/// Whether `x^T m x >= 0` for all x, by elimination; m is symmetric.
inline bool positive_semidefinite(matrix<rational> m) {
  const index_t n = m.rows();
  for (index_t i = 0; i < n; ++i) {
    if (m(i, i) < 0) return false;
    for (index_t j = i + 1; j < n; ++j) {
      if (m(i, i) == 0) {
        if (m(i, j) != 0) return false;
        continue;
      }
      const rational factor = m(j, i) / m(i, i);
      for (index_t l = i; l < n; ++l) m(j, l) -= factor * m(i, l);
    }
  }
  return true;
}

/// The step takes no vector to one longer than `sqrt(bound)` times as long.
inline bool norm_squared_within(const matrix<rational>& step,
                                const rational& bound) {
  const index_t n = step.cols();
  return positive_semidefinite(matrix<rational>::Identity(n, n) * bound -
                               matrix<rational>(step.transpose() * step));
}

inline rational fraction(int p, int q) { return rational(p) / rational(q); }

/// A fraction in [low, high] with a small denominator, the ends included.
inline rational random_fraction(generator& rng, int low, int high) {
  const int q = integer(rng, 1, 8);
  return fraction(integer(rng, low * q, high * q), q);
}

inline std::vector<rational> random_fractions(generator& rng, int n, int low,
                                              int high) {
  std::vector<rational> x(n);
  for (rational& y : x) y = random_fraction(rng, low, high);
  return x;
}

/// A vector of small integers, not all zero.
inline std::vector<rational> random_key(generator& rng, int n) {
  std::vector<rational> x(n);
  bool zero = true;
  while (zero) {
    for (rational& y : x) {
      y = integer(rng, -4, 4);
      zero = zero && y == 0;
    }
  }
  return x;
}

/// A rational vector of length one: a unit vector mirrored at a random plane.
inline std::vector<rational> random_unit(generator& rng, int n) {
  std::vector<rational> x = random_key(rng, n);
  rational norm = 0;
  for (const rational& y : x) norm += y * y;
  const int axis = integer(rng, 0, n - 1);
  const rational along = x[axis];
  for (rational& y : x) y *= -2 * along / norm;
  x[axis] += 1;
  return x;
}

/// `sum_ij weight_i S_ij^2`; no weights: the squared Frobenius norm.
inline rational squared_norm(const matrix<rational>& S,
                             const std::vector<rational>& weight = {}) {
  rational sum = 0;
  for (index_t i = 0; i < S.rows(); ++i) {
    for (index_t j = 0; j < S.cols(); ++j) {
      sum += (weight.empty() ? rational(1) : weight[i]) * S(i, j) * S(i, j);
    }
  }
  return sum;
}

/// A head that writes nothing, over the rationals: what its gates do to a
/// state.
struct silent_head {
  index_t tokens = 0, keys = 0, values = 0;
  std::vector<rational> key{}, decay{}, gate{};  ///< [T,K]; empty: absent
  std::vector<rational> value_gate{};            ///< [T,V]; empty: absent

  head<rational> view(const matrix<rational>& start) const {
    head<rational> p;
    p.tokens = tokens, p.keys = keys, p.values = values;
    p.k = {key.data(), keys, 1};
    if (!decay.empty()) p.a = {decay.data(), keys, 1};
    if (!gate.empty()) p.b = {gate.data(), keys, 1};
    if (!value_gate.empty()) p.e = {value_gate.data(), values, 1};
    p.S0 = {start.data(), start.cols(), 1};
    return p;
  }
  /// The state after all tokens.
  matrix<rational> end(const matrix<rational>& start) const {
    matrix<rational> S(keys, values);
    recurrent_forward(view(start), rows<rational>{},
                      state_view<rational>{S.data(), values, 1});
    return S;
  }
};

template <class X>
void append(std::vector<X>& to, const std::vector<X>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

inline matrix<rational> random_state(generator& rng, index_t K, index_t V) {
  matrix<rational> S(K, V);
  for (index_t i = 0; i < K; ++i) {
    for (index_t j = 0; j < V; ++j) S(i, j) = integer(rng, -4, 4);
  }
  return S;
}

void register_growth(ledger& all);          // STAB-2, in growth.cpp
void register_lyapunov(ledger& all);        // STAB-7, in growth.cpp
void register_longest_growth(ledger& all);  // STAB-8, in growth.cpp

}  // namespace carve::proofs
