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

/// The warpgroup that makes P, A and dq.
template <class In, int K, int V>
__device__ __forceinline__ void make_queries(
    const problem& p, const gradients& d, const sequence_span& span, int head,
    shared<reverse_memory<K, V>> m, int thread) {
  using memory = reverse_memory<K, V>;
  using tokens_of = typename memory::token_tiles;
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  int lane = thread % 32;
  const int length = static_cast<int>(span.length);
  const int chunks = (length + chunk - 1) / chunk;
  const int key_head = head / (p.HV / p.H);

#pragma unroll 1
  for (int turn = 0; turn < chunks; ++turn) {
    const int phase = turn & 1, first = (chunks - 1 - turn) * chunk;
    const shared<tokens_of> tiles = m[&memory::tokens][phase];
    const shared<reverse_numbers> numbers = m[&memory::numbers][phase];
    // What depends on these alone is made anew, not kept and spilled.
    forget(lane);
    const int i = lane >> 2, c = lane & 3;
    const std::uint32_t lane_rows = own_rows(warp, lane);
    barrier_wait(m[&memory::converted], phase);
    const float unscale = read4(numbers[&reverse_numbers::unscale]);

    float row_bits[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
      row_bits[h] =
          load<float>(numbers[&reverse_numbers::bits], 16 * warp + i + 8 * h);
    // Calls `use` with the place and the decay, times the scale, of each of the
    // lane's pairs at or below the diagonal, with 0 of others.
    const auto each_pair = [&](auto&& use) {
      const int apart = 16 * warp + i - 2 * c;  // t - s of the first
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 from =
            load<float2>(numbers[&reverse_numbers::bits], 8 * j + 2 * c);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float f =
              exp2_fast(row_bits[e >> 1] - (e & 1 ? from.y : from.x));
          use(j, e,
              apart >= 8 * j + (e & 1) - 8 * (e >> 1) ? p.scale * f : 0.f);
        }
      }
    };
    std::uint32_t packed[16], scores[16];  // P, and without its decay
    {
      float y[32];
      product_fence();
      product_of_tiles<__half, K>(y, tiles[&tokens_of::q],
                                  tiles[&tokens_of::k]);
      product_commit();
      product_wait<0>();
      pin(y);
      const int apart = 16 * warp + i - 2 * c;  // t - s of the first pair
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        // But for the diagonal: what a token gives itself is of no decay.
        const int at = apart - 4 * (j & ~1) + 8 * (j & 1);
        scores[j] = pack<__half>(at == 0 ? 0.f : y[2 * j],
                                 at == 1 ? 0.f : y[2 * j + 1]);
      }
      each_pair([&](int j, int e, float f) { y[4 * j + e] *= f; });
#pragma unroll
      for (int j = 0; j < 16; ++j)
        packed[j] = pack<__half>(y[2 * j], y[2 * j + 1]);
    }
    if (turn > 0) barrier_wait(m[&memory::P_used], phase ^ 1);
    put_tile(m[&memory::P], packed, lane_rows);
    fence_async_proxy();
    barrier_arrive_warp(m[&memory::prepared], lane);

    float rows[2] = {0, 0};
    {
      float y[32], columns[16];
      barrier_wait(m[&memory::x_full], phase);
      product_fence();
      product_of_tiles<__half, V>(y, tiles[&tokens_of::d_o], m[&memory::x]);
      product_commit();
      product_wait<0>();
      pin(y);
      barrier_arrive_warp(m[&memory::x_used], lane);
      each_pair([&](int j, int e, float f) { y[4 * j + e] *= f; });
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 beta =
            load<float2>(numbers[&reverse_numbers::beta], 8 * j + 2 * c);
        columns[2 * j] = columns[2 * j + 1] = 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float a0 = y[4 * j + 2 * h] * beta.x,
                      a1 = y[4 * j + 2 * h + 1] * beta.y;
          const float2 score = unpack<__half>(scores[2 * j + h]);
          const float x0 = score.x * a0, x1 = score.y * a1;
          rows[h] += x0 + x1;
          columns[2 * j] += x0;
          columns[2 * j + 1] += x1;
          packed[2 * j + h] = pack<__half>(a0, a1);
        }
      }
      store(m[&memory::query_columns][phase][warp], 2 * lane,
            sum_columns(columns, lane));
    }
    if (turn > 0) barrier_wait(m[&memory::A_used], phase ^ 1);
    put_tile(m[&memory::A], packed, lane_rows);
    fence_async_proxy();
    sync_group<group>(named::queries);
    barrier_arrive_warp(m[&memory::A_full], lane);

    barrier_wait(m[&memory::S_full], phase);
    const float start[2] = {p.scale * exp2_fast(row_bits[0]),
                            p.scale * exp2_fast(row_bits[1])};
