/// @file
/// The recurrence token by token, fast: value columns in tiles that stay in
/// registers. Same numbers as the definition in recurrence.hpp.
#pragma once

#include <algorithm>

#include "carve/head.hpp"
#include "carve/lanes.hpp"
#include "carve/scalar.hpp"

namespace carve {

namespace detail {

/// Value columns do not see each other in the recurrence.  They are walked in
/// tiles of constant width, whose sums stay in registers.  The width belongs to
/// the scalar and not to the machine, so neither does any result.
template <class T>
inline constexpr index_t tile_columns = 1;
template <>
inline constexpr index_t tile_columns<float> = 32;
template <>
inline constexpr index_t tile_columns<double> = 32;
template <>
inline constexpr index_t tile_columns<double_double> = 16;

/// Row i of a K x V matrix, cut to the columns of one tile.
template <class T>
using row = tile<T, tile_columns<T>>;

template <class T>
using row_array = list<row<T>>;

/// Tokens between two stored states of the backward pass.
inline constexpr index_t block_tokens = 32;

/// y += alpha * x
template <class T>
CARVE_INLINE void add_scaled(row<T>& y, const T& alpha, const row<T>& x) {
  CARVE_IVDEP
  for (index_t l = 0; l < tile_columns<T>; ++l) {
    y[l] = T(y[l]) + alpha * T(x[l]);
  }
}

/// y = alpha * x
template <class T>
CARVE_INLINE void set_scaled(row<T>& y, const T& alpha, const row<T>& x) {
  CARVE_IVDEP
  for (index_t l = 0; l < tile_columns<T>; ++l) y[l] = alpha * T(x[l]);
}

/// y = x * z, column by column
template <class T>
CARVE_INLINE void set_product(row<T>& y, const row<T>& x, const row<T>& z) {
  CARVE_IVDEP
  for (index_t l = 0; l < tile_columns<T>; ++l) y[l] = T(x[l]) * T(z[l]);
}

/// The K-vectors of one sub-step, contiguous; null where absent. Only the
/// first of a token decays, so the others have no a.
template <class T>
struct key_vectors {
  index_t t;         ///< its token
  bool first, last;  ///< of its token
  const T *q, *k, *a, *r, *y;
};

/// The K-vectors of a run of tokens, fetched once for all columns.
template <class T>
class key_block {
 public:
  key_block(const head<T>& p, index_t tokens)
      : p_(p),
        q_(p.q ? tokens * p.keys : 0),
        k_(tokens * p.substeps * p.keys),
        a_(p.a ? tokens * p.keys : 0),
        r_(p.erases ? tokens * p.substeps * p.keys : 0),
        y_(p.y ? tokens * p.substeps * p.keys : 0) {}

  void fetch(index_t t0, index_t n) {
    t0_ = t0;
    for (index_t s = 0; s < n; ++s) {
      for (index_t i = 0; i < p_.keys; ++i) {
        const index_t at = s * p_.keys + i, t = t0 + s;
        if (p_.q) q_[at] = p_.q(t, i);
        if (p_.a) a_[at] = p_.a(t, i);
      }
    }
    for (index_t s = 0; s < n * p_.substeps; ++s) {
      for (index_t i = 0; i < p_.keys; ++i) {
        const index_t at = s * p_.keys + i, m = t0 * p_.substeps + s;
        k_[at] = p_.k(m, i);
        if (p_.erases) r_[at] = p_.address(m, i);
        if (p_.y) y_[at] = p_.y(m, i);
      }
    }
  }

  /// Of sub-step s, counted from the first of the run.
  key_vectors<T> operator[](index_t s) const {
    const index_t n = p_.substeps, token = n == 1 ? s : s / n;
    const bool first = s == token * n, last = s == token * n + n - 1;
    const index_t at = s * p_.keys, of_token = token * p_.keys;
    return {t0_ + token,
            first,
            last,
            p_.q ? &q_[of_token] : nullptr,
            &k_[at],
            p_.a && first ? &a_[of_token] : nullptr,
            p_.erases ? &r_[at] : nullptr,
            p_.y ? &y_[at] : nullptr};
  }

