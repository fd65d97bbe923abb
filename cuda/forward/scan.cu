// The forward of few heads and long sequences: a sequence is cut into pieces
// that are walked side by side, which is exact.
//
// Over a piece the state goes S -> A S + b.  In order:
// 1. state_kernel: b, the state at a piece's end when it begins with zero, and
//    A, where it ends when it begins with the unit matrix and nothing is
//    written; a cluster of a block for each, which form neither queries nor P
//    nor outputs.  The first piece begins with the sequence's own state and
//    needs no A, the last one neither.
// 2. combine_kernel: the states at the pieces' starts one after the other, in
//    fp32.
// 3. The forward of a full grid of all pieces from there (forward.cu).
//
// A rounding of A is the larger the more A amplifies, so a head of a sequence
// with an element of A above `largest_transfer` (no product of steps that
// contract has one) is walked in order after all, by the block of its first
// piece: slowly, and as near as without the cut.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "carve/cuda.hpp"
#include "common.cuh"
#include "forward/block.cuh"
#include "forward/memory.cuh"
#include "forward/pieces.cuh"
#include "forward/prepare.cuh"
#include "forward/roles.cuh"
#include "forward/walk.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

using namespace forward_chunks;

constexpr float largest_transfer = 4;

/// The states that pieces begin with, [N,pieces,HV,K,K], then the transfer
/// matrices of all but the first and last of each sequence,
/// [N,pieces-2,HV,K,K], and which heads of sequences are not cut, [N,HV].
struct scan_memory {
  int pieces;
  float* states;
  int* in_order;

  __host__ __device__ int start(int sequence, int piece) const {
    return sequence * pieces + piece;
  }
  __host__ __device__ int transfer(const problem& p, int sequence,
                                   int piece) const {
    return p.N * pieces + sequence * (pieces - 2) + piece - 1;
  }
};

template <class In, int K, axis Decay, axis Erase, axis Write>
using state_memory = walk_memory<K, K, Decay, Erase, Write, share::state>;

/// A cluster for each piece of a head but the last: the first of its blocks
/// walks to b, the second to A (of a first piece to no end), and each prepares
/// every other chunk for both.
template <class In, int K, axis Decay, axis Erase, axis Write>
__global__ void __launch_bounds__(
    group* state_memory<In, K, Decay, Erase, Write>::groups, 1)
    state_kernel(const __grid_constant__ problem p,
                 const __grid_constant__ outputs out, const scan_memory to) {
  using memory = state_memory<In, K, Decay, Erase, Write>;
  using registers = registers_of<memory>;
  const shared<memory> m = block_memory<memory>();
  const int rank = blockIdx.x % memory::together;
  int which = blockIdx.x / memory::together;
  const int head = which % p.HV;
  which /= p.HV;
  const int sequence = which / (to.pieces - 1);
  const int piece = which % (to.pieces - 1);
  endpoints states = {-1, to.start(sequence, piece + 1), rank == 1};
  if (rank == 1)
    states.end = piece == 0 ? -1 : to.transfer(p, sequence, piece);
  else if (piece == 0)
    states.begin = sequence;
  const sequence_span span =
      piece_of(span_of(p.cu_seqlens, p.T, sequence), piece, to.pieces);
  start_block(m, 1);
  sync_cluster();
  next_kernel_may_start();

  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (role < memory::walkers) {
    registers::grow();
    walk_chunks<In, K, K, Decay, Erase, Write, share::state>(
        p, out, span, states, head, 64 * role, m, role, thread);
  } else {
    registers::shrink();
    prepare_beside<In, K, Decay, Erase>(p, span, head, m,
                                        role - memory::walkers, rank, thread);
  }
  // Until then the other block sends chunks here and says what it is through
  // with.
  sync_cluster();
}

constexpr int combined_columns = 16;

/// A number as the sum of two of tf32, 22 of the 24 bits that fp32 has.
struct in_parts {
  std::uint32_t part[2];
  __device__ explicit in_parts(float x) {
    part[0] = __float_as_uint(x) & 0xFFFFE000;
    part[1] = __float_as_uint(x - __uint_as_float(part[0]));
  }
};

