/// @file
/// The chunked WY form, forward and backward: one inverse of a unit triangular
/// matrix a chunk, shared by all value columns.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <string>
#include <vector>

#include "carve/chunk_parts.hpp"
#include "carve/error.hpp"
#include "carve/head.hpp"
#include "carve/matrix.hpp"
#include "carve/rounding.hpp"
#include "carve/scalar.hpp"
#include "carve/triangular.hpp"

namespace carve {

/// Whether one inverse serves every value column.
struct wy_verdict {
  bool applies = true;  ///< it does
  index_t token = -1;   ///< first token that forbids it
  std::string reason;   ///< why, in words
  /// `applies`
  explicit operator bool() const { return applies; }
};

namespace detail {

/// One chunk in WY form. Matrices are named as in the comment of
/// chunked_forward; a row of `q_` and `dO` stands at the token whose end state
/// it reads.
template <class T, class Policy>
class wy_chunk {
 public:
  wy_chunk(const head<T>& p, const Policy& policy)
      : p_(p),
        n_(p.tokens),
        K_(p.keys),
        V_(p.values),
        lag_(p.read == readout::before ? 1 : 0),
        policy_(policy),
        decay_(p.a, p.g, n_, K_, Policy::exponentials),
        value_decay_(p.d, {}, n_, V_, false),
        weighted_{value_decay_} {
    q_ = shifted(gather<T>(p.q, n_, K_), lag_);
    k_ = gather<T>(p.k, n_, K_);
    r_ = k_;
    if (p.b) r_ = r_.cwiseProduct(gather<T>(p.b, n_, K_)).eval();
    wv_ = matrix<T>::Constant(n_, V_, T(0));
    if (p.v) wv_ = gather<T>(p.v, n_, V_);
    if (p.w) wv_ = wv_.cwiseProduct(gather<T>(p.w, n_, V_)).eval();
    if (p.e) e_ = gather<T>(p.e, n_, V_);
    if (decay_.present()) {
      G_ = decay_.after(-1, n_ + 1).bottomRows(n_);
      tail_ = decay_.before(0, n_, n_ - 1);
    }
    if (value_decay_.present()) {
      D_ = value_decay_.after(-1, n_ + 1).bottomRows(n_);
      Dtail_ = value_decay_.before(0, n_, n_ - 1);
    }
    if (p.erases) {
      L_ = scores(r_, k_, decay_, policy_);
      for (index_t t = 0; t < n_; ++t) L_(t, t) = T(0);
    } else {
      L_ = matrix<T>::Constant(n_, n_, T(0));
    }
    inverse_ = inverse_by_blocks(gated(L_), score_block, [this](matrix<T>& m) {
      round(rounding_point::inverse, m);
    });
    round(rounding_point::T, inverse_);
    P_ = p.scale * scores(q_, k_, decay_, policy_);
    round(rounding_point::P, P_);
    round(rounding_point::r, r_);
    round(rounding_point::wv, wv_);
    rg_ = scaled(G_, r_);
    round(rounding_point::rg, rg_);
    qg_ = scaled(G_, q_);
    round(rounding_point::qg, qg_);
    kg_ = scaled(tail_, k_);
    round(rounding_point::kg, kg_);
  }

  /// Finds what is written from the start state `S` `[K,V]`.
  void solve(const matrix<T>& S) {
    S_ = S;
    operand_S_ = S;
    round(rounding_point::S, operand_S_);
    right_ = wv_;
    if (p_.erases && gated_columns()) {
      right_ -= scaled(e_, scaled(D_, rg_ * operand_S_));
    }
    U_ = weighted_.lower(inverse_, right_);
    round(rounding_point::Twv, U_);
    if (p_.erases && !gated_columns()) {
      W_ = inverse_ * rg_;
      round(rounding_point::W, W_);
      U_ -= scaled(D_, W_ * operand_S_);
    }
    tail_U_ = U_;
    // Under a decay per head the keys stay as they are and U carries it.
    if (!decay_.per_channel()) {
      tail_U_ = scaled(tail_column(), U_);
      round(rounding_point::U_tail, tail_U_);
    }
    round(rounding_point::U, U_);
    if (decay_.per_channel()) tail_U_ = U_;
  }