#pragma unroll 1
    for (int part = 0; part < K / 64; ++part) {
      float y[32];
      product_fence();
#pragma unroll
      for (int v = 0; v < V / 64; ++v)
        product_of_rows<__half>(y, tiles[&tokens_of::d_o][v],
                                m[&memory::S][v][part], v > 0);
      product_commit();
      product_wait<0>();
      pin(y);
#pragma unroll
      for (int j = 0; j < 32; ++j) y[j] *= start[(j >> 1) & 1];
      dot_rows<64>(rows, tiles[&tokens_of::q][part], y, lane_rows);
      product_fence();
      product_of_rows<__half>(y, m[&memory::A], tiles[&tokens_of::k][part],
                              true);
      product_commit();
      product_wait<0>();
      pin(y);
      write_rows<In>(d.dq, span, key_head, 64 * part, first, length, y, unscale,
                     warp, lane);
    }
    barrier_arrive_warp(m[&memory::S_used], lane);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows[h] = sum_row(rows[h]);
      if (c == 0)
        store(m[&memory::query_rows][phase], 16 * warp + i + 8 * h, rows[h]);
    }
    barrier_arrive_warp(m[&memory::query_sums], lane);
  }
}

/// The warpgroup that makes F and dk, dv and the gates' gradients.
template <class In, int K, int V>
__device__ __forceinline__ void make_keys(const problem& p, const gradients& d,
                                          const sequence_span& span, int head,
                                          shared<reverse_memory<K, V>> m,
                                          const kept_chunk<K, V>* kept,
                                          int thread) {
  using memory = reverse_memory<K, V>;
  using tokens_of = typename memory::token_tiles;
  using kept_of = kept_chunk<K, V>;
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  int lane = thread % 32;
  const int length = static_cast<int>(span.length);
  const int chunks = (length + chunk - 1) / chunk;
  const int key_head = head / (p.HV / p.H);

  // What the forward walk left, brought by one thread.
  const auto bring_x = [&](int turn) {
    barrier_expect(m[&memory::x_full], sizeof(kept_of::x));
    bulk_load(m[&memory::x], kept[chunks - 1 - turn].x, sizeof(kept_of::x),
              m[&memory::x_full]);
  };
  const auto bring_S = [&](int turn) {
    barrier_expect(m[&memory::S_full], sizeof(kept_of::S));
    bulk_load(m[&memory::S], kept[chunks - 1 - turn].S, sizeof(kept_of::S),
              m[&memory::S_full]);
  };
  const auto bring_inverse = [&](int turn) {
    barrier_expect(m[&memory::inverse_full], tile::bytes);
    bulk_load(m[&memory::inverse], &kept[chunks - 1 - turn].inverse,
              tile::bytes, m[&memory::inverse_full]);
  };
  if (thread == 0 && chunks > 0) {
    bring_x(0);
    bring_S(0);
    bring_inverse(0);
  }

#pragma unroll 1
  for (int turn = 0; turn < chunks; ++turn) {
    const int phase = turn & 1, first = (chunks - 1 - turn) * chunk;
    const bool more = turn + 1 < chunks;
    const shared<tokens_of> tiles = m[&memory::tokens][phase];
    const shared<reverse_numbers> numbers = m[&memory::numbers][phase];
    forget(lane);
    const int i = lane >> 2, c = lane & 3;
    const std::uint32_t lane_rows = own_rows(warp, lane);
    barrier_wait(m[&memory::x_full], phase);
    barrier_wait(m[&memory::z_full], phase);  // so there is what z was made of
    const float last = load<float>(numbers[&reverse_numbers::bits], chunk - 1);
    float row_bits[2], row_beta[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * warp + i + 8 * h;
      row_bits[h] = load<float>(numbers[&reverse_numbers::bits], row);
      row_beta[h] = load<float>(numbers[&reverse_numbers::beta], row);
    }

    // E, F and their sums.
    float rows[2] = {0, 0};
    {
      float couple[32], y[32], columns[16];
      product_fence();
      product_of_tiles<__half, K>(couple, tiles[&tokens_of::k],
                                  tiles[&tokens_of::k]);
      product_of_tiles<__half, V>(y, m[&memory::z], m[&memory::x]);
      product_commit();
      product_wait<0>();
      pin(couple);
      pin(y);
      std::uint32_t packed[16];
      const int apart = 16 * warp + i - 2 * c;  // t - s of the first pair
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 from =
            load<float2>(numbers[&reverse_numbers::bits], 8 * j + 2 * c);
        const float2 beta =
            load<float2>(numbers[&reverse_numbers::beta], 8 * j + 2 * c);
        columns[2 * j] = columns[2 * j + 1] = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float decay =
              exp2_fast(row_bits[e >> 1] - (e & 1 ? from.y : from.x));
          const float gate = e & 1 ? beta.y : beta.x;
          const float f = apart > 8 * j + (e & 1) - 8 * (e >> 1) ? decay : 0.f;
          const float x = y[4 * j + e] * f, sum = x * couple[4 * j + e];
          columns[2 * j + (e & 1)] += sum;
          rows[e >> 1] = fmaf(-gate, sum, rows[e >> 1]);
          y[4 * j + e] = -gate * x;
        }
        packed[2 * j] = pack<__half>(y[4 * j], y[4 * j + 1]);
        packed[2 * j + 1] = pack<__half>(y[4 * j + 2], y[4 * j + 3]);
      }
      put_tile(m[&memory::inverse], packed, lane_rows);
      fence_async_proxy();
      store(m[&memory::key_columns][phase][warp], 2 * lane,
            sum_columns(columns, lane));
    }
    // The sums dU x, of tokens 2 lane and + 1.
    float2 write = make_float2(0, 0);
    if (warp == 1) {
#pragma unroll
      for (int w = 0; w < memory::walking_warps; ++w) {
        const float2 x = load<float2>(m[&memory::value_sums][w], 2 * lane);
        write.x += x.x;
        write.y += x.y;
      }
    }

    const float unscale = read4(numbers[&reverse_numbers::unscale]);
    const float end_factor[2] = {row_beta[0] * exp2_fast(last - row_bits[0]),
                                 row_beta[1] * exp2_fast(last - row_bits[1])};
    const float start[2] = {-exp2_fast(row_bits[0]), -exp2_fast(row_bits[1])};
    float ends[2] = {0, 0};
    sync_group<group>(named::keys);  // F is there
    barrier_wait(m[&memory::dS_full], phase);
    barrier_wait(m[&memory::S_full], phase);
    barrier_wait(m[&memory::A_full], phase);
