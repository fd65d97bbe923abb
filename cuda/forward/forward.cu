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

/// Warpgroup `which` of those that gate the chunks of a head for the walkers,
/// in order: all put the gate on, the first makes z and T.  A single one leads
/// as well; two are led by `lead_chunks`.
template <class In, int K, int V, class Memory>
__device__ __forceinline__ void gate_chunks(const problem& p,
                                            sequence_span span, int head,
                                            shared<Memory> m, int which,
                                            int thread) {
  using tiles = chunk_tiles<K, axis::content>;
  using waits = typename Memory::gate_waits;
  constexpr int Groups = Memory::narrow ? 2 : 1;
  const shared<waits> b = m[&Memory::gate_barriers];
  using gate_type = content_gate<In, K, V, Groups>;
  constexpr bool leads = Groups == 1;
  constexpr int walkers = gate_type::walkers;
  constexpr int moved_threads = leads ? group : 3 * group;
  const int length = static_cast<int>(span.length);
  const bool first = leads || which == 0;
  gate_type gate;
  gate.start(p, span, head, m[&Memory::gate], which * group + thread);
  if (first) gate.clear(m[&Memory::blocks]);
  if constexpr (leads) {
    gate.clear_shifts();
    if (length > 0) gate.fetch(p, span, 0, b[&waits::logits]);
  }
  sync_group<moved_threads>(named::moved);
  int left = 1;  // tokens of the window
#pragma unroll 1
  for (int n = 0; n * chunk < length; ++n) {
    const int stage = n & 1;
    const shared<tiles> block = m[&Memory::blocks][stage];
    const shared<content_numbers> numbers = m[&Memory::numbers][stage];
    // That the erase keys and keys are there.
    const auto await_keys = [&] {
      barrier_wait(leads ? m[&Memory::ready][stage] : b[&waits::keyed][stage],
                   (n >> 1) & 1);
    };
    forget(gate.thread);
    forget(gate.lane);
    forget(gate.head);
    forget(span.first);
    // What does not need the mean, or the keys, is done before these are waited
    // for.
    const bool moves = left <= 0;
    if constexpr (!leads) await_keys();
    typename gate_type::weights weights = {};
    if (leads && moves) weights = gate.load_weights(p);
    barrier_wait(b[&waits::logits], n & 1);
    const auto pieces = gate.take(block, 0);
    if (moves) {
      if constexpr (leads) {
        sync_group<with_gate<walkers>>(named::known);
        gate.move(p, weights, 0);
      }
      sync_group<moved_threads>(named::moved);
    }
    if constexpr (leads) await_keys();
    if (left <= 0 || n == 0) left = p.window;
    left -= chunk;
    gate.apply(block, pieces, gate.current());
    fence_async_proxy();
    if (!first) {
      arrive_group<Groups * group>(named::gated);
      barrier_arrive_warp(b[&waits::taken], gate.lane);
      continue;
    }
    sync_group<Groups * group>(named::gated);
    if constexpr (!leads) {
      barrier_arrive_warp(b[&waits::taken], gate.lane);
    } else if ((n + 1) * chunk < length) {
      gate.fetch(p, span, (n + 1) * chunk, b[&waits::logits]);
    }
    constexpr int threads = with_gate<walkers>;
    float l[32];
    gate.couple(l, p, span, n * chunk, block, numbers,
                [&] { arrive_group<threads>(named::coupled + stage); });
    gate.make_inverse(l, block, numbers, stage);
    fence_async_proxy();
    arrive_group<threads>(named::inverted + stage);
  }
}

/// The warpgroup that leads two that gate for one walker: finds the shifts of
/// the logits; a thread of each of three warps calls `await(n)`, until chunk n
/// is prepared, and `load_keys(n)`, `load_rest(n)` or `load_logits(n)`, which
/// bring it.
template <class In, int K, int V, class Memory, class Await, class LoadKeys,
          class LoadRest, class LoadLogits>
