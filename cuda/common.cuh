// Element conversions, warp sums and status texts that the kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "arch/number.cuh"
#include "carve/cuda.hpp"

/// Returns the failing CUDA call's own text as the status.
#define CARVE_CUDA_TRY(call)                                       \
  do {                                                             \
    const cudaError_t carve_err = (call);                          \
    if (carve_err != cudaSuccess)                                  \
      return ::carve::cuda::status{static_cast<int>(carve_err),    \
                                   cudaGetErrorString(carve_err)}; \
  } while (0)

namespace carve::cuda {

/// Status codes of this library; CUDA's own codes are below 10000.
enum : int {
  bad_argument = 10001,
  unsupported = 10002,
  workspace_too_small = 10003,
};

/// Element `i` of a tensor in format `f`, as fp32.
__device__ __forceinline__ float load_as_float(const void* p, std::int64_t i,
                                               format f) {
  if (f == format::bf16)
    return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
  if (f == format::fp16) return __half2float(static_cast<const __half*>(p)[i]);
  return static_cast<const float*>(p)[i];
}

/// Stores `x` as element `i`, rounded to nearest even.
__device__ __forceinline__ void store_from_float(void* p, std::int64_t i,
                                                 format f, float x) {
  if (f == format::bf16)
    static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(x);
  else if (f == format::fp16)
    static_cast<__half*>(p)[i] = __float2half_rn(x);
  else
    static_cast<float*>(p)[i] = x;
}

using arch::from_float;
using arch::to_float;

/// First token and length of sequence `n`, and the batch entry it lies in.
struct sequence_span {
  std::int64_t batch, first, length;
};

__device__ __forceinline__ sequence_span span_of(const std::int64_t* cu_seqlens,
                                                 int T, int n) {
  if (cu_seqlens == nullptr) return {n, 0, T};
  return {0, cu_seqlens[n], cu_seqlens[n + 1] - cu_seqlens[n]};
}

/// Where the means of sequence n's windows begin in outputs::window_means:
/// starts are never decreasing, so that those of two sequences never overlap.
/// `first`: tokens before the sequence, of all batch entries.
__host__ __device__ __forceinline__ std::int64_t window_slot(const problem& p,
                                                             std::int64_t first,
                                                             std::int64_t n) {
  return first / p.window + n;
}
inline std::int64_t window_slots(const problem& p) {
  return static_cast<std::int64_t>(p.B) * p.T / p.window + p.N;
}

/// Offset of channel 0 of (batch, token, head) in elements.
__device__ __forceinline__ std::int64_t offset(const tensor& x,
                                               std::int64_t batch,
                                               std::int64_t token,
                                               std::int64_t head) {
  return batch * x.batch + token * x.token + head * x.head;
}

}  // namespace carve::cuda
