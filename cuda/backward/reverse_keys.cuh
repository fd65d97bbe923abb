// The reverse walk (reverse.cuh): the warpgroup that makes E, F, dk and the
// gradients of the gates, and brings what states.cuh left.
#pragma once

#include "backward/reverse.cuh"

namespace carve::cuda::full_backward {

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

}  // namespace carve::cuda::full_backward
