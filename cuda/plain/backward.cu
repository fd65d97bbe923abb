// The plain backward: token by token, fp32 state, every family and shape.
//
// Segments of at most 64 tokens are walked from the last to the first: states
// are kept at segment starts by a forward pass, and within a segment at every
// eighth token and then at every token by the walk itself, in local memory:
// an unrolled walk over registers is bound by its own instructions.  Sums over
// value columns (dq, dk, db, dg) leave each block as a partial that a second
// kernel adds in a fixed order, so a result does not depend on what else runs.
#include "plain/plain.cuh"

namespace carve::cuda {
namespace general {
namespace {

/// Floats of one partial row: dq, dk, dr, dg over K and the sum of du * v.
__host__ __device__ constexpr int row_floats(int kpad) { return 4 * kpad + 4; }

/// Shared memory of the walk; the content gate's inner values follow.
template <int KPL, int TV>
struct walk_memory {
  static constexpr int warps = block_columns / TV;
  using columns = float[stage_tokens * block_columns];
  staged_keys<KPL> keys;
  float shift[32 * KPL];                       // of the content gate's logits
  float rows[2][warps][row_floats(32 * KPL)];  // partial rows, of two tokens
  columns v, w, e, d_o;
  float inner[1];
};

template <class T, int KPL, int TV>
__global__ void __launch_bounds__(block_columns / TV * 32, KPL == 8 ? 1 : 3)
    walk_kernel(const __grid_constant__ arguments a, std::int64_t segment) {
  constexpr int kpad = 32 * KPL, warps = block_columns / TV;
  constexpr int threads = warps * 32, row = row_floats(kpad);
  const problem& p = a.p;
  const gradients& out = a.grad;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n = blockIdx.x / p.HV, hv = blockIdx.x % p.HV;
  const int h = hv / (p.HV / p.H);
  const int column0 = blockIdx.y * block_columns;
  const int column = column0 + warp * TV;
  const bool content = a.content;
  const sequence_span span = span_of(p.cu_seqlens, p.T, n);
  const std::int64_t first = a.cut.begin(segment);
  const std::int64_t head_state =
      (static_cast<std::int64_t>(n) * p.HV + hv) * p.K * p.V;

  float dS[TV][KPL];
  const std::int64_t last =
      min(min(a.cut.begin(segment + 1), first + a.cut.length), span.length);
  if (first >= last) {
    if (span.length == 0 && segment == 0 && out.d_initial_state != nullptr) {
      for (int x = threadIdx.x; x < p.K * block_columns; x += threads) {
        const std::int64_t at = head_state +
                                std::int64_t(x / block_columns) * p.V +
                                column0 + x % block_columns;
        out.d_initial_state[at] =
            out.d_final_state == nullptr ? 0.0f : out.d_final_state[at];
      }
    }
    return;
  }

  extern __shared__ float4 shared_base[];
  auto& m = reinterpret_cast<walk_memory<KPL, TV>&>(shared_base);
  staged_keys<KPL>& staged = m.keys;

  const std::int64_t head_size = static_cast<std::int64_t>(kpad) * p.V;
  const std::int64_t in_head = std::int64_t(column) * kpad + lane;
  const bool at_end = last == span.length;
  float* carry =
      a.d_state + (std::int64_t(n) * p.HV + hv) * head_size + in_head;
#pragma unroll
  for (int j = 0; j < TV; ++j)
#pragma unroll
    for (int e = 0; e < KPL; ++e) {
      const int i = key_of<KPL>(lane, e);
      if (!at_end)
        dS[j][e] = carry[(j * KPL + e) * 32];
      else
        dS[j][e] = out.d_final_state != nullptr && i < p.K
                       ? out.d_final_state[head_state + std::int64_t(i) * p.V +
                                           column + j]
                       : 0.0f;
    }

  // The output of a whole window also feeds the next window's gate.
  const std::int64_t window_end = (segment / a.cut.parts + 1) * a.cut.window;
  const bool feeds_gate = content && window_end < span.length;
  const std::int64_t slot0 = a.cut.slot(span.first, span.batch, p.T, n);
  if (content) {
    const std::int64_t c = segment / a.cut.parts;
    content_shift(p, hv,
                  c == 0
                      ? nullptr
                      : a.mean + ((slot0 / a.cut.parts + c) * p.HV + hv) * p.V,
                  m.inner, m.shift);
    __syncthreads();
    if (blockIdx.y == 0)
      for (int i = threadIdx.x; i < p.K; i += threads)
        a.gate_shift[(std::int64_t(n) * p.HV + hv) * p.K + i] = m.shift[i];
  }

  auto stage = [&](std::int64_t t0, int nt, auto reverse) {
    const token_block at{span.batch, span.first + t0, h, hv, nt};
    stage_keys<T, KPL, decltype(reverse)::value>(a, at, m.shift, staged);
    for (int x = threadIdx.x; x < nt * block_columns; x += threads) {
      const int t = x / block_columns, j = column0 + x % block_columns;
      const T v = static_cast<const T*>(
          p.v.data)[offset(p.v, at.batch, at.token + t, hv) + j];
      const T w =
          a.gate.w.row<T>(at.batch, at.token + t, hv)[j * a.gate.w.step];
      const T e =
          a.gate.e.row<T>(at.batch, at.token + t, hv)[j * a.gate.e.step];
      if constexpr (decltype(reverse)::value) {
        float d = to_float(static_cast<const T*>(
            out.d_o.data)[offset(out.d_o, at.batch, at.token + t, hv) + j]);
        if (feeds_gate) d += a.d_mean[(std::int64_t(n) * p.HV + hv) * p.V + j];
        m.d_o[x] = d;
      }
      m.v[x] = to_float(v);
      m.w[x] = to_float(w);
      m.e[x] = a.gate.e.present ? to_float(e) : 1.0f;
    }
  };

  // One step of the state; leaves S~^T r in c and the written value in u.
  float S[TV][KPL];
  auto step = [&](int t, float(&c)[TV], float(&u)[TV]) {
    float k[KPL], d[KPL], r[KPL];
    read_keys<KPL>(staged.key + t * kpad, lane, k);
    read_keys<KPL>(staged.decay + t * kpad, lane, d);
    read_keys<KPL>(staged.erase + t * kpad, lane, r);
#pragma unroll
    for (int j = 0; j < TV; ++j) {
      c[j] = 0.0f;
#pragma unroll
      for (int e = 0; e < KPL; ++e) {
        S[j][e] *= d[e];
        c[j] += S[j][e] * r[e];
      }
    }
    warp_sums<TV>(c, lane);
#pragma unroll
    for (int j = 0; j < TV; ++j) {
      const int x = t * block_columns + warp * TV + j;
      u[j] = m.w[x] * m.v[x] - m.e[x] * c[j];
#pragma unroll
      for (int e = 0; e < KPL; ++e) S[j][e] += k[e] * u[j];
    }
  };

  const int stages =
      static_cast<int>((last - first + stage_tokens - 1) / stage_tokens);
  {
    const float* from =
        a.checkpoint + ((slot0 + segment) * p.HV + hv) * head_size + in_head;
#pragma unroll
    for (int j = 0; j < TV; ++j)
#pragma unroll
      for (int e = 0; e < KPL; ++e) S[j][e] = from[(j * KPL + e) * 32];
  }
  float kept[segment_stages][TV][KPL];  // at the start of each stage
#pragma unroll 1
  for (int s = 0; s < stages; ++s) {
#pragma unroll
    for (int j = 0; j < TV; ++j)
#pragma unroll
      for (int e = 0; e < KPL; ++e) kept[s][j][e] = S[j][e];
    if (s + 1 == stages) break;
    __syncthreads();
    stage(first + s * stage_tokens, stage_tokens, std::false_type{});
    __syncthreads();
    for (int t = 0; t < stage_tokens; ++t) {
      float c[TV], u[TV];
      step(t, c, u);
    }
  }

  for (int s = stages - 1; s >= 0; --s) {
    const std::int64_t t0 = first + s * stage_tokens;
    const int nt = static_cast<int>(min(std::int64_t{stage_tokens}, last - t0));
    __syncthreads();
    stage(t0, nt, std::true_type{});
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TV; ++j)
#pragma unroll
      for (int e = 0; e < KPL; ++e) S[j][e] = kept[s][j][e];
    float before[stage_tokens][TV][KPL];  // S_{t-1}
    float cs[stage_tokens][TV];
#pragma unroll 1
    for (int t = 0; t < nt; ++t) {
#pragma unroll
      for (int j = 0; j < TV; ++j)
#pragma unroll
        for (int e = 0; e < KPL; ++e) before[t][j][e] = S[j][e];
      float u[TV];
      step(t, cs[t], u);
    }
#pragma unroll 1
    for (int t = nt - 1; t >= 0; --t) {
      const std::int64_t token = span.first + t0 + t;
      float q[KPL], k[KPL], d[KPL], r[KPL];
      read_keys<KPL>(staged.query + t * kpad, lane, q);
      read_keys<KPL>(staged.key + t * kpad, lane, k);
      read_keys<KPL>(staged.decay + t * kpad, lane, d);
      read_keys<KPL>(staged.erase + t * kpad, lane, r);
      float dq[KPL], dk[KPL], dr[KPL], dg[KPL], du[TV], u[TV], d_o[TV];
#pragma unroll
      for (int e = 0; e < KPL; ++e) dq[e] = dk[e] = dr[e] = dg[e] = 0.0f;
#pragma unroll
      for (int j = 0; j < TV; ++j) {
        const int x = t * block_columns + warp * TV + j;
        u[j] = m.w[x] * m.v[x] - m.e[x] * cs[t][j];
        d_o[j] = p.scale * m.d_o[x];
        du[j] = 0.0f;
#pragma unroll
        for (int e = 0; e < KPL; ++e) {
          if (p.read_before) {
            dq[e] += before[t][j][e] * d_o[j];
          } else {
            dq[e] += (d[e] * before[t][j][e] + k[e] * u[j]) * d_o[j];
            dS[j][e] += q[e] * d_o[j];
          }
          du[j] += dS[j][e] * k[e];
        }
      }
      warp_sums<TV>(du, lane);
      float write_sum = 0.0f;
#pragma unroll
      for (int j = 0; j < TV; ++j) {
        const int x = t * block_columns + warp * TV + j;
        const float dc = -du[j] * m.e[x];
        write_sum += du[j] * m.v[x];
        if (lane == j) {
          if (out.dv.data != nullptr)
            static_cast<T*>(out.dv.data)[offset(out.dv, span.batch, token, hv) +
                                         column + j] =
                from_float<T>(du[j] * m.w[x]);
          if (out.dw.data != nullptr && a.gate.w.step != 0)
            static_cast<T*>(out.dw.data)[offset(out.dw, span.batch, token, hv) +
                                         column + j] =
                from_float<T>(du[j] * m.v[x]);
          if (out.de.data != nullptr)
            static_cast<T*>(out.de.data)[offset(out.de, span.batch, token, hv) +
                                         column + j] =
                from_float<T>(-du[j] * cs[t][j]);
        }
#pragma unroll
        for (int e = 0; e < KPL; ++e) {
          const float decayed = d[e] * before[t][j][e];
          dk[e] += dS[j][e] * u[j];
          dr[e] += decayed * dc;
          dS[j][e] += r[e] * dc;
          dg[e] += dS[j][e] * decayed;
          dS[j][e] *= d[e];
          if (p.read_before) dS[j][e] += q[e] * d_o[j];
        }
      }
      float* mine = m.rows[t & 1][warp];
      write_keys<KPL>(mine, lane, dq);
      write_keys<KPL>(mine + kpad, lane, dk);
      write_keys<KPL>(mine + 2 * kpad, lane, dr);
      write_keys<KPL>(mine + 3 * kpad, lane, dg);
      if (lane == 0) mine[4 * kpad] = write_sum;
      __syncthreads();
      const auto& theirs = m.rows[t & 1];
      float* to = a.partial + ((partial_row(a, n, span.batch, token,
                                            static_cast<int>(t0 + t - first)) *
                                    p.HV +
                                hv) *
                                   gridDim.y +
                               blockIdx.y) *
                                  row;
      for (int x = threadIdx.x; x < 4 * kpad + 1; x += threads) {
        float sum = theirs[0][x];
#pragma unroll
        for (int y = 1; y < warps; ++y) sum += theirs[y][x];
        to[x] = sum;
      }
    }
  }

#pragma unroll
  for (int j = 0; j < TV; ++j)
#pragma unroll
    for (int e = 0; e < KPL; ++e) {
      const int i = key_of<KPL>(lane, e);
      if (segment != 0)
        carry[(j * KPL + e) * 32] = dS[j][e];
      else if (out.d_initial_state != nullptr && i < p.K)
        out.d_initial_state[head_state + std::int64_t(i) * p.V + column + j] =
            dS[j][e];
    }
}

__device__ float block_sum(float x, float* scratch) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(all_lanes, x, d);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int m = 0; m < static_cast<int>(blockDim.x) / 32; ++m) sum += scratch[m];
  return sum;
}

