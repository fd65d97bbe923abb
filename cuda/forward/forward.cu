// The forward pass on Hopper's tensor cores, for families with key-axis erase
// in chunks of 64 tokens.
//
// A chunk is first *prepared* by one warpgroup, which needs no state
// (prepare.cuh).  The *walk* then takes the state through the chunks
// in order (walk.cuh), with
//   U = T (w*v - (b*k*e^G) S),  O = scale ((q*e^G) S + P U),
//   S <- e^{G_C} S + (k*e^{G_C - G})^T U.
//
// With many sequences and heads both run side by side in one block
// (fused_kernel).  With few, some blocks walk, each a head or half of its value
// channels, and others prepare chunks for them, through global memory
// (split_kernel).  With a content gate (family carve) what the gate touches is
// done between the two (gate.cuh); the halves of a head are a cluster.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "carve/cuda.hpp"
#include "chunk/list.cuh"
#include "common.cuh"
#include "forward/gate.cuh"
#include "forward/memory.cuh"
#include "forward/prepare.cuh"
#include "forward/roles.cuh"
#include "forward/walk.cuh"
#include "gates.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

using namespace forward_chunks;

extern __shared__ __align__(1024) char dynamic_shared[];

/// The tiles of the tensor cores need a boundary of 1024 bytes.
template <class Memory>
__device__ __forceinline__ shared<Memory> block_memory() {
  const std::uint32_t address = shared_address(dynamic_shared);
  if (address % 1024 != 0) __trap();
  return {address};
}

constexpr int round_up(int x, int to) { return (x + to - 1) / to * to; }

