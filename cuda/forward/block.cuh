// How does a block that walks begin: its shared memory, its barriers, the
// registers of its roles?  And which template arguments has a problem?
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/shared.cuh"
#include "common.cuh"
#include "forward/memory.cuh"
#include "gates.cuh"

namespace carve::cuda::forward_chunks {

extern __shared__ __align__(1024) char dynamic_shared[];

/// The tiles of the tensor cores need a boundary of 1024 bytes.
template <class Memory>
__device__ __forceinline__ shared<Memory> block_memory() {
  const std::uint32_t address = shared_address(dynamic_shared);
  if (address % 1024 != 0) __trap();
  return {address};
}

/// Makes the barriers of a walking block, before any of its threads waits.
template <class Memory>
__device__ __forceinline__ void start_block(shared<Memory> m,
                                            int arrivals_to_be_ready) {
  constexpr int walkers = Memory::walkers;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int j = 0; j < Memory::stages; ++j) {
      barrier_init(m[&Memory::ready][j], arrivals_to_be_ready);
      barrier_init(m[&Memory::empty][j], 4 * walkers * Memory::together);
    }
    if constexpr (Memory::content) {
      using gate = typename Memory::gate_waits;
      const shared<gate> b = m[&Memory::gate_barriers];
      for (int j = 0; j < Memory::stages; ++j) {
        if (Memory::narrow) barrier_init(b[&gate::keyed][j], 1);
        barrier_init(b[&gate::erased][j], 4 * walkers);
      }
      barrier_init(b[&gate::logits], Memory::narrow ? 1 : group);
      barrier_init(b[&gate::taken], 2 * group / 32);
      for (int j = 0; j < 2; ++j) {
        barrier_init(b[&gate::known][j], 1);
        if (Memory::narrow)
          barrier_expect(b[&gate::known][j], Memory::window_bytes);
      }
    }
  }
  fence_async_proxy();
  __syncthreads();
}

/// Registers of a thread: the walkers' grow at the others' cost, where ptxas
/// would have to give all the same and too few.
template <class Memory>
struct registers_of {
  static constexpr int groups = Memory::groups;
  static constexpr bool two = Memory::walkers == 2;
  __device__ static void grow() {
    if constexpr (groups == 3) grow_registers<two ? 176 : 216>();
    if constexpr (groups == 4)
      grow_registers<!two ? 216 : Memory::reads ? 176 : 160>();
  }
  __device__ static void shrink() {
    if constexpr (groups == 3) shrink_registers<two ? 152 : 144>();
    if constexpr (groups == 4)
      shrink_registers<two && Memory::reads ? 80 : 96>();
  }
};

// ---- host ----

/// Blocks come in clusters of so many.
inline cudaLaunchAttribute clusters_of(int blocks) {
  cudaLaunchAttribute x = {};
  x.id = cudaLaunchAttributeClusterDimension;
  x.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  return x;
}
/// The kernel may begin before the one before has ended.
inline cudaLaunchAttribute beside_the_last(bool may) {
  cudaLaunchAttribute x = {};
  x.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  x.val.programmaticStreamSerializationAllowed = may;
  return x;
}

/// Launches a kernel whose blocks take `bytes` of shared memory.
template <class... Parameters, class... Arguments>
status launch_kernel(void (*kernel)(Parameters...), dim3 blocks, int threads,
                     int bytes, CUstream_st* stream,
                     cudaLaunchAttribute attribute,
                     const Arguments&... arguments) {
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cudaLaunchConfig_t launch = {};
  launch.gridDim = blocks;
  launch.blockDim = dim3(threads);
  launch.dynamicSmemBytes = bytes;
  launch.stream = stream;
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  CARVE_CUDA_TRY(cudaLaunchKernelEx(&launch, kernel, arguments...));
  return {};
}

/// Multiprocessors of the device; where there is none, as when only the size of
/// a workspace is asked for, those of an H100 or H200.
inline int processors_of_device() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess) {
    cudaGetLastError();  // or the next launch would be blamed for it
    return 132;
  }
  return count;
}

/// A template argument handed on as a value.
template <class T>
struct type_of {
  using type = T;
};
template <auto X>
using constant = std::integral_constant<decltype(X), X>;

/// Calls run(type of elements, K, V, decay, erase, write) for a problem that
/// forward_hopper_supports.
template <class Run>
status with_kind(const problem& p, Run&& run) {
  const auto gates = [&](auto in, auto K, auto V) {
    const family_info& f = info(p.family);
    constexpr constant<axis::none> none;
    constexpr constant<axis::head> head;
    constexpr constant<axis::channel> channel;
    if (f.content_gate)
      return run(in, K, V, channel, constant<axis::content>{}, head);
    if (f.erase == carve::axis::key)
      return run(in, K, V, channel, channel, channel);
    if (f.decay == carve::axis::key) return run(in, K, V, channel, head, head);
    return f.decay == carve::axis::head ? run(in, K, V, head, head, head)
                                        : run(in, K, V, none, head, head);
  };
  const auto shape = [&](auto in) {
    constexpr constant<64> small;
    constexpr constant<128> large;
    if (p.K == 128)
      return p.V == 128 ? gates(in, large, large) : gates(in, large, small);
    return p.V == 128 ? gates(in, small, large) : gates(in, small, small);
  };
  return p.input == format::fp16 ? shape(type_of<__half>{})
                                 : shape(type_of<__nv_bfloat16>{});
}

}  // namespace carve::cuda::forward_chunks
