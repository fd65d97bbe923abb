/// @file
/// What the chunked forms share: decays within a chunk, products weighted by
/// them, and moving tensors in and out of matrices.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <vector>

#include "carve/error.hpp"
#include "carve/head.hpp"
#include "carve/matrix.hpp"
#include "carve/rounding.hpp"
#include "carve/scalar.hpp"

namespace carve {

namespace detail {

/// Rows of a block of L or P whose decays are referenced to one token, so that
/// every factor decays.
inline constexpr index_t score_block = 16;

/// Decays of one axis within a chunk of n sub-steps, of which the first of each
/// token decays. The decay between s and t is that over `s < m <= t`; -1 stands
/// for the start of the chunk.
template <class T>
class chunk_decay {
 public:
  chunk_decay() = default;
  /// @param factor  linear decays of the tokens, or null for none.
  /// @param log     their logs, used when `exponentials`.
  chunk_decay(rows<const T> factor, rows<const T> log, index_t n, index_t width,
              bool exponentials, index_t substeps)
      : present_(static_cast<bool>(factor)),
        exponentials_(exponentials && static_cast<bool>(log)),
        per_channel_(present_ && factor.channel != 0),
        tokens_(n),
        width_(width) {
    if (!present_) return;
    table_ = matrix<T>(n, stored());
    for (index_t m = 0; m < n; ++m) {
      const bool decays = m % substeps == 0;
      const index_t t = m / substeps;
      for (index_t i = 0; i < stored(); ++i) {
        if (!exponentials_) {
          table_(m, i) = decays ? factor(t, i) : T(1);
        } else if (decays) {
          table_(m, i) = m > 0 ? T(table_(m - 1, i) + log(t, i)) : log(t, i);
        } else {
          table_(m, i) = table_(m - 1, i);
        }
      }
    }
  }

  bool present() const { return present_; }
  /// Whether the decay varies along its axis.
  bool per_channel() const { return per_channel_; }

  /// Row j is the decay between tokens `from` and `from + j`, j < count.
  matrix<T> after(index_t from, index_t count) const {
    matrix<T> G = matrix<T>::Constant(count, width_, T(1));
    for (index_t j = 1; j < count && present_; ++j) {
      for (index_t i = 0; i < width_; ++i) {
        G(j, i) = step(G(j - 1, i), from, from + j, i);
      }
    }
    return G;
  }

  /// Row j is the decay between tokens `first + j` and `to`, j < count.
  matrix<T> before(index_t first, index_t count, index_t to) const {
    matrix<T> G = matrix<T>::Constant(count, width_, T(1));
    if (!present_) return G;
    for (index_t i = 0; i < width_; ++i) {
      T rho(1);
      for (index_t s = to; s-- > first;) {
        rho = exponentials_ ? exponential(s, to, i)
                            : T(rho * table_(s + 1, column(i)));
        if (s < first + count) G(s - first, i) = rho;
      }
    }
    return G;
  }

  /// Calls `f(t, s, rho)` for `first <= s <= t < last`, `rho[i]` being the
  /// decay between s and t in channel i.
  template <class F>
  void for_pairs(index_t first, index_t last, F&& f) const {
    list<T> rho(width_);
    for (index_t s = first; s < last; ++s) {
      std::fill(rho.begin(), rho.end(), T(1));
      for (index_t t = s; t < last; ++t) {
        if (present_ && t > s) {
          if (per_channel_) {
            for (index_t i = 0; i < width_; ++i) {
              rho[i] = step(rho[i], s, t, i);
            }
          } else {
            std::fill(rho.begin(), rho.end(), step(rho[0], s, t, 0));
          }
        }
        f(t, s, rho);
      }
    }
  }

 private:
  index_t stored() const { return per_channel_ ? width_ : 1; }
  index_t column(index_t i) const { return per_channel_ ? i : 0; }

