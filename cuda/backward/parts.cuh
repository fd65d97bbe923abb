// What the kernels of the chunked backward share: their arguments, the kinds of
// slice, operands of either format, decayed tiles and pairs formed one by one.
// The method is described in backward/backward.cu.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/product.cuh"
#include "arch/shared.cuh"
#include "common.cuh"
#include "kernels.hpp"

namespace carve::cuda::backward_chunks {

using arch::fragment;

constexpr int chunk = 64;

enum kind : unsigned { half = 0, bfloat = 1, pairs = 2 };
/// Largest exponents of the first two kinds, in bits.
constexpr float widest_half = 11.5f, widest_bfloat = 75.f;
/// L and P between two blocks are formed 2^10 too large: an fp16 factor of
/// 2^-23 would keep two bits.
constexpr float lift_bits = 10.f, unlift = 0x1p-10f;
/// The first chunk's Rt and Qt are made this much larger: the cotangent of
/// the initial state has decayed with the first token at least, and fp16's
/// smallest numbers are 2^-24.
constexpr float first_lift = 256.f;
constexpr float log2_e = 1.4426950408889634f;

/// 2^x; below the smallest normal number, 0.
__device__ __forceinline__ float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// What a token has of a decay that is one number a head: Gamma in bits, its
/// distance to the chunk's end as a factor, e^Gamma, and beta.
enum factor { to_bits = 0, to_tail = 64, to_start = 128, to_beta = 192 };

struct chunk_entry {
  int batch, first, length, sequence;
};

/// Everything the kernels read or write; arrays of the workspace are indexed
/// by (chunk, value head), rows are tokens of the chunk.
struct arguments {
  problem p;
  gradients d;
  int most_chunks;     // entries of `table`, unused ones length -1
  chunk_entry* table;  // chunks in order
  int* first_chunk;    // [N+1]
  unsigned* peak;      // [N,HV], bits of the largest cotangent
  // Tiles as they lie in shared memory, which one bulk copy fills: [64,K] by
  // wide_offset (one decay a head: by tile_offset, Rt, Qt are k, q), [64,64]
  // likewise, above the diagonal blocks undefined, [64,V] by panel_offset
  // (but for one decay a head, U, and of
  // carve dR, by wide_offset); d_o
  // and Z scaled, a scale a chunk.
  __half *M, *Qt, *Rt;
  __half* T;
  __half *Z, *U, *dR, *d_o;
  uint2 *S, *dS;             // [V/16,K/16] blocks of 512 bytes, see walk
  float* decay;              // [K], e^Gamma_C, and [4], of which the first is
                             // the inverse of the scale of d_o
  float* ends;               // [4,K], Gamma at the blocks' ends, in bits
  float* factors;            // see `factor`, [4,64]; kda: beta alone; carve:
                             // w and, to_start, the sums of P T over rows
  float *dq_part, *dk_part;  // [B*T,HV,K] when groups are summed
  // Of a content gate, of a window at its first chunk: the mean of the outputs
  // before it [V], W_down times that [rank], the shift of its logits [K], what
  // that receives [K], W_up^T times that [rank].
  float *mean, *inner, *shift, *d_shift, *d_inner;
  // Of each chunk [K/16,4,32], as lanes of the walk hold them, a block of 16
  // tokens after the other: b (1 - b) k and k with their decay, a lane two
  // channels of eight tokens each.
  uint4 *change, *keys;
  float* d_gate;  // [pieces,HV,rank,K+V], parts of dW_up and dW_down
  // Flags: the walk backwards through a content gate is through with the chunk.
  // Null: it has ended before `chunk_gradients` begins.
  int* ready;
  // The forward's workspace and outputs, where later other things stand.
  char* forward;
  std::size_t forward_bytes;
  __half* o;  // in the inputs' format
};

/// The first chunk of the window in which chunk `index` of the table lies.
__device__ __forceinline__ int window_of(const arguments& a, int index,
                                         int sequence) {
  const int inside = index - a.first_chunk[sequence];
  return index - inside % (a.p.window / chunk);
}

/// The shifts of the logits of a chunk, [K].
template <int K>
__device__ __forceinline__ const float* shifts_of(const arguments& a,
                                                  const chunk_entry& c,
                                                  int index, int head) {
  const std::int64_t window = window_of(a, index, c.sequence);
  return a.shift + (window * a.p.HV + head) * K;
}

/// Byte offset of (row, col) in a tile of 64 rows that whole warpgroups
/// multiply: panels of 64 columns.
__device__ __forceinline__ std::uint32_t wide_offset(int row, int col) {
  return (col >> 6) * (chunk * 128) + arch::tile_offset<64>(row, col & 63);
}

/// Where (row, col) of [64,V] stands in panels of 16 columns, in elements.  The
/// pieces of eight are exchanged in every other four rows, so that eight rows
/// of one piece lie in 32 banks.
__device__ __forceinline__ int panel_offset(int row, int col) {
  return (col >> 4) * (16 * chunk) + row * 16 + ((col ^ (row * 2)) & 8) +
         (col & 7);
}

template <typename E>
struct element;
template <>
struct element<__nv_bfloat16> {
  static __device__ float2 unpack(std::uint32_t x) {
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&x));
  }
  static __device__ std::uint32_t pack(float lo, float hi) {
    __nv_bfloat162 y = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<std::uint32_t*>(&y);
  }
};
template <>
struct element<__half> {
  static __device__ float2 unpack(std::uint32_t x) {
    return __half22float2(*reinterpret_cast<__half2*>(&x));
  }
  static __device__ std::uint32_t pack(float lo, float hi) {
    __half2 y = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<std::uint32_t*>(&y);
  }
};
using operand = element<__half>;