  matrix<T> outputs() const {
    matrix<T> o = p_.scale * scaled(D_, qg_ * operand_S_);
    o += weighted_.lower(P_, U_);
    if (lag_ == 0) return o;
    o = shifted(o, -lag_);
    for (index_t j = 0; j < V_; ++j) {
      T sum(0);
      for (index_t i = 0; i < K_; ++i) sum += p_.q(0, i) * S_(i, j);
      o(0, j) = p_.scale * sum;
    }
    return o;
  }

  /// `S <- diag(G_C) S diag(D_C) + (k e^(G_C-G))^T U`.
  void advance(matrix<T>& S) const {
    decay_state<T>(S, last_row(G_), last_row(D_));
    const matrix<T>& keys = decay_.per_channel() ? kg_ : k_;
    S += keys.transpose() * scaled(Dtail_, tail_U_);
  }

  /// The way back; call after `solve`.
  /// @param[in] dout    cotangent of the outputs `[n,V]`.
  /// @param[in,out] dS  cotangent of the end state; of the start state after.
  void backward(const matrix<T>& dout, matrix<T>& dS,
                const head_gradients<T>& out) const {
    const matrix<T> dO = shifted(dout, lag_);
    const matrix<T> dOd = scaled(D_, dO);
    matrix<T> operand_dS = dS;
    round(rounding_point::dS, operand_dS);
    matrix<T> dU = weighted_.lower_transposed(P_, dO);
    round(rounding_point::PtdO, dU);
    dU += scaled(Dtail_, kg_ * operand_dS);
    round(rounding_point::dU, dU);
    // X: cotangent of w * v. Y: cotangent of r through its read of the state.
    const matrix<T> X = weighted_.lower_transposed(inverse_, dU);
    matrix<T> dr = matrix<T>::Constant(n_, K_, T(0)), Y = dr, dL;
    matrix<T> start_back = p_.scale * to_start(dOd);
    if (p_.erases) {
      matrix<T> M = weighted_.outer(dU, right_);
      if (gated_columns()) {
        const matrix<T> Xd = scaled(D_, scaled(e_, X));
        Y = -scaled(G_, Xd * operand_S_.transpose());
        start_back -= rg_.transpose() * Xd;
      } else {
        const matrix<T> dUd = scaled(D_, dU);
        matrix<T> dW = -(dUd * operand_S_.transpose());
        round(rounding_point::dW, dW);
        Y = scaled(G_, inverse_.transpose() * dW);
        M += dW * rg_.transpose();
        start_back -= W_.transpose() * dUd;
      }
      strictly_lower(M);
      round(rounding_point::M, M);
      M = matrix<T>(M * inverse_.transpose());
      round(rounding_point::MTt, M);
      dL = gated(-(inverse_.transpose() * M));
      strictly_lower(dL);
    }
    matrix<T> dq = p_.scale * scaled(G_, dOd * operand_S_.transpose());
    matrix<T> dk = scaled(tail_, scaled(Dtail_, U_) * operand_dS.transpose());
    matrix<T> at_end = k_.cwiseProduct(dk);
    const matrix<T> dP = p_.scale * weighted_.outer(dO, U_);
    scores_back(dP, q_, k_, decay_, policy_, dq, dk);
    matrix<T> dkL = matrix<T>::Constant(n_, K_, T(0));
    if (p_.erases) scores_back(dL, r_, k_, decay_, policy_, dr, dkL);
    if (out.g) decay_gradient(dq, dk + dkL, dr, Y, at_end, operand_dS, out);
    if (out.gd) value_decay_gradient(dO, X, dS, out);
    if (out.e) scatter_add<T>(out.e, -X.cwiseProduct(erased()));
    scatter_add(out.q, first_read(shifted(dq, -lag_), dout));
    if (p_.v) {
      scatter_add<T>(out.w, X.cwiseProduct(gather<T>(p_.v, n_, V_)));
      scatter_add<T>(out.v,
                     p_.w ? X.cwiseProduct(gather<T>(p_.w, n_, V_)).eval() : X);
    }
    round(rounding_point::dk_part, dk);
    if (p_.erases) {
      scatter_add<T>(out.b, (Y + dr).cwiseProduct(k_));
      if (p_.b) {
        const matrix<T> b = gather<T>(p_.b, n_, K_);
        Y = Y.cwiseProduct(b).eval(), dr = dr.cwiseProduct(b).eval();
      }
      round(rounding_point::dk_part, Y);
      Y += dr;
      Y += dkL;
      round(rounding_point::dk_part, Y);
      dk += Y;
    }
    scatter_add(out.k, dk);
    decay_state<T>(dS, last_row(G_), last_row(D_));
    dS += start_back;
    if (lag_ == 0) return;
    for (index_t i = 0; i < K_; ++i) {
      for (index_t j = 0; j < V_; ++j) {
        dS(i, j) += p_.scale * (p_.q(0, i) * dout(0, j));
      }
    }
  }

