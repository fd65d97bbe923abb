// CARVE's walk backwards: what the gate of a window receives is handed to the
// outputs of the window before, chunk by chunk.
//
// With the gates known a chunk is prepared as gdn2's is.  But an output feeds
// the next window's gate too, so that beside do every token of a window has
//   c = W_down^T W_up^T D / window,  D = sum of b (1 - b) k dr
// over the tokens of the window after it, where dr_t = -S~_t dR_t and S~_t is
// the state that token t met,
//   S~_t dR_t = e^Gamma_t S dR_t + sum_{s<t} (dR_t U_s) e^(Gamma_t - Gamma_s)
//   k_s.
// D is a sum over tokens, K numbers: no dr is written, nor does do wait for one
// but for its own window.  Z is linear in do, so what c adds to it is c times
// the sums over rows of P T.
#pragma once

#include "backward/walk.cuh"

namespace carve::cuda::backward_chunks {

constexpr int largest_rank = 128;

/// Shared memory: two stages of a chunk, dR of the chunk (tile), dR U^T below
/// the diagonal (tile), D, W_up^T D and c.
template <int K, int V>
struct content_layout {
  static constexpr int walkers = V / 16, summers = K / 16;  // warps
  static constexpr int threads = 32 * (walkers + summers);
  static constexpr int stages = 2;
  static constexpr int big = chunk * K * 2, small = chunk * V * 2;
  // Of a stage: M, Rt, Qt, Z, do, U, the decay and do's scale, the sums of P T
  // over rows.
  static constexpr int M = 0, Rt = big, Qt = 2 * big;
  static constexpr int Z = 3 * big, d_o = Z + small, U = d_o + small;
  static constexpr int decay = U + small;
  static constexpr int row_sums = decay + K * 4 + 16;
  static constexpr int loaded = row_sums + chunk * 4;  // bytes
  static constexpr int stage = (loaded + 1023) / 1024 * 1024;
  static constexpr int dR = stages * stage;
  static constexpr int scores = dR + small;
  static constexpr int D = scores + chunk * chunk * 2;
  static constexpr int inner = D + K * 4;
  static constexpr int c = inner + largest_rank * 4;
  // Of each stage, when it is full and when it is empty.
  static constexpr int full = c + V * 4;
  static constexpr int empty = full + stages * 8;
  static constexpr int bytes = empty + stages * 8;
  static_assert(bytes <= 232448);
};

/// Named barriers: among the summers; between them and the walkers, of a chunk:
/// dR is there; dR has been read and c of the chunk before is there.
struct content_barriers {
  static constexpr int summers = 1, published = 2, taken = 3;
};

__device__ __forceinline__ uint4 read_ahead(const void* p) {
  uint4 y;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(y.x), "=r"(y.y), "=r"(y.z), "=r"(y.w)
               : "l"(p));
  return y;
}

/// One weight, or zero.
__device__ __forceinline__ float weight(const float* w, int at, bool valid) {
  float y = 0.f;
  asm volatile(
      "{\n.reg .pred ok;\nsetp.ne.b32 ok, %2, 0;\n"
      "@ok ld.global.nc.f32 %0, [%1];\n}\n"
      : "+f"(y)
      : "l"(w + at), "r"(static_cast<int>(valid)));
  return y;
}

/// The sum over pairs of tokens of one channel of a slice of kind `pairs`, a
/// lane's part.
template <typename E>
__device__ __forceinline__ float sum_channel(const problem& p,
                                             const chunk_entry& c,
                                             const std::uint8_t* scores,
                                             int head, int channel, float shift,
                                             int lane) {
  const int qk_head = head / (p.HV / p.H);
  float total = 0.f;
#pragma unroll 1
  for (int t = lane; t < c.length; t += 32) {
    float decay = 0.f, sum = 0.f;
#pragma unroll 1
    for (int s = t - 1; s >= 0; --s) {
      decay +=
          row_of<float>(p.g, c.batch, c.first + s + 1, head)[channel] * log2_e;
      if (decay < -64.f) break;  // what is left is below every rounding
      sum += __half2float(*reinterpret_cast<const __half*>(
                 scores + arch::tile_offset<chunk>(t, s))) *
             static_cast<float>(
                 row_of<E>(p.k, c.batch, c.first + s, qk_head)[channel]) *
             power(decay);
    }
    const float2 gate =
        logistic(static_cast<float>(
                     row_of<E>(p.b, c.batch, c.first + t, head)[channel]) +
                 shift);
    total += sum * gate.x * gate.y *
             static_cast<float>(
                 row_of<E>(p.k, c.batch, c.first + t, qk_head)[channel]);
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2)
    total += __shfl_xor_sync(~0u, total, step);
  return total;
}

