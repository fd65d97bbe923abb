// The general step, token by token in fp32: every family of the table and
// every option, forward and backward, for what has no kernels of its own.
//
// As the library does it, a problem is first *lowered*: each sub-step becomes a
// row with its own key, erase address, erase direction and value, all fp32;
//   c = X^T r,  S <- a S d + k x^T - y (e c)^T,  X before or after the decay.
// The walk knows no family; at the end the gradients of the rows are *raised*
// to those of the tensors that the rows were made of.  A warp owns two value
// columns, its lanes share the keys.  Sums over columns are taken in a fixed
// order: sixteen columns a block, one such pass after the other.
#include "plain/plain.cuh"

namespace carve::cuda {
namespace steps {
namespace {

using general::all_lanes;
using general::carver;
using general::key_lanes;

constexpr int warps = 8, columns_a_warp = 2;
constexpr int columns_a_pass = warps * columns_a_warp, threads = warps * 32;
/// Rows between two states that the backward keeps, at most.
constexpr int segment_rows = 32;

struct arguments {
  problem p;
  outputs out;
  gradients grad;
  family_info row;
  bool erases, look_before;  // the erase looks into the state before the decay
  int n, given, kpad;        // rows a token; of which so many are given
  int segment;               // tokens between states that are kept
  // Rows [B T n,HV,kpad] of keys, addresses, directions, and tokens [B T,..] of
  // decays; rows [..,V] of w v, tokens of value decays.
  float *key, *address, *direction, *decay, *value, *value_decay;
  // Their gradients, that of the decay to its log; d_e: dz c.
  float *d_key, *d_address, *d_direction, *d_decay, *d_value, *d_value_decay;
  float *d_query, *d_e;
  float* checkpoint;  // [slots,HV,V,kpad]
};

__device__ __forceinline__ float load(const tensor& x, std::int64_t batch,
                                      std::int64_t row, int head, int channel,
                                      format f) {
  return load_as_float(x.data, offset(x, batch, row, head) + channel, f);
}
__device__ __forceinline__ void store(const tensor& x, std::int64_t batch,
                                      std::int64_t row, int head, int channel,
                                      format f, float y) {
  if (x.data != nullptr)
    store_from_float(x.data, offset(x, batch, row, head) + channel, f, y);
}

/// Whether a sequence begins at a token of a batch entry.
__device__ bool begins(const problem& p, std::int64_t token) {
  if (p.cu_seqlens == nullptr) return token == 0;
  int low = 0, high = p.N;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (p.cu_seqlens[middle] < token)
      low = middle + 1;
    else
      high = middle;
  }
  return p.cu_seqlens[low] == token;
}

/// What a row is made of: which tensors and which of their rows.
struct parts {
  std::int64_t batch, token;
  std::int64_t at;     // row of k, v and beta; below 0: there is none
  bool along_p;        // the key is p, and nothing is written
  const tensor* gate;  // of the erase, or null
  bool gate_channels;
  const tensor* write;  // likewise
  bool write_channels;
};
__device__ parts parts_of(const arguments& a, std::int64_t batch,
                          std::int64_t token, int s) {
  const problem& p = a.p;
  const bool second = s == 1;
  parts x{batch,   token,   token * a.given + (a.given == a.n ? s : 0),
          false,   nullptr, false,
          nullptr, false};
  if (a.row.tied) {
    x.gate = x.write = &p.beta;
  } else {
    if (a.row.erase == axis::key) x.gate = &p.b, x.gate_channels = true;
    if (a.row.write != axis::none)
      x.write = &p.w, x.write_channels = a.row.write == axis::value;
  }
  if (a.row.steps == substeps::erase_then_delta && !second)
    x.along_p = true, x.gate = x.write = &p.eta;
  if (a.row.steps == substeps::trapezoid && !second) {
    x.at = begins(p, token) ? -1 : token - 1;
    x.write = &p.w_last;
  }
  return x;
}

/// The numbers of a row, of one channel.
struct row_view {
  const arguments& a;
  const parts& x;
  int h, hv;