/// Packs for a slice of this kind.
__device__ __forceinline__ std::uint32_t pack_kind(unsigned kind, float lo,
                                                   float hi) {
  return kind == bfloat ? element<__nv_bfloat16>::pack(lo, hi)
                        : operand::pack(lo, hi);
}

/// The scale of cotangents whose largest has these bits, and its inverse.
__device__ __forceinline__ float2 scale_of(unsigned peak) {
  const int e = peak >> 23;
  if (e == 0 || e == 255) return {1.f, 1.f};
  const int f = min(max(255 - e, 27), 227);  // the peak comes to 2..4
  return {__int_as_float(f << 23), __int_as_float((254 - f) << 23)};
}
__device__ __forceinline__ float2 cotangent_scale(const arguments& a,
                                                  int sequence, int head) {
  return scale_of(a.peak[sequence * a.p.HV + head]);
}

/// What brings a chunk's d_o to its sequence's scale; at most 1, but where all
/// are 0.
__device__ __forceinline__ float to_common_scale(float common, float inverse) {
  return fminf(common * inverse, 1.f);
}

/// The logistic function of x, and of minus x; both zero where the former is
/// below the smallest normal number.
__device__ __forceinline__ float2 logistic(float x) {
  const float e = power(arch::min_nan(-log2_e * x, 127.f));
  const float b = arch::reciprocal(1.f + e);
  return {b, e * b};
}

template <typename E>
__device__ __forceinline__ const E* row_of(const tensor& x, int batch,
                                           int token, int head) {
  return static_cast<const E*>(x.data) + batch * x.batch + token * x.token +
         head * x.head;
}
template <typename E>
__device__ __forceinline__ E* row_of_out(const tensor& x, int batch, int token,
                                         int head) {
  return static_cast<E*>(x.data) + batch * x.batch + token * x.token +
         head * x.head;
}

template <typename E>
__device__ __forceinline__ void unpack4(float (&y)[4], uint2 x) {
  const float2 a = element<E>::unpack(x.x), b = element<E>::unpack(x.y);
  y[0] = a.x, y[1] = a.y, y[2] = b.x, y[3] = b.y;
}
template <typename E>
__device__ __forceinline__ void load4(float (&y)[4], const E* p) {
  unpack4<E>(y, *reinterpret_cast<const uint2*>(p));
}

__device__ __forceinline__ void read4(float (&y)[4], const float* p) {
  const float4 x = *reinterpret_cast<const float4*>(p);
  y[0] = x.x, y[1] = x.y, y[2] = x.z, y[3] = x.w;
}

template <typename E>
__device__ __forceinline__ void store4(E* p, const float (&y)[4]) {
  *reinterpret_cast<uint2*>(p) =
      make_uint2(element<E>::pack(y[0], y[1]), element<E>::pack(y[2], y[3]));
}

template <typename E>
__device__ __forceinline__ void unpack8(float (&y)[8], uint4 x) {
  const std::uint32_t z[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 a = element<E>::unpack(z[i]);
    y[2 * i] = a.x, y[2 * i + 1] = a.y;
  }
}

template <typename E>
__device__ __forceinline__ uint4 pack8(const float (&y)[8]) {
  return make_uint4(element<E>::pack(y[0], y[1]), element<E>::pack(y[2], y[3]),
                    element<E>::pack(y[4], y[5]), element<E>::pack(y[6], y[7]));
}