/// Makes the barriers of a walking block, before any of its threads waits.
template <class Memory>
__device__ __forceinline__ void start_block(shared<Memory> m,
                                            int arrivals_to_be_ready) {
  constexpr int walkers = Memory::walkers;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int j = 0; j < Memory::stages; ++j) {
      barrier_init(m[&Memory::ready][j], arrivals_to_be_ready);
      barrier_init(m[&Memory::empty][j], 4 * walkers);
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
template <int Walkers, int Groups>
struct registers_of {
  __device__ static void grow() {
    if constexpr (Groups > 2) grow_registers<Walkers == 2 ? 176 : 216>();
  }
  __device__ static void shrink() {
    if constexpr (Groups == 3) shrink_registers<Walkers == 2 ? 152 : 144>();
    if constexpr (Groups == 4) shrink_registers<Walkers == 2 ? 80 : 96>();
  }
};

/// All roles in one block: V / 64 walking warpgroups, one or two that prepare
/// and, with a content gate, one that gates.
template <class In, int K, int V, axis Decay, axis Erase, axis Write>
__global__ void __launch_bounds__(
    group* walk_memory<K, V, Decay, Erase, Write, share::all>::groups, 1)
    fused_kernel(const __grid_constant__ problem p,
                 const __grid_constant__ outputs out) {
  using memory = walk_memory<K, V, Decay, Erase, Write, share::all>;
  using registers = registers_of<memory::walkers, memory::groups>;
  const shared<memory> m = block_memory<memory>();
  const int sequence = blockIdx.x / p.HV, head = blockIdx.x % p.HV;
  const sequence_span span = span_of(p.cu_seqlens, p.T, sequence);
  start_block(m, group);

  // Broadcast, so that the compiler knows the branch to be uniform.
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (role < memory::walkers) {
    registers::grow();
    walk_chunks<In, K, V, Decay, Erase, Write, share::all>(
        p, out, span, sequence, head, 64 * role, m, role, thread);
    return;
  }
  registers::shrink();
  if constexpr (memory::content) {
    if (role > memory::walkers) {
      gate_chunks<In, K, V>(p, span, head, m, 0,
                            means_of(p, out, span, sequence, head), thread);
      return;
    }
  }
  prepare_beside<In, K, Decay, Erase>(p, span, head, m, role - memory::walkers,
                                      thread);
}

/// A block when walking and preparing are apart: one that walks, or some
/// preparing warpgroups.
template <int K, int V, axis Decay, axis Erase, axis Write, share Share>
struct split_block {
  using walk = walk_memory<K, V, Decay, Erase, Write, Share>;
  using prepare = preparer_memory<K, Decay, Erase>;
  static constexpr int groups = walk::groups;
  static constexpr int bytes =
      std::max(prepare::count * sizeof(prepare), sizeof(walk));
};

/// The first `walkers` blocks each walk a head of a sequence, or, narrow, 64
/// value channels of one; with a content gate, which looks at all of them,
/// those of a head are a cluster.  Each of the others prepares chunks in two
/// warpgroups, `lanes` warpgroups to a head, earliest chunks first, and raises
/// a flag for each.
template <class In, int K, int V, axis Decay, axis Erase, axis Write,
          share Share>
__global__ void __launch_bounds__(
    group* split_block<K, V, Decay, Erase, Write, Share>::groups, 1)
    split_kernel(const __grid_constant__ problem p,
                 const __grid_constant__ outputs out,
                 const __grid_constant__ handover there, int walkers,
                 int lanes) {
  using walk = walk_memory<K, V, Decay, Erase, Write, Share>;
  // The blocks of a head are a cluster.
  constexpr bool together = walk::narrow && walk::content;
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (static_cast<int>(blockIdx.x) >= walkers) {
    using memory = preparer_memory<K, Decay, Erase>;
    const int preparer = (blockIdx.x - walkers) * memory::count + role;
    if (role < memory::count && preparer < lanes * p.HV)
      prepare_for_others<In, K, Decay, Erase, together>(
          p, there, preparer % p.HV, preparer / p.HV, lanes,
          block_memory<memory[memory::count]>()[role], named::prepare + role,
          thread);
    return;
  }
  const shared<walk> m = block_memory<walk>();
  constexpr int parts = walk::narrow ? V / 64 : 1;
  const int column = blockIdx.x % parts * 64 + role * 64;
  const int which = blockIdx.x / parts;
  const int sequence = which / p.HV, head = which % p.HV;
  const sequence_span span = span_of(p.cu_seqlens, p.T, sequence);
  start_block(m, 1);
  if constexpr (together) sync_cluster();
  using registers = registers_of<walk::walkers, walk::groups>;
  if (role < walk::walkers) {
    registers::grow();
    walk_chunks<In, K, V, Decay, Erase, Write, Share>(
        p, out, span, sequence, head, column, m, role, thread);
    // The others' sums come until they are through.
    if constexpr (together) sync_cluster();
    return;
  }
  registers::shrink();
  const chunk_loader<walk> loader(m, p, there, sequence, head);
  if constexpr (together) {
    if (role < 3)
      gate_chunks<In, K, V>(p, span, head, m, role - 1, nullptr, thread);
    else
      // Of the cluster's blocks the first keeps the means.
      lead_chunks<In, K, V>(p, span, head, m, loader,
                            blockIdx.x % parts == 0
                                ? means_of(p, out, span, sequence, head)
                                : nullptr,
                            thread);
    sync_cluster();
  } else {
    if constexpr (walk::content)
      if (role > walk::walkers) {
        gate_chunks<In, K, V>(p, span, head, m, 0,
                              means_of(p, out, span, sequence, head), thread);
        return;
      }
    if (thread == 0) loader.load_all(span.length);
  }
}

// ---- host ----

/// Few sequences and heads leave most of the chip idle unless the chunks are
/// prepared apart, and very few unless the value channels are split as well.
/// (One decay a token is prepared fast enough not to need the former alone.)
share share_of(const problem& p) {
  const int heads = p.T > 0 ? p.N * p.HV : 65;
  if (heads * p.V / 64 <= 64) return share::narrow;
  const bool channels = info(p.family).decay == carve::axis::key;
  return channels && heads <= 64 ? share::wide : share::all;
}

/// Bytes of a prepared chunk.
template <int K>
int bytes_of(const problem& p) {
  const family_info& f = info(p.family);
  if (f.content_gate) return prepared<K, axis::content>::bytes;
  if (f.erase == carve::axis::key) return prepared<K, axis::channel>::bytes;
  return prepared<K, axis::head>::bytes;
}

/// Bytes of the flags that follow the prepared chunks.
std::size_t flag_bytes(const problem& p) {
  return static_cast<std::size_t>(slots_of(p)) * p.HV * sizeof(int);
}

/// Launches a split kernel, or says in `launched` that it does not fit.
template <class In, int K, int V, axis Decay, axis Erase, axis Write,
          share Share>
status launch_split(const problem& p, const outputs& out, char* workspace,
                    CUstream_st* stream, bool* launched) {
  using layout = split_block<K, V, Decay, Erase, Write, Share>;
  constexpr bool narrow = Share == share::narrow;
  constexpr int cluster = narrow && Erase == axis::content ? V / 64 : 1;
  int device = 0, processors = 0;
  CARVE_CUDA_TRY(cudaGetDevice(&device));
  CARVE_CUDA_TRY(cudaDeviceGetAttribute(
      &processors, cudaDevAttrMultiProcessorCount, device));
  // Walkers wait for preparers and fill a multiprocessor each, so some must be
  // left over; of a cluster two in one of the eight parts of the chip.
  const int walkers = p.N * p.HV * (narrow ? V / 64 : 1);
  const int others = processors - walkers;
  // More preparers than the walkers need get in their way.
  constexpr int enough = Erase == axis::content ? 6 : 7;
  const int lanes =
      std::min(layout::prepare::count * others / p.HV, enough * p.N);
  if (lanes < 1 || (cluster > 1 && others <= 8 + cluster)) return {};
  *launched = true;
  const int slots = static_cast<int>(slots_of(p));
  int* flags =
      reinterpret_cast<int*>(workspace + static_cast<std::size_t>(slots) *
                                             p.HV * prepared<K, Erase>::bytes);
  CARVE_CUDA_TRY(cudaMemsetAsync(flags, 0, flag_bytes(p), stream));
  auto kernel = split_kernel<In, K, V, Decay, Erase, Write, Share>;
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, layout::bytes));
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeClusterDimension;
  together.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t launch = {};
  const int blocks =
      (lanes * p.HV + layout::prepare::count - 1) / layout::prepare::count;
  launch.gridDim = dim3(round_up(walkers + blocks, cluster));
  launch.blockDim = dim3(group * layout::groups);
  launch.dynamicSmemBytes = layout::bytes;
  launch.stream = stream;
  launch.attrs = &together;
  launch.numAttrs = 1;
  CARVE_CUDA_TRY(cudaLaunchKernelEx(&launch, kernel, p, out,
                                    handover{workspace, flags, slots}, walkers,
                                    lanes));
  return {};
}

