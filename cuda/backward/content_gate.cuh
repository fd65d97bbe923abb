// The content gate's own kernels in CARVE's backward: where the logits of each
// window are moved to, and the gradients of W_down and W_up.
#pragma once

#include "backward/parts.cuh"

namespace carve::cuda::backward_chunks {

/// Whether chunk `index` is the first of a window that is not a sequence's
/// first, and where the mean that its gate follows stands.
struct window_entry {
  bool moved;
  std::int64_t mean;
};
__device__ __forceinline__ window_entry window_at(const arguments& a,
                                                  const chunk_entry& c,
                                                  int index, int head) {
  const int inside = index - a.first_chunk[c.sequence];
  const std::int64_t first =
      static_cast<std::int64_t>(c.batch) * a.p.T + c.first - inside * chunk;
  const std::int64_t slot =
      window_slot(a.p, first, c.sequence) + inside / (a.p.window / chunk);
  return {inside > 0 && inside % (a.p.window / chunk) == 0,
          (slot * a.p.HV + head) * a.p.V};
}

__device__ __forceinline__ const float* means_of(const arguments& a) {
  return a.d.window_means ? a.d.window_means : a.mean;
}

/// The shifts of the logits of the window that begins with a chunk, a block for
/// each chunk and head.
template <int K, int V>
__global__ void __launch_bounds__(128)
    move_windows(const __grid_constant__ arguments a) {
  const problem& p = a.p;
  const int head = blockIdx.x % p.HV, index = blockIdx.x / p.HV;
  const chunk_entry c = a.table[index];
  if (c.length < 0 || window_of(a, index, c.sequence) != index) return;
  const std::int64_t at = static_cast<std::int64_t>(index) * p.HV + head;
  const window_entry window = window_at(a, c, index, head);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  if (!window.moved) {
    if (tid < K) a.shift[at * K + tid] = 0.f;
    return;
  }
  __shared__ float inner[128];
  constexpr int pieces = V / 4;
  const float4 m =
      reinterpret_cast<const float4*>(means_of(a) + window.mean)[lane % pieces];
  for (int r = warp; r < p.rank; r += 4) {
    const float4 w = reinterpret_cast<const float4*>(
        p.w_down +
        (static_cast<std::int64_t>(head) * p.rank + r) * V)[lane % pieces];
    float sum = w.x * m.x + w.y * m.y + w.z * m.z + w.w * m.w;
#pragma unroll
    for (int step = 1; step < pieces; step *= 2)
      sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) {
      inner[r] = sum;
      a.inner[at * p.rank + r] = sum;
    }
  }
  __syncthreads();
  if (tid >= K) return;
  const float4* const row = reinterpret_cast<const float4*>(
      p.w_up + (static_cast<std::int64_t>(head) * K + tid) * p.rank);
  float sum = 0.f;
  for (int r = 0; r < p.rank; r += 4) {
    const float4 w = row[r / 4];
    sum += w.x * inner[r] + w.y * inner[r + 1] + w.z * inner[r + 2] +
           w.w * inner[r + 3];
  }
  a.shift[at * K + tid] = sum;
}

/// Chunks and ranks that a block of `sum_gate` takes.
constexpr int gate_chunks = 32, gate_ranks = 16;

/// Sums over windows: (what the shifts receive) (W_down m)^T, and (W_up^T
/// times that) m^T; a block for a piece of the chunks, a head and some ranks, a
/// thread a key or a value channel.
template <int K, int V>
__global__ void __launch_bounds__(K + V)
    sum_gate(const __grid_constant__ arguments a) {
  const problem& p = a.p;
  const int head = blockIdx.y, first_rank = blockIdx.z * gate_ranks;
  const int tid = threadIdx.x, begin = blockIdx.x * gate_chunks;
  __shared__ std::int64_t means[gate_chunks];
  __shared__ int windows[gate_chunks];
  __shared__ int count;
  if (tid < 32) {
    int found = 0;
    for (int half = 0; half < gate_chunks; half += 32) {
      const int index = begin + half + tid;
      window_entry window = {false, 0};
      if (half + tid < gate_chunks && index < a.most_chunks) {
        const chunk_entry c = a.table[index];
        if (c.length >= 0) window = window_at(a, c, index, head);
      }
      const unsigned all = __ballot_sync(~0u, window.moved);
      const int to = found + __popc(all & ((1u << tid) - 1));
      if (window.moved) windows[to] = index, means[to] = window.mean;
      found += __popc(all);
    }
    if (tid == 0) count = found;
  }
  __syncthreads();
  float sum[gate_ranks] = {};
#pragma unroll 8
  for (int n = 0; n < count; ++n) {
    const std::int64_t at = static_cast<std::int64_t>(windows[n]) * p.HV + head;
    const float mine =
        tid < K ? a.d_shift[at * K + tid] : means_of(a)[means[n] + tid - K];
    const float* const other =
        (tid < K ? a.inner : a.d_inner) + at * p.rank + first_rank;
#pragma unroll
    for (int r = 0; r < gate_ranks; r += 4) {
      if (first_rank + r >= p.rank) break;
      float x[4];
      read4(x, other + r);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[r + j] += mine * x[j];
    }
  }
  float* const to =
      a.d_gate +
      ((static_cast<std::int64_t>(blockIdx.x) * p.HV + head) * p.rank +
       first_rank) *
          (K + V) +
      tid;
#pragma unroll
  for (int r = 0; r < gate_ranks; ++r)
    if (first_rank + r < p.rank) to[r * (K + V)] = sum[r];
}

/// Adds the pieces, in their order; a block for a head and a rank.
template <int K, int V>
__global__ void __launch_bounds__(K + V)
    add_gate(const __grid_constant__ arguments a, int pieces) {
  const problem& p = a.p;
  const int head = blockIdx.x / p.rank, r = blockIdx.x % p.rank;
  const int tid = threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(p.HV) * p.rank * (K + V);
  const float* from =
      a.d_gate + static_cast<std::int64_t>(blockIdx.x) * (K + V) + tid;
  float sum = 0.f;
#pragma unroll 4
  for (int n = 0; n < pieces; ++n) sum += from[n * step];
  if (tid < K) {
    if (a.d.d_w_up)
      a.d.d_w_up[(static_cast<std::int64_t>(head) * K + tid) * p.rank + r] =
          sum;
  } else if (a.d.d_w_down) {
    a.d.d_w_down[(static_cast<std::int64_t>(head) * p.rank + r) * V + tid - K] =
        sum;
  }
}

}  // namespace carve::cuda::backward_chunks