 private:
  const head<T>& p_;
  index_t t0_ = 0;
  list<T> q_, k_, a_, r_, y_;
};

/// The value columns `[first, first + count)` of a head.
template <class T>
struct column_range {
  const head<T>& p;
  index_t first, count;

  CARVE_INLINE row<T> fetch(const rows<const T>& x, index_t t) const {
    row<T> y(T(0));
    for (index_t l = 0; l < count; ++l) y[l] = x(t, first + l);
    return y;
  }
  /// Row i of the full mask.
  CARVE_INLINE row<T> mask(index_t t, index_t i) const {
    row<T> y(T(0));
    for (index_t l = 0; l < count; ++l) y[l] = p.mask(t, i, first + l);
    return y;
  }
  void fetch(const state_view<const T>& x, row<T>* y) const {
    for (index_t i = 0; i < p.keys && x; ++i) {
      for (index_t l = 0; l < count; ++l) y[i][l] = x(i, first + l);
    }
  }
  void store(const row<T>* x, const state_view<T>& y) const {
    for (index_t i = 0; i < p.keys && y; ++i) {
      for (index_t l = 0; l < count; ++l) y(i, first + l) = x[i][l];
    }
  }
};

/// What a sub-step looked up, before the value-axis gate, and what it wrote
/// along k.
template <class T>
struct write_record {
  row<T> c, u;
};

/// The recurrence on one tile of columns.  `Plain`: decay and erase act on the
/// key axis, both are there, and nothing else is; one step a token, along k.
/// This is decided outside of the loops over rows.
template <class T, bool Plain>
class tile_walk {
 public:
  explicit tile_walk(const column_range<T>& columns)
      : p_(columns.p), columns_(columns) {}

  /// The value-axis decay before a sub-step, if there is any.
  CARVE_INLINE bool fetch_decay(const key_vectors<T>& x, row<T>& d) const {
    if (Plain || !p_.d || !x.first) return false;
    d = columns_.fetch(p_.d, x.t);
    return true;
  }

  /// Row i of the state, decayed: `a[i] S[i,:] * d`.
  CARVE_INLINE void decay(row<T>& y, const row<T>& x, const T* a,
                          const row<T>* d, index_t i) const {
    if constexpr (Plain) {
      set_scaled(y, a[i], x);
    } else {
      if (a) {
        set_scaled(y, a[i], x);
      } else if (&y != &x) {
        y = x;
      }
      if (d) set_product(y, *d, y);
    }
  }

  /// Sub-step m from the state in `before` to that in `S`, which may be the
  /// same place.
  CARVE_INLINE write_record<T> step(index_t m, const key_vectors<T>& x,
                                    const row<T>* before, row<T>* S) const {
    const index_t K = p_.keys;
    const bool stored = !Plain && p_.erase_reads == erase_order::before_decay;
    row<T> d, c(T(0)), u(T(0));
    const row<T>* const value_decay = fetch_decay(x, d) ? &d : nullptr;
    for (index_t i = 0; i < K; ++i) {
      if (stored) look(m, x, i, before[i], c);
      decay(S[i], before[i], x.a, value_decay, i);
      if (!stored) look(m, x, i, S[i], c);
    }
    if (p_.v) u = columns_.fetch(p_.v, m);
    if (p_.v && p_.w) set_product(u, columns_.fetch(p_.w, m), u);
    if (!Plain && x.y) {
      const row<T> minus = erased(m, c, T(-1));
      for (index_t i = 0; i < K; ++i) {
        add_scaled(S[i], x.k[i], u);
        add_scaled(S[i], x.y[i], minus);
      }
      return {c, u};
    }
    if (p_.erases) {
      row<T> gated = c;
      if (p_.e) set_product(gated, columns_.fetch(p_.e, m), gated);
      for (index_t l = 0; l < tile_columns<T>; ++l) {
        u[l] = T(u[l]) - T(gated[l]);
      }
    }
    for (index_t i = 0; i < K; ++i) add_scaled(S[i], x.k[i], u);
    return {c, u};
  }

  /// What goes away along a direction of its own: `sign * e * c`.
  row<T> erased(index_t m, const row<T>& c, const T& sign) const {
    row<T> gated = c;
    if (p_.e) set_product(gated, columns_.fetch(p_.e, m), gated);
    set_scaled(gated, sign, gated);
    return gated;
  }