/// Eight bytes, or zeros where `valid` is false: no branch between loads, so
/// that many are under way at once.
__device__ __forceinline__ uint2 load_or_zero8(const void* p, bool valid) {
  uint2 y;
  asm("{\n.reg .pred ok;\nsetp.ne.b32 ok, %3, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\n"
      "@ok ld.global.nc.v2.b32 {%0,%1}, [%2];\n}\n"
      : "=&r"(y.x), "=&r"(y.y)
      : "l"(p), "r"(static_cast<int>(valid)));
  return y;
}
__device__ __forceinline__ float4 load_or_zero16(const void* p, bool valid) {
  float4 y;
  asm("{\n.reg .pred ok;\nsetp.ne.b32 ok, %5, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@ok ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];\n}\n"
      : "=&f"(y.x), "=&f"(y.y), "=&f"(y.z), "=&f"(y.w)
      : "l"(p), "r"(static_cast<int>(valid)));
  return y;
}

__device__ __forceinline__ void store16(float* p, const float (&y)[4]) {
  asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};\n" ::"l"(p), "f"(y[0]),
               "f"(y[1]), "f"(y[2]), "f"(y[3])
               : "memory");
}

/// Sixteen 16-bit elements of a row that four lanes hold as an accumulator
/// does: columns 2 quad, 2 quad + 1 in `low`, 8 more in `high`.  With a `flip`
/// of 8 the row's halves are exchanged.
template <typename T>
__device__ __forceinline__ void store_row16(T* row, int quad, std::uint32_t low,
                                            std::uint32_t high,
                                            bool valid = true, int flip = 0) {
  const bool odd = quad & 1;
  const std::uint32_t other = __shfl_xor_sync(~0u, odd ? low : high, 1);
  if (!valid) return;
  *reinterpret_cast<uint2*>(row + ((odd ? 8 : 0) ^ flip) + (quad & 2) * 2) =
      odd ? uint2{other, high} : uint2{low, other};
}

/// Log2 decays of four channels of rows group + 8 i; rows beyond the chunk's
/// length decay by nothing.
__device__ __forceinline__ void fetch_decay(float (&y)[8][4], const problem& p,
                                            const chunk_entry& c, int group,
                                            int head, int channel) {
  const float* from =
      row_of<float>(p.g, c.batch, c.first + group, head) + channel;
  const std::int64_t step = 8 * p.g.token;
#pragma unroll
  for (int i = 0; i < 8; ++i, from += step) {
    const float4 x = load_or_zero16(from, group + 8 * i < c.length);
    y[i][0] = x.x, y[i][1] = x.y, y[i][2] = x.z, y[i][3] = x.w;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) y[i][j] = __fmul_rn(y[i][j], log2_e);
}

/// Four channels of rows group + 8 (first + i); zeros beyond the length.
template <typename E, int Rows>
__device__ __forceinline__ void fetch_rows(uint2 (&y)[Rows], const tensor& x,
                                           const chunk_entry& c, int group,
                                           int first, int head, int channel) {
  const int row = group + 8 * first;
  const E* from = row_of<E>(x, c.batch, c.first + row, head) + channel;
  const std::int64_t step = 8 * x.token;
#pragma unroll
  for (int i = 0; i < Rows; ++i, from += step)
    y[i] = load_or_zero8(from, row + 8 * i < c.length);
}

/// The same of all rows group + 8 i into a tile of K columns, to this lane's
/// place in row `group`.
template <typename E, int K>
__device__ __forceinline__ void copy_rows(std::uint32_t to, const tensor& x,
                                          const chunk_entry& c, int group,
                                          int head, int channel) {
  const E* from = row_of<E>(x, c.batch, c.first + group, head) + channel;
  const std::int64_t step = 8 * x.token;
#pragma unroll
  for (int i = 0; i < 8; ++i, from += step)
    arch::copy_async_8(to + i * 16 * K, from, group + 8 * i < c.length);
}

/// One 16-bit gate twice in a word.
template <typename E>
__device__ __forceinline__ unsigned twice(const tensor& x, const chunk_entry& c,
                                          int row, int head) {
  return 0x10001u * *reinterpret_cast<const unsigned short*>(
                        row_of<E>(x, c.batch, c.first + row, head));
}

/// Erase gates of four channels, or their logits, the same rows.
template <typename E, bool Content, int Rows>
__device__ __forceinline__ void fetch_erase(uint2 (&y)[Rows], const problem& p,
                                            const chunk_entry& c, int group,
                                            int first, int head, int channel) {
  if (Content || p.family == family::gdn2) {
    fetch_rows<E>(y, p.b, c, group, first, head, channel);
  } else {
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      const int row = min(group + 8 * (first + i), c.length - 1);
      y[i].x = y[i].y = twice<E>(p.beta, c, row, head);
    }
  }
}

