// One token for many sequences: a pass over the state at memory speed.
//
// A block owns a stripe of value columns of one (sequence, value head) and
// holds it in registers, sixteen bytes a load.  Every load of the block, of
// gates as of state, is issued before the first use: gates that a family
// lacks are read from a place that exists and replaced by one, so that no
// branch makes a load wait for another.  Both read-outs come from the same
// pass as the erased value, S_t^T q = (diag(a) S)^T q + u (k . q), so the
// state is touched once.
//
// On Hopper a step may be launched while the kernel before it still runs
// (programmatic dependent launch): until that one has ended, the blocks only
// ask for states to be brought to the second level, which changes nothing.
#include "common.cuh"
#include "gates.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

/// How far ahead states are asked for: 4 MiB did best on an H200, 16 did harm.
[[maybe_unused]] constexpr int bytes_ahead = 4 << 20;

struct decode_arguments {
  float* state;
  int heads, value_heads, group;  // N*HV, HV, HV/H
  int K, V;
  tensor q, k, v, o;
  gates gate;
  float scale;
  bool read_before;
};

struct key_factors {
  float decay, key, erase, query;  // a, k, a*r, a*q (or q)
};
struct value_factors {
  float write, erase;  // w*v, e
};

/// A load that stays where it stands: of plain ones ptxas puts some behind the
/// first wait for others.
__device__ __forceinline__ float4 load_in_order(const float4* p) {
  float4 x;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(p));
  return x;
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void prefetch(const char* p, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p),
               "r"(bytes));
}
#endif

/// LANES threads cover a row's stripe, four columns each; ROWS rows a thread.
/// T is the format of the inputs, G that of the decay.  SQUARE: K and V are
/// the rows that the block covers, so that addresses are constants.
template <class T, class G, int LANES, int ROWS, int THREADS, bool SQUARE>
__global__ void __launch_bounds__(THREADS)
    decode_kernel(const __grid_constant__ decode_arguments args) {
  constexpr int groups = THREADS / LANES, warps = THREADS / 32;
  constexpr int columns = 4 * LANES, rows = groups * ROWS;
  constexpr int per_thread = (rows + THREADS - 1) / THREADS;
  static_assert(columns <= THREADS);
  const int K = SQUARE ? rows : args.K, V = SQUARE ? rows : args.V;
  // Stripes of one state run side by side: together they read whole rows.
  const unsigned stripes = V / columns;
  const unsigned stripe = blockIdx.x % stripes, x = blockIdx.x / stripes;
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  if (threadIdx.x == 0) {
    // The share of the bytes of a block some way ahead.
    const int share = K * columns * 4;
    const unsigned ahead = bytes_ahead / share;
    const char* from = reinterpret_cast<const char*>(args.state) +
                       static_cast<std::int64_t>(blockIdx.x) * share;
    if (blockIdx.x + ahead < gridDim.x)
      prefetch(from + static_cast<std::int64_t>(ahead) * share, share);
  }
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const int n = x / args.value_heads, hv = x % args.value_heads;
  const int h = hv / args.group;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int first = stripe * columns;

  const T* q_row = static_cast<const T*>(args.q.data) + offset(args.q, n, 0, h);
  const T* k_row = static_cast<const T*>(args.k.data) + offset(args.k, n, 0, h);
  const T* v_row =
      static_cast<const T*>(args.v.data) + offset(args.v, n, 0, hv);
  T* o_row = static_cast<T*>(args.o.data) + offset(args.o, n, 0, hv);
  const G* g_row = args.gate.g.row<G>(n, 0, hv);
  const T* b_row = args.gate.b.row<T>(n, 0, hv);
  const T* w_row = args.gate.w.row<T>(n, 0, hv);
  const T* e_row = args.gate.e.row<T>(n, 0, hv);

  T q[per_thread], k[per_thread], b[per_thread];
  G g[per_thread];
#pragma unroll
  for (int m = 0; m < per_thread; ++m) {
    const int i = min(static_cast<int>(threadIdx.x) + m * THREADS, K - 1);
    q[m] = q_row[i];
    k[m] = k_row[i];
    g[m] = g_row[i * args.gate.g.step];
    b[m] = b_row[i * args.gate.b.step];
  }
  const int j = first + min(static_cast<int>(threadIdx.x), columns - 1);
  const T v = v_row[j];
  const T w = w_row[j * args.gate.w.step];
  const T e = e_row[j * args.gate.e.step];
  float4* state = reinterpret_cast<float4*>(
                      args.state + static_cast<std::int64_t>(x) * K * V +
                      first + 4 * lane) +
                  group * (V / 4);
  const int stride = groups * (V / 4);
  const auto inside = [&](int m) { return SQUARE || group + m * groups < K; };
  float4 S[ROWS];
#pragma unroll
  for (int m = 0; m < ROWS; ++m)
    S[m] =
        inside(m) ? load_in_order(state + m * stride) : make_float4(0, 0, 0, 0);

  __shared__ key_factors keys[rows];
  __shared__ value_factors values[columns];
  __shared__ float query_key[warps];
  __shared__ float erased[warps][columns], read[warps][columns];

  float dot = 0.0f;
#pragma unroll
  for (int m = 0; m < per_thread; ++m) {
    const int i = threadIdx.x + m * THREADS;
    const float qi = i < K ? to_float(q[m]) : 0.0f;
    const float ki = i < K ? to_float(k[m]) : 0.0f;
    const float a = expf(args.gate.g.present ? to_float(g[m]) : 0.0f);
    const float r = (args.gate.b.present ? to_float(b[m]) : 1.0f) * ki;
    if (i < rows) keys[i] = {a, ki, a * r, args.read_before ? qi : a * qi};
    dot += qi * ki;
  }
  if (threadIdx.x < columns)
    values[threadIdx.x] = {to_float(w) * to_float(v),
                           args.gate.e.present ? to_float(e) : 1.0f};
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
    for (int i = 0; i < 4; ++i) {
      c[i] += f.erase * s[i];
      o[i] += f.query * s[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int d = 16; d >= LANES; d /= 2) {
      c[i] += __shfl_xor_sync(0xffffffffu, c[i], d);
      o[i] += __shfl_xor_sync(0xffffffffu, o[i], d);
    }
  if (threadIdx.x % 32 < LANES) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      erased[threadIdx.x / 32][4 * lane + i] = c[i];
      read[threadIdx.x / 32][4 * lane + i] = o[i];
    }
  }
  __syncthreads();
  // What the key writes to column i of the stripe.
  const auto update = [&](int i) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < warps; ++warp) total += erased[warp][i];
    return values[i].write - values[i].erase * total;
  };
  float u[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) u[i] = update(4 * lane + i);