#pragma unroll 1
    for (int part = 0; part < K / 64; ++part) {
      // The states' part of dk.
      float x[32], y[32];
      product_fence();
#pragma unroll
      for (int v = 0; v < V / 64; ++v)
        product_of_rows<__half>(y, m[&memory::x][v], m[&memory::dS][v][part],
                                v > 0);
#pragma unroll
      for (int v = 0; v < V / 64; ++v)
        product_of_rows<__half>(x, m[&memory::z][v], m[&memory::S][v][part],
                                v > 0);
      product_commit();
      product_wait<0>();
      pin(x);
      pin(y);
      if (part == K / 64 - 1) {
        barrier_arrive_warp(m[&memory::dS_used], lane);
        barrier_arrive_warp(m[&memory::z_used], lane);
        sync_group<group>(named::keys);
        if (thread == 0 && more) {
          barrier_wait(m[&memory::x_used], phase);
          bring_x(turn + 1);
          barrier_wait(m[&memory::S_used], phase);
          bring_S(turn + 1);
        }
        __syncwarp();
      }
      const shared<tile> keys = tiles[&tokens_of::k][part];
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        x[j] *= start[(j >> 1) & 1];
        y[j] *= end_factor[(j >> 1) & 1];
      }
      dot_rows<64>(rows, keys, x, lane_rows);
      dot_rows<64>(ends, keys, y, lane_rows);