/// Write gates of eight channels of one row.
template <typename E, bool Content>
__device__ __forceinline__ uint4 fetch_write(const problem& p,
                                             const chunk_entry& c, int row,
                                             int head, int channel) {
  if (!Content && p.family == family::gdn2)
    return *reinterpret_cast<const uint4*>(
        row_of<E>(p.w, c.batch, c.first + row, head) + channel);
  const unsigned x = twice<E>(Content ? p.w : p.beta, c, row, head);
  return make_uint4(x, x, x, x);
}

/// A warp's slice: 16 channels of 64 tokens.  Lane (group, quad) holds rows
/// group + 8 i and channels 4 quad + 0..3.  In an accumulator or a tile of
/// shared memory, channel 4 quad + 2 j + e stands at column 8 j + 2 quad + e.
///
/// Turns log decays into their running sums, and returns the totals.
__device__ __forceinline__ void running_sum(float (&x)[8][4], float (&total)[4],
                                            int lane) {
#pragma unroll
  for (int j = 0; j < 4; ++j) total[j] = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float v = x[i][j];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, v, step);
        if (lane >= step) v += other;
      }
      v += total[j];
      x[i][j] = v;
      total[j] = __shfl_sync(~0u, v, 28 + (lane & 3));
    }
  }
}

/// Gamma at the blocks' ends, of this lane's channels; before the first, 0.
__device__ __forceinline__ void block_ends(float (&ends)[5][4],
                                           const float (&sum)[8][4], int quad) {
#pragma unroll
  for (int b = 0; b < 5; ++b)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      ends[b][j] =
          b == 0 ? 0.f
                 : __shfl_sync(~0u, sum[b == 0 ? 0 : 2 * b - 1][j], 28 + quad);
}

/// Reference points of the block between two ends.
struct reference {
  float q[4], k[4];
};
__device__ __forceinline__ reference reference_of(const float (&start)[4],
                                                  const float (&end)[4],
                                                  unsigned kind) {
  reference r;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float mid = 0.5f * (start[j] + end[j]);
    r.q[j] = kind == pairs ? start[j] : mid;
    r.k[j] = kind == pairs ? end[j] : mid;
  }
  return r;
}

/// The narrowest kind that holds the slice's exponents and, for inputs in fp16,
/// their precision.  Log decays are at most 0, so the largest stand at the
/// blocks' ends.
template <typename E, int Channels>
__device__ __forceinline__ unsigned kind_of(const float (&ends)[5][Channels]) {
  float most = 0.f;
#pragma unroll
  for (int b = 0; b < 4; ++b)
#pragma unroll
    for (int j = 0; j < Channels; ++j)
      most = fmaxf(most, ends[b][j] - ends[b + 1][j]);
  most *= 0.5f;
  if (__all_sync(~0u, most <= widest_half)) return half;
  if (std::is_same_v<E, __half>) return pairs;
  return __all_sync(~0u, most <= widest_bfloat) ? bfloat : pairs;
}

/// What the pairs of row `t` with all rows of the chunk give to dq, -dr and
/// the part of dk that is not b*dr, four channels; for slices of kind `pairs`,
/// which are rare: kept out of line.  `dP`, `dL`: tiles of [64,64]; `shift`: of
/// the logits from this channel on, if b holds such.
struct pair_terms {
  float q[4], r[4], k[4];
};
template <typename E, bool Content>
__device__ __noinline__ void sum_pairs(pair_terms& y, const problem& p,
                                       chunk_entry c, const std::uint8_t* dP,
                                       const std::uint8_t* dL, int t, int head,
                                       int channel, const float* shift) {
  const int qk_head = head / (p.HV / p.H);
  auto entry = [](const std::uint8_t* tile, int row, int col) {
    return __half2float(*reinterpret_cast<const __half*>(
        tile + arch::tile_offset<chunk>(row, col)));
  };
  y = {};
  if (t >= c.length) return;
    // Down from t to the start, then up to the end; `decay` runs along.
#pragma unroll 1
  for (int up = 0; up < 2; ++up) {
    float decay[4] = {};
#pragma unroll 1
    for (int s = t; up ? s < c.length : s >= 0; s += up ? 1 : -1) {
      const int row = c.first + s;
      float q[4], k[4], b[4], g[4];
      for (int j = 0; j < 4; ++j)
        g[j] = row_of<float>(p.g, c.batch, row, head)[channel + j];
      load4(q, row_of<E>(p.q, c.batch, row, qk_head) + channel);
      load4(k, row_of<E>(p.k, c.batch, row, qk_head) + channel);
      if (Content || p.family == family::gdn2)
        load4(b, row_of<E>(p.b, c.batch, row, head) + channel);
      else
        b[0] = b[1] = b[2] = b[3] =
            static_cast<float>(*row_of<E>(p.beta, c.batch, row, head));
      if constexpr (Content)
        for (int j = 0; j < 4; ++j) b[j] = logistic(b[j] + shift[j]).x;
      const float P = up ? entry(dP, s, t) : entry(dP, t, s);
      const float L = up ? entry(dL, s, t) : entry(dL, t, s);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (up && s > t) decay[j] += g[j] * log2_e;
        const float f = power(decay[j]);
        if (up) {
          y.k[j] += (P * q[j] - L * b[j] * k[j]) * f;
        } else {
          y.q[j] += P * k[j] * f;
          y.r[j] += L * k[j] * f;
          decay[j] += g[j] * log2_e;
        }
      }
      // What is left is below every rounding.
      if (fmaxf(fmaxf(decay[0], decay[1]), fmaxf(decay[2], decay[3])) < -64.f)
        break;
    }
  }
}