/// Adds the partials of one token and key head, block by block and then value
/// head by value head, and forms the gradients of everything along K.
__global__ void reduce_kernel(const __grid_constant__ arguments a,
                              std::int64_t segment, int blocks) {
  const problem& p = a.p;
  const gradients& out = a.grad;
  const int n = blockIdx.x / a.cut.length;
  const int in_segment = blockIdx.x % a.cut.length;
  const int h = blockIdx.y, group = p.HV / p.H, i = threadIdx.x;
  const sequence_span span = span_of(p.cu_seqlens, p.T, n);
  const std::int64_t at = a.cut.begin(segment) + in_segment;
  if (at >= min(a.cut.begin(segment + 1), span.length)) return;
  const std::int64_t token = span.first + at;
  const int row = row_floats(a.kpad);
  __shared__ float scratch[32];

  const bool in = i < p.K;
  const float k =
      in ? load_as_float(p.k.data, offset(p.k, span.batch, token, h) + i,
                         p.input)
         : 0.0f;
  float dq_sum = 0.0f, dk_sum = 0.0f;
  for (int m = 0; m < group; ++m) {
    const int hv = h * group + m;
    float* from =
        a.partial +
        (partial_row(a, n, span.batch, token, in_segment) * p.HV + hv) *
            blocks * row;
    float dq = 0.0f, dk = 0.0f, dr = 0.0f, dg = 0.0f, dw = 0.0f;
    for (int x = 0; x < blocks; ++x) {
      const float* f = from + x * row;
      if (in) {
        dq += f[i];
        dk += f[a.kpad + i];
        dr += f[2 * a.kpad + i];
        dg += f[3 * a.kpad + i];
      }
      dw += f[4 * a.kpad];
    }
    float b = 1.0f;
    if (in && a.gate.b.present) {
      b = load_as_float(
          a.gate.b.x.data,
          offset(a.gate.b.x, span.batch, token, hv) + i * a.gate.b.step,
          p.input);
      if (a.content)
        b = sigmoid(b + a.gate_shift[(std::int64_t(n) * p.HV + hv) * p.K + i]);
    }
    dq_sum += dq;
    dk_sum += dk + dr * b;
    float db = dr * k;
    if (a.content) {
      db *= b * (1.0f - b);
      if (in) from[2 * a.kpad + i] = db;  // read again, unrounded, below
    }
    if (a.tied) {
      const float sum = block_sum(db, scratch);
      if (i == 0 && out.dbeta.data != nullptr)
        store_from_float(out.dbeta.data,
                         offset(out.dbeta, span.batch, token, hv), p.input,
                         sum + dw);
    } else {
      if (a.gate.w.step == 0 && i == 0 && out.dw.data != nullptr)
        store_from_float(out.dw.data, offset(out.dw, span.batch, token, hv),
                         p.input, dw);
      if (in && out.db.data != nullptr)
        store_from_float(out.db.data, offset(out.db, span.batch, token, hv) + i,
                         p.input, db);
    }
    if (out.dg.data != nullptr) {
      float* to = static_cast<float*>(out.dg.data) +
                  offset(out.dg, span.batch, token, hv);
      if (a.gate.g.step == 0) {
        const float sum = block_sum(dg, scratch);
        if (i == 0) *to = sum;
      } else if (in) {
        to[i] = dg;
      }
    }
  }
  if (!in) return;
  if (out.dq.data != nullptr)
    store_from_float(out.dq.data, offset(out.dq, span.batch, token, h) + i,
                     p.input, dq_sum);
  if (out.dk.data != nullptr)
    store_from_float(out.dk.data, offset(out.dk, span.batch, token, h) + i,
                     p.input, dk_sum);
}

