// What does the backward of a full grid need of the forward pass, one decay a
// token: the state at each chunk's start, what each token writes before its
// gate, and T', written as the reverse walk (reverse.cuh) takes them.
//
// Chunks are prepared as for the forward (forward/prepare.cuh), beside V / 64
// warpgroups that walk.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/product.cuh"
#include "arch/shared.cuh"
#include "chunk/list.cuh"
#include "common.cuh"
#include "forward/memory.cuh"
#include "forward/roles.cuh"

namespace carve::cuda::full_backward {

using namespace arch;
using namespace chunks;
using forward_chunks::axis;
using forward_chunks::purpose;

/// A chunk of a head in the workspace: T' [t][s], x [t][v] in panels of 64
/// value channels, S^T [v][k] in tiles of 64 x 64.
template <int K, int V>
struct kept_chunk {
  tile inverse, x[V / 64], S[V / 64][K / 64];
};

template <int K, int V, axis Decay>
struct states_memory {
  static constexpr int walkers = V / 64, preparing = 2, stages = 3;
  static constexpr int groups = walkers + preparing;
  static constexpr int together = 1;
  static constexpr purpose made_for = purpose::states;
  using tiles = forward_chunks::chunk_tiles<K, axis::head, false>;
  using numbers_of = forward_chunks::gate_numbers;
  tiles blocks[stages];
  tile S[walkers][K / 64];
  tile v[walkers][2];  // of two chunks; x in its place
  forward_chunks::preparing_memory<K, Decay, false, false> own[preparing];
  numbers_of numbers[stages];
  std::uint64_t ready[stages], empty[stages];
};

/// One lane's place in the 16 rows of a warp and 16 columns of a tile that one
/// ldmatrix or stmatrix moves as a warpgroup's accumulator has them; for 16
/// columns more: ^ 32.
__device__ __forceinline__ std::uint32_t own_rows(int warp, int lane) {
  return swizzled(16 * warp + (lane & 15), lane >> 4);
}
/// The same where the warpgroup holds the transpose: 16 rows of the tile, and
/// columns 16 warp..; for 16 rows more: + 2048.
__device__ __forceinline__ std::uint32_t own_columns(int warp, int lane) {
  return swizzled((lane & 7) + 8 * (lane >> 4), 2 * warp + ((lane >> 3) & 1));
}
/// Byte offset of 16-column block j of own_rows in tiles side by side.
__device__ __forceinline__ std::uint32_t block_of(std::uint32_t own, int j) {
  return (own ^ ((j & 3) << 5)) + (j >> 2) * tile::bytes;
}

/// One warpgroup takes 64 value channels through all chunks.
template <class In, int K, int V, axis Decay>
__device__ __forceinline__ void walk_states(
    const problem& p, const sequence_span& span, int sequence, int head,
    shared<states_memory<K, V, Decay>> m, kept_chunk<K, V>* kept, int walker,
    int thread) {
  using memory = states_memory<K, V, Decay>;
  using tiles = typename memory::tiles;
  using numbers_of = typename memory::numbers_of;
  const int barrier = named::walk + walker;
  const int warp = __shfl_sync(~0u, thread / 32, 0), lane = thread % 32;
  const int i = lane >> 2, c = lane & 3, column = 64 * walker;
  const int length = static_cast<int>(span.length);
  const int chunks = (length + chunk - 1) / chunk;

  const int row = thread >> 3, piece = thread & 7;
  const In* v = static_cast<const In*>(p.v.data) +
                offset(p.v, span.batch, span.first + row, head) + column +
                piece * 8;
  const auto fetch_v = [&](int n) {
    const std::uint32_t to =
        m[&memory::v][walker][n & 1] + swizzled(row, piece);
    if (n < chunks) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool valid = n * chunk + row + 16 * j < length;
        copy_async_16(to + 2048 * j,
                      v + (valid ? 16 * j * p.v.token : -row * p.v.token),
                      valid);
      }
      v += chunk * p.v.token;
    }
    copy_async_commit();
  };

  // S^T: rows i and i + 8 of the warp's 16, columns 8j + 2c and + 1.
  float state[K / 2];
  if (p.initial_state != nullptr) {
    const float* from =
        p.initial_state +
        (static_cast<std::int64_t>(sequence) * p.HV + head) * K * V +
        2 * c * V + column + 16 * warp + i;
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        state[4 * j + e] = from[(8 * j + (e & 1)) * V + 8 * (e >> 1)];
  } else {
#pragma unroll
    for (int j = 0; j < K / 2; ++j) state[j] = 0;
  }
  fetch_v(0);

  const std::uint32_t lane_rows = own_rows(warp, lane);
  const std::uint32_t lane_columns = own_columns(warp, lane);
  const shared<tile[K / 64]> S = m[&memory::S][walker];
  ring<memory::stages> turn;  // of chunk n