/// S_{i+1} = A_i S_i + b_i for 16 value channels of a head of a sequence, b_i
/// where S_{i+1} will stand; 16 rows a warp.  Products are of the parts of
/// their factors, all but that of both lower ones.
template <int K>
__global__ void __launch_bounds__(2 * K, 1)
    combine_kernel(const __grid_constant__ problem p, const scan_memory m) {
  constexpr int steps = K / 16, columns = combined_columns;
  next_kernel_may_start();
  await_kernel_before();
  // S_i and S_{i+1}: both parts, transposed, rows on different banks.
  __shared__ alignas(16) std::uint32_t state[2][2][columns][K + 16];
  const int head = blockIdx.y % p.HV, sequence = blockIdx.y / p.HV;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int i = lane >> 2, c = lane & 3;
  const auto matrix = [&](int slot) {
    return m.states + (std::int64_t{slot} * p.HV + head) * K * K;
  };
  // The thread's elements of a state: rows row and + 8, columns 8 j + 2 c and
  // + 1.
  const int row = 16 * warp + i;
  const auto at = [&](int r, int j) {
    return (row + 8 * r) * K + blockIdx.x * columns + 8 * j + 2 * c;
  };
  const auto keep = [&](int which, int r, int j, float2 x) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const in_parts s(e ? x.y : x.x);
#pragma unroll
      for (int part = 0; part < 2; ++part)
        state[which][part][8 * j + 2 * c + e][row + 8 * r] = s.part[part];
    }
  };
  const float* const initial =
      p.initial_state == nullptr
          ? nullptr
          : p.initial_state + (std::int64_t{sequence} * p.HV + head) * K * K;
  float* const first = matrix(m.start(sequence, 0));
  const float* const second = matrix(m.start(sequence, 1));
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 x = make_float2(0, 0);
      if (initial != nullptr)
        x = *reinterpret_cast<const float2*>(initial + at(r, j));
      *reinterpret_cast<float2*>(first + at(r, j)) = x;
      keep(1, r, j, *reinterpret_cast<const float2*>(second + at(r, j)));
    }

  // Of the next matrix, rows row and + 8: columns 16 t + 4 c to + 3, which the
  // products take for c and c + 4 of eight, two and two.
  float4 ahead[steps][2];
  const auto fetch = [&](int piece) {
    if (piece >= m.pieces - 1) return;
    const float* from = matrix(m.transfer(p, sequence, piece)) + row * K;
#pragma unroll
    for (int t = 0; t < steps; ++t)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        ahead[t][r] =
            *reinterpret_cast<const float4*>(from + 8 * r * K + 16 * t + 4 * c);
  };
  float largest = 0;
  fetch(1);
  __syncthreads();
  for (int piece = 1; piece < m.pieces - 1; ++piece) {
    float4 a[steps][2];
#pragma unroll
    for (int t = 0; t < steps; ++t)
#pragma unroll
      for (int r = 0; r < 2; ++r) a[t][r] = ahead[t][r];
    fetch(piece + 1);
    float* const next = matrix(m.start(sequence, piece + 1));
    float2 written[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        written[r][j] = *reinterpret_cast<const float2*>(next + at(r, j));

    float sum[3][2][4] = {};  // upper by upper, by lower, lower by upper parts
    uint4 s[2][2];            // columns 8 j + i, parts, of the state
    const auto read = [&](int t) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int part = 0; part < 2; ++part)
          s[j][part] = *reinterpret_cast<const uint4*>(
              &state[piece & 1][part][8 * j + i][16 * t + 4 * c]);
    };
    read(0);
#pragma unroll
    for (int t = 0; t < steps; ++t) {
      std::uint32_t x[2][2][4];  // pair of columns, part
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float y[4] = {a[t][r].x, a[t][r].y, a[t][r].z, a[t][r].w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          largest = max_nan(largest, fabsf(y[e]));
          const in_parts of(y[e]);
#pragma unroll
          for (int part = 0; part < 2; ++part)
            x[e >> 1][part][2 * (e & 1) + r] = of.part[part];
        }
      }
      const uint4 now[2][2] = {{s[0][0], s[0][1]}, {s[1][0], s[1][1]}};
      if (t + 1 < steps) read(t + 1);
        // Successive products are of different sums.
#pragma unroll
      for (int pair = 0; pair < 2; ++pair)
#pragma unroll
        for (int which = 0; which < 3; ++which)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const uint4& y = now[j][which == 1];
            multiply_tf32(sum[which][j], x[pair][which == 2],
                          pair == 0 ? y.x : y.z, pair == 0 ? y.y : y.w);
          }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const auto total = [&](int e) {
          return (sum[1][j][2 * r + e] + sum[2][j][2 * r + e]) +
                 sum[0][j][2 * r + e];
        };
        const float2 x =
            make_float2(written[r][j].x + total(0), written[r][j].y + total(1));
        *reinterpret_cast<float2*>(next + at(r, j)) = x;
        keep(~piece & 1, r, j, x);
      }
    __syncthreads();
  }
  const int any = __syncthreads_or(!(largest <= largest_transfer));
  if (blockIdx.x == 0 && threadIdx.x == 0)
    m.in_order[sequence * p.HV + head] = any;
}

// ---- host ----

