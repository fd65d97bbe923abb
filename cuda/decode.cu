// One token for many sequences: a pass over the state at memory speed.
//
// A block owns a stripe of value columns of one (sequence, value head) and
// holds it in registers, sixteen bytes a load.  Every load of the block, of
// gates as of state, is issued before the first use: gates that a family
// lacks are read from a place that exists and replaced by one, so that no
// branch makes a load wait for another.  Both read-outs come from the same
// pass as the erased value, S_t^T q = (diag(a) S)^T q + u (k . q), so the
// state is touched once.
#include "common.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

/// How far ahead states are asked for: 4 MiB of states of 64 KiB did best on
/// an H200, 16 MiB did harm.
[[maybe_unused]] constexpr int states_ahead = 66;

struct decode_arguments {
  problem p;
  gates gate;
  tensor o;
  float* state;
};

struct key_factors {
  float decay, key, erase, query;  // a, k, a*r, a*q (or q)
};

/// LANES threads cover a row's stripe, four columns each; ROWS rows a thread.
/// T is the format of the inputs, G that of the decay.
template <class T, class G, int LANES, int ROWS, int THREADS>
__global__ void __launch_bounds__(THREADS)
    decode_kernel(const __grid_constant__ decode_arguments args) {
  constexpr int groups = THREADS / LANES, warps = THREADS / 32;
  constexpr int columns = 4 * LANES;
  constexpr int per_thread = (groups * ROWS + THREADS - 1) / THREADS;
  const problem& p = args.p;
  // Stripes of one state run side by side: together they read whole rows.
  const int stripes = p.V / columns;
  const int stripe = blockIdx.x % stripes, x = blockIdx.x / stripes;
  const int n = x / p.HV, hv = x % p.HV;
  const int h = hv / (p.HV / p.H);
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int column = stripe * columns + 4 * lane;
  const std::int64_t head = static_cast<std::int64_t>(n) * p.HV + hv;

  const T* q_row = static_cast<const T*>(p.q.data) + offset(p.q, n, 0, h);
  const T* k_row = static_cast<const T*>(p.k.data) + offset(p.k, n, 0, h);
  const T* v_row = static_cast<const T*>(p.v.data) + offset(p.v, n, 0, hv);
  const G* g_row = args.gate.g.row<G>(n, 0, hv);
  const T* b_row = args.gate.b.row<T>(n, 0, hv);
  const T* w_row = args.gate.w.row<T>(n, 0, hv);
  const T* e_row = args.gate.e.row<T>(n, 0, hv);

  T q[per_thread], k[per_thread], b[per_thread], v[4], w[4], e[4];
  G g[per_thread];
#pragma unroll
  for (int m = 0; m < per_thread; ++m) {
    const int i = min(threadIdx.x + m * THREADS, p.K - 1);
    q[m] = q_row[i];
    k[m] = k_row[i];
    g[m] = g_row[i * args.gate.g.step];
    b[m] = b_row[i * args.gate.b.step];
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    v[j] = v_row[column + j];
    w[j] = w_row[(column + j) * args.gate.w.step];
    e[j] = e_row[(column + j) * args.gate.e.step];
  }
  float4* state =
      reinterpret_cast<float4*>(args.state + head * p.K * p.V + column) +
      group * (p.V / 4);
  const int stride = groups * (p.V / 4);
#if __CUDA_ARCH__ >= 900
  // A share of a state some blocks ahead starts towards the second level.
  if (threadIdx.x == 0 && x + states_ahead < p.N * p.HV) {
    const int share = p.K * columns * 4;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(
                     reinterpret_cast<const char*>(
                         args.state + (head + states_ahead) * p.K * p.V) +
                     stripe * share),
                 "r"(share));
  }
#endif
  float4 S[ROWS];
#pragma unroll
  for (int m = 0; m < ROWS; ++m)
    S[m] =
        group + m * groups < p.K ? state[m * stride] : make_float4(0, 0, 0, 0);

  __shared__ key_factors keys[groups * ROWS];
  __shared__ float query_key[warps];
  __shared__ float4 erased[warps][LANES], read[warps][LANES];

  float dot = 0.0f;
#pragma unroll
  for (int m = 0; m < per_thread; ++m) {
    const int i = threadIdx.x + m * THREADS;
    const bool in = i < p.K;
    const float qi = in ? to_float(q[m]) : 0.0f;
    const float ki = in ? to_float(k[m]) : 0.0f;
    const float a = args.gate.g.present ? expf(to_float(g[m])) : 1.0f;
    const float r = args.gate.b.present ? to_float(b[m]) * ki : ki;
    if (i < groups * ROWS)
      keys[i] = {a, ki, a * r, p.read_before ? qi : a * qi};
    dot += qi * ki;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, d);
  if (threadIdx.x % 32 == 0) query_key[threadIdx.x / 32] = dot;
  __syncthreads();

  float c[4] = {}, o[4] = {};
