/// @file
/// The recurrence token by token, forward and backward: the definition that
/// every other solver is held to.
#pragma once

#include <algorithm>
#include <vector>

#include "carve/head.hpp"
#include "carve/lanes.hpp"
#include "carve/scalar.hpp"

namespace carve {

namespace detail {

/// Value columns do not see each other in the recurrence, so a state is walked
/// in slices of columns that fit the cache.
template <class T>
inline constexpr index_t slice_columns = sizeof(T) <= 8 ? 64 : 32;

/// Tokens between two stored states of the backward pass.
inline constexpr index_t checkpoint_tokens = 32;

/// Partial sums per dot product; fixed, so a result does not depend on the
/// machine that computes it.
inline constexpr index_t partial_sums = 8;

/// y = alpha * y
template <class T>
CARVE_INLINE void scale_row(lanes_view<T> y, T alpha, index_t n) {
  CARVE_IVDEP
  for (index_t j = 0; j < n; ++j) y[j] = alpha * T(y[j]);
}

/// y = x * y, element by element
template <class T>
CARVE_INLINE void multiply_row(lanes_view<T> y, lanes_view<T> x, index_t n) {
  CARVE_IVDEP
  for (index_t j = 0; j < n; ++j) y[j] = T(x[j]) * T(y[j]);
}

/// y += alpha * x
template <class T>
CARVE_INLINE void add_scaled(lanes_view<T> y, T alpha, lanes_view<T> x,
                             index_t n) {
  CARVE_IVDEP
  for (index_t j = 0; j < n; ++j) y[j] = T(y[j]) + alpha * T(x[j]);
}

/// y += x * z, element by element
template <class T>
CARVE_INLINE void add_product(lanes_view<T> y, lanes_view<T> x, lanes_view<T> z,
                              index_t n) {
  CARVE_IVDEP
  for (index_t j = 0; j < n; ++j) y[j] = T(y[j]) + T(x[j]) * T(z[j]);
}

/// Dot products of `count` pairs of rows at once.  Row i leaves its partial
/// sums in column i of a small table, whose rows are then added up side by
/// side: both steps are loops over independent elements.
template <class T>
class dot_table {
 public:
  explicit dot_table(index_t count)
      : count_(count), table_(partial_sums * count), lane_(partial_sums) {}

  /// Sets entry i to `sum_j x[j] * y[j]`.
  CARVE_INLINE void set(index_t i, lanes_view<T> x, lanes_view<T> y,
                        index_t n) {
    const lanes_view<T> lane = lane_.view();
    const index_t first = std::min(n, partial_sums);
    for (index_t l = 0; l < first; ++l) lane[l] = T(x[l]) * T(y[l]);
    for (index_t l = first; l < partial_sums; ++l) lane[l] = T(0);
    index_t j = partial_sums;
    for (; j + partial_sums <= n; j += partial_sums) {
      CARVE_IVDEP
      for (index_t l = 0; l < partial_sums; ++l) {
        lane[l] = T(lane[l]) + T(x[j + l]) * T(y[j + l]);
      }
    }
    for (index_t l = 0; j < n; ++j, ++l) {
      lane[l] = T(lane[l]) + T(x[j]) * T(y[j]);
    }
    const lanes_view<T> table = table_.view();
    for (index_t l = 0; l < partial_sums; ++l) table[l * count_ + i] = lane[l];
  }

  /// The `count` results.
  CARVE_INLINE lanes_view<T> sum() {
    const lanes_view<T> table = table_.view();
    for (index_t half = partial_sums / 2; half > 0; half /= 2) {
      CARVE_IVDEP
      for (index_t m = 0; m < half * count_; ++m) {
        table[m] = T(table[m]) + T(table[half * count_ + m]);
      }
    }
    return table;
  }

 private:
  index_t count_;
  lanes<T> table_, lane_;
};

/// A slice `[j0, j0 + n)` of one head's value columns, walked token by token.
template <class T>
class recurrence_slice {
 public:
  recurrence_slice(const head<T>& p, index_t j0, index_t n)
      : p_(p),
        j0_(j0),
        n_(n),
        S_(p.keys * n),
        c_(n),
        u_(n),
        d_(n),
        mask_(n),
        v_(p.v.from_channel(j0)),
        dv_(p.d.from_channel(j0)),
        e_(p.e.from_channel(j0)),
        w_(p.w.from_channel(j0)) {
    for (index_t i = 0; i < p.keys; ++i) {
      for (index_t j = 0; j < n; ++j) {
        S_[i * n + j] = p.S0 ? p.S0(i, j0 + j) : T(0);
      }
    }
  }

  lanes<T>& state() { return S_; }
  lanes_view<T> erased() { return c_.view(); }
  lanes_view<T> written() { return u_.view(); }

