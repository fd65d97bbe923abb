/// @file
/// Does a diagnosis name what was wrong in public bug reports?  The cause of
/// each is made again, most by small loops that stand here and know nothing of
/// the catalogue; the table of what is named is markdown.
#include <cmath>
#include <functional>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "program/diagnose.hpp"

using namespace carve::program;
using carve::format;
using carve::index_t;
using carve::round_to;

namespace {

constexpr index_t T = 80, H = 2, HV = 4, K = 16, V = 16, C = 64;
using list = carve::detail::list<double>;
using rounding = double (*)(double);

double as_is(double x) { return x; }
double bf16(double x) { return round_to<format::bf16>(x); }
double f16(double x) { return round_to<format::f16>(x); }

carve::tensor<double> waves(const carve::tensor_shape& shape, double low,
                            double high, double salt) {
  carve::tensor<double> x(shape);
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double at = static_cast<double>((i * i + 7) % 9973 + 1);
    x.data[i] =
        bf16(low + (high - low) * 0.5 * (1 + std::sin(at * (0.7 + salt))));
  }
  return x;
}

/// The right outputs of a problem, in F32.
dump judged(dump d) {
  d.dtype = carve::safetensors::dtype::f32;
  d.size = carve::check(d.in);
  const auto right = exact_result(d, "dd");
  each_result(right, [&](const std::string& name, const auto& y) {
    if (!y.present()) return;
    judged_tensor j{name, d.dtype, {}};
    j.values.shape = y.shape;
    for (const auto& e : y.data) {
      j.values.data.push_back(carve::rounded(format::f32, e));
    }
    d.judged.push_back(j);
  });
  return d;
}

/// Inputs as a layer hands them over: logits of the gates, keys to be
/// normalised, grouped heads, a start state; outputs alone.
dump layer() {
  dump d;
  d.in.family = carve::family::gdn;
  auto& x = d.in.in;
  x.q = waves({1, T, H, K}, -1, 1, 0.1), x.k = waves({1, T, H, K}, -1, 1, 0.2);
  x.v = waves({1, T, HV, V}, -1, 1, 0.3);
  x.g = waves({1, T, HV}, -3, 1, 0.4), x.beta = waves({1, T, HV}, -2, 2, 0.5);
  x.A_log = waves({HV}, -1.4, -0.7, 0.6), x.dt_bias = waves({HV}, 0, 1, 0.7);
  for (index_t h = 0; h < HV; ++h) {
    // What BF16 does not hold.
    x.A_log.data[static_cast<std::size_t>(h)] += 0.0011;
    x.dt_bias.data[static_cast<std::size_t>(h)] += 0.0007;
  }
  x.initial_state = waves({1, HV, K, V}, -0.5, 0.5, 0.8);
  d.in.act.decay = carve::decay_activation::softplus;
  d.in.act.beta = carve::gate_activation::sigmoid;
  d.in.act.l2norm = true;
  return judged(d);
}

/// Inputs of the recurrence itself with cotangents; as many heads of each.
/// @param[in] decay  the largest log decay, negated
dump core(double decay) {
  dump d;
  d.in.family = carve::family::gdn;
  auto& x = d.in.in;
  x.q = waves({1, T, HV, K}, -1, 1, 0.1);
  x.k = waves({1, T, HV, K}, -0.4, 0.4, 0.2);
  x.v = waves({1, T, HV, V}, -1, 1, 0.3);
  x.g = waves({1, T, HV}, -decay, 0, 0.4);
  x.beta = waves({1, T, HV}, 0.1, 0.9, 0.5);
  x.initial_state = waves({1, HV, K, V}, -0.5, 0.5, 0.8);
  d.cotangents.o = waves({1, T, HV, V}, -1, 1, 0.9);
  d.cotangents.final_state = waves({1, HV, K, V}, -1, 1, 1.1);
  return judged(d);
}

