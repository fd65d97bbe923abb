// The forward pass on Hopper's tensor cores, for families with key-axis erase
// in chunks of 64 tokens.
//
// A chunk is first *prepared* by one warpgroup: decayed copies of its queries
// and keys, the products P and the inverse T = (I + L)^-1.
// What the preparation leaves, one contiguous block, does not depend on the
// state.  The *walk* then takes the state through the chunks in order
// (walk_chunks), with
//   U = T (w*v - (b*k*e^G) S),  O = scale ((q*e^G) S + P U),
//   S <- e^{G_C} S + (k*e^{G_C - G})^T U,
// where S^T stays in fp32 registers, 64 value channels to a warpgroup.
//
// With many sequences and heads both run side by side in one block
// (fused_kernel).  With few, some blocks walk 64 value channels of a head each
// and all others prepare chunks for them, through global memory
// (split_kernel).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "carve/cuda.hpp"
#include "common.cuh"
#include "hopper.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

using namespace hopper;

constexpr int chunk = 64;         // tokens prepared together
constexpr int tile_bytes = 8192;  // 64 rows of 64 16-bit elements
constexpr int group = 128;        // threads of a warpgroup

/// Along which axis a gate varies; `content`: a gate per channel made of its
/// logits and of the outputs of the window before.
enum class axis { none, head, channel, content };

/// Bytes of a prepared chunk of K key channels: three tiles for each 64 of
/// them, two more, and 768 bytes of numbers.
constexpr int block_bytes(int K) {
  return (3 * (K / 64) + 2) * tile_bytes + 768;
}

/// Where the parts of a prepared chunk lie, in bytes from its start.
template <int K>
struct prepared {
  static constexpr int panels = K / 64;
  static constexpr int erase_keys = 0;                       // b*k*e^G
  static constexpr int queries = panels * tile_bytes;        // q*e^G
  static constexpr int tail_keys = 2 * panels * tile_bytes;  // k*e^{G_C-G}
  static constexpr int inverse = 3 * panels * tile_bytes;    // T
  static constexpr int products = inverse + tile_bytes;      // P
  static constexpr int tiles = products + tile_bytes;
  // Apart from the tiles:
  static constexpr int decay = 0;    // e^{G_C}, K numbers
  static constexpr int write = 512;  // write gate of one number per token
  static constexpr int tail_bytes = 768;
  static constexpr int bytes = block_bytes(K);
  static_assert(bytes == tiles + tail_bytes);
};

/// Shared memory that only the preparing warpgroup uses.
struct scratch {
  static constexpr int raw = 0;                      // inputs of a slice
  static constexpr int logs = 6 * group * 16;        // 4 warps, 16 x 32 fp32
  static constexpr int keys = logs + 8192;           // 2 x 5 operands x 512
  static constexpr int totals = keys + 2 * 5 * 512;  // 2 x 4 warps x 128
  static constexpr int bytes = totals + 2 * 4 * 128;
};

/// I + L on its way to being inverted.
struct coupling {
  static constexpr int lower = 0;                   // 4 warps, 16 x 20 fp32
  static constexpr int before = 4 * 1280;           // 6 blocks of operands
  static constexpr int inverse = before + 6 * 512;  // 4 warps, 16 x 16 fp16
  static constexpr int bytes = inverse + 4 * 512;
};

__device__ __forceinline__ uint4 read16(std::uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ void write16(std::uint32_t address, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}
__device__ __forceinline__ float read4(std::uint32_t address) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ void write4(std::uint32_t address, float x) {
  asm volatile("st.shared.f32 [%0], %1;\n" ::"r"(address), "f"(x) : "memory");
}
__device__ __forceinline__ uint2 read8(std::uint32_t address) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];\n"
               : "=r"(x.x), "=r"(x.y)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ void write8(std::uint32_t address, std::uint32_t x,
                                       std::uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};\n" ::"r"(address), "r"(x),
               "r"(y)
               : "memory");
}
__device__ __forceinline__ void write2(std::uint32_t address, float x) {
  const std::uint16_t h = __half_as_ushort(__float2half_rn(x));
  asm volatile("st.shared.u16 [%0], %1;\n" ::"r"(address), "h"(h) : "memory");
}

__device__ __forceinline__ uint4 as_uint(float a, float b, float c, float d) {
  return make_uint4(__float_as_uint(a), __float_as_uint(b), __float_as_uint(c),
                    __float_as_uint(d));
}
__device__ __forceinline__ float4 as_float(uint4 x) {
  return make_float4(__uint_as_float(x.x), __uint_as_float(x.y),
                     __uint_as_float(x.z), __uint_as_float(x.w));
}

constexpr float log2e = 1.4426950408889634f;

// ---- preparation ----

/// One thread's part in preparing the chunks of one head.
///
/// Warp w of the group owns the rows 16w..16w+15.  Lane (i, c) = (lane / 4,
/// lane % 4) holds the tokens 2i and 2i+1 of them and, of each slice of 32
/// channels, the eight channels from 8c on.  Used as fragments of mma.sync
/// this orders rows and columns as (0, 2, .., 14, 1, 3, .., 15), which gives
/// every lane a patch of two rows and four adjacent columns of a 16 x 16
/// block, and orders the channels of a product alike in both operands.
///
/// A pair of tokens s < t in different blocks of 16 is decayed by (prefix of
/// t in its block) (totals of the blocks between) (suffix of s in its block),
/// each at most one.  Within a block the factor is prefix(t) / prefix(s); a
/// block whose total decay leaves the range where that quotient is safe is
/// computed again, pair by pair (exact_slice).
template <class In, int K, axis Decay, axis Erase>
struct preparation {
  static constexpr bool per_channel =
      Erase == axis::channel || Erase == axis::content;
  // What `fetch` reads next: the lane's first row of the chunk, channel 8c.
  const char *q, *k, *b, *g;
  const In* beta;            // token 0 of the sequence (content: write gates)
  const float* decays;       // likewise
  int left;                  // rows of the sequence from that row on
  int length;                // tokens of the sequence
  std::uint32_t shared;      // scratch
  std::uint32_t gate_shift;  // content: K numbers added to the logits
  int barrier;               // named barrier of the warpgroup
  int warp, lane;

  __device__ void start(const problem& p, const sequence_span& span, int head,
                        int first, std::uint32_t scratch_address,
                        int named_barrier, int thread) {
    barrier = named_barrier;
    warp = __shfl_sync(~0u, thread / 32, 0);
    lane = thread % 32;
    shared = scratch_address;
    length = static_cast<int>(span.length);
    const int key_head = head / (p.HV / p.H);
    const int channel = 8 * (lane & 3);
    const int row = first + 16 * warp + 2 * (lane >> 2);
    left = length - row;
    const std::int64_t token = span.first + row;
    q = reinterpret_cast<const char*>(static_cast<const In*>(p.q.data) +
                                      offset(p.q, span.batch, token, key_head) +
                                      channel);
    k = reinterpret_cast<const char*>(static_cast<const In*>(p.k.data) +
                                      offset(p.k, span.batch, token, key_head) +
                                      channel);
    if constexpr (per_channel)
      b = reinterpret_cast<const char*>(static_cast<const In*>(p.b.data) +
                                        offset(p.b, span.batch, token, head) +
                                        channel);
    if constexpr (Erase != axis::channel) {
      const tensor& x = Erase == axis::content ? p.w : p.beta;
      beta = static_cast<const In*>(x.data) +
             offset(x, span.batch, span.first, head);
    }
    if constexpr (Decay == axis::channel)
      g = reinterpret_cast<const char*>(static_cast<const float*>(p.g.data) +
                                        offset(p.g, span.batch, token, head) +
                                        channel);
    else if constexpr (Decay == axis::head)
      decays = static_cast<const float*>(p.g.data) +
               offset(p.g, span.batch, span.first, head);
  }

  __device__ std::uint32_t raw(int piece) const {
    return shared + scratch::raw + piece * (group * 16) +
           (warp * 32 + lane) * 16;
  }

  /// Address of a lane's log decays: token row of the warp, four channels.
  __device__ std::uint32_t log_at(int row, int quad) const {
    return shared + scratch::logs + warp * 2048 + row * 128 +
           ((quad ^ ((row >> 1) & 1)) << 4);
  }

