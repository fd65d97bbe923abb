// The chunked backward's walk: the state forwards and its cotangent backwards
// through the prepared chunks, side by side in blocks of their own.
//
// A few heads' walk is one long chain, so its warps do nothing but the chain:
// the copy engine fills the stages, whole tiles at a time, ordered by one warp
// that has no other work.
#pragma once

#include "backward/parts.cuh"

namespace carve::cuda::backward_chunks {

/// Shared memory of a walk; `Warps` slices of 16 value channels.
template <int K, int Warps>
struct walk_layout {
  static constexpr int stages = Warps == 8 ? 2 : 3;
  // With eight, whole warpgroups, that can exchange registers.
  static constexpr int threads = Warps == 8 ? 384 : Warps * 32 + 32;
  static constexpr int big = chunk * K * 2, small = chunk * Warps * 32;
  // Of a stage: M, Rt and
  static constexpr int M = 0, Rt = big;
  // forwards T, v, w,
  static constexpr int T = 2 * big, v = 3 * big, w = v + small;
  // backwards Qt, Z, do,
  static constexpr int Qt = 2 * big, Z = 3 * big, d_o = Z + small;
  // the decay and d_o's scale, and the tokens' factors, if there are: e^Gamma
  // and beta.
  static constexpr int decay = 3 * big + 2 * small;
  static constexpr int tokens = decay + K * 4 + 16;
  static constexpr int stage = (tokens + chunk * 8 + 255) / 256 * 256;
  // Of each stage, when it is full and when it is empty.
  static constexpr int full = stages * stage;
  static constexpr int empty = full + stages * 8;
  static constexpr int bytes = empty + stages * 8;
};

/// Writes the state (transposed, rows v0.., as operands `x` for channels
/// 16 kb..) as the blocks that `gradients` reads: lane (n, quad) of the reader
/// finds its right operands of columns (0, n) and (1, n) in 16 bytes: channels
/// n and 8 + n, or in the order of `slice`.
template <bool Scalar>
__device__ __forceinline__ void put_state(uint2* block, const fragment& x,
                                          int lane) {
  const int group = lane >> 2, quad = lane & 3;
  if constexpr (Scalar) {
    reinterpret_cast<uint4*>(block)[lane] =
        make_uint4(arch::transpose8(x.r[0]), arch::transpose8(x.r[1]),
                   arch::transpose8(x.r[2]), arch::transpose8(x.r[3]));
  } else {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int ch = 8 * tile + group;
      const int n = 2 * (ch >> 2) + (ch & 1), j = (ch & 3) >> 1;
      block[(n * 4 + quad) * 2 + j] = make_uint2(
          arch::transpose8(x.r[2 * tile]), arch::transpose8(x.r[2 * tile + 1]));
    }
  }
}

/// 16 tokens x 16 values held transposed, as rows of tokens.
__device__ __forceinline__ fragment transposed(const fragment& x) {
  return {{arch::transpose8(x.r[0]), arch::transpose8(x.r[1]),
           arch::transpose8(x.r[2]), arch::transpose8(x.r[3])}};
}
/// Writes such rows, from value channel v on, into a tile by wide_offset.
__device__ __forceinline__ void put_wide(__half* tile, int first_row, int v,
                                         const fragment& y, int lane) {
  const int group = lane >> 2, quad = lane & 3;
  __half* row = tile + v / 64 * (chunk * 64) + (first_row + group) * 64 +
                ((v % 64) ^ ((group & 6) * 8));
  store_row16(row, quad, y.r[0], y.r[1], true, group % 2 * 8);
  store_row16(row + 8 * 64, quad, y.r[2], y.r[3], true, group % 2 * 8);
}
/// Writes such rows into a panel.
__device__ __forceinline__ void put_rows(__half* panel, const fragment& y,
                                         int lane) {
  const int group = lane >> 2, quad = lane & 3;
  __half* row = panel + group * 16;
  store_row16(row, quad, y.r[0], y.r[1], true, group * 2 & 8);
  store_row16(row + 8 * 16, quad, y.r[2], y.r[3], true, group * 2 & 8);
}

