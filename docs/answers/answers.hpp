/// One small sequence in three ways: token by token in double-double, by a
/// sound chunked kernel and by a kernel of the reader's choice; for the page
/// that answers back (as WebAssembly) and for its fixed drawing.
#pragma once

#include <carve/double_double.hpp>
#include <carve/precision.hpp>
#include <carve/recurrence.hpp>
#include <carve/triangular.hpp>
#include <cmath>
#include <span>
#include <vector>

namespace answers {

using carve::index_t;
template <class T>
using mat = carve::matrix<T>;

constexpr index_t tokens = 128, keys = 16, values = 16;

/// What the reader turns.
struct choice {
  int family = 0;      ///< 0 delta rule with one beta, 1 key-axis, 2 value-axis
  double decay = 0.1;  ///< log decay a token, times -1
  double alike = 0.2;  ///< expected inner product of two keys
  double erase = 1;    ///< erase strength, 0 to 2
  int chunk = 64;      ///< 1 to 128
  int format = 2;      ///< 0 fp32, 1 tf32, 2 bf16, 3 fp16
  int inverse = 0;     ///< 0 blocks of 16, 1 substitution, 2 doubling
  bool factored = false;  ///< decay ratios as exp(G) * exp(-G)
  bool cut = false;       ///< every chunk starts from a zero state
};

/// Errors relative to the RMS of the exact output, token by token.
struct answer {
  std::vector<double> sound, chosen;   ///< relative error [tokens]
  std::vector<double> size;            ///< norm of the exact state [tokens]
  double exact = 0;                    ///< first output of the last token
  double low = 0;                      ///< and what its double leaves
  double by_sound = 0, by_chosen = 0;  ///< the same number of the kernels
};

/// A small generator, the same wherever it is compiled.
class random {
 public:
  double uniform() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state_ >> 11) / 9007199254740992.0;
  }
  double normal() {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum - 6;
  }

 private:
  unsigned long long state_ = 20260627;
};

/// The tokens, as fp32 numbers so that every way starts from the same.
struct sequence {
  mat<double> q{tokens, keys}, k{tokens, keys}, v{tokens, values};
  mat<double> g{tokens, 1}, b, e, w{tokens, 1}, S0{keys, values};

  explicit sequence(const choice& c) {
    random draw;
    mat<double> common(1, keys);
    for (index_t i = 0; i < keys; ++i) common(0, i) = draw.normal();
    common.normalize();
    const auto fill = [&](mat<double>& m, double alike) {
      for (index_t t = 0; t < tokens; ++t) {
        mat<double> x(1, keys);
        for (index_t i = 0; i < keys; ++i) x(0, i) = draw.normal();
        x.normalize();
        m.row(t) = std::sqrt(alike) * common + std::sqrt(1 - alike) * x;
        m.row(t).normalize();
      }
    };
    fill(q, c.alike), fill(k, c.alike);
    for (index_t i = 0; i < v.size(); ++i) v.data()[i] = draw.normal();
    for (index_t i = 0; i < S0.size(); ++i) S0.data()[i] = draw.normal();
    g.setConstant(-c.decay);
    w.setConstant(c.erase);
    if (c.family == 2) {
      e = mat<double>(tokens, values);
      for (index_t i = 0; i < e.size(); ++i) {
        e.data()[i] = c.erase * draw.uniform();
      }
    } else {
      const index_t width = c.family == 1 ? keys : 1;
      b = mat<double>(tokens, width);
      for (index_t i = 0; i < b.size(); ++i) {
        b.data()[i] = c.family == 1 ? c.erase * draw.uniform() : c.erase;
      }
    }
    for (mat<double>* m : {&q, &k, &v, &g, &b, &e, &w, &S0}) {
      *m = m->template cast<float>().template cast<double>().eval();
    }
  }
};

/// Rounds to the operands' format.
struct rounding {
  carve::format to;
  void operator()(mat<float>& m) const {
    carve::round_all(to,
                     std::span(m.data(), static_cast<std::size_t>(m.size())));
  }
};