 private:
  void round(rounding_point at, matrix<T>& m) const {
    policy_.round(at, decay_.per_channel(), m);
  }

  /// Whether the erase gate has a value axis; then it stays on the right-hand
  /// side, where it may vary for tokens whose row of L is zero.
  bool gated_columns() const { return e_.size() != 0; }

  /// Rows of L times their erase gate on the value axis.
  matrix<T> gated(matrix<T> L) const {
    for (index_t t = 0; t < n_ && gated_columns(); ++t) {
      for (index_t s = 0; s < t; ++s) L(t, s) = e_(t, 0) * L(t, s);
    }
    return L;
  }

  static void strictly_lower(matrix<T>& m) {
    for (index_t t = 0; t < m.rows(); ++t) {
      for (index_t s = t; s < m.cols(); ++s) m(t, s) = T(0);
    }
  }

  static matrix<T> last_row(const matrix<T>& m) {
    return m.size() == 0 ? m : matrix<T>(m.bottomRows(1));
  }

  /// A decay per head to the end of the chunk, for every value channel.
  matrix<T> tail_column() const {
    if (!decay_.present()) return {};
    return tail_.col(0).replicate(1, V_);
  }

  /// `(q e^G)^T X`.
  matrix<T> to_start(const matrix<T>& X) const {
    matrix<T> qg = qg_;
    round(rounding_point::qg_back, qg);
    return qg.transpose() * X;
  }

  /// Adds the cotangent of the query that reads the start state itself.
  matrix<T> first_read(matrix<T> dq, const matrix<T>& dout) const {
    for (index_t i = 0; i < K_ && lag_ == 1; ++i) {
      for (index_t j = 0; j < V_; ++j) {
        dq(0, i) += p_.scale * (S_(i, j) * dout(0, j));
      }
    }
    return dq;
  }

  /// `c_t = S~_t^T r_t`, what each token erases before its value-axis gate.
  matrix<T> erased() const {
    if (!p_.erases) return matrix<T>::Constant(n_, V_, T(0));
    return scaled(D_, rg_ * S_) + weighted_.lower(L_, U_);
  }

