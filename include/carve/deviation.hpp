/// @file
/// Which mistakes do kernels make, and what would each of them have computed?
/// One table: the name of a deviation, the sentence that tells it, the tensors
/// that it may touch, and how a computation deviates.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "carve/batch.hpp"
#include "carve/faulty_walk.hpp"
#include "carve/matrix.hpp"
#include "carve/precision.hpp"
#include "carve/reference_batch.hpp"
#include "carve/rounding.hpp"
#include "carve/solver.hpp"
#include "carve/triangular.hpp"

namespace carve {

/// A number that a deviation leaves open: a length, or a number format.
struct deviation_choice {
  std::string_view words;             ///< in the place of {} in the sentence
  index_t length = 0;                 ///< in tokens, or whatever it counts
  double (*round)(double) = nullptr;  ///< to a number format
  unsigned way = 0;                   ///< flags, where there are several ways
};

/// What goes wrong in `T = (I + L)^-1` of a chunk; nothing does by default.
struct inverse_fault {
  /// Spoils T.
  void (*spoil)(matrix<double>& T, const deviation_choice& how) = nullptr;
  const deviation_choice* how = nullptr;  ///< what it is told
};

/// The policy of chunks whose inverse goes wrong.
struct faulty_inverse : exact_policy {
  inverse_fault fault;  ///< with a spoil
  /// Spoils T.
  void round(rounding_point at, bool, matrix<double>& T) const {
    if (at == rounding_point::T) fault.spoil(T, *fault.how);
  }
};

/// What is computed: a problem, the cotangents of its outputs, the faults of
/// the walk, and what is done with the result, the last of `back` first.
struct computation {
  problem<double> in;          ///< as it is
  outputs<double> cotangents;  ///< as they are
  walk_faults walk;            ///< none
  inverse_fault inverse;       ///< none; else there are chunks of 64 tokens
  std::vector<std::function<void(gradient_result<double>&)>> back;  ///< none

  /// What `f` makes of the solver that computes so.
  /// @throws carve::error  where faults of the walk and of the inverse meet.
  template <class F>
  auto with_solver(F&& f) const {
    if (inverse.spoil && walk.any()) {
      throw error("a computation: expected faults of a walk or of an inverse, ",
                  "got both");
    }
    if (inverse.spoil) {
      return f(chunked_solver<faulty_inverse>{64, {{}, inverse}});
    }
    if (walk.any()) return f(faulty_solver{walk});
    return f(recurrent_solver{});
  }

  /// Outputs, final states and gradients, under the names of the problem that
  /// the computation began with.
  /// @throws carve::error  as backward() does, and as faulty_solver does.
  gradient_result<double> result(const run_options& run = {}) const {
    gradient_result<double> r = with_solver([&](const auto& solver) {
      return backward(in, cotangents, solver, run);
    });
    for (std::size_t i = back.size(); i-- > 0;) back[i](r);
    return r;
  }
};

/// In what a kernel that deviates so is like the computation.
enum class likeness {
  numbers,  ///< its numbers are the same, to the roundings of a sound kernel
  size,     ///< so they are where all else is in a wider format; else its
            ///< errors are as large
  shape     ///< its errors lie where those of the computation lie
};

/// One row of the table.
struct deviation {
  std::string_view id;    ///< its name
  std::string_view text;  ///< what follows "the numbers match if"
  /// Tensors that it may touch, with blanks between them; d* is any gradient.
  std::string_view touches;
  /// Makes the computation deviate.
  /// @returns false where there is nothing to deviate in: the computation is
  ///          then as it was.
  bool (*apply)(computation&, const deviation_choice&);
  std::span<const deviation_choice> choices;  ///< at least one
  /// How far what it computes is what a kernel computes that deviates so.
  likeness alike = likeness::numbers;

  /// Whether it may touch the tensor of that name.
  bool may_touch(std::string_view name) const {
    std::string_view rest = touches;
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find(' '), rest.size());
      const std::string_view word = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      if (word == name || (word == "d*" && name.starts_with('d'))) return true;
    }
    return false;
  }
  /// The sentence with the choice's words in it.
  std::string sentence(const deviation_choice& c) const {
    std::string s(text);
    if (const std::size_t at = s.find("{}"); at != s.npos) {
      s.replace(at, 2, c.words);
    }
    return s;
  }
};

