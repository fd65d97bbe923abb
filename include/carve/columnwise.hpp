/// @file
/// The column-by-column chunked form, forward and backward: one triangular
/// solve per value column, for gates that erase on the value axis.
#pragma once

#include <Eigen/Core>
#include <vector>

#include "carve/chunk_parts.hpp"
#include "carve/head.hpp"
#include "carve/matrix.hpp"

namespace carve {

namespace detail {

/// One chunk, its system solved column by column. A row of `q_` and `dO`
/// stands at the token whose end state it reads.
template <class T>
class column_chunk {
 public:
  explicit column_chunk(const head<T>& p)
      : p_(p),
        n_(p.tokens),
        K_(p.keys),
        V_(p.values),
        lag_(p.read == readout::before ? 1 : 0),
        decay_(p.a, {}, n_, K_, false),
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
    P_ = scores(q_, k_, decay_, exact_policy{});
    L_ = matrix<T>::Constant(n_, n_, T(0));
    if (!p.erases) return;
    L_ = scores(r_, k_, decay_, exact_policy{});
    for (index_t t = 0; t < n_; ++t) L_(t, t) = T(0);
  }

  /// Finds what is written from the start state `S` `[K,V]`.
  void solve(const matrix<T>& S) {
    S_ = S;
    U_ = wv_;
    if (!p_.erases) return;
    U_ -= scaled(e_, scaled(D_, scaled(G_, r_) * S_));
    // u_t = x_t - e_t * sum_{s<t} L_ts rho_ts * u_s
    for_columns([this](index_t j, index_t t, index_t s, const T& rho) {
      U_(t, j) -= gate(t, j) * (L_(t, s) * (rho * U_(s, j)));
    });
  }

  matrix<T> outputs() const {
    matrix<T> o = p_.scale * reads();
    if (lag_ == 0) return o;
    o = shifted(o, -lag_);
    for (index_t j = 0; j < V_; ++j) {
      T sum(0);
      for (index_t i = 0; i < K_; ++i) sum += p_.q(0, i) * S_(i, j);
      o(0, j) = p_.scale * sum;
    }
    return o;
  }

  void advance(matrix<T>& S) const {
    decay_state<T>(S, last_row(G_), last_row(D_));
    S += scaled(tail_, k_).transpose() * scaled(Dtail_, U_);
  }

  /// The way back; see wy_chunk::backward.
  void backward(const matrix<T>& dout, matrix<T>& dS,
                const head_gradients<T>& out) const {
    const matrix<T> dO = p_.scale * shifted(dout, lag_);
    const matrix<T> dOd = scaled(D_, dO);
    // Cotangent of u, then through the transposed systems: that of w * v.
    matrix<T> X = weighted_.lower_transposed(P_, dO);
    X += scaled(Dtail_, scaled(tail_, k_) * dS);
    if (p_.erases) {
      for_columns_back([&](index_t j, index_t t, index_t s, const T& rho) {
        X(s, j) -= gate(t, j) * (L_(t, s) * (rho * X(t, j)));
      });
    }
    const matrix<T> dc = scaled(e_, matrix<T>(-X));
    const matrix<T> dcd = scaled(D_, dc);
    matrix<T> dq = scaled(G_, dOd * S_.transpose());
    matrix<T> dk = scaled(tail_, scaled(Dtail_, U_) * dS.transpose());
    matrix<T> dr = matrix<T>::Constant(n_, K_, T(0));
    scores_back(weighted_.outer(dO, U_), q_, k_, decay_, exact_policy{}, dq,
                dk);
    if (p_.erases) {
      dr = scaled(G_, dcd * S_.transpose());
      matrix<T> dL = weighted_.outer(dc, U_);
      for (index_t t = 0; t < n_; ++t) dL(t, t) = T(0);
      scores_back(dL, r_, k_, decay_, exact_policy{}, dr, dk);
    }
    if (out.g || out.gd) decay_gradients(dO, X, dS, dq, dk, dr, out);
    if (out.e && p_.erases) {
      const matrix<T> c =
          scaled(D_, scaled(G_, r_) * S_) + weighted_.lower(L_, U_);
      scatter_add<T>(out.e, -X.cwiseProduct(c));
    }
    dq = shifted(dq, -lag_);
    matrix<T> start_back = scaled(G_, q_).transpose() * dOd;
    for (index_t i = 0; i < K_ && lag_ == 1; ++i) {
      for (index_t j = 0; j < V_; ++j) {
        const T x = p_.scale * dout(0, j);
        dq(0, i) += S_(i, j) * x;
        start_back(i, j) += p_.q(0, i) * x;
      }
    }
    scatter_add(out.q, dq);
    if (p_.erases) {
      start_back += scaled(G_, r_).transpose() * dcd;
      scatter_add<T>(out.b, dr.cwiseProduct(k_));
      dk += p_.b ? dr.cwiseProduct(gather<T>(p_.b, n_, K_)).eval() : dr;
    }
    scatter_add(out.k, dk);
    if (p_.v) {
      scatter_add<T>(out.w, X.cwiseProduct(gather<T>(p_.v, n_, V_)));
      scatter_add<T>(out.v,
                     p_.w ? X.cwiseProduct(gather<T>(p_.w, n_, V_)).eval() : X);
    }
    decay_state<T>(dS, last_row(G_), last_row(D_));
    dS += start_back;
  }

 private:
  T gate(index_t t, index_t j) const {
    return e_.size() != 0 ? T(e_(t, j)) : T(1);
  }