/// acc (16x16) += a (16x16, fp16 or bf16) b (16x16, fp16).
template <bool Bfloat>
__device__ __forceinline__ void multiply_one(float* acc, uint4 a,
                                             const fragment& b) {
  float(&low)[4] = *reinterpret_cast<float(*)[4]>(acc);
  float(&high)[4] = *reinterpret_cast<float(*)[4]>(acc + 4);
  const fragment x = {{a.x, a.z, a.y, a.w}};
  if constexpr (Bfloat) {
    // The right operand in two parts, so that it is not rounded again.
    using E = element<__nv_bfloat16>;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      std::uint32_t z[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 y = operand::unpack(b.r[i]);
        z[i] = E::pack(y.x, y.y);
        if (part == 0) continue;
        const float2 near = E::unpack(z[i]);
        z[i] = E::pack(y.x - near.x, y.y - near.y);
      }
      arch::multiply<__nv_bfloat16>(low, x, z[0], z[1]);
      arch::multiply<__nv_bfloat16>(high, x, z[2], z[3]);
    }
  } else {
    arch::multiply<__half>(low, x, b.r[0], b.r[1]);
    arch::multiply<__half>(high, x, b.r[2], b.r[3]);
  }
}

/// Fills a stage with chunk `at` of the workspace, by one thread, and brings to
/// L2 what is read of it from there.
template <int K, int V>
__device__ __forceinline__ void fill_content_stage(const arguments& a,
                                                   std::uint32_t to,
                                                   std::uint32_t full,
                                                   std::int64_t at) {
  using lay = content_layout<K, V>;
  const std::int64_t key_at = at * chunk * K, value_at = at * chunk * V;
  arch::barrier_expect(full, lay::loaded);
  arch::bulk_load(to + lay::M, a.M + key_at, lay::big, full);
  arch::bulk_load(to + lay::decay, a.decay + at * (K + 4), K * 4 + 16, full);
  arch::bulk_load(to + lay::row_sums, a.factors + at * (4 * chunk) + to_start,
                  chunk * 4, full);
  arch::bulk_load(to + lay::Z, a.Z + value_at, lay::small, full);
  arch::bulk_load(to + lay::d_o, a.d_o + value_at, lay::small, full);
  arch::bulk_load(to + lay::Qt, a.Qt + key_at, lay::big, full);
  arch::bulk_load(to + lay::Rt, a.Rt + key_at, lay::big, full);
  arch::bulk_load(to + lay::U, a.U + value_at, lay::small, full);
  arch::bulk_prefetch(a.S + at * (K * V / 4), K * V * 2);
  arch::bulk_prefetch(a.keys + at * (chunk * K / 8), chunk * K * 2);
  arch::bulk_prefetch(a.change + at * (chunk * K / 8), chunk * K * 2);
  arch::bulk_prefetch(a.ends + at * 4 * K, 16 * K);
}

/// What one block works on.
struct content_job {
  int head, sequence, begin, count;  // chunks from `begin` on
};