  /// Decay between s and t, given that between s and t - 1.
  T step(const T& previous, index_t s, index_t t, index_t i) const {
    return exponentials_ ? exponential(s, t, i)
                         : T(previous * table_(t, column(i)));
  }
  T exponential(index_t s, index_t t, index_t i) const {
    if constexpr (scalar_traits<T>::is_real) {
      const T G = table_(t, column(i));
      return carve::exp(s < 0 ? G : T(G - table_(s, column(i))));
    }
    return T(0);
  }

  bool present_ = false, exponentials_ = false, per_channel_ = false;
  index_t tokens_ = 0, width_ = 0;
  matrix<T> table_;
};

/// Products along the token axis, each pair of tokens weighted by the decay of
/// the value axis; plain matrix products where there is none.
template <class T>
struct value_weighted {
  const chunk_decay<T>& decay;

  /// `Y_t = sum_{s<=t} M_ts rho_ts * X_s`
  matrix<T> lower(const matrix<T>& M, const matrix<T>& X) const {
    if (!decay.present()) return M * X;
    matrix<T> Y = matrix<T>::Constant(X.rows(), X.cols(), T(0));
    decay.for_pairs(0, X.rows(), [&](index_t t, index_t s, const auto& rho) {
      for (index_t j = 0; j < X.cols(); ++j) {
        Y(t, j) += M(t, s) * (rho[j] * X(s, j));
      }
    });
    return Y;
  }

  /// `Y_s = sum_{t>=s} M_ts rho_ts * X_t`
  matrix<T> lower_transposed(const matrix<T>& M, const matrix<T>& X) const {
    if (!decay.present()) return M.transpose() * X;
    matrix<T> Y = matrix<T>::Constant(X.rows(), X.cols(), T(0));
    decay.for_pairs(0, X.rows(), [&](index_t t, index_t s, const auto& rho) {
      for (index_t j = 0; j < X.cols(); ++j) {
        Y(s, j) += M(t, s) * (rho[j] * X(t, j));
      }
    });
    return Y;
  }