  /// Starts the loads of a slice (rows past the end become zeros).
  __device__ void fetch(const problem& p, int slice) const {
    const int row = 2 * (lane >> 2);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool valid = left > j;
      copy_async_16(raw(j), q + slice * 64 + j * 2 * p.q.token, valid);
      copy_async_16(raw(2 + j), k + slice * 64 + j * 2 * p.k.token, valid);
      if constexpr (per_channel)
        copy_async_16(raw(4 + j), b + slice * 64 + j * 2 * p.b.token, valid);
      if constexpr (Decay == axis::channel) {
        const char* from = g + slice * 128 + j * 4 * p.g.token;
        copy_async_16(log_at(row + j, 2 * (lane & 3)), from, valid);
        copy_async_16(log_at(row + j, 2 * (lane & 3) + 1), from + 16, valid);
      }
    }
    copy_async_commit();
  }
  /// Starts the loads of the slice after `slice`, be it of the next chunk.
  __device__ void fetch_next(const problem& p, int slice, bool last) {
    if (slice + 1 < K / 32) {
      fetch(p, slice + 1);
    } else if (!last) {
      q += chunk * 2 * p.q.token;
      k += chunk * 2 * p.k.token;
      if constexpr (per_channel) b += chunk * 2 * p.b.token;
      if constexpr (Decay == axis::channel) g += chunk * 4 * p.g.token;
      left -= chunk;
      fetch(p, 0);
    }
  }

  /// The gates of one number per token: the decays of the chunk's tokens
  /// 2 * lane and + 1, the erase gates of the lane's own two tokens.
  __device__ void fetch_scalars(const problem& p, int first, float (&decay)[2],
                                float (&erase)[4]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int any = first + 2 * lane + j;
      const int own = first + 16 * warp + 2 * (lane >> 2) + j;
      decay[j] = 0;
      erase[j] = 0;
      if constexpr (Decay == axis::head)
        if (any < length) decay[j] = decays[any * p.g.token];
      if constexpr (Erase != axis::channel)
        if (own < length)
          erase[j] = static_cast<float>(
              beta[own * (Erase == axis::content ? p.w.token : p.beta.token)]);
      // Warp 0 scales a block of rows that belong to warp 3.
      erase[2 + j] = 0;
      if constexpr (Erase == axis::head && Decay != axis::channel)
        if (warp == 0 && own + 48 < length)
          erase[2 + j] = static_cast<float>(beta[(own + 48) * p.beta.token]);
    }
  }

  /// Prepares the chunk whose first slice was fetched; unless it is the last,
  /// starts to fetch the next one.
  __device__ void run(const problem& task, bool last, std::uint32_t block,
                      std::uint32_t tail, std::uint32_t coupled,
                      const float (&log_decay)[2],
                      const float (&beta_value)[4]);

  using pairs = float[2][2][4];  // [erase or read][even or odd column][..]
  __device__ void couple_channels(const problem& task, bool last,
                                  std::uint32_t block, std::uint32_t tail,
                                  const float (&beta_value)[4], pairs& near,
                                  pairs (&far)[2]);
  __device__ void couple_scalars(const problem& task, bool last,
                                 std::uint32_t block, std::uint32_t tail,
                                 const float (&log_decay)[2],
                                 const float (&beta_value)[4], pairs& near,
                                 pairs (&far)[2]);
  __device__ void exact_slice(int slice, const float (&beta_value)[4],
                              pairs& near) const;
  __device__ void finish(std::uint32_t block, std::uint32_t coupled,
                         const pairs& near, const pairs (&far)[2]);
};

/// acc[0] += rows(r) cols(k), acc[1] += rows(q) cols(k) for one k-step.
template <class In>
__device__ __forceinline__ void couple(float (&acc)[2][2][4],
                                       const std::uint32_t (&r)[4],
                                       const std::uint32_t (&q)[4],
                                       const std::uint32_t (&k)[4]) {
  mma_16<In>(acc[0][0], r, k[0], k[1]);
  mma_16<In>(acc[0][1], r, k[2], k[3]);
  mma_16<In>(acc[1][0], q, k[0], k[1]);
  mma_16<In>(acc[1][1], q, k[2], k[3]);
}