  /// `b_t * k_t`, the erase address; channel i of it.
  T address(index_t t, index_t i) const {
    return p_.b ? p_.b(t, i) * p_.k(t, i) : p_.k(t, i);
  }
  /// Row i of the full mask at token t.
  CARVE_INLINE lanes_view<T> mask_row(index_t t, index_t i) {
    for (index_t j = 0; j < n_; ++j) mask_[j] = p_.mask(t, i, j0_ + j);
    return mask_.view();
  }
  /// The value-axis decay of token t; called once a token.
  CARVE_INLINE lanes_view<T> value_decay(index_t t) {
    for (index_t j = 0; j < n_; ++j) d_[j] = dv_(t, j);
    return d_.view();
  }

  /// Row i of the state decayed into token t: `a_t[i] S[i,:] * d_t`.
  CARVE_INLINE void decay_row(lanes_view<T> row, index_t t, index_t i) {
    if (p_.a) scale_row(row, T(p_.a(t, i)), n_);
    if (p_.d) multiply_row(row, d_.view(), n_);
  }

  /// Advances the state by token t.
  CARVE_INLINE void step(index_t t) {
    const index_t K = p_.keys;
    const lanes_view<T> S = S_.view(), c = c_.view(), u = u_.view();
    if (p_.d) value_decay(t);
    for (index_t j = 0; j < n_; ++j) c[j] = T(0);
    for (index_t i = 0; i < K; ++i) {
      const lanes_view<T> row = S.sub(i * n_);
      decay_row(row, t, i);
      if (!p_.erases) continue;
      if (p_.mask) {
        const lanes_view<T> m = mask_row(t, i);
        scale_row(m, address(t, i), n_);
        add_product(c, m, row, n_);
      } else {
        add_scaled(c, address(t, i), row, n_);
      }
    }
    for (index_t j = 0; j < n_; ++j) {
      T erased = c[j];
      if (e_) erased = e_(t, j) * erased;
      T value = v_ ? T(v_(t, j)) : T(0);
      if (w_) value = w_(t, j) * value;
      u[j] = value - erased;
    }
    for (index_t i = 0; i < K; ++i) {
      add_scaled(S.sub(i * n_), T(p_.k(t, i)), u, n_);
    }
  }

  /// `o = scale * S^T q_t` of the state as it stands.
  CARVE_INLINE void read(index_t t, const rows<T>& o, lanes_view<T> sum) {
    for (index_t j = 0; j < n_; ++j) sum[j] = T(0);
    for (index_t i = 0; i < p_.keys; ++i) {
      add_scaled(sum, T(p_.q(t, i)), S_.view().sub(i * n_), n_);
    }
    for (index_t j = 0; j < n_; ++j) o(t, j0_ + j) = p_.scale * T(sum[j]);
  }

  /// One token: state and, where `o` is given, its output.
  CARVE_INLINE void walk(index_t t, const rows<T>& o, lanes_view<T> sum) {
    if (o && p_.read == readout::before) read(t, o, sum);
    step(t);
    if (o && p_.read == readout::after) read(t, o, sum);
  }

 private:
  const head<T>& p_;
  index_t j0_, n_;
  lanes<T> S_, c_, u_, d_, mask_;
  rows<const T> v_, dv_, e_, w_;
};

/// The reverse walk of one slice of columns.
template <class T>
class reverse_slice {
 public:
  reverse_slice(const head<T>& p, const head_cotangents<T>& in,
                const head_gradients<T>& out, index_t j0, index_t n)
      : p_(p),
        in_(in),
        out_(out),
        j0_(j0),
        n_(n),
        dS_(p.keys * n),
        du_(n),
        dc_(n),
        do_(n),
        decayed_(n),
        weighted_(n),
        q_(p.keys),
        k_(p.keys),
        r_(p.keys),
        g_(p.keys) {
    for (index_t i = 0; i < p.keys; ++i) {
      for (index_t j = 0; j < n; ++j) {
        dS_[i * n + j] = in.S ? in.S(i, j0 + j) : T(0);
      }
    }
  }

