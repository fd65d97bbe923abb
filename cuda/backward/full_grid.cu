// The backward of one decay a head (delta, gdn) where sequences and heads fill
// the device: a forward walk that keeps what is needed of each chunk
// (states.cuh), and a reverse walk that makes the gradients (reverse.cuh).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backward/reverse_keys.cuh"
#include "backward/reverse_queries.cuh"
#include "backward/reverse_walkers.cuh"
#include "backward/states.cuh"
#include "chunk/list.cuh"
#include "common.cuh"
#include "forward/block.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

using namespace full_backward;

using forward_chunks::block_memory;

/// What is kept of a head's sequence.
template <int K, int V>
__device__ __forceinline__ kept_chunk<K, V>* kept_of(const problem& p,
                                                     char* kept, int slots,
                                                     int sequence, int head) {
  return reinterpret_cast<kept_chunk<K, V>*>(kept) +
         static_cast<std::int64_t>(head) * slots + first_slot(p, sequence);
}

template <class In, int K, int V, axis Decay>
__global__ void __launch_bounds__(group* states_memory<K, V, Decay>::groups, 1)
    keep_states(const __grid_constant__ problem p, char* kept, int slots) {
  using memory = states_memory<K, V, Decay>;
  const shared<memory> m = block_memory<memory>();
  const int sequence = blockIdx.x / p.HV, head = blockIdx.x % p.HV;
  const sequence_span span = span_of(p.cu_seqlens, p.T, sequence);
  if (threadIdx.x == 0)
    for (int j = 0; j < memory::stages; ++j) {
      barrier_init(m[&memory::ready][j], group);
      barrier_init(m[&memory::empty][j], 4 * memory::walkers);
    }
  fence_async_proxy();
  __syncthreads();
  // Broadcast, so that the compiler knows the branch to be uniform.
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (role < memory::walkers) {
    if constexpr (memory::walkers == 2) grow_registers<176>();
    walk_states<In, K, V, Decay>(p, span, sequence, head, m,
                                 kept_of<K, V>(p, kept, slots, sequence, head),
                                 role, thread);
    return;
  }
  if constexpr (memory::walkers == 2) shrink_registers<80>();
  forward_chunks::prepare_beside<In, K, Decay, axis::head>(
      p, span, head, m, role - memory::walkers, 0, thread);
}

template <class In, int K, int V>
__global__ void __launch_bounds__(group* reverse_memory<K, V>::groups, 1)
    reverse_walk(const __grid_constant__ problem p,
                 const __grid_constant__ gradients d, char* kept, int slots) {
  using memory = reverse_memory<K, V>;
  const shared<memory> m = block_memory<memory>();
  const int sequence = blockIdx.x / p.HV, head = blockIdx.x % p.HV;
  const sequence_span span = span_of(p.cu_seqlens, p.T, sequence);
  if (threadIdx.x == 0) {
    constexpr int walk = memory::walking_warps, one = 4;
    barrier_init(m[&memory::x_full], 1);
    barrier_init(m[&memory::S_full], 1);
    barrier_init(m[&memory::inverse_full], 1);
    barrier_init(m[&memory::converted], walk);
    barrier_init(m[&memory::prepared], one);
    barrier_init(m[&memory::A_full], one);
    barrier_init(m[&memory::A_used], one);
    barrier_init(m[&memory::P_used], walk);
    barrier_init(m[&memory::x_used], walk + one);
    barrier_init(m[&memory::S_used], walk + one);
    barrier_init(m[&memory::tokens_used], walk + one);
    barrier_init(m[&memory::query_sums], one);
    barrier_init(m[&memory::state_summed], walk);
    barrier_init(m[&memory::dS_full], walk);
    barrier_init(m[&memory::dS_used], one);
    barrier_init(m[&memory::z_full], walk);
    barrier_init(m[&memory::z_used], walk + one);
  }
  fence_async_proxy();
  __syncthreads();
  // Broadcast, so that the compiler knows the branch to be uniform.
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (role < memory::walkers) {
    grow_registers<160>();
    walk_back<In, K, V>(p, d, span, sequence, head, m, role, thread);
  } else if (role == memory::walkers) {
    shrink_registers<96>();
    make_queries<In, K, V>(p, d, span, head, m, thread);
  } else {
    shrink_registers<96>();
    make_keys<In, K, V>(p, d, span, head, m,
                        kept_of<K, V>(p, kept, slots, sequence, head), thread);
  }
}