/// Decays of one number per channel.
template <class In, int K, axis Decay, axis Erase>
__device__ __forceinline__ void
preparation<In, K, Decay, Erase>::couple_channels(
    const problem& task, bool last, std::uint32_t block, std::uint32_t tail,
    const float (&beta_value)[4], pairs& near, pairs (&far)[2]) {
  using part = prepared<K>;
  const int i = lane >> 2, c = lane & 3;
  const int row0 = 16 * warp + 2 * i;  // of the chunk; the other is row0 + 1
  constexpr bool is_bf16 = std::is_same_v<In, __nv_bfloat16>;

#pragma unroll 1
  for (int slice = 0; slice < K / 32; ++slice) {
    const std::uint32_t totals =
        shared + scratch::totals + (slice & 1) * (4 * 128);
    bool safe;
    copy_async_wait<0>();
    __syncwarp();
    {
      // Lane = channel: logs of the prefixes in the block, base 2.
      const std::uint32_t at = shared + scratch::logs + warp * 2048;
      float x[16];
#pragma unroll
      for (int t = 0; t < 16; ++t)
        x[t] = read4(at + t * 128 + ((lane * 4) ^ (((t >> 1) & 1) << 4)));
      x[0] *= log2e;
#pragma unroll
      for (int t = 1; t < 16; ++t) x[t] = fmaf(x[t], log2e, x[t - 1]);
#pragma unroll
      for (int t = 0; t < 16; ++t)
        write4(at + t * 128 + ((lane * 4) ^ (((t >> 1) & 1) << 4)), x[t]);
      write4(totals + warp * 128 + lane * 4, x[15]);
      // The quotients of prefixes stay within what bf16 and tf32 can hold.
      safe = __all_sync(~0u, x[15] > -116.f);
    }
    __syncwarp();
    if (!safe) exact_slice(slice, beta_value, near);
#pragma unroll 1
    for (int h = 0; h < 2; ++h) {
      // The lane's two tokens by four channels of this k-step.
      const std::uint32_t total_at = totals + c * 32 + h * 16;
      const float4 own = as_float(read16(total_at + warp * 128));
      const float total[4] = {own.x, own.y, own.z, own.w};
      float shift[4];
      if constexpr (Erase == axis::content) {
        const float4 x =
            as_float(read16(gate_shift + (32 * slice + 8 * c + 4 * h) * 4));
        shift[0] = x.x;
        shift[1] = x.y;
        shift[2] = x.z;
        shift[3] = x.w;
      }
      float p[2][4], s[2][4];
      float qf[2][4], kf[2][4], rf[2][4];
      // Left operands have registers (token 0, 1) x (channel pair 0, 1) in
      // this order; right operands token 0: pairs 0, 1, then token 1.
      std::uint32_t fr[4], fq[4], fk[4], fn[4];
      float inv[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint2 q2 = read8(raw(j) + 8 * h);
        const uint2 k2 = read8(raw(2 + j) + 8 * h);
        const float4 l4 = as_float(read16(log_at(2 * i + j, 2 * c + h)));
        const std::uint32_t qw[2] = {q2.x, q2.y}, kw[2] = {k2.x, k2.y};
        const float l[4] = {l4.x, l4.y, l4.z, l4.w};
        uint2 b2 = {};
        if constexpr (per_channel) b2 = read8(raw(4 + j) + 8 * h);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float2 x = unpack<In>(qw[e]), y = unpack<In>(kw[e]);
          qf[j][2 * e] = x.x;
          qf[j][2 * e + 1] = x.y;
          kf[j][2 * e] = y.x;
          kf[j][2 * e + 1] = y.y;
          if constexpr (Erase == axis::channel) {
            const float2 z = unpack<In>(e ? b2.y : b2.x);
            rf[j][2 * e] = z.x * y.x;
            rf[j][2 * e + 1] = z.y * y.y;
          } else if constexpr (Erase == axis::content) {
            const float2 z = unpack<In>(e ? b2.y : b2.x);
            rf[j][2 * e] = sigmoid(z.x + shift[2 * e]) * y.x;
            rf[j][2 * e + 1] = sigmoid(z.y + shift[2 * e + 1]) * y.y;
          } else {
            rf[j][2 * e] = beta_value[j] * y.x;
            rf[j][2 * e + 1] = beta_value[j] * y.y;
          }
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[j][e] = exp2_fast(l[e]);
          s[j][e] = exp2_fast(total[e] - l[e]);
          inv[j][e] = exp2_fast(-l[e]);
        }
      }
      if (h == 1) {
        __syncwarp();
        fetch_next(task, slice, last);
      }
      const auto scale_rows = [&] {
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            fr[j + 2 * e] = pack<In>(rf[j][2 * e] * p[j][2 * e],
                                     rf[j][2 * e + 1] * p[j][2 * e + 1]);
            fq[j + 2 * e] = pack<In>(qf[j][2 * e] * p[j][2 * e],
                                     qf[j][2 * e + 1] * p[j][2 * e + 1]);
          }
      };
      scale_rows();
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          fk[2 * j + e] = pack<In>(kf[j][2 * e] * s[j][2 * e],
                                   kf[j][2 * e + 1] * s[j][2 * e + 1]);
          if constexpr (is_bf16)
            fn[2 * j + e] = pack<In>(kf[j][2 * e] * inv[j][2 * e],
                                     kf[j][2 * e + 1] * inv[j][2 * e + 1]);
        }
      if constexpr (is_bf16) {
        if (safe) couple<In>(near, fr, fq, fn);
      } else if (safe) {
        // fp16 lacks the range of the quotient; tf32 has both.
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          std::uint32_t ar[4], aq[4], bk[2][2];
#pragma unroll
          for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int f = 0; f < 2; ++f) {
              ar[j + 2 * f] = round_tf32(rf[j][e + f] * p[j][e + f]);
              aq[j + 2 * f] = round_tf32(qf[j][e + f] * p[j][e + f]);
              bk[j][f] = round_tf32(kf[j][e + f] * inv[j][e + f]);
            }
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            mma_tf32(near[0][j], ar, bk[j][0], bk[j][1]);
            mma_tf32(near[1][j], aq, bk[j][0], bk[j][1]);
          }
        }
      }

      // Hand the keys with their suffixes to later blocks.
      // Warp 3 hands its rows to warp 0, which takes their product with the
      // keys of its own block: no warp then has more than two such blocks.
      const std::uint32_t keys =
          shared + scratch::keys + h * (5 * 512) + lane * 16;
      if (warp < 3) {
        write16(keys + warp * 512, make_uint4(fk[0], fk[1], fk[2], fk[3]));
      } else {
        write16(keys + 3 * 512, make_uint4(fr[0], fr[1], fr[2], fr[3]));
        write16(keys + 4 * 512, make_uint4(fq[0], fq[1], fq[2], fq[3]));
      }
      sync_group<group>(barrier);
      float before[4], after[4];
      {
        const float4 t0 = as_float(read16(total_at));
        const float4 t1 = as_float(read16(total_at + 128));
        const float4 t2 = as_float(read16(total_at + 256));
        const float4 t3 = as_float(read16(total_at + 384));
        const float all[4][4] = {{t0.x, t0.y, t0.z, t0.w},
                                 {t1.x, t1.y, t1.z, t1.w},
                                 {t2.x, t2.y, t2.z, t2.w},
                                 {t3.x, t3.y, t3.z, t3.w}};
        if (warp >= 1) {
          const uint4 x = read16(keys + (warp - 1) * 512);
          const std::uint32_t other[4] = {x.x, x.y, x.z, x.w};
          couple<In>(far[0], fr, fq, other);
          if (warp == 2) {
            // The keys of block 0, decayed over block 1.
            const std::uint32_t m0 =
                pack<In>(exp2_fast(all[1][0]), exp2_fast(all[1][1]));
            const std::uint32_t m1 =
                pack<In>(exp2_fast(all[1][2]), exp2_fast(all[1][3]));
            const uint4 y = read16(keys);
            const std::uint32_t decayed[4] = {
                mul_16<In>(y.x, m0), mul_16<In>(y.y, m1), mul_16<In>(y.z, m0),
                mul_16<In>(y.w, m1)};
            couple<In>(far[1], fr, fq, decayed);
          } else if (warp == 3) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float m = exp2_fast(all[2][e]);
              p[0][e] *= m;
              p[1][e] *= m;
            }
            scale_rows();
            const uint4 y = read16(keys + 512);
            const std::uint32_t one[4] = {y.x, y.y, y.z, y.w};
            couple<In>(far[1], fr, fq, one);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              fk[2 * j + e] = pack<In>(
                  kf[j][2 * e] * s[j][2 * e] *
                      exp2_fast(all[1][2 * e] + all[2][2 * e]),
                  kf[j][2 * e + 1] * s[j][2 * e + 1] *
                      exp2_fast(all[1][2 * e + 1] + all[2][2 * e + 1]));
          const uint4 x = read16(keys + 3 * 512), y = read16(keys + 4 * 512);
          const std::uint32_t r3[4] = {x.x, x.y, x.z, x.w};
          const std::uint32_t q3[4] = {y.x, y.y, y.z, y.w};
          couple<In>(far[0], r3, q3, fk);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float bl =
              (warp >= 1 ? all[0][e] : 0.f) + (warp >= 2 ? all[1][e] : 0.f);
          const float al = (warp < 3 ? all[3][e] : 0.f) +
                           (warp < 2 ? all[2][e] : 0.f) +
                           (warp < 1 ? all[1][e] : 0.f);
          before[e] = exp2_fast(bl);
          after[e] = exp2_fast(al);
        }
        if (warp == 0 && i == 0)
          write16(
              tail + part::decay + (32 * slice + 8 * c + 4 * h) * 4,
              as_uint(
                  exp2_fast(all[0][0] + all[1][0] + all[2][0] + all[3][0]),
                  exp2_fast(all[0][1] + all[1][1] + all[2][1] + all[3][1]),
                  exp2_fast(all[0][2] + all[1][2] + all[2][2] + all[3][2]),
                  exp2_fast(all[0][3] + all[1][3] + all[2][3] + all[3][3])));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        std::uint32_t x[2], y[2], z[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float p0 = p[j][2 * e] * before[2 * e];
          const float p1 = p[j][2 * e + 1] * before[2 * e + 1];
          x[e] = pack<In>(rf[j][2 * e] * p0, rf[j][2 * e + 1] * p1);
          y[e] = pack<In>(qf[j][2 * e] * p0, qf[j][2 * e + 1] * p1);
          z[e] = pack<__half>(
              kf[j][2 * e] * (s[j][2 * e] * after[2 * e]),
              kf[j][2 * e + 1] * (s[j][2 * e + 1] * after[2 * e + 1]));
        }
        const std::uint32_t at = block + (slice >> 1) * tile_bytes +
                                 swizzled(row0 + j, (slice & 1) * 4 + c) +
                                 8 * h;
        write8(at + part::erase_keys, x[0], x[1]);
        write8(at + part::queries, y[0], y[1]);
        write8(at + part::tail_keys, z[0], z[1]);
      }
    }
  }
}

/// One slice's part of the block of 16 of this warp, in fp32 and with one
/// exponential for each pair and channel.
template <class In, int K, axis Decay, axis Erase>
__device__ __forceinline__ void preparation<In, K, Decay, Erase>::exact_slice(
    int slice, const float (&beta_value)[4], pairs& near) const {
  const int i = lane >> 2, c = lane & 3;
  const auto element = [&](int array, int row, int channel) {
    // Where the lane of this row and channel put it.
    const std::uint32_t at =
        shared + scratch::raw + (array + (row & 1)) * (group * 16) +
        (warp * 32 + (row >> 1) * 4 + (channel >> 3)) * 16 + (channel & 7) * 2;
    std::uint16_t bits;
    asm volatile("ld.shared.u16 %0, [%1];\n" : "=h"(bits) : "r"(at) : "memory");
    In x;
    memcpy(&x, &bits, 2);
    return static_cast<float>(x);
  };
  const auto log = [&](int row, int channel) {
    return read4(log_at(row, channel >> 2) + (channel & 3) * 4);
  };
#pragma unroll 1
  for (int channel = 0; channel < 32; ++channel) {
    float key[4], key_log[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      key[e] = element(2, 4 * c + e, channel);
      key_log[e] = log(4 * c + e, channel);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = 2 * i + j;
      const float q_value = element(0, row, channel);
      float r_value = element(2, row, channel);
      if constexpr (Erase == axis::channel)
        r_value *= element(4, row, channel);
      else if constexpr (Erase == axis::content)
        r_value *= sigmoid(element(4, row, channel) +
                           read4(gate_shift + (32 * slice + channel) * 4));
      else
        r_value *= beta_value[j];
      const float row_log = log(row, channel);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = key[e] * exp2_fast(fminf(row_log - key_log[e], 0.f));
        float& l = near[0][e & 1][2 * j + (e >> 1)];
        float& m = near[1][e & 1][2 * j + (e >> 1)];
        l = fmaf(r_value, x, l);
        m = fmaf(q_value, x, m);
      }
    }
  }
}