#pragma unroll
      for (int j = 0; j < 32; ++j) y[j] += x[j];
      // Within the chunk.
      product_fence();
      product_of_rows<__half, true>(y, m[&memory::A],
                                    tiles[&tokens_of::q][part], true);
      product_of_rows<__half>(y, m[&memory::inverse], keys, true);
      product_of_rows<__half, true>(y, m[&memory::inverse], keys, true);
      product_commit();
      product_wait<0>();
      pin(y);
      write_rows<In>(d.dk, span, key_head, 64 * part, first, length, y, unscale,
                     warp, lane);
    }
    // Before those who make them may go on to the next chunk's.
    barrier_wait(m[&memory::query_sums], phase);
    barrier_wait(m[&memory::state_summed], phase);
    barrier_arrive_warp(m[&memory::A_used], lane);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      ends[h] = sum_row(ends[h]);
      rows[h] = sum_row(rows[h]) - ends[h];
      if (c == 0) {
        store(m[&memory::key_rows], 16 * warp + i + 8 * h, rows[h]);
        store(m[&memory::key_ends], 16 * warp + i + 8 * h, ends[h]);
      }
    }
    sync_group<group>(named::keys);  // F is used; the sums are there
    if (thread == 0 && more) bring_inverse(turn + 1);
    __syncwarp();

    // Tokens 2 lane and + 1.
    if (warp < 2) {
      const int token = first + 2 * lane;
      float2 erased = make_float2(0, 0);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 x =
            load<float2>(m[&memory::key_columns][phase][w], 2 * lane);
        erased.x += x.x;
        erased.y += x.y;
      }
      if (warp == 1) {
        if (d.dbeta.data != nullptr) {
          In* const to = static_cast<In*>(d.dbeta.data) +
                         offset(d.dbeta, span.batch, span.first + token, head);
          if (token < length)
            to[0] = from_float<In>((write.x - erased.x) * unscale);
          if (token + 1 < length)
            to[d.dbeta.token] = from_float<In>((write.y - erased.y) * unscale);
        }
      } else if (d.dg.data != nullptr) {
        float2 change = load<float2>(m[&memory::key_rows], 2 * lane);
        const float2 rows_of_queries =
            load<float2>(m[&memory::query_rows][phase], 2 * lane);
        const float2 beta =
            load<float2>(numbers[&reverse_numbers::beta], 2 * lane);
        change.x += fmaf(beta.x, erased.x, rows_of_queries.x);
        change.y += fmaf(beta.y, erased.y, rows_of_queries.y);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float2 x =
              load<float2>(m[&memory::query_columns][phase][w], 2 * lane);
          change.x -= x.x;
          change.y -= x.y;
        }
        const float2 to_end = load<float2>(m[&memory::key_ends], 2 * lane);
        float later = change.x + change.y, whole = to_end.x + to_end.y;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const float other = __shfl_down_sync(~0u, later, step);
          if (lane + step < 32) later += other;
          whole += __shfl_xor_sync(~0u, whole, step);
        }
#pragma unroll
        for (int w = 0; w < memory::walking_warps; ++w)
          whole += load<float>(m[&memory::state_sums][phase], w);
        float* const to = static_cast<float*>(d.dg.data) +
                          offset(d.dg, span.batch, span.first + token, head);
        if (token < length) to[0] = (later + whole) * unscale;
        if (token + 1 < length)
          to[d.dg.token] = (later - change.x + whole) * unscale;
      }
    }
    barrier_arrive_warp(m[&memory::tokens_used], lane);
  }
}

/// What the walking warpgroups do with whole rows: bring q, k and do of a
/// chunk, turn them into what the products take, and write dv.
template <class In, int K, int V>
struct token_bringer {
  using memory = reverse_memory<K, V>;
  using tokens_of = typename memory::token_tiles;
  static constexpr int threads = memory::walkers * group;
  static constexpr std::integral_constant<int, K> of_keys = {};
  static constexpr std::integral_constant<int, V> of_values = {};
  const problem& p;
  const gradients& d;
  const sequence_span& span;
  shared<memory> m;
  int head, thread, warp;  // of all that walk
  int length, chunks;
  std::uint32_t peak = 0;  // bits of the largest cotangent met so far
  float unscale = 1;       // of the chunk converted last
  // Log decays and bits of the gates of tokens 2 lane and + 1, by the first
  // warp; past the end those of the last.
  float log[2] = {0, 0};
  unsigned gate[2];