/// The state as left operand, channels 16 kb...
template <int Tiles>
__device__ __forceinline__ fragment as_operand(const float (&x)[Tiles][4],
                                               int kb) {
  return {{operand::pack(x[2 * kb][0], x[2 * kb][1]),
           operand::pack(x[2 * kb][2], x[2 * kb][3]),
           operand::pack(x[2 * kb + 1][0], x[2 * kb + 1][1]),
           operand::pack(x[2 * kb + 1][2], x[2 * kb + 1][3])}};
}

/// Where 16 tokens of 16 channels of a tile stand, of this lane's rows.
template <bool Scalar, int K>
__device__ __forceinline__ std::uint32_t key_block(std::uint32_t rows, int kb,
                                                   int tb) {
  if constexpr (Scalar) return (rows ^ (kb * 32)) + tb * 32 * K;
  return (rows ^ (kb % 4 * 32)) + kb / 4 * (chunk * 128) + tb * 2048;
}

/// The product of the state with a tile, all its tokens; the state is written
/// out and then decays, times `lift`.  `rows`: where this lane's ldmatrix rows
/// of the tile begin, stored [n][k].
template <bool Scalar, int K>
__device__ __forceinline__ void multiply_state(
    float (&u)[8][4], float (&S)[K / 8][4], uint2* states, std::uint32_t rows,
    const float* decay, float lift, int lane) {
#pragma unroll
  for (int kb = 0; kb < K / 16; ++kb) {
    const fragment x = as_operand(S, kb);
#pragma unroll
    for (int tb = 0; tb < 4; ++tb) {
      const fragment y =
          arch::load_matrices(key_block<Scalar, K>(rows, kb, tb));
      arch::multiply<__half>(u[2 * tb], x, y.r[0], y.r[1]);
      arch::multiply<__half>(u[2 * tb + 1], x, y.r[2], y.r[3]);
    }
    put_state<Scalar>(states + kb * 64, x, lane);
#pragma unroll
    for (int j = 2 * kb; j < 2 * kb + 2; ++j) {
      const float2 d =
          *reinterpret_cast<const float2*>(decay + 8 * j + 2 * (lane & 3));
      S[j][0] *= d.x * lift, S[j][1] *= d.y * lift;
      S[j][2] *= d.x * lift, S[j][3] *= d.y * lift;
    }
  }
}
/// Adds the product of x with 16 tokens of a tile to the state; `rows` as
/// above, stored [k][n].
template <bool Scalar, int K>
__device__ __forceinline__ void add_product(float (&S)[K / 8][4],
                                            const fragment& x,
                                            std::uint32_t rows, int tb) {
#pragma unroll
  for (int kb = 0; kb < K / 16; ++kb) {
    const fragment y =
        arch::load_matrices_transposed(key_block<Scalar, K>(rows, kb, tb));
    arch::multiply<__half>(S[2 * kb], x, y.r[0], y.r[1]);
    arch::multiply<__half>(S[2 * kb + 1], x, y.r[2], y.r[3]);
  }
}

/// Where this lane's ldmatrix rows begin: of a right operand, stored [n][k] and
/// [k][n], and of a panel's values; a column block is added by exclusive or,
/// since tiles begin at multiples of 256 bytes.
template <int Columns>
struct lane_rows {
  std::uint32_t right, trans, panel;

  __device__ __forceinline__ lane_rows(int warp, int lane)
      : right(arch::tile_offset<Columns>((lane >> 4) * 8 + (lane & 7),
                                         ((lane >> 3) & 1) * 8)),
        trans(arch::tile_offset<Columns>(((lane >> 3) & 1) * 8 + (lane & 7),
                                         (lane >> 4) * 8)),
        panel(warp * (chunk * 32) +
              2 * panel_offset((lane >> 4) * 8 + (lane & 7),
                               ((lane >> 3) & 1) * 8)) {}
};