namespace detail {

/// What the rows of the table are made of.
namespace deviating {

using choice = deviation_choice;
using result = gradient_result<double>;
using values = tensor<double>;

inline void zero(values& x) { std::fill(x.data.begin(), x.data.end(), 0.0); }

/// The tensors that come with each token and are neither q, k nor v.
inline constexpr values each_tensor<values>::*gates[] = {
    &each_tensor<values>::g,    &each_tensor<values>::gd,
    &each_tensor<values>::beta, &each_tensor<values>::b,
    &each_tensor<values>::e,    &each_tensor<values>::w};

/// First and last token of each sequence on the token axis of all entries.
inline std::vector<std::pair<index_t, index_t>> sequences(
    const problem<double>& p) {
  std::vector<std::pair<index_t, index_t>> all;
  const index_t B = p.in.q.dim(0), T = p.in.q.dim(1);
  if (p.cu_seqlens.empty()) {
    for (index_t b = 0; b < B; ++b) all.emplace_back(b * T, (b + 1) * T);
  }
  for (std::size_t i = 1; i < p.cu_seqlens.size(); ++i) {
    all.emplace_back(p.cu_seqlens[i - 1], p.cu_seqlens[i]);
  }
  return all;
}

/// Numbers a token of a tensor [B,T,...].
inline index_t per_token(const values& x) {
  return static_cast<index_t>(x.data.size()) / (x.dim(0) * x.dim(1));
}

/// Lets the computation start from the activated tensors, so that a deviation
/// is one of the recurrence's own numbers.
inline void resolve(computation& c) {
  const problem<double> raw = c.in;
  const activations& act = raw.act;
  tensors<double>& x = c.in.in;
  const bool content = info(raw.family).content_gate;
  if (act.l2norm) x.q = l2_normalise(x.q, act), x.k = l2_normalise(x.k, act);
  x.g = natural_log(act.domain, activate_decay(act, x.g, x.A_log, x.dt_bias));
  x.gd = natural_log(act.domain, x.gd);
  x.beta = activate(act.beta, x.beta);
  if (!content) x.b = activate(act.b, x.b);
  x.w = activate(act.w, x.w);
  x.A_log = {}, x.dt_bias = {};
  c.in.act = {};
  c.back.push_back([raw, content](result& r) {
    tensors<double>& d = r.gradients;
    const activations& how = raw.act;
    if (raw.in.A_log.present()) d.A_log = values(raw.in.A_log.shape);
    if (raw.in.dt_bias.present()) d.dt_bias = values(raw.in.dt_bias.shape);
    if (how.l2norm) {
      d.q = l2_normalise_back(raw.in.q, d.q, how);
      d.k = l2_normalise_back(raw.in.k, d.k, how);
    }
    d.g = natural_log_back(how.domain, raw.in.g, d.g);
    d.gd = natural_log_back(how.domain, raw.in.gd, d.gd);
    d.g = activate_decay_back(how, raw.in.g, raw.in.A_log, raw.in.dt_bias, d.g,
                              &d.A_log, &d.dt_bias);
    d.beta = activate_back(how.beta, raw.in.beta, d.beta);
    if (!content) d.b = activate_back(how.b, raw.in.b, d.b);
    d.w = activate_back(how.w, raw.in.w, d.w);
  });
}

/// Lets erase and write gate be two tensors.
/// @returns false where the family has no such two.
inline bool untie(computation& c) {
  const family_info& f = info(c.in.family);
  if (f.content_gate || f.address != erase_address::gated_key) return false;
  resolve(c);
  tensors<double>& x = c.in.in;
  if (!f.tied) return x.w.present() && (x.b.present() || x.e.present());
  if (!c.in.erase_reads) c.in.erase_reads = f.erase_reads;
  const bool decays = x.g.present();
  if (!decays) x.g = values(x.beta.shape);
  x.b = x.w = x.beta;
  x.beta = {};
  c.in.family = family::gdn2;
  c.back.push_back([decays](result& r) {
    tensors<double>& d = r.gradients;
    if (!decays) d.g = {};
    d.beta = d.b;
    for (std::size_t i = 0; i < d.beta.data.size(); ++i) {
      d.beta.data[i] += d.w.data[i];
    }
    d.b = {}, d.w = {};
  });
  return true;
}

inline bool has_decay(const computation& c) {
  return c.in.in.g.present() || c.in.in.gd.present();
}
inline bool tied(const computation& c) { return info(c.in.family).tied; }
/// Whether faulty_solver walks the family.
inline bool walks(const computation& c) {
  return !info(c.in.family).content_gate && !c.in.in.E.present();
}

/// Multiplies the log decays and their gradients.
inline bool decay_times(computation& c, double factor) {
  if (!has_decay(c) || c.in.linear_decay) return false;
  resolve(c);
  for (values* x : {&c.in.in.g, &c.in.in.gd}) {
    for (double& e : x->data) e *= factor;
  }
  c.back.push_back([factor](result& r) {
    for (values* x : {&r.gradients.g, &r.gradients.gd}) {
      for (double& e : x->data) e *= factor;
    }
  });
  return true;
}

inline double scale_of(const computation& c) {
  return c.in.scale.value_or(1 /
                             std::sqrt(static_cast<double>(c.in.in.q.dim(3))));
}

/// A state with its two channel axes exchanged.
inline void transpose_states(values& x) {
  if (!x.present()) return;
  const auto K = static_cast<std::size_t>(x.dim(2));
  const auto V = static_cast<std::size_t>(x.dim(3));
  const values y = x;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const std::size_t at = i % (K * V);
    x.data[i] = y.data[i - at + at % K * V + at / K];
  }
}
inline bool square_states(const computation& c) {
  return c.in.in.q.dim(3) == c.in.in.v.dim(3);
}

/// The gates of one index along an axis for all of it.
inline bool first_of_axis(computation& c, index_t axis) {
  bool changed = false;
  resolve(c);
  for (const auto at : gates) {
    values& x = c.in.in.*at;
    if (!x.present() || x.dim(axis) < 2) continue;
    index_t inner = 1;
    for (index_t i = axis + 1; i < x.rank(); ++i) inner *= x.dim(i);
    const index_t n = x.dim(axis), size = static_cast<index_t>(x.data.size());
    double* const data = x.data.data();
    for (index_t i = 0; i < size; ++i) {
      data[i] = data[i / (inner * n) * (inner * n) + i % inner];
    }
    changed = true;
  }
  return changed;
}

/// Makes a gate one and its gradient zero.
inline bool gate_of_one(computation& c, values tensors<double>::*gate) {
  if (!untie(c) || !(c.in.in.*gate).present()) return false;
  std::fill((c.in.in.*gate).data.begin(), (c.in.in.*gate).data.end(), 1.0);
  c.back.push_back([gate](result& r) { zero(r.gradients.*gate); });
  return true;
}
inline bool gradient_of_zero(computation& c, values tensors<double>::*gate) {
  if (!untie(c) || !(c.in.in.*gate).present()) return false;
  c.back.push_back([gate](result& r) { zero(r.gradients.*gate); });
  return true;
}

/// FP8 with 4 bits of exponent and 3 of fraction, nearest even; the largest is
/// 448. Source: arXiv 2209.05433.
inline double to_e4m3(double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double step = std::ldexp(1.0, std::max(std::ilogb(x), -6) - 3);
  const double y = std::nearbyint(std::fabs(x) / step) * step;
  return std::copysign(std::min(y, 448.0), x);
}
inline double to_bf16(double x) { return round_to<format::bf16>(x); }
inline double to_f16(double x) { return round_to<format::f16>(x); }
inline double to_f32(double x) { return round_to<format::f32>(x); }

inline void round_all_of(matrix<double>& x, double (*round)(double)) {
  for (index_t i = 0; i < x.size(); ++i) *(x.data() + i) = round(x.data()[i]);
}

/// Lets the inverse of each chunk go wrong.
inline bool spoils(computation& c,
                   void (*spoil)(matrix<double>&, const choice&),
                   const choice& how) {
  if (!walks(c) || !info(c.in.family).erases() || c.walk.any() ||
      c.inverse.spoil) {
    return false;
  }
  c.inverse = {spoil, &how};
  return true;
}
inline void round_inverse(matrix<double>& T, const choice& how) {
  round_all_of(T, how.round);
}

/// `(I + L)^-1` by Newton's iteration `X <- X (2 I - (I + L) X)`.
inline matrix<double> inverse_by_newton(const matrix<double>& L,
                                        double (*round)(double)) {
  const matrix<double> one = matrix<double>::Identity(L.rows(), L.rows());
  matrix<double> X = one - L;
  for (index_t n = 2; n < L.rows(); n *= 2) {
    matrix<double> R = (one + L) * X;
    round_all_of(R, round);
    R = 2 * one - R;
    X = matrix<double>(X * R);
    round_all_of(X, round);
  }
  return X;
}

/// Forms the inverse anew, the one of each diagonal block by a series.
inline void grow_inverse(matrix<double>& T, const choice& how) {
  const index_t n = T.rows(), rows = how.length > 0 ? how.length : n;
  const matrix<double> one = matrix<double>::Identity(n, n);
  // The inverse of T, unit lower triangular as T is.
  matrix<double> M = inverse_by_substitution<double>(T - one);
  for (index_t t = 0; t < n; t += rows) {
    const index_t m = std::min(rows, n - t);
    const matrix<double> unit = matrix<double>::Identity(m, m);
    matrix<double> L = M.block(t, t, m, m) - unit;
    round_all_of(L, how.round);
    const matrix<double> X =
        how.length > 0
            ? inverse_by_doubling<double>(
                  L, [&](matrix<double>& x) { round_all_of(x, how.round); })
            : inverse_by_newton(L, how.round);
    if (m == n) {
      T = X;
      return;
    }
    M.block(t, t, m, m) = inverse_by_substitution<double>(X - unit);
  }
  T = inverse_by_substitution<double>(M - one);
}

/// Tokens of a chunk after which the reach of a clipped decay ends.
inline constexpr index_t factored_chunk = 64;

/// The runs of tokens that a chunk has, as first and end.
inline std::vector<std::pair<index_t, index_t>> chunks_of(
    const problem<double>& p, index_t chunk) {
  std::vector<std::pair<index_t, index_t>> all;
  for (const auto& [first, end] : sequences(p)) {
    for (index_t t = first; t < end; t += chunk) {
      all.emplace_back(t, std::min(end, t + chunk));
    }
  }
  return all;
}

/// The cumulated log decays of one channel of a chunk, as a kernel keeps them;
/// `counts` says which still depend on the log decays.
using cumulated_fault = void (*)(std::vector<double>& G,
                                 std::vector<char>& counts, double least);

/// Largest x whose e^x FP32 holds.
inline const double log_of_largest = std::log(3.4028234663852886e38);

/// Logs of factors that are not let below e^least.
inline void clipped(std::vector<double>& G, std::vector<char>& counts,
                    double least) {
  for (std::size_t t = 0; t < G.size(); ++t) {
    counts[t] = G[t] > least;
    G[t] = std::max(G[t], least);
  }
}
/// Logs of the products of decays in FP32, token by token: below its least
/// normal number they keep few digits, then none, and 0 / 0 is no number.
inline void multiplied(std::vector<double>& G, std::vector<char>&, double) {
  double before = 0;
  float product = 1;
  for (double& e : G) {
    product *= static_cast<float>(std::exp(e - std::exchange(before, e)));
    // 0 / 0 is none.
    e = product > 0 ? std::log(static_cast<double>(product))
                    : std::numeric_limits<double>::quiet_NaN();
  }
}

/// Logs of factors whose inverses are used as well: none where FP32 holds no
/// inverse.
inline void overflowed(std::vector<double>& G, std::vector<char>&, double) {
  for (double& e : G) {
    if (e < -log_of_largest) e = std::numeric_limits<double>::quiet_NaN();
  }
}

/// From a token on, a head of the decay has no numbers.
struct lost_rest {
  index_t token;  ///< on the axis of all entries
  index_t head;   ///< of g
};

/// Lets nothing of such heads be a number any more: outputs from there to the
/// end of the sequence, final states, and all gradients of the sequence.
/// @param[in] of  number of heads of g
inline void lose_rest(result& r,
                      const std::vector<std::pair<index_t, index_t>>& of_all,
                      const std::vector<lost_rest>& lost, index_t of) {
  const auto spoil = [&](values& x, index_t first, index_t end, index_t axes,
                         index_t head) {
    if (!x.present()) return;
    const index_t n = x.dim(axes - 1);
    index_t inner = 1;
    for (index_t i = axes; i < x.rank(); ++i) inner *= x.dim(i);
    const index_t from = head * n / of;
    const index_t to = std::max(from + 1, (head + 1) * n / of);
    for (index_t t = first; t < end; ++t) {
      double* const at = x.data.data() + t * n * inner;
      std::fill(at + from * inner, at + to * inner,
                std::numeric_limits<double>::quiet_NaN());
    }
  };
  for (const lost_rest& x : lost) {
    for (index_t s = 0; s < static_cast<index_t>(of_all.size()); ++s) {
      const auto [first, end] = *(of_all.data() + s);
      if (x.token < first || x.token >= end) continue;
      spoil(r.out.o, x.token, end, 3, x.head);
      spoil(r.out.final_state, s, s + 1, 2, x.head);
      spoil(r.gradients.initial_state, s, s + 1, 2, x.head);
      for (const auto& m : tensors<double>::members()) {
        if (m.axes.starts_with("B,T,") && !m.each_substep) {
          spoil(r.gradients.*m.at, first, end, 3, x.head);
        }
      }
      for (values* d : {&r.gradients.k, &r.gradients.v, &r.gradients.beta,
                        &r.gradients.b, &r.gradients.w}) {
        if (d->present() && d->dim(1) == r.out.o.dim(1)) {
          spoil(*d, first, end, 3, x.head);
        }
      }
    }
  }
}

/// Forms the decays of each chunk from cumulated logs that `f` spoiled.
inline void spoil_cumulated(computation& c, cumulated_fault f, double least) {
  resolve(c);
  const auto all = chunks_of(c.in, factored_chunk);
  const index_t width = per_token(c.in.in.g);
  const list<double> g = list<double>(
      c.in.in.g.data.data(), c.in.in.g.data.data() + c.in.in.g.data.size());
  // Calls f(first, kept, counts, i) for each chunk and channel.
  const auto each = [all, width, g, f, least](const auto& visit) {
    for (const auto& [first, end] : all) {
      for (index_t i = 0; i < width; ++i) {
        std::vector<double> G;
        double sum = 0;
        for (index_t t = first; t < end; ++t) {
          G.push_back(sum += g[t * width + i]);
        }
        std::vector<char> counts(G.size(), 1);
        f(G, counts, least);
        visit(first, G, counts, i);
      }
    }
  };
  const index_t heads = c.in.in.g.dim(2), channels = width / heads;
  std::vector<lost_rest> lost;
  each([&](index_t first, const std::vector<double>& G,
           const std::vector<char>&, index_t i) {
    double before = 0;
    double* to = c.in.in.g.data.data() + first * width + i;
    for (const double now : G) {
      if (std::isnan(now)) {
        const auto t = (to - c.in.in.g.data.data()) / width;
        lost.push_back({t, i / channels});
        break;
      }
      *to = now - std::exchange(before, now);
      to += width;
    }
  });
  if (!lost.empty()) {
    c.back.push_back([all_of = sequences(c.in), lost, heads](result& r) {
      lose_rest(r, all_of, lost, heads);
    });
  }
  c.back.push_back([each, width](result& r) {
    double* const d = r.gradients.g.data.data();
    each([&](index_t first, const std::vector<double>&,
             const std::vector<char>& counts, index_t i) {
      double later = 0, sum = 0;
      for (auto t = static_cast<index_t>(counts.size()); t-- > 0;) {
        double& x = *(d + (first + t) * width + i);
        const double own = x - std::exchange(later, x);
        x = sum += *(counts.data() + t) ? own : 0;
      }
    });
  });
}

/// How a masked score is formed, in the choices of grad-masked-after-exp.
inline constexpr unsigned gate_masked = 1, as_quotient = 2;

/// Gradients where scores are masked after their decay e^(G_t - G_s) was formed
/// above the diagonal too: where that is infinite, its gradient is 0 * inf.
/// @param[in] how  gate_masked: the erase gate stands in the masked product;
///                 as_quotient: the decay is a quotient of two products.
inline bool lose_masked(computation& c, index_t chunk, unsigned how) {
  resolve(c);
  const values& g = c.in.in.g;
  const index_t width = per_token(g);
  const index_t keys = c.in.in.q.dim(3), channels = width / g.dim(2);
  // By token and channel of g: 1 a row of the scores, 2 a column, 4 dg.
  std::vector<char> lost(g.data.size(), 0);
  bool any = false;
  for (const auto& run : chunks_of(c.in, chunk)) {
    const index_t first = run.first, end = run.second;
    for (index_t i = 0; i < width; ++i) {
      list<double> G(end - first, 0.0);
      double sum = 0;
      for (index_t t = first; t < end; ++t) {
        G[t - first] = sum += *(g.data.data() + t * width + i);
      }
      const auto at = [&](index_t t) -> char& {
        return *(lost.data() + (first + t) * width + i);
      };
      index_t last = -1;
      for (index_t s = 0; s < G.count(); ++s) {
        for (index_t t = 0; t < s; ++t) {
          const double x = G[t] - G[s];
          if (x > log_of_largest) at(t) |= 1, at(s) |= 2, last = s;
          if (how & as_quotient && x - G[s] > log_of_largest) last = s;
        }
      }
      for (index_t t = 0; t <= last; ++t) at(t) |= 4;
      any = any || last >= 0;
    }
  }
  if (!any) return false;
  c.back.push_back(
      [lost, width, keys, channels, how, of_g = g.dim(2)](result& r) {
        constexpr double nan = std::numeric_limits<double>::quiet_NaN();
        const auto spoil = [&](values& x, char of) {
          if (!x.present()) return;
          const index_t inner = x.rank() == 4 ? x.dim(3) : 1, n = x.dim(2);
          for (index_t at = 0; at < static_cast<index_t>(lost.size()); ++at) {
            if ((*(lost.data() + at) & of) == 0) continue;
            const index_t token = at / width, head = at % width / channels;
            // Value heads share a query head, or g is one for several of them.
            const index_t first = head * n / of_g;
            const index_t end = std::max(first + 1, (head + 1) * n / of_g);
            for (index_t h = first; h < end; ++h) {
              double* const to = x.data.data() + (token * n + h) * inner;
              // Without a decay per channel the whole score is multiplied.
              const bool one = channels > 1 && inner == keys;
              for (index_t i = 0; i < inner; ++i) {
                if (!one || i == at % channels) to[i] = nan;
              }
            }
          }
        };
        tensors<double>& d = r.gradients;
        spoil(d.q, 1), spoil(d.k, 1 | 2), spoil(d.g, 4);
        if (how & gate_masked) spoil(d.beta, 1), spoil(d.b, 1);
      });
  return true;
}

/// Lets the last, shorter chunk of each sequence take what stands after it.
/// @param[in] following  the tokens that follow in memory; else zeros, before
///                       any activation.
inline bool take_padding(computation& c, index_t chunk, bool following) {
  const auto segments = sequences(c.in);
  const index_t B = c.in.in.q.dim(0), T = c.in.in.q.dim(1), all = B * T;
  list<index_t> from;  // token in memory, or -1 for zeros
  list<char> own;
  std::vector<std::int64_t> offsets{0};
  bool padded = false;
  for (const auto& [first, end] : segments) {
    const index_t pad = (chunk - (end - first) % chunk) % chunk;
    padded = padded || pad > 0;
    for (index_t t = first; t < end + pad; ++t) {
      own.push_back(t < end);
      from.push_back(t < end || (following && t < all) ? t : -1);
    }
    offsets.push_back(static_cast<std::int64_t>(from.size()));
  }
  const index_t n = from.count();
  const bool packed = !c.in.cu_seqlens.empty();
  const auto extended = [&](values& x, bool only_own) {
    if (!x.present()) return;
    const index_t width = per_token(x);
    values y = x;
    y.shape[0] = packed ? 1 : B, y.shape[1] = packed ? n : n / B;
    y.data.assign(static_cast<std::size_t>(n * width), 0.0);
    for (index_t t = 0; t < n; ++t) {
      if (from[t] < 0 || (only_own && !own[t])) continue;
      std::copy_n(x.data.data() + from[t] * width, width,
                  y.data.data() + t * width);
    }
    x = std::move(y);
  };
  for (const auto& m : tensors<double>::members()) {
    if (!m.axes.starts_with("B,T,")) continue;
    if (m.each_substep && (c.in.in.*m.at).present() &&
        (c.in.in.*m.at).dim(1) != T) {
      return false;
    }
  }
  if (!padded) return false;
  for (const auto& m : tensors<double>::members()) {
    if (m.axes.starts_with("B,T,")) extended(c.in.in.*m.at, false);
  }
  extended(c.cotangents.o, true);
  if (packed) c.in.cu_seqlens = offsets;
  c.back.push_back([from, own, B, T](result& r) {
    const auto cut = [&](values& x) {
      if (!x.present()) return;
      const index_t width = per_token(x);
      values y = x;
      y.shape[0] = B, y.shape[1] = T;
      y.data.assign(static_cast<std::size_t>(B * T * width), 0.0);
      for (index_t t = 0; t < from.count(); ++t) {
        if (!own[t]) continue;
        std::copy_n(x.data.data() + t * width, width,
                    y.data.data() + from[t] * width);
      }
      x = std::move(y);
    };
    cut(r.out.o);
    for (const auto& m : tensors<double>::members()) {
      if (m.axes.starts_with("B,T,")) cut(r.gradients.*m.at);
    }
  });
  return true;
}

inline constexpr choice only[] = {{}};
inline constexpr choice formats[] = {{"BF16", 0, to_bf16}, {"FP16", 0, to_f16}};
inline constexpr choice chunks[] = {
    {"64", 64}, {"32", 32}, {"16", 16}, {"128", 128}};
inline constexpr choice tiles[] = {{"16", 16}, {"32", 32}, {"8", 8}};
inline constexpr choice kept_states[] = {
    {"BF16 after every token", 1, to_bf16},
    {"FP16 after every token", 1, to_f16},
    {"FP8 after every token", 1, to_e4m3},
    {"BF16, with every product and sum of a token", -1, to_bf16},
    {"FP16, with every product and sum of a token", -1, to_f16},
    {"BF16 after every chunk of 64 tokens", 64, to_bf16},
    {"FP16 after every chunk of 64 tokens", 64, to_f16},
    {"FP8 after every chunk of 64 tokens", 64, to_e4m3},
    {"BF16 where it is handed out", 0, to_bf16},
    {"FP16 where it is handed out", 0, to_f16}};
/// Of length 0: products in FP32; of -1: factors of both signs; else minus the
/// log of the least factor.
inline constexpr choice underflows[] = {
    {"factors e^G and e^-G, which FP32 does not hold", -1},
    {"prefix products that FP32 hardly holds", 0},
    {"factors not let below e^-87, the least of FP32", 87},
    {"factors not let below e^-20", 20},
    {"factors not let below e^-11, 1/FP16's largest", 11}};
/// Rows of the blocks; 0: Newton's iteration over all of them.
inline constexpr choice series[] = {
    {"by doubling in FP32", 64, to_f32},
    {"by doubling in blocks of 16 in FP32", 16, to_f32},
    {"by Newton's iteration in FP32", 0, to_f32},
    {"by doubling in blocks of 16 in FP16", 16, to_f16},
    {"by doubling in blocks of 16 in BF16", 16, to_bf16}};
inline constexpr choice cuts[] = {
    {"20", 20}, {"10", 10}, {"5", 5}, {"1", 1}, {"0", 0}};
/// Negative: it takes zeros.
inline constexpr choice paddings[] = {
    {"64 tokens goes on into the tokens after it", 64},
    {"64 tokens is filled with logits of zero", -64},
    {"32 tokens goes on into the tokens after it", 32},
    {"32 tokens is filled with logits of zero", -32},
    {"16 tokens goes on into the tokens after it", 16},
    {"16 tokens is filled with logits of zero", -16},
    {"128 tokens goes on into the tokens after it", 128},
    {"128 tokens is filled with logits of zero", -128}};
inline constexpr choice narrow_inputs[] = {{"A_log", 0, to_bf16},
                                           {"dt_bias", 1, to_bf16},
                                           {"the log decay", 2, to_bf16},
                                           {"the initial state", 3, to_bf16},
                                           {"q after its norm", 4, to_bf16},
                                           {"k after its norm", 5, to_bf16},
                                           {"beta", 6, to_bf16},
                                           {"the decay e^g", 7, to_bf16}};
inline constexpr choice masked[] = {
    {"chunks of 64", 64, nullptr, gate_masked},
    {"chunks of 32", 32, nullptr, gate_masked},
    {"chunks of 16", 16, nullptr, gate_masked},
    {"chunks of 128", 128, nullptr, gate_masked},
    {"chunks of 64, the gate applied after it", 64},
    {"chunks of 64, as a quotient of products", 64, nullptr, as_quotient},
    {"chunks of 64, as a quotient of products, the gate inside", 64, nullptr,
     as_quotient | gate_masked}};
inline constexpr choice activated[] = {
    {"beta", 0}, {"b", 1}, {"w", 2}, {"the decay", 3}};
inline constexpr choice unscaled[] = {{"the backward pass leaves", 0},
                                      {"dq alone leaves", 1}};

}  // namespace deviating

}  // namespace detail