  /// One token back.  `before` and `after` are the states S_{t-1} and S_t, `c`
  /// and `u` what the token erased (before the value-axis gate) and wrote.
  CARVE_INLINE void step(index_t t, recurrence_slice<T>& forward,
                         lanes_view<T> before, lanes_view<T> after,
                         lanes_view<T> c, lanes_view<T> u) {
    const index_t K = p_.keys;
    const lanes_view<T> dS = dS_.view(), du = du_.view(), dc = dc_.view();
    const lanes_view<T> dout = do_.view();
    const bool reads = static_cast<bool>(in_.o);
    for (index_t j = 0; j < n_; ++j) {
      du[j] = T(0);
      dout[j] = reads ? p_.scale * in_.o(t, j0_ + j) : T(0);
    }
    if (reads && p_.read == readout::after) read_back(t, after);
    for (index_t i = 0; i < K; ++i) {
      add_scaled(du, T(p_.k(t, i)), dS.sub(i * n_), n_);
    }
    for (index_t j = 0; j < n_; ++j) back_through_write(t, j, T(c[j]));
    if (p_.d) forward.value_decay(t);
    for (index_t i = 0; i < K; ++i) {
      const lanes_view<T> row = dS.sub(i * n_);
      const lanes_view<T> decayed = decayed_.view();
      k_.set(i, row, u, n_);
      CARVE_IVDEP
      for (index_t j = 0; j < n_; ++j) decayed[j] = before[i * n_ + j];
      forward.decay_row(decayed, t, i);
      if (p_.erases) back_through_erase(t, i, forward, row);
      g_.set(i, row, decayed, n_);
      if (out_.gd) {
        for (index_t j = 0; j < n_; ++j) {
          out_.gd(t, j0_ + j) += T(row[j]) * T(decayed[j]);
        }
      }
      forward.decay_row(row, t, i);
    }
    if (reads && p_.read == readout::before) read_back(t, before);
    collect(t);
  }

  /// Adds the cotangent of the start state to where it belongs.
  void finish() {
    if (!out_.S0) return;
    for (index_t i = 0; i < p_.keys; ++i) {
      for (index_t j = 0; j < n_; ++j)
        out_.S0(i, j0_ + j) += T(dS_[i * n_ + j]);
    }
  }

 private:
  /// Back through `o_t = scale * S^T q_t`.
  CARVE_INLINE void read_back(index_t t, lanes_view<T> S) {
    const lanes_view<T> dout = do_.view();
    for (index_t i = 0; i < p_.keys; ++i) {
      q_.set(i, S.sub(i * n_), dout, n_);
      add_scaled(dS_.view().sub(i * n_), T(p_.q(t, i)), dout, n_);
    }
  }

  /// Back through `u = w * v - e * c` at value channel j.
  CARVE_INLINE void back_through_write(index_t t, index_t j, const T& c) {
    const T du = du_[j];
    const index_t jj = j0_ + j;
    if (p_.v) {
      const T v = p_.v(t, jj);
      if (out_.w) out_.w(t, jj) += du * v;
      if (out_.v) out_.v(t, jj) += p_.w ? du * p_.w(t, jj) : du;
    }
    if (out_.e) out_.e(t, jj) += -(du * c);
    dc_[j] = p_.e ? -(du * p_.e(t, jj)) : -du;
  }

  /// Back through `c = S~^T r` at key channel i; `row` becomes that of dS~.
  CARVE_INLINE void back_through_erase(index_t t, index_t i,
                                       recurrence_slice<T>& forward,
                                       lanes_view<T> row) {
    const lanes_view<T> dc = dc_.view(), decayed = decayed_.view();
    const T r = forward.address(t, i);
    if (!p_.mask) {
      r_.set(i, decayed, dc, n_);
      add_scaled(row, r, dc, n_);
      return;
    }
    const lanes_view<T> m = forward.mask_row(t, i);
    const lanes_view<T> weighted = weighted_.view();
    CARVE_IVDEP
    for (index_t j = 0; j < n_; ++j) weighted[j] = T(m[j]) * T(dc[j]);
    r_.set(i, decayed, weighted, n_);
    add_scaled(row, r, weighted, n_);
    if (out_.mask) {
      for (index_t j = 0; j < n_; ++j) {
        out_.mask(t, i, j0_ + j) += r * (T(dc[j]) * T(decayed[j]));
      }
    }
  }

  /// Adds this token's sums over value columns to the key-axis gradients.
  CARVE_INLINE void collect(index_t t) {
    const lanes_view<T> dk = k_.sum(), dr = r_.sum();
    const lanes_view<T> dq = q_.sum(), dg = g_.sum();
    for (index_t i = 0; i < p_.keys; ++i) {
      if (in_.o && out_.q) out_.q(t, i) += T(dq[i]);
      if (out_.g) out_.g(t, i) += T(dg[i]);
      if (out_.k) out_.k(t, i) += T(dk[i]);
      if (!p_.erases) continue;
      const T dri = dr[i];
      if (out_.k) out_.k(t, i) += p_.b ? dri * p_.b(t, i) : dri;
      if (out_.b) out_.b(t, i) += dri * p_.k(t, i);
    }
  }