  /// `o_t = scale * S^T q_t`
  CARVE_INLINE void read(const key_vectors<T>& x, const row<T>* S,
                         const rows<T>& o) const {
    row<T> sum(T(0));
    for (index_t i = 0; i < p_.keys; ++i) add_scaled(sum, x.q[i], S[i]);
    for (index_t l = 0; l < columns_.count; ++l) {
      o(x.t, columns_.first + l) = p_.scale * T(sum[l]);
    }
  }

  /// One sub-step in place: state and, where `o` is given, its output.
  CARVE_INLINE void walk(index_t m, const key_vectors<T>& x, row<T>* S,
                         const rows<T>& o) const {
    if (o && x.first && p_.read == readout::before) read(x, S, o);
    step(m, x, S, S);
    if (o && x.last && p_.read == readout::after) read(x, S, o);
  }

 private:
  /// Row i of `c += X^T r`.
  CARVE_INLINE void look(index_t m, const key_vectors<T>& x, index_t i,
                         const row<T>& X, row<T>& c) const {
    if (Plain || (p_.erases && !p_.mask)) {
      add_scaled(c, x.r[i], X);
    } else if (p_.mask) {
      row<T> weighted;
      set_product(weighted, columns_.mask(m, i), X);
      add_scaled(c, x.r[i], weighted);
    }
  }

  const head<T>& p_;
  column_range<T> columns_;
};

/// K sums over the columns of a tile, each left as a few partial sums that are
/// added up for all rows at once.
template <class T>
class row_sums {
 public:
  explicit row_sums(index_t keys) : keys_(keys), table_(keys * partial) {}

  /// Entry i becomes `sum_l x[l] y[l]`.
  CARVE_INLINE void set(index_t i, const row<T>& x, const row<T>& y) {
    row<T> z;
    set_product(z, x, y);
    fold<partial>(z);
    const lanes_view<T> to = table_.view().sub(i * partial);
    CARVE_IVDEP
    for (index_t l = 0; l < partial; ++l) to[l] = T(z[l]);
  }

  /// `y += sums`
  CARVE_INLINE void add_to(lanes_view<T> y) {
    const lanes_view<T> x = table_.view();
    CARVE_IVDEP
    for (index_t i = 0; i < keys_; ++i) {
      if constexpr (partial == 4) {
        y[i] = T(y[i]) + ((T(x[4 * i]) + T(x[4 * i + 1])) +
                          (T(x[4 * i + 2]) + T(x[4 * i + 3])));
      } else {
        y[i] = T(y[i]) + T(x[i]);
      }
    }
  }

 private:
  static constexpr index_t partial = tile_columns<T> == 1 ? 1 : 4;

  index_t keys_;
  lanes<T> table_;
};

/// The key-axis gradients of a run of tokens of n sub-steps, summed over tiles.
template <class T>
struct key_gradients {
  key_gradients(const head<T>& p, index_t tokens)
      : dq(tokens * p.keys),
        dk(tokens * p.substeps * p.keys),
        dr(tokens * p.substeps * p.keys),
        dg(tokens * p.keys),
        dy(p.y ? tokens * p.substeps * p.keys : 0) {}

  /// Adds them to where they belong, and sets them back to zero.
  void flush(const head<T>& p, const head_gradients<T>& out, index_t t0,
             index_t n) {
    for (index_t s = 0; s < n; ++s) {
      for (index_t i = 0; i < p.keys; ++i) {
        const index_t at = s * p.keys + i, t = t0 + s;
        if (out.q) out.q(t, i) += T(dq[at]);
        if (out.g) out.g(t, i) += T(dg[at]);
      }
    }
    for (index_t s = 0; s < n * p.substeps; ++s) {
      for (index_t i = 0; i < p.keys; ++i) {
        const index_t at = s * p.keys + i, m = t0 * p.substeps + s;
        if (out.k) out.k(m, i) += T(dk[at]);
        if (p.y && out.y) out.y(m, i) += -T(dy[at]);
        if (!p.erases) continue;
        const T r = dr[at];
        if (out.r) out.r(m, i) += r;
        if (p.r) continue;
        if (out.k) out.k(m, i) += p.b ? r * p.b(m, i) : r;
        if (out.b) out.b(m, i) += r * p.k(m, i);
      }
    }
    for (lanes<T>* x : {&dq, &dk, &dr, &dg, &dy}) x->fill(T(0));
  }