  __device__ token_bringer(const problem& the_problem,
                           const gradients& the_gradients,
                           const sequence_span& the_span, int the_head,
                           shared<memory> the_memory, int walker,
                           int warp_of_group, int thread_of_group)
      : p(the_problem),
        d(the_gradients),
        span(the_span),
        m(the_memory),
        head(the_head),
        thread(walker * group + thread_of_group),
        warp(4 * walker + warp_of_group),
        length(static_cast<int>(the_span.length)),
        chunks((length + chunk - 1) / chunk) {}

  /// A thread has pieces of 16 bytes of rows `step` apart.
  template <int Channels>
  struct pieces {
    static constexpr int of_row = Channels / 8, step = threads / of_row;
    static constexpr int count = chunk / step;
    static_assert(step % 8 == 0);
  };
  template <int Channels, class Use>
  __device__ __forceinline__ void each_piece(
      std::integral_constant<int, Channels>, Use&& use) const {
    using own = pieces<Channels>;
    const std::uint32_t within = thread % own::of_row / 8 * tile::bytes +
                                 swizzled(thread / own::of_row, thread % 8);
#pragma unroll
    for (int j = 0; j < own::count; ++j)
      use(within + j * own::step * tile::row_bytes, j);
  }

  /// The largest of all that walk.
  __device__ __forceinline__ std::uint32_t largest(std::uint32_t most,
                                                   int lane) const {
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) store(m[&memory::peaks], warp, most);
    sync_group<threads>(named::peaks);
#pragma unroll
    for (int w = 0; w < memory::walking_warps; ++w)
      most = max(most, load<std::uint32_t>(m[&memory::peaks], w));
    return most;
  }

  template <int Channels>
  __device__ __forceinline__ void bring(
      const tensor& x, int of_head, int first,
      std::integral_constant<int, Channels> channels, std::uint32_t to) const {
    using own = pieces<Channels>;
    int token = first + thread / own::of_row;
    const std::int64_t step = 2 * own::step * x.token;
    const char* const base = static_cast<const char*>(x.data) +
                             2 * offset(x, span.batch, span.first, of_head);
    const char* from = base + 2 * token * x.token + thread % own::of_row * 16;
    each_piece(channels, [&](std::uint32_t within, int) {
      const bool valid = token < length;
      copy_async_16(to + within, valid ? from : base, valid);
      token += own::step;
      from += step;
    });
  }

  /// Starts the loads of a chunk; rows past the end become zeros.
  __device__ __forceinline__ void fetch(int turn) {
    const int first = (chunks - 1 - turn) * chunk;
    const int key_head = head / (p.HV / p.H);
    const shared<tokens_of> to = m[&memory::tokens][turn & 1];
    bring(p.q, key_head, first, of_keys, to[&tokens_of::q]);
    bring(p.k, key_head, first, of_keys, to[&tokens_of::k]);
    bring(d.d_o, head, first, of_values, to[&tokens_of::d_o]);
    copy_async_commit();
    if (warp != 0) return;
    // Left as they are, so that nothing waits for them yet.
    const In* const gates = static_cast<const In*>(p.beta.data) +
                            offset(p.beta, span.batch, span.first, head);
    const float* const logs = static_cast<const float*>(p.g.data) +
                              offset(p.g, span.batch, span.first, head);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = min(first + 2 * (thread % 32) + j, length - 1);
      gate[j] = __ldg(reinterpret_cast<const unsigned short*>(gates) +
                      token * p.beta.token);
      if (p.family == family::gdn) log[j] = __ldg(logs + token * p.g.token);
    }
  }

  /// To fp16, times f; all is read before any is written.
  template <int Channels>
  __device__ __forceinline__ void convert_tiles(
      std::integral_constant<int, Channels> channels, std::uint32_t at,
      float f) const {
    uint4 x[pieces<Channels>::count];
    each_piece(channels, [&](std::uint32_t within, int j) {
      x[j] = read16(at + within);
    });
    each_piece(channels, [&](std::uint32_t within, int j) {
      const std::uint32_t y[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
      std::uint32_t z[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 v = unpack<In>(y[e]);
        z[e] = pack<__half>(f * v.x, f * v.y);
      }
      write16(at + within, make_uint4(z[0], z[1], z[2], z[3]));
    });
  }

  /// Makes what was fetched ready.
  __device__ __forceinline__ void convert(int turn) {
    const shared<tokens_of> tiles = m[&memory::tokens][turn & 1];
    const shared<reverse_numbers> numbers = m[&memory::numbers][turn & 1];
    const int lane = thread % 32;
    copy_async_wait<0>();
    // The largest magnitude: its bits but for the sign, as an integer.
    std::uint32_t most = 0;
    each_piece(of_values, [&](std::uint32_t within, int) {
      const uint4 x = read16(tiles[&tokens_of::d_o] + within);
      most = __vmaxu2(__vmaxu2(most, x.x & 0x7FFF7FFFu), x.y & 0x7FFF7FFFu);
      most = __vmaxu2(__vmaxu2(most, x.z & 0x7FFF7FFFu), x.w & 0x7FFF7FFFu);
    });
    most = max(most & 0xFFFFu, most >> 16);
    if (warp == 0) {
      const int left = length - (chunks - 1 - turn) * chunk - 2 * lane;
      const float log0 = left > 0 ? log_decay(log[0]) : 0.f;
      const float log1 = left > 1 ? log_decay(log[1]) : 0.f;
      float sum = log0 + log1;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
      }
      store(numbers[&reverse_numbers::bits], 2 * lane,
            make_float2(sum - log1, sum));
      store(numbers[&reverse_numbers::beta], 2 * lane,
            make_float2(left > 0 ? unpack<In>(gate[0]).x : 0.f,
                        left > 1 ? unpack<In>(gate[1]).x : 0.f));
    }
    if constexpr (!std::is_same_v<In, __half>) {
      convert_tiles(of_keys, tiles[&tokens_of::q], 1.f);
      convert_tiles(of_keys, tiles[&tokens_of::k], 1.f);
    }
    peak = max(peak, __float_as_uint(unpack<In>(largest(most, lane)).x));
    const float2 scale = scale_of(peak);
    if (thread == 0)
      write16(numbers[&reverse_numbers::scale],
              make_uint4(__float_as_uint(scale.x), __float_as_uint(scale.y),
                         __float_as_uint(scale.x * unscale), 0));
    unscale = scale.y;
    convert_tiles(of_values, tiles[&tokens_of::d_o], scale.x);
    fence_async_proxy();
    barrier_arrive_warp(m[&memory::converted], lane);
  }

  /// Writes dv, which is z.
  __device__ __forceinline__ void write_dv(int turn, float f) const {
    if (d.dv.data == nullptr) return;
    using own = pieces<V>;
    int token = (chunks - 1 - turn) * chunk + thread / own::of_row;
    In* to = static_cast<In*>(d.dv.data) +
             offset(d.dv, span.batch, span.first + token, head) +
             thread % own::of_row * 8;
    each_piece(of_values, [&](std::uint32_t within, int) {
      const uint4 x = read16(m[&memory::z] + within);
      const std::uint32_t a[4] = {x.x, x.y, x.z, x.w};
      std::uint32_t b[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 y = unpack<__half>(a[e]);
        b[e] = pack<In>(y.x * f, y.y * f);
      }
      if (token < length)
        *reinterpret_cast<uint4*>(to) = make_uint4(b[0], b[1], b[2], b[3]);
      token += own::step;
      to += own::step * d.dv.token;
    });
  }
};