/// A warp fills the stages, from the walk's first chunk on: tiles by the copy
/// engine, and the values and write gates, rows of the inputs, by itself.
template <typename E, int K, int V, int Warps, bool Scalar>
__device__ __forceinline__ void fill_stages(const arguments& a,
                                            std::uint32_t shared, bool reverse,
                                            int sequence, int begin, int count,
                                            int head, int part, int lane) {
  using lay = walk_layout<K, Warps>;
  const problem& p = a.p;
  const bool gdn2 = !Scalar && p.family == family::gdn2,
             one_beta = !Scalar && !gdn2;
  constexpr int decay_bytes = K * 4 + 16, token_bytes = chunk * 4;
  constexpr int tile_bytes = chunk * chunk * 2;
  // This lane copies eight values of every `step`th row.
  constexpr int pieces = Warps * 2, step = 32 / pieces;
  const int row = lane / pieces, col = lane % pieces * 8;
  const std::uint32_t piece = 2 * panel_offset(row, col);
  const sequence_span s = span_of(p.cu_seqlens, p.T, sequence);
  const int channel = part * Warps * 16 + col;
  const E* v = row_of<E>(p.v, s.batch, s.first + row, head) + channel;
  const E* w = row_of<E>(p.w, s.batch, s.first + row, head) + channel;
  int left = s.length - row;
  std::int64_t at =
      static_cast<std::int64_t>(reverse ? begin + count - 1 : begin) * p.HV +
      head;
  int stage = 0, phase = 1;
  for (int n = 0; n < count; ++n, at += reverse ? -p.HV : p.HV) {
    const std::int64_t key_at = at * chunk * K;
    const std::int64_t value_at = (at * V + part * Warps * 16) * chunk;
    const float* const tokens = a.factors + at * (4 * chunk);
    const std::uint32_t to = shared + stage * lay::stage;
    const std::uint32_t full = shared + lay::full + 8 * stage;
    arch::barrier_wait(shared + lay::empty + 8 * stage, phase);
    if (lane == 0) {
      arch::barrier_expect(
          full, 2 * lay::big + decay_bytes + (Scalar ? 2 * token_bytes : 0) +
                    (reverse ? lay::big + 2 * lay::small
                             : tile_bytes + (one_beta ? token_bytes : 0)));
      arch::bulk_load(to + (reverse ? lay::M : lay::Rt),
                      (reverse ? a.M : a.Rt) + key_at, lay::big, full);
      arch::bulk_load(to + lay::decay, a.decay + at * (K + 4), decay_bytes,
                      full);
      if (Scalar)
        arch::bulk_load(to + lay::tokens, tokens + to_start, 2 * token_bytes,
                        full);
      if (reverse) {
        arch::bulk_load(to + lay::d_o, a.d_o + value_at, lay::small, full);
        arch::bulk_load(to + lay::Qt, a.Qt + key_at, lay::big, full);
        arch::bulk_load(to + lay::Z, a.Z + value_at, lay::small, full);
      } else {
        if (one_beta)
          arch::bulk_load(to + lay::tokens + token_bytes, tokens + to_beta,
                          token_bytes, full);
        arch::bulk_load(to + lay::T, a.T + at * chunk * chunk, tile_bytes,
                        full);
      }
      arch::bulk_load(to + (reverse ? lay::Rt : lay::M),
                      (reverse ? a.Rt : a.M) + key_at, lay::big, full);
    }
    if (!reverse) {
#pragma unroll
      for (int i = 0; i < chunk / step; ++i) {
        const bool valid = i * step < left;
        const int next = valid ? i * step : -row;
        const std::uint32_t there =
            to + i * step * 32 + (piece ^ (i * step & 4) * 4);
        arch::copy_async_16(there + lay::v, v + next * p.v.token, valid);
        if (gdn2)
          arch::copy_async_16(there + lay::w, w + next * p.w.token, valid);
      }
      arch::copy_async_arrive(full);
      v += chunk * p.v.token, w += chunk * p.w.token, left -= chunk;
    }
    if (++stage == lay::stages) stage = 0, phase ^= 1;
  }
  arch::copy_async_wait<0>();
}

