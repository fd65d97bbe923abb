// The host side of the GPU tests: drawing problems, the token loop, copies.
#include "tools.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <utility>

#include "program/device_session.hpp"

namespace carve::cuda::test {
namespace {

bool has_beta(family f) { return info(f).tied; }
int decay_channels(const problem& p) { return gate_channels_of(p).g; }
int erase_channels(const problem& p) { return gate_channels_of(p).b; }
int write_channels(const problem& p) { return gate_channels_of(p).w; }
std::size_t tokens(const problem& p) { return std::size_t(p.B) * p.T; }
std::size_t states(const problem& p) {
  return std::size_t(p.N) * p.HV * p.K * p.V;
}

double sigmoid(double x) {
  // Past the last bit of fp32 the gate is closed.
  return x < -104 ? 0 : 1 / (1 + std::exp(-x));
}
// Below fp32's smallest subnormal a decay is zero: the lattice relies on it.
double decay(double g) { return g < -104 ? 0 : std::exp(g); }

}  // namespace

double rounded(double x, format f) {
  const float y = static_cast<float>(x);
  if (f == format::bf16) return __bfloat162float(__float2bfloat16_rn(y));
  if (f == format::fp16) return __half2float(__float2half_rn(y));
  return y;
}

std::vector<named_values> paired(const results& g, const results& x) {
  std::vector<named_values> all{
      {"dq", &g.dq, &x.dq},
      {"dk", &g.dk, &x.dk},
      {"dv", &g.dv, &x.dv},
      {"dg", &g.dg, &x.dg},
      {"dbeta", &g.dbeta, &x.dbeta},
      {"db", &g.db, &x.db},
      {"de", &g.de, &x.de},
      {"dw", &g.dw, &x.dw},
      {"d_initial_state", &g.d_initial_state, &x.d_initial_state},
      {"d_w_down", &g.d_w_down, &x.d_w_down},
      {"d_w_up", &g.d_w_up, &x.d_w_up}};
  std::erase_if(all, [](const named_values& v) { return v.expected->empty(); });
  return all;
}

results reference(const inputs& in) {
  const problem& p = in.shape;
  const int K = p.K, V = p.V, group = p.HV / p.H;
  const int gc = decay_channels(p), bc = erase_channels(p),
            wc = write_channels(p);
  const bool content = p.family == family::carve;
  results out;
  out.o.resize(tokens(p) * p.HV * V);
  out.final_state.resize(states(p));
  out.dq.resize(tokens(p) * p.H * K);
  out.dk.resize(tokens(p) * p.H * K);
  out.dv.resize(tokens(p) * p.HV * V);
  out.dg.resize(tokens(p) * p.HV * gc);
  if (has_beta(p.family)) out.dbeta.resize(tokens(p) * p.HV);
  out.db.resize(tokens(p) * p.HV * bc);
  if (p.family == family::value_erase) out.de.resize(tokens(p) * p.HV * V);
  out.dw.resize(tokens(p) * p.HV * wc);
  out.d_initial_state.resize(states(p));
  if (content) {
    out.d_w_down.resize(std::size_t(p.HV) * p.rank * V);
    out.d_w_up.resize(std::size_t(p.HV) * p.rank * K);
  }
  auto met = [&](double x) {
    if (!in.watch) return;
    if (!(std::abs(x) < 8192) || std::floor(x * 1024) != x * 1024)
      out.exact_sums = false;
    if (rounded(x, p.input) != x) out.exact_operands = false;
  };

  for (int n = 0; n < p.N; ++n)
    for (int hv = 0; hv < p.HV; ++hv) {
      const std::int64_t first =
          in.cu.empty() ? std::int64_t(n) * p.T : in.cu[n];
      const std::int64_t length = in.cu.empty() ? p.T : in.cu[n + 1] - in.cu[n];
      const std::size_t head = std::size_t(n) * p.HV + hv;
      auto row = [&](const values& x, std::int64_t t, int channels) {
        return x.data() + ((first + t) * p.HV + hv) * channels;
      };
      auto row_of = [&](values& x, std::int64_t t, int channels) {
        return x.data() + ((first + t) * p.HV + hv) * channels;
      };
      auto key_row = [&](const values& x, std::int64_t t) {
        return x.data() + ((first + t) * p.H + hv / group) * K;
      };
      const double* down = in.w_down.data() + std::size_t(hv) * p.rank * V;
      const double* up = in.w_up.data() + std::size_t(hv) * K * p.rank;

      // What a token brings, and what is kept of it for the way back.
      values a(length * K, 1), b(length * K, 1), e(length * V, 1),
          w(length * V), c(length * V), u(length * V);
      values history((length + 1) * K * V);  // S_0 .. S_T
      values S(K * V);
      if (!in.initial_state.empty())
        S.assign(in.initial_state.begin() + head * K * V,
                 in.initial_state.begin() + (head + 1) * K * V);
      std::copy(S.begin(), S.end(), history.begin());
      values mean(V), shift(K), sum(V), means;
      for (std::int64_t t = 0; t < length; ++t) {
        if (content && t % p.window == 0) {
          for (int j = 0; j < V; ++j) mean[j] = t == 0 ? 0 : sum[j] / p.window;
          means.insert(means.end(), mean.begin(), mean.end());
          values inner(p.rank);
          for (int r = 0; r < p.rank; ++r)
            for (int j = 0; j < V; ++j) inner[r] += down[r * V + j] * mean[j];
          for (int i = 0; i < K; ++i) {
            shift[i] = 0;
            for (int r = 0; r < p.rank; ++r)
              shift[i] += up[i * p.rank + r] * inner[r];
          }
          std::fill(sum.begin(), sum.end(), 0.0);
        }
        const double* q = key_row(in.q, t);
        const double* k = key_row(in.k, t);
        for (int i = 0; i < K; ++i) {
          if (gc != 0) a[t * K + i] = decay(row(in.g, t, gc)[gc == 1 ? 0 : i]);
          if (has_beta(p.family)) b[t * K + i] = row(in.beta, t, 1)[0];
          if (p.family == family::gdn2) b[t * K + i] = row(in.b, t, K)[i];
          if (content) b[t * K + i] = sigmoid(row(in.b, t, K)[i] + shift[i]);
        }
        for (int j = 0; j < V; ++j) {
          w[t * V + j] = has_beta(p.family) ? row(in.beta, t, 1)[0]
                                            : row(in.w, t, wc)[wc == 1 ? 0 : j];
          if (p.family == family::value_erase)
            e[t * V + j] = row(in.e, t, V)[j];
        }
        double* o = row_of(out.o, t, V);
        auto read = [&] {
          for (int i = 0; i < K; ++i)
            for (int j = 0; j < V; ++j) o[j] += q[i] * S[i * V + j];
        };
        if (p.read_before) read();
        double* ct = c.data() + t * V;
        double* ut = u.data() + t * V;
        for (int i = 0; i < K; ++i)
          for (int j = 0; j < V; ++j) {
            S[i * V + j] *= a[t * K + i];
            ct[j] += S[i * V + j] * b[t * K + i] * k[i];
          }
        for (int j = 0; j < V; ++j) {
          ut[j] = w[t * V + j] * row(in.v, t, V)[j] - e[t * V + j] * ct[j];
          met(ut[j]);
          met(ct[j]);
        }
        for (int i = 0; i < K; ++i)
          for (int j = 0; j < V; ++j) {
            S[i * V + j] += k[i] * ut[j];
            met(S[i * V + j]);
          }
        if (!p.read_before) read();
        for (int j = 0; j < V; ++j) {
          o[j] *= p.scale;
          sum[j] += o[j];
          met(o[j]);
        }
        std::copy(S.begin(), S.end(), history.begin() + (t + 1) * K * V);
      }
      std::copy(S.begin(), S.end(), out.final_state.begin() + head * K * V);
      if (in.d_o.empty()) continue;

      values dS(K * V), d_mean(V), dx(K);
      if (!in.d_final_state.empty())
        dS.assign(in.d_final_state.begin() + head * K * V,
                  in.d_final_state.begin() + (head + 1) * K * V);
      for (std::int64_t t = length - 1; t >= 0; --t) {
        const double* q = key_row(in.q, t);
        const double* k = key_row(in.k, t);
        double* dq = out.dq.data() + (key_row(out.dq, t) - out.dq.data());
        double* dk = out.dk.data() + (key_row(out.dk, t) - out.dk.data());
        const double* before = history.data() + t * K * V;
        const double* after = before + K * V;
        values d_o(V);
        for (int j = 0; j < V; ++j)
          d_o[j] = p.scale * (row(in.d_o, t, V)[j] + d_mean[j]);
        if (!p.read_before)
          for (int i = 0; i < K; ++i)
            for (int j = 0; j < V; ++j) {
              dq[i] += after[i * V + j] * d_o[j];
              dS[i * V + j] += q[i] * d_o[j];
            }
        values du(V), dr(K), dlog(K);
        for (int i = 0; i < K; ++i)
          for (int j = 0; j < V; ++j) du[j] += dS[i * V + j] * k[i];
        for (int i = 0; i < K; ++i)
          for (int j = 0; j < V; ++j) {
            const double decayed = a[t * K + i] * before[i * V + j];
            const double dc = -du[j] * e[t * V + j];
            dk[i] += dS[i * V + j] * u[t * V + j];
            dr[i] += decayed * dc;
            dS[i * V + j] += b[t * K + i] * k[i] * dc;
            dlog[i] += dS[i * V + j] * decayed;
            met(dS[i * V + j]);
            dS[i * V + j] *= a[t * K + i];
          }
        if (p.read_before)
          for (int i = 0; i < K; ++i)
            for (int j = 0; j < V; ++j) {
              dq[i] += before[i * V + j] * d_o[j];
              dS[i * V + j] += q[i] * d_o[j];
            }
        for (int i = 0; i < K; ++i) {
          const double bi = b[t * K + i], db = dr[i] * k[i];
          dk[i] += dr[i] * bi;
          met(dq[i]);
          met(dk[i]);
          met(dr[i]);
          if (gc != 0) row_of(out.dg, t, gc)[gc == 1 ? 0 : i] += dlog[i];
          if (has_beta(p.family)) row_of(out.dbeta, t, 1)[0] += db;
          if (p.family == family::gdn2) row_of(out.db, t, K)[i] = db;
          if (content) {
            row_of(out.db, t, K)[i] = db * bi * (1 - bi);
            dx[i] += db * bi * (1 - bi);
          }
        }
        for (int j = 0; j < V; ++j) {
          const double dw = du[j] * row(in.v, t, V)[j];
          met(du[j]);
          row_of(out.dv, t, V)[j] = du[j] * w[t * V + j];
          if (has_beta(p.family)) row_of(out.dbeta, t, 1)[0] += dw;
          if (wc != 0) row_of(out.dw, t, wc)[wc == 1 ? 0 : j] += dw;
          if (p.family == family::value_erase)
            row_of(out.de, t, V)[j] = -du[j] * c[t * V + j];
        }
        if (content && t % p.window == 0) {
          const double* m = means.data() + t / p.window * V;
          std::fill(d_mean.begin(), d_mean.end(), 0.0);
          for (int r = 0; r < p.rank; ++r) {
            double y = 0, z = 0;
            for (int i = 0; i < K; ++i) y += up[i * p.rank + r] * dx[i];
            for (int j = 0; j < V; ++j) z += down[r * V + j] * m[j];
            for (int j = 0; j < V; ++j) {
              d_mean[j] += down[r * V + j] * y / p.window;
              out.d_w_down[(std::size_t(hv) * p.rank + r) * V + j] += y * m[j];
            }
            for (int i = 0; i < K; ++i)
              out.d_w_up[(std::size_t(hv) * K + i) * p.rank + r] += dx[i] * z;
          }
          std::fill(dx.begin(), dx.end(), 0.0);
        }
      }
      std::copy(dS.begin(), dS.end(),
                out.d_initial_state.begin() + head * K * V);
    }
  return out;
}

double relative_rms(const values& got, const values& expected) {
  if (got.size() != expected.size())
    return std::numeric_limits<double>::quiet_NaN();
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  if (error == 0) return 0;
  return std::sqrt(error / norm);
}

rounding_replay& replay() {
  static rounding_replay r;
  return r;
}

const char* name_of(draw d) {
  static const char* const names[] = {
      "easy",         "hard",   "no_decay", "strong_decay", "fast_channels",
      "binary_gates", "steady", "uniform",  "lattice"};
  return names[static_cast<int>(d)];
}
const char* name_of(family f) { return info(f).name.data(); }

inputs make(const sizes& s, draw d) {
  inputs in;
  problem& p = in.shape;
  p.family = s.fam;
  p.input = s.input;
  p.decay_format = format::fp32;
  p.B = s.B;
  p.T = s.T;
  p.H = s.H;
  p.HV = s.HV;
  p.K = s.K;
  p.V = s.V;
  p.N = s.cu.empty() ? s.B : static_cast<int>(s.cu.size()) - 1;
  p.read_before = s.read_before;
  p.window = s.window;
  p.rank = s.rank;
  in.cu = s.cu;
  const bool lattice = d == draw::lattice;
  in.watch = lattice;
  p.scale = lattice ? 1.0f : 1.0f / std::sqrt(static_cast<float>(p.K));

  std::mt19937_64 engine(s.seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  auto pick = [&](int n) { return static_cast<int>(engine() % n); };
  auto fill = [&](values& x, std::size_t n, auto&& draw_one) {
    x.resize(n);
    for (double& y : x) y = rounded(draw_one(), p.input);
  };
  auto sign = [&] { return pick(2) == 0 ? 1.0 : -1.0; };

  // Keys of the lattice have at most two entries +-1, so that an erase with
  // gates 0 and 1 moves values between two rows and never multiplies them.
  auto keys = [&](values& x, const values& common) {
    x.assign(tokens(p) * p.H * p.K, 0);
    for (std::size_t r = 0; r < tokens(p) * p.H; ++r) {
      double* y = x.data() + r * p.K;
      if (lattice) {
        y[pick(p.K)] = sign();
        y[pick(p.K)] = sign();
        continue;
      }
      double norm = 0;
      for (int i = 0; i < p.K; ++i) {
        y[i] = normal(engine) / std::sqrt(p.K);
        if (d == draw::hard) y[i] = 0.5 * y[i] + 0.5 * common[i];
        norm += y[i] * y[i];
      }
      for (int i = 0; i < p.K; ++i)
        y[i] = rounded(y[i] / std::sqrt(norm), p.input);
    }
  };
  values common(p.K);
  for (double& x : common) x = normal(engine) / std::sqrt(p.K);
  keys(in.q, common);
  keys(in.k, common);
  fill(in.v, tokens(p) * p.HV * p.V,
       [&] { return lattice ? 2.0 * (pick(3) - 1) : normal(engine); });
  auto gate = [&] {
    if (lattice) return static_cast<double>(pick(2));
    if (d == draw::binary_gates) return static_cast<double>(pick(2));
    const double x = sigmoid(normal(engine));
    return d == draw::hard ? 0.8 + 0.2 * x : x;
  };
  fill(in.beta, has_beta(p.family) ? tokens(p) * p.HV : 0, gate);
  fill(in.e, p.family == family::value_erase ? tokens(p) * p.HV * p.V : 0,
       gate);
  fill(in.b, tokens(p) * p.HV * erase_channels(p), [&] {
    if (p.family != family::carve) return gate();
    // Logits; far out the sigmoid is 0 or 1 to the last bit.
    if (lattice || d == draw::binary_gates) return 400.0 * sign();
    return d == draw::hard ? 2.5 + normal(engine) : normal(engine);
  });
  fill(in.w, tokens(p) * p.HV * write_channels(p),
       [&] { return lattice ? 0.5 * pick(3) : gate(); });
  // A gate of exactly 1/2 where the window mean is zero, but for few tokens:
  // each halving costs a bit.
  if (lattice && p.family == family::carve)
    for (int n = 0; n < p.N; ++n) {
      const std::int64_t first =
          in.cu.empty() ? std::int64_t(n) * p.T : in.cu[n];
      const std::int64_t last = in.cu.empty() ? first + p.T : in.cu[n + 1];
      for (std::int64_t t = first; t < std::min(last, first + 4); ++t)
        for (int i = 0; i < p.HV * p.K; ++i)
          if (pick(2) == 0) in.b[t * p.HV * p.K + i] = 0;
    }
  in.g.resize(tokens(p) * p.HV * decay_channels(p));
  for (std::size_t i = 0; i < in.g.size(); ++i) {
    double& x = in.g[i];
    switch (d) {
      case draw::easy:
      case draw::binary_gates:
        x = -1.7 * uniform(engine) * uniform(engine);
        break;
      case draw::hard:
        x = -0.02 * uniform(engine);
        break;
      case draw::no_decay:
        x = 0;
        break;
      case draw::strong_decay:
        x = pick(3) == 0 ? -200 * uniform(engine) : -0.1 * uniform(engine);
        break;
      case draw::fast_channels:
        x = i % 4 == 1 ? -5 - uniform(engine) : -0.1 * uniform(engine);
        break;
      case draw::steady:
        x = s.rate;
        break;
      case draw::uniform:
        x = s.rate * uniform(engine);
        break;
      case draw::lattice:
        // exp(-200) is zero in fp32.  One decay a head would clear the whole
        // state, so it clears rarely.
        x = pick(p.family == family::gdn ? 48 : 12) == 0 ? -200 : 0;
    }
    x = rounded(x, format::fp32);
  }
  if (s.start_state) {
    in.initial_state.resize(states(p));
    for (double& x : in.initial_state)
      x = lattice ? pick(3) - 1 : rounded(normal(engine), format::fp32);
    in.d_final_state.resize(states(p));
    for (double& x : in.d_final_state)
      x = lattice ? (pick(8) == 0 ? sign() : 0)
                  : rounded(normal(engine) / p.V, format::fp32);
  }
  fill(in.d_o, tokens(p) * p.HV * p.V, [&] {
    return lattice ? (pick(4) == 0 ? sign() : 0.0) : normal(engine);
  });
  if (p.family == family::carve) {
    in.w_down.resize(std::size_t(p.HV) * p.rank * p.V);
    in.w_up.resize(std::size_t(p.HV) * p.rank * p.K);
    for (double& x : in.w_down)
      x = lattice ? pick(3) - 1 : rounded(0.5 * normal(engine), format::fp32);
    for (double& x : in.w_up)
      x = lattice ? pick(3) - 1 : rounded(normal(engine), format::fp32);
  }
  return in;
}

// ----------------------------------------------------------------- device

namespace {

using program::device_rows;

/// The device copies of one call.
class session : public program::device_session {
 public:
  explicit session(const inputs& in) : in_(in), p_(in.shape) {
    p_.q = input(in.q, p_.H, p_.K, p_.input);
    p_.k = input(in.k, p_.H, p_.K, p_.input);
    p_.v = input(in.v, p_.HV, p_.V, p_.input);
    p_.g = input(in.g, p_.HV, decay_channels(p_), p_.decay_format);
    p_.beta = input(in.beta, p_.HV, 1, p_.input);
    p_.b = input(in.b, p_.HV, p_.K, p_.input);
    p_.e = input(in.e, p_.HV, p_.V, p_.input);
    p_.w = input(in.w, p_.HV, write_channels(p_), p_.input);
    p_.initial_state = array(in.initial_state);
    p_.w_down = array(in.w_down);
    p_.w_up = array(in.w_up);
    if (!in.cu.empty())
      p_.cu_seqlens = static_cast<const std::int64_t*>(
          raw(std::as_bytes(std::span(in.cu))));
  }

  problem& shape() { return p_; }

  /// A tensor that the kernels read; absent where there are no values.
  tensor input(const values& x, int heads, int channels, format f) {
    if (x.empty()) return {};
    return place(x, p_.T, heads, channels, f, in_.padding).at;
  }
  float* array(const values& x) {
    return x.empty() ? nullptr : static_cast<float*>(floats(x).at.data);
  }

  /// Hands out `size` elements of NaN to be written, and reads them into `to`
  /// when `collect` is called; absent for no elements.
  tensor output(values& to, std::size_t size, int heads, int channels,
                format f) {
    if (size == 0) return {};
    outputs_.push_back(
        {&to, blank(size, p_.T, heads, channels, f, in_.padding)});
    return outputs_.back().second.at;
  }
  float* output_array(values& to, std::size_t size) {
    if (size == 0) return nullptr;
    outputs_.push_back({&to, blank_floats(size)});
    return static_cast<float*>(outputs_.back().second.at.data);
  }
  void collect() const {
    for (const auto& [to, rows] : outputs_) *to = read(rows);
  }

 private:
  const inputs& in_;
  problem p_;
  std::vector<std::pair<values*, device_rows>> outputs_;
};

}  // namespace

results run(const inputs& in, path how, bool backward_too) {
  session s(in);
  const problem& p = s.shape();
  results got;
  const std::size_t keys = tokens(p) * p.H * p.K, rows = tokens(p) * p.HV;
  outputs o;
  o.o = s.output(got.o, rows * p.V, p.HV, p.V, p.input);
  o.final_state = s.output_array(got.final_state, states(p));
  if (in.keep_means)
    o.window_means =
        s.output_array(got.window_means,
                       (tokens(p) / p.window + std::size_t(p.N)) * p.HV * p.V);
  s.run(p, o, how);
  if (backward_too) {
    const gate_channels have = gate_channels_of(p);
    gradients g;
    g.d_o = s.input(in.d_o, p.HV, p.V, p.input);
    g.d_final_state = s.array(in.d_final_state);
    g.window_means = o.window_means;
    g.dq = s.output(got.dq, keys, p.H, p.K, p.input);
    g.dk = s.output(got.dk, keys, p.H, p.K, p.input);
    g.dv = s.output(got.dv, rows * p.V, p.HV, p.V, p.input);
    g.dg = s.output(got.dg, rows * have.g, p.HV, have.g, format::fp32);
    g.dbeta = s.output(got.dbeta, rows * have.beta, p.HV, 1, p.input);
    g.db = s.output(got.db, rows * have.b, p.HV, have.b, p.input);
    g.de = s.output(got.de, rows * have.e, p.HV, have.e, p.input);
    g.dw = s.output(got.dw, rows * have.w, p.HV, have.w, p.input);
    g.d_initial_state = s.output_array(got.d_initial_state, states(p));
    if (info(p.family).content_gate) {
      const std::size_t inner = std::size_t(p.HV) * p.rank;
      g.d_w_down = s.output_array(got.d_w_down, inner * p.V);
      g.d_w_up = s.output_array(got.d_w_up, inner * p.K);
    }
    s.run(p, g, how);
  }
  s.collect();
  return got;
}

results run_decode(const inputs& in) {
  session s(in);
  problem p = s.shape();
  p.initial_state = nullptr;
  results got;
  const tensor o = s.output(got.o, tokens(p) * p.HV * p.V, p.HV, p.V, p.input);
  const device_rows state =
      s.floats(in.initial_state.empty() ? values(states(p)) : in.initial_state);
  program::require(decode(p, o, static_cast<float*>(state.at.data), nullptr));
  program::require(cudaDeviceSynchronize());
  s.collect();
  got.final_state = s.read(state);
  return got;
}

}  // namespace carve::cuda::test