/// One warpgroup takes dS^T of 64 value channels through all chunks, backwards.
template <class In, int K, int V>
__device__ __forceinline__ void walk_back(const problem& p, const gradients& d,
                                          const sequence_span& span,
                                          int sequence, int head,
                                          shared<reverse_memory<K, V>> m,
                                          int walker, int thread) {
  using memory = reverse_memory<K, V>;
  using tokens_of = typename memory::token_tiles;
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  const int of_all = 4 * walker + warp;
  int lane = thread % 32;
  const int length = static_cast<int>(span.length);
  const int chunks = (length + chunk - 1) / chunk;
  // dS^T: rows i and i + 8 of the warp's 16, columns 8j + 2c and + 1.
  float state[K / 2];
  const auto state_at = [&] {
    return (static_cast<std::int64_t>(sequence) * p.HV + head) * K * V +
           2 * (lane & 3) * V + 16 * of_all + (lane >> 2);
  };
  std::uint32_t most = 0;
  if (d.d_final_state != nullptr) {
    const float* from = d.d_final_state + state_at();
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = from[(8 * j + (e & 1)) * V + 8 * (e >> 1)];
        state[4 * j + e] = x;
        most = max(most, __float_as_uint(x) & 0x7FFFFFFFu);
      }
  } else {
#pragma unroll
    for (int j = 0; j < K / 2; ++j) state[j] = 0;
  }

  token_bringer<In, K, V> tokens(p, d, span, head, m, walker, warp, thread);
  tokens.peak = tokens.largest(most, lane);
  sync_group<tokens.threads>(named::peaks);  // they may be overwritten
  if (chunks > 0) {
    tokens.fetch(0);
    tokens.convert(0);
  }

  const shared<tile[K / 64]> own_S = m[&memory::S][walker],
                             own_dS = m[&memory::dS][walker];
  // What the state has yet to be multiplied by: the decay of the first token of
  // the chunk that it went through last; and what undoes its scale.
  float pending = 1, unscale = 1;
