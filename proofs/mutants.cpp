/// @file
/// The wrong solvers.
#include "mutants.hpp"

#include <algorithm>
#include <vector>

namespace carve::proofs {

namespace {

/// `x(t, i)`, or one where the gate is absent.
template <class T>
T gate_at(const rows<const T>& x, index_t t, index_t i) {
  return x ? T(x(t, i)) : T(1);
}

/// What is erased from channel (i, j) at token t, as a factor of the state.
template <class T>
T address_at(const head<T>& p, index_t t, index_t i, index_t j) {
  if (!p.erases) return T(0);
  const T gate = p.mask ? T(p.mask(t, i, j)) : gate_at(p.b, t, i);
  return gate * T(p.k(t, i));
}

/// Value column j, token by token: one vector of K numbers.
template <class T>
solver<T> naive_recurrent(fault f) {
  const auto run = [f](const head<T>& p, rows<T> o, state_view<T> S_end) {
    const index_t K = p.keys;
    for (index_t j = 0; j < p.values; ++j) {
      std::vector<T> S(K, T(0));
      for (index_t i = 0; i < K && p.S0 && f != fault::no_start; ++i) {
        S[i] = p.S0(i, j);
      }
      for (index_t t = 0; t < p.tokens; ++t) {
        const std::vector<T> old = S;
        const auto read = [&](const std::vector<T>& from) {
          T sum(0);
          for (index_t i = 0; i < K; ++i) sum += T(p.q(t, i)) * from[i];
          o(t, j) = p.scale * sum;
        };
        T erased(0);
        for (index_t i = 0; i < K; ++i) {
          S[i] = gate_at(p.a, t, i) * S[i];
          if (f != fault::no_value_decay) S[i] = gate_at(p.d, t, j) * S[i];
          T r = address_at(p, t, i, j);
          if (f == fault::address_without_gate) r = p.k(t, i);
          erased += r * (f == fault::erase_before_decay ? old[i] : S[i]);
        }
        const index_t column =
            f == fault::erase_gate_of_neighbour ? (j + 1) % p.values : j;
        erased = gate_at(p.e, t, column) * erased;
        T value = p.v ? T(p.v(t, j)) : T(0);
        const T w = gate_at(p.w, t, j);
        const T u = f == fault::write_gate_on_all ? w * (value - erased)
                                                  : w * value - erased;
        for (index_t i = 0; i < K; ++i) S[i] += T(p.k(t, i)) * u;
        const bool after =
            (p.read == readout::after) != (f == fault::other_readout);
        if (o) read(after ? S : old);
      }
      for (index_t i = 0; i < K && S_end; ++i) S_end(i, j) = S[i];
    }
  };
  return {run, {}};
}

/// The chunked form, one triangular system per value column.
template <class T>
solver<T> naive_chunked(index_t C, fault f) {
  const auto run = [C, f](const head<T>& p, rows<T> o, state_view<T> S_end) {
    const index_t K = p.keys;
    for (index_t j = 0; j < p.values; ++j) {
      // The decay of state entry (i, j) over the tokens s < m <= t.
      const auto decay = [&](index_t s, index_t t, index_t i) {
        T product(1);
        if (f == fault::ratio_off_by_one && s >= 0) --s, --t;
        for (index_t m = std::max<index_t>(s, -1) + 1; m <= t; ++m) {
          product *= gate_at(p.a, m, i) * gate_at(p.d, m, j);
        }
        return product;
      };
      std::vector<T> S(K, T(0));
      for (index_t i = 0; i < K && p.S0; ++i) S[i] = p.S0(i, j);
      for (index_t t0 = 0; t0 < p.tokens; t0 += C) {
        index_t n = std::min(C, p.tokens - t0);
        if (f == fault::short_last_chunk && n < C && n > 1) --n;
        const bool start = f != fault::no_start_later || t0 == 0;
        const auto erase = [&](index_t t, index_t i) {
          const index_t column = f == fault::one_column_for_all ? 0 : j;
          return gate_at(p.e, t, column) * address_at(p, t, i, column);
        };
        std::vector<std::vector<T>> inverse(n, std::vector<T>(n, T(0)));
        std::vector<T> right(n, T(0)), u(n, T(0));
        for (index_t t = 0; t < n; ++t) {
          inverse[t][t] = T(1);
          for (index_t m = 0; m < t; ++m) {
            if (f == fault::triangle_off_by_one && m + 1 == t) continue;
            T L(0);
            for (index_t i = 0; i < K; ++i) {
              T r = erase(t0 + t, i);
              if (f == fault::gate_of_source_token) {
                r = gate_at(p.e, t0 + m, j) * address_at(p, t0 + t, i, j);
              }
              L += r * decay(t0 + m, t0 + t, i) * T(p.k(t0 + m, i));
            }
            for (index_t s = 0; s <= m; ++s) inverse[t][s] -= L * inverse[m][s];
          }
          right[t] = gate_at(p.w, t0 + t, j);
          right[t] = p.v ? right[t] * T(p.v(t0 + t, j)) : T(0);
          for (index_t i = 0; i < K && start; ++i) {
            right[t] -= erase(t0 + t, i) * decay(t0 - 1, t0 + t, i) * S[i];
          }
        }
        for (index_t t = 0; t < n; ++t) {
          for (index_t s = 0; s < n; ++s) {
            u[t] += (f == fault::transposed_inverse ? inverse[s][t]
                                                    : inverse[t][s]) *
                    right[s];
          }
        }
        const auto state = [&](index_t t) {  // S_t, t = -1 the start
          std::vector<T> now(K, T(0));
          for (index_t i = 0; i < K; ++i) {
            now[i] = decay(t0 - 1, t0 + t, i) * S[i];
            for (index_t s = 0; s <= t; ++s) {
              now[i] += decay(t0 + s, t0 + t, i) * T(p.k(t0 + s, i)) * u[s];
            }
          }
          return now;
        };
        for (index_t t = 0; t < n && o; ++t) {
          const auto from = state(p.read == readout::after ? t : t - 1);
          T sum(0);
          for (index_t i = 0; i < K; ++i) sum += T(p.q(t0 + t, i)) * from[i];
          o(t0 + t, j) = p.scale * sum;
        }
        const std::vector<T> end = state(n - 1);
        for (index_t i = 0; i < K; ++i) {
          const T decayed = decay(t0 - 1, t0 + n - 1, i) * S[i];
          S[i] =
              f == fault::end_decay_missing ? end[i] - decayed + S[i] : end[i];
        }
      }
      for (index_t i = 0; i < K && S_end; ++i) S_end(i, j) = S[i];
    }
  };
  return {run, {}};
}

/// The reverse walk with all states kept.
template <class T>
solver<T> naive_reverse(fault f) {
  const auto back = [f](const head<T>& p, const head_cotangents<T>& in,
                        const head_gradients<T>& out, rows<T>, state_view<T>) {
    const index_t K = p.keys, N = p.tokens;
    const auto add = [](const rows<T>& to, index_t t, index_t i, const T& x) {
      if (to) to(t, i) += x;
    };
    const T scale = f == fault::scale_missing_back ? T(1) : p.scale;
    for (index_t j = 0; j < p.values; ++j) {
      std::vector<std::vector<T>> S(N + 1, std::vector<T>(K, T(0)));
      auto decayed = S;
      std::vector<T> c(N, T(0)), u(N, T(0));
      for (index_t i = 0; i < K && p.S0; ++i) S[0][i] = p.S0(i, j);
      for (index_t t = 0; t < N; ++t) {
        for (index_t i = 0; i < K; ++i) {
          decayed[t][i] = gate_at(p.a, t, i) * gate_at(p.d, t, j) * S[t][i];
          c[t] += address_at(p, t, i, j) * decayed[t][i];
        }
        u[t] = gate_at(p.w, t, j) * T(p.v(t, j)) - gate_at(p.e, t, j) * c[t];
        for (index_t i = 0; i < K; ++i) {
          S[t + 1][i] = decayed[t][i] + T(p.k(t, i)) * u[t];
        }
      }
      std::vector<T> dS(K, T(0));
      const bool end = in.S && f != fault::end_cotangent_missing;
      for (index_t i = 0; i < K && end; ++i) dS[i] = in.S(i, j);
      const bool after = p.read == readout::after;
      for (index_t t = N; t-- > 0;) {
        const T dout = scale * T(in.o(t, j));
        const auto read = [&] {
          const bool now = after != (f == fault::query_of_other_state);
          for (index_t i = 0; i < K; ++i) {
            add(out.q, t, i, S[now ? t + 1 : t][i] * dout);
            dS[i] += T(p.q(t, i)) * dout;
          }
        };
        if (after) read();
        T du(0);
        for (index_t i = 0; i < K; ++i) {
          du += dS[i] * T(p.k(t, i));
          add(out.k, t, i, dS[i] * u[t]);
        }
        add(out.w, t, j, du * T(p.v(t, j)));
        add(out.v, t, j,
            f == fault::write_gate_missing ? du : du * gate_at(p.w, t, j));
        if (f != fault::erase_gate_constant) add(out.e, t, j, -(du * c[t]));
        const T dc = -(du * gate_at(p.e, t, j));
        for (index_t i = 0; i < K; ++i) {
          const T without = dS[i];
          dS[i] += address_at(p, t, i, j) * dc;
          const T dr = p.erases && f != fault::address_constant
                           ? decayed[t][i] * dc
                           : T(0);
          const T gate = p.mask ? T(p.mask(t, i, j)) : gate_at(p.b, t, i);
          if (f != fault::key_through_erase_missing) {
            add(out.k, t, i, dr * gate);
          }
          if (p.mask && out.mask) out.mask(t, i, j) += dr * T(p.k(t, i));
          if (!p.mask) add(out.b, t, i, dr * T(p.k(t, i)));
          const T dg = (f == fault::decay_of_erase_missing ? without : dS[i]) *
                       decayed[t][i];
          add(out.g, t, i, dg);
          add(out.gd, t, j, dg);
          dS[i] = gate_at(p.a, t, i) * dS[i];
          if (f != fault::value_decay_missing_back) {
            dS[i] = gate_at(p.d, t, j) * dS[i];
          }
        }
        if (!after) read();
      }
      for (index_t i = 0; i < K && out.S0; ++i) out.S0(i, j) += dS[i];
    }
  };
  return {{}, back};
}

}  // namespace

template <class T>
solver<T> make(actor who, index_t chunk, fault f) {
  switch (who) {
    case actor::recurrent:
      return recurrent<T>();
    case actor::chunked:
      return chunked<T>(chunk);
    case actor::columnwise:
      return columnwise<T>(chunk);
    case actor::naive_recurrent:
      return naive_recurrent<T>(f);
    case actor::naive_chunked:
      return naive_chunked<T>(chunk, f);
    case actor::naive_reverse:
      break;
  }
  return naive_reverse<T>(f);
}

template solver<rational> make(actor, index_t, fault);
template solver<degree> make(actor, index_t, fault);
template solver<prime_61> make(actor, index_t, fault);
template solver<prime_61_31> make(actor, index_t, fault);

}  // namespace carve::proofs