/// Decays of one number per token, or none: the products are those of the
/// keys and queries as they are, scaled afterwards.
template <class In, int K, axis Decay, axis Erase>
__device__ __forceinline__ void
preparation<In, K, Decay, Erase>::couple_scalars(const problem& task, bool last,
                                                 std::uint32_t block,
                                                 std::uint32_t tail,
                                                 const float (&log_decay)[2],
                                                 const float (&beta_value)[4],
                                                 pairs& near, pairs (&far)[2]) {
  using part = prepared<K>;
  const int i = lane >> 2, c = lane & 3;
  const int row0 = 16 * warp + 2 * i;

  // Logs, base 2, of the prefixes in the block for the tokens 2 * lane and
  // + 1 of the chunk, and of the blocks' totals.
  float prefix[2] = {0, 0}, total[4] = {0, 0, 0, 0}, mine[2] = {0, 0};
  float before = 0, after = 0;
  if constexpr (Decay == axis::head) {
    const float a0 = log_decay[0] * log2e, a1 = log_decay[1] * log2e;
    float sum = a0 + a1;
#pragma unroll
    for (int m = 1; m < 8; m *= 2) {
      const float x = __shfl_up_sync(~0u, sum, m, 8);
      if ((lane & 7) >= m) sum += x;
    }
    prefix[1] = sum;
    prefix[0] = sum - a1;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      total[j] = __shfl_sync(~0u, sum, 8 * j + 7);
      before += j < warp ? total[j] : 0.f;
      after += j > warp ? total[j] : 0.f;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
      mine[j] = __shfl_sync(~0u, prefix[j], 8 * warp + i);
  }
  float fr[2], fq[2], fk[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    fq[j] = exp2_fast(mine[j] + before);
    fr[j] = fq[j] * beta_value[j];
    const float own = warp == 0   ? total[0]
                      : warp == 1 ? total[1]
                      : warp == 2 ? total[2]
                                  : total[3];
    fk[j] = exp2_fast((own - mine[j]) + after);
  }

#pragma unroll 1
  for (int slice = 0; slice < K / 32; ++slice) {
    copy_async_wait<0>();
    uint4 q4[2], k4[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      q4[j] = read16(raw(j));
      k4[j] = read16(raw(2 + j));
    }
    fetch_next(task, slice, last);
    // The keys as right operands, for later blocks, and warp 3's rows for
    // warp 0 (in the place of the logs, which this path does not need).
    const std::uint32_t keys =
        shared + scratch::logs + (slice & 1) * 4096 + lane * 16;
    write16(keys + warp * 512, make_uint4(k4[0].x, k4[0].y, k4[1].x, k4[1].y));
    write16(keys + 2048 + warp * 512,
            make_uint4(k4[0].z, k4[0].w, k4[1].z, k4[1].w));
    const std::uint32_t rows =
        shared + scratch::keys + (slice & 1) * 1024 + lane * 16;
    if (warp == 3) {
      write16(rows, make_uint4(q4[0].x, q4[0].y, q4[1].x, q4[1].y));
      write16(rows + 512, make_uint4(q4[0].z, q4[0].w, q4[1].z, q4[1].w));
    }
    const std::uint32_t left_k[2][4] = {{k4[0].x, k4[1].x, k4[0].y, k4[1].y},
                                        {k4[0].z, k4[1].z, k4[0].w, k4[1].w}};
    const std::uint32_t left_q[2][4] = {{q4[0].x, q4[1].x, q4[0].y, q4[1].y},
                                        {q4[0].z, q4[1].z, q4[0].w, q4[1].w}};
    const std::uint32_t right[2][4] = {{k4[0].x, k4[0].y, k4[1].x, k4[1].y},
                                       {k4[0].z, k4[0].w, k4[1].z, k4[1].w}};
    couple<In>(near, left_k[0], left_q[0], right[0]);
    couple<In>(near, left_k[1], left_q[1], right[1]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const std::uint32_t qw[4] = {q4[j].x, q4[j].y, q4[j].z, q4[j].w};
      const std::uint32_t kw[4] = {k4[j].x, k4[j].y, k4[j].z, k4[j].w};
      std::uint32_t x[4], y[4], z[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 qv = unpack<In>(qw[e]), kv = unpack<In>(kw[e]);
        x[e] = pack<In>(kv.x * fr[j], kv.y * fr[j]);
        y[e] =
            Decay == axis::none ? qw[e] : pack<In>(qv.x * fq[j], qv.y * fq[j]);
        z[e] = pack<__half>(kv.x * fk[j], kv.y * fk[j]);
      }
      const std::uint32_t at = block + (slice >> 1) * tile_bytes +
                               swizzled(row0 + j, (slice & 1) * 4 + c);
      write16(at + part::erase_keys, make_uint4(x[0], x[1], x[2], x[3]));
      write16(at + part::queries, make_uint4(y[0], y[1], y[2], y[3]));
      write16(at + part::tail_keys, make_uint4(z[0], z[1], z[2], z[3]));
    }
    sync_group<group>(barrier);
    if (warp == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 x = read16(keys + h * 2048 + 3 * 512);
        const uint4 y = read16(rows + h * 512);
        const std::uint32_t k3[4] = {x.x, x.z, x.y, x.w};
        const std::uint32_t q3[4] = {y.x, y.z, y.y, y.w};
        couple<In>(far[0], k3, q3, right[h]);
      }
    }
#pragma unroll
    for (int d = 1; d <= 2; ++d)
      if (d <= warp) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint4 x = read16(keys + h * 2048 + (warp - d) * 512);
          const std::uint32_t other[4] = {x.x, x.y, x.z, x.w};
          couple<In>(far[d - 1], left_k[h], left_q[h], other);
        }
      }
  }

  // Lane `lane` of warp 0 and so on write the block's decay, one number.
  const float all = exp2_fast((total[0] + total[1]) + (total[2] + total[3]));
  if (warp * 32 + lane < K)
    write4(tail + part::decay + (warp * 32 + lane) * 4, all);

  // Scales a block by the decays between its columns and its rows, whose
  // logs and erase gates are given.
  const auto scale = [&](pairs& x, int column_block, const float(&row_log)[2],
                         const float(&gate)[4], float between) {
    float f[2][4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float column =
          Decay == axis::none
              ? 0.f
              : __shfl_sync(~0u, prefix[e & 1],
                            8 * column_block + 2 * c + (e >> 1));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        f[j][e] = Decay == axis::none
                      ? 1.f
                      : exp2_fast(fminf(row_log[j] + (between - column), 0.f));
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // Column 4c + e is in tile e & 1, register e >> 1 of row j.
        x[0][e & 1][2 * j + (e >> 1)] *= f[j][e] * gate[j];
        x[1][e & 1][2 * j + (e >> 1)] *= f[j][e];
      }
  };
  scale(near, warp, mine, beta_value, 0.f);
  if (warp == 0) {
    float log3[2] = {0, 0};
    const float beta_last[4] = {beta_value[2], beta_value[3], 0, 0};
    if constexpr (Decay == axis::head) {
#pragma unroll
      for (int j = 0; j < 2; ++j) log3[j] = __shfl_sync(~0u, prefix[j], 24 + i);
    }
    scale(far[0], 0, log3, beta_last, (total[0] + total[1]) + total[2]);
  } else {
    const float one = warp == 1 ? total[0] : warp == 2 ? total[1] : total[2];
    scale(far[0], warp - 1, mine, beta_value, one);
    if (warp >= 2)
      scale(far[1], warp - 2, mine, beta_value,
            one + (warp == 2 ? total[0] : total[1]));
  }
}

template <class In, int K, axis Decay, axis Erase>
__device__ __forceinline__ void preparation<In, K, Decay, Erase>::run(
    const problem& task, bool last, std::uint32_t block, std::uint32_t tail,
    std::uint32_t coupled, const float (&log_decay)[2],
    const float (&beta_value)[4]) {
  pairs near = {}, far[2] = {};
  if constexpr (Decay == axis::channel) {
    couple_channels(task, last, block, tail, beta_value, near, far);
  } else {
    couple_scalars(task, last, block, tail, log_decay, beta_value, near, far);
  }
  // Write gates of one number per token.
  if constexpr (Erase != axis::channel) {
    if ((lane & 3) == 0)
      write8(tail + prepared<K>::write + (16 * warp + 2 * (lane >> 2)) * 4,
             __float_as_uint(beta_value[0]), __float_as_uint(beta_value[1]));
  }
  finish(block, coupled, near, far);
}

/// Writes P, and L for `invert`.
template <class In, int K, axis Decay, axis Erase>
__device__ __forceinline__ void preparation<In, K, Decay, Erase>::finish(
    std::uint32_t block, std::uint32_t coupled, const pairs& near,
    const pairs (&far)[2]) {
  const int i = lane >> 2, c = lane & 3;
  // Rows 2i, 2i+1 of the warp's 16, columns 4c..4c+3 of block b: row of 128
  // bytes, piece 2b + c / 2, half c & 1.
  const std::uint32_t products = block + prepared<K>::products;
  const auto patch = [&](int rows, int j, int b) {
    return products + swizzled(16 * rows + 2 * i + j, 2 * b + (c >> 1)) +
           (c & 1) * 8;
  };
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float l[4], m[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = 2 * i + j, col = 4 * c + e;
      l[e] = col < row ? near[0][e & 1][2 * j + (e >> 1)] : 0.f;
      m[e] = col <= row ? near[1][e & 1][2 * j + (e >> 1)] : 0.f;
    }
    write16(coupled + coupling::lower + warp * 1280 + (2 * i + j) * 80 + c * 16,
            as_uint(l[0], l[1], l[2], l[3]));
    write8(patch(warp, j, warp), pack<__half>(m[0], m[1]),
           pack<__half>(m[2], m[3]));
  }
  // Blocks before it (for warp 0 the first block of warp 3's rows); their
  // erase part as right operands, transposed.
