// The plain forward: token by token, fp32 state, every family and shape.
//
// A warp owns four value columns of one (sequence, value head); its lanes
// share the K keys of each column.  Columns never meet, save for the window
// mean of the content gate, where one block walks all of them window by
// window.
#include "plain/plain.cuh"

namespace carve::cuda {
namespace general {
namespace {

/// Shared memory of the forward: keys of eight tokens, and behind them w*v and
/// e of the block's columns, then the gate's inner values and mean.
template <int KPL, int TV>
std::size_t forward_shared(const arguments& a, int threads) {
  const int columns = threads / 32 * TV;
  const int floats = 2 * stage_tokens * columns + 32 * KPL +
                     (a.content ? a.p.rank + a.p.V : 0);
  return sizeof(staged_keys<KPL>) + floats * sizeof(float);
}

template <class T, int KPL, int TV>
__global__ void __launch_bounds__(512)
    forward_kernel(const __grid_constant__ arguments a) {
  constexpr int kpad = 32 * KPL;
  const problem& p = a.p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int columns = blockDim.x / 32 * TV;
  const int n = blockIdx.x / p.HV, hv = blockIdx.x % p.HV;
  const int h = hv / (p.HV / p.H);
  const sequence_span span = span_of(p.cu_seqlens, p.T, n);
  const bool content = a.content;

  extern __shared__ float4 shared_base[];
  auto& staged = reinterpret_cast<staged_keys<KPL>&>(shared_base);
  float* us = reinterpret_cast<float*>(&staged + 1);
  float* es = us + stage_tokens * columns;
  float* shift = es + stage_tokens * columns;
  float* inner = shift + kpad;
  float* mean = inner + (content ? p.rank : 0);

  const std::int64_t head_state =
      (static_cast<std::int64_t>(n) * p.HV + hv) * p.K * p.V;
  const std::int64_t slot0 = a.cut.slot(span.first, span.batch, p.T, n);
  // Checkpoints lie as the threads hold them: [slot][HV][V/TV][TV*KPL][32].
  const std::int64_t head_size = static_cast<std::int64_t>(kpad) * p.V;

  const std::int64_t window = content ? p.window : span.length;
  const int passes = content ? (p.V + columns - 1) / columns : 1;
  const std::int64_t windows =
      span.length == 0 ? 1 : (span.length + window - 1) / window;
  for (std::int64_t c = 0; c < windows; ++c) {
    const std::int64_t from = c * window;
    const std::int64_t to = min(from + window, span.length);
    if (content) {
      content_shift(p, hv, c == 0 ? nullptr : mean, inner, shift);
      __syncthreads();
    }
    for (int pass = 0; pass < passes; ++pass) {
      const int column0 = (pass * gridDim.y + blockIdx.y) * columns;
      const int column = column0 + warp * TV;
      const bool active = column < p.V;
      float S[TV][KPL];
      float o_sum[TV];
#pragma unroll
      for (int j = 0; j < TV; ++j) {
        o_sum[j] = 0.0f;
#pragma unroll
        for (int e = 0; e < KPL; ++e) {
          const int i = key_of<KPL>(lane, e);
          const float* source = c == 0 ? p.initial_state : a.state;
          S[j][e] =
              active && source != nullptr && i < p.K
                  ? source[head_state + std::int64_t(i) * p.V + column + j]
                  : 0.0f;
        }
      }
      for (std::int64_t t0 = from; t0 < to; t0 += stage_tokens) {
        const int nt =
            static_cast<int>(min(std::int64_t{stage_tokens}, to - t0));
        __syncthreads();
        const token_block at{span.batch, span.first + t0, h, hv, nt};
        stage_keys<T, KPL, true>(a, at, shift, staged);
        for (int x = threadIdx.x; x < nt * columns; x += blockDim.x) {
          const int t = x / columns, j = min(column0 + x % columns, p.V - 1);
          const T v = static_cast<const T*>(
              p.v.data)[offset(p.v, at.batch, at.token + t, hv) + j];
          const T w =
              a.gate.w.row<T>(at.batch, at.token + t, hv)[j * a.gate.w.step];
          const T e =
              a.gate.e.row<T>(at.batch, at.token + t, hv)[j * a.gate.e.step];
          us[x] = to_float(w) * to_float(v);
          es[x] = a.gate.e.present ? to_float(e) : 1.0f;
        }
        __syncthreads();
        if (!active) continue;
        for (int t = 0; t < nt; ++t) {
          const std::int64_t at = t0 + t;
          if (a.checkpoint != nullptr) {
            const std::int64_t in_window = at % a.cut.window;
            if (in_window % a.cut.length == 0) {
              const std::int64_t s =
                  at / a.cut.window * a.cut.parts + in_window / a.cut.length;
              float* to_slot = a.checkpoint +
                               ((slot0 + s) * p.HV + hv) * head_size +
                               std::int64_t(column) * kpad + lane;
#pragma unroll
              for (int j = 0; j < TV; ++j)
#pragma unroll
                for (int e = 0; e < KPL; ++e)
                  to_slot[(j * KPL + e) * 32] = S[j][e];
            }
          }
          float q[KPL], k[KPL], d[KPL], r[KPL], o[TV], u[TV];
          read_keys<KPL>(staged.query + t * kpad, lane, q);
          read_keys<KPL>(staged.key + t * kpad, lane, k);
          read_keys<KPL>(staged.decay + t * kpad, lane, d);
          read_keys<KPL>(staged.erase + t * kpad, lane, r);
          if (p.read_before) {
#pragma unroll
            for (int j = 0; j < TV; ++j) {
              o[j] = 0.0f;
#pragma unroll
              for (int e = 0; e < KPL; ++e) o[j] += S[j][e] * q[e];
            }
          }
#pragma unroll
          for (int j = 0; j < TV; ++j) {
            u[j] = 0.0f;
#pragma unroll
            for (int e = 0; e < KPL; ++e) {
              S[j][e] *= d[e];
              u[j] += S[j][e] * r[e];
            }
          }
          warp_sums<TV>(u, lane);
#pragma unroll
          for (int j = 0; j < TV; ++j) {
            const int x = t * columns + warp * TV + j;
            u[j] = us[x] - es[x] * u[j];
#pragma unroll
            for (int e = 0; e < KPL; ++e) S[j][e] += k[e] * u[j];
          }
          if (!p.read_before) {
#pragma unroll
            for (int j = 0; j < TV; ++j) {
              o[j] = 0.0f;
#pragma unroll
              for (int e = 0; e < KPL; ++e) o[j] += S[j][e] * q[e];
            }
          }
          warp_sums<TV>(o, lane);
          const std::int64_t token = span.first + at;
#pragma unroll
          for (int j = 0; j < TV; ++j) {
            o[j] *= p.scale;
            o_sum[j] += o[j];
            if (lane == j && a.out.o.data != nullptr)
              static_cast<T*>(
                  a.out.o.data)[offset(a.out.o, span.batch, token, hv) +
                                column + j] = from_float<T>(o[j]);
          }
        }
      }
      if (active) {
        float* target = c + 1 == windows ? a.out.final_state : a.state;
        if (target != nullptr) {
#pragma unroll
          for (int j = 0; j < TV; ++j)
#pragma unroll
            for (int e = 0; e < KPL; ++e) {
              const int i = key_of<KPL>(lane, e);
              if (i < p.K)
                target[head_state + std::int64_t(i) * p.V + column + j] =
                    S[j][e];
            }
        }
        if (content && lane == 0)
#pragma unroll
          for (int j = 0; j < TV; ++j)
            mean[column + j] = o_sum[j] / static_cast<float>(p.window);
      }
      __syncthreads();
    }
    if (content && a.mean != nullptr && c + 1 < windows) {
      float* to_mean =
          a.mean + ((slot0 / a.cut.parts + c + 1) * p.HV + hv) * p.V;
      for (int j = threadIdx.x; j < p.V; j += blockDim.x) to_mean[j] = mean[j];
    }
  }
}

arguments forward_arguments(const problem& p, void* workspace,
                            std::size_t* used) {
  arguments a = arguments_of(p);
  carver ws(workspace);
  if (a.content) a.state = ws.take(std::int64_t(p.N) * p.HV * p.K * p.V);
  *used = ws.used();
  return a;
}

template <class T, int KPL>
status launch_forward(const arguments& a, CUstream_st* stream) {
  constexpr int TV = 4;
  const problem& p = a.p;
  const bool content = a.content;
  const int threads = content ? std::min(512, (p.V + TV - 1) / TV * 32)
                              : block_columns / TV * 32;
  const std::size_t shared = forward_shared<KPL, TV>(a, threads);
  const auto kernel = forward_kernel<T, KPL, TV>;
  CARVE_CUDA_TRY(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared)));
  const dim3 grid(p.N * p.HV, content ? 1 : p.V / block_columns);
  kernel<<<grid, threads, shared, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <class T>
status choose_keys(const arguments& a, CUstream_st* stream) {
  switch (key_lanes(a.p.K)) {
    case 2:
      return launch_forward<T, 2>(a, stream);
    case 4:
      return launch_forward<T, 4>(a, stream);
    default:
      return launch_forward<T, 8>(a, stream);
  }
}

}  // namespace

status run_forward(const arguments& a, CUstream_st* stream) {
  switch (a.p.input) {
    case format::bf16:
      return choose_keys<__nv_bfloat16>(a, stream);
    case format::fp16:
      return choose_keys<__half>(a, stream);
    default:
      return choose_keys<float>(a, stream);
  }
}

}  // namespace general

status forward_general_workspace(const problem& p, std::size_t* bytes) {
  general::forward_arguments(p, nullptr, bytes);
  return {};
}

status forward_general(const problem& p, const outputs& out, void* workspace,
                       std::size_t bytes, CUstream_st* stream) {
  std::size_t used = 0;
  general::arguments a = general::forward_arguments(p, workspace, &used);
  if (used > bytes)
    return {workspace_too_small, "workspace is smaller than forward_workspace"};
  a.out = out;
  a.mean = out.window_means;
  return general::run_forward(a, stream);
}

}  // namespace carve::cuda
