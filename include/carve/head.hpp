/// @file
/// One head of one sequence: the tensors that a solver reads and the gradients
/// that it writes, as strided views.  Everything below the batch works on this.
#pragma once

#include <type_traits>

#include "carve/error.hpp"
#include "carve/family.hpp"
#include "carve/index.hpp"

namespace carve {

/// A `[tokens, channels]` tensor of one head, seen through strides (counted in
/// elements).  A channel stride of zero broadcasts one number per token over
/// its axis: a scalar gate is nothing else.  Gradients are accumulated with
/// `+=`, so a broadcast gate's gradient is the sum over its channels, and two
/// gates tied to the same memory sum theirs.  A null view means "absent".
template <class T>
struct rows {
  T* data = nullptr;    ///< element [0,0]
  index_t token = 0;    ///< stride of the token axis
  index_t channel = 1;  ///< stride of the channel axis

  /// Element [t,i].
  T& operator()(index_t t, index_t i) const {
    return data[t * token + i * channel];
  }
  /// Not absent.
  explicit operator bool() const { return data != nullptr; }
  /// The same tensor from token `t` on.
  rows from(index_t t) const {
    return data ? rows{data + t * token, token, channel} : rows{};
  }
  /// The same tensor from channel `i` on.
  rows from_channel(index_t i) const {
    return data ? rows{data + i * channel, token, channel} : rows{};
  }
  /// The same view, read-only.
  operator rows<const T>() const requires(!std::is_const_v<T>) {
    return {data, token, channel};
  }
};

/// A `[K, V]` state of one head; the two strides make `[V, K]` storage
/// (`state_v_first`) a matter of the caller.
template <class T>
struct state_view {
  T* data = nullptr;  ///< element [0,0]
  index_t key = 0;    ///< stride of the key axis
  index_t value = 1;  ///< stride of the value axis

  /// Element [i,j], key channel i and value channel j.
  T& operator()(index_t i, index_t j) const {
    return data[i * key + j * value];
  }
  /// Not absent.
  explicit operator bool() const { return data != nullptr; }
  /// The same view, read-only.
  operator state_view<const T>() const requires(!std::is_const_v<T>) {
    return {data, key, value};
  }
};

/// A `[tokens, K, V]` tensor of one head: the full-mask erase gate.
template <class T>
struct masks {
  T* data = nullptr;  ///< element [0,0,0]
  index_t token = 0;  ///< stride of the token axis
  index_t key = 0;    ///< stride of the key axis
  index_t value = 1;  ///< stride of the value axis

  /// Element [t,i,j], key channel i and value channel j.
  T& operator()(index_t t, index_t i, index_t j) const {
    return data[t * token + i * key + j * value];
  }
  /// Not absent.
  explicit operator bool() const { return data != nullptr; }
  /// The same tensor from token `t` on.
  masks from(index_t t) const {
    return data ? masks{data + t * token, token, key, value} : masks{};
  }
  /// The `[tokens, K]` gate that value channel `j` sees.
  rows<T> column(index_t j) const { return {data + j * value, token, key}; }
  /// The same view, read-only.
  operator masks<const T>() const requires(!std::is_const_v<T>) {
    return {data, token, key, value};
  }
};

/// Which state the read-out uses.
enum class readout {
  after,   ///< `o_t = scale * S_t^T q_t`, what every public kernel does
  before,  ///< `o_t = scale * S_{t-1}^T q_t`, as the CARVE paper writes it
};

/// One head of one sequence:
///
///     S~_t = diag(a_t) S_{t-1} diag(d_t)
///     c_t  = X^T r_t                        r_t = b_t * k_t where not given
///     S_t  = S~_t + k_t (w_t * v_t)^T - y_t (e_t * c_t)^T
///     o_t  = scale * S_t^T q_t              y_t = k_t where not given
///
/// A token may take n sub-steps, each with its own k, v, r, y, b, e, w and
/// mask: it decays once, before the first, and is read once, after the last.
/// Their rows lie n to a token, `t n .. t n + n - 1`; "[Tn,K]" below says so.
/// `X = S_{t-1}` concerns the first sub-step; nothing decays before the others.
///
/// An absent gate is one.  Decays are linear here (`a = exp(g)`), so that the
/// same recurrence runs over any ring; `g` holds their natural logs where
/// there are any, for the solvers that form decay ratios by an exponential.
template <class T>
struct head {
  index_t tokens = 0;    ///< T, tokens
  index_t keys = 0;      ///< K, key channels
  index_t values = 0;    ///< V, value channels
  index_t substeps = 1;  ///< n, sub-steps a token
  rows<const T> q;       ///< query [T,K]
  rows<const T> k;       ///< key [Tn,K]
  rows<const T> v;       ///< value [Tn,V]; absent: nothing is written
  rows<const T> a;       ///< key-axis decay, linear [T,K]
  rows<const T> g;  ///< its natural log [T,K]; optional even where a is given
  rows<const T> d;  ///< value-axis decay, linear [T,V]
  rows<const T> b;  ///< key-axis erase gate [Tn,K]
  rows<const T> e;  ///< value-axis erase gate [Tn,V]
  rows<const T> w;  ///< write gate [Tn,V]
  rows<const T> r;  ///< erase address [Tn,K]; absent: `b * k`
  rows<const T> y;  ///< erase direction [Tn,K]; absent: k
  /// Full-mask erase gate [Tn,K,V]: it takes the place of b, and erases
  /// `sum_i mask_t[i,j] k_t[i] X[i,j]` from value channel j.
  masks<const T> mask;
  bool erases = true;  ///< false: nothing is erased (linear attention)
  erase_order erase_reads =
      erase_order::after_decay;   ///< which state the erase looks into
  state_view<const T> S0;         ///< start state; absent: zero
  T scale = T(1);                 ///< factor of the read-out
  readout read = readout::after;  ///< which state the read-out uses