/// The chunked form in fp32 with rounded operands; value-axis erase goes
/// column by column through the same chunks.
inline mat<float> kernel(const sequence& s, const choice& c) {
  constexpr carve::format formats[] = {carve::format::f32, carve::format::tf32,
                                       carve::format::bf16, carve::format::f16};
  const rounding round{formats[c.format]};
  const auto rounded = [&](mat<float> m) {
    round(m);
    return m;
  };
  const mat<float> q = s.q.cast<float>(), k = s.k.cast<float>(),
                   v = s.v.cast<float>();
  mat<float> S = s.S0.cast<float>(), o(tokens, values);
  for (index_t t0 = 0; t0 < tokens; t0 += c.chunk) {
    const index_t n = std::min<index_t>(c.chunk, tokens - t0);
    if (c.cut && t0 > 0) S.setZero();
    std::vector<float> G(static_cast<std::size_t>(n));
    float sum = 0;
    for (index_t t = 0; t < n; ++t) {
      G[t] = sum += static_cast<float>(s.g(t0 + t, 0));
    }
    const auto ratio = [&](index_t t, index_t u) {
      return c.factored ? std::exp(G[t]) * std::exp(-G[u])
                        : std::exp(G[t] - G[u]);
    };
    mat<float> r = k.middleRows(t0, n);
    if (s.b.size()) {
      for (index_t t = 0; t < n; ++t) {
        for (index_t i = 0; i < keys; ++i) {
          r(t, i) *= static_cast<float>(s.b(t0 + t, s.b.cols() > 1 ? i : 0));
        }
      }
    }
    const mat<float> kc = rounded(k.middleRows(t0, n));
    const mat<float> qc = rounded(q.middleRows(t0, n));
    mat<float> L = rounded(r) * kc.transpose(), P = qc * kc.transpose();
    mat<float> qg = q.middleRows(t0, n), rg = r, wv = v.middleRows(t0, n),
               tail = k.middleRows(t0, n);
    for (index_t t = 0; t < n; ++t) {
      for (index_t u = 0; u < n; ++u) {
        L(t, u) *= u < t ? ratio(t, u) : 0.0f;
        P(t, u) *= u <= t ? ratio(t, u) : 0.0f;
      }
      qg.row(t) *= std::exp(G[t]), rg.row(t) *= std::exp(G[t]);
      wv.row(t) *= static_cast<float>(s.w(t0 + t, 0));
      tail.row(t) *= ratio(n - 1, t);
    }
    round(qg), round(rg), round(wv), round(tail), round(P);
    const auto invert = [&](const mat<float>& l) {
      mat<float> T = c.inverse == 1 ? carve::inverse_by_substitution(l)
                     : c.inverse == 2
                         ? carve::inverse_by_doubling<float>(l, round)
                         : carve::inverse_by_blocks<float>(l, 16, round);
      round(T);
      return T;
    };
    mat<float> U(n, values);
    const mat<float> found = rg * rounded(S);
    if (s.e.size()) {
      for (index_t j = 0; j < values; ++j) {
        mat<float> l = L, x(n, 1);
        for (index_t t = 0; t < n; ++t) {
          const float e = static_cast<float>(s.e(t0 + t, j));
          l.row(t) *= e;
          x(t, 0) = wv(t, j) - e * found(t, j);
        }
        U.col(j) = invert(l) * rounded(x);
      }
    } else {
      U = invert(L) * rounded(wv - found);
    }
    round(U);
    o.middleRows(t0, n) = qg * rounded(S) + P * U;
    S = std::exp(G[n - 1]) * S + tail.transpose() * U;
  }
  return o;
}

/// Runs the three ways.
inline answer run(const choice& c) {
  using wide = carve::double_double;
  const sequence s(c);
  const auto widened = [](const mat<double>& m) {
    std::vector<wide> x(static_cast<std::size_t>(m.size()));
    for (index_t i = 0; i < m.size(); ++i) x[i] = wide(m.data()[i]);
    return x;
  };
  const auto q = widened(s.q), k = widened(s.k), v = widened(s.v),
             b = widened(s.b), e = widened(s.e), w = widened(s.w);
  std::vector<wide> a;
  for (index_t t = 0; t < tokens; ++t) a.push_back(exp(wide(s.g(t, 0))));
  std::vector<wide> S = widened(s.S0), next(S.size()), o(tokens * values);
  answer out;
  carve::head<wide> h;
  h.tokens = 1, h.keys = keys, h.values = values;
  for (index_t t = 0; t < tokens; ++t) {
    h.q = {&q[t * keys], keys, 1}, h.k = {&k[t * keys], keys, 1};
    h.v = {&v[t * values], values, 1}, h.a = {&a[t], 1, 0}, h.w = {&w[t], 1, 0};
    if (!b.empty()) {
      h.b = {&b[t * s.b.cols()], s.b.cols(), s.b.cols() > 1 ? 1 : 0};
    }
    if (!e.empty()) h.e = {&e[t * values], values, 1};
    h.S0 = {S.data(), values, 1};
    carve::definition_forward<wide>(h, {&o[t * values], values, 1},
                                    {next.data(), values, 1});
    S = next;
    double norm = 0;
    for (const wide& x : S) norm += double(x) * double(x);
    out.size.push_back(std::sqrt(norm));
  }
  double total = 0;
  for (const wide& x : o) total += double(x) * double(x);
  const double unit = std::sqrt(total / static_cast<double>(o.size()));
  choice sound = c;
  sound.chunk = 64, sound.inverse = 0, sound.factored = sound.cut = false;
  const mat<float> by_sound = kernel(s, sound), by_chosen = kernel(s, c);
  const auto errors = [&](const mat<float>& x) {
    std::vector<double> error;
    for (index_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (index_t j = 0; j < values; ++j) {
        const double d = x(t, j) - double(o[t * values + j]);
        sum += d * d;
      }
      error.push_back(std::sqrt(sum / values) / unit);
    }
    return error;
  };
  out.sound = errors(by_sound), out.chosen = errors(by_chosen);
  const wide last = o[(tokens - 1) * values];
  out.exact = double(last), out.low = double(last - wide(out.exact));
  out.by_sound = by_sound(tokens - 1, 0);
  out.by_chosen = by_chosen(tokens - 1, 0);
  return out;
}

}  // namespace answers