/// A warp walks 16 value channels of the state's cotangent.
template <typename E, int K, int V>
__device__ __forceinline__ void walk_back(const arguments& a,
                                          const content_job& job,
                                          std::uint8_t* memory, int warp,
                                          int lane) {
  using lay = content_layout<K, V>;
  const problem& p = a.p;
  const int group = lane >> 2, quad = lane & 3;
  int v = warp * 16;
  const std::uint32_t shared = arch::shared_address(memory);
  const float2 norm = cotangent_scale(a, job.sequence, job.head);
  const std::int64_t state_at =
      (static_cast<std::int64_t>(job.sequence) * p.HV + job.head) * K * V;
  const auto* const c_all = reinterpret_cast<const float*>(memory + lay::c);
  float dS[K / 2];  // four of each 8 channels
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int x = 0; x < 4; ++x)
      dS[4 * j + x] =
          a.d.d_final_state
              ? a.d.d_final_state[state_at + (8 * j + 2 * quad + (x & 1)) * V +
                                  v + group + 8 * (x >> 1)] *
                    norm.x
              : 0.f;
  // One thread brings the chunks.
  const bool fills = warp == 0 && lane == 0;
  const auto fill = [&](int i, int stage) {
    fill_content_stage<K, V>(
        a, shared + stage * lay::stage, shared + lay::full + 8 * stage,
        static_cast<std::int64_t>(job.begin + i) * p.HV + job.head);
  };
  if (fills)
    for (int n = 0; n < lay::stages && n < job.count; ++n)
      fill(job.count - 1 - n, n);
  int stage = 0, phase = 0;
#pragma unroll 1
  for (int i = job.count - 1; i >= 0; --i) {
    arch::forget(lane);
    arch::forget(v);
    const int group = lane >> 2, quad = lane & 3;
    const std::uint32_t in_panel = lane_rows<64>(v / 16, lane).panel;
    const std::int64_t at =
        static_cast<std::int64_t>(job.begin + i) * p.HV + job.head;
    arch::barrier_wait(shared + lay::full + 8 * stage, phase);
    const std::uint32_t from = shared + stage * lay::stage;
    const float* const decay = reinterpret_cast<const float*>(
        memory + stage * lay::stage + lay::decay);
    const float common = to_common_scale(norm.x, decay[K]);
    // M dS; meanwhile dS is written out and decays.  Half of it at a time, for
    // want of registers.
    float u[32];
    const std::uint32_t tile = arch::tile_start(from + lay::M);
    uint2* const states = a.dS + (at * V + v) * (K / 4);
    const float lift = i == 0 ? first_lift : 1.f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr int blocks = K / 32;
      fragment x[blocks];
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        const int kb = half * blocks + b;
#pragma unroll
        for (int n = 0; n < 4; ++n)
          x[b].r[n] = operand::pack(dS[8 * kb + 2 * n], dS[8 * kb + 2 * n + 1]);
      }
      arch::product_fence();
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        const int kb = half * blocks + b;
        arch::product<__half, false>(
            u, x[b].r,
            arch::tile_descriptor(tile, kb / 4 * (chunk * 128) + kb % 4 * 32),
            kb > 0);
      }
      arch::product_commit();
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        const int kb = half * blocks + b;
        put_state<false>(states + kb * 64, x[b], lane);
#pragma unroll
        for (int j = 2 * kb; j < 2 * kb + 2; ++j) {
          const float2 d =
              *reinterpret_cast<const float2*>(decay + 8 * j + 2 * quad);
          dS[4 * j] *= d.x * lift, dS[4 * j + 1] *= d.y * lift;
          dS[4 * j + 2] *= d.x * lift, dS[4 * j + 3] *= d.y * lift;
        }
      }
      arch::product_wait<0>();
      arch::pin(u);
    }
    arch::sync_group<lay::threads>(content_barriers::taken);
    const float c[2] = {c_all[v + group], c_all[v + group + 8]};
    __half* const d_o = a.d_o + (at * V + v) * chunk;
    fragment x[4], o[4];