  /// `M_ts = sum_j X_t[j] rho_ts[j] Y_s[j]` for `s <= t`, else zero.
  matrix<T> outer(const matrix<T>& X, const matrix<T>& Y) const {
    matrix<T> M;
    if (!decay.present()) {
      M = X * Y.transpose();
      for (index_t t = 0; t < M.rows(); ++t) {
        for (index_t s = t + 1; s < M.cols(); ++s) M(t, s) = T(0);
      }
      return M;
    }
    M = matrix<T>::Constant(X.rows(), X.rows(), T(0));
    decay.for_pairs(0, X.rows(), [&](index_t t, index_t s, const auto& rho) {
      T sum(0);
      for (index_t j = 0; j < X.cols(); ++j) {
        sum += X(t, j) * (rho[j] * Y(s, j));
      }
      M(t, s) = sum;
    });
    return M;
  }
};

/// `A_ts = sum_i a_t[i] (G_t/G_s)[i] k_s[i]` for `s <= t`, else zero.
/// With a decay per channel, blocks of 16 rows are referenced to their first
/// token: both factors of a product decay, and no ratio is ever inverted.
template <class T, class Policy>
matrix<T> scores(const matrix<T>& a, const matrix<T>& k,
                 const chunk_decay<T>& decay, const Policy& policy) {
  const index_t n = a.rows();
  matrix<T> A = matrix<T>::Constant(n, n, T(0));
  if (!decay.per_channel()) {
    const matrix<T> plain = a * k.transpose();
    decay.for_pairs(0, n, [&](index_t t, index_t s, const auto& rho) {
      A(t, s) = decay.present() ? T(plain(t, s) * rho[0]) : plain(t, s);
    });
    return A;
  }
  for (index_t i = 0; i < n; i += score_block) {
    const index_t m = std::min(score_block, n - i);
    if (i > 0) {
      matrix<T> left = a.middleRows(i, m).cwiseProduct(decay.after(i, m));
      matrix<T> right = k.topRows(i).cwiseProduct(decay.before(0, i, i));
      policy.round(rounding_point::score, true, left);
      policy.round(rounding_point::score, true, right);
      A.block(i, 0, m, i) = left * right.transpose();
    }
    decay.for_pairs(i, i + m, [&](index_t t, index_t s, const auto& rho) {
      T sum(0);
      for (index_t c = 0; c < a.cols(); ++c) {
        sum += a(t, c) * k(s, c) * rho[c];
      }
      A(t, s) = sum;
    });
  }
  return A;
}

/// The way back of `scores`: adds the cotangents of a and k for the lower
/// triangular cotangent `dA`.
template <class T, class Policy>
void scores_back(const matrix<T>& dA, const matrix<T>& a, const matrix<T>& k,
                 const chunk_decay<T>& decay, const Policy& policy,
                 matrix<T>& da, matrix<T>& dk) {
  const index_t n = a.rows();
  if (!decay.per_channel()) {
    matrix<T> x = matrix<T>::Constant(n, n, T(0));
    decay.for_pairs(0, n, [&](index_t t, index_t s, const auto& rho) {
      x(t, s) = decay.present() ? T(dA(t, s) * rho[0]) : dA(t, s);
    });
    policy.round(rounding_point::dscore, false, x);
    da += x * k;
    dk += x.transpose() * a;
    return;
  }
  for (index_t i = 0; i < n; i += score_block) {
    const index_t m = std::min(score_block, n - i), end = i + m;
    if (i > 0) {
      matrix<T> left = dA.block(i, 0, m, i);
      matrix<T> right = k.topRows(i).cwiseProduct(decay.before(0, i, i));
      policy.round(rounding_point::score, true, left);
      policy.round(rounding_point::score, true, right);
      da.middleRows(i, m) +=
          matrix<T>(left * right).cwiseProduct(decay.after(i, m));
    }
    if (end < n) {
      const index_t rest = n - end;
      matrix<T> left = dA.block(end, i, rest, m);
      matrix<T> right = a.bottomRows(rest).cwiseProduct(
          decay.after(end - 1, rest + 1).bottomRows(rest));
      policy.round(rounding_point::score, true, left);
      policy.round(rounding_point::score, true, right);
      dk.middleRows(i, m) += matrix<T>(left.transpose() * right)
                                 .cwiseProduct(decay.before(i, m, end - 1));
    }
    decay.for_pairs(i, end, [&](index_t t, index_t s, const auto& rho) {
      for (index_t c = 0; c < a.cols(); ++c) {
        const T x = dA(t, s) * rho[c];
        da(t, c) += x * k(s, c);
        dk(s, c) += x * a(t, c);
      }
    });
  }
}

/// x * y element by element, where an empty x is one.
template <class T, class Expression>
matrix<T> scaled(const matrix<T>& x, const Eigen::MatrixBase<Expression>& y) {
  matrix<T> z = y;
  if (x.size() != 0) z = x.cwiseProduct(z).eval();
  return z;
}

/// Rows moved `lag` tokens earlier (lag > 0) or later, zeros moved in.
template <class T>
matrix<T> shifted(const matrix<T>& x, index_t lag) {
  if (lag == 0) return x;
  matrix<T> y = matrix<T>::Constant(x.rows(), x.cols(), T(0));
  for (index_t t = 0; t < x.rows(); ++t) {
    if (t + lag >= 0 && t + lag < x.rows()) y.row(t) = x.row(t + lag);
  }
  return y;
}

/// Each row becomes the sum of itself and all later rows.
template <class T>
void sum_from_end(matrix<T>& m) {
  for (index_t t = m.rows() - 1; t-- > 0;) m.row(t) += m.row(t + 1).eval();
}

/// `S <- diag(key) S diag(value)`; an empty row is one.
template <class T>
void decay_state(matrix<T>& S, const matrix<T>& key, const matrix<T>& value) {
  for (index_t i = 0; i < S.rows(); ++i) {
    for (index_t j = 0; j < S.cols(); ++j) {
      if (key.size() != 0) S(i, j) = key(0, i) * S(i, j);
      if (value.size() != 0) S(i, j) = value(0, j) * S(i, j);
    }
  }
}

template <class T>
matrix<T> gather(rows<const T> x, index_t n, index_t width) {
  matrix<T> m(n, width);
  for (index_t t = 0; t < n; ++t) {
    for (index_t i = 0; i < width; ++i) m(t, i) = x(t, i);
  }
  return m;
}

template <class T>
void scatter(rows<T> to, const matrix<T>& m) {
  for (index_t t = 0; t < m.rows(); ++t) {
    for (index_t i = 0; i < m.cols(); ++i) to(t, i) = m(t, i);
  }
}

template <class T>
void scatter_add(rows<T> to, const matrix<T>& m) {
  if (!to) return;
  for (index_t t = 0; t < m.rows(); ++t) {
    for (index_t i = 0; i < m.cols(); ++i) to(t, i) += m(t, i);
  }
}

template <class T>
matrix<T> load_state(state_view<const T> S, index_t K, index_t V) {
  matrix<T> m = matrix<T>::Constant(K, V, T(0));
  for (index_t i = 0; i < K && S; ++i) {
    for (index_t j = 0; j < V; ++j) m(i, j) = S(i, j);
  }
  return m;
}

template <class T>
void require_chunks(const head<T>& p, index_t C) {
  require_step(p);
  if (C < 1) {
    throw error("chunk: expected a length of at least 1, got ", C);
  }
}

/// Walks a head chunk by chunk with a chunk algorithm `Chunk(head)`, which
/// offers `solve(S)`, `outputs()`, `advance(S)` and `backward(...)`.
template <class T, class MakeChunk>
void walk_chunks(const head<T>& p, index_t C, const MakeChunk& make, rows<T> o,
                 state_view<T> S_end, list<matrix<T>>* starts = nullptr) {
  matrix<T> S = load_state<T>(p.S0, p.keys, p.values);
  for (index_t t0 = 0; t0 < p.tokens; t0 += C) {
    const index_t n = std::min(C, p.tokens - t0);
    if (starts) starts->push_back(S);
    auto chunk = make(p.segment(t0, n, {}));
    chunk.solve(S);
    if (o) scatter<T>(o.from(t0), chunk.outputs());
    chunk.advance(S);
  }
  for (index_t i = 0; i < p.keys && S_end; ++i) {
    for (index_t j = 0; j < p.values; ++j) S_end(i, j) = S(i, j);
  }
}

/// The same and back again: the start state of every chunk is kept, the rest
/// recomputed.
template <class T, class MakeChunk>
void walk_chunks_back(const head<T>& p, index_t C, const MakeChunk& make,
                      const head_cotangents<T>& in,
                      const head_gradients<T>& out, rows<T> o,
                      state_view<T> S_end) {
  list<matrix<T>> starts;
  walk_chunks(p, C, make, o, S_end, &starts);
  matrix<T> dS = load_state<T>(in.S, p.keys, p.values);
  for (index_t c = starts.count(); c-- > 0;) {
    const index_t t0 = c * C, n = std::min(C, p.tokens - t0);
    const matrix<T>& start = starts[c];
    auto chunk = make(p.segment(t0, n, {}));
    chunk.solve(start);
    matrix<T> dout = matrix<T>::Constant(n, p.values, T(0));
    if (in.o) dout = gather<T>(in.o.from(t0), n, p.values);
    chunk.backward(dout, dS, out.segment(t0, {}, p.substeps));
  }
  for (index_t i = 0; i < p.keys && out.S0; ++i) {
    for (index_t j = 0; j < p.values; ++j) out.S0(i, j) += dS(i, j);
  }
}

}  // namespace detail

}  // namespace carve