/// `Scalar`: one decay a head; Rt, Qt are k, q, their factors apart.
/// A block walks one way: in the first half of the grid, whose chunks cost
/// more, backwards; with a content gate all walk forwards.  Each warp has 16
/// value channels, but for the last, which copies.
template <typename E, int K, int V, int Warps, bool Scalar>
__global__ void __launch_bounds__(walk_layout<K, Warps>::threads, 1)
    walk(const __grid_constant__ arguments a) {
  using lay = walk_layout<K, Warps>;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const problem& p = a.p;
  const int lane = threadIdx.x & 31;
  const int warp =
      __shfl_sync(~0u, threadIdx.x >> 5, 0);  // known to be uniform
  const int group = lane >> 2, quad = lane & 3;
  constexpr int splits = V / (Warps * 16);
  const unsigned backwards = p.family == family::carve ? 0 : gridDim.x / 2;
  const bool reverse = blockIdx.x < backwards;
  const int index = reverse ? blockIdx.x : blockIdx.x - backwards;
  const int part = index % splits, head = index / splits % p.HV;
  const int sequence = index / (splits * p.HV);
  const int begin = a.first_chunk[sequence],
            count = a.first_chunk[sequence + 1] - begin;
  const std::uint32_t shared = arch::shared_address(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < lay::stages; ++i) {
      arch::barrier_init(shared + lay::full + 8 * i, reverse ? 1 : 33);
      arch::barrier_init(shared + lay::empty + 8 * i, Warps);
    }
    arch::fence_async_proxy();
  }
  __syncthreads();
  if (warp >= Warps) {
    if constexpr (Warps == 8) arch::shrink_registers<40>();
    if (warp > Warps) return;
    fill_stages<E, K, V, Warps, Scalar>(a, shared, reverse, sequence, begin,
                                        count, head, part, lane);
    return;
  }
  if constexpr (Warps == 8) arch::grow_registers<232>();
  const int v = (part * Warps + warp) * 16;
  const std::int64_t state_at =
      (static_cast<std::int64_t>(sequence) * p.HV + head) * K * V;
  const lane_rows<Scalar ? K : 64> in(warp, lane);
  float S[K / 8][4];

  // Calls step(offset of the stage) when it is full, then frees it.
  int stage = 0, phase = 0;
  auto in_stage = [&](auto&& step) {
    arch::barrier_wait(shared + lay::full + 8 * stage, phase);
    step(stage * lay::stage);
    arch::barrier_arrive_warp(shared + lay::empty + 8 * stage, lane);
    if (++stage == lay::stages) stage = 0, phase ^= 1;
  };

  if (!reverse) {
    const bool gdn2 = !Scalar && p.family == family::gdn2;
    const std::uint32_t in_T = arch::tile_offset<chunk>(
        (lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
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
      in_stage([&](int stage_at) {
        const std::int64_t at =
            static_cast<std::int64_t>(begin + i) * p.HV + head;
        const std::uint32_t from = shared + stage_at;
        const float* decay =
            reinterpret_cast<const float*>(memory + stage_at + lay::decay);
        float u[8][4] = {};
        multiply_state<Scalar, K>(u, S, a.S + (at * V + v) * (K / 4),
                                  from + lay::Rt + in.right, decay, 1.f, lane);
        // Rt of the first chunk is lifted.
        const float unlift_R = !Scalar && i == 0 ? 1 / first_lift : 1.f;
        fragment x[4];  // U'
#pragma unroll
        for (int tb = 0; tb < 4; ++tb) {
          const fragment y = arch::load_matrices_transposed(
              from + lay::v + in.panel + tb * 512);
          fragment gate;
          if (gdn2)
            gate = arch::load_matrices_transposed(from + lay::w + in.panel +
                                                  tb * 512);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            float2 z = element<E>::unpack(y.r[n]);
            const float(&r)[4] = u[2 * tb + (n >> 1)];
            float lo = r[2 * (n & 1)], hi = r[2 * (n & 1) + 1];
            const float* const at_token =
                decay + K + 4 + tb * 16 + 8 * (n >> 1) + 2 * quad;
            const float2 by =
                gdn2 ? element<E>::unpack(gate.r[n])
                     : *reinterpret_cast<const float2*>(at_token + chunk);
            if (Scalar) {
              const float2 f = *reinterpret_cast<const float2*>(at_token);
              lo = (z.x - f.x * lo) * by.x, hi = (z.y - f.y * hi) * by.y;
            } else {
              lo = z.x * by.x - unlift_R * lo, hi = z.y * by.y - unlift_R * hi;
            }
            x[tb].r[n] = operand::pack(lo, hi);
          }
          add_product<Scalar, K>(S, x[tb], from + lay::M + in.trans, tb);
        }
        // U, for which the next chunk does not wait.
#pragma unroll
        for (int tb = 0; tb < 4; ++tb) {
          float y[2][4] = {};
#pragma unroll
          for (int kb = 0; kb <= tb; ++kb) {
            const fragment t = arch::load_matrices(
                ((from + lay::T + in_T) ^ (kb * 32)) + tb * 32 * chunk);
            arch::multiply<__half>(y[0], x[kb], t.r[0], t.r[1]);
            arch::multiply<__half>(y[1], x[kb], t.r[2], t.r[3]);
          }
          const fragment rows = transposed({{operand::pack(y[0][0], y[0][1]),
                                             operand::pack(y[0][2], y[0][3]),
                                             operand::pack(y[1][0], y[1][1]),
                                             operand::pack(y[1][2], y[1][3])}});
          if constexpr (Scalar)
            put_rows(a.U + (at * V + v) * chunk + tb * 256, rows, lane);
          else
            put_wide(a.U + at * V * chunk, tb * 16, v, rows, lane);
        }
      });
    }
    return;
  }

  const float2 norm = cotangent_scale(a, sequence, head);
  float unlift_state = norm.y;
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
  auto step = [&](int i, int stage_at, auto first) {
    const std::int64_t at = static_cast<std::int64_t>(begin + i) * p.HV + head;
    const std::uint32_t from = shared + stage_at;
    const float* decay =
        reinterpret_cast<const float*>(memory + stage_at + lay::decay);
    __half* const dR = a.dR + (at * V + v) * chunk;
    float lift = 1.f;
    if constexpr (decltype(first)::value) {
      lift = Scalar ? 1.f / fmaxf(decay[K + 4], 0x1p-100f) : first_lift;
      unlift_state = norm.y / lift;
    }
    const float common = to_common_scale(norm.x, decay[K]);
    const std::uint32_t common_2 = operand::pack(common, common);
    const float scale = p.scale * common;
    float u[8][4] = {};
    multiply_state<Scalar, K>(u, S, a.dS + (at * V + v) * (K / 4),
                              from + lay::M + in.right, decay, lift, lane);
#pragma unroll
    for (int tb = 0; tb < 4; ++tb) {
      fragment o =
          arch::load_matrices_transposed(from + lay::d_o + in.panel + tb * 512);
      const fragment y =
          arch::load_matrices_transposed(from + lay::Z + in.panel + tb * 512);
      fragment x, scaled;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 z = operand::unpack(y.r[n]);
        const float(&w)[4] = u[2 * tb + (n >> 1)];
        const float lo = fmaf(z.x, common, w[2 * (n & 1)]),
                    hi = fmaf(z.y, common, w[2 * (n & 1) + 1]);
        x.r[n] = operand::pack(lo, hi);
        if (Scalar) {
          const float* const at_token =
              decay + K + 4 + tb * 16 + 8 * (n >> 1) + 2 * quad;
          float2 f = *reinterpret_cast<const float2*>(at_token);
          f.x *= lift, f.y *= lift;
          const float2 beta =
              *reinterpret_cast<const float2*>(at_token + (to_beta - to_start));
          scaled.r[n] = operand::pack(lo * (f.x * beta.x), hi * (f.y * beta.y));
          const float2 d = operand::unpack(o.r[n]);
          o.r[n] = operand::pack(d.x * (f.x * scale), d.y * (f.y * scale));
        }
      }
      if (!Scalar) arch::scale_columns<__half>(o, common_2, common_2);
      // The first product does not wait for x.
      add_product<Scalar, K>(S, o, from + lay::Qt + in.trans, tb);
      fragment minus = Scalar ? scaled : x;
#pragma unroll
      for (int n = 0; n < 4; ++n) minus.r[n] ^= 0x80008000u;
      add_product<Scalar, K>(S, minus, from + lay::Rt + in.trans, tb);
      put_rows(dR + tb * 256, transposed(x), lane);
    }
  };
  // The first chunk from its first token on, where the state is kept from.
  for (int i = count - 1; i > 0; --i)
    in_stage([&](int stage_at) { step(i, stage_at, std::false_type{}); });
  if (count > 0)
    in_stage([&](int stage_at) { step(0, stage_at, std::true_type{}); });
  if (a.d.d_initial_state == nullptr) return;
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int x = 0; x < 4; ++x)
      a.d.d_initial_state[state_at + (8 * j + 2 * quad + (x & 1)) * V + v +
                          group + 8 * (x >> 1)] = S[j][x] * unlift_state;
}

}  // namespace carve::cuda::backward_chunks