  lanes<T> dq, dk, dr, dg, dy;  ///< dy with its sign turned
};

/// The reverse walk of one tile of columns.
template <class T, bool Plain>
class tile_reverse {
 public:
  tile_reverse(const column_range<T>& columns, const head_cotangents<T>& in,
               const head_gradients<T>& out, row_sums<T>* sums)
      : p_(columns.p),
        columns_(columns),
        in_(in),
        out_(out),
        forward_(columns),
        q_(sums[0]),
        k_(sums[1]),
        r_(sums[2]),
        g_(sums[3]),
        y_(sums[4]) {}

  /// Sub-step m back: `dS` turns from the cotangent of the state after it into
  /// that of the state before.
  CARVE_INLINE void step(index_t m, const key_vectors<T>& x,
                         const row<T>* before, const row<T>* after,
                         const write_record<T>& past, row<T>* dS) {
    const index_t K = p_.keys;
    const bool stored = !Plain && p_.erase_reads == erase_order::before_decay;
    const bool along_y = !Plain && x.y, decays = Plain || x.first;
    row<T> dout(T(0)), dx(T(0)), dz, d, erased;
    if (in_.o) set_scaled(dout, p_.scale, columns_.fetch(in_.o, x.t));
    if (in_.o && x.last && p_.read == readout::after) {
      read_back(x, after, dout, dS);
    }
    for (index_t i = 0; i < K; ++i) add_scaled(dx, x.k[i], dS[i]);
    if (along_y) {
      dz.fill(T(0));
      erased = forward_.erased(m, past.c, T(1));
      for (index_t i = 0; i < K; ++i) add_scaled(dz, x.y[i], dS[i]);
    }
    const row<T> dc = back_through_write(m, dx, along_y ? dz : dx, past.c);
    const row<T>* const value_decay = forward_.fetch_decay(x, d) ? &d : nullptr;
    row<T> dd(T(0));
    for (index_t i = 0; i < K; ++i) {
      row<T> decayed;
      k_.set(i, dS[i], past.u);
      if (along_y) y_.set(i, dS[i], erased);
      forward_.decay(decayed, before[i], x.a, value_decay, i);
      if (!stored) look_back(m, x, i, dc, decayed, dS);
      if (decays) g_.set(i, dS[i], decayed);
      if (!Plain && decays && out_.gd) add_product(dd, dS[i], decayed);
      forward_.decay(dS[i], dS[i], x.a, value_decay, i);
      if (stored) look_back(m, x, i, dc, before[i], dS);
    }
    if (!Plain && decays && out_.gd) scatter(out_.gd, x.t, dd);
    if (in_.o && x.first && p_.read == readout::before) {
      read_back(x, before, dout, dS);
    }
  }

 private:
  static CARVE_INLINE void add_product(row<T>& y, const row<T>& x,
                                       const row<T>& z) {
    CARVE_IVDEP
    for (index_t l = 0; l < tile_columns<T>; ++l) {
      y[l] = T(y[l]) + T(x[l]) * T(z[l]);
    }
  }

  CARVE_INLINE void scatter(const rows<T>& to, index_t t,
                            const row<T>& x) const {
    for (index_t l = 0; l < columns_.count; ++l) {
      to(t, columns_.first + l) += T(x[l]);
    }
  }

  /// Back through `o_t = scale * S^T q_t`.
  CARVE_INLINE void read_back(const key_vectors<T>& x, const row<T>* S,
                              const row<T>& dout, row<T>* dS) {
    for (index_t i = 0; i < p_.keys; ++i) {
      q_.set(i, S[i], dout);
      add_scaled(dS[i], x.q[i], dout);
    }
  }