#pragma unroll
    for (int tb = 0; tb < 4; ++tb) {
      o[tb] =
          arch::load_matrices_transposed(from + lay::d_o + in_panel + tb * 512);
      const fragment y =
          arch::load_matrices_transposed(from + lay::Z + in_panel + tb * 512);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 z = operand::unpack(y.r[n]),
                     d = operand::unpack(o[tb].r[n]);
        const float2 sums = *reinterpret_cast<const float2*>(
            memory + stage * lay::stage + lay::row_sums +
            (tb * 16 + 8 * (n >> 1) + 2 * quad) * 4);
        const float* const w = u + 8 * tb + 4 * (n >> 1) + 2 * (n & 1);
        x[tb].r[n] =
            operand::pack(fmaf(z.x, common, fmaf(sums.x, c[n & 1], w[0])),
                          fmaf(z.y, common, fmaf(sums.y, c[n & 1], w[1])));
        o[tb].r[n] = operand::pack(fmaf(d.x, common, c[n & 1]),
                                   fmaf(d.y, common, c[n & 1]));
      }
      // Rows of the tile: tokens tb 16.., columns v..
      arch::store_matrices_transposed(
          shared + lay::dR +
              wide_offset(tb * 16 + (lane >> 4) * 8 + (lane & 7),
                          v + ((lane >> 3) & 1) * 8),
          x[tb]);
    }
    arch::fence_async_proxy();
    arch::arrive_group<lay::threads>(content_barriers::published);
#pragma unroll
    for (int tb = 0; tb < 4; ++tb)
#pragma unroll
      for (int n = 0; n < 4; ++n) x[tb].r[n] ^= 0x80008000u;
    const std::uint32_t queries = arch::tile_start(from + lay::Qt, chunk * 128);
    const std::uint32_t erase = arch::tile_start(from + lay::Rt, chunk * 128);
    arch::product_fence();
#pragma unroll
    for (int tb = 0; tb < 4; ++tb) {
      arch::product<__half, true>(dS, o[tb].r,
                                  arch::tile_descriptor(queries, tb * 2048), 1);
      arch::product<__half, true>(dS, x[tb].r,
                                  arch::tile_descriptor(erase, tb * 2048), 1);
    }
    arch::product_commit();
#pragma unroll
    for (int tb = 0; tb < 4; ++tb)
      put_rows(d_o + tb * 256, transposed(o[tb]), lane);
    arch::product_wait<0>();
    arch::pin(dS);
    // do is at the common scale from here on.
    if (warp == 0 && lane == 0) a.decay[at * (K + 4) + K] = norm.y;
    arch::barrier_arrive_warp(shared + lay::empty + 8 * stage, lane);
    if (fills && i >= lay::stages) {
      arch::barrier_wait(shared + lay::empty + 8 * stage, phase);
      fill(i - lay::stages, stage);
    }
    __syncwarp();
    if (++stage == lay::stages) stage = 0, phase ^= 1;
  }
  if (a.d.d_initial_state == nullptr) return;
  const float unscale = job.count > 0 ? norm.y / first_lift : norm.y;
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int x = 0; x < 4; ++x)
      a.d.d_initial_state[state_at + (8 * j + 2 * quad + (x & 1)) * V + v +
                          group + 8 * (x >> 1)] = dS[4 * j + x] * unscale;
}

/// dR U^T below the diagonal, as a tile, by one warpgroup.
template <int K, int V>
__device__ __forceinline__ void score(std::uint8_t* memory, int stage, int warp,
                                      int lane) {
  using lay = content_layout<K, V>;
  const std::uint32_t shared = arch::shared_address(memory);
  float y[32];
  arch::product_fence();
  arch::product_of_tiles<__half, V>(y, shared + lay::dR,
                                    shared + stage * lay::stage + lay::U);
  arch::product_commit();
  arch::product_wait<0>();
  arch::pin(y);
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = warp * 16 + lane / 4 + 8 * h, s = 8 * j + lane % 4 * 2;
      *reinterpret_cast<std::uint32_t*>(memory + lay::scores +
                                        arch::tile_offset<chunk>(t, s)) =
          operand::pack(s < t ? y[4 * j + 2 * h] : 0.f,
                        s + 1 < t ? y[4 * j + 2 * h + 1] : 0.f);
    }
}