/// What is done otherwise in the loops below; nothing by default.
struct otherwise {
  rounding state = as_is, all = as_is, decay = as_is, beta = as_is, q = as_is,
           A_log = as_is, dt_bias = as_is, final_state = as_is;
  bool tiled = false, start_of_zeros = false, start_transposed = false,
       v_first = false, erase_first = false, pad = false, no_tail = false,
       one_row = false, empties = false;
  int eps = 0;  ///< 1: outside of the root
  // Back.
  bool beta_without_erase = false, dS_by_decay = false, no_state_sum = false;
  rounding dq_dk = as_is;
};

/// One value head: its numbers, after activations.
struct numbers {
  list q, k, v, a, beta, S;  // [T,K], [T,K], [T,V], [T], [T], [K,V]
  double pad = 1;            // decay of a padded token
};

numbers of_head(const dump& d, index_t h, const otherwise& o) {
  const auto& x = d.in.in;
  const index_t heads = x.q.dim(2);
  const index_t from = o.tiled ? h % heads : h / (HV / heads);
  const auto at = [](const carve::tensor<double>& t, index_t i) {
    return t.data[static_cast<std::size_t>(i)];
  };
  numbers n{
      list(T * K), list(T * K), list(T * V), list(T), list(T), list(K * V), 1};
  const bool raw = d.in.act.l2norm;
  const double rate = raw ? std::exp(o.A_log(at(x.A_log, h))) : 0;
  const double bias = raw ? o.dt_bias(at(x.dt_bias, h)) : 0;
  const auto decay_of = [&](double logit) {
    return std::exp(-rate * std::log1p(std::exp(logit + bias)));
  };
  n.pad = decay_of(0);
  for (index_t t = 0; t < T; ++t) {
    double qq = 0, kk = 0;
    for (index_t i = 0; i < K; ++i) {
      const index_t j = (t * heads + from) * K + i;
      n.q[t * K + i] = at(x.q, j), n.k[t * K + i] = at(x.k, j);
      qq += at(x.q, j) * at(x.q, j), kk += at(x.k, j) * at(x.k, j);
    }
    for (index_t i = 0; i < K && raw; ++i) {
      const double eps = d.in.act.l2_epsilon;
      n.q[t * K + i] = o.q(n.q[t * K + i] /
                           (o.eps ? std::sqrt(qq) + eps : std::sqrt(qq + eps)));
      n.k[t * K + i] /= o.eps ? std::sqrt(kk) + eps : std::sqrt(kk + eps);
    }
    for (index_t j = 0; j < V; ++j)
      n.v[t * V + j] = at(x.v, (t * HV + h) * V + j);
    const double g = at(x.g, t * HV + h), b = at(x.beta, t * HV + h);
    n.a[t] = o.decay(raw ? decay_of(g) : std::exp(g));
    n.beta[t] = o.beta(raw ? 1 / (1 + std::exp(-b)) : b);
  }
  for (index_t i = 0; i < K * V && !o.start_of_zeros; ++i) {
    const bool turned = o.start_transposed || o.v_first;
    n.S[i] = at(x.initial_state, h * K * V + (turned ? i % V * K + i / V : i));
  }
  return n;
}

/// Where a result of head h goes.
double& place(carve::tensor<double>& x, index_t i) {
  return x.data[static_cast<std::size_t>(i)];
}

using result = carve::gradient_result<double>;

result empty_result(const dump& d) {
  result r;
  for (const judged_tensor& j : d.judged) {
    each_result(r, [&](const std::string& name, carve::tensor<double>& x) {
      if (name == j.name) x = carve::tensor<double>(j.values.shape);
    });
  }
  return r;
}

