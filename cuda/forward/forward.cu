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
#include "forward/block.cuh"
#include "forward/gate.cuh"
#include "forward/memory.cuh"
#include "forward/pieces.cuh"
#include "forward/prepare.cuh"
#include "forward/roles.cuh"
#include "forward/walk.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

using namespace forward_chunks;

constexpr int round_up(int x, int to) { return (x + to - 1) / to * to; }

/// All roles in one block: V / 64 walking warpgroups, one or two that prepare
/// and, with a content gate, one that gates.
template <class In, int K, int V, axis Decay, axis Erase, axis Write>
__global__ void __launch_bounds__(
    group* walk_memory<K, V, Decay, Erase, Write, share::all>::groups, 1)
    fused_kernel(const __grid_constant__ problem p,
                 const __grid_constant__ outputs out, cut into) {
  using memory = walk_memory<K, V, Decay, Erase, Write, share::all>;
  using registers = registers_of<memory>;
  const shared<memory> m = block_memory<memory>();
  int sequence = blockIdx.x / p.HV;
  const int head = blockIdx.x % p.HV;
  endpoints states = {sequence, sequence};
  sequence_span span;
  if (into.pieces == 1) {
    span = span_of(p.cu_seqlens, p.T, sequence);
  } else {
    await_kernel_before();
    const int piece = sequence % into.pieces;
    sequence /= into.pieces;
    span = span_of(p.cu_seqlens, p.T, sequence);
    const bool in_order = into.in_order[sequence * p.HV + head] != 0;
    if (in_order && piece > 0) return;
    if (!in_order) span = piece_of(span, piece, into.pieces);
    states.end = in_order || piece == into.pieces - 1 ? sequence : -1;
  }
  start_block(m, group);

  // Broadcast, so that the compiler knows the branch to be uniform.
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (role < memory::walkers) {
    registers::grow();
    walk_chunks<In, K, V, Decay, Erase, Write, share::all>(
        p, out, span, states, head, 64 * role, m, role, thread);
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
                                      0, thread);
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
  using registers = registers_of<walk>;
  if (role < walk::walkers) {
    registers::grow();
    walk_chunks<In, K, V, Decay, Erase, Write, Share>(
        p, out, span, {sequence, sequence}, head, column, m, role, thread);
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
  const int processors = processors_of_device();
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
  const int blocks =
      (lanes * p.HV + layout::prepare::count - 1) / layout::prepare::count;
  return launch_kernel(split_kernel<In, K, V, Decay, Erase, Write, Share>,
                       dim3(round_up(walkers + blocks, cluster)),
                       group * layout::groups, layout::bytes, stream,
                       clusters_of(cluster), p, out,
                       handover{workspace, flags, slots}, walkers, lanes);
}

template <class In, int K, int V, axis Decay, axis Erase, axis Write>
status launch_fused(const problem& p, const outputs& out, const cut& into,
                    CUstream_st* stream) {
  using shape = walk_memory<K, V, Decay, Erase, Write, share::all>;
  static_assert(sizeof(shape) <= 232448);
  return launch_kernel(fused_kernel<In, K, V, Decay, Erase, Write>,
                       dim3(p.N * into.pieces * p.HV), group * shape::groups,
                       sizeof(shape), stream, beside_the_last(into.pieces > 1),
                       p, out, into);
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
  return launch_fused<In, K, V, Decay, Erase, Write>(p, out, {}, stream);
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
  return with_kind(
      p, [&](auto in, auto K, auto V, auto decay, auto erase, auto write) {
        return launch<typename decltype(in)::type, K, V, decay, erase, write>(
            p, out, static_cast<char*>(workspace), stream);
      });
}

status forward_chunks::forward_pieces(const problem& p, const outputs& out,
                                      const cut& into, CUstream_st* stream) {
  return with_kind(
      p,
      [&](auto in, auto K, auto V, auto decay, auto erase,
          auto write) -> status {
        if constexpr (K == V && erase != axis::content)
          return launch_fused<typename decltype(in)::type, K, V, decay, erase,
                              write>(p, out, into, stream);
        return {unsupported, "forward_pieces: a content gate, or K is not V"};
      });
}

}  // namespace carve::cuda