/// Through the content gate, one block for each (sequence, value head): adds
/// this segment's dx; at the window's first segment forms what every o of the
/// window before receives, and the window's share of dW_down and dW_up.
__global__ void gate_kernel(const __grid_constant__ arguments a,
                            std::int64_t segment, int blocks) {
  const problem& p = a.p;
  const int n = blockIdx.x / p.HV, hv = blockIdx.x % p.HV;
  const sequence_span span = span_of(p.cu_seqlens, p.T, n);
  const std::int64_t first = a.cut.begin(segment);
  const std::int64_t last =
      min(min(a.cut.begin(segment + 1), first + a.cut.length), span.length);
  if (first >= last) return;
  const std::int64_t c = segment / a.cut.parts;
  if (c == 0) return;  // m_0 = 0 whatever the parameters are
  const int row = row_floats(a.kpad);
  const std::int64_t head = std::int64_t(n) * p.HV + hv;
  const bool window_ends = last == span.length ||
                           segment % a.cut.parts + 1 == a.cut.parts ||
                           a.cut.begin(segment + 1) == (c + 1) * a.cut.window;

  extern __shared__ float gate_shared[];
  float* dx = gate_shared;  // K
  float* y = dx + p.K;      // rank: W_up^T dx
  float* z = y + p.rank;    // rank: W_down m
  for (int i = threadIdx.x; i < p.K; i += blockDim.x) {
    float sum = window_ends ? 0.0f : a.dx_sum[head * p.K + i];
    for (std::int64_t at = last - 1; at >= first; --at) {
      const std::int64_t token = span.first + at;
      sum += a.partial[(partial_row(a, n, span.batch, token,
                                    static_cast<int>(at - first)) *
                            p.HV +
                        hv) *
                           blocks * row +
                       2 * a.kpad + i];
    }
    a.dx_sum[head * p.K + i] = sum;
    dx[i] = sum;
  }
  if (segment % a.cut.parts != 0) return;
  __syncthreads();
  const float* down = p.w_down + std::int64_t(hv) * p.rank * p.V;
  const float* up = p.w_up + std::int64_t(hv) * p.K * p.rank;
  const float* m =
      a.mean +
      ((a.cut.slot(span.first, span.batch, p.T, n) / a.cut.parts + c) * p.HV +
       hv) *
          p.V;
  for (int r = threadIdx.x; r < p.rank; r += blockDim.x) {
    float sum = 0.0f;
    for (int i = 0; i < p.K; ++i) sum += up[i * p.rank + r] * dx[i];
    y[r] = sum;
    sum = 0.0f;
    for (int j = 0; j < p.V; ++j) sum += down[r * p.V + j] * m[j];
    z[r] = sum;
  }
  __syncthreads();
  float* d_down = a.d_gate + head * p.rank * (p.V + p.K);
  float* d_up = d_down + p.rank * p.V;
  for (int j = threadIdx.x; j < p.V; j += blockDim.x) {
    float sum = 0.0f;
    for (int r = 0; r < p.rank; ++r) sum += down[r * p.V + j] * y[r];
    a.d_mean[head * p.V + j] = sum / static_cast<float>(p.window);
  }
  for (int x = threadIdx.x; x < p.rank * p.V; x += blockDim.x)
    d_down[x] += y[x / p.V] * m[x % p.V];
  for (int x = threadIdx.x; x < p.K * p.rank; x += blockDim.x)
    d_up[x] += dx[x / p.rank] * z[x % p.rank];
}