/// Token by token, in double but for what is rounded; and back, as the spec of
/// the recurrence has it.
result loop(const dump& d, const otherwise& f) {
  result r = empty_result(d);
  const double scale = 1 / std::sqrt(static_cast<double>(K));
  for (index_t h = 0; h < HV; ++h) {
    const numbers n = of_head(d, h, f);
    list S = n.S, start = S, writes(C * V);
    std::vector<list> before, after;
    list c(T * V), u(T * V);
    double since = 1;
    for (index_t t = 0; t < T; ++t) {
      before.push_back(S);
      const list old = S;
      if (t % C == 0) start = S, since = 1;
      since *= n.a[t];
      for (double& e : S) e = f.all(e * n.a[t]);
      for (index_t j = 0; j < V; ++j) {
        double look = 0;
        for (index_t i = 0; i < K; ++i) {
          look += n.k[t * K + i] * (f.erase_first ? old : S)[i * V + j];
        }
        c[t * V + j] = f.all(look);
        u[t * V + j] = f.all(n.beta[t] * f.all(n.v[t * V + j] - c[t * V + j]));
        writes[t % C * V + j] = u[t * V + j];
      }
      for (index_t i = 0; i < K; ++i) {
        for (index_t j = 0; j < V; ++j) {
          const double more = f.all(n.k[t * K + i] * u[t * V + j]);
          S[i * V + j] = f.state(f.all(S[i * V + j] + more));
        }
      }
      after.push_back(S);
      for (index_t j = 0; j < V; ++j) {
        double sum = 0;
        for (index_t i = 0; i < K; ++i) {
          sum += n.q[t * K + i] * S[i * V + j];
        }
        place(r.out.o, (t * HV + h) * V + j) = f.all(scale * sum);
      }
      if (t % C != C - 1) continue;
      // The last of a chunk.
      if (f.empties && since < 1.2e-38) S.assign(S.size(), 0.0);
      if (f.one_row) {
        for (index_t i = 0; i < K * V; ++i) S[i] = since * start[i];
        for (index_t s = 0; s < C; ++s) {
          for (index_t i = 0; i < K * V; ++i) {
            S[i] += since / n.a[t - C + 1] * n.k[(t - C + 1 + s) * K + i / V] *
                    writes[s * V + i % V];
          }
        }
      }
    }
    for (index_t i = 0; i < K * V; ++i) {
      double x = S[i];
      for (index_t t = T; f.pad && t < (T + C - 1) / C * C; ++t) x *= n.pad;
      for (index_t t = T / C * C; f.no_tail && t < T; ++t) x /= n.a[t];
      place(r.out.final_state,
            h * K * V + (f.v_first ? i % V * K + i / V : i)) = f.final_state(x);
    }
    if (!d.has_cotangents()) continue;

    list dS(K * V);
    for (index_t i = 0; i < K * V; ++i) {
      dS[i] = d.cotangents.final_state
                  .data[static_cast<std::size_t>(h * K * V + i)];
    }
    list dS_end = dS;
    auto& of = r.gradients;
    double rounded_terms = 0;
    for (index_t t = T; t-- > 0;) {
      if (t % C == C - 1) dS_end = dS, rounded_terms = 0;
      list decayed = before[static_cast<std::size_t>(t)];
      for (double& e : decayed) e *= n.a[t];
      list du(V), dk(K), dr(K);
      for (index_t i = 0; i < K; ++i) {
        double dq = 0;
        for (index_t j = 0; j < V; ++j) {
          const double x =
              scale * d.cotangents.o
                          .data[static_cast<std::size_t>((t * HV + h) * V + j)];
          dq += after[static_cast<std::size_t>(t)][i * V + j] * x;
          dS[i * V + j] += n.q[t * K + i] * x;
        }
        place(of.q, (t * HV + h) * K + i) = dq;
      }
      double dwrite = 0, derase = 0, dg = 0;
      for (index_t j = 0; j < V; ++j) {
        for (index_t i = 0; i < K; ++i) {
          du[j] += dS[i * V + j] * n.k[t * K + i];
          dk[i] += dS[i * V + j] * u[t * V + j];
        }
        dwrite += du[j] * n.v[t * V + j];
        place(of.v, (t * HV + h) * V + j) = du[j] * n.beta[t];
      }
      for (index_t i = 0; i < K; ++i) {
        for (index_t j = 0; j < V; ++j) {
          dr[i] -= decayed[i * V + j] * du[j];
          const double through = -n.beta[t] * n.k[t * K + i] * du[j];
          dg += (dS[i * V + j] + through) * decayed[i * V + j];
          if (!f.dS_by_decay) dS[i * V + j] += through;
        }
        derase += dr[i] * n.k[t * K + i];
        dk[i] += dr[i] * n.beta[t];
        place(of.k, (t * HV + h) * K + i) = dk[i];
      }
      for (double& e : dS) e *= n.a[t];
      for (index_t i = 0; i < K; ++i) {
        const double dq =
            of.q.data[static_cast<std::size_t>((t * HV + h) * K + i)];
        rounded_terms += n.q[t * K + i] * (f.dq_dk(dq) - dq) -
                         n.k[t * K + i] * (f.dq_dk(dk[i]) - dk[i]);
      }
      place(of.g, t * HV + h) = dg + rounded_terms;
      place(of.beta, t * HV + h) = dwrite + (f.beta_without_erase ? 0 : derase);
      if (!f.no_state_sum || t % C != 0) continue;
      // What the chunk's start state adds to its end.
      double G = 1, sum = 0;
      const index_t end = std::min(T, t + C);
      for (index_t s = t; s < end; ++s) G *= n.a[s];
      for (index_t i = 0; i < K * V; ++i) {
        sum += G * before[static_cast<std::size_t>(t)][i] * dS_end[i];
      }
      for (index_t s = t; s < end; ++s) place(of.g, s * HV + h) -= sum;
    }
    for (index_t i = 0; i < K * V; ++i) {
      place(of.initial_state, h * K * V + i) = dS[i];
    }
  }
  return r;
}