#pragma unroll
  for (int d = 1; d <= 2; ++d) {
    const float(&l)[2][4] = far[d - 1][0];
    const float(&m)[2][4] = far[d - 1][1];
    if (d <= (warp == 0 ? 1 : warp)) {
      const int rows = warp == 0 ? 3 : warp, columns = warp == 0 ? 0 : warp - d;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        write8(patch(rows, j, columns), pack<__half>(m[0][2 * j], m[1][2 * j]),
               pack<__half>(m[0][2 * j + 1], m[1][2 * j + 1]));
      write16(
          coupled + coupling::before +
              (rows * (rows - 1) / 2 + rows - columns - 1) * 512 + lane * 16,
          make_uint4(
              pack<__half>(l[0][0], l[0][1]), pack<__half>(l[1][0], l[1][1]),
              pack<__half>(l[0][2], l[0][3]), pack<__half>(l[1][2], l[1][3])));
    }
  }
}

/// T = (I + L)^-1 by one warpgroup: the diagonal blocks of 16 by substitution
/// in fp32, the others by fp16 products.
__device__ __forceinline__ void invert(std::uint32_t tile,
                                       std::uint32_t coupled, int warp,
                                       int lane, int barrier) {
  const std::uint32_t lower = coupled + coupling::lower + warp * 1280;
  const std::uint32_t inverse = coupled + coupling::inverse + warp * 512;

  // Column lane % 16 of the diagonal block's inverse.
  float x[16];
  const int column = lane & 15;
#pragma unroll
  for (int t = 0; t < 16; ++t) x[t] = t == column ? 1.f : 0.f;
#pragma unroll
  for (int s = 0; s < 16; s += 4) {
#pragma unroll
    for (int t = s + 1; t < 16; ++t) {
      const float4 m = as_float(read16(lower + t * 80 + s * 4));
      x[t] = fmaf(-m.x, x[s], x[t]);
      if (s + 1 < t) x[t] = fmaf(-m.y, x[s + 1], x[t]);
      if (s + 2 < t) x[t] = fmaf(-m.z, x[s + 2], x[t]);
      if (s + 3 < t) x[t] = fmaf(-m.w, x[s + 3], x[t]);
    }
  }
  // Half a warp writes the tile, half a copy whose columns are in the
  // fragments' order (even tokens first).
  if (lane < 16) {
#pragma unroll
    for (int t = 0; t < 16; ++t)
      write2(tile + swizzled(16 * warp + t, 2 * warp + (column >> 3)) +
                 (column & 7) * 2,
             x[t]);
  } else {
#pragma unroll
    for (int t = 0; t < 16; ++t)
      write2(inverse + t * 32 + ((column >> 1) + 8 * (column & 1)) * 2, x[t]);
  }
  sync_group<group>(barrier);

  // T_wj = -T_ww sum_k L_wk T_kj, transposed so that every factor is at hand.
  std::uint32_t diagonal[4], before[3][4];
  load_matrices(diagonal, inverse + ((lane & 7) + 8 * (lane >> 4)) * 32 +
                              ((lane >> 3) & 1) * 16);
#pragma unroll
  for (int d = 1; d <= 3; ++d)
    if (d <= warp) {
      const uint4 y = read16(coupled + coupling::before +
                             (warp * (warp - 1) / 2 + d - 1) * 512 + lane * 16);
      before[d - 1][0] = y.x;
      before[d - 1][1] = y.y;
      before[d - 1][2] = y.z;
      before[d - 1][3] = y.w;
    }
#pragma unroll
  for (int d = 1; d <= 3; ++d) {
    if (d <= warp) {
      const int j = warp - d;
      float z[2][4] = {};
#pragma unroll
      for (int e = 1; e <= d; ++e) {
        std::uint32_t t[4];
        const int row = 16 * (warp - e) + 2 * (lane & 7) + (lane >> 4);
        load_matrices_transposed(
            t, tile + swizzled(row, 2 * j + ((lane >> 3) & 1)));
        mma_16<__half>(z[0], t, before[e - 1][0], before[e - 1][1]);
        mma_16<__half>(z[1], t, before[e - 1][2], before[e - 1][3]);
      }
      const std::uint32_t left[4] = {
          pack<__half>(-z[0][0], -z[0][1]), pack<__half>(-z[0][2], -z[0][3]),
          pack<__half>(-z[1][0], -z[1][1]), pack<__half>(-z[1][2], -z[1][3])};
      float y[2][4] = {};
      mma_16<__half>(y[0], left, diagonal[0], diagonal[1]);
      mma_16<__half>(y[1], left, diagonal[2], diagonal[3]);
      const int row = 16 * warp + (lane & 7) + 8 * (lane >> 4);
      store_matrices_transposed(
          tile + swizzled(row, 2 * j + ((lane >> 3) & 1)),
          pack<__half>(y[0][0], y[0][1]), pack<__half>(y[0][2], y[0][3]),
          pack<__half>(y[1][0], y[1][1]), pack<__half>(y[1][2], y[1][3]));
    }
    if (d < 3) sync_group<group>(barrier);
  }
}

/// T and P are zero above the diagonal blocks; nothing writes there later.
template <int K>
__device__ void clear_upper(std::uint32_t block, int thread, int threads) {
  for (int x = thread; x < 2 * tile_bytes / 16; x += threads)
    asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};\n" ::"r"(
                     block + prepared<K>::inverse + x * 16),
                 "r"(0)
                 : "memory");
}

// ---- the walk ----

/// A walking warpgroup's buffers: v in two stages (o is assembled in v's
/// place) and, for a write gate per channel, w in two stages or one.
template <axis Write, bool Split>
constexpr int values_bytes = tile_bytes*(Write != axis::channel ? 2
                                         : Split                ? 4
                                                                : 3);

/// Shared addresses of what the walk reads.
struct walk_shared {
  std::uint32_t blocks, tails;  // stages of prepared chunks
  std::uint32_t coupled;        // stages of I + L (fused only)
  std::uint32_t values;         // the warpgroup's own
  std::uint32_t ready;          // barriers: a stage is prepared,
  std::uint32_t full;           // its inverse too (fused only),
  std::uint32_t empty;          // it may be overwritten
  std::uint32_t mean, known;    // content: a window's mean, its barrier
};