#pragma unroll 1
  for (int turn = 0; turn < chunks; ++turn) {
    const int phase = turn & 1;
    const shared<tokens_of> tiles = m[&memory::tokens][phase];
    const shared<reverse_numbers> numbers = m[&memory::numbers][phase];
    forget(lane);
    const int c = lane & 3;
    const std::uint32_t lane_rows = own_rows(warp, lane);
    const std::uint32_t lane_columns = own_columns(warp, lane);
    const std::uint32_t own_x = m[&memory::x][walker] + lane_columns,
                        own_z = m[&memory::z][walker] + lane_columns;
    const std::uint32_t d_o = tiles[&tokens_of::d_o][walker] + lane_columns;
    barrier_wait(m[&memory::prepared], phase);
    const float first = load<float>(numbers[&reverse_numbers::bits], 0);
    const float last = load<float>(numbers[&reverse_numbers::bits], chunk - 1);
    unscale = read4(numbers[&reverse_numbers::unscale]);
    {
      const float f = pending * read4(numbers[&reverse_numbers::rescale]);
      if (turn > 0) barrier_wait(m[&memory::dS_used], phase ^ 1);
#pragma unroll
      for (int j = 0; j < K / 16; ++j) {
        fragment x;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float* const y = state + 8 * j + 2 * e;
          y[0] *= f;
          y[1] *= f;
          x.r[e] = pack<__half>(y[0], y[1]);
        }
        store_matrices(own_dS + block_of(lane_rows, j), x);
      }
    }
    fence_async_proxy();
    barrier_arrive_warp(m[&memory::dS_full], lane);
    sync_group<group>(named::walk + walker);
    float u[32];
    product_fence();
    product_of_tiles<__half, K>(u, own_dS, tiles[&tokens_of::k]);
    product_commit();
    {
      const float rest = exp2_fast(last - first);
#pragma unroll
      for (int j = 0; j < K / 2; ++j) state[j] *= rest;
    }
    product_wait<0>();
    pin(u);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 bits =
          load<float2>(numbers[&reverse_numbers::bits], 8 * j + 2 * c);
      const float2 f =
          make_float2(exp2_fast(last - bits.x), exp2_fast(last - bits.y));
      u[4 * j] *= f.x;
      u[4 * j + 1] *= f.y;
      u[4 * j + 2] *= f.x;
      u[4 * j + 3] *= f.y;
    }
    std::uint32_t outer[16];  // do^T
    const auto load_outer = [&] {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const fragment x = load_matrices_transposed(d_o + 2048 * j);
#pragma unroll
        for (int e = 0; e < 4; ++e) outer[4 * j + e] = x.r[e];
      }
    };
    load_outer();
    product_fence();
    add_product_across<__half>(u, outer, m[&memory::P]);
    product_commit();
    product_wait<0>();
    pin(u);
    barrier_arrive_warp(m[&memory::P_used], lane);

    // The sums of dU x over the channels, and b dU.
    float2 sums;
    {
      float columns[16];
      barrier_wait(m[&memory::x_full], phase);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const fragment x = load_matrices_transposed(own_x + 2048 * j);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 a = unpack<__half>(x.r[2 * h]),
                       b = unpack<__half>(x.r[2 * h + 1]);
          const float* const y = u + 8 * j + 4 * h;
          columns[4 * j + 2 * h] = fmaf(a.x, y[0], b.x * y[2]);
          columns[4 * j + 2 * h + 1] = fmaf(a.y, y[1], b.y * y[3]);
        }
      }
      barrier_arrive_warp(m[&memory::x_used], lane);
      sums = sum_columns(columns, lane);
    }
    std::uint32_t operand[16];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 beta =
          load<float2>(numbers[&reverse_numbers::beta], 8 * j + 2 * c);
      operand[2 * j] = pack<__half>(u[4 * j] * beta.x, u[4 * j + 1] * beta.y);
      operand[2 * j + 1] =
          pack<__half>(u[4 * j + 2] * beta.x, u[4 * j + 3] * beta.y);
    }
    barrier_wait(m[&memory::inverse_full], phase);
    product_fence();
    add_product_across<__half>(u, operand, m[&memory::inverse], false);
    product_commit();
    // The decay from the first token, of the lane's tokens: dS is made but for
    // that token's.
    const auto decay_from_first = [&](int j) {
      const float2 bits =
          load<float2>(numbers[&reverse_numbers::bits], 8 * j + 2 * c);
      return make_float2(exp2_fast(bits.x - first), exp2_fast(bits.y - first));
    };
    load_outer();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 f = decay_from_first(j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 a = unpack<__half>(outer[2 * j + h]);
        outer[2 * j + h] =
            pack<__half>(a.x * (p.scale * f.x), a.y * (p.scale * f.y));
      }
    }
    product_fence();
    add_product_across<__half>(state, outer, tiles[&tokens_of::q]);
    product_commit();
    product_wait<1>();
    pin(u);