/// How a chunk of the loop below goes wrong.
struct chunk_fault {
  rounding inverse = as_is;
  bool doubling = false;  ///< in that format, in blocks of 16
  bool factored = false;  ///< e^G times e^-G, in float
};

using square = std::vector<list>;

/// `(I + L)^-1`, row by row; L below its diagonal.
square inverted(const square& L) {
  const auto n = static_cast<index_t>(L.size());
  square X(L.size(), list(n));
  for (index_t t = 0; t < n; ++t) {
    list& row = X[static_cast<std::size_t>(t)];
    row[t] = 1;
    for (index_t s = 0; s < t; ++s) {
      for (index_t m = 0; m <= s; ++m) {
        row[m] -= L[static_cast<std::size_t>(t)][s] *
                  X[static_cast<std::size_t>(s)][m];
      }
    }
  }
  return X;
}

square product(const square& a, const square& b, rounding round) {
  const auto n = static_cast<index_t>(a.size());
  square c(a.size(), list(n));
  for (index_t i = 0; i < n; ++i) {
    for (index_t j = 0; j < n; ++j) {
      double sum = 0;
      for (index_t m = 0; m < n; ++m) {
        sum += a[static_cast<std::size_t>(i)][m] *
               b[static_cast<std::size_t>(m)][j];
      }
      c[static_cast<std::size_t>(i)][j] = round(sum);
    }
  }
  return c;
}

/// `(I - L)(I + L^2)(I + L^4)...`, all rounded.
square doubled(square L, rounding round) {
  square X(L.size(), list(static_cast<index_t>(L.size())));
  for (std::size_t t = 0; t < L.size(); ++t) {
    for (std::size_t s = 0; s < L.size(); ++s) {
      L[t][s] = round(L[t][s]);
      X[t][s] = (t == s) - L[t][s];
    }
  }
  for (std::size_t n = 2; n < L.size(); n *= 2) {
    L = product(L, L, round);
    square more = L;
    for (std::size_t t = 0; t < L.size(); ++t) more[t][t] += 1;
    X = product(X, more, round);
  }
  return X;
}