/// Adds the content gate's parameter gradients over the sequences.
__global__ void gate_sum_kernel(const __grid_constant__ arguments a) {
  const problem& p = a.p;
  const int size = p.rank * (p.V + p.K), hv = blockIdx.x;
  for (int x = threadIdx.x; x < size; x += blockDim.x) {
    float sum = 0.0f;
    for (int n = 0; n < p.N; ++n)
      sum += a.d_gate[(std::int64_t(n) * p.HV + hv) * size + x];
    if (x < p.rank * p.V) {
      if (a.grad.d_w_down != nullptr)
        a.grad.d_w_down[std::int64_t(hv) * p.rank * p.V + x] = sum;
    } else if (a.grad.d_w_up != nullptr) {
      a.grad.d_w_up[std::int64_t(hv) * p.K * p.rank + x - p.rank * p.V] = sum;
    }
  }
}

arguments backward_arguments(const problem& p, void* workspace,
                             std::size_t* used) {
  arguments a = arguments_of(p);
  carver ws(workspace);
  const std::int64_t heads = std::int64_t(p.N) * p.HV;
  const std::int64_t tokens = std::int64_t(p.B) * p.T;
  const std::int64_t slots = a.cut.slots(tokens, p.N);
  a.checkpoint = ws.take(slots * p.HV * a.kpad * p.V);
  a.d_state = ws.take(heads * a.kpad * p.V);
  a.by_slot = std::int64_t(p.N) * a.cut.length <= tokens;
  const std::int64_t rows =
      a.by_slot ? std::int64_t(p.N) * a.cut.length : tokens;
  a.partial = ws.take(rows * p.HV * (p.V / block_columns) * row_floats(a.kpad));
  if (a.content) {
    a.state = ws.take(heads * p.K * p.V);
    a.mean = ws.take(slots / a.cut.parts * p.HV * p.V);
    a.gate_shift = ws.take(heads * p.K);
    a.dx_sum = ws.take(heads * p.K);
    a.d_mean = ws.take(heads * p.V);
    a.d_gate = ws.take(heads * p.rank * (p.V + p.K));
  }
  *used = ws.used();
  return a;
}

