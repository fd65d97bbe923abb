// The chunked backward's walk: the state forwards and its cotangent backwards
// through the prepared chunks, side by side.
#pragma once

#include "backward_parts.cuh"

namespace carve::cuda::backward_chunks {

/// Shared memory of one stage of either walk; `Slice` value channels.
template <int K, int Slice>
struct walk_layout {
  static constexpr int big = chunk * K * 2, small = chunk * Slice * 2;
  // forwards: W, Kt, Y;  backwards: M, Rt, Qt, Z, do
  // and the decay, and if it is one a head the tokens' factors
  static constexpr int forward_stage = 2 * big + small + K * 4 + chunk * 4;
  static constexpr int reverse_stage = 3 * big + 2 * small + K * 4 + chunk * 8;
  static constexpr int reverse = 2 * forward_stage;
  static constexpr int bytes = reverse + 2 * reverse_stage;
};

/// Rows of a tile from the workspace.  Tiles narrower than 64 columns are
/// kept 64 wide.
template <int Columns, int Stride, int Threads>
__device__ __forceinline__ void fetch(std::uint32_t to, const __half* from,
                                      int thread) {
#pragma unroll
  for (int i = 0; i < chunk * Columns / 8; i += Threads) {
    const int at = i + thread;
    const int row = at / (Columns / 8), col = at % (Columns / 8) * 8;
    mma::copy16(to + mma::tile_offset<Columns>(row, col),
                from + row * Stride + col, true);
  }
}

/// Writes the state (transposed, rows v0.., as operands `x` for channels
/// 16 kb..) as the blocks that `gradients` reads: lane (n, quad) of the reader
/// finds its right operands of columns (0, n) and (1, n) in 16 bytes: channels
/// n and 8 + n, or in the order of `slice`.
template <bool Scalar>
__device__ __forceinline__ void put_state(uint2* block, const quad_reg& x,
                                          int lane) {
  const int group = lane >> 2, quad = lane & 3;
  if constexpr (Scalar) {
    reinterpret_cast<uint4*>(block)[lane] =
        make_uint4(mma::transpose8(x.r[0]), mma::transpose8(x.r[1]),
                   mma::transpose8(x.r[2]), mma::transpose8(x.r[3]));
  } else {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int ch = 8 * tile + group;
      const int n = 2 * (ch >> 2) + (ch & 1), j = (ch & 3) >> 1;
      block[(n * 4 + quad) * 2 + j] = make_uint2(
          mma::transpose8(x.r[2 * tile]), mma::transpose8(x.r[2 * tile + 1]));
    }
  }
}

/// Writes 16 tokens x 16 values held transposed.
__device__ __forceinline__ void put_transposed(__half* to, int stride,
                                               const quad_reg& x, int lane) {
  __half* row = to + (lane >> 2) * stride;
  store_row16(row, lane & 3, mma::transpose8(x.r[0]), mma::transpose8(x.r[1]));
  store_row16(row + 8 * stride, lane & 3, mma::transpose8(x.r[2]),
              mma::transpose8(x.r[3]));
}

/// The state as left operand, channels 16 kb...
template <int Tiles>
__device__ __forceinline__ quad_reg as_operand(const float (&x)[Tiles][4],
                                               int kb) {
  return {{operand::pack(x[2 * kb][0], x[2 * kb][1]),
           operand::pack(x[2 * kb][2], x[2 * kb][3]),
           operand::pack(x[2 * kb + 1][0], x[2 * kb + 1][1]),
           operand::pack(x[2 * kb + 1][2], x[2 * kb + 1][3])}};
}