/// Within the chunk: from one block's reference point to the next (first from
/// the chunk's start) all decays by as much.  `scores`: this lane's rows.
template <bool Bfloat>
__device__ __forceinline__ void add_scores(float (&dr)[32],
                                           const float (&ends)[5][2],
                                           unsigned kind,
                                           const uint4 (&keys)[4],
                                           std::uint32_t scores) {
#pragma unroll
  for (int sb = 0; sb < 4; ++sb) {
    float f[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float bits = 0.5f * (ends[sb + 1][j] -
                                 (sb > 0 ? ends[sb > 0 ? sb - 1 : 0][j] : 0.f));
      // `pairs` stay at the start; of `bfloat` half of it is applied twice.
      f[j] = power(kind == pairs ? 0.f : sb > 0 && Bfloat ? 0.5f * bits : bits);
    }
#pragma unroll
    for (int e = 8 * sb; e < 32; ++e) {
      dr[e] *= f[e >> 1 & 1];
      if (sb > 0 && Bfloat) dr[e] *= f[e >> 1 & 1];
    }
#pragma unroll
    for (int m = sb; m < 4; ++m)
      multiply_one<Bfloat>(
          dr + 8 * m, keys[sb],
          arch::load_matrices((scores ^ (sb * 32)) + m * 2048));
  }
}

