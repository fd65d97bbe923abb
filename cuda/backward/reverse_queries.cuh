// The reverse walk (reverse.cuh): the warpgroup that makes P, A and dq, which
// need no cotangent of the state, a chunk ahead.
#pragma once

#include "backward/reverse.cuh"

namespace carve::cuda::full_backward {

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

}  // namespace carve::cuda::full_backward