  /// `f(j, t, s, rho)` for every column and pair `s < t`, t ascending, rho
  /// being the value-axis decay between s and t.
  template <class F>
  void for_columns(F&& f) const {
    for (index_t t = 0; t < n_; ++t) {
      const matrix<T> rho = value_decay_.before(0, t, t);
      for (index_t s = 0; s < t; ++s) {
        for (index_t j = 0; j < V_; ++j) f(j, t, s, rho(s, j));
      }
    }
  }
  /// The same with t descending.
  template <class F>
  void for_columns_back(F&& f) const {
    for (index_t t = n_; t-- > 0;) {
      const matrix<T> rho = value_decay_.before(0, t, t);
      for (index_t s = 0; s < t; ++s) {
        for (index_t j = 0; j < V_; ++j) f(j, t, s, rho(s, j));
      }
    }
  }

  static matrix<T> last_row(const matrix<T>& m) {
    return m.size() == 0 ? m : matrix<T>(m.bottomRows(1));
  }

  /// Read-outs before their scale.
  matrix<T> reads() const {
    return scaled(D_, scaled(G_, q_) * S_) + weighted_.lower(P_, U_);
  }

  /// As wy_chunk::decay_gradient, for both axes.
  void decay_gradients(const matrix<T>& dO, const matrix<T>& X,
                       const matrix<T>& dS, const matrix<T>& dq,
                       const matrix<T>& dk, const matrix<T>& dr,
                       const head_gradients<T>& out) const {
    matrix<T> dG =
        q_.cwiseProduct(dq) - k_.cwiseProduct(dk) + r_.cwiseProduct(dr);
    matrix<T> dD = dO.cwiseProduct(reads()) - X.cwiseProduct(wv_);
    matrix<T> end = S_;
    advance(end);
    for (index_t i = 0; i < K_; ++i) {
      for (index_t j = 0; j < V_; ++j) {
        const T x = dS(i, j) * end(i, j);
        dG(n_ - 1, i) += x;
        dD(n_ - 1, j) += x;
      }
    }
    sum_from_end(dG);
    sum_from_end(dD);
    scatter_add(out.g, dG);
    scatter_add(out.gd, dD);
  }

  const head<T> p_;
  index_t n_, K_, V_, lag_;
  chunk_decay<T> decay_, value_decay_;
  value_weighted<T> weighted_;
  matrix<T> q_, k_, r_, wv_, e_;
  matrix<T> G_, tail_, D_, Dtail_;
  matrix<T> L_, P_;
  matrix<T> S_, U_;
};

/// Value channel j as a head with V = 1; a full mask becomes a key-axis gate.
template <class T>
head<T> value_column(const head<T>& p, index_t j) {
  head<T> h = p;
  h.values = 1;
  h.v = p.v.from_channel(j), h.d = p.d.from_channel(j);
  h.e = p.e.from_channel(j), h.w = p.w.from_channel(j);
  if (p.mask) h.b = p.mask.column(j);
  h.mask = {};
  if (p.S0) h.S0.data = p.S0.data + j * p.S0.value;
  return h;
}

/// Value channel j of a view of states.
template <class T>
state_view<T> state_column(state_view<T> S, index_t j) {
  if (S) S.data += j * S.value;
  return S;
}

}  // namespace detail

/// Forward with one triangular solve per value column j,
/// `(I + diag(e_j) L) U_j = w_j v_j - e_j (r G) S_j`, for gates that erase on
/// the value axis. L is shared by the columns; under a full mask each column
/// has its own. Equal to recurrent_forward over any commutative ring.
/// Parameters as in chunked_forward.
/// @throws carve::error  for a chunk length below 1.
template <class T>
void columnwise_forward(const head<T>& p, index_t C, rows<T> o,
                        state_view<T> S) {
  detail::require_chunk(C);
  const auto make = [](const head<T>& h) { return detail::column_chunk<T>(h); };
  if (!p.mask) return detail::walk_chunks(p, C, make, o, S);
  for (index_t j = 0; j < p.values; ++j) {
    detail::walk_chunks(detail::value_column(p, j), C, make, o.from_channel(j),
                        detail::state_column(S, j));
  }
}

/// Forward and backward with one triangular solve per value column; parameters
/// as in recurrent_backward and chunked_forward, gradients are accumulated.
/// @throws carve::error  for a chunk length below 1.
template <class T>
void columnwise_backward(const head<T>& p, index_t C,
                         const head_cotangents<T>& in,
                         const head_gradients<T>& out, rows<T> o = {},
                         state_view<T> S = {}) {
  detail::require_chunk(C);
  const auto make = [](const head<T>& h) { return detail::column_chunk<T>(h); };
  if (!p.mask) return detail::walk_chunks_back(p, C, make, in, out, o, S);
  for (index_t j = 0; j < p.values; ++j) {
    head_gradients<T> column = out;
    column.v = out.v.from_channel(j), column.gd = out.gd.from_channel(j);
    column.e = out.e.from_channel(j), column.w = out.w.from_channel(j);
    column.b = out.mask ? out.mask.column(j) : rows<T>{};
    column.mask = {};
    column.S0 = detail::state_column(out.S0, j);
    const head_cotangents<T> seen{in.o.from_channel(j),
                                  detail::state_column(in.S, j)};
    detail::walk_chunks_back(detail::value_column(p, j), C, make, seen, column,
                             o.from_channel(j), detail::state_column(S, j));
  }
}

}  // namespace carve
