/// @file
/// What is right? The recurrence as its equations have it, forward and
/// backward, over any commutative ring. Every solver is held to it.
#pragma once

#include <vector>

#include "carve/head.hpp"
#include "carve/matrix.hpp"

namespace carve {

namespace detail {

/// Element of a tensor, or what stands for it where it is absent.
template <class T, class View, class... Index>
T or_else(const T& otherwise, const View& x, Index... at) {
  return x ? T(x(at...)) : otherwise;
}

/// `x += y` where x is present.
template <class View, class T, class... Index>
void add(const View& x, const T& y, Index... at) {
  if (x) x(at...) += y;
}

}  // namespace detail

/// What one token leaves for the way back: S_{t-1}, S~_t, S_t, and what it
/// erases (before the gate e) and writes.
template <class T>
struct token_record {
  matrix<T> before, decayed, after;
  std::vector<T> c, u;
};

/// Forward: outputs `[T,V]`, final state `[K,V]`; a null view is skipped.
///
///     S~_t = diag(a_t) S_{t-1} diag(d_t)      r_t  = b_t * k_t
///     c_t  = S~_t^T r_t                       u_t  = w_t * v_t - e_t * c_t
///     S_t  = S~_t + k_t u_t^T                 o_t  = scale * S_t^T q_t
///
/// A full mask weights the erase: `c_t[j] = sum_i r_i E_ij S~_ij`.
/// Source: arXiv 2412.06464, 2510.26692, 2605.22791, 2606.27229, which differ
/// only in the axes of their gates.
template <class T>
void definition_forward(const head<T>& p, rows<T> o, state_view<T> S_end,
                        std::vector<token_record<T>>* past = nullptr) {
  using detail::or_else;
  const T zero(0), one(1);
  const index_t K = p.keys, V = p.values;
  matrix<T> S = matrix<T>::Constant(K, V, zero);
  for (index_t i = 0; i < K; ++i) {
    for (index_t j = 0; j < V; ++j) S(i, j) = or_else(zero, p.S0, i, j);
  }
  const auto read = [&](index_t t) {
    for (index_t j = 0; j < V && o; ++j) {
      T sum(0);
      for (index_t i = 0; i < K; ++i) sum += p.q(t, i) * S(i, j);
      o(t, j) = p.scale * sum;
    }
  };
  for (index_t t = 0; t < p.tokens; ++t) {
    const matrix<T> before = S;
    std::vector<T> c(V, zero), u(V, zero);
    if (p.read == readout::before) read(t);
    for (index_t i = 0; i < K; ++i) {
      for (index_t j = 0; j < V; ++j) {
        S(i, j) = or_else(one, p.a, t, i) * S(i, j);
        S(i, j) = or_else(one, p.d, t, j) * S(i, j);
      }
    }
    const matrix<T> decayed = S;
    for (index_t j = 0; j < V; ++j) {
      for (index_t i = 0; i < K && p.erases; ++i) {
        const T r = or_else(one, p.b, t, i) * p.k(t, i);
        c[j] += r * (or_else(one, p.mask, t, i, j) * S(i, j));
      }
      u[j] = or_else(one, p.w, t, j) * or_else(zero, p.v, t, j) -
             or_else(one, p.e, t, j) * c[j];
      for (index_t i = 0; i < K; ++i) S(i, j) += p.k(t, i) * u[j];
    }
    if (p.read == readout::after) read(t);
    if (past) past->push_back({before, decayed, S, c, u});
  }
  for (index_t i = 0; i < K && S_end; ++i) {
    for (index_t j = 0; j < V; ++j) S_end(i, j) = S(i, j);
  }
}

/// Forward and backward; gradients are accumulated into `out`. With `dS` the
/// running cotangent of `S_t`, walked from the last token to the first:
///
///     dq_t = scale * S_t do_t        dS += scale * q_t do_t^T
///     du_t = dS^T k_t                dk_t = dS u_t
///     dw_t = du_t * v_t              dv_t = du_t * w_t
///     de_t = -du_t * c_t             dc_t = -du_t * e_t
///     dS~  = dS + r_t dc_t^T         dr_t = S~_t dc_t
///     db_t = dr_t * k_t              dk_t += dr_t * b_t
///     dg_t = rowsum(dS~ * S~_t)      (value axis: the column sum)
///     dS   = diag(a_t) dS~ diag(d_t)
template <class T>
void definition_backward(const head<T>& p, const head_cotangents<T>& in,
                         const head_gradients<T>& out, rows<T> o = {},
                         state_view<T> S_end = {}) {
  using detail::add, detail::or_else;
  const T zero(0), one(1);
  const index_t K = p.keys, V = p.values;
  std::vector<token_record<T>> past;
  definition_forward(p, o, S_end, &past);
  matrix<T> dS = matrix<T>::Constant(K, V, zero);
  for (index_t i = 0; i < K; ++i) {
    for (index_t j = 0; j < V; ++j) dS(i, j) = or_else(zero, in.S, i, j);
  }
  for (index_t t = p.tokens; t-- > 0;) {
    const auto& [before, decayed, after, c, u] = past[t];
    const auto read_back = [&](const matrix<T>& S) {
      for (index_t i = 0; i < K && in.o; ++i) {
        T dq(0);
        for (index_t j = 0; j < V; ++j) {
          const T dout = p.scale * in.o(t, j);
          dq += S(i, j) * dout;
          dS(i, j) += p.q(t, i) * dout;
        }
        add(out.q, dq, t, i);
      }
    };
    if (p.read == readout::after) read_back(after);
    std::vector<T> dc(V, zero), dgd(V, zero);
    for (index_t j = 0; j < V; ++j) {
      T du(0);
      for (index_t i = 0; i < K; ++i) du += p.k(t, i) * dS(i, j);
      if (p.v) add(out.w, T(du * p.v(t, j)), t, j);
      if (p.v) add(out.v, T(du * or_else(one, p.w, t, j)), t, j);
      add(out.e, T(-(du * c[j])), t, j);
      dc[j] = -(du * or_else(one, p.e, t, j));
    }
    for (index_t i = 0; i < K; ++i) {
      const T b = or_else(one, p.b, t, i), k = p.k(t, i);
      T dk(0), dr(0), dg(0);
      for (index_t j = 0; j < V; ++j) {
        dk += dS(i, j) * u[j];
        if (p.erases) {
          const T x = or_else(one, p.mask, t, i, j) * dc[j];
          dr += decayed(i, j) * x;
          dS(i, j) += b * k * x;
          add(out.mask, T(b * k * (dc[j] * decayed(i, j))), t, i, j);
        }
        dg += dS(i, j) * decayed(i, j);
        dgd[j] += dS(i, j) * decayed(i, j);
        dS(i, j) = or_else(one, p.a, t, i) * dS(i, j);
        dS(i, j) = or_else(one, p.d, t, j) * dS(i, j);
      }
      add(out.k, dk, t, i);
      add(out.g, dg, t, i);
      if (p.erases) add(out.k, T(dr * b), t, i);
      if (p.erases) add(out.b, T(dr * k), t, i);
    }
    for (index_t j = 0; j < V; ++j) add(out.gd, dgd[j], t, j);
    if (p.read == readout::before) read_back(before);
  }
  for (index_t i = 0; i < K; ++i) {
    for (index_t j = 0; j < V; ++j) add(out.S0, dS(i, j), i, j);
  }
}

}  // namespace carve