  /// Gradient of the key axis's log decays. A term that carries the decay
  /// between s and t adds its value to every dg_m with `s < m <= t`: plus at
  /// t, minus at s, then a sum from the end.
  void decay_gradient(const matrix<T>& dq, const matrix<T>& dk,
                      const matrix<T>& dr, const matrix<T>& Y,
                      const matrix<T>& at_end, const matrix<T>& operand_dS,
                      const head_gradients<T>& out) const {
    matrix<T> dG = q_.cwiseProduct(dq) - k_.cwiseProduct(dk);
    if (p_.erases) {
      dG += (p_.b ? k_.cwiseProduct(gather<T>(p_.b, n_, K_)).eval() : k_)
                .cwiseProduct(Y);
      dG += r_.cwiseProduct(dr);
    }
    // What reaches the end state: the keys of the chunk, and the start state.
    for (index_t i = 0; i < K_; ++i) {
      for (index_t t = 0; t < n_; ++t) dG(n_ - 1, i) += at_end(t, i);
    }
    const bool per_channel = decay_.per_channel();
    std::vector<T> products;
    for (index_t i = 0; i < K_; ++i) {
      if (per_channel) products.clear();
      for (index_t j = 0; j < V_; ++j) {
        T x = operand_S_(i, j) * operand_dS(i, j);
        if (value_decay_.present()) x = D_(n_ - 1, j) * x;
        products.push_back(x);
      }
      if (!per_channel && i + 1 < K_) continue;
      const T sum = policy_.sum(rounding_point::SdS, per_channel, products);
      dG(n_ - 1, i) += decay_.present() ? T(G_(n_ - 1, i) * sum) : sum;
    }
    sum_from_end(dG);
    scatter_add(out.g, dG);
  }

  void value_decay_gradient(const matrix<T>& dO, const matrix<T>& X,
                            const matrix<T>& dS,
                            const head_gradients<T>& out) const {
    matrix<T> dD = -X.cwiseProduct(wv_);
    matrix<T> o = p_.scale * scaled(D_, qg_ * operand_S_);
    dD += dO.cwiseProduct(matrix<T>(o + weighted_.lower(P_, U_)));
    matrix<T> end = S_;
    advance(end);
    for (index_t j = 0; j < V_; ++j) {
      for (index_t i = 0; i < K_; ++i) dD(n_ - 1, j) += dS(i, j) * end(i, j);
    }
    sum_from_end(dD);
    scatter_add(out.gd, dD);
  }

