/// @file
/// What is right? The recurrence as its equations have it, forward and
/// backward, over any commutative ring. Every solver is held to it.
#pragma once

#include "carve/head.hpp"
#include "carve/matrix.hpp"

namespace carve {

namespace detail {

/// A tensor that reads as one number where it is absent.
template <class View, class T>
struct or_else {
  View x;
  T otherwise;
  template <class... Index>
  T operator()(Index... at) const {
    return x ? T(x(at...)) : otherwise;
  }
};

/// Clang before 17 deduces no aggregate by itself.
template <class View, class T>
or_else(View, T) -> or_else<View, T>;

/// `x += y` where x is present.
template <class View, class T, class... Index>
void add(const View& x, const T& y, Index... at) {
  if (x) x(at...) += y;
}

/// `f(i, j)` for every key channel i and value channel j.
template <class F>
void for_each(index_t K, index_t V, F&& f) {
  for (index_t i = 0; i < K; ++i) {
    for (index_t j = 0; j < V; ++j) f(i, j);
  }
}

}  // namespace detail

/// What one sub-step leaves for the way back: the state before it, S~, the
/// state after it, `c = X^T r`, and what is written along k.
template <class T>
struct step_record {
  /// `S_{t-1}`, `S~_t`, `S_t`.
  ///@{
  matrix<T> before, decayed, after;
  ///@}
  /// `X^T r` and `w * v`, less what is erased along k, each of length V.
  ///@{
  detail::list<T> c, u;
  ///@}
};

/// Forward: outputs `[T,V]` and final state `[K,V]`; a null view is skipped.
///
///     S~_t = diag(a_t) S_{t-1} diag(d_t)      r_t = b_t * k_t, y_t = k_t
///     c_t  = X^T r_t,  X = S~_t               where they are not given
///     S_t  = S~_t + k_t (w_t * v_t)^T - y_t (e_t * c_t)^T
///     o_t  = scale * S_t^T q_t
///
/// Of a token with n sub-steps the first decays and the last is read. With a
/// full mask `c_t[j] = sum_i r_i E_ij X_ij`; see head for the other choices.
/// @throws carve::error  as require_step does.
/// Source: arXiv 2412.06464, 2510.26692, 2605.22791, 2606.27229, 2506.02475,
/// 2503.14456, 2502.10297.
template <class T>
void definition_forward(const head<T>& p, rows<T> o, state_view<T> S_end,
                        detail::list<step_record<T>>* past = nullptr) {
  using detail::for_each, detail::list, detail::or_else;
  require_step(p);
  const T zero(0), one(1);
  const or_else a{p.a, one}, d{p.d, one}, e{p.e, one}, w{p.w, one};
  const or_else E{p.mask, one};
  const or_else v{p.v, zero};
  const or_else S0{p.S0, zero};
  const index_t K = p.keys, V = p.values, n = p.substeps;
  matrix<T> S(K, V);
  for_each(K, V, [&](index_t i, index_t j) { S(i, j) = S0(i, j); });
  const auto read = [&](index_t t) {
    list<T> sum(V, zero);
    for_each(K, V, [&](auto i, auto j) { sum[j] += p.q(t, i) * S(i, j); });
    for (index_t j = 0; j < V; ++j) o(t, j) = p.scale * sum[j];
  };
  for (index_t m = 0; m < p.steps(); ++m) {
    const index_t t = m / n;
    const bool first = m % n == 0, last = m % n == n - 1;
    if (o && first && p.read == readout::before) read(t);
    const matrix<T> before = S;
    if (first) {
      for_each(K, V, [&](auto i, auto j) {
        S(i, j) = d(t, j) * T(a(t, i) * S(i, j));
      });
    }
    const matrix<T> decayed = S;
    const matrix<T>& X =
        p.erase_reads == erase_order::before_decay ? before : decayed;
    list<T> c(V, zero), u(V, zero);
    for_each(p.erases ? K : 0, V, [&](auto i, auto j) {
      c[j] += p.address(m, i) * T(E(m, i, j) * X(i, j));
    });
    for (index_t j = 0; j < V; ++j) {
      u[j] = w(m, j) * v(m, j);
      if (!p.y) u[j] = u[j] - e(m, j) * c[j];  // both along k
    }
    for_each(K, V, [&](auto i, auto j) {
      S(i, j) += p.k(m, i) * u[j];
      if (p.y) S(i, j) -= p.y(m, i) * T(e(m, j) * c[j]);
    });
    if (o && last && p.read == readout::after) read(t);
    if (past) past->push_back({before, decayed, S, c, u});
  }
  for_each(S_end ? K : 0, V, [&](auto i, auto j) { S_end(i, j) = S(i, j); });
}

/// Forward and backward; gradients are accumulated into `out`. With `dS` the
/// running cotangent of `S_t`, from the last token to the first:
///
///     dq_t = scale * S_t do_t        dS += scale * q_t do_t^T
///     dx_t = dS^T k_t                dk_t = dS (w_t * v_t)
///     dw_t = dx_t * v_t              dv_t = dx_t * w_t
///     dz_t = -dS^T y_t               dy_t = -dS (e_t * c_t)
///     de_t = dz_t * c_t              dc_t = dz_t * e_t
///     dX   = r_t dc_t^T              dr_t = X dc_t
///     dS~  = dS + dX if X = S~_t     db_t = dr_t * k_t, dk_t += dr_t * b_t
///     dg_t = rowsum(dS~ * S~_t)      (value axis: the column sum)
///     dS   = diag(a_t) dS~ diag(d_t) + dX if X = S_{t-1}
///
/// Where y is not given, dy goes to dk. Parameters as in definition_forward.
template <class T>
void definition_backward(const head<T>& p, const head_cotangents<T>& in,
                         const head_gradients<T>& out, rows<T> o = {},
                         state_view<T> S_end = {}) {
  using detail::add, detail::for_each, detail::list, detail::or_else;
  const T zero(0), one(1);
  const or_else a{p.a, one}, d{p.d, one}, b{p.b, one}, e{p.e, one};
  const or_else w{p.w, one};
  const or_else E{p.mask, one};
  const or_else dS_end{in.S, zero};
  const index_t K = p.keys, V = p.values, n = p.substeps;
  list<step_record<T>> past;
  definition_forward(p, o, S_end, &past);
  matrix<T> dS(K, V);
  for_each(K, V, [&](auto i, auto j) { dS(i, j) = dS_end(i, j); });
  const auto read_back = [&](index_t t, const matrix<T>& S) {
    list<T> dq(K, zero);
    for_each(K, V, [&](auto i, auto j) {
      const T x = p.scale * in.o(t, j);
      dq[i] += S(i, j) * x;
      dS(i, j) += p.q(t, i) * x;
    });
    for (index_t i = 0; i < K; ++i) add(out.q, dq[i], t, i);
  };
  for (index_t m = p.steps(); m-- > 0;) {
    // Names of their own: Clang before 16 captures no structured binding.
    const step_record<T>& step = past[m];
    const matrix<T>&before = step.before, &decayed = step.decayed;
    const list<T>&c = step.c, &u = step.u;
    const index_t t = m / n;
    const bool first = m % n == 0, last = m % n == n - 1;
    const bool stored = p.erase_reads == erase_order::before_decay;
    const matrix<T>& X = stored ? before : decayed;
    if (in.o && last && p.read == readout::after) read_back(t, step.after);
    list<T> dx(V, zero), dz(V, zero), dc(V, zero);
    list<T> dk(K, zero), dy(K, zero), dr(K, zero);
    for_each(K, V, [&](auto i, auto j) {
      dx[j] += p.k(m, i) * dS(i, j);
      if (p.y) dz[j] -= p.y(m, i) * dS(i, j);
      dk[i] += dS(i, j) * u[j];
      if (p.y) dy[i] -= dS(i, j) * T(e(m, j) * c[j]);
    });
    for (index_t j = 0; j < V; ++j) {
      if (!p.y) dz[j] = -dx[j];
      dc[j] = dz[j] * e(m, j);
      if (p.v) add(out.w, T(dx[j] * p.v(m, j)), m, j);
      if (p.v) add(out.v, T(dx[j] * w(m, j)), m, j);
      add(out.e, T(dz[j] * c[j]), m, j);
    }
    const auto look_back = [&](auto i, auto j) {
      const T r = p.address(m, i), x = E(m, i, j) * dc[j];
      dr[i] += X(i, j) * x;
      dS(i, j) += r * x;
      add(out.mask, T(r * T(dc[j] * X(i, j))), m, i, j);
    };
    if (p.erases && !stored) for_each(K, V, look_back);
    if (first) {
      list<T> dg(K, zero), dgd(V, zero);
      for_each(K, V, [&](auto i, auto j) {
        const T x = dS(i, j) * decayed(i, j);
        dg[i] += x, dgd[j] += x;
        dS(i, j) = d(t, j) * T(a(t, i) * dS(i, j));
      });
      for (index_t i = 0; i < K; ++i) add(out.g, dg[i], t, i);
      for (index_t j = 0; j < V; ++j) add(out.gd, dgd[j], t, j);
    }
    if (p.erases && stored) for_each(K, V, look_back);
    for (index_t i = 0; i < K; ++i) {
      add(out.k, dk[i], m, i);
      add(p.y ? out.y : rows<T>{}, dy[i], m, i);
      if (!p.erases) continue;
      add(out.r, dr[i], m, i);
      if (p.r) continue;
      add(out.k, T(dr[i] * b(m, i)), m, i);
      add(out.b, T(dr[i] * p.k(m, i)), m, i);
    }
    if (in.o && first && p.read == readout::before) read_back(t, before);
  }
  for_each(K, V, [&](auto i, auto j) { add(out.S0, dS(i, j), i, j); });
}

}  // namespace carve