/// Chunk by chunk, outputs alone; the gradients are the right ones.
result chunks(const dump& d, const chunk_fault& f) {
  result r = empty_result(d);
  for (const judged_tensor& j : d.judged) {
    each_result(r, [&](const std::string& name, carve::tensor<double>& x) {
      if (name == j.name) x.data = j.values.data;
    });
  }
  const double scale = 1 / std::sqrt(static_cast<double>(K));
  for (index_t h = 0; h < HV; ++h) {
    const numbers n = of_head(d, h, {});
    list S = n.S;
    for (index_t t0 = 0; t0 < T; t0 += C) {
      const index_t m = std::min(C, T - t0);
      list G(m);
      double sum = 0;
      for (index_t t = 0; t < m; ++t) G[t] = sum += std::log(n.a[t0 + t]);
      const auto ratio = [&](index_t t, index_t s) {
        if (!f.factored) return std::exp(G[t] - G[s]);
        const auto up = static_cast<float>(std::exp(-G[s]));
        return static_cast<double>(static_cast<float>(std::exp(G[t])) * up);
      };
      const auto dot = [&](const list& x, index_t t, index_t s) {
        double e = 0;
        for (index_t i = 0; i < K; ++i) {
          e += x[(t0 + t) * K + i] * n.k[(t0 + s) * K + i];
        }
        return e;
      };
      square L(static_cast<std::size_t>(m), list(m)), P = L;
      for (index_t t = 0; t < m; ++t) {
        for (index_t s = 0; s <= t; ++s) {
          P[static_cast<std::size_t>(t)][s] = ratio(t, s) * dot(n.q, t, s);
          if (s == t) continue;
          L[static_cast<std::size_t>(t)][s] =
              n.beta[t0 + t] * ratio(t, s) * dot(n.k, t, s);
        }
      }
      square X = inverted(L);
      if (f.doubling) {
        // I + L with the inverses of inverted diagonal blocks, inverted.
        for (index_t b = 0; b < m; b += 16) {
          const index_t rows = std::min<index_t>(16, m - b);
          square block(static_cast<std::size_t>(rows), list(rows));
          for (index_t t = 0; t < rows; ++t) {
            for (index_t s = 0; s < t; ++s) {
              block[static_cast<std::size_t>(t)][s] =
                  L[static_cast<std::size_t>(b + t)][b + s];
            }
          }
          block = doubled(block, f.inverse);
          for (std::size_t t = 0; t < block.size(); ++t) {
            block[t][static_cast<index_t>(t)] -= 1;
          }
          block = inverted(block);
          for (index_t t = 0; t < rows; ++t) {
            for (index_t s = 0; s < t; ++s) {
              L[static_cast<std::size_t>(b + t)][b + s] =
                  block[static_cast<std::size_t>(t)][s];
            }
          }
        }
        X = inverted(L);
      } else {
        for (list& row : X) {
          for (double& e : row) e = f.inverse(e);
        }
      }
      list rhs(m * V), U(m * V), end = S;
      for (index_t t = 0; t < m; ++t) {
        for (index_t j = 0; j < V; ++j) {
          double look = 0;
          for (index_t i = 0; i < K; ++i) {
            look += n.k[(t0 + t) * K + i] * S[i * V + j];
          }
          rhs[t * V + j] =
              n.beta[t0 + t] * (n.v[(t0 + t) * V + j] - std::exp(G[t]) * look);
        }
      }
      for (index_t t = 0; t < m; ++t) {
        for (index_t j = 0; j < V; ++j) {
          for (index_t s = 0; s <= t; ++s) {
            U[t * V + j] += X[static_cast<std::size_t>(t)][s] * rhs[s * V + j];
          }
        }
      }
      for (index_t t = 0; t < m; ++t) {
        for (index_t j = 0; j < V; ++j) {
          double o = 0;
          for (index_t i = 0; i < K; ++i) {
            o += std::exp(G[t]) * n.q[(t0 + t) * K + i] * S[i * V + j];
          }
          for (index_t s = 0; s <= t; ++s) {
            o += P[static_cast<std::size_t>(t)][s] * U[s * V + j];
          }
          place(r.out.o, ((t0 + t) * HV + h) * V + j) = scale * o;
        }
      }
      for (index_t i = 0; i < K * V; ++i) {
        end[i] = std::exp(G[m - 1]) * S[i];
        for (index_t s = 0; s < m; ++s) {
          end[i] +=
              ratio(m - 1, s) * n.k[(t0 + s) * K + i / V] * U[s * V + i % V];
        }
      }
      S = end;
    }
    for (index_t i = 0; i < K * V; ++i) {
      place(r.out.final_state, h * K * V + i) = S[i];
    }
  }
  return r;
}

/// How a report's cause was made again.
enum class made_by {
  loop,  ///< by a loop of this file
  port,  ///< it is what a public implementation computed
  not_made
};

