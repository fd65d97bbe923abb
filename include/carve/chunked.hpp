/// @file
/// The chunked WY form, forward and backward: one inverse of a unit triangular
/// matrix a chunk, shared by all value columns.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "carve/chunk_base.hpp"
#include "carve/chunk_parts.hpp"
#include "carve/error.hpp"
#include "carve/head.hpp"
#include "carve/matrix.hpp"
#include "carve/rounding.hpp"
#include "carve/scalar.hpp"
#include "carve/stage.hpp"
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
/// chunked_forward.
template <class T, class Policy>
class wy_chunk : chunk_base<T, Policy> {
 public:
  wy_chunk(const head<T>& p, const Policy& policy) : base(p, policy) {
    if (decay_.present()) show(stage::G, G_);
    const matrix<T> L = gated(L_);
    inverse_ = inverse_by_blocks(L, score_block, [this](matrix<T>& m) {
      round(rounding_point::inverse, m);
    });
    round(rounding_point::T, inverse_);
    if (p.erases) show(stage::L, L), show(stage::T, inverse_);
    P_ = scores(q_, direction(), decay_, policy_);
    if (!apart_) show(stage::P, P_);
    P_ = p.scale * P_;
    round(rounding_point::P, P_);
    round(rounding_point::r, r_);
    round(rounding_point::wv, wv_);
    rg_ = scaled(look_G_, r_);
    round(rounding_point::rg, rg_);
    qg_ = scaled(G_, q_);
    round(rounding_point::qg, qg_);
    yg_ = scaled(tail_, direction());
    round(rounding_point::kg, yg_);
    from_writes_ = wv_;
    if (apart_) write_apart();
  }