template <class In, int K, int V, axis Decay, axis Erase, axis Write>
status launch(const problem& p, const outputs& out, char* workspace,
              CUstream_st* stream) {
  bool launched = false;
  status s;
  if (share_of(p) == share::narrow)
    s = launch_split<In, K, V, Decay, Erase, Write, share::narrow>(
        p, out, workspace, stream, &launched);
  if constexpr (V > 64 && Decay == axis::channel)
    if (share_of(p) == share::wide)
      s = launch_split<In, K, V, Decay, Erase, Write, share::wide>(
          p, out, workspace, stream, &launched);
  if (launched || !s) return s;
  auto kernel = fused_kernel<In, K, V, Decay, Erase, Write>;
  using shape = walk_memory<K, V, Decay, Erase, Write, share::all>;
  constexpr int bytes = sizeof(shape);
  static_assert(bytes <= 232448);
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<p.N * p.HV, group * shape::groups, bytes, stream>>>(p, out);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

// Axes as template arguments.
template <axis Axis>
using along = std::integral_constant<axis, Axis>;
constexpr along<axis::none> none;
constexpr along<axis::head> head;
constexpr along<axis::channel> channel;
constexpr along<axis::content> content;

template <class In, int K, int V>
status launch_gates(const problem& p, const outputs& out, char* workspace,
                    CUstream_st* stream) {
  const family_info& f = info(p.family);
  const auto run = [&](auto decay, auto erase, auto write) {
    return launch<In, K, V, decay.value, erase.value, write.value>(
        p, out, workspace, stream);
  };
  // What forward_hopper_supports lets through, told apart by its gates.
  if (f.content_gate) return run(channel, content, head);
  if (f.erase == carve::axis::key) return run(channel, channel, channel);
  if (f.decay == carve::axis::key) return run(channel, head, head);
  return f.decay == carve::axis::head ? run(head, head, head)
                                      : run(none, head, head);
}

template <class In>
status launch_shape(const problem& p, const outputs& out, char* workspace,
                    CUstream_st* stream) {
  if (p.K == 128 && p.V == 128)
    return launch_gates<In, 128, 128>(p, out, workspace, stream);
  if (p.K == 128 && p.V == 64)
    return launch_gates<In, 128, 64>(p, out, workspace, stream);
  if (p.K == 64 && p.V == 128)
    return launch_gates<In, 64, 128>(p, out, workspace, stream);
  if (p.K == 64 && p.V == 64)
    return launch_gates<In, 64, 64>(p, out, workspace, stream);
  return {unsupported, "forward_hopper: K or V without a kernel"};
}

bool aligned16(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}
/// Rows must start on 16 bytes for the wide copies.
bool aligned(const tensor& x, int element_bytes) {
  const int step = 16 / element_bytes;
  return aligned16(x.data) && x.batch % step == 0 && x.token % step == 0 &&
         x.head % step == 0;
}

}  // namespace