/// Four channels of one row into a tile, in column order.
template <int Columns>
__device__ __forceinline__ void put_row(std::uint8_t* tile, int row, int base,
                                        int quad, uint2 y) {
  *reinterpret_cast<std::uint32_t*>(
      tile + arch::tile_offset<Columns>(row, base + 2 * quad)) = y.x;
  *reinterpret_cast<std::uint32_t*>(
      tile + arch::tile_offset<Columns>(row, base + 8 + 2 * quad)) = y.y;
}
/// Byte offset of this lane's first two channels of a row; those of the other
/// two differ in bit 4.
template <int Columns>
__device__ __forceinline__ std::uint32_t tile_row(int row, int base, int quad) {
  return arch::tile_offset<Columns>(row, base + 2 * quad);
}
__device__ __forceinline__ void put_pair(std::uint8_t* tile, std::uint32_t at,
                                         std::uint32_t x, std::uint32_t y) {
  *reinterpret_cast<std::uint32_t*>(tile + at) = x;
  *reinterpret_cast<std::uint32_t*>(tile + (at ^ 16)) = y;
}

/// acc (16x16) += a (16x16, fp16) b (16x16, of this kind), twice.
__device__ __forceinline__ void multiply_kind(unsigned kind, float (&acc)[2][4],
                                              fragment a, const fragment& b,
                                              float (&acc_2)[2][4],
                                              fragment a_2,
                                              const fragment& b_2) {
  if (kind == bfloat) {
    // The left operands in two parts, so that they are not rounded again.
    using E = element<__nv_bfloat16>;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      fragment z, z_2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float2 x = operand::unpack(a.r[i]), y = operand::unpack(a_2.r[i]);
        z.r[i] = E::pack(x.x, x.y);
        z_2.r[i] = E::pack(y.x, y.y);
        if (part == 0) continue;
        const float2 p = E::unpack(z.r[i]), q = E::unpack(z_2.r[i]);
        z.r[i] = E::pack(x.x - p.x, x.y - p.y);
        z_2.r[i] = E::pack(y.x - q.x, y.y - q.y);
      }
      arch::multiply<__nv_bfloat16>(acc[0], z, b.r[0], b.r[1]);
      arch::multiply<__nv_bfloat16>(acc[1], z, b.r[2], b.r[3]);
      arch::multiply<__nv_bfloat16>(acc_2[0], z_2, b_2.r[0], b_2.r[1]);
      arch::multiply<__nv_bfloat16>(acc_2[1], z_2, b_2.r[2], b_2.r[3]);
    }
  } else {
    arch::multiply<__half>(acc[0], a, b.r[0], b.r[1]);
    arch::multiply<__half>(acc[1], a, b.r[2], b.r[3]);
    arch::multiply<__half>(acc_2[0], a_2, b_2.r[0], b_2.r[1]);
    arch::multiply<__half>(acc_2[1], a_2, b_2.r[2], b_2.r[3]);
  }
}

/// A right operand's two rows of tokens scaled: `low` holds the factors of
/// rows 2 quad and 2 quad + 1, `high` those of 8 more.
__device__ __forceinline__ fragment scale_rows(fragment x, float2 low,
                                               float2 high) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const float2 y = operand::unpack(x.r[n]), f = n & 1 ? high : low;
    x.r[n] = operand::pack(y.x * f.x, y.y * f.y);
  }
  return x;
}

}  // namespace carve::cuda::backward_chunks