  __device__ float gate(int i) const {
    return x.gate == nullptr ? 1.0f
                             : load(*x.gate, x.batch, gate_row(x.gate), hv,
                                    x.gate_channels ? i : 0, a.p.input);
  }
  __device__ float write(int j) const {
    return x.write == nullptr ? 1.0f
                              : load(*x.write, x.batch, gate_row(x.write), hv,
                                     x.write_channels ? j : 0, a.p.input);
  }
  __device__ float key(int i) const {
    if (x.along_p) return load(a.p.p, x.batch, x.token, hv, i, a.p.input);
    return x.at < 0 ? 0.0f : load(a.p.k, x.batch, x.at, h, i, a.p.input);
  }
  __device__ float value(int j) const {
    return x.along_p || x.at < 0 ? 0.0f
                                 : load(a.p.v, x.batch, x.at, hv, j, a.p.input);
  }
  /// The erase address before its gate.
  __device__ float base(int i) const {
    if (a.row.address == erase_address::given)
      return load(a.p.r, x.batch, x.token, hv, i, a.p.input);
    if (a.row.address == erase_address::gated_p)
      return load(a.p.p, x.batch, x.token, hv, i, a.p.input);
    return key(i);
  }
  __device__ bool gated() const {
    return a.row.address != erase_address::given;
  }

 private:
  // Beta comes with each given sub-step, the other gates with each token.
  __device__ std::int64_t gate_row(const tensor* g) const {
    return g == &a.p.beta ? x.at : x.token;
  }
};

/// A block makes one row of one value head.
__global__ void lower(const __grid_constant__ arguments a) {
  const problem& p = a.p;
  const std::int64_t row = blockIdx.x;
  const int hv = blockIdx.y, s = row % a.n;
  const std::int64_t token = row / a.n, batch = token / p.T;
  const parts x = parts_of(a, batch, token % p.T, s);
  const row_view v{a, x, hv / (p.HV / p.H), hv};
  const std::int64_t at = row * p.HV + hv, at_token = token * p.HV + hv;
  for (int i = threadIdx.x; i < a.kpad; i += blockDim.x) {
    const bool in = i < p.K;
    const std::int64_t to = at * a.kpad + i;
    const float key = in ? v.key(i) : 0.0f;
    const float base = in && a.erases ? v.base(i) : 0.0f;
    const float gate = in ? v.gate(i) : 1.0f;
    a.key[to] = key;
    a.address[to] = v.gated() ? gate * base : base;
    a.direction[to] = a.row.direction == erase_direction::key ? key
                      : a.row.direction == erase_direction::gated_address
                          ? gate * base
                      : in ? load(p.y, batch, x.token, hv, i, p.input)
                           : 0.0f;
    if (s != 0) continue;
    float g = 0.0f;
    if (in && a.row.decay != axis::none)
      g = load(p.g, batch, x.token, hv, a.row.decay == axis::head ? 0 : i,
               p.decay_format);
    a.decay[at_token * a.kpad + i] = expf(g);
  }
  for (int j = threadIdx.x; j < p.V; j += blockDim.x) {
    a.value[at * p.V + j] = v.write(j) * v.value(j);
    if (s == 0)
      a.value_decay[at_token * p.V + j] =
          p.gd.data == nullptr
              ? 1.0f
              : expf(load(p.gd, batch, x.token, hv, j, p.decay_format));
  }
}

/// The state of a warp's columns, and where its head stands.
template <int KPL>
struct walker {
  static constexpr int TV = columns_a_warp;
  using state = float[TV][KPL];
  using keys = float[KPL];
  const arguments& a;
  sequence_span span;
  int n, hv, lane, column;