template <class T, int KPL>
status launch_backward(const arguments& a, CUstream_st* stream) {
  constexpr int TV = KPL == 8 ? 2 : 4;
  const problem& p = a.p;
  const int rank = a.content ? p.rank : 0;
  const std::size_t shared =
      sizeof(walk_memory<KPL, TV>) + rank * sizeof(float);
  const auto kernel = walk_kernel<T, KPL, TV>;
  CARVE_CUDA_TRY(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared)));
  const int blocks = p.V / block_columns;
  const dim3 walk_grid(p.N * p.HV, blocks);
  const dim3 reduce_grid(p.N * a.cut.length, p.H);
  for (std::int64_t s = std::max<std::int64_t>(a.cut.count(p.T), 1) - 1; s >= 0;
       --s) {
    kernel<<<walk_grid, block_columns / TV * 32, shared, stream>>>(a, s);
    reduce_kernel<<<reduce_grid, a.kpad, 0, stream>>>(a, s, blocks);
    if (rank != 0)
      gate_kernel<<<p.N * p.HV, 128, (p.K + 2 * rank) * sizeof(float),
                    stream>>>(a, s, blocks);
    CARVE_CUDA_TRY(cudaGetLastError());
  }
  if (rank != 0) {
    gate_sum_kernel<<<p.HV, 256, 0, stream>>>(a);
    CARVE_CUDA_TRY(cudaGetLastError());
  }
  return {};
}

