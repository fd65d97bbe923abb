// What do tokens of a chunk owe each other where a channel decays too fast for
// a product of tiles?
#pragma once

#include <cstdint>

#include "chunk/decay.cuh"
#include "common.cuh"

namespace carve::cuda::chunks {

using namespace arch;

/// A channel of a chunk as couple_exactly reads it: tokens 2 * lane and + 1.
struct channel_pair {
  float log[2], key[2], query[2], erase[2];
};

/// Reads one of the chunk from token `first` of a span on, zeros past its end.
/// `erase(j, b)`: the erase gate of the lane's token j; b() reads p.b there.
template <class In, bool Query, class Erase>
__device__ __forceinline__ channel_pair
load_pair(const problem& p, const sequence_span& span, int length, int first,
          int key_head, int head, int lane, int channel, Erase&& erase) {
  channel_pair x = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int token = first + 2 * lane + j;
    if (token >= length) continue;
    const std::int64_t t = span.first + token;
    const auto at = [&](const tensor& y, int h) {
      return offset(y, span.batch, t, h) + channel;
    };
    const auto read = [&](const tensor& y, int h) {
      return to_float(static_cast<const In*>(y.data)[at(y, h)]);
    };
    x.log[j] = static_cast<const float*>(p.g.data)[at(p.g, head)];
    x.key[j] = read(p.k, key_head);
    if constexpr (Query) x.query[j] = read(p.q, key_head);
    x.erase[j] = erase(j, [&] { return read(p.b, head); });
  }
  return x;
}

/// Adds the couplings of the channels whose bits are set in `apart` (bit b of
/// word 2s + e is channel 64s + 2b + e) to the accumulators of a warpgroup
/// product: rows 16w + i and + 8, columns 8j + 2c and + 1.
/// `load(channel)` reads a channel_pair; rows of L carry `erase`.
template <int K, bool Lower, bool Upper, class Load>
__device__ __forceinline__ void couple_exactly(const std::uint32_t (&apart)[4],
                                               int warp, int lane,
                                               float (&l)[32], float (&m)[32],
                                               Load&& load) {
  const int i = lane >> 2, c = lane & 3;
  int word = 0;
  std::uint32_t bits = apart[0];
  // The next channel, or K.
  const auto next = [&] {
    while (bits == 0) {
      if (++word == K / 32) return K;
      bits = word == 1 ? apart[1] : word == 2 ? apart[2] : apart[3];
    }
    const int bit = __ffs(bits) - 1;
    bits &= bits - 1;
    return 64 * (word >> 1) + 2 * bit + (word & 1);
  };
  int channel = next();
  channel_pair ahead = {};
  if (channel < K) ahead = load(channel);
#pragma unroll 1
  while (channel < K) {
    const channel_pair x = ahead;
    channel = next();
    if (channel < K) ahead = load(channel);

    // y of the two tokens: sums from the middle of the chunk outwards.
    const float g0 = log_decay(x.log[0]), g1 = log_decay(x.log[1]);
    const bool late = lane >= 16;
    float sum = g0 + g1;
#pragma unroll
    for (int d = 1; d < 16; d *= 2) {
      const int from = late ? lane - d : lane + d;
      const float y = __shfl_sync(~0u, sum, from & 31);
      if (from >= 0 && from < 32 && (from >= 16) == late) sum += y;
    }
    const int from = late ? lane - 1 : lane + 1;
    float beyond = __shfl_sync(~0u, sum, from & 31);
    if (lane == 15 || lane == 16) beyond = 0;
    const float y0 = late ? beyond + g0 : -(beyond + g1);
    const float y1 = late ? y0 + g1 : -beyond;

    float row_log[2], row_erase[2], row_query[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = 8 * warp + 4 * j + (i >> 1);
      const auto pick = [&](float even, float odd) {
        const float a = __shfl_sync(~0u, even, at);
        const float b = __shfl_sync(~0u, odd, at);
        return i & 1 ? b : a;
      };
      row_log[j] = pick(y0, y1);
      if constexpr (Lower)
        row_erase[j] = pick(x.erase[0] * x.key[0], x.erase[1] * x.key[1]);
      if constexpr (Upper) row_query[j] = pick(x.query[0], x.query[1]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j / 2 > warp) continue;
      const float ys[2] = {__shfl_sync(~0u, y0, 4 * j + c),
                           __shfl_sync(~0u, y1, 4 * j + c)};
      const float ks[2] = {__shfl_sync(~0u, x.key[0], 4 * j + c),
                           __shfl_sync(~0u, x.key[1], 4 * j + c)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float f =
            ks[e & 1] * exp2_fast(fminf(row_log[e >> 1] - ys[e & 1], 0.f));
        if constexpr (Lower)
          l[4 * j + e] = fmaf(row_erase[e >> 1], f, l[4 * j + e]);
        if constexpr (Upper)
          m[4 * j + e] = fmaf(row_query[e >> 1], f, m[4 * j + e]);
      }
    }
  }
}

}  // namespace carve::cuda::chunks