/// One warpgroup takes 64 value channels from `column` on through all chunks.
/// Each warp arrives at `empty` once it is done with a stage.
///
/// `Split`: the chunks come complete, in three stages, and the products of
/// successive chunks overlap for a short chain from state to state.
/// Otherwise (fused) there are two stages and the warpgroups take turns in
/// inverting I + L.
template <class In, int K, axis Write, bool Split, bool Content>
__device__ __forceinline__ void walk_chunks(
    const problem& p, const outputs& out, const sequence_span& span,
    int sequence, int head, int role, int roles, int column,
    const walk_shared& at, int barrier, int thread) {
  using part = prepared<K>;
  constexpr int stages = Split ? 3 : 2;
  constexpr int w_stages = Split ? 2 : 1;
  const int warp = __shfl_sync(~0u, thread / 32, 0), lane = thread % 32;
  const int i = lane >> 2, c = lane & 3;
  const int length = static_cast<int>(span.length);
  const int chunks = (length + chunk - 1) / chunk;

  // Each thread moves the pieces (row + 16 m, piece), so that it may refill
  // what it alone has read.
  const int row = thread >> 3, piece = thread & 7;
  const In* v = static_cast<const In*>(p.v.data) +
                offset(p.v, span.batch, span.first + row, head) + column +
                piece * 8;
  const In* w = nullptr;
  if constexpr (Write == axis::channel)
    w = static_cast<const In*>(p.w.data) +
        offset(p.w, span.batch, span.first + row, head) + column + piece * 8;
  In* o = static_cast<In*>(out.o.data) +
          offset(out.o, span.batch, span.first + row, head) + column +
          piece * 8;
  const std::uint32_t moved = at.values + swizzled(row, piece);
  const std::uint32_t w_at = at.values + 2 * tile_bytes;

  // Starts the loads of a tensor's rows of chunk n.
  const auto fetch = [&](const In*& from, std::int64_t stride, int n,
                         std::uint32_t to) {
    if (n < chunks) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const bool valid = n * chunk + row + 16 * m < length;
        copy_async_16(to + 2048 * m,
                      from + (valid ? 16 * m * stride : -row * stride), valid);
      }
      from += chunk * stride;
    }
  };
  const auto fetch_v = [&](int n) {
    fetch(v, p.v.token, n, moved + (n & 1) * tile_bytes);
  };
  const auto fetch_w = [&](int n) {
    if constexpr (Write == axis::channel)
      fetch(w, p.w.token, n, moved + (2 + n % w_stages) * tile_bytes);
  };

  // S^T: rows i and i + 8 of the warp's 16, columns 8j + 2c and + 1.
  float state[K / 2];
  const std::int64_t state_at =
      (static_cast<std::int64_t>(sequence) * p.HV + head) * K * p.V +
      static_cast<std::int64_t>(2 * c) * p.V + column + 16 * warp + i;
  if (p.initial_state != nullptr) {
    const float* from = p.initial_state + state_at;
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        state[4 * j + e] = from[(8 * j + (e & 1)) * p.V + 8 * (e >> 1)];
  } else {
#pragma unroll
    for (int j = 0; j < K / 2; ++j) state[j] = 0;
  }

  fetch_v(0);
  fetch_w(0);
  copy_async_commit();
  fetch_v(1);
  if constexpr (w_stages == 2) fetch_w(1);
  copy_async_commit();

  // Addresses within a swizzled tile of 64 tokens by 64 channels of the
  // warp's 16 channels, by ldmatrix/stmatrix lanes; 16 tokens on: + 2048.
  const std::uint32_t lane_tile =
      swizzled((lane & 7) + 8 * (lane >> 4), 2 * warp + ((lane >> 3) & 1));
  float u[32], y[32];

  // o of chunk n takes v's place: each warp alone has read its channels of v.
  const auto write_out = [&](int n) {
    const std::uint32_t mine = (n & 1) * tile_bytes;
    const float f = p.scale;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      store_matrices_transposed(at.values + mine + lane_tile + 2048 * j,
                                pack<In>(f * y[8 * j], f * y[8 * j + 1]),
                                pack<In>(f * y[8 * j + 2], f * y[8 * j + 3]),
                                pack<In>(f * y[8 * j + 4], f * y[8 * j + 5]),
                                pack<In>(f * y[8 * j + 6], f * y[8 * j + 7]));
    sync_group<group>(barrier);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const uint4 x = read16(moved + mine + 2048 * m);
      if (n * chunk + row + 16 * m < length)
        *reinterpret_cast<uint4*>(o + 16 * m * out.o.token) = x;
    }
    o += chunk * out.o.token;
    fetch_v(n + 2);
    fetch_w(n + w_stages);
    copy_async_commit();
  };

  // Rounds the state, starts its product with the erase keys of the chunk in
  // `stage` and decays it over the chunk.
  std::uint32_t operand[K / 4];
  const auto start = [&](int stage) {
    const std::uint32_t block = at.blocks + stage * part::tiles;
    const std::uint32_t tail = at.tails + stage * part::tail_bytes;
#pragma unroll
    for (int j = 0; j < K / 4; ++j)
      operand[j] = pack<In>(state[2 * j], state[2 * j + 1]);
#pragma unroll
    for (int j = 0; j < K / 8; ++j) {
      const uint2 x = read8(tail + part::decay + (8 * j + 2 * c) * 4);
      const float2 f = make_float2(__uint_as_float(x.x), __uint_as_float(x.y));
      state[4 * j] *= f.x;
      state[4 * j + 1] *= f.y;
      state[4 * j + 2] *= f.x;
      state[4 * j + 3] *= f.y;
    }
    product_fence();
#pragma unroll
    for (int j = 0; j < K / 16; ++j)
      product<In, false>(u, operand + 4 * j,
                         tile_descriptor(block + part::erase_keys +
                                         (j >> 2) * tile_bytes + (j & 3) * 32),
                         j > 0);
    product_commit();
  };
  int stage = 0, phase = 0;  // of chunk n
  float sum[2] = {0, 0};     // content: of o over the window, two channels
  if constexpr (Split) {
    if (chunks > 0) {
      barrier_wait(at.ready, 0);
      start(0);
    }
    product_wait<0>();
    pin(u);
  }

#pragma unroll 1
  for (int n = 0; n < chunks; ++n) {
    const std::uint32_t block = at.blocks + stage * part::tiles;
    const std::uint32_t tail = at.tails + stage * part::tail_bytes;
    const auto read_state = [&] {
#pragma unroll
      for (int j = 0; j < K / 16; ++j)
        product<In, false>(
            y, operand + 4 * j,
            tile_descriptor(block + part::queries + (j >> 2) * tile_bytes +
                            (j & 3) * 32),
            j > 0);
    };
    if constexpr (Split) {
      product_fence();
      read_state();
      product_commit();
      copy_async_wait<1>();
      sync_group<group>(barrier);
    } else {
      barrier_wait(at.ready + 8 * stage, phase);
      if (roles == 1 || (n & 1) == role) {
        invert(block + part::inverse, at.coupled + stage * coupling::bytes,
               warp, lane, barrier);
        fence_async_proxy();
        barrier_arrive(at.full + 8 * stage);
      }
      start(stage);
      copy_async_wait<0>();
      sync_group<group>(barrier);
      product_wait<0>();
      pin(u);
    }

    // What is written less what is erased, rounded for the next product.
    std::uint32_t rest[16];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t vr[4], wr[4];
      load_matrices_transposed(
          vr, at.values + (n & 1) * tile_bytes + lane_tile + 2048 * j);
      if constexpr (Write == axis::channel)
        load_matrices_transposed(
            wr, w_at + n % w_stages * tile_bytes + lane_tile + 2048 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // e & 1: value channel + 8; e >> 1: tokens + 8.
        const float2 x = unpack<In>(vr[e]);
        float2 f;
        if constexpr (Write == axis::channel) {
          f = unpack<In>(wr[e]);
        } else {
          const uint2 g =
              read8(tail + part::write + (16 * j + 8 * (e >> 1) + 2 * c) * 4);
          f = make_float2(__uint_as_float(g.x), __uint_as_float(g.y));
        }
        const int k = 8 * j + 4 * (e >> 1) + 2 * (e & 1);
        rest[4 * j + e] =
            pack<__half>(fmaf(x.x, f.x, -u[k]), fmaf(x.y, f.y, -u[k + 1]));
      }
    }
    if constexpr (!Split) barrier_wait(at.full + 8 * stage, phase);
    product_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      product<__half, false>(u, rest + 4 * j,
                             tile_descriptor(block + part::inverse + j * 32),
                             j > 0);
    product_commit();
    product_wait<0>();
    pin(u);
    if constexpr (Split) pin(y);
#pragma unroll
    for (int j = 0; j < 16; ++j) rest[j] = pack<__half>(u[2 * j], u[2 * j + 1]);
    product_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      product<__half, true>(
          state, rest + 4 * j,
          tile_descriptor(block + part::tail_keys + j * 2048, tile_bytes), 1);
    product_commit();
    if constexpr (!Split) read_state();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      product<__half, false>(
          y, rest + 4 * j, tile_descriptor(block + part::products + j * 32), 1);
    product_commit();
    const int used = stage;
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
    if constexpr (Split) {
      product_wait<1>();
      pin(state);
      if (n + 1 < chunks) {
        barrier_wait(at.ready + 8 * stage, phase);
        start(stage);
        product_wait<1>();
      } else {
        product_wait<0>();
      }
    } else {
      product_wait<0>();
      pin(state);
    }
    pin(y);
    if constexpr (Content) {
      float more[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        more[0] += y[4 * j] + y[4 * j + 1];
        more[1] += y[4 * j + 2] + y[4 * j + 3];
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        more[j] += __shfl_xor_sync(~0u, more[j], 1);
        more[j] += __shfl_xor_sync(~0u, more[j], 2);
        sum[j] += more[j];
      }
      if ((n + 1) * chunk % p.window == 0 && n + 1 < chunks) {
        const float f = p.scale / static_cast<float>(p.window);
        if (c == 0) {
          write4(at.mean + (column + 16 * warp + i) * 4, sum[0] * f);
          write4(at.mean + (column + 16 * warp + i + 8) * 4, sum[1] * f);
        }
        sum[0] = sum[1] = 0;
        __syncwarp();
        if (lane == 0) barrier_arrive(at.known);
      }
    }
    if (lane == 0) barrier_arrive(at.empty + 8 * used);
    write_out(n);
    if constexpr (Split) {
      product_wait<0>();
      pin(u);
    }
  }
  copy_async_wait<0>();

  if (out.final_state != nullptr) {
    float* to = out.final_state + state_at;
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        to[(8 * j + (e & 1)) * p.V + 8 * (e >> 1)] = state[4 * j + e];
  }
}

// ---- kernels ----

extern __shared__ __align__(1024) char dynamic_shared[];

/// The tiles of the tensor cores need a boundary of 1024 bytes.
__device__ __forceinline__ std::uint32_t tiles_address() {
  const std::uint32_t address = shared_address(dynamic_shared);
  if (address % 1024 != 0) __trap();
  return address;
}