  const head<T> p_;
  index_t n_, K_, V_, lag_;
  const Policy& policy_;
  chunk_decay<T> decay_, value_decay_;
  value_weighted<T> weighted_;
  matrix<T> q_, k_, r_, wv_, e_;
  matrix<T> G_, tail_, D_, Dtail_;
  matrix<T> L_, inverse_, P_;
  matrix<T> rg_, qg_, kg_;
  matrix<T> S_, operand_S_, right_, W_, U_, tail_U_;
};

/// The head with its full mask, whose columns agree, as a key-axis gate.
template <class T>
head<T> without_mask(head<T> p) {
  if (p.mask) p.b = p.mask.column(0);
  p.mask = {};
  return p;
}

}  // namespace detail

/// Whether one inverse `T` a chunk reproduces every value column for every
/// right-hand side. It does if and only if, for every token of the chunk whose
/// row of L is not zero, `e_t` is constant along the value axis; a full mask
/// must have equal columns. Hence erase on the key axis always allows it; for
/// erase on the value axis the exceptions are a chunk of one token, a single
/// value channel, orthogonal keys, and the first token of a chunk.
/// @param[in] C  chunk length, at least 1.
template <class T>
wy_verdict wy_applies(const head<T>& p, index_t C) {
  detail::require_chunk(C);
  if (!p.erases) return {};
  for (index_t t = 0; t < p.tokens && p.mask; ++t) {
    for (index_t i = 0; i < p.keys; ++i) {
      for (index_t j = 1; j < p.values; ++j) {
        if (p.mask(t, i, j) == p.mask(t, i, 0)) continue;
        return {false, t,
                text("the erase mask differs between value channels 0 and ", j,
                     " at token ", t,
                     ": each value column has a triangular system of its own")};
      }
    }
  }
  for (index_t t = 0; t < p.tokens && p.e; ++t) {
    index_t j = 1;
    while (j < p.values && p.e(t, j) == p.e(t, 0)) ++j;
    if (j >= p.values) continue;
    std::vector<T> r(static_cast<std::size_t>(p.keys));
    for (index_t i = 0; i < p.keys; ++i) {
      r[i] = p.b ? p.b(t, i) * p.k(t, i) : T(p.k(t, i));
      if (p.mask) r[i] = r[i] * p.mask(t, i, 0);
    }
    for (index_t s = t; s-- > t / C * C;) {
      T coupling(0);
      for (index_t i = 0; i < p.keys; ++i) {
        if (p.a) r[i] = r[i] * p.a(s + 1, i);
        coupling += r[i] * p.k(s, i);
      }
      if (coupling == T(0)) continue;
      return {false, t,
              text("the value-axis erase gate differs between value channels "
                   "0 and ",
                   j, " at token ", t, ", which is coupled to token ", s,
                   " of its chunk: each value column has a triangular system "
                   "of its own")};
    }
  }
  return {};
}

namespace detail {

template <class T>
void require_wy(const head<T>& p, index_t C) {
  const wy_verdict verdict = wy_applies(p, C);
  if (!verdict) throw error("the WY form does not apply: ", verdict.reason);
}

}  // namespace detail

/// Forward in the chunked WY form. Equal to recurrent_forward over any
/// commutative ring, whatever the chunk length. With `r = b * k`, `G_t` the
/// decay from the chunk's start to token t and `S` its start state:
///
///     L_ts = sum_i r_t[i] (G_t/G_s)[i] k_s[i]  (s < t)      T = (I + L)^-1
///     P_ts = scale * sum_i q_t[i] (G_t/G_s)[i] k_s[i]  (s <= t)
///     U    = T (w*v) - W S                                  W = T (r*G)
///     O    = scale * (q*G) S + P U
///     S   <- diag(G_C) S + (k*G_C/G)^T U
///
/// A value-axis decay weights every term; ratios of decays are products, never
/// quotients. An erase gate on the value axis is kept on the right-hand side.
/// @param[in] p       the head.
/// @param[in] C       chunk length, at least 1; the last chunk may be shorter.
/// @param[out] o      outputs `[T,V]`, or a null view.
/// @param[out] S      final state `[K,V]`, or a null view.
/// @param[in] policy  where and how to round.
/// @throws carve::error  where wy_applies says no.
/// Source: arXiv 2406.06484 section 3 and 2510.26692 section 3.
template <class T, class Policy = exact_policy>
void chunked_forward(const head<T>& p, index_t C, rows<T> o, state_view<T> S,
                     const Policy& policy = {}) {
  detail::require_wy(p, C);
  detail::walk_chunks(
      detail::without_mask(p), C,
      [&](const head<T>& h) { return detail::wy_chunk<T, Policy>(h, policy); },
      o, S);
}

/// Forward and backward in the chunked WY form; parameters as in
/// chunked_forward and recurrent_backward, gradients are accumulated.
///
///     dU = (k*G_C/G) dS + P^T dO         dW = -dU S^T
///     X  = T^T dU     (of w*v)           Y  = G * (T^T dW)  (of r)
///     M  = dU (w*v)^T + dW (r*G)^T       dL = -tril(T^T M T^T)
///     dP = scale * dO U^T
///     dS <- diag(G_C) dS + scale * (q*G)^T dO - W^T dU
///
/// dP and dL then go back through the scores that formed P and L.
/// @throws carve::error  where wy_applies says no, or a mask's gradient is
///                       asked for.
template <class T, class Policy = exact_policy>
void chunked_backward(const head<T>& p, index_t C, const head_cotangents<T>& in,
                      const head_gradients<T>& out, rows<T> o = {},
                      state_view<T> S = {}, const Policy& policy = {}) {
  detail::require_wy(p, C);
  if (out.mask) {
    throw error(
        "the WY form gives no gradient of a full mask; use the column-by-"
        "column form");
  }
  detail::walk_chunks_back(
      detail::without_mask(p), C,
      [&](const head<T>& h) { return detail::wy_chunk<T, Policy>(h, policy); },
      in, out, o, S);
}

}  // namespace carve