/// A warp sums D of 16 key channels; together they make c of it.  One of their
/// threads writes dR out.
template <typename E, int K, int V>
__device__ __forceinline__ void sum_back(const arguments& a,
                                         const content_job& job,
                                         std::uint8_t* memory, int warp,
                                         int tid) {
  using lay = content_layout<K, V>;
  constexpr int threads = 32 * lay::summers;
  // Of the products with W_up and W_down, 16 ranks at a time: threads that
  // share a sum, and what each takes.
  constexpr int ranks = 16, up_share = threads / ranks, ups = K / up_share,
                down_share = threads / V, downs = ranks / down_share;
  const problem& p = a.p;
  int head = job.head, lane = tid & 31;
  const int per = p.window / chunk;  // chunks of a window
  const std::uint32_t shared = arch::shared_address(memory);
  auto* const D = reinterpret_cast<float*>(memory + lay::D);
  auto* const inner = reinterpret_cast<float*>(memory + lay::inner);
  auto* const c = reinterpret_cast<float*>(memory + lay::c);
  const auto sync = [] {
    arch::sync_group<threads>(content_barriers::summers);
  };
  const float unscale = cotangent_scale(a, job.sequence, head).y;
  const std::uint32_t in_scores =
      shared + lay::scores +
      arch::tile_offset<chunk>((lane >> 4) * 8 + (lane & 7),
                               ((lane >> 3) & 1) * 8);
  // Once all that the walk makes of a chunk is written: walkers did so before
  // they said that its dR is there.
  const auto leave_to_gradients = [&](int i) {
    if (tid != 0) return;
    arch::bulk_store_wait();
    if (a.ready == nullptr) return;
    arch::fence_async_global();
    arch::raise_flag(a.ready + static_cast<std::int64_t>(job.begin + i) * p.HV +
                     head);
  };
  if (job.count > 0) arch::arrive_group<lay::threads>(content_barriers::taken);
  int stage = 0, phase = 0;
#pragma unroll 1
  for (int i = job.count - 1; i >= 0; --i) {
    // What depends on these is made anew, or it would be spilled.
    arch::forget(lane);
    arch::forget(tid);
    arch::forget(head);
    const int group = lane >> 2, quad = lane & 3;
    // This lane's channels; the other one is two further.
    const int channel = warp * 16 + 4 * (group >> 1) + (group & 1);
    const float* const up =
        p.w_up + static_cast<std::int64_t>(head) * K * p.rank;
    const float* const down =
        p.w_down + static_cast<std::int64_t>(head) * p.rank * V;
    const std::int64_t at =
        static_cast<std::int64_t>(job.begin + i) * p.HV + head;
    const bool gated = i >= per;  // the first window's gate depends on nothing
    // The state's transpose, as left operands.
    fragment state[V / 16];
    {
      const uint4* const S = reinterpret_cast<const uint4*>(a.S) +
                             at * (K * V / 8) + warp * 32 + lane;
#pragma unroll
      for (int vb = 0; vb < V / 16; ++vb) {
        const uint4 y = read_ahead(S + vb * 2 * K);
        state[vb] = {{y.x, y.z, y.y, y.w}};
      }
    }
    float ends[5][2] = {};
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const float* const end = a.ends + (at * 4 + b) * K + channel;
      ends[b + 1][0] = weight(end, 0, true);
      ends[b + 1][1] = weight(end, 2, true);
    }
    arch::barrier_wait(shared + lay::full + 8 * stage, phase);  // U
    // The walkers are at work, so this costs nobody time.
    if (i < job.count - 1) leave_to_gradients(i + 1);
    arch::sync_group<lay::threads>(content_barriers::published);
    if (tid == 0)
      arch::bulk_store(a.dR + at * chunk * V, shared + lay::dR, lay::small);
    // The stage, of which only U is read here.
    const auto leave = [&] {
      arch::barrier_arrive_warp(shared + lay::empty + 8 * stage, lane);
    };
    if (!gated) leave();
    if (gated) {
      if (warp < 4) score<K, V>(memory, stage, warp, lane);
      leave();
      uint4 keys[4], change[4];
      const std::int64_t parts = (at * (K / 16) + warp) * 128 + lane;
#pragma unroll
      for (int b = 0; b < 4; ++b) keys[b] = read_ahead(a.keys + parts + b * 32);
      float dr[32];  // minus dr, transposed: four of each 8 tokens
      const std::uint32_t tile = arch::tile_start(shared + lay::dR);
      arch::product_fence();
#pragma unroll
      for (int vb = 0; vb < V / 16; ++vb)
        arch::product<__half, false>(
            dr, state[vb].r,
            arch::tile_descriptor(tile, vb / 4 * (chunk * 128) + vb % 4 * 32),
            vb > 0);
      arch::product_commit();
      arch::product_wait<0>();
      arch::pin(dr);
#pragma unroll
      for (int b = 0; b < 4; ++b)
        change[b] = read_ahead(a.change + parts + b * 32);
      // The weights of the first ranks, ahead of their use.
      float up_ahead[ups], down_ahead[downs];
#pragma unroll
      for (int x = 0; x < ups; ++x)
        up_ahead[x] = weight(
            up, (tid % up_share + x * up_share) * p.rank + tid / up_share,
            tid / up_share < p.rank);
#pragma unroll
      for (int x = 0; x < downs; ++x)
        down_ahead[x] =
            weight(down, (tid % down_share * downs + x) * V + tid / down_share,
                   tid % down_share * downs + x < p.rank);
      const unsigned kind = kind_of<E>(ends);
      sync();  // the scores
      if (kind == bfloat)
        add_scores<true>(dr, ends, kind, keys, in_scores);
      else
        add_scores<false>(dr, ends, kind, keys, in_scores);
      float sum[2] = {};
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const std::uint32_t w[4] = {change[b].x, change[b].y, change[b].z,
                                    change[b].w};
#pragma unroll
        for (int x = 0; x < 4; ++x) {  // tokens 8 (x / 2).., channel x % 2
          const float2 y = kind == bfloat ? element<__nv_bfloat16>::unpack(w[x])
                                          : operand::unpack(w[x]);
          sum[x & 1] += y.x * dr[8 * b + 2 * x] + y.y * dr[8 * b + 2 * x + 1];
        }
      }
#pragma unroll
      for (int step = 1; step < 4; step *= 2)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          sum[j] += __shfl_xor_sync(~0u, sum[j], step);
      if (quad < 2) {
        const bool last = i % per == per - 1 || i == job.count - 1;
        float* const to = D + channel + 2 * quad;
        *to = (last ? 0.f : *to) - (quad == 0 ? sum[0] : sum[1]);
      }
      if (kind == pairs) {
        const chunk_entry entry = a.table[job.begin + i];
        const float* const shift = shifts_of<K>(a, entry, job.begin + i, head);
        __syncwarp();
#pragma unroll 1
        for (int x = warp * 16; x < warp * 16 + 16; ++x) {
          const float total = sum_channel<E>(p, entry, memory + lay::scores,
                                             head, x, shift[x], lane);
          if (lane == 0) D[x] -= total;
        }
      }
      if (i % per == 0) {
        sync();  // D
        if (tid < K) a.d_shift[at * K + tid] = D[tid] * unscale;
#pragma unroll 1
        for (int first = 0; first < p.rank; first += ranks) {
          const int r = first + tid / up_share;
          float y = 0.f;
#pragma unroll
          for (int x = 0; x < ups; ++x) {
            const int from = tid % up_share + x * up_share;
            y += (first == 0 ? up_ahead[x]
                             : weight(up, from * p.rank + r, r < p.rank)) *
                 D[from];
          }
#pragma unroll
          for (int step = 1; step < up_share; step *= 2)
            y += __shfl_xor_sync(~0u, y, step);
          if (tid % up_share == 0 && r < p.rank) {
            inner[r] = y;
            a.d_inner[at * p.rank + r] = y * unscale;
          }
        }
        sync();  // W_up^T D
        float y = 0.f;
#pragma unroll 1
        for (int first = 0; first < p.rank; first += ranks)
#pragma unroll
          for (int x = 0; x < downs; ++x) {
            const int r = first + tid % down_share * downs + x;
            const float w =
                first == 0 ? down_ahead[x]
                           : weight(down, r * V + tid / down_share, r < p.rank);
            if (r < p.rank) y += w * inner[r];
          }
#pragma unroll
        for (int step = 1; step < down_share; step *= 2)
          y += __shfl_xor_sync(~0u, y, step);
        if (tid % down_share == 0)
          c[tid / down_share] = y / static_cast<float>(p.window);
      }
    }
    if (tid == 0) arch::bulk_store_read_wait();
    __syncwarp();
    if (i > 0) arch::arrive_group<lay::threads>(content_barriers::taken);
    if (++stage == lay::stages) stage = 0, phase ^= 1;
  }
  if (job.count > 0) leave_to_gradients(0);
}

