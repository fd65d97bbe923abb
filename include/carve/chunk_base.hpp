/// @file
/// What is one chunk made of? Operands, decays and couplings of its sub-steps,
/// and the parts of the way there and back that both chunked forms share.
#pragma once

#include <Eigen/Core>

#include "carve/chunk_parts.hpp"
#include "carve/head.hpp"
#include "carve/matrix.hpp"

namespace carve::detail {

/// A chunk has a row for every sub-step. What is erased lies along y; where y
/// is given, what is written lies `apart` from it, along k. A row of `q_` and
/// of a spread cotangent of the outputs stands at the sub-step whose end state
/// it reads.
template <class T, class Policy>
class chunk_base {
 public:
  chunk_base(const head<T>& p, const Policy& policy)
      : p_(p),
        n_(p.steps()),
        K_(p.keys),
        V_(p.values),
        look_lag_(p.erase_reads == erase_order::before_decay ? 1 : 0),
        apart_(p.y),
        policy_(policy),
        decay_(p.a, p.g, n_, K_, Policy::exponentials, p.substeps),
        value_decay_(p.d, {}, n_, V_, false, p.substeps),
        weighted_{value_decay_} {
    q_ = spread(gather<T>(p.q, p.tokens, K_));
    k_ = gather<T>(p.k, n_, K_);
    if (apart_) y_ = gather<T>(p.y, n_, K_);
    r_ = address();
    wv_ = matrix<T>::Constant(n_, V_, T(0));
    if (p.v) wv_ = gather<T>(p.v, n_, V_);
    if (p.w) wv_ = wv_.cwiseProduct(gather<T>(p.w, n_, V_)).eval();
    if (p.e) e_ = gather<T>(p.e, n_, V_);
    if (decay_.present()) {
      G_ = decay_.after(-1, n_ + 1).bottomRows(n_);
      look_G_ = look_lag_ ? decay_.after(-1, n_) : G_;
      tail_ = decay_.before(0, n_, n_ - 1);
    }
    if (value_decay_.present()) {
      D_ = value_decay_.after(-1, n_ + 1).bottomRows(n_);
      look_D_ = look_lag_ ? value_decay_.after(-1, n_) : D_;
      Dtail_ = value_decay_.before(0, n_, n_ - 1);
    }
    L_ = matrix<T>::Constant(n_, n_, T(0));
    if (p.erases) L_ = couplings(direction());
    if (apart_) N_ = couplings(k_);
  }

 protected:
  /// Where what is erased is taken away.
  const matrix<T>& direction() const { return apart_ ? y_ : k_; }

  /// The erase address.
  matrix<T> address() const {
    if (p_.r) return gather<T>(p_.r, n_, K_);
    return p_.b ? k_.cwiseProduct(gather<T>(p_.b, n_, K_)).eval() : k_;
  }

  /// `A_ts = sum_i r_t[i] (G_t/G_s)[i] x_s[i]` for `s < t`, else zero; with
  /// `G_{t-1}` for `G_t` where the erase looks before the decay.
  matrix<T> couplings(const matrix<T>& x) const {
    matrix<T> A =
        shifted(scores(shifted(r_, look_lag_), x, decay_, policy_), -look_lag_);
    strictly_lower(A);
    return A;
  }

  /// The way back of `couplings`.
  void couplings_back(const matrix<T>& dA, const matrix<T>& x, matrix<T>& dr,
                      matrix<T>& dx) const {
    if (look_lag_ == 0) {
      return scores_back(dA, r_, x, decay_, policy_, dr, dx);
    }
    matrix<T> shifted_dr = matrix<T>::Constant(n_, K_, T(0));
    scores_back(shifted(dA, 1), shifted(r_, 1), x, decay_, policy_, shifted_dr,
                dx);
    dr += shifted(shifted_dr, -1);
  }

  /// As the functions of value_weighted, for couplings of the erase.
  ///@{
  matrix<T> look(const matrix<T>& A, const matrix<T>& X) const {
    if (look_lag_ == 0) return weighted_.lower(A, X);
    return shifted(weighted_.lower(shifted(A, 1), X), -1);
  }
  matrix<T> look_transposed(const matrix<T>& A, const matrix<T>& X) const {
    return weighted_.lower_transposed(shifted(A, look_lag_),
                                      shifted(X, look_lag_));
  }
  matrix<T> look_outer(const matrix<T>& X, const matrix<T>& Y) const {
    matrix<T> A =
        shifted(weighted_.outer(shifted(X, look_lag_), Y), -look_lag_);
    strictly_lower(A);
    return A;
  }
  ///@}