  /// Finds what is written from the start state `S` `[K,V]`.
  void solve(const matrix<T>& S) {
    S_ = S;
    show(stage::S, S_);
    operand_S_ = S;
    round(rounding_point::S, operand_S_);
    right_ = from_writes_;
    if (p_.erases && gated_columns()) {
      right_ -= scaled(e_, scaled(D_, rg_ * operand_S_));
    }
    U_ = weighted_.lower(inverse_, right_);
    round(rounding_point::Twv, U_);
    if (p_.erases && !gated_columns()) {
      W_ = inverse_ * rg_;
      round(rounding_point::W, W_);
      show(stage::W, W_);
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
    show(stage::U, U_);
  }

  matrix<T> outputs() const { return this->outputs_of(reads(), S_); }

  /// `S <- diag(G_C) S diag(D_C) + (y e^(G_C-G))^T U`, and what is written
  /// apart.
  void advance(matrix<T>& S) const {
    decay_state<T>(S, last_row(G_), last_row(D_));
    const matrix<T>& keys = decay_.per_channel() ? yg_ : direction();
    S += keys.transpose() * scaled(Dtail_, tail_U_);
    if (!apart_) return;
    const matrix<T>& written = decay_.per_channel() ? kg_ : k_;
    S += written.transpose() * scaled(Dtail_, tail_wv_);
  }

  /// The way back; call after `solve`.
  /// @param[in] dout    cotangent of the outputs `[n,V]`.
  /// @param[in,out] dS  cotangent of the end state; of the start state after.
  void backward(const matrix<T>& dout, matrix<T>& dS,
                const head_gradients<T>& out) const {
    const matrix<T> dO = this->spread(dout);
    const matrix<T> dOd = scaled(D_, dO);
    matrix<T> operand_dS = dS;
    round(rounding_point::dS, operand_dS);
    const matrix<T> dU = of_content(P_, yg_, dO, operand_dS);
    show(stage::dU, dU);
    // X: cotangent of the right-hand side. Y: of r through its read of the
    // start state.
    const matrix<T> X = weighted_.lower_transposed(inverse_, dU);
    matrix<T> dr = matrix<T>::Constant(n_, K_, T(0)), Y = dr, dL;
    matrix<T> start_back = p_.scale * to_start(dOd);
    if (p_.erases) {
      matrix<T> M = weighted_.outer(dU, right_);
      if (gated_columns()) {
        const matrix<T> Xd = scaled(D_, scaled(e_, X));
        Y = -scaled(look_G_, Xd * operand_S_.transpose());
        start_back -= rg_.transpose() * Xd;
      } else {
        const matrix<T> dUd = scaled(D_, dU);
        matrix<T> dW = -(dUd * operand_S_.transpose());
        round(rounding_point::dW, dW);
        show(stage::dW, dW);
        Y = scaled(look_G_, inverse_.transpose() * dW);
        M += dW * rg_.transpose();
        start_back -= W_.transpose() * dUd;
      }
      strictly_lower(M);
      round(rounding_point::M, M);
      show(stage::dT, M);
      M = matrix<T>(M * inverse_.transpose());
      round(rounding_point::MTt, M);
      dL = -(inverse_.transpose() * M);
      strictly_lower(dL);
      show(stage::dL, dL);
      dL = gated(dL);
    }
    // dy and dyL: of the direction of what is erased, through U and through L.
    matrix<T> dq = p_.scale * scaled(G_, dOd * operand_S_.transpose());
    matrix<T> dy = scaled(tail_, scaled(Dtail_, U_) * operand_dS.transpose());
    matrix<T> at_end = direction().cwiseProduct(dy);
    const matrix<T> dP = p_.scale * weighted_.outer(dO, U_);
    if (!apart_) show(stage::dP, dP);
    scores_back(dP, q_, direction(), decay_, policy_, dq, dy);
    matrix<T> dyL = matrix<T>::Constant(n_, K_, T(0));
    if (p_.erases) this->couplings_back(dL, direction(), dr, dyL);
    matrix<T> dwv = X, dk;
    if (apart_) {
      const matrix<T> dc = scaled(e_, matrix<T>(-X));
      dwv =
          of_content(Pk_, kg_, dO, operand_dS) + this->look_transposed(N_, dc);
      dk = scaled(tail_, scaled(Dtail_, wv_) * operand_dS.transpose());
      at_end += k_.cwiseProduct(dk);
      const matrix<T> dPk = p_.scale * weighted_.outer(dO, wv_);
      show(stage::dP, dPk);
      scores_back(dPk, q_, k_, decay_, policy_, dq, dk);
      this->couplings_back(this->look_outer(dc, wv_), k_, dr, dk);
    }
    if (out.g) {
      matrix<T> dG = q_.cwiseProduct(dq) - direction().cwiseProduct(dy + dyL);
      if (apart_) dG -= k_.cwiseProduct(dk);
      decay_gradient(std::move(dG), dr, Y, at_end, operand_dS, out);
    }
    if (out.gd) value_decay_gradient(dO, dwv, dS, out);
    if (out.e) scatter_add<T>(out.e, -X.cwiseProduct(erased()));
    this->scatter_written(dwv, out);
    round(rounding_point::dk_part, dy);
    if (p_.erases) address_back(Y, dr, dyL, dy, dk, out);
    scatter_add(out.k, apart_ ? dk : dy);
    if (apart_) scatter_add(out.y, dy);
    decay_state<T>(dS, last_row(G_), last_row(D_));
    dS += start_back;
    dq = this->collected(dq);
    this->first_read_back(p_.scale, dout, S_, dq, dS);
    show(stage::dS, dS);
    scatter_add(out.q, dq);
  }

 private:
  using base = chunk_base<T, Policy>;
  using base::D_, base::Dtail_, base::G_, base::K_, base::L_, base::N_;
  using base::k_, base::last_row, base::look_G_, base::n_, base::p_;
  using base::policy_, base::q_, base::r_, base::strictly_lower, base::tail_;
  using base::V_, base::apart_, base::decay_, base::direction, base::e_;
  using base::value_decay_, base::weighted_, base::wv_;

  void round(rounding_point at, matrix<T>& m) const {
    policy_.round(at, decay_.per_channel(), m);
  }
  /// For a policy that looks at what a chunk has inside; see stage.hpp.
  void show(stage at, const matrix<T>& m) const {
    if constexpr (requires { policy_.show(at, p_, m); }) {
      policy_.show(at, p_, m);
    }
  }

  /// Where what is written lies along k and what is erased along y: what is
  /// written needs no solve, and is itself looked up by later tokens.
  void write_apart() {
    Pk_ = scores(q_, k_, decay_, policy_);
    show(stage::P, Pk_);
    Pk_ = p_.scale * Pk_;
    round(rounding_point::P, Pk_);
    kg_ = scaled(tail_, k_);
    round(rounding_point::kg, kg_);
    tail_wv_ = wv_;
    if (!decay_.per_channel()) {
      tail_wv_ = scaled(tail_column(), wv_);
      round(rounding_point::U_tail, tail_wv_);
    }
    round(rounding_point::P, N_);
    from_writes_ = scaled(e_, matrix<T>(-this->look(N_, wv_)));
    round(rounding_point::wv, from_writes_);
  }

  /// What the sub-steps read, scaled.
  matrix<T> reads() const {
    matrix<T> o = p_.scale * scaled(D_, qg_ * operand_S_);
    o += weighted_.lower(P_, U_);
    if (apart_) o += weighted_.lower(Pk_, wv_);
    return o;
  }

  /// Cotangent of what the state holds along keys: through the reads, by the
  /// scores `P`, and through the end state, by the decayed keys `kg`.
  matrix<T> of_content(const matrix<T>& P, const matrix<T>& kg,
                       const matrix<T>& dO, const matrix<T>& dS) const {
    matrix<T> dU = weighted_.lower_transposed(P, dO);
    round(rounding_point::PtdO, dU);
    dU += scaled(Dtail_, kg * dS);
    round(rounding_point::dU, dU);
    return dU;
  }

  /// Adds the cotangents of the address, Y and dr, and of the direction, dyL,
  /// to the tensors that they came from.
  void address_back(matrix<T>& Y, matrix<T>& dr, matrix<T>& dyL, matrix<T>& dy,
                    matrix<T>& dk, const head_gradients<T>& out) const {
    if (!p_.r) scatter_add<T>(out.b, (Y + dr).cwiseProduct(k_));
    if (p_.b) {
      const matrix<T> b = gather<T>(p_.b, n_, K_);
      Y = Y.cwiseProduct(b).eval(), dr = dr.cwiseProduct(b).eval();
    }
    round(rounding_point::dk_part, Y);
    Y += dr;
    if (!p_.r && !apart_) {
      Y += dyL;
      round(rounding_point::dk_part, Y);
      dy += Y;
      return;
    }
    round(rounding_point::dk_part, Y);
    if (p_.r) {
      scatter_add(out.r, Y);
    } else {
      round(rounding_point::dk_part, dk);
      dk += Y;
    }
    round(rounding_point::dk_part, dyL);
    dy += dyL;
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

  /// `c_t = X^T r_t`, what each sub-step looks up, before its value-axis gate.
  matrix<T> erased() const {
    if (!p_.erases) return matrix<T>::Constant(n_, V_, T(0));
    matrix<T> c = scaled(D_, rg_ * S_) + weighted_.lower(L_, U_);
    if (apart_) c += this->look(N_, wv_);
    return c;
  }

  /// Gradient of the key axis's log decays.
  /// @param dG  what queries and keys add to each sub-step.
  void decay_gradient(matrix<T> dG, const matrix<T>& dr, const matrix<T>& Y,
                      const matrix<T>& at_end, const matrix<T>& operand_dS,
                      const head_gradients<T>& out) const {
    if (p_.erases) {
      dG += shifted<T>(this->address().cwiseProduct(Y), this->look_lag_);
      dG += shifted<T>(r_.cwiseProduct(dr), this->look_lag_);
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
    policy_.accumulate(dG, 2 * n_);
    this->scatter_decay(std::move(dG), out.g);
  }

  void value_decay_gradient(const matrix<T>& dO, const matrix<T>& dwv,
                            const matrix<T>& dS,
                            const head_gradients<T>& out) const {
    matrix<T> dD = -dwv.cwiseProduct(wv_);
    dD += dO.cwiseProduct(reads());
    matrix<T> end = S_;
    advance(end);
    for (index_t j = 0; j < V_; ++j) {
      for (index_t i = 0; i < K_; ++i) dD(n_ - 1, j) += dS(i, j) * end(i, j);
    }
    this->scatter_decay(std::move(dD), out.gd);
  }

  matrix<T> inverse_, P_, Pk_;
  matrix<T> rg_, qg_, yg_, kg_;
  matrix<T> from_writes_;  // of the right-hand side
  matrix<T> S_, operand_S_, right_, W_, U_, tail_U_, tail_wv_;
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
  detail::require_chunks(p, C);
  if (!p.erases) return {};
  const index_t n = p.substeps;
  const bool stored = p.erase_reads == erase_order::before_decay;
  if (p.d && stored) {
    return {false, 0,
            "the erase looks before a value-axis decay: each value column has "
            "a triangular system of its own"};
  }
  for (index_t m = 0; m < p.steps() && p.mask; ++m) {
    for (index_t i = 0; i < p.keys; ++i) {
      for (index_t j = 1; j < p.values; ++j) {
        if (p.mask(m, i, j) == p.mask(m, i, 0)) continue;
        return {false, m / n,
                text("the erase mask differs between value channels 0 and ", j,
                     " at token ", m / n,
                     ": each value column has a triangular system of its own")};
      }
    }
  }
  for (index_t m = 0; m < p.steps() && p.e; ++m) {
    index_t j = 1;
    while (j < p.values && p.e(m, j) == p.e(m, 0)) ++j;
    if (j >= p.values) continue;
    detail::list<T> r(p.keys);
    for (index_t i = 0; i < p.keys; ++i) {
      r[i] = p.address(m, i);
      if (p.mask) r[i] = r[i] * p.mask(m, i, 0);
    }
    for (index_t s = m; s-- > m / (C * n) * (C * n);) {
      // The decay of sub-step s + 1; its own is not seen by a look before it.
      const bool decays = (s + 1) % n == 0 && !(stored && s + 1 == m);
      T coupling(0);
      for (index_t i = 0; i < p.keys; ++i) {
        if (p.a && decays) r[i] = r[i] * p.a((s + 1) / n, i);
        coupling += r[i] * (p.y ? p.y(s, i) : p.k(s, i));
      }
      if (coupling == T(0)) continue;
      return {
          false, m / n,
          text("the value-axis erase gate differs between value channels "
               "0 and ",
               j, " at token ", m / n, ", which is coupled to token ", s / n,
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