bool forward_hopper_supports(const problem& p) {
  const family_info& f = info(p.family);
  const auto fits = [](int n) { return n == 64 || n == 128; };
  if (f.erase == carve::axis::value || !fits(p.K) || !fits(p.V)) return false;
  if (p.input == format::fp32 || p.read_before) return false;
  // A gate that changes inside a chunk would need chunks of its own.
  if (f.content_gate &&
      (p.window <= 0 || p.window % chunk != 0 || p.rank <= 0 ||
       p.rank > largest_rank || p.rank % 4 != 0 || !aligned16(p.w_down) ||
       !aligned16(p.w_up)))
    return false;
  if (f.decay != carve::axis::none && p.decay_format != format::fp32)
    return false;
  return aligned(p.q, 2) && aligned(p.k, 2) && aligned(p.v, 2) &&
         (f.decay != carve::axis::key || aligned(p.g, 4)) &&
         (f.erase != carve::axis::key || aligned(p.b, 2)) &&
         (f.write != carve::axis::value || aligned(p.w, 2));
}

status forward_hopper_workspace(const problem& p, std::size_t* bytes) {
  *bytes = 0;
  if (share_of(p) != share::all) {
    *bytes = static_cast<std::size_t>(slots_of(p)) * p.HV *
                 (p.K == 64 ? bytes_of<64>(p) : bytes_of<128>(p)) +
             flag_bytes(p);
  }
  return {};
}

status forward_hopper(const problem& p, const outputs& out, void* workspace,
                      std::size_t bytes, CUstream_st* stream) {
  std::size_t needed = 0;
  forward_hopper_workspace(p, &needed);
  if (bytes < needed)
    return {workspace_too_small, "forward_hopper: workspace too small"};
  if (!aligned(out.o, 2))
    return {bad_argument, "forward_hopper: o must be aligned to 16 bytes"};
  if (!aligned16(workspace) || (needed > 0 && workspace == nullptr))
    return {bad_argument, "forward_hopper: workspace null or misaligned"};
  if (p.N == 0 || p.HV == 0) return {};
  char* const ws = static_cast<char*>(workspace);
  if (p.input == format::fp16) return launch_shape<__half>(p, out, ws, stream);
  return launch_shape<__nv_bfloat16>(p, out, ws, stream);
}

}  // namespace carve::cuda