template <class T>
status choose_keys(const arguments& a, CUstream_st* stream) {
  switch (key_lanes(a.p.K)) {
    case 2:
      return launch_backward<T, 2>(a, stream);
    case 4:
      return launch_backward<T, 4>(a, stream);
    default:
      return launch_backward<T, 8>(a, stream);
  }
}

status run_backward(const arguments& a, CUstream_st* stream) {
  switch (a.p.input) {
    case format::bf16:
      return choose_keys<__nv_bfloat16>(a, stream);
    case format::fp16:
      return choose_keys<__half>(a, stream);
    default:
      return choose_keys<float>(a, stream);
  }
}

}  // namespace
}  // namespace general

status backward_general_workspace(const problem& p, std::size_t* bytes) {
  general::backward_arguments(p, nullptr, bytes);
  return {};
}

status backward_general(const problem& p, const gradients& grad,
                        void* workspace, std::size_t bytes,
                        CUstream_st* stream) {
  std::size_t used = 0;
  general::arguments a = general::backward_arguments(p, workspace, &used);
  if (used > bytes)
    return {workspace_too_small,
            "workspace is smaller than backward_workspace"};
  a.grad = grad;
  if (a.content)
    CARVE_CUDA_TRY(cudaMemsetAsync(
        a.d_gate, 0,
        sizeof(float) * std::size_t(p.N) * p.HV * p.rank * (p.V + p.K),
        stream));
  if (const status s = general::run_forward(a, stream); !s) return s;
  return general::run_backward(a, stream);
}

}  // namespace carve::cuda