/// The table. To add a deviation is to add its row here.
inline std::span<const deviation> deviations() {
  using namespace detail::deviating;  // NOLINT(google-build-using-namespace)
  using c_ = computation;
  static const deviation table[] = {
      // What is done to the inputs before the recurrence.
      {"activation-missing", "the activation of {} is left out",
       "o final_state d*",
       [](c_& c, const choice& of) {
         activations& act = c.in.act;
         if (of.length == 3) {
           if (act.decay == decay_activation::none) return false;
           act.decay = decay_activation::none;
           const tensor_shape A = c.in.in.A_log.shape;
           const tensor_shape bias = c.in.in.dt_bias.shape;
           c.in.in.A_log = {}, c.in.in.dt_bias = {};
           c.back.push_back([A, bias](result& r) {
             if (!A.empty()) r.gradients.A_log = values(A);
             if (!bias.empty()) r.gradients.dt_bias = values(bias);
           });
           return true;
         }
         gate_activation& f = of.length == 0   ? act.beta
                              : of.length == 1 ? act.b
                                               : act.w;
         if (f == gate_activation::none) return false;
         f = gate_activation::none;
         return true;
       },
       activated},
      {"dt-bias-per-head", "every channel of a head takes its first dt_bias",
       "o final_state d*",
       [](c_& c, const choice&) {
         values& x = c.in.in.dt_bias;
         if (x.rank() != 2) return false;
         const auto K = static_cast<std::size_t>(x.dim(1));
         for (std::size_t i = 0; i < x.data.size(); ++i) {
           x.data[i] = x.data[i / K * K];
         }
         c.back.push_back([K](result& r) {
           std::vector<double>& d = r.gradients.dt_bias.data;
           for (std::size_t i = 0; i < d.size(); ++i) {
             if (i % K != 0) d[i / K * K] += d[i], d[i] = 0;
           }
         });
         return true;
       },
       only},
      {"l2norm-missing", "q and k are not normalised", "o final_state d*",
       [](c_& c, const choice&) {
         return std::exchange(c.in.act.l2norm, false);
       },
       only},
      {"l2norm-eps-on-mean",
       "the epsilon of the norm is on the mean of the squares",
       "o final_state d*",
       [](c_& c, const choice&) {
         return c.in.act.l2norm &&
                std::exchange(c.in.act.norm, l2_norm::mean) != l2_norm::mean;
       },
       only},
      {"l2norm-eps-none", "the norm has no epsilon", "o final_state d*",
       [](c_& c, const choice&) {
         return c.in.act.l2norm && std::exchange(c.in.act.l2_epsilon, 0.0) != 0;
       },
       only},

      {"softplus-cut", "softplus(x) is x wherever x is above {}",
       "o final_state d*",
       [](c_& c, const choice& of) {
         if (c.in.act.decay != decay_activation::softplus) return false;
         const values x = c.in.in.g, A_log = c.in.in.A_log;
         const values dt_bias = c.in.in.dt_bias;
         const double cut = static_cast<double>(of.length);
         values g = natural_log(c.in.act.domain,
                                activate_decay(c.in.act, x, A_log, dt_bias));
         bool any = false;
         std::size_t head, bias;
         for (std::size_t i = 0; i < x.data.size(); ++i) {
           const auto [z, rate] =
               detail::decay_at(x, i, A_log, dt_bias, &head, &bias);
           if (z > cut) g.data[i] = -rate * z, any = true;
         }
         if (!any) return false;
         c.in.in.g = g, c.in.in.A_log = {}, c.in.in.dt_bias = {};
         c.in.act.decay = decay_activation::none;
         c.back.push_back([x, A_log, dt_bias, g, cut](result& r) {
           tensors<double>& d = r.gradients;
           if (A_log.present()) d.A_log = values(A_log.shape);
           if (dt_bias.present()) d.dt_bias = values(dt_bias.shape);
           std::size_t at_head, at_bias;
           for (std::size_t i = 0; i < x.data.size(); ++i) {
             const auto [z, rate] =
                 detail::decay_at(x, i, A_log, dt_bias, &at_head, &at_bias);
             double& dg = d.g.data[i];
             if (A_log.present()) d.A_log.data[at_head] += dg * g.data[i];
             dg *= -rate * (z > cut ? 1.0 : sigmoid(z));
             if (dt_bias.present()) d.dt_bias.data[at_bias] += dg;
           }
         });
         return true;
       },
       cuts},
      {"input-low-precision", "{} is rounded to BF16", "o final_state d*",
       [](c_& c, const choice& of) {
         tensors<double>& x = c.in.in;
         if ((of.length == 4 || of.length == 5) && !c.in.act.l2norm) {
           return false;
         }
         if (of.length == 2 || of.length > 3) resolve(c);
         values& y = of.length == 0                     ? x.A_log
                     : of.length == 1                   ? x.dt_bias
                     : of.length == 2 || of.length == 7 ? x.g
                     : of.length == 3                   ? x.initial_state
                     : of.length == 4                   ? x.q
                     : of.length == 5                   ? x.k
                                                        : x.beta;
         bool changed = false;
         for (double& e : y.data) {
           const double now =
               of.length == 7 ? std::log(of.round(std::exp(e))) : of.round(e);
           changed = changed || e != now;
           e = now;
         }
         return changed;
       },
       narrow_inputs},

      // Which numbers are read.
      {"heads-tiled",
       "the other order of heads is read: i % H for i / (HV / H)",
       "o final_state d*",
       [](c_& c, const choice&) {
         if (c.in.in.q.dim(2) == c.in.in.v.dim(2)) return false;
         c.in.tiled_heads = !c.in.tiled_heads;
         return true;
       },
       only},
      {"cu-seqlens-ignored", "the packed sequences are taken for one",
       "o final_state d*",
       [](c_& c, const choice&) {
         if (c.in.cu_seqlens.size() < 3) return false;
         const auto N = static_cast<index_t>(c.in.cu_seqlens.size()) - 1;
         c.in.cu_seqlens = {0, c.in.cu_seqlens.back()};
         const auto first = [](values& x) {
           if (!x.present()) return;
           x.data.resize(x.data.size() / static_cast<std::size_t>(x.shape[0]));
           x.shape[0] = 1;
         };
         first(c.in.in.initial_state), first(c.cotangents.final_state);
         c.back.push_back([N](result& r) {
           for (values* x : {&r.out.final_state, &r.gradients.initial_state}) {
             if (!x->present()) continue;
             x->shape[0] = N;
             x->data.resize(x->data.size() * static_cast<std::size_t>(N));
           }
         });
         return true;
       },
       only},
      {"padding-not-masked", "the last, shorter chunk of {}", "final_state d*",
       [](c_& c, const choice& of) {
         return take_padding(c, std::abs(of.length), of.length > 0);
       },
       paddings},
      {"batch-row-zero", "every batch entry takes the gates of the first",
       "o final_state d*",
       [](c_& c, const choice&) { return first_of_axis(c, 0); }, only},
      {"head-zero-gates", "every head takes the gates of the first",
       "o final_state d*",
       [](c_& c, const choice&) { return first_of_axis(c, 2); }, only},

      // The decay.
      {"decay-exp2", "g is taken for a logarithm of base 2", "o final_state d*",
       [](c_& c, const choice&) { return decay_times(c, std::log(2.0)); },
       only},
      {"decay-sign", "the sign of g is turned", "o final_state d*",
       [](c_& c, const choice&) { return decay_times(c, -1); }, only},
      {"decay-ignored", "the decay is left out", "o final_state d*",
       [](c_& c, const choice&) { return decay_times(c, 0); }, only},
      {"decay-linear", "g is taken for the decay itself", "o final_state d*",
       [](c_& c, const choice&) {
         if (!has_decay(c) || c.in.linear_decay) return false;
         resolve(c);
         c.in.linear_decay = true;
         c.back.push_back([g = c.in.in.g, gd = c.in.in.gd](result& r) {
           for (const auto& [x, d] : {std::pair{&g, &r.gradients.g},
                                      std::pair{&gd, &r.gradients.gd}}) {
             for (std::size_t i = 0; i < d->data.size(); ++i) {
               if (x->data[i] != 0) d->data[i] /= x->data[i];
             }
           }
         });
         return true;
       },
       only},
      {"decay-after-write", "the state decays after the write and not before",
       "o final_state d*",
       [](c_& c, const choice&) {
         return has_decay(c) && walks(c) &&
                !std::exchange(c.walk.decay_last, true);
       },
       only},
      {"decay-underflow", "decay ratios of chunks of 64 are quotients of {}",
       "o final_state d*",
       [](c_& c, const choice& of) {
         if (!c.in.in.g.present() || c.in.linear_decay) return false;
         spoil_cumulated(c,
                         of.length == 0    ? multiplied
                         : of.length == -1 ? overflowed
                                           : clipped,
                         -static_cast<double>(of.length));
         return true;
       },
       underflows},
      {"exp-base-mixed",
       "the decay is 2^g within chunks of {} tokens and e^g across them",
       "o final_state d*",
       [](c_& c, const choice& of) {
         if (!walks(c) || !c.in.in.g.present() || c.in.in.gd.present() ||
             c.in.linear_decay || c.walk.mixed != 0) {
           return false;
         }
         // From zero within one chunk it is 2^g alone.
         bool across = c.in.in.initial_state.present();
         for (const auto& [first, end] : sequences(c.in)) {
           across = across || end - first > of.length;
         }
         c.walk.mixed = across ? of.length : 0;
         return across;
       },
       chunks},
      {"cumsum-not-carried",
       "in chunks of 64 the sum of g starts anew every {} tokens",
       "o final_state d*",
       [](c_& c, const choice& of) {
         if (!c.in.in.g.present() || c.in.linear_decay) return false;
         resolve(c);
         const index_t width = per_token(c.in.in.g), tile = of.length;
         std::vector<std::pair<index_t, index_t>> from;  // g[to] -= g[from]
         for (const auto& [first, end] : sequences(c.in)) {
           for (index_t t = first; t < end; ++t) {
             const index_t place = (t - first) % 64;
             if (place == 0 || place % tile != 0) continue;
             for (index_t s = t - tile; s < t; ++s) from.emplace_back(t, s);
           }
         }
         const values g = c.in.in.g;
         double* const logs = c.in.in.g.data.data();
         for (const auto& [t, s] : from) {
           for (index_t i = 0; i < width; ++i) {
             logs[t * width + i] -= *(g.data.data() + s * width + i);
           }
         }
         c.back.push_back([from, width](result& r) {
           const values d = r.gradients.g;
           double* const to = r.gradients.g.data.data();
           for (const auto& [t, s] : from) {
             for (index_t i = 0; i < width; ++i) {
               to[s * width + i] -= *(d.data.data() + t * width + i);
             }
           }
         });
         return !from.empty();
       },
       tiles},
      {"tail-decay-lost",
       "the last, shorter chunk of {} tokens does not decay the final state",
       "final_state d*",
       [](c_& c, const choice& of) {
         if (!has_decay(c) || !walks(c) || c.walk.tail != 0) return false;
         c.walk.tail = of.length;
         for (const auto& [first, end] : sequences(c.in)) {
           if ((end - first) % of.length != 0) return true;
         }
         c.walk.tail = 0;
         return false;
       },
       chunks},

      // Erase and write.
      {"erase-before-decay", "the erase looks into the state before its decay",
       "o final_state d*",
       [](c_& c, const choice&) {
         const family_info& f = info(c.in.family);
         if (!f.erases() || !has_decay(c)) return false;
         const erase_order was = c.in.erase_reads.value_or(f.erase_reads);
         c.in.erase_reads = erase_order::before_decay;
         return was != erase_order::before_decay;
       },
       only},
      {"erase-gate-ignored", "the erase gate is left out", "o final_state d*",
       [](c_& c, const choice&) {
         if (tied(c)) return false;
         return gate_of_one(c, c.in.in.b.present() ? &tensors<double>::b
                                                   : &tensors<double>::e);
       },
       only},
      {"write-gate-ignored", "the write gate is left out", "o final_state d*",
       [](c_& c, const choice&) {
         return !tied(c) && gate_of_one(c, &tensors<double>::w);
       },
       only},
      {"beta-on-write-only", "beta gates the write alone", "o final_state d*",
       [](c_& c, const choice&) {
         return tied(c) && gate_of_one(c, &tensors<double>::b);
       },
       only},
      {"beta-on-erase-only", "beta gates the erase alone", "o final_state d*",
       [](c_& c, const choice&) {
         return tied(c) && gate_of_one(c, &tensors<double>::w);
       },
       only},
      {"gates-swapped", "erase and write gate are exchanged",
       "o final_state d*",
       [](c_& c, const choice&) {
         if (tied(c) || !untie(c)) return false;
         tensors<double>& x = c.in.in;
         if (!x.b.present() || x.b.shape != x.w.shape) return false;
         std::swap(x.b, x.w);
         c.back.push_back(
             [](result& r) { std::swap(r.gradients.b, r.gradients.w); });
         return true;
       },
       only},
      {"erase-gate-doubled", "the erase gate counts twice", "o final_state d*",
       [](c_& c, const choice&) {
         if (!untie(c)) return false;
         const auto gate =
             c.in.in.b.present() ? &tensors<double>::b : &tensors<double>::e;
         for (double& e : (c.in.in.*gate).data) e *= 2;
         c.back.push_back([gate](result& r) {
           for (double& e : (r.gradients.*gate).data) e *= 2;
         });
         return true;
       },
       only},

      // The read-out.
      {"read-before-update", "the read-out is taken before the update", "o d*",
       [](c_& c, const choice&) {
         return std::exchange(c.in.read, readout::before) != readout::before;
       },
       only},
      {"scale-missing", "the scale is left out", "o d*",
       [](c_& c, const choice&) {
         const double was = scale_of(c);
         c.in.scale = 1;
         return was != 1;
       },
       only},
      {"scale-twice", "the scale is applied twice", "o d*",
       [](c_& c, const choice&) {
         const double was = scale_of(c);
         c.in.scale = was * was;
         return was != 1;
       },
       only},

      // States.
      {"state-transposed", "states are stored in the other order of axes",
       "o final_state d*",
       [](c_& c, const choice&) {
         if (!square_states(c)) return false;
         c.in.state_v_first = !c.in.state_v_first;
         return true;
       },
       only},
      {"initial-state-transposed",
       "the initial state is read in the other order of axes",
       "o final_state d*",
       [](c_& c, const choice&) {
         if (!square_states(c) || !c.in.in.initial_state.present()) {
           return false;
         }
         transpose_states(c.in.in.initial_state);
         c.back.push_back(
             [](result& r) { transpose_states(r.gradients.initial_state); });
         return true;
       },
       only},
      {"final-state-transposed",
       "the final state is written in the other order of axes",
       "final_state d*",
       [](c_& c, const choice&) {
         if (!square_states(c)) return false;
         transpose_states(c.cotangents.final_state);
         c.back.push_back(
             [](result& r) { transpose_states(r.out.final_state); });
         return true;
       },
       only},
      {"initial-state-ignored", "the initial state is left out",
       "o final_state d*",
       [](c_& c, const choice&) {
         if (!c.in.in.initial_state.present()) return false;
         zero(c.in.in.initial_state);
         c.back.push_back([](result& r) { zero(r.gradients.initial_state); });
         return true;
       },
       only},
      {"chunk-reset", "the state is lost every {} tokens", "o final_state d*",
       [](c_& c, const choice& of) {
         if (!walks(c) || c.walk.reset != 0) return false;
         c.walk.reset = of.length;
         return true;
       },
       chunks},
      {"state-low-precision", "the state is kept in {}", "o final_state d*",
       [](c_& c, const choice& of) {
         if (of.length == 0) {
           c.back.push_back([round = of.round](result& r) {
             for (double& e : r.out.final_state.data) e = round(e);
           });
           return true;
         }
         if (!walks(c) || c.walk.store) return false;
         c.walk.store = of.round;
         c.walk.store_every = std::abs(of.length);
         c.walk.store_all = of.length < 0;
         return true;
       },
       kept_states, likeness::size},
      {"inverse-low-precision",
       "the inverse of I + L of chunks of 64 is rounded to {}",
       "o final_state d*",
       [](c_& c, const choice& of) { return spoils(c, round_inverse, of); },
       formats, likeness::size},
      {"inverse-unstable",
       "the inverse of I + L of chunks of 64 is formed {}, whose powers of L "
       "outgrow it",
       "o final_state d*",
       [](c_& c, const choice& of) { return spoils(c, grow_inverse, of); },
       series, likeness::shape},
      {"residual-low-precision", "v - S^T k is formed in {}",
       "o final_state d*",
       [](c_& c, const choice& of) {
         if (!walks(c) || !info(c.in.family).erases() || c.walk.residual) {
           return false;
         }
         c.walk.residual = of.round;
         return true;
       },
       formats, likeness::size},

      // The backward pass alone.
      {"grad-no-final-state", "the backward pass ignores dfinal_state", "d*",
       [](c_& c, const choice&) {
         return std::exchange(c.cotangents.final_state, values()).present();
       },
       only},
      {"grad-initial-state-missing",
       "the backward pass starts from an initial state of zeros", "d*",
       [](c_& c, const choice&) {
         if (!c.in.in.initial_state.present()) return false;
         // Outputs are those of the computation as it stands so far.
         const computation so_far{c.in, {}, c.walk, c.inverse, {}};
         c.back.push_back([so_far](result& r) {
           r.out = so_far.with_solver(
               [&](const auto& solver) { return forward(so_far.in, solver); });
         });
         zero(c.in.in.initial_state);
         return true;
       },
       only},
      {"grad-scale-missing", "{} the scale out", "d*",
       [](c_& c, const choice& of) {
         const double scale = scale_of(c);
         if (of.length == 1) {
           c.back.push_back([scale](result& r) {
             for (double& e : r.gradients.q.data) e /= scale;
           });
         } else {
           if (!c.cotangents.o.present()) return false;
           for (double& e : c.cotangents.o.data) e /= scale;
         }
         return scale != 1;
       },
       unscaled},
      {"grad-erase-missing",
       "the gradient of the erase gate leaves out the "
       "erase",
       "dbeta db de",
       [](c_& c, const choice&) {
         return gradient_of_zero(c, c.in.in.e.present() ? &tensors<double>::e
                                                        : &tensors<double>::b);
       },
       only},
      {"grad-write-missing",
       "the gradient of the write gate leaves out the write", "dbeta dw",
       [](c_& c, const choice&) {
         return gradient_of_zero(c, &tensors<double>::w);
       },
       only},
      {"grad-chunk-local",
       "the backward pass does not hand dS from one chunk of {} tokens to the "
       "one before it",
       "d*",
       [](c_& c, const choice& of) {
         if (!walks(c) || c.walk.back_reset != 0) return false;
         c.walk.back_reset = of.length;
         return true;
       },
       chunks},
      {"grad-g-missing-state-term",
       "dg leaves out the sum of S * dS over the states of chunks of {} tokens",
       "dg dA_log ddt_bias",
       [](c_& c, const choice& of) {
         if (!walks(c) || !c.in.in.g.present() || c.walk.no_state_term != 0) {
           return false;
         }
         c.walk.no_state_term = of.length;
         return true;
       },
       chunks},
      {"grad-erase-not-carried",
       "dS goes back through the decay alone and not through the erase", "d*",
       [](c_& c, const choice&) {
         return walks(c) && info(c.in.family).erases() &&
                !std::exchange(c.walk.erase_stays, true);
       },
       only},
      {"grad-masked-after-exp",
       "scores are masked after the exponential, which overflows above the "
       "diagonal of {}",
       "d*",
       [](c_& c, const choice& of) {
         if (!c.in.in.g.present() || c.in.linear_decay) return false;
         return lose_masked(c, of.length, of.way);
       },
       masked},
      {"grad-diagonal-kept",
       "the gradient of the triangular system keeps its diagonal", "d*",
       [](c_& c, const choice&) {
         return walks(c) && info(c.in.family).erases() &&
                !c.in.in.y.present() &&
                !std::exchange(c.walk.diagonal_kept, true);
       },
       only},
      {"grad-g-rounded-terms",
       "dg is summed from q dq - k dk with dq and dk rounded to {}",
       "dg dA_log ddt_bias",
       [](c_& c, const choice& of) {
         const tensors<double>& x = c.in.in;
         if (!x.g.present() || x.q.dim(2) != x.v.dim(2) ||
             x.g.dim(2) != x.q.dim(2)) {
           return false;
         }
         resolve(c);
         c.back.push_back([in = c.in, round = of.round](result& r) {
           tensors<double>& d = r.gradients;
           const index_t H = in.in.q.dim(2), K = in.in.q.dim(3);
           const bool channels = in.in.g.rank() == 4;
           for (const auto& [first, end] : sequences(in)) {
             for (index_t h = 0; h < H * K; ++h) {
               double sum = 0;
               for (index_t t = end; t-- > first;) {
                 if ((t - first + 1) % 64 == 0) sum = 0;
                 const auto at = static_cast<std::size_t>(t * H * K + h);
                 const double dq = d.q.data[at], dk = d.k.data[at];
                 sum += in.in.q.data[at] * (round(dq) - dq) -
                        in.in.k.data[at] * (round(dk) - dk);
                 d.g.data[channels ? at
                                   : static_cast<std::size_t>(t * H + h / K)] +=
                     sum;
               }
             }
           }
         });
         return true;
       },
       formats},
  };
  return table;
}

}  // namespace carve