#pragma unroll
  for (int m = 0; m < ROWS; ++m) {
    const float a = keys[group + m * groups].decay;
    const float ki = keys[group + m * groups].key;
    S[m].x = a * S[m].x + ki * u[0];
    S[m].y = a * S[m].y + ki * u[1];
    S[m].z = a * S[m].z + ki * u[2];
    S[m].w = a * S[m].w + ki * u[3];
    if (inside(m)) __stcs(state + m * stride, S[m]);
  }
  if (threadIdx.x >= columns) return;
  float sum = 0.0f, qk = 0.0f;
#pragma unroll
  for (int warp = 0; warp < warps; ++warp) {
    sum += read[warp][threadIdx.x];
    qk += query_key[warp];
  }
  if (!args.read_before) sum += update(threadIdx.x) * qk;
  o_row[j] = from_float<T>(args.scale * sum);
}

template <class T, class G, int LANES, int ROWS, int THREADS>
status launch(const decode_arguments& a, CUstream_st* stream) {
  constexpr int rows = THREADS / LANES * ROWS;
  auto kernel = decode_kernel<T, G, LANES, ROWS, THREADS, false>;
  if (a.K == rows && a.V == rows)
    kernel = decode_kernel<T, G, LANES, ROWS, THREADS, true>;
  int device = 0, major = 0;
  CARVE_CUDA_TRY(cudaGetDevice(&device));
  CARVE_CUDA_TRY(cudaDeviceGetAttribute(
      &major, cudaDevAttrComputeCapabilityMajor, device));
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(a.heads * (a.V / (4 * LANES)));
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  config.attrs = &overlap;
  // Only the code built for Hopper waits for the kernel before it; any other
  // device gets that for compute capability 8.0.
  config.numAttrs = major == 9 ? 1 : 0;
  CARVE_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, a));
  return {};
}

template <class T, class G>
status choose_shape(const decode_arguments& a, CUstream_st* stream) {
  if (a.V % 64 != 0) return launch<T, G, 4, 8, 128>(a, stream);
  if (a.K <= 64) return launch<T, G, 16, 8, 128>(a, stream);
  if (a.K <= 128) return launch<T, G, 16, 8, 256>(a, stream);
  return launch<T, G, 16, 16, 256>(a, stream);
}

template <class T>
status choose_decay(const decode_arguments& a, format decay,
                    CUstream_st* stream) {
  if (!a.gate.g.present) return choose_shape<T, T>(a, stream);
  switch (decay) {
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
  const decode_arguments a{
      .state = state,
      .heads = p.N * p.HV,
      .value_heads = p.HV,
      .group = p.HV / p.H,
      .K = p.K,
      .V = p.V,
      .q = p.q,
      .k = p.k,
      .v = p.v,
      .o = o,
      .gate = gates_of(p, state),
      .scale = p.scale,
      .read_before = p.read_before,
  };
  switch (p.input) {
    case format::bf16:
      return choose_decay<__nv_bfloat16>(a, p.decay_format, stream);
    case format::fp16:
      return choose_decay<__half>(a, p.decay_format, stream);
    default:
      return choose_decay<float>(a, p.decay_format, stream);
  }
}

}  // namespace carve::cuda
