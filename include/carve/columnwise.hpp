/// @file
/// The column-by-column chunked form, forward and backward: one triangular
/// solve per value column, for gates that erase on the value axis.
#pragma once

#include <Eigen/Core>
#include <utility>
#include <vector>

#include "carve/chunk_base.hpp"
#include "carve/chunk_parts.hpp"
#include "carve/head.hpp"
#include "carve/matrix.hpp"

namespace carve {

namespace detail {

inline constexpr exact_policy unrounded{};

/// One chunk, its system solved column by column.
template <class T>
class column_chunk : chunk_base<T, exact_policy> {
 public:
  explicit column_chunk(const head<T>& p) : base(p, unrounded) {
    P_ = scores(q_, direction(), decay_, unrounded);
    from_writes_ = wv_;
    if (!apart_) return;
    Pk_ = scores(q_, k_, decay_, unrounded);
    from_writes_ = scaled(e_, matrix<T>(-this->look(N_, wv_)));
  }

  /// Finds what comes to lie along y from the start state `S` `[K,V]`.
  void solve(const matrix<T>& S) {
    S_ = S;
    U_ = from_writes_;
    if (!p_.erases) return;
    U_ -= scaled(e_, scaled(look_D_, scaled(look_G_, r_) * S_));
    // u_t = x_t - e_t * sum_{s<t} L_ts rho_ts * u_s
    for_columns([this](index_t j, index_t t, index_t s, const T& rho) {
      U_(t, j) -= gate(t, j) * (L_(t, s) * (rho * U_(s, j)));
    });
  }

  matrix<T> outputs() const { return this->outputs_of(p_.scale * reads(), S_); }

  void advance(matrix<T>& S) const {
    decay_state<T>(S, last_row(G_), last_row(D_));
    S += scaled(tail_, direction()).transpose() * scaled(Dtail_, U_);
    if (apart_) S += scaled(tail_, k_).transpose() * scaled(Dtail_, wv_);
  }

  /// The way back; see wy_chunk::backward.
  void backward(const matrix<T>& dout, matrix<T>& dS,
                const head_gradients<T>& out) const {
    const matrix<T> dO = p_.scale * this->spread(dout);
    const matrix<T> dOd = scaled(D_, dO);
    // Cotangent of u, then through the transposed systems: that of the
    // right-hand side.
    matrix<T> X = of_content(P_, direction(), dO, dS);
    if (p_.erases) {
      for_columns_back([&](index_t j, index_t t, index_t s, const T& rho) {
        X(s, j) -= gate(t, j) * (L_(t, s) * (rho * X(t, j)));
      });
    }
    const matrix<T> dc = scaled(e_, matrix<T>(-X));
    const matrix<T> dcd = scaled(look_D_, dc);
    matrix<T> dq = scaled(G_, dOd * S_.transpose());
    matrix<T> dy = scaled(tail_, scaled(Dtail_, U_) * dS.transpose());
    matrix<T> dr = matrix<T>::Constant(n_, K_, T(0));
    scores_back(weighted_.outer(dO, U_), q_, direction(), decay_, unrounded, dq,
                dy);
    if (p_.erases) {
      dr = scaled(look_G_, dcd * S_.transpose());
      this->couplings_back(this->look_outer(dc, U_), direction(), dr, dy);
    }
    matrix<T> dwv = X, dk;
    if (apart_) {
      dwv = of_content(Pk_, k_, dO, dS) + this->look_transposed(N_, dc);
      dk = scaled(tail_, scaled(Dtail_, wv_) * dS.transpose());
      scores_back(weighted_.outer(dO, wv_), q_, k_, decay_, unrounded, dq, dk);
      this->couplings_back(this->look_outer(dc, wv_), k_, dr, dk);
    }
    if (out.g || out.gd) {
      matrix<T> dG = q_.cwiseProduct(dq) - direction().cwiseProduct(dy);
      if (apart_) dG -= k_.cwiseProduct(dk);
      dG += shifted<T>(r_.cwiseProduct(dr), this->look_lag_);
      decay_gradients(std::move(dG), dO, X, dwv, dS, out);
    }
    if (out.e && p_.erases) {
      matrix<T> c =
          scaled(look_D_, scaled(look_G_, r_) * S_) + this->look(L_, U_);
      if (apart_) c += this->look(N_, wv_);
      scatter_add<T>(out.e, -X.cwiseProduct(c));
    }
    dq = this->collected(dq);
    matrix<T> start_back = scaled(G_, q_).transpose() * dOd;
    this->first_read_back(T(1), p_.scale * dout, S_, dq, start_back);
    scatter_add(out.q, dq);
    if (p_.erases) {
      start_back += scaled(look_G_, r_).transpose() * dcd;
      address_back(dr, apart_ ? dk : dy, out);
    }
    scatter_add(out.k, apart_ ? dk : dy);
    if (apart_) scatter_add(out.y, dy);
    this->scatter_written(dwv, out);
    decay_state<T>(dS, last_row(G_), last_row(D_));
    dS += start_back;
  }