  const head<T>& p_;
  const head_cotangents<T>& in_;
  const head_gradients<T>& out_;
  index_t j0_, n_;
  lanes<T> dS_, du_, dc_, do_, decayed_, weighted_;
  dot_table<T> q_, k_, r_, g_;
};

}  // namespace detail

/// Forward, token by token.
///
/// @param[in] p   the head; see head for shapes and the equations.
/// @param[out] o  outputs `[T,V]`, or a null view when only the state is
///                wanted.
/// @param[out] S  final state `[K,V]`, or a null view.
///
/// Work `3 to 4 T K V` multiply-adds; memory one slice of the state.
/// Source: the recurrences of arXiv 2412.06464, 2510.26692, 2605.22791 and
/// 2606.27229, which differ only in the axis of their gates.
template <class T>
void recurrent_forward(const head<T>& p, rows<T> o, state_view<T> S) {
  for (index_t j0 = 0; j0 < p.values; j0 += detail::slice_columns<T>) {
    const index_t n = std::min(detail::slice_columns<T>, p.values - j0);
    detail::recurrence_slice<T> slice(p, j0, n);
    lanes<T> sum(n);
    for (index_t t = 0; t < p.tokens; ++t) slice.walk(t, o, sum.view());
    if (!S) continue;
    for (index_t i = 0; i < p.keys; ++i) {
      for (index_t j = 0; j < n; ++j) S(i, j0 + j) = slice.state()[i * n + j];
    }
  }
}

/// Forward and backward, token by token.
///
/// @param[in] p     the head.
/// @param[in] in    cotangents of outputs and final state.
/// @param[in] out   gradients, accumulated into with `+=`.
/// @param[out] o    outputs `[T,V]`, or a null view.
/// @param[out] S    final state `[K,V]`, or a null view.
///
/// With `dS` the running cotangent of `S_t` and `c_t = S~_t^T r_t`:
///
///     dq_t = scale * S_t do_t        dS += scale * q_t do_t^T
///     du_t = dS^T k_t                dk_t = dS u_t
///     dw_t = du_t * v_t              dv_t = du_t * w_t
///     de_t = -du_t * c_t             dc_t = -du_t * e_t
///     dS~  = dS + r_t dc_t^T         dr_t = S~_t dc_t
///     db_t = dr_t * k_t              dk_t += dr_t * b_t
///     dg_t = rowsum(dS~ * S~_t)      (value axis: the column sum)
///     dS   = diag(a_t) dS~ diag(d_t)
///
/// States are stored at every 32nd token and recomputed in between; no array
/// of the size `T K V` is ever formed.
template <class T>
void recurrent_backward(const head<T>& p, const head_cotangents<T>& in,
                        const head_gradients<T>& out, rows<T> o = {},
                        state_view<T> S = {}) {
  using detail::checkpoint_tokens;
  const index_t K = p.keys, T_ = p.tokens;
  const index_t blocks = (T_ + checkpoint_tokens - 1) / checkpoint_tokens;
  for (index_t j0 = 0; j0 < p.values; j0 += detail::slice_columns<T>) {
    const index_t n = std::min(detail::slice_columns<T>, p.values - j0);
    const index_t size = K * n;
    detail::recurrence_slice<T> slice(p, j0, n);
    lanes<T> sum(n);
    lanes<T> starts(blocks * size);
    const auto copy = [size](lanes_view<T> to, lanes_view<T> from) {
      CARVE_IVDEP
      for (index_t m = 0; m < size; ++m) to[m] = from[m];
    };
    for (index_t t = 0; t < T_; ++t) {
      if (t % checkpoint_tokens == 0) {
        copy(starts.view().sub(t / checkpoint_tokens * size),
             slice.state().view());
      }
      slice.walk(t, o, sum.view());
    }
    if (S) {
      for (index_t i = 0; i < K; ++i) {
        for (index_t j = 0; j < n; ++j) S(i, j0 + j) = slice.state()[i * n + j];
      }
    }
    detail::reverse_slice<T> reverse(p, in, out, j0, n);
    const index_t held = std::min(checkpoint_tokens, T_);
    lanes<T> states((held + 1) * size), erased(held * n), written(held * n);
    for (index_t block = blocks; block-- > 0;) {
      const index_t t0 = block * checkpoint_tokens;
      const index_t count = std::min(checkpoint_tokens, T_ - t0);
      copy(slice.state().view(), starts.view().sub(block * size));
      copy(states.view(), slice.state().view());
      for (index_t s = 0; s < count; ++s) {
        slice.step(t0 + s);
        copy(states.view().sub((s + 1) * size), slice.state().view());
        for (index_t j = 0; j < n; ++j) {
          erased[s * n + j] = slice.erased()[j];
          written[s * n + j] = slice.written()[j];
        }
      }
      for (index_t s = count; s-- > 0;) {
        reverse.step(t0 + s, slice, states.view().sub(s * size),
                     states.view().sub((s + 1) * size),
                     erased.view().sub(s * n), written.view().sub(s * n));
      }
    }
    reverse.finish();
  }
}

}  // namespace carve