__device__ __forceinline__ void lead_chunks(const problem& p,
                                            const sequence_span& span, int head,
                                            shared<Memory> m, int thread,
                                            Await&& await, LoadKeys&& load_keys,
                                            LoadRest&& load_rest,
                                            LoadLogits&& load_logits) {
  const int length = static_cast<int>(span.length);
  content_gate<In, K, V, 2> gate;
  gate.start(p, span, head, m[&Memory::gate], thread);
  gate.clear_shifts();
  sync_group<3 * group>(named::moved);
  // These wait for the chunk after the one they bring, so that none waits long.
  const auto load = [&](int n) {
    if (thread == 32) load_keys(n);
    if (thread == 64) load_logits(n);
    if (thread == 96) load_rest(n);
    if (thread % 32 == 0 && thread > 0 && (n + 1) * chunk < length)
      await(n + 1);
  };
  if (length > 0) {
    if (thread % 32 == 0 && thread > 0) await(0);
    load(0);
  }
  const auto weights = gate.load_weights(p);
  int left = 1, window = 0;  // tokens of the window, and whose sums come next
#pragma unroll 1
  for (int n = 0; n * chunk < length; ++n) {
    if (left <= 0) {
      const int which = window & 1;
      using waits = typename Memory::gate_waits;
      const shared<std::uint64_t> known =
          m[&Memory::gate_barriers][&waits::known][which];
      barrier_wait(known, (window >> 1) & 1);
      if (thread == 0) barrier_expect(known, Memory::window_bytes);
      gate.move(p, weights, which);
      arrive_group<3 * group>(named::moved);
      ++window;
    }
    if (left <= 0 || n == 0) left = p.window;
    left -= chunk;
    if ((n + 1) * chunk < length) load(n + 1);
  }
}

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
      gate_chunks<In, K, V>(p, span, head, m, 0, thread);
      return;
    }
  }
  const int length = static_cast<int>(span.length);
  constexpr int every = memory::preparing, stages = memory::stages;
  const int turn = role - memory::walkers;
  preparation<In, K, Decay, Erase, every> prepare;
  prepare.start(p, span, head, turn * chunk, m[&memory::own][turn],
                turn == 0 ? named::prepare : named::prepare_second, thread);
  auto next = prepare.fetch_scalars(p, turn * chunk);
  int fetched = turn;  // the chunk whose loads come next
  // Starts the loads of chunk n, if the walk is through with what was in its
  // place; `wait`: until it is.
  const auto fetch = [&](int n, bool wait) {
    if (fetched > n || n * chunk >= length) return;
    const int stage = n % stages;
    if (n >= stages) {
      const shared<std::uint64_t> empty = m[&memory::empty][stage];
      const int phase = (n / stages - 1) & 1;
      if (wait)
        barrier_wait(empty, phase);
      else if (!__all_sync(~0u, barrier_test(empty, phase)))
        return;
    }
    prepare.fetch(p, m[&memory::blocks][stage]);
    fetched += every;
  };
  fetch(turn, true);