 private:
  using base = chunk_base<T, exact_policy>;
  using base::D_, base::Dtail_, base::G_, base::K_, base::L_, base::N_;
  using base::k_, base::last_row, base::look_D_, base::look_G_, base::n_;
  using base::p_, base::q_, base::r_, base::tail_, base::value_decay_;
  using base::V_, base::apart_, base::decay_, base::direction, base::e_;
  using base::weighted_, base::wv_;

  T gate(index_t t, index_t j) const {
    return e_.size() != 0 ? T(e_(t, j)) : T(1);
  }

  /// `f(j, t, s, rho)` for every column and pair `s < t`, t ascending, rho
  /// being the value-axis decay between s and the state that t looks up.
  template <class F>
  void for_columns(F&& f) const {
    for (index_t t = 0; t < n_; ++t) {
      const matrix<T> rho = value_decay_.before(0, t, t - this->look_lag_);
      for (index_t s = 0; s < t; ++s) {
        for (index_t j = 0; j < V_; ++j) f(j, t, s, rho(s, j));
      }
    }
  }
  /// The same with t descending.
  template <class F>
  void for_columns_back(F&& f) const {
    for (index_t t = n_; t-- > 0;) {
      const matrix<T> rho = value_decay_.before(0, t, t - this->look_lag_);
      for (index_t s = 0; s < t; ++s) {
        for (index_t j = 0; j < V_; ++j) f(j, t, s, rho(s, j));
      }
    }
  }

  /// Read-outs before their scale.
  matrix<T> reads() const {
    matrix<T> o = scaled(D_, scaled(G_, q_) * S_) + weighted_.lower(P_, U_);
    if (apart_) o += weighted_.lower(Pk_, wv_);
    return o;
  }

  /// Cotangent of what the state holds along `keys`, which queries read by the
  /// scores `P`.
  matrix<T> of_content(const matrix<T>& P, const matrix<T>& keys,
                       const matrix<T>& dO, const matrix<T>& dS) const {
    matrix<T> X = weighted_.lower_transposed(P, dO);
    X += scaled(Dtail_, scaled(tail_, keys) * dS);
    return X;
  }

  /// Adds the cotangent of the address to the tensors that it came from.
  void address_back(const matrix<T>& dr, matrix<T>& dk,
                    const head_gradients<T>& out) const {
    if (p_.r) return scatter_add(out.r, dr);
    scatter_add<T>(out.b, dr.cwiseProduct(k_));
    dk += p_.b ? dr.cwiseProduct(gather<T>(p_.b, n_, K_)).eval() : dr;
  }

  /// Gradients of the log decays of both axes.
  /// @param dG  what queries, keys and addresses add to each sub-step.
  void decay_gradients(matrix<T> dG, const matrix<T>& dO, const matrix<T>& X,
                       const matrix<T>& dwv, const matrix<T>& dS,
                       const head_gradients<T>& out) const {
    matrix<T> dD = dO.cwiseProduct(reads()) - dwv.cwiseProduct(wv_);
    if (this->look_lag_ == 1 && p_.erases) {
      // What is looked up carries no decay of its own sub-step.
      const matrix<T> x = X.cwiseProduct(apart_ ? U_ : matrix<T>(U_ - wv_));
      dD += shifted(x, 1) - x;
    }
    matrix<T> end = S_;
    advance(end);
    for (index_t i = 0; i < K_; ++i) {
      for (index_t j = 0; j < V_; ++j) {
        const T x = dS(i, j) * end(i, j);
        dG(n_ - 1, i) += x;
        dD(n_ - 1, j) += x;
      }
    }
    this->scatter_decay(std::move(dG), out.g);
    this->scatter_decay(std::move(dD), out.gd);
  }

  matrix<T> P_, Pk_;
  matrix<T> from_writes_;  // of the right-hand side
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
  detail::require_chunks(p, C);
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
  detail::require_chunks(p, C);
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