#pragma unroll
    for (int j = 0; j < 16; ++j)
      operand[j] = pack<__half>(u[2 * j], u[2 * j + 1]);
    if (turn > 0) barrier_wait(m[&memory::z_used], phase ^ 1);
    store(m[&memory::value_sums][of_all], 2 * lane, sums);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      store_matrices_transposed(own_z + 2048 * j,
                                {operand[4 * j], operand[4 * j + 1],
                                 operand[4 * j + 2], operand[4 * j + 3]});
    fence_async_proxy();
    barrier_arrive_warp(m[&memory::z_full], lane);

#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 f = decay_from_first(j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 a = unpack<__half>(operand[2 * j + h]);
        operand[2 * j + h] = pack<__half>(-a.x * f.x, -a.y * f.y);
      }
    }
    product_fence();
    add_product_across<__half>(state, operand, tiles[&tokens_of::k]);
    product_commit();
    // Meanwhile; the place is that of the chunk before this one.
    if (turn > 0) barrier_wait(m[&memory::tokens_used], phase ^ 1);
    if (turn + 1 < chunks) tokens.fetch(turn + 1);
    // S dS, of what the products have: this warp's part.
    barrier_wait(m[&memory::S_full], phase);
    float sum[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < K / 16; ++j) {
      const fragment a = load_matrices(own_S + block_of(lane_rows, j));
      const fragment b = load_matrices(own_dS + block_of(lane_rows, j));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 x = unpack<__half>(a.r[e]), y = unpack<__half>(b.r[e]);
        sum[0] = fmaf(x.x, y.x, sum[0]);
        sum[1] = fmaf(x.y, y.y, sum[1]);
      }
    }
    barrier_arrive_warp(m[&memory::S_used], lane);
    sum[0] = (sum[0] + sum[1]) * exp2_fast(last);
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
      sum[0] += __shfl_xor_sync(~0u, sum[0], step);
    if (lane == 0) store(m[&memory::state_sums][phase], of_all, sum[0]);
    barrier_arrive_warp(m[&memory::state_summed], lane);
    product_wait<0>();
    pin(state);
    pending = exp2_fast(first);
    barrier_arrive_warp(m[&memory::tokens_used], lane);
    if (turn + 1 < chunks) tokens.convert(turn + 1);
    barrier_wait(m[&memory::z_full], phase);
    tokens.write_dv(turn, unscale);
    barrier_arrive_warp(m[&memory::z_used], lane);
  }

  if (d.d_initial_state != nullptr) {
    forget(lane);
    float* to = d.d_initial_state + state_at();
    // In turn, for either may leave fp32's range.
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        to[(8 * j + (e & 1)) * V + 8 * (e >> 1)] =
            state[4 * j + e] * pending * unscale;
  }
}

}  // namespace carve::cuda::full_backward