  __device__ std::int64_t token_at(std::int64_t t) const {
    return (span.batch * a.p.T + span.first + t) * a.p.HV + hv;
  }
  __device__ std::int64_t row_at(std::int64_t t, int s) const {
    return ((span.batch * a.p.T + span.first + t) * a.n + s) * a.p.HV + hv;
  }
  __device__ void read(keys& x, const float* from, std::int64_t at) const {
#pragma unroll
    for (int e = 0; e < KPL; ++e) x[e] = from[at * a.kpad + lane + 32 * e];
  }
  __device__ void query(keys& x, std::int64_t t) const {
#pragma unroll
    for (int e = 0; e < KPL; ++e) {
      const int i = lane + 32 * e;
      x[e] = i < a.p.K ? load(a.p.q, span.batch, span.first + t,
                              hv / (a.p.HV / a.p.H), i, a.p.input)
                       : 0.0f;
    }
  }
  __device__ float mask(std::int64_t t, int e, int j) const {
    const int i = lane + 32 * e;
    if (a.row.erase != axis::mask || i >= a.p.K) return 1.0f;
    return load(a.p.E, span.batch, span.first + t, hv, i * a.p.V + column + j,
                a.p.input);
  }
  __device__ float erase_gate(std::int64_t t, int j) const {
    return a.row.erase == axis::value ? load(a.p.e, span.batch, span.first + t,
                                             hv, column + j, a.p.input)
                                      : 1.0f;
  }
  __device__ void load_state(state& S, const float* from) const {
    const std::int64_t at =
        (static_cast<std::int64_t>(n) * a.p.HV + hv) * a.p.K * a.p.V;
#pragma unroll
    for (int j = 0; j < TV; ++j)
#pragma unroll
      for (int e = 0; e < KPL; ++e) {
        const int i = lane + 32 * e;
        S[j][e] = from != nullptr && i < a.p.K
                      ? from[at + std::int64_t(i) * a.p.V + column + j]
                      : 0.0f;
      }
  }
  __device__ void store_state(float* to, const state& S) const {
    if (to == nullptr) return;
    const std::int64_t at =
        (static_cast<std::int64_t>(n) * a.p.HV + hv) * a.p.K * a.p.V;
#pragma unroll
    for (int j = 0; j < TV; ++j)
#pragma unroll
      for (int e = 0; e < KPL; ++e) {
        const int i = lane + 32 * e;
        if (i < a.p.K) to[at + std::int64_t(i) * a.p.V + column + j] = S[j][e];
      }
  }
  /// Where the state before token t is kept.
  __device__ float* kept(std::int64_t t) const {
    const std::int64_t slot =
        (span.batch * a.p.T + span.first) / a.segment + n + t / a.segment;
    return a.checkpoint + ((slot * a.p.HV + hv) * a.p.V + column) * a.kpad +
           lane;
  }
  /// sum_i x_i S_ij, of each column.
  __device__ void look_up(float (&y)[TV], const state& S, const keys& x,
                          std::int64_t t, bool masked) const {
#pragma unroll
    for (int j = 0; j < TV; ++j) {
      y[j] = 0.0f;
#pragma unroll
      for (int e = 0; e < KPL; ++e)
        y[j] += x[e] * (masked ? mask(t, e, j) * S[j][e] : S[j][e]);
    }
    general::warp_sums<TV>(y, lane);
  }
  /// One row; leaves X^T r in c.
  __device__ void step(state& S, float (&c)[TV], std::int64_t t, int s) const {
    const std::int64_t at = row_at(t, s);
    keys k, r, y;
    read(k, a.key, at);
    read(r, a.address, at);
    read(y, a.direction, at);
    const bool masked = a.row.erase == axis::mask;
    if (s == 0) {
      if (a.look_before) look_up(c, S, r, t, masked);
      keys decay;
      read(decay, a.decay, token_at(t));
#pragma unroll
      for (int j = 0; j < TV; ++j) {
        const float d = a.value_decay[token_at(t) * a.p.V + column + j];
#pragma unroll
        for (int e = 0; e < KPL; ++e) S[j][e] = d * (decay[e] * S[j][e]);
      }
    }
    if (s != 0 || !a.look_before) look_up(c, S, r, t, masked);
#pragma unroll
    for (int j = 0; j < TV; ++j) {
      const float x = a.value[at * a.p.V + column + j];
      const float gone = erase_gate(t, j) * c[j];
#pragma unroll
      for (int e = 0; e < KPL; ++e) S[j][e] += k[e] * x - y[e] * gone;
    }
  }
};

template <int KPL>
__device__ walker<KPL> walker_of(const arguments& a, int column) {
  const int n = blockIdx.x / a.p.HV;
  return {a,
          span_of(a.p.cu_seqlens, a.p.T, n),
          n,
          static_cast<int>(blockIdx.x % a.p.HV),
          static_cast<int>(threadIdx.x % 32),
          column + static_cast<int>(threadIdx.x / 32) * columns_a_warp};
}

template <int KPL>
__global__ void __launch_bounds__(threads)
    walk_forward(const __grid_constant__ arguments a) {
  using walk = walker<KPL>;
  constexpr int TV = walk::TV;
  const problem& p = a.p;
  const walk w = walker_of<KPL>(a, blockIdx.y * columns_a_pass);
  typename walk::state S;
  w.load_state(S, p.initial_state);
  const auto read_out = [&](std::int64_t t) {
    if (a.out.o.data == nullptr) return;
    typename walk::keys q;
    float o[TV];
    w.query(q, t);
    w.look_up(o, S, q, t, false);
#pragma unroll
    for (int j = 0; j < TV; ++j)
      if (w.lane == j)
        store(a.out.o, w.span.batch, w.span.first + t, w.hv, w.column + j,
              p.input, p.scale * o[j]);
  };
  for (std::int64_t t = 0; t < w.span.length; ++t) {
    if (a.checkpoint != nullptr && t % a.segment == 0) {
#pragma unroll
      for (int j = 0; j < TV; ++j)
#pragma unroll
        for (int e = 0; e < KPL; ++e) w.kept(t)[j * a.kpad + 32 * e] = S[j][e];
    }
    if (p.read_before) read_out(t);
    for (int s = 0; s < a.n; ++s) {
      float c[TV];
      w.step(S, c, t, s);
    }
    if (!p.read_before) read_out(t);
  }
  w.store_state(a.out.final_state, S);
}

template <int KPL>
__global__ void __launch_bounds__(threads)
    walk_backward(const __grid_constant__ arguments a) {
  using walk = walker<KPL>;
  constexpr int TV = walk::TV, kpad = 32 * KPL, sums = 5;
  const problem& p = a.p;
  const gradients& out = a.grad;
  __shared__ float parts[sums][warps][kpad];
  const int warp = threadIdx.x / 32;
  const bool masked = a.row.erase == axis::mask;
  for (int pass = 0; pass < p.V / columns_a_pass; ++pass) {
    const walk w = walker_of<KPL>(a, pass * columns_a_pass);
    typename walk::state dS;
    w.load_state(dS, out.d_final_state);
    const std::int64_t segments = (w.span.length + a.segment - 1) / a.segment;
    for (std::int64_t segment = segments - 1; segment >= 0; --segment) {
      const std::int64_t first = segment * a.segment;
      const int tokens = static_cast<int>(
          min(static_cast<std::int64_t>(a.segment), w.span.length - first));
      float before[segment_rows][TV][KPL], cs[segment_rows][TV];
      typename walk::state S;
#pragma unroll
      for (int j = 0; j < TV; ++j)
#pragma unroll
        for (int e = 0; e < KPL; ++e)
          S[j][e] = w.kept(first)[j * a.kpad + 32 * e];
#pragma unroll 1
      for (int m = 0; m < tokens * a.n; ++m) {
#pragma unroll
        for (int j = 0; j < TV; ++j)
#pragma unroll
          for (int e = 0; e < KPL; ++e) before[m][j][e] = S[j][e];
        float c[TV];
        w.step(S, c, first + m / a.n, m % a.n);
#pragma unroll
        for (int j = 0; j < TV; ++j) cs[m][j] = c[j];
      }
#pragma unroll 1
      for (int m = tokens * a.n - 1; m >= 0; --m) {
        const std::int64_t t = first + m / a.n;
        const int s = m % a.n;
        const bool starts = s == 0, ends = s == a.n - 1;
        const bool look_before = starts && a.look_before;
        const std::int64_t at = w.row_at(t, s), at_token = w.token_at(t);
        typename walk::keys q{}, k, r, y, decay;
        w.read(k, a.key, at);
        w.read(r, a.address, at);
        w.read(y, a.direction, at);
        w.read(decay, a.decay, at_token);
        if (starts || ends) w.query(q, t);
        float dq[KPL] = {}, dk[KPL] = {}, dr[KPL] = {}, dy[KPL] = {},
              dg[KPL] = {};
        float x[TV], gate[TV], gone[TV], d[TV], d_o[TV] = {}, dx[TV], dz[TV],
                                                dd[TV] = {};
#pragma unroll
        for (int j = 0; j < TV; ++j) {
          const int column = w.column + j;
          x[j] = a.value[at * p.V + column];
          gate[j] = w.erase_gate(t, j);
          gone[j] = gate[j] * cs[m][j];
          d[j] = starts ? a.value_decay[at_token * p.V + column] : 1.0f;
          if (starts || ends)
            d_o[j] = p.scale * load(out.d_o, w.span.batch, w.span.first + t,
                                    w.hv, column, p.input);
        }
        // S~, in place of the state after the step.
        const auto decayed = [&](int j, int e) {
          return starts ? d[j] * (decay[e] * before[m][j][e]) : before[m][j][e];
        };
        if (ends && !p.read_before) {
#pragma unroll
          for (int j = 0; j < TV; ++j)
#pragma unroll
            for (int e = 0; e < KPL; ++e) {
              const float after = decayed(j, e) + k[e] * x[j] - y[e] * gone[j];
              dq[e] += after * d_o[j];
              dS[j][e] += q[e] * d_o[j];
            }
        }
        w.look_up(dx, dS, k, t, false);
        w.look_up(dz, dS, y, t, false);
        const auto look_back = [&] {
#pragma unroll
          for (int j = 0; j < TV; ++j)
#pragma unroll
            for (int e = 0; e < KPL; ++e) {
              const float X = look_before ? before[m][j][e] : decayed(j, e);
              const float dc = -dz[j] * gate[j];
              const float masked_dc = masked ? dc * w.mask(t, e, j) : dc;
              dr[e] += X * masked_dc;
              dS[j][e] += r[e] * masked_dc;
              const int i = w.lane + 32 * e;
              if (masked && i < p.K)
                store(out.dE, w.span.batch, w.span.first + t, w.hv,
                      i * p.V + w.column + j, p.input, r[e] * (dc * X));
            }
        };
#pragma unroll
        for (int j = 0; j < TV; ++j)
#pragma unroll
          for (int e = 0; e < KPL; ++e) {
            dk[e] += dS[j][e] * x[j];
            dy[e] -= dS[j][e] * gone[j];
          }
        if (!look_before) look_back();
        if (starts) {
#pragma unroll
          for (int j = 0; j < TV; ++j)
#pragma unroll
            for (int e = 0; e < KPL; ++e) {
              const float change = dS[j][e] * decayed(j, e);
              dg[e] += change;
              dd[j] += change;
              dS[j][e] = d[j] * (decay[e] * dS[j][e]);
            }
          general::warp_sums<TV>(dd, w.lane);
        }
        if (look_before) look_back();
        if (starts && p.read_before) {
#pragma unroll
          for (int j = 0; j < TV; ++j)
#pragma unroll
            for (int e = 0; e < KPL; ++e) {
              dq[e] += before[m][j][e] * d_o[j];
              dS[j][e] += q[e] * d_o[j];
            }
        }
#pragma unroll
        for (int j = 0; j < TV; ++j) {
          if (w.lane != j) continue;
          const int column = w.column + j;
          a.d_value[at * p.V + column] = dx[j];
          a.d_e[at * p.V + column] = -dz[j] * cs[m][j];
          if (starts) a.d_value_decay[at_token * p.V + column] = dd[j];
        }
        __syncthreads();  // the sums of the row before have been read
#pragma unroll
        for (int e = 0; e < KPL; ++e) {
          const int i = w.lane + 32 * e;
          parts[0][warp][i] = dk[e], parts[1][warp][i] = dr[e];
          parts[2][warp][i] = dy[e], parts[3][warp][i] = dq[e];
          parts[4][warp][i] = dg[e];
        }
        __syncthreads();
        const auto sum = [&](int which, float* to, std::int64_t row, bool add) {
          for (int i = threadIdx.x; i < kpad; i += threads) {
            float total = add ? to[row * kpad + i] : 0.0f;
            for (int v = 0; v < warps; ++v) total += parts[which][v][i];
            to[row * kpad + i] = total;
          }
        };
        sum(0, a.d_key, at, pass != 0);
        sum(1, a.d_address, at, pass != 0);
        sum(2, a.d_direction, at, pass != 0);
        if (starts) sum(4, a.d_decay, at_token, pass != 0);
        if (p.read_before ? starts : ends)
          sum(3, a.d_query, at_token, pass != 0);
      }
    }
    w.store_state(out.d_initial_state, dS);
  }
}

/// The block's sum of x, at every thread.
__device__ float block_sum(float x) {
  __shared__ float scratch[32];
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(all_lanes, x, d);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int m = 0; m < static_cast<int>(blockDim.x) / 32; ++m) sum += scratch[m];
  return sum;
}

/// From the rows to the tensors: a block has one token and key head, a thread
/// a key and a value channel.
__global__ void raise(const __grid_constant__ arguments a) {
  const problem& p = a.p;
  const gradients& out = a.grad;
  const std::int64_t index = blockIdx.x, batch = index / p.T,
                     token = index % p.T;
  const int h = blockIdx.y, group = p.HV / p.H, c = threadIdx.x;
  const bool in_K = c < p.K, in_V = c < p.V;
  const format f = p.input;
  float dq = 0.0f;
  for (int m = 0; m < group; ++m) {
    const int hv = h * group + m;
    const std::int64_t at = index * p.HV + hv;
    if (in_K) dq += a.d_query[at * a.kpad + c];
    float dg = in_K ? a.d_decay[at * a.kpad + c] : 0.0f;
    if (a.row.decay == axis::head) dg = block_sum(dg);
    if (out.dg.data != nullptr && in_K && (c == 0 || a.row.decay == axis::key))
      store(out.dg, batch, token, hv, c, format::fp32, dg);
    if (in_V)
      store(out.dgd, batch, token, hv, c, format::fp32,
            a.d_value_decay[at * p.V + c]);
  }
  if (in_K) store(out.dq, batch, token, h, c, f, dq);

  // What rows give to the key and the value of a token, in their order; with a
  // trapezoid the next token's first row comes after this one's second.
  const bool trapezoid = a.row.steps == substeps::trapezoid;
  const bool next = trapezoid && token + 1 < p.T && !begins(p, token + 1);
  for (int g = 0; g < a.given; ++g) {
    float dk = 0.0f;
    for (int m = 0; m < group; ++m) {
      const int hv = h * group + m;
      float dv = 0.0f, dp = 0.0f, db = 0.0f;
      for (int s = a.given == a.n ? g : 0; s < (next ? 3 : a.n); ++s) {
        const bool later = s == a.n;
        const std::int64_t from = later ? token + 1 : token;
        const parts x = parts_of(a, batch, from, later ? 0 : s);
        const row_view v{a, x, h, hv};
        const std::int64_t row =
            ((batch * p.T + from) * a.n + (later ? 0 : s)) * p.HV + hv;
        float gate_sum = 0.0f, write = 0.0f, write_sum = 0.0f;
        // Whether the row's key and value are this token's.
        const bool own = !trapezoid || s != 0;
        if (in_K) {
          const float dr = a.d_address[row * a.kpad + c],
                      dy = a.d_direction[row * a.kpad + c];
          const float base = a.erases ? v.base(c) : 0.0f, gate = v.gate(c);
          float key = a.d_key[row * a.kpad + c], to_base = dr;
          if (v.gated()) to_base = dr * gate, gate_sum = dr * base;
          if (a.row.direction == erase_direction::key) key += dy;
          if (a.row.direction == erase_direction::gated_address)
            to_base += dy * gate, gate_sum += dy * base;
          if (a.row.direction == erase_direction::given)
            store(out.dy, batch, token, hv, c, f, dy);
          if (a.row.address == erase_address::given)
            store(out.dr, batch, token, hv, c, f, to_base);
          else if (a.row.address == erase_address::gated_p)
            dp = to_base;
          else
            key += a.erases ? to_base : 0.0f;
          if (x.along_p)
            dp = key;
          else if (own)
            dk += key;
          db = gate_sum;
        }
        if (in_V) {
          const float dx = a.d_value[row * p.V + c];
          if (!x.along_p && own) dv += dx * v.write(c);
          write = dx * v.value(c);
          if (a.row.erase == axis::value)
            store(out.de, batch, token, hv, c, f, a.d_e[row * p.V + c]);
        }
        if (later) continue;  // its gates are the next token's
        if (a.row.tied) {
          const float sum = block_sum(gate_sum + write);
          if (c == 0)
            store(x.along_p ? out.deta : out.dbeta, batch,
                  x.along_p ? token : x.at, hv, 0, f, sum);
        } else if (x.write != nullptr && !x.write_channels) {
          write_sum = block_sum(write);
          if (c == 0)
            store(x.write == &p.w_last ? out.dw_last : out.dw, batch, token, hv,
                  0, f, write_sum);
        } else if (x.write != nullptr && in_V) {
          store(out.dw, batch, token, hv, c, f, write);
        }
        if (a.given == a.n) break;  // of several given rows only the g-th
      }
      if (in_V) store(out.dv, batch, token * a.given + g, hv, c, f, dv);
      if (in_K) {
        store(out.dp, batch, token, hv, c, f, dp);
        store(out.db, batch, token, hv, c, f, db);
      }
    }
    if (in_K) store(out.dk, batch, token * a.given + g, h, c, f, dk);
  }
}

arguments lay_out(const problem& p, bool backward, void* workspace,
                  std::size_t* used) {
  arguments a{};
  a.p = p;
  a.row = info(p.family);
  a.erases = a.row.erases();
  a.look_before =
      p.erase_reads.value_or(a.row.erase_reads) == erase_order::before_decay;
  a.given = p.substeps;
  a.n = a.row.steps == substeps::one || a.row.steps == substeps::given
            ? p.substeps
            : 2;
  a.kpad = 32 * key_lanes(p.K);
  a.segment = segment_rows / a.n;
  const std::int64_t tokens = std::int64_t(p.B) * p.T * p.HV,
                     rows = tokens * a.n;
  carver ws(workspace);
  for (float** x : {&a.key, &a.address, &a.direction})
    *x = ws.take(rows * a.kpad);
  a.decay = ws.take(tokens * a.kpad);
  a.value = ws.take(rows * p.V);
  a.value_decay = ws.take(tokens * p.V);
  if (backward) {
    for (float** x : {&a.d_key, &a.d_address, &a.d_direction})
      *x = ws.take(rows * a.kpad);
    for (float** x : {&a.d_decay, &a.d_query}) *x = ws.take(tokens * a.kpad);
    for (float** x : {&a.d_value, &a.d_e}) *x = ws.take(rows * p.V);
    a.d_value_decay = ws.take(tokens * p.V);
    a.checkpoint = ws.take((std::int64_t(p.B) * p.T / a.segment + p.N) * p.HV *
                           p.V * a.kpad);
  }
  *used = ws.used();
  return a;
}

template <int KPL>
status run_keys(const arguments& a, bool backward, CUstream_st* stream) {
  const problem& p = a.p;
  const std::int64_t tokens = std::int64_t(p.B) * p.T;
  const int channels = (std::max(p.K, p.V) + 31) / 32 * 32;
  if (tokens > 0)
    lower<<<dim3(static_cast<unsigned>(tokens * a.n), p.HV), channels, 0,
            stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  walk_forward<KPL>
      <<<dim3(p.N * p.HV, p.V / columns_a_pass), threads, 0, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  if (!backward) return {};
  walk_backward<KPL><<<p.N * p.HV, threads, 0, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  if (tokens > 0)
    raise<<<dim3(static_cast<unsigned>(tokens), p.H), channels, 0, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

status run(const arguments& a, bool backward, CUstream_st* stream) {
  switch (key_lanes(a.p.K)) {
    case 2:
      return run_keys<2>(a, backward, stream);
    case 4:
      return run_keys<4>(a, backward, stream);
    default:
      return run_keys<8>(a, backward, stream);
  }
}

}  // namespace
}  // namespace steps

status forward_steps_workspace(const problem& p, std::size_t* bytes) {
  steps::lay_out(p, false, nullptr, bytes);
  return {};
}
status backward_steps_workspace(const problem& p, std::size_t* bytes) {
  steps::lay_out(p, true, nullptr, bytes);
  return {};
}

status forward_steps(const problem& p, const outputs& out, void* workspace,
                     std::size_t, CUstream_st* stream) {
  std::size_t used = 0;
  steps::arguments a = steps::lay_out(p, false, workspace, &used);
  a.out = out;
  return steps::run(a, false, stream);
}
status backward_steps(const problem& p, const gradients& grad, void* workspace,
                      std::size_t, CUstream_st* stream) {
  std::size_t used = 0;
  steps::arguments a = steps::lay_out(p, true, workspace, &used);
  a.grad = grad;
  return steps::run(a, true, stream);
}

}  // namespace carve::cuda