  /// Sub-steps of all tokens, `T n`.
  index_t steps() const { return tokens * substeps; }
  /// The erase address of sub-step m, channel i.
  T address(index_t m, index_t i) const {
    if (r) return r(m, i);
    return b ? b(m, i) * k(m, i) : T(k(m, i));
  }

  /// Tokens `[t0, t0 + n)` as a head of their own, with start state `S`.
  head segment(index_t t0, index_t n, state_view<const T> S) const {
    head h = *this;
    h.tokens = n;
    const index_t m0 = t0 * substeps;
    h.q = q.from(t0), h.a = a.from(t0), h.g = g.from(t0), h.d = d.from(t0);
    h.k = k.from(m0), h.v = v.from(m0), h.r = r.from(m0), h.y = y.from(m0);
    h.b = b.from(m0), h.e = e.from(m0), h.w = w.from(m0);
    h.mask = mask.from(m0);
    h.S0 = S;
    return h;
  }
};

/// Whether the choices of a head fit together.
/// @throws carve::error  for fewer than one sub-step; for an erase gate beside
/// a
///                       given erase address, which is the product already; for
///                       an address or direction where nothing is erased.
template <class T>
void require_step(const head<T>& p) {
  if (p.substeps < 1) {
    throw error("substeps: expected at least 1 a token, got ", p.substeps);
  }
  if (p.r && (p.b || p.mask)) {
    throw error("r: expected no erase gate ", p.mask ? "E" : "b",
                " beside a given erase address");
  }
  if (!p.erases && (p.r || p.y)) {
    throw error(p.r ? "r" : "y", ": expected to be absent, as nothing erases");
  }
}

/// Where the gradients of one head go: same shapes and letters as in `head`.
/// Every entry is accumulated into with `+=`; a null view is skipped.
/// `g` and `gd` are gradients with respect to the **natural logs** of the key-
/// and value-axis decay, which are polynomial in the inputs over any ring.
template <class T>
struct head_gradients {
  /// q, g `[T,K]`; gd `[T,V]`; k, b, r, y `[Tn,K]`; v, e, w `[Tn,V]`.
  ///@{
  rows<T> q, k, v, g, gd, b, e, w, r, y;
  ///@}
  masks<T> mask;     ///< of the full erase mask [Tn,K,V]
  state_view<T> S0;  ///< of the start state [K,V]

  /// The gradients of tokens from `t0` on, with start-state gradient `dS`; a
  /// token has n sub-steps.
  head_gradients segment(index_t t0, state_view<T> dS, index_t n = 1) const {
    head_gradients h = *this;
    const index_t m0 = t0 * n;
    h.q = q.from(t0), h.g = g.from(t0), h.gd = gd.from(t0);
    h.k = k.from(m0), h.v = v.from(m0), h.r = r.from(m0), h.y = y.from(m0);
    h.b = b.from(m0), h.e = e.from(m0), h.w = w.from(m0);
    h.mask = mask.from(m0);
    h.S0 = dS;
    return h;
  }
};

/// The cotangents that a backward pass starts from.
template <class T>
struct head_cotangents {
  rows<const T> o;        ///< do [T,V]; absent: zero
  state_view<const T> S;  ///< gradient of the final state; absent: zero
};

}  // namespace carve