constexpr int largest_rank = 128;

/// W_up W_down m for the content gate, by 128 threads; follows m in shared
/// memory.  Zero for the first window.
template <int K, int V>
__device__ __forceinline__ void shift_gate(const problem& p, int head,
                                           bool first, std::uint32_t mean,
                                           int thread) {
  const std::uint32_t shift = mean + V * 4, inner = shift + K * 4;
  if (!first) {
    const float* down = p.w_down + static_cast<std::int64_t>(head) * p.rank * V;
    for (int r = thread / 32; r < p.rank; r += 4) {
      float sum = 0;
#pragma unroll
      for (int x = thread % 32; x < V; x += 32)
        sum = fmaf(down[r * V + x], read4(mean + x * 4), sum);
#pragma unroll
      for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(~0u, sum, m);
      if (thread % 32 == 0) write4(inner + r * 4, sum);
    }
    sync_group<group>(1);
  }
  if (thread < K) {
    float sum = 0;
    if (!first) {
      const float* up =
          p.w_up + (static_cast<std::int64_t>(head) * K + thread) * p.rank;
      for (int r = 0; r < p.rank; ++r)
        sum = fmaf(up[r], read4(inner + r * 4), sum);
    }
    write4(shift + thread * 4, sum);
  }
  sync_group<group>(1);
}

/// Both roles in one block: V / 64 walking warpgroups and a preparing one.
template <int K, int V, axis Write, int extra>
constexpr int fused_bytes = 2 * (prepared<K>::bytes + coupling::bytes) +
                            V / 64 * values_bytes<Write, false> + scratch::bytes
                            + 64 + extra;

template <class In, int K, int V, axis Decay, axis Erase, axis Write>
__global__ void __launch_bounds__(group*(V / 64 + 1), 1)
    fused_kernel(const __grid_constant__ problem p,
                 const __grid_constant__ outputs out) {
  using part = prepared<K>;
  constexpr int walkers = V / 64;
  constexpr int values_size = values_bytes<Write, false>;
  walk_shared at;
  at.blocks = tiles_address();
  at.values = at.blocks + 2 * part::tiles;
  at.tails = at.values + walkers * values_size;
  at.coupled = at.tails + 2 * part::tail_bytes;
  const std::uint32_t own = at.coupled + 2 * coupling::bytes;
  at.ready = own + scratch::bytes;
  at.full = at.ready + 16;
  at.empty = at.full + 16;
  at.known = at.empty + 16;
  at.mean = at.ready + 64;
  const int sequence = blockIdx.x / p.HV, head = blockIdx.x % p.HV;
  const sequence_span span = span_of(p.cu_seqlens, p.T, sequence);

  if (threadIdx.x == 0) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      barrier_init(at.ready + 8 * s, group);
      barrier_init(at.full + 8 * s, group);
      barrier_init(at.empty + 8 * s, 4 * walkers);
    }
    barrier_init(at.known, 4 * walkers);
  }
  clear_upper<K>(at.blocks, threadIdx.x, blockDim.x);
  clear_upper<K>(at.blocks + part::tiles, threadIdx.x, blockDim.x);
  fence_async_proxy();
  __syncthreads();

  // Broadcast, so that the compiler knows the branch to be uniform.
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (role < walkers) {
    // 2 x 176 + 152 = 504 registers for four threads of the three groups.
    if constexpr (walkers == 2) grow_registers<176>();
    at.values += role * values_size;
    walk_chunks<In, K, Write, false, Erase == axis::content>(
        p, out, span, sequence, head, role, walkers, 64 * role, at, 2 + role,
        thread);
  } else {
    if constexpr (walkers == 2) shrink_registers<152>();
    const int length = static_cast<int>(span.length);
    preparation<In, K, Decay, Erase> prepare;
    prepare.start(p, span, head, 0, own, 1, thread);
    float decay[2], erase[4];
    prepare.fetch_scalars(p, 0, decay, erase);
    if (length > 0) prepare.fetch(p, 0);
    for (int n = 0; n * chunk < length; ++n) {
      const std::uint32_t stage = n & 1;
      float next_decay[2], next_erase[4];

      prepare.fetch_scalars(p, (n + 1) * chunk, next_decay, next_erase);
      if (n >= 2) barrier_wait(at.empty + 8 * stage, ((n >> 1) - 1) & 1);
      if constexpr (Erase == axis::content) {
        prepare.gate_shift = at.mean + V * 4;
        if (n * chunk % p.window == 0) {
          const int window = n * chunk / p.window;
          if (window > 0) barrier_wait(at.known, (window - 1) & 1);
          shift_gate<K, V>(p, head, window == 0, at.mean, thread);
        }
      }
      prepare.run(p, (n + 1) * chunk >= length, at.blocks + stage * part::tiles,
                  at.tails + stage * part::tail_bytes,
                  at.coupled + stage * coupling::bytes, decay, erase);
      fence_async_proxy();
      barrier_arrive(at.ready + 8 * stage);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        decay[j] = next_decay[j];
        erase[j] = next_erase[j];
        erase[2 + j] = next_erase[2 + j];
      }
    }
  }
}

/// Index of the first prepared chunk of sequence `n` among a head's.
__device__ __forceinline__ int first_block(const problem& p, int n) {
  if (p.cu_seqlens == nullptr) return n * ((p.T + chunk - 1) / chunk);
  // Rounding each length up costs at most one chunk a sequence.
  return static_cast<int>(p.cu_seqlens[n] / chunk) + n;
}

template <int K>
constexpr int preparer_bytes =
    prepared<K>::bytes + coupling::bytes + scratch::bytes;
template <int K, axis Write>
constexpr int split_bytes =
    2 * preparer_bytes<K> >
            3 * prepared<K>::bytes + values_bytes<Write, true> + 64
        ? 2 * preparer_bytes<K>
        : 3 * prepared<K>::bytes + values_bytes<Write, true> + 64;

/// The first `walkers` blocks each walk 64 value channels of a head of a
/// sequence.  Each of the others prepares chunks in two warpgroups, `lanes`
/// warpgroups to a head, earliest chunks first, and raises a flag for each.
template <class In, int K, int V, axis Decay, axis Erase, axis Write>
__global__ void __launch_bounds__(2 * group, 1)
    split_kernel(const __grid_constant__ problem p,
                 const __grid_constant__ outputs out, char* workspace,
                 int* flags, int slots, int walkers, int lanes) {
  using part = prepared<K>;
  const std::uint32_t base = tiles_address();
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / group, 0);
  const int thread = threadIdx.x % group;
  if (static_cast<int>(blockIdx.x) < walkers) {
    walk_shared at;
    at.blocks = base;
    at.values = at.blocks + 3 * part::tiles;
    at.tails = at.values + values_bytes<Write, true>;
    at.ready = at.tails + 3 * part::tail_bytes;
    at.empty = at.ready + 24;
    const int column = blockIdx.x % (V / 64) * 64;
    const int which = blockIdx.x / (V / 64);
    const int sequence = which / p.HV, head = which % p.HV;
    const sequence_span span = span_of(p.cu_seqlens, p.T, sequence);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int s = 0; s < 3; ++s) {
        barrier_init(at.ready + 8 * s, 1);
        barrier_init(at.empty + 8 * s, 4);
      }
    }
    fence_async_proxy();
    __syncthreads();
    if (role == 0) {
      walk_chunks<In, K, Write, true, false>(p, out, span, sequence, head, 0, 1,
                                             column, at, 2, thread);
    } else if (thread == 0) {
      const int slot0 = first_block(p, sequence);
      int stage = 0, phase = 1;
      for (int n = 0; n * chunk < span.length; ++n) {
        const std::int64_t index =
            static_cast<std::int64_t>(head) * slots + slot0 + n;
        if (n >= 3) barrier_wait(at.empty + 8 * stage, phase);
        wait_flag(flags + index);
        fence_async_global();
        const char* from = workspace + index * part::bytes;
        barrier_expect(at.ready + 8 * stage, part::bytes);
        bulk_load(at.blocks + stage * part::tiles, from, part::tiles,
                  at.ready + 8 * stage);
        bulk_load(at.tails + stage * part::tail_bytes, from + part::tiles,
                  part::tail_bytes, at.ready + 8 * stage);
        if (++stage == 3) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    return;
  }
  const int preparer = (blockIdx.x - walkers) * 2 + role;
  const int head = preparer % p.HV;
  if (preparer >= lanes * p.HV) return;
  const std::uint32_t block = base + role * part::tiles;
  const std::uint32_t tail = base + 2 * part::tiles + role * part::tail_bytes;
  const std::uint32_t coupled = base + 2 * part::bytes + role * coupling::bytes;
  const std::uint32_t own =
      base + 2 * (part::bytes + coupling::bytes) + role * scratch::bytes;
  const int barrier = 1 + role;
  clear_upper<K>(block, thread, group);
  sync_group<group>(barrier);
  preparation<In, K, Decay, Erase> prepare;
  for (int slot = preparer / p.HV; slot < slots; slot += lanes) {
    // The sequence of this slot: the last one that starts at or before it.
    int low = 0, high = p.N;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first_block(p, middle) <= slot)
        low = middle;
      else
        high = middle;
    }
    const sequence_span span = span_of(p.cu_seqlens, p.T, low);
    const int first = (slot - first_block(p, low)) * chunk;
    if (first >= span.length) continue;
    prepare.start(p, span, head, first, own, barrier, thread);
    float decay[2], erase[4];
    prepare.fetch(p, 0);
    prepare.fetch_scalars(p, first, decay, erase);
    prepare.run(p, true, block, tail, coupled, decay, erase);
    sync_group<group>(barrier);
    invert(block + part::inverse, coupled, prepare.warp, prepare.lane, barrier);
    fence_async_proxy();
    sync_group<group>(barrier);
    if (thread == 0) {
      const std::int64_t index = static_cast<std::int64_t>(head) * slots + slot;
      bulk_store(workspace + index * part::bytes, block, part::tiles);
      bulk_store(workspace + index * part::bytes + part::tiles, tail,
                 part::tail_bytes);
      bulk_store_wait();
      fence_async_global();
      raise_flag(flags + index);
    }
    sync_group<group>(barrier);
  }
}