  /// Back through `w * v`, of cotangent `dx`, and `e * c`, of cotangent `-dz`:
  /// the cotangent of c.
  CARVE_INLINE row<T> back_through_write(index_t m, const row<T>& dx,
                                         const row<T>& dz,
                                         const row<T>& c) const {
    row<T> dc(T(0));
    for (index_t l = 0; l < columns_.count; ++l) {
      const index_t j = columns_.first + l;
      const T x = dx[l], z = dz[l];
      if (p_.v && out_.w) out_.w(m, j) += x * p_.v(m, j);
      if (p_.v && out_.v) out_.v(m, j) += p_.w ? x * p_.w(m, j) : x;
      if (out_.e) out_.e(m, j) += -(z * T(c[l]));
      if (p_.erases) dc[l] = p_.e ? -(z * p_.e(m, j)) : -z;
    }
    return dc;
  }

  /// Row i back through `c = X^T r`.
  CARVE_INLINE void look_back(index_t m, const key_vectors<T>& x, index_t i,
                              const row<T>& dc, const row<T>& X, row<T>* dS) {
    if (Plain || (p_.erases && !p_.mask)) {
      r_.set(i, X, dc);
      add_scaled(dS[i], x.r[i], dc);
    } else if (p_.mask) {
      row<T> weighted;
      set_product(weighted, columns_.mask(m, i), dc);
      r_.set(i, X, weighted);
      add_scaled(dS[i], x.r[i], weighted);
      for (index_t l = 0; l < columns_.count && out_.mask; ++l) {
        out_.mask(m, i, columns_.first + l) += x.r[i] * (T(dc[l]) * T(X[l]));
      }
    }
  }