/// A block walks a head of a sequence.
template <typename E, int K, int V>
__global__ void __launch_bounds__(content_layout<K, V>::threads, 1)
    walk_content(const __grid_constant__ arguments a) {
  using lay = content_layout<K, V>;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  // Once all blocks walk, `chunk_gradients` may begin beside them.
  asm volatile("griddepcontrol.launch_dependents;");
  const int tid = threadIdx.x;
  const int warp = __shfl_sync(~0u, tid >> 5, 0);  // known to be uniform
  const std::uint32_t shared = arch::shared_address(memory);
  content_job job;
  job.head = blockIdx.x % a.p.HV, job.sequence = blockIdx.x / a.p.HV;
  job.begin = a.first_chunk[job.sequence];
  job.count = a.first_chunk[job.sequence + 1] - job.begin;
  if (tid == 0) {
    for (int i = 0; i < lay::stages; ++i) {
      arch::barrier_init(shared + lay::full + 8 * i, 1);
      arch::barrier_init(shared + lay::empty + 8 * i,
                         lay::walkers + lay::summers);
    }
    arch::fence_async_proxy();
  }
  if (tid < V) reinterpret_cast<float*>(memory + lay::c)[tid] = 0.f;
  __syncthreads();
  // 512 threads have 128 registers each to begin with.
  if (warp < lay::walkers) {
    if constexpr (lay::threads == 512) arch::grow_registers<144>();
    walk_back<E, K, V>(a, job, memory, warp, tid & 31);
  } else {
    if constexpr (lay::threads == 512) arch::shrink_registers<112>();
    sum_back<E, K, V>(a, job, memory, warp - lay::walkers,
                      tid - lay::walkers * 32);
  }
}

}  // namespace carve::cuda::backward_chunks