// ---- host ----

/// Chunks that the workspace has room for, over all sequences of a head.
std::int64_t slots_of(const problem& p) {
  if (p.cu_seqlens == nullptr)
    return static_cast<std::int64_t>(p.N) * ((p.T + chunk - 1) / chunk);
  return p.T / chunk + p.N + 1;
}

/// Few sequences and heads leave most of the chip idle unless the chunks are
/// prepared apart and the value channels split.
bool split(const problem& p) {
  return p.family != family::carve && p.T > 0 &&
         static_cast<std::int64_t>(p.N) * p.HV * (p.V / 64) <= 64;
}

/// Bytes of the flags that follow the prepared chunks.
std::size_t flag_bytes(const problem& p) {
  return static_cast<std::size_t>(slots_of(p)) * p.HV * sizeof(int);
}

template <class In, int K, int V, axis Decay, axis Erase, axis Write>
status launch(const problem& p, const outputs& out, char* workspace,
              CUstream_st* stream) {
  constexpr bool content = Erase == axis::content;
  if constexpr (!content) {
    int device = 0, processors = 0;
    CARVE_CUDA_TRY(cudaGetDevice(&device));
    CARVE_CUDA_TRY(cudaDeviceGetAttribute(
        &processors, cudaDevAttrMultiProcessorCount, device));
    const int slots = static_cast<int>(slots_of(p));
    const int walkers = p.N * p.HV * (V / 64);
    // Walkers wait for preparers and fill a multiprocessor each, so some must
    // be left over.
    const int lanes = 2 * (processors - walkers) / p.HV;
    if (split(p) && lanes >= 1) {
      int* flags =
          reinterpret_cast<int*>(workspace + static_cast<std::size_t>(slots) *
                                                 p.HV * prepared<K>::bytes);
      CARVE_CUDA_TRY(cudaMemsetAsync(flags, 0, flag_bytes(p), stream));
      auto kernel = split_kernel<In, K, V, Decay, Erase, Write>;
      constexpr int bytes = split_bytes<K, Write>;
      CARVE_CUDA_TRY(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      kernel<<<walkers + (lanes * p.HV + 1) / 2, 2 * group, bytes, stream>>>(
          p, out, workspace, flags, slots, walkers, lanes);
      CARVE_CUDA_TRY(cudaGetLastError());
      return {};
    }
  }
  auto kernel = fused_kernel<In, K, V, Decay, Erase, Write>;
  constexpr int more = content ? 4 * (K + V + largest_rank) : 0;
  constexpr int bytes = fused_bytes<K, V, Write, more>;
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<p.N * p.HV, group*(V / 64 + 1), bytes, stream>>>(p, out);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <class In, int K, int V>
status launch_family(const problem& p, const outputs& out, char* workspace,
                     CUstream_st* stream) {
  switch (p.family) {
    case family::delta:
      return launch<In, K, V, axis::none, axis::head, axis::head>(
          p, out, workspace, stream);
    case family::gdn:
      return launch<In, K, V, axis::head, axis::head, axis::head>(
          p, out, workspace, stream);
    case family::kda:
      return launch<In, K, V, axis::channel, axis::head, axis::head>(
          p, out, workspace, stream);
    case family::gdn2:
      return launch<In, K, V, axis::channel, axis::channel, axis::channel>(
          p, out, workspace, stream);
    case family::carve:
      return launch<In, K, V, axis::channel, axis::content, axis::head>(
          p, out, workspace, stream);
    default:
      return {unsupported, "forward_hopper: family without a kernel"};
  }
}

// The kernels are templates over the format and K, V in {64, 128}.  Only what
// has been checked on a device is offered; the rest is compiled with this
// macro, for whoever checks it.
#ifdef CARVE_FORWARD_ALL_SHAPES
constexpr bool all_shapes = true;
#else
constexpr bool all_shapes = false;
#endif

template <class In>
status launch_shape(const problem& p, const outputs& out, char* workspace,
                    CUstream_st* stream) {
  if (p.K == 128 && p.V == 128)
    return launch_family<In, 128, 128>(p, out, workspace, stream);
  if constexpr (all_shapes) {
    if (p.K == 128 && p.V == 64)
      return launch_family<In, 128, 64>(p, out, workspace, stream);
    if (p.K == 64 && p.V == 128)
      return launch_family<In, 64, 128>(p, out, workspace, stream);
    if (p.K == 64 && p.V == 64)
      return launch_family<In, 64, 64>(p, out, workspace, stream);
  }
  return {unsupported, "forward_hopper: K or V without a kernel"};
}

/// Rows must start on 16 bytes for the wide copies.
bool aligned(const tensor& x, int element_bytes) {
  const int step = 16 / element_bytes;
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 &&
         x.batch % step == 0 && x.token % step == 0 && x.head % step == 0;
}

}  // namespace

bool forward_hopper_supports(const problem& p) {
  if (p.family != family::delta && p.family != family::gdn &&
      p.family != family::kda && p.family != family::gdn2 &&
      p.family != family::carve)
    return false;
  // A gate that changes inside a chunk would need chunks of its own.
  if (p.family == family::carve && (p.window <= 0 || p.window % chunk != 0 ||
                                    p.rank <= 0 || p.rank > largest_rank))
    return false;
  const auto fits = [](int n) { return n == 128 || (all_shapes && n == 64); };
  if (!fits(p.K) || !fits(p.V)) return false;
  if (p.input != format::bf16 && !(all_shapes && p.input == format::fp16))
    return false;
  if (p.family != family::delta && p.decay_format != format::fp32) return false;
  if (p.read_before) return false;
  if (!aligned(p.q, 2) || !aligned(p.k, 2) || !aligned(p.v, 2)) return false;
  if ((p.family == family::kda || p.family == family::gdn2 ||
       p.family == family::carve) &&
      !aligned(p.g, 4))
    return false;
  if ((p.family == family::gdn2 || p.family == family::carve) &&
      !aligned(p.b, 2))
    return false;
  if (p.family == family::gdn2 && !aligned(p.w, 2)) return false;
  return true;
}

status forward_hopper_workspace(const problem& p, std::size_t* bytes) {
  *bytes = 0;
  if (split(p)) {
    *bytes = static_cast<std::size_t>(slots_of(p)) * p.HV * block_bytes(p.K) +
             flag_bytes(p);
  }
  return {};
}

status forward_hopper(const problem& p, const outputs& out, void* workspace,
                      std::size_t bytes, CUstream_st* stream) {
  std::size_t needed = 0;
  forward_hopper_workspace(p, &needed);
  if (bytes < needed)
    return {workspace_too_small, "forward_hopper: workspace too small"};
  if (!aligned(out.o, 2))
    return {bad_argument, "forward_hopper: o must be aligned to 16 bytes"};
  if (reinterpret_cast<std::uintptr_t>(workspace) % 16 != 0 ||
      (needed > 0 && workspace == nullptr))
    return {bad_argument, "forward_hopper: workspace null or misaligned"};
  if (p.N == 0 || p.HV == 0) return {};
  char* const ws = static_cast<char*>(workspace);
  if constexpr (all_shapes)
    if (p.input == format::fp16)
      return launch_shape<__half>(p, out, ws, stream);
  return launch_shape<__nv_bfloat16>(p, out, ws, stream);
}

}  // namespace carve::cuda