/// Microseconds that kernels take for a chunk, and beside: of the forward in
/// order with few heads, of that of a full grid and of the walk to A and b.
/// Measured on an H200, K = V = 128, in cuda/NOTES.md.
struct costs {
  double in_order, full, state;
};
constexpr costs of_one_decay = {1.15, 3.5, 1.7},
                of_channels = {1.25, 5.3, 2.95};
constexpr double in_order_beside = 16, full_beside = 12, state_beside = 8;
constexpr double combine_beside = 4, combine_piece = 2.1;

/// How many pieces a sequence is cut into, 1 for none: those that should take
/// the least, if that is a tenth less than the forward in order.
int pieces_of(const problem& p) {
  const int heads = p.N * p.HV;
  if (p.T == 0 || heads == 0 || heads > 16) return 1;
  const int processors = processors_of_device();
  const costs& c =
      info(p.family).decay == carve::axis::key ? of_channels : of_one_decay;
  const auto over = [](int x, int y) { return (x + y - 1) / y; };
  const int chunks =
      over(static_cast<int>(std::int64_t{p.B} * p.T / p.N), chunk);
  double least = 0.9 * (in_order_beside + chunks * c.in_order);
  int best = 1;
  for (int n = 2; n <= processors / heads && n <= chunks; ++n) {
    const int length = over(chunks, n);
    const int waves = over(2 * (n - 1) * heads, processors);
    const double all = length * (c.full + waves * c.state) + full_beside +
                       state_beside + combine_beside + (n - 2) * combine_piece;
    if (all < least) least = all, best = n;
  }
  return best;
}

/// Places the parts in a workspace, and says how long it must be.
scan_memory place(const problem& p, int pieces, void* workspace,
                  std::size_t* bytes) {
  const std::int64_t states = std::int64_t{p.N} * (2 * pieces - 2) * p.HV;
  const std::int64_t flags = states * p.K * p.V * 4;
  *bytes = static_cast<std::size_t>(flags + std::int64_t{p.N} * p.HV * 4);
  char* const at = static_cast<char*>(workspace);
  return {pieces, reinterpret_cast<float*>(at),
          reinterpret_cast<int*>(at + flags)};
}

template <class In, int K, axis Decay, axis Erase, axis Write>
status launch_states(const problem& p, const scan_memory& m,
                     CUstream_st* stream) {
  using memory = state_memory<In, K, Decay, Erase, Write>;
  static_assert(sizeof(memory) <= 232448);
  outputs out;
  out.final_state = m.states;
  const int heads = p.N * p.HV;
  const status s = launch_kernel(
      state_kernel<In, K, Decay, Erase, Write>,
      dim3(memory::together * heads * (m.pieces - 1)), group * memory::groups,
      sizeof(memory), stream, clusters_of(memory::together), p, out, m);
  if (!s) return s;
  return launch_kernel(combine_kernel<K>, dim3(K / combined_columns, heads),
                       2 * K, 0, stream, beside_the_last(true), p, m);
}

status scan(const problem& p, const outputs& out, void* workspace, int pieces,
            CUstream_st* stream) {
  std::size_t bytes = 0;
  const scan_memory m = place(p, pieces, workspace, &bytes);
  const status s =
      with_kind(p,
                [&](auto in, auto K, auto V, auto decay, auto erase,
                    auto write) -> status {
                  if constexpr (K == 128 && V == 128 && erase != axis::content)
                    return launch_states<typename decltype(in)::type, K, decay,
                                         erase, write>(p, m, stream);
                  return {unsupported,
                          "forward_scan: a content gate, or not 128 channels"};
                });
  if (!s) return s;
  problem from_starts = p;
  from_starts.initial_state = m.states;
  return forward_pieces(from_starts, out, {pieces, m.in_order}, stream);
}

}  // namespace

bool forward_scan_supports(const problem& p) {
  return forward_hopper_supports(p) && !info(p.family).content_gate &&
         p.K == 128 && p.V == 128 && pieces_of(p) > 1;
}

status forward_scan_workspace(const problem& p, std::size_t* bytes) {
  place(p, pieces_of(p), nullptr, bytes);
  return {};
}

status forward_scan(const problem& p, const outputs& out, void* workspace,
                    std::size_t bytes, CUstream_st* stream) {
  std::size_t needed = 0;
  forward_scan_workspace(p, &needed);
  if (bytes < needed || workspace == nullptr)
    return {workspace_too_small, "forward_scan: workspace too small"};
  const tensor& o = out.o;
  if (reinterpret_cast<std::uintptr_t>(o.data) % 16 != 0 ||
      (o.batch | o.token | o.head) % 8 != 0)
    return {bad_argument, "forward_scan: o must be aligned to 16 bytes"};
  return scan(p, out, workspace, pieces_of(p), stream);
}

}  // namespace carve::cuda