/// `Scalar`: one decay a head; Kt, Rt, Qt are k, k, q, their factors apart.
template <int K, int V, int Warps, bool Scalar>
__global__ void __launch_bounds__(Warps * 64, 1)
    walk(const __grid_constant__ arguments a) {
  constexpr int slice = Warps * 16, threads = Warps * 32;
  // A tile row must span 128 bytes for the permutation.
  constexpr int tile = slice < 64 ? 64 : slice;
  using lay = walk_layout<K, tile>;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const problem& p = a.p;
  const bool reverse = threadIdx.x >= threads;
  const int tid = threadIdx.x % threads, lane = tid & 31, warp = tid >> 5;
  const int group = lane >> 2, quad = lane & 3;
  constexpr int splits = V / slice;
  const int part = blockIdx.x % splits, head = blockIdx.x / splits % p.HV;
  const int sequence = blockIdx.x / (splits * p.HV);
  const int begin = a.first_chunk[sequence],
            count = a.first_chunk[sequence + 1] - begin;
  const int v_local = warp * 16, v = part * slice + v_local;
  const std::int64_t state_at =
      (static_cast<std::int64_t>(sequence) * p.HV + head) * K * V;
  float S[K / 8][4];

  if (!reverse) {
    const std::uint32_t stages = mma::shared_address(memory);
    auto issue = [&](int i) {
      const std::int64_t at =
          static_cast<std::int64_t>(begin + i) * p.HV + head;
      const std::uint32_t to = stages + (i & 1) * lay::forward_stage;
      fetch<K, K, threads>(to, a.W + at * chunk * K, tid);
      for (int x = tid; x < chunk * slice / 8; x += threads) {
        const int row = x / (slice / 8), col = x % (slice / 8) * 8;
        mma::copy16(to + 2 * lay::big + mma::tile_offset<tile>(row, col),
                    a.Y + (at * chunk + row) * V + part * slice + col, true);
      }
      if (tid < K / 4)
        mma::copy16(to + 2 * lay::big + lay::small + tid * 16,
                    a.decay + at * K + tid * 4, true);
      if (Scalar && tid < chunk / 4)
        mma::copy16(to + 2 * lay::big + lay::small + K * 4 + tid * 16,
                    a.factors + at * (4 * chunk) + to_tail + tid * 4, true);
      fetch<K, K, threads>(to + lay::big, a.Kt + at * chunk * K, tid);
      mma::copy_commit();
    };
    if (count > 0) issue(0);
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int x = 0; x < 4; ++x)
        S[j][x] =
            p.initial_state
                ? p.initial_state[state_at + (8 * j + 2 * quad + (x & 1)) * V +
                                  v + group + 8 * (x >> 1)]
                : 0.f;
    for (int i = 0; i < count; ++i) {
      mma::copy_wait<0>();
      mma::named_barrier(1, threads);
      if (i + 1 < count) issue(i + 1);
      const std::int64_t at =
          static_cast<std::int64_t>(begin + i) * p.HV + head;
      const std::uint32_t from = stages + (i & 1) * lay::forward_stage;
      uint2* states = a.S + (at * (V / 16) + v / 16) * (K / 16) * 64;
      float u[8][4] = {};
#pragma unroll
      for (int kb = 0; kb < K / 16; ++kb) {
        const quad_reg x = as_operand(S, kb);
        put_state<Scalar>(states + kb * 64, x, lane);
#pragma unroll
        for (int tb = 0; tb < 4; ++tb) {
          const quad_reg y = mma::right<K>(from, kb * 16, tb * 16, lane);
          mma::multiply_fp16(u[2 * tb], x, y.r[0], y.r[1]);
          mma::multiply_fp16(u[2 * tb + 1], x, y.r[2], y.r[3]);
        }
      }
      // W of the first chunk is lifted.
      const float unlift_w = !Scalar && i == 0 ? 1 / first_lift : 1.f;
      const float* decay = reinterpret_cast<const float*>(
          memory + (i & 1) * lay::forward_stage + 2 * lay::big + lay::small);
#pragma unroll
      for (int j = 0; j < K / 8; ++j) {
        const float2 d =
            *reinterpret_cast<const float2*>(decay + 8 * j + 2 * quad);
        S[j][0] *= d.x, S[j][1] *= d.y, S[j][2] *= d.x, S[j][3] *= d.y;
      }
#pragma unroll
      for (int tb = 0; tb < 4; ++tb) {
        const quad_reg y =
            mma::left_trans<tile>(from + 2 * lay::big, v_local, tb * 16, lane);
        quad_reg x, scaled;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float2 z = operand::unpack(y.r[n]);
          const float(&w)[4] = u[2 * tb + (n >> 1)];
          const float lo = fmaf(-unlift_w, w[2 * (n & 1)], z.x);
          const float hi = fmaf(-unlift_w, w[2 * (n & 1) + 1], z.y);
          x.r[n] = operand::pack(lo, hi);
          if (Scalar) {
            const float2 f = *reinterpret_cast<const float2*>(
                decay + K + tb * 16 + 8 * (n >> 1) + 2 * quad);
            scaled.r[n] = operand::pack(lo * f.x, hi * f.y);
          }
        }
        put_transposed(a.U + (at * chunk + tb * 16) * V + v, V, x, lane);
        if (Scalar) x = scaled;
#pragma unroll
        for (int kb = 0; kb < K / 16; ++kb) {
          const quad_reg z =
              mma::right_trans<K>(from + lay::big, tb * 16, kb * 16, lane);
          mma::multiply_fp16(S[2 * kb], x, z.r[0], z.r[1]);
          mma::multiply_fp16(S[2 * kb + 1], x, z.r[2], z.r[3]);
        }
      }
    }
    return;
  }

  const std::uint32_t stages = mma::shared_address(memory) + lay::reverse;
  constexpr int Rt = lay::big, Qt = 2 * lay::big, Z = 3 * lay::big,
                d_o = Z + lay::small, decay_at = d_o + lay::small;
  auto issue = [&](int i) {
    const std::int64_t at = static_cast<std::int64_t>(begin + i) * p.HV + head;
    const std::uint32_t to = stages + (i & 1) * lay::reverse_stage;
    fetch<K, K, threads>(to, a.M + at * chunk * K, tid);
    for (int x = tid; x < chunk * slice / 8; x += threads) {
      const int row = x / (slice / 8), col = x % (slice / 8) * 8;
      mma::copy16(to + Z + mma::tile_offset<tile>(row, col),
                  a.Z + (at * chunk + row) * V + part * slice + col, true);
      mma::copy16(to + d_o + mma::tile_offset<tile>(row, col),
                  a.d_o + (at * chunk + row) * V + part * slice + col, true);
    }
    if (tid < K / 4)
      mma::copy16(to + decay_at + tid * 16, a.decay + at * K + tid * 4, true);
    if (Scalar && tid < chunk / 2)
      mma::copy16(to + decay_at + K * 4 + tid * 16,
                  a.factors + at * (4 * chunk) + to_start + tid * 4, true);
    fetch<K, K, threads>(to + Qt, a.Qt + at * chunk * K, tid);
    fetch<K, K, threads>(to + Rt, (Scalar ? a.Kt : a.Rt) + at * chunk * K, tid);
    mma::copy_commit();
  };
  const float2 norm = cotangent_scale(a, sequence, head);
  float unlift_state = norm.y;
  if (count > 0) issue(count - 1);
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int x = 0; x < 4; ++x)
      S[j][x] =
          a.d.d_final_state
              ? a.d.d_final_state[state_at + (8 * j + 2 * quad + (x & 1)) * V +
                                  v + group + 8 * (x >> 1)] *
                    norm.x
              : 0.f;
  for (int i = count - 1; i >= 0; --i) {
    mma::copy_wait<0>();
    mma::named_barrier(2, threads);
    if (i > 0) issue(i - 1);
    const std::int64_t at = static_cast<std::int64_t>(begin + i) * p.HV + head;
    const std::uint32_t from = stages + (i & 1) * lay::reverse_stage;
    uint2* states = a.dS + (at * (V / 16) + v / 16) * (K / 16) * 64;
    float u[8][4] = {};
#pragma unroll
    for (int kb = 0; kb < K / 16; ++kb) {
      const quad_reg x = as_operand(S, kb);
      put_state<Scalar>(states + kb * 64, x, lane);
#pragma unroll
      for (int tb = 0; tb < 4; ++tb) {
        const quad_reg y = mma::right<K>(from, kb * 16, tb * 16, lane);
        mma::multiply_fp16(u[2 * tb], x, y.r[0], y.r[1]);
        mma::multiply_fp16(u[2 * tb + 1], x, y.r[2], y.r[3]);
      }
    }
    const float* decay = reinterpret_cast<const float*>(
        memory + lay::reverse + (i & 1) * lay::reverse_stage + decay_at);
    // The first chunk from its first token on, where the state is kept from.
    const float lift = i > 0    ? 1.f
                       : Scalar ? 1.f / fmaxf(decay[K], 0x1p-100f)
                                : first_lift;
    unlift_state = norm.y / lift;
#pragma unroll
    for (int j = 0; j < K / 8; ++j) {
      float2 d = *reinterpret_cast<const float2*>(decay + 8 * j + 2 * quad);
      d.x *= lift, d.y *= lift;
      S[j][0] *= d.x, S[j][1] *= d.y, S[j][2] *= d.x, S[j][3] *= d.y;
    }
#pragma unroll
    for (int tb = 0; tb < 4; ++tb) {
      const quad_reg y =
          mma::left_trans<tile>(from + Z, v_local, tb * 16, lane);
      quad_reg x, scaled;
      quad_reg o = mma::left_trans<tile>(from + d_o, v_local, tb * 16, lane);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 z = operand::unpack(y.r[n]);
        const float(&w)[4] = u[2 * tb + (n >> 1)];
        const float lo = z.x + w[2 * (n & 1)], hi = z.y + w[2 * (n & 1) + 1];
        x.r[n] = operand::pack(lo, hi);
        if (Scalar) {
          const float* const at_token =
              decay + K + tb * 16 + 8 * (n >> 1) + 2 * quad;
          float2 f = *reinterpret_cast<const float2*>(at_token);
          f.x *= lift, f.y *= lift;
          const float2 beta =
              *reinterpret_cast<const float2*>(at_token + (to_beta - to_start));
          scaled.r[n] = operand::pack(lo * (f.x * beta.x), hi * (f.y * beta.y));
          const float2 d = operand::unpack(o.r[n]);
          o.r[n] = operand::pack(d.x * (f.x * p.scale), d.y * (f.y * p.scale));
        }
      }
      put_transposed(a.dR + (at * chunk + tb * 16) * V + v, V, x, lane);
      if (Scalar) x = scaled;
#pragma unroll
      for (int n = 0; n < 4; ++n) x.r[n] ^= 0x80008000u;  // minus dR
#pragma unroll
      for (int kb = 0; kb < K / 16; ++kb) {
        const quad_reg z =
            mma::right_trans<K>(from + Qt, tb * 16, kb * 16, lane);
        mma::multiply_fp16(S[2 * kb], o, z.r[0], z.r[1]);
        mma::multiply_fp16(S[2 * kb + 1], o, z.r[2], z.r[3]);
        const quad_reg w =
            mma::right_trans<K>(from + Rt, tb * 16, kb * 16, lane);
        mma::multiply_fp16(S[2 * kb], x, w.r[0], w.r[1]);
        mma::multiply_fp16(S[2 * kb + 1], x, w.r[2], w.r[3]);
      }
    }
  }
  if (a.d.d_initial_state == nullptr) return;
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int x = 0; x < 4; ++x)
      a.d.d_initial_state[state_at + (8 * j + 2 * quad + (x & 1)) * V + v +
                          group + 8 * (x >> 1)] = S[j][x] * unlift_state;
}

}  // namespace carve::cuda::backward_chunks