  const head<T>& p_;
  column_range<T> columns_;
  const head_cotangents<T>& in_;
  const head_gradients<T>& out_;
  tile_walk<T, Plain> forward_;
  row_sums<T>&q_, &k_, &r_, &g_, &y_;  // of dq, dk, dr, dg and -dy
};

/// See tile_walk.
template <class T>
bool is_plain(const head<T>& p) {
  return p.a && p.erases && !p.d && !p.mask && !p.y && p.substeps == 1 &&
         p.erase_reads == erase_order::after_decay;
}

template <class T>
index_t tiles_of(const head<T>& p) {
  return (p.values + tile_columns<T> - 1) / tile_columns<T>;
}

template <class T>
column_range<T> tile_of(const head<T>& p, index_t n) {
  const index_t first = n * tile_columns<T>;
  return {p, first, std::min(tile_columns<T>, p.values - first)};
}

template <bool Plain, class T>
CARVE_INLINE void walk_forward(const head<T>& p, const rows<T>& o,
                               const state_view<T>& S) {
  const index_t K = p.keys, tiles = tiles_of(p);
  row_array<T> state(tiles * K, row<T>(T(0)));
  for (index_t n = 0; n < tiles; ++n) tile_of(p, n).fetch(p.S0, &state[n * K]);
  key_block<T> keys(p, std::min(block_tokens, p.tokens));
  for (index_t t0 = 0; t0 < p.tokens; t0 += block_tokens) {
    const index_t count = std::min(block_tokens, p.tokens - t0);
    keys.fetch(t0, count);
    for (index_t n = 0; n < tiles; ++n) {
      const tile_walk<T, Plain> tile(tile_of(p, n));
      for (index_t s = 0; s < count * p.substeps; ++s) {
        tile.walk(t0 * p.substeps + s, keys[s], &state[n * K], o);
      }
    }
  }
  for (index_t n = 0; n < tiles; ++n) tile_of(p, n).store(&state[n * K], S);
}

template <bool Plain, class T>
CARVE_INLINE void walk_backward(const head<T>& p, const head_cotangents<T>& in,
                                const head_gradients<T>& out, const rows<T>& o,
                                const state_view<T>& S) {
  const index_t K = p.keys, tiles = tiles_of(p);
  const index_t blocks = (p.tokens + block_tokens - 1) / block_tokens;
  const index_t most = std::min(block_tokens, p.tokens);
  const index_t size = tiles * K;
  // The state at the start of each block, and the final one.
  row_array<T> starts((blocks + 1) * size, row<T>(T(0)));
  for (index_t n = 0; n < tiles; ++n) tile_of(p, n).fetch(p.S0, &starts[n * K]);
  key_block<T> keys(p, most);
  for (index_t block = 0; block < blocks; ++block) {
    const index_t t0 = block * block_tokens;
    const index_t count = std::min(block_tokens, p.tokens - t0);
    keys.fetch(t0, count);
    for (index_t n = 0; n < tiles; ++n) {
      const tile_walk<T, Plain> tile(tile_of(p, n));
      const row<T>* const from = &starts[block * size + n * K];
      row<T>* const to = &starts[(block + 1) * size + n * K];
      std::copy(from, from + K, to);
      for (index_t s = 0; s < count * p.substeps; ++s) {
        tile.walk(t0 * p.substeps + s, keys[s], to, o);
      }
    }
  }
  row_array<T> dS(size, row<T>(T(0)));
  for (index_t n = 0; n < tiles; ++n) {
    tile_of(p, n).store(&starts[blocks * size + n * K], S);
    tile_of(p, n).fetch(in.S, &dS[n * K]);
  }
  row_array<T> states((most * p.substeps + 1) * K);
  list<write_record<T>> past(most * p.substeps);
  key_gradients<T> sums(p, most);
  row_sums<T> rows_of_tile[] = {row_sums<T>(K), row_sums<T>(K), row_sums<T>(K),
                                row_sums<T>(K), row_sums<T>(p.y ? K : 0)};
  for (index_t block = blocks; block-- > 0;) {
    const index_t t0 = block * block_tokens;
    const index_t count = std::min(block_tokens, p.tokens - t0);
    keys.fetch(t0, count);
    for (index_t n = 0; n < tiles; ++n) {
      const tile_walk<T, Plain> tile(tile_of(p, n));
      const row<T>* const from = &starts[block * size + n * K];
      std::copy(from, from + K, states.begin());
      const index_t m0 = t0 * p.substeps, steps = count * p.substeps;
      for (index_t s = 0; s < steps; ++s) {
        past[s] =
            tile.step(m0 + s, keys[s], &states[s * K], &states[(s + 1) * K]);
      }
      tile_reverse<T, Plain> reverse(tile_of(p, n), in, out, rows_of_tile);
      for (index_t s = steps; s-- > 0;) {
        const key_vectors<T> x = keys[s];
        reverse.step(m0 + s, x, &states[s * K], &states[(s + 1) * K], past[s],
                     &dS[n * K]);
        const index_t at = s * K, of_token = (x.t - t0) * K;
        const bool read = p.read == readout::after ? x.last : x.first;
        if (in.o && read) rows_of_tile[0].add_to(sums.dq.view().sub(of_token));
        rows_of_tile[1].add_to(sums.dk.view().sub(at));
        if (p.erases) rows_of_tile[2].add_to(sums.dr.view().sub(at));
        if (x.first) rows_of_tile[3].add_to(sums.dg.view().sub(of_token));
        if (x.y) rows_of_tile[4].add_to(sums.dy.view().sub(at));
      }
    }
    sums.flush(p, out, t0, count);
  }
  for (index_t n = 0; n < tiles && out.S0; ++n) {
    const column_range<T> columns = tile_of(p, n);
    for (index_t i = 0; i < K; ++i) {
      for (index_t l = 0; l < columns.count; ++l) {
        out.S0(i, columns.first + l) += T(dS[n * K + i][l]);
      }
    }
  }
}

}  // namespace detail

/// Forward, token by token; equal to definition_forward in every bit, whatever
/// the scalar.
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
  require_step(p);
  if (detail::is_plain(p)) return detail::walk_forward<true>(p, o, S);
  detail::walk_forward<false>(p, o, S);
}

/// Forward and backward, token by token; equal to definition_backward, but that
/// the sums over value channels (dq, dk, dr, dg) are added up in another order.
///
/// @param[in] p     the head.
/// @param[in] in    cotangents of outputs and final state.
/// @param[in] out   gradients, accumulated into with `+=`.
/// @param[out] o    outputs `[T,V]`, or a null view.
/// @param[out] S    final state `[K,V]`, or a null view.
///
/// States are stored at every 32nd token and recomputed in between; no array
/// of the size `T K V` is ever formed.
template <class T>
void recurrent_backward(const head<T>& p, const head_cotangents<T>& in,
                        const head_gradients<T>& out, rows<T> o = {},
                        state_view<T> S = {}) {
  require_step(p);
  if (detail::is_plain(p)) {
    return detail::walk_backward<true>(p, in, out, o, S);
  }
  detail::walk_backward<false>(p, in, out, o, S);
}

}  // namespace carve