#pragma unroll 1
  for (int n = turn; n * chunk < length; n += every) {
    const int stage = n % stages;
    const auto one = next;
    next = prepare.fetch_scalars(p, (n + every) * chunk);
    prepare.run(p, n * chunk, m[&memory::blocks][stage],
                m[&memory::numbers][stage], one, span, head,
                [&] { fetch(n + every, false); });
    fence_async_proxy();
    barrier_arrive(m[&memory::ready][stage]);
    fetch(n + every, true);
  }
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
                 const __grid_constant__ outputs out, char* workspace,
                 int* flags, int slots, int walkers, int lanes) {
  using part = prepared<K, Erase>;
  constexpr int numbers_end = sizeof(typename part::numbers);
  using tiles = typename part::tiles;
  using walk = walk_memory<K, V, Decay, Erase, Write, Share>;
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (static_cast<int>(blockIdx.x) < walkers) {
    const shared<walk> m = block_memory<walk>();
    constexpr int parts = walk::narrow ? V / 64 : 1;
    const int column = blockIdx.x % parts * 64 + role * 64;
    const int which = blockIdx.x / parts;
    const int sequence = which / p.HV, head = which % p.HV;
    const sequence_span span = span_of(p.cu_seqlens, p.T, sequence);
    constexpr bool together = walk::narrow && walk::content;
    start_block(m, 1);
    if constexpr (together) sync_cluster();
    using registers = registers_of<walk::walkers, walk::groups>;
    if (role < walk::walkers) {
      registers::grow();
      walk_chunks<In, K, V, Decay, Erase, Write, Share>(
          p, out, span, sequence, head, column, m, role, thread);
      // The others' sums come until they are through.
      if constexpr (together) sync_cluster();
    } else {
      registers::shrink();
      const std::int64_t first =
          static_cast<std::int64_t>(head) * slots + first_slot(p, sequence);
      // Brings parts of chunk n to a stage, by one thread.
      const auto await = [&](int n) {
        wait_flag(flags + first + n);
        fence_async_global();
      };
      const auto chunk_at = [&](int n) {
        return workspace + (first + n) * part::bytes;
      };
      struct range {
        int from, to;
      };
      const auto load_parts = [&](int n, int stage, range of_tiles,
                                  range of_numbers, std::uint32_t ready) {
        const auto bring = [&](std::uint32_t to, const char* from, range r) {
          bulk_load(to + r.from, from + r.from, r.to - r.from, ready);
        };
        barrier_expect(ready, of_tiles.to - of_tiles.from + of_numbers.to -
                                  of_numbers.from);
        bring(m[&walk::blocks][stage], chunk_at(n), of_tiles);
        bring(m[&walk::numbers][stage], chunk_at(n) + part::stored, of_numbers);
      };
      if constexpr (walk::content && !walk::narrow) {
        if (role > walk::walkers) {
          gate_chunks<In, K, V>(p, span, head, m, 0, thread);
          return;
        }
      }
      if constexpr (together) {
        using waits = typename walk::gate_waits;
        const shared<waits> b = m[&walk::gate_barriers];
        if (role < 3)
          gate_chunks<In, K, V>(p, span, head, m, role - 1, thread);
        else
          // Keys and erase keys come ahead of the rest.
          lead_chunks<In, K, V>(
              p, span, head, m, thread, await,
              [&](int n) {
                const int stage = n & 1, phase = ((n - 2) >> 1) & 1;
                if (n > 1) barrier_wait(b[&waits::erased][stage], phase);
                load_parts(n, stage, {0, part::keys_end},
                           {part::sums_end, numbers_end},
                           b[&waits::keyed][stage]);
              },
              [&](int n) {
                const int stage = n & 1, phase = ((n - 2) >> 1) & 1;
                if (n > 1) barrier_wait(m[&walk::empty][stage], phase);
                load_parts(n, stage, {part::keys_end, part::stored},
                           {0, part::sums_end}, m[&walk::ready][stage]);
              },
              [&](int n) {
                if (n > 0) barrier_wait(b[&waits::taken], (n - 1) & 1);
                barrier_expect(b[&waits::logits], part::keys_bytes);
                bulk_load(m[&walk::gate][&walk::gate_type::logits],
                          chunk_at(n) + part::logits, part::keys_bytes,
                          b[&waits::logits]);
              });
        sync_cluster();
        return;
      }
      if (thread != 0) return;
      ring<walk::stages> turn{0, 1};
      for (int n = 0; n * chunk < span.length; ++n) {
        const int stage = turn.stage;
        if (n >= walk::stages) barrier_wait(m[&walk::empty][stage], turn.phase);
        await(n);
        load_parts(n, stage, {0, part::stored}, {0, numbers_end},
                   m[&walk::ready][stage]);
        turn.advance();
      }
    }
    return;
  }
  using memory = preparer_memory<K, Decay, Erase>;
  const int preparer = (blockIdx.x - walkers) * memory::count + role;
  const int head = preparer % p.HV;
  if (role >= memory::count || preparer >= lanes * p.HV) return;
  const shared<memory> m = block_memory<memory[memory::count]>()[role];
  const shared<tiles> block = m[&memory::block];
  const int barrier = named::prepare + role;
  preparation<In, K, Decay, Erase> prepare;
  for (int i = preparer / p.HV; i < slots; i += lanes) {
    const chunk_turn now = find_turn(p, i);
    const int slot = first_slot(p, now.sequence) + now.chunk;
    const sequence_span span = span_of(p.cu_seqlens, p.T, now.sequence);
    const int first = now.chunk * chunk;
    if (first >= span.length) continue;
    const std::int64_t index = static_cast<std::int64_t>(head) * slots + slot;
    char* const to = workspace + index * part::bytes;
    prepare.start(p, span, head, first, m[&memory::own], barrier, thread);
    prepare.fetch(p, block);
    if constexpr (walk::content && walk::narrow)
      copy_logits<K>(p, span, head, first, to + part::logits, thread);
    const auto one = prepare.fetch_scalars(p, first);
    prepare.run(p, first, block, m[&memory::numbers], one, span, head, [] {});
    fence_async_proxy();
    sync_group<group>(barrier);
    if (thread == 0) {
      bulk_store(to, block, part::stored);
      bulk_store(to + part::stored, m[&memory::numbers], numbers_end);
      bulk_store_wait();
      fence_async_global();
      raise_flag(flags + index);
    }
    sync_group<group>(barrier);
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
  CARVE_CUDA_TRY(cudaLaunchKernelEx(&launch, kernel, p, out, workspace, flags,
                                    slots, walkers, lanes));
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