#pragma unroll 1
  for (int n = 0; n < chunks; ++n, ++kept) {
    const shared<tiles> block = m[&memory::blocks][turn.stage];
    const shared<numbers_of> numbers = m[&memory::numbers][turn.stage];
    const shared<tile> v_tile = m[&memory::v][walker][n & 1];
    std::uint32_t operand[K / 4];
#pragma unroll
    for (int j = 0; j < K / 4; ++j)
      operand[j] = pack<__half>(state[2 * j], state[2 * j + 1]);
#pragma unroll
    for (int j = 0; j < K / 16; ++j)
      store_matrices(S + block_of(lane_rows, j),
                     {operand[4 * j], operand[4 * j + 1], operand[4 * j + 2],
                      operand[4 * j + 3]});
    fence_async_proxy();
    barrier_wait(m[&memory::ready][turn.stage], turn.phase);
    float u[32];
    product_fence();
    product_with_tiles<__half, K>(u, operand, block[&tiles::erase_keys]);
    product_commit();
    copy_async_wait<0>();
    // The x of the chunk before, whose place the next v takes, is read.
    if (thread == 0) bulk_store_read_wait();
    sync_group<group>(barrier);
    if (thread == 0) {
      bulk_store(kept->S[walker], S, sizeof(kept->S[walker]));
      if (walker == 0)
        bulk_store(&kept->inverse, block[&tiles::inverse], tile::bytes);
    }
    fetch_v(n + 1);
    product_wait<0>();
    pin(u);

    std::uint32_t rest[16];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const fragment x =
          load_matrices_transposed(v_tile + lane_columns + 2048 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 y = unpack<In>(x.r[e]);
        const int at = 8 * j + 4 * (e >> 1) + 2 * (e & 1);
        rest[4 * j + e] = pack<__half>(y.x - u[at], y.y - u[at + 1]);
      }
    }
    product_fence();
    product_with_tiles<__half, chunk>(u, rest, block[&tiles::inverse]);
    product_commit();
    if constexpr (Decay != axis::none) {
      const float all = load<float>(numbers[&numbers_of::after], 0);
#pragma unroll
      for (int j = 0; j < K / 2; ++j) state[j] *= all;
    }
    product_wait<0>();
    pin(u);
#pragma unroll
    for (int j = 0; j < 16; ++j) rest[j] = pack<__half>(u[2 * j], u[2 * j + 1]);
    product_fence();
    add_product_across<__half>(state, rest, block[&tiles::tail_keys]);
    product_commit();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      store_matrices_transposed(
          v_tile + lane_columns + 2048 * j,
          {rest[4 * j], rest[4 * j + 1], rest[4 * j + 2], rest[4 * j + 3]});
    fence_async_proxy();
    // S and T' are read: the stage and S may be overwritten.
    if (thread == 0) bulk_store_read_wait();
    sync_group<group>(barrier);
    if (thread == 0) bulk_store(&kept->x[walker], v_tile, tile::bytes);
    product_wait<0>();
    pin(state);
    barrier_arrive_warp(m[&memory::empty][turn.stage], lane);
    turn.advance();
  }
  copy_async_wait<0>();
  if (thread == 0) bulk_store_wait();
}

}  // namespace carve::cuda::full_backward