#pragma unroll
  for (int m = 0; m < ROWS; ++m) {
    const key_factors f = keys[group + m * groups];
    const float s[4] = {S[m].x, S[m].y, S[m].z, S[m].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      c[j] += f.erase * s[j];
      o[j] += f.query * s[j];
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int d = 16; d >= LANES; d /= 2) {
      c[j] += __shfl_xor_sync(0xffffffffu, c[j], d);
      o[j] += __shfl_xor_sync(0xffffffffu, o[j], d);
    }
  if (threadIdx.x % 32 < LANES) {
    erased[threadIdx.x / 32][lane] = make_float4(c[0], c[1], c[2], c[3]);
    read[threadIdx.x / 32][lane] = make_float4(o[0], o[1], o[2], o[3]);
  }
  __syncthreads();
  float4 sum = erased[0][lane];
#pragma unroll
  for (int other = 1; other < warps; ++other) {
    const float4 y = erased[other][lane];
    sum.x += y.x;
    sum.y += y.y;
    sum.z += y.z;
    sum.w += y.w;
  }
  const float total[4] = {sum.x, sum.y, sum.z, sum.w};
  float u[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    u[j] = to_float(w[j]) * to_float(v[j]) -
           (args.gate.e.present ? to_float(e[j]) * total[j] : total[j]);
#pragma unroll
  for (int m = 0; m < ROWS; ++m) {
    const float a = keys[group + m * groups].decay;
    const float ki = keys[group + m * groups].key;
    S[m].x = a * S[m].x + ki * u[0];
    S[m].y = a * S[m].y + ki * u[1];
    S[m].z = a * S[m].z + ki * u[2];
    S[m].w = a * S[m].w + ki * u[3];
    if (group + m * groups < p.K) __stcs(state + m * stride, S[m]);
  }
  if (threadIdx.x >= LANES) return;
  sum = read[0][lane];
  float qk = query_key[0];
#pragma unroll
  for (int other = 1; other < warps; ++other) {
    const float4 y = read[other][lane];
    sum.x += y.x;
    sum.y += y.y;
    sum.z += y.z;
    sum.w += y.w;
    qk += query_key[other];
  }
  if (p.read_before) qk = 0.0f;
  const float out[4] = {sum.x + u[0] * qk, sum.y + u[1] * qk, sum.z + u[2] * qk,
                        sum.w + u[3] * qk};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    store_from_float(args.o.data, offset(args.o, n, 0, hv) + column + j,
                     p.input, p.scale * out[j]);
}

template <class T, class G, int LANES, int ROWS, int THREADS>
status launch(const decode_arguments& a, CUstream_st* stream) {
  const int grid = a.p.N * a.p.HV * (a.p.V / (4 * LANES));
  decode_kernel<T, G, LANES, ROWS, THREADS><<<grid, THREADS, 0, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <class T, class G>
status choose_shape(const decode_arguments& a, CUstream_st* stream) {
  const problem& p = a.p;
  if (p.V % 64 != 0) return launch<T, G, 4, 8, 128>(a, stream);
  if (p.K <= 64) return launch<T, G, 16, 8, 128>(a, stream);
  if (p.K <= 128) return launch<T, G, 16, 16, 128>(a, stream);
  return launch<T, G, 16, 16, 256>(a, stream);
}

template <class T>
status choose_decay(const decode_arguments& a, CUstream_st* stream) {
  if (!a.gate.g.present) return choose_shape<T, T>(a, stream);
  switch (a.p.decay_format) {
    case format::bf16:
      return choose_shape<T, __nv_bfloat16>(a, stream);
    case format::fp16:
      return choose_shape<T, __half>(a, stream);
    default:
      return choose_shape<T, float>(a, stream);
  }
}

}  // namespace

status decode_step(const problem& p, const tensor& o, float* state,
                   CUstream_st* stream) {
  // Of whatever format an absent gate is taken to be, the state is aligned
  // for it.
  const decode_arguments a{p, gates_of(p, state), o, state};
  switch (p.input) {
    case format::bf16:
      return choose_decay<__nv_bfloat16>(a, stream);
    case format::fp16:
      return choose_decay<__half>(a, stream);
    default:
      return choose_decay<float>(a, stream);
  }
}

}  // namespace carve::cuda
