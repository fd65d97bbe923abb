// The reverse walk of the backward of a full grid, one decay a token, which
// makes the gradients itself: one block a sequence and value head, from the
// last chunk to the first.
//
// With G the running sum of a chunk's log decays, D_ts = e^(G_t - G_s), S the
// state at its start and dS the cotangent of that at its end, x and T' as
// states.cuh leaves them (what token t writes is b_t x_t):
//   dU = P^T do + e^(G_C - G) k dS,  z = T'^T (b dU),
//   dS <- e^G_C dS + (scale q e^G)^T do - (k e^G)^T z,
// and with P = scale tril(D q k^T), A = scale tril(D do x^T) b,
// E = stril(D z x^T), F = -E b (b of the column's token):
//   dq = scale e^G do S^T + A k,  dv = z,
//   dk = e^(G_C - G) b x dS^T - e^G z S^T + A^T q + (F + F^T) k,
//   db_t = dU_t x_t - sum_s E_st (k_s k_t),
//   dg_t = sum_{t' >= t} h_t' + sum of all k (e^(G_C - G) b x dS^T)
//          + e^G_C sum(S dS),
// h being the sums of rows less those of columns of P (b do x^T) and F (k k^T),
// and what of q dq + k dk is due to the states, that of the end less.
//
// V / 64 warpgroups walk, holding dS^T, bring q, k and do and write dv; one
// makes P, A and dq, which need no cotangent of the state, a chunk ahead; one
// makes E, F and dk and brings what states.cuh left.  Operands are fp16.
// Cotangents carry a power of two that brings the largest met so far to 2..4;
// where a chunk has a larger one, dS changes its scale there.
//
// Here is what they share: their memory and sums over lanes; who does what is
// in reverse_walkers.cuh, reverse_queries.cuh and reverse_keys.cuh.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "backward/parts.cuh"
#include "backward/states.cuh"

namespace carve::cuda::full_backward {

using backward_chunks::scale_of;
using backward_chunks::store_row16;

/// What of a chunk is one number a token, and its scales: of the cotangents,
/// its inverse, and what dS is multiplied by to have it.
struct reverse_numbers {
  float bits[chunk];  // log2 of the decay from the chunk's start
  float beta[chunk];
  float scale, unscale, rescale, unused;
};

template <int K, int V>
struct reverse_memory {
  static constexpr int walkers = V / 64, groups = walkers + 2;
  static constexpr int walking_warps = 4 * walkers;
  struct token_tiles {
    tile q[K / 64], k[K / 64], d_o[V / 64];
  };
  token_tiles tokens[2];  // of chunks in turn
  tile x[V / 64];
  tile S[V / 64][K / 64];  // [v][k], as dS
  tile inverse;            // T', then F
  tile P, A;
  tile dS[V / 64][K / 64];
  tile z[V / 64];
  reverse_numbers numbers[2];
  // Sums over channels, then (but for the first) of warps: of the queries' part
  // the rows and the columns to be subtracted, of two chunks; dU x; the columns
  // of E (k k^T), of two chunks; the keys' part, and what of it is due to the
  // end state; S dS, of two chunks.
  float query_rows[2][chunk], query_columns[2][4][chunk];
  float value_sums[walking_warps][chunk];
  float key_columns[2][4][chunk];
  float key_rows[chunk], key_ends[chunk];
  float state_sums[2][walking_warps];
  std::uint32_t peaks[walking_warps];
  // What a chunk has ready, or is through with; phases are its parity.
  std::uint64_t x_full, S_full, inverse_full;  // brought
  std::uint64_t converted, prepared;           // tokens and numbers; P as well
  std::uint64_t A_full, A_used, P_used;
  std::uint64_t x_used, S_used;    // but for the keys' warpgroup
  std::uint64_t tokens_used;       // q, k, do, numbers and sums
  std::uint64_t query_sums;        // are there
  std::uint64_t state_summed;      // S dS
  std::uint64_t dS_full, dS_used;  // the copy for the keys' warpgroup
  std::uint64_t z_full, z_used;
};

/// Sums the columns 8j + 2c + e, in s[2j + e], over the lanes that have the
/// same; a lane is left with columns 2 lane and 2 lane + 1.
__device__ __forceinline__ float2 sum_columns(float (&s)[16], int lane) {
  const auto fold = [&]<int Half>(std::integral_constant<int, Half>) {
    const bool upper = lane & (2 * Half);
#pragma unroll
    for (int k = 0; k < Half; ++k) {
      const float sent = upper ? s[k] : s[k + Half];
      const float own = upper ? s[k + Half] : s[k];
      s[k] = own + __shfl_xor_sync(~0u, sent, 2 * Half);
    }
  };
  fold(std::integral_constant<int, 8>{});
  fold(std::integral_constant<int, 4>{});
  fold(std::integral_constant<int, 2>{});
  return make_float2(s[0], s[1]);
}
/// Sums over the four lanes that share a row.
__device__ __forceinline__ float sum_row(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

/// Rows i and i + 8 of the products of a tile's rows with an accumulator's.
template <int K>
__device__ __forceinline__ void dot_rows(float (&sum)[2], std::uint32_t tiles,
                                         const float* acc,
                                         std::uint32_t lane_rows) {
#pragma unroll
  for (int j = 0; j < K / 16; ++j) {
    const fragment y = load_matrices(tiles + block_of(lane_rows, j));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 x = unpack<__half>(y.r[e]);
      const float* const a = acc + 8 * j + 4 * (e >> 1) + 2 * (e & 1);
      sum[e & 1] = fmaf(x.x, a[0], fmaf(x.y, a[1], sum[e & 1]));
    }
  }
}

/// A tile of what a warpgroup's 64 x 64 accumulator packs to.
__device__ __forceinline__ void put_tile(std::uint32_t to,
                                         const std::uint32_t (&x)[16],
                                         std::uint32_t lane_rows) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
    store_matrices(to + block_of(lane_rows, j),
                   {x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]});
}

/// Writes rows i and i + 8 of an accumulator of 64 columns, times f.
template <class In>
__device__ __forceinline__ void write_rows(const tensor& to,
                                           const sequence_span& span, int head,
                                           int column, int first, int length,
                                           const float (&acc)[32], float f,
                                           int warp, int lane) {
  if (to.data == nullptr) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int token = first + 16 * warp + (lane >> 2) + 8 * h;
    In* row = static_cast<In*>(to.data) +
              offset(to, span.batch, span.first + token, head) + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* const a = acc + 8 * j + 2 * h;
      store_row16(row + 16 * j, lane & 3, pack<In>(f * a[0], f * a[1]),
                  pack<In>(f * a[4], f * a[5]), token < length);
    }
  }
}

}  // namespace carve::cuda::full_backward