  static void strictly_lower(matrix<T>& m) {
    for (index_t t = 0; t < m.rows(); ++t) {
      for (index_t s = t; s < m.cols(); ++s) m(t, s) = T(0);
    }
  }

  static matrix<T> last_row(const matrix<T>& m) {
    return m.size() == 0 ? m : matrix<T>(m.bottomRows(1));
  }

  /// Whether token 0 reads the start state itself, which no row stands for.
  bool first_read() const { return p_.read == readout::before; }

  /// The sub-step whose end state token t reads; -1 for the start state.
  index_t read_by(index_t t) const {
    return (first_read() ? t : t + 1) * p_.substeps - 1;
  }
  /// Rows of tokens at the sub-steps that they read.
  matrix<T> spread(const matrix<T>& x) const {
    matrix<T> y = matrix<T>::Constant(n_, x.cols(), T(0));
    for (index_t t = first_read() ? 1 : 0; t < p_.tokens; ++t) {
      y.row(read_by(t)) = x.row(t);
    }
    return y;
  }
  /// And back; token 0 gets zero where it reads the start state.
  matrix<T> collected(const matrix<T>& x) const {
    matrix<T> y = matrix<T>::Constant(p_.tokens, x.cols(), T(0));
    for (index_t t = first_read() ? 1 : 0; t < p_.tokens; ++t) {
      y.row(t) = x.row(read_by(t));
    }
    return y;
  }

  /// Outputs `[tokens,V]` from the reads of the sub-steps, scaled.
  matrix<T> outputs_of(const matrix<T>& reads, const matrix<T>& S) const {
    matrix<T> o = collected(reads);
    for (index_t j = 0; j < V_ && first_read(); ++j) {
      T sum(0);
      for (index_t i = 0; i < K_; ++i) sum += p_.q(0, i) * S(i, j);
      o(0, j) = p_.scale * sum;
    }
    return o;
  }

  /// The way back of token 0's read of the start state `S`: the cotangent of
  /// the output is `factor * dout`.
  void first_read_back(const T& factor, const matrix<T>& dout,
                       const matrix<T>& S, matrix<T>& dq, matrix<T>& dS) const {
    for (index_t i = 0; i < K_ && first_read(); ++i) {
      for (index_t j = 0; j < V_; ++j) {
        dq(0, i) += factor * (S(i, j) * dout(0, j));
        dS(i, j) += factor * (p_.q(0, i) * dout(0, j));
      }
    }
  }

  /// Gradients of w and v from the cotangent of `w * v`.
  void scatter_written(const matrix<T>& dwv,
                       const head_gradients<T>& out) const {
    if (!p_.v) return;
    scatter_add<T>(out.w, dwv.cwiseProduct(gather<T>(p_.v, n_, V_)));
    scatter_add<T>(
        out.v, p_.w ? dwv.cwiseProduct(gather<T>(p_.w, n_, V_)).eval() : dwv);
  }

  /// Gradient of a log decay from what each sub-step adds: a term that carries
  /// the decay between s and t adds its value to every dg_m with `s < m <= t`,
  /// which is plus at t, minus at s, then a sum from the end. A token decays
  /// at its first sub-step.
  void scatter_decay(matrix<T> terms, const rows<T>& to) const {
    sum_from_end(terms);
    for (index_t t = 0; t < p_.tokens && to; ++t) {
      for (index_t i = 0; i < terms.cols(); ++i) {
        to(t, i) += terms(t * p_.substeps, i);
      }
    }
  }

  const head<T> p_;
  index_t n_, K_, V_;  // n: sub-steps in the chunk
  index_t look_lag_;   // 1: the erase looks before the decay
  bool apart_;         // erase and write have directions of their own
  const Policy& policy_;
  chunk_decay<T> decay_, value_decay_;
  value_weighted<T> weighted_;
  matrix<T> q_, k_, y_, r_, wv_, e_;
  matrix<T> G_, look_G_, tail_, D_, look_D_, Dtail_;
  matrix<T> L_, N_;  // couplings of the erase to what is erased, and written
};

}  // namespace carve::detail