struct report {
  const char* source;
  const char* cause;
  const char* expected;  ///< the row that tells the cause; "" where none does
  made_by made = made_by::not_made;
  std::function<result(const dump&)> computed = nullptr;
  const dump* of = nullptr;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) throw carve::error("usage: public_reports PORTS");
  const dump of_layer = layer(), of_core = core(0.3), strong = core(4);

  // Without a fault the loops are right.
  for (const dump* d : {&of_layer, &of_core, &strong}) {
    for (const result& r : {loop(*d, {}), chunks(*d, {})}) {
      for (const judged_tensor& j : d->judged) {
        const auto& x = result_named(r, j.name).data;
        double apart = 0, size = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          const double e = x[i] - j.values.data[i];
          apart += e * e, size += x[i] * x[i];
        }
        if (!(apart <= 1e-12 * size)) {
          throw carve::error(j.name, ": a loop of the test is not right");
        }
      }
    }
  }

  const auto by_loop = [](otherwise f) {
    return [f](const dump& d) { return loop(d, f); };
  };
  const auto by_chunks = [](chunk_fault f) {
    return [f](const dump& d) { return chunks(d, f); };
  };
  const auto L = made_by::loop;
  std::vector<report> all{
      {"ollama/ollama#15865", "a final state kept in FP32 is written as BF16",
       "state-low-precision", L, by_loop({.final_state = bf16}), &of_layer},
      {"ml-explore/mlx-swift-lm#224", "the state has the dtype of q, BF16",
       "state-low-precision", L, by_loop({.state = bf16}), &of_layer},
      {"onnxruntime/mobius#42",
       "the loop's body runs in the caller's format, here FP16",
       "state-low-precision", L, by_loop({.state = f16, .all = f16}),
       &of_layer},
      {"ml-explore/mlx-swift-lm#317", "the decay is cast down to BF16",
       "input-low-precision", L, by_loop({.decay = bf16}), &of_layer},
      {"sgl-project/sglang#40362", "beta is rounded to BF16 after its sigmoid",
       "input-low-precision", L, by_loop({.beta = bf16}), &of_layer},
      {"ModelTC/LightLLM#1579", "the same in another engine's prefill",
       "input-low-precision", L, by_loop({.beta = bf16}), &of_layer},
      {"NVIDIA/Megatron-LM#3634", "A_log is stored in BF16",
       "input-low-precision", L, by_loop({.A_log = bf16}), &of_layer},
      {"vllm-project/vllm#44270", "dt_bias is stored in BF16",
       "input-low-precision", L, by_loop({.dt_bias = bf16}), &of_layer},
      {"vllm-project/vllm#51797",
       "q is rounded to BF16 after its norm (one of several roundings)",
       "input-low-precision", L, by_loop({.q = bf16}), &of_layer},
      {"fla-org/flash-linear-attention#885",
       "the erase looks into the state before the decay", "erase-before-decay",
       L, by_loop({.erase_first = true}), &of_layer},
      {"fla-org/flash-linear-attention#891",
       "dg lacks the sum over the states at chunk ends",
       "grad-g-missing-state-term", L, by_loop({.no_state_sum = true}),
       &of_core},
      {"QwenLM/FlashQLA#28", "terms of dg pass through BF16",
       "grad-g-rounded-terms", L, by_loop({.dq_dk = bf16}), &of_core},
      {"fla-org/flash-linear-attention#862",
       "the gradient of beta lacks what comes through the erase",
       "grad-erase-missing", L, by_loop({.beta_without_erase = true}),
       &of_core},
      {"tile-ai/TileOPs#632",
       "dS goes back by the decay alone, not through the erase",
       "grad-erase-not-carried", L, by_loop({.dS_by_decay = true}), &of_core},
      {"huggingface/transformers#48455",
       "masked after the exponential: NaN in gradients",
       "grad-masked-after-exp", made_by::port},
      {"pytorch/executorch#21417", "e^-G of a chunk overflows: NaN from there",
       "decay-underflow", L, by_chunks({.factored = true}), &strong},
      {"tenstorrent/tt-metal#56550",
       "a factor of the decay underflows and empties the state at a chunk's "
       "end",
       "chunk-reset", L, by_loop({.empties = true}), &strong},
      {"llmmanorg/llmman#17", "fewer heads are tiled, not interleaved",
       "heads-tiled", L, by_loop({.tiled = true}), &of_layer},
      {"xLLM-AI/xllm#1262", "the state from the cache is overwritten by zeros",
       "initial-state-ignored", L, by_loop({.start_of_zeros = true}),
       &of_layer},
      {"gittensor-ai-lab/sparkinfer#615",
       "decoding begins with the transposed state", "initial-state-transposed",
       L, by_loop({.start_transposed = true}), &of_layer},
      {"sgl-project/sgl-kernel-npu#472",
       "states are stored [V,K] and taken for [K,V]", "state-transposed", L,
       by_loop({.v_first = true}), &of_layer},
      {"tile-ai/tilelang-ascend#855",
       "the last, shorter chunk takes its decay from beyond its end, here none",
       "tail-decay-lost", L, by_loop({.no_tail = true}), &of_layer},
      {"tile-ai/tilelang-ascend#875",
       "the decay of the writes is one row for all tokens of a chunk", "", L,
       by_loop({.one_row = true}), &of_layer},
      {"fla-org/flash-linear-attention#1272",
       "padded steps decay the state: which tokens are padding the file does "
       "not say",
       "", made_by::not_made},
      {"huggingface/transformers#46773",
       "padding before the tokens goes through the recurrence", "",
       made_by::not_made},
      {"huggingface/transformers#47086",
       "padding of the last chunk is not masked on a continued call",
       "padding-not-masked", L, by_loop({.pad = true}), &of_layer},
      {"huawei-csl/megagdn-pto#74", "the inverse is formed by doubling in FP16",
       "inverse-unstable", L, by_chunks({.inverse = f16, .doubling = true}),
       &of_core},
      {"AI-Hypercomputer/maxtext#4577", "the inverse is formed in BF16",
       "inverse-low-precision", L, by_chunks({.inverse = bf16}), &of_core},
      {"fla-org/flash-linear-attention#507",
       "epsilon of the norm stands outside of the root", "", L,
       by_loop({.eps = 1}), &of_layer},
      {"flashserve/flash-linear-attention-npu#236",
       "another result with each run: `carve relate --repeat`", "",
       made_by::not_made},
  };

  std::cout << "| report | cause | made by | named first | told by it |\n"
               "|---|---|---|---|---|\n";
  std::size_t found = 0, missed = 0;
  for (const report& r : all) {
    const char* const words[] = {"a loop of the test", "a public port",
                                 "not made"};
    std::string named = "-";
    bool told = false;
    if (r.made != made_by::not_made) {
      dump wrong;
      verification v;
      if (r.made == made_by::port) {
        wrong = read_dump(carve::safetensors::file::open(
            std::string(argv[1]) +
            "/wrong/03_fla_naive_chunk_kda_grad_nan.safetensors"));
        v = verify(wrong);
      } else {
        wrong = with_outputs(*r.of, r.computed(*r.of));
        const expectation e = expect(*r.of);
        for (const judged_tensor& x : wrong.judged) {
          v.tensors.push_back(judge(e, x));
        }
      }
      const diagnosis why = diagnose(wrong, v);
      named = v.result() != outcome::fail ? "(passes)"
              : why.found.empty()         ? "(none)"
                                          : "`" + why.found[0].id + "`";
      told = !why.found.empty() && why.found[0].id == r.expected;
      for (const explanation& e : why.found) {
        if (!told) std::cerr << r.source << ": " << e.text << '\n';
      }
    }
    found += told, missed += !told && *r.expected != '\0';
    std::cout << "| " << r.source << " | " << r.cause << " | "
              << words[static_cast<int>(r.made)] << " | " << named << " | "
              << (told ? "yes" : "no") << " |" << std::endl;
  }
  std::cout << '\n'
            << found << " of " << all.size()
            << " causes are told by the sentence named first.\n";
  return missed == 0 && found > 0 ? 0 : 1;
} catch (const std::exception& e) {
  std::cerr << "public_reports: " << e.what() << '\n';
  return 2;
}