// ---- host ----

template <class Kernel>
status set_memory(Kernel kernel, int bytes) {
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return {};
}

template <class In, int K, int V, axis Decay>
status keep(const problem& p, char* kept, int slots, cudaStream_t stream) {
  using memory = states_memory<K, V, Decay>;
  static_assert(sizeof(memory) <= 232448);
  const auto kernel = keep_states<In, K, V, Decay>;
  if (const status s = set_memory(kernel, sizeof(memory)); !s) return s;
  kernel<<<p.N * p.HV, group * memory::groups, sizeof(memory), stream>>>(
      p, kept, slots);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <class In, int K, int V>
status launch(const problem& p, const gradients& d, char* kept,
              cudaStream_t stream) {
  using memory = reverse_memory<K, V>;
  static_assert(sizeof(memory) <= 232448);
  const int slots = static_cast<int>(slots_of(p));
  const status s = p.family == family::gdn
                       ? keep<In, K, V, axis::head>(p, kept, slots, stream)
                       : keep<In, K, V, axis::none>(p, kept, slots, stream);
  if (!s) return s;
  const auto kernel = reverse_walk<In, K, V>;
  if (const status t = set_memory(kernel, sizeof(memory)); !t) return t;
  kernel<<<p.N * p.HV, group * memory::groups, sizeof(memory), stream>>>(
      p, d, kept, slots);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

bool aligned(const tensor& x, std::int64_t elements, std::uintptr_t bytes) {
  return x.data == nullptr ||
         (reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0 &&
          x.batch % elements == 0 && x.token % elements == 0 &&
          x.head % elements == 0);
}

/// A block walks a head of a sequence, so at least half of what runs at once
/// must be there, or other kernels are faster.
bool fills_device(const problem& p) {
  int device = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                             device) != cudaSuccess)
    return false;
  const std::int64_t walks = static_cast<std::int64_t>(p.N) * p.HV;
  const std::int64_t waves = (walks + multiprocessors - 1) / multiprocessors;
  return 2 * walks >= waves * multiprocessors;
}

}  // namespace

bool backward_full_grid_shapes(const problem& p) {
  return (p.family == family::delta || p.family == family::gdn) &&
         p.HV == p.H && p.K == 128 && p.V == 128 && backward_hopper_supports(p);
}

bool backward_full_grid_supports(const problem& p) {
  return backward_full_grid_shapes(p) && fills_device(p);
}

status backward_full_grid_workspace(const problem& p, std::size_t* bytes) {
  *bytes = static_cast<std::size_t>(slots_of(p)) * p.HV *
           sizeof(kept_chunk<128, 128>);
  return {};
}

status backward_full_grid(const problem& p, const gradients& d, void* workspace,
                          std::size_t bytes, CUstream_st* stream) {
  if (!aligned(d.d_o, 8, 16) || !aligned(d.dq, 4, 8) || !aligned(d.dk, 4, 8) ||
      !aligned(d.dv, 8, 16))
    return {unsupported, "a gradient's rows are not aligned to 16 bytes"};
  std::size_t needed = 0;
  backward_full_grid_workspace(p, &needed);
  if (workspace == nullptr || bytes < needed)
    return {workspace_too_small, "workspace is smaller than asked for"};
  char* const kept = static_cast<char*>(workspace);
  return p.input == format::bf16
             ? launch<__nv_bfloat16, 128, 128>(p, d, kept, stream)
             : launch<__half, 128, 128>(p, d, kept, stream);
}

}  // namespace carve::cuda
