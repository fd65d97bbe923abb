// How is a chunk's T = (I + L)^-1 made by one warpgroup?
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "arch/barrier.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/shared.cuh"

namespace carve::cuda::chunks {

using namespace arch;

/// Scratch of a warp: two diagonal blocks of 8 x 8 in fp32, on different
/// banks, and their inverses, transposed, in fp16, a row 16 bytes.
struct inverse_scratch {
  float first[64];
  float apart[4];
  float second[64];
  uint4 inverses[16];
};

/// T is zero above its diagonal blocks.
__device__ __forceinline__ void clear_above(std::uint32_t tile, int warp,
                                            int lane) {
  for (int x = lane; x < 16 * (6 - 2 * warp); x += 32)
    write16(tile + swizzled(16 * warp + (x & 15), 2 * warp + 2 + (x >> 4)),
            make_uint4(0, 0, 0, 0));
}

/// `factor` times a product, rounded for the next.
__device__ __forceinline__ fragment pack_block(const float (&d)[2][4],
                                               float factor) {
  fragment a;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int at = 2 * (e & 1);
    a.r[e] = pack<__half>(factor * d[e >> 1][at], factor * d[e >> 1][at + 1]);
  }
  return a;
}

/// T = (I + L)^-1 by one warpgroup into a tile that is zero above its diagonal
/// blocks; L as a warpgroup product leaves it.  Diagonal blocks of 8 by
/// substitution in fp32, all others by fp16 products, first in blocks of 16
/// (a warp's own), then of 32, then the lower left of the tile:
///   T_ba = -T_b L_ba T_a.
/// `lower`: the warp's own.  Before the first barrier, where blocks of
/// 16 are done, `coupled` is given T_ww L_wk; `meanwhile` runs after it.
template <class Coupled, class Meanwhile>
__device__ __forceinline__ void invert(const float (&l)[32], std::uint32_t tile,
                                       shared<inverse_scratch> lower, int warp,
                                       int lane, int barrier, Coupled&& coupled,
                                       Meanwhile&& meanwhile) {
  // Blocks of 16 of the tile, for this lane of ldmatrix and stmatrix.
  const std::uint32_t corner_at = tile + swizzled(lane & 15, lane >> 4);
  const auto block = [&](int row, int column) {
    return (corner_at ^ (column << 5)) + row * 2048;
  };
  std::uint32_t corner = 0;  // of the diagonal block, its lower left
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (k == warp) {
      const float* m = l + 8 * k;
      store(lower[&inverse_scratch::first], 2 * lane, make_float2(m[0], m[1]));
      store(lower[&inverse_scratch::second], 2 * lane, make_float2(m[6], m[7]));
      corner = pack<__half>(m[2], m[3]);
    }
    // The blocks left of the diagonal one wait in their places.
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (k < warp) {
      const float* m = l + 8 * k;
      store_matrices(block(warp, k),
                     {pack<__half>(m[0], m[1]), pack<__half>(m[2], m[3]),
                      pack<__half>(m[4], m[5]), pack<__half>(m[6], m[7])});
    }
  corner = transpose8(corner);
  __syncwarp();

  // A column of one of the two inverses.
  float x[8];
#pragma unroll
  for (int t = 0; t < 8; ++t) x[t] = t == (lane & 7) ? 1.f : 0.f;
  const shared<float[64]> rows = lane & 8 ? lower[&inverse_scratch::second]
                                          : lower[&inverse_scratch::first];
#pragma unroll
  for (int s = 0; s < 8; s += 4) {
#pragma unroll
    for (int t = s + 1; t < 8; ++t) {
      const float4 r = load<float4>(rows, 8 * t + s);
      x[t] = fmaf(-r.x, x[s], x[t]);
      if (s + 1 < t) x[t] = fmaf(-r.y, x[s + 1], x[t]);
      if (s + 2 < t) x[t] = fmaf(-r.z, x[s + 2], x[t]);
      if (s + 3 < t) x[t] = fmaf(-r.w, x[s + 3], x[t]);
    }
  }
  const shared<uint4> inverses = lower[&inverse_scratch::inverses][lane & 15];
  if (lane < 16)
    write16(inverses,
            make_uint4(pack<__half>(x[0], x[1]), pack<__half>(x[2], x[3]),
                       pack<__half>(x[4], x[5]), pack<__half>(x[6], x[7])));
  __syncwarp();
  const fragment across = load_matrices(inverses);
  const fragment direct = load_matrices_transposed(inverses);
  fragment own = {direct.r[0], 0, 0, direct.r[1]};  // the block of 16
  {
    float y[4] = {}, z[4] = {};
    multiply<__half>(y, {direct.r[1], 0, 0, 0}, corner, 0);
    multiply<__half>(z, {pack<__half>(-y[0], -y[1]), 0, 0, 0}, across.r[0], 0);
    own.r[1] = pack<__half>(z[0], z[1]);
  }
  store_matrices(block(warp, warp), own);

  // T_ww L_wk; then, for the last two warps, of their block of 32.
  float left[3][2][4] = {};
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    if (k >= warp) continue;
    multiply<__half>(left[k], own, load_matrices_transposed(block(warp, k)));
  }
  coupled(left);
  sync_group<group>(barrier);
  meanwhile();

  // T_wj = -(T L)_wk T_kj, summed over block columns j to `last`.
  fragment r;
  const auto finish = [&](int j, int last) {
    float y[2][4] = {};
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      if (k < j || k > last) continue;
      const fragment b = load_matrices_transposed(block(k, j));
      multiply<__half>(y, pack_block(left[k], -1.f), b);
    }
    r = pack_block(y, 1.f);
    store_matrices(block(warp, j), r);
  };
  if (warp == 1) finish(0, 0);
  if (warp == 3) {
    finish(2, 2);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      multiply<__half>(left[k], r, load_matrices_transposed(block(2, k)));
    }
  }
  sync_group<group>(barrier);
  if (warp >= 2) {
    finish(1, 1);
    finish(0, 1);
  }
}

}  // namespace carve::cuda::chunks
