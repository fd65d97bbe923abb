// Chunked backward of the key-axis erase families on Hopper's tensor cores.
//
// With C = 64 tokens a chunk, start state S, cotangent dS of the end state,
// Gamma the running sum of the log decays, R = b*k and
//   L = stril(R e^(Gamma_t - Gamma_s) k),  P = scale tril(q e^(...) k),
//   T = (I + L)^-1,
// four kernels walk what must be walked and spread the rest over all chunks:
//   prepare     W = T(R e^Gamma), Y = T(w*v), M = T^T Kt, Z = (P T)^T do,
//               Kt = k e^(Gamma_C - Gamma), Rt = R e^Gamma,
//               Qt = scale q e^Gamma                   (every chunk at once)
//   walk        U = Y - W S,    S  <- e^Gamma_C S  + Kt^T U      (forwards)
//               dR = Z + M dS,  dS <- e^Gamma_C dS + Qt^T do - Rt^T dR
//                                                 (backwards, beside it)
//   gradients   dP = scale tril(do U^T), dL = -stril(dR U^T) and from these,
//               S and dS every gradient                (every chunk at once)
//   reduce      sums dq and dk over the value heads of a group.
// Operands are fp16: their three more bits than bf16's halve the error.  What
// is linear in the cotangents is therefore scaled by a power of two, one a
// (sequence, value head), that brings the largest of them near 1.
//
// Decay ratios: the chunk is cut in blocks of 16 rows.  A slice of 16 channels
// forms q e^(Gamma_t - at_q[block]) and k e^(at_k[block] - Gamma_s); between
// blocks the missing e^(at_q - at_k), never above 1, is applied apart.  As
// `kind` of slice says, the reference points are
//   half     the middle of the block, 2^+-11.5 at most
//   bfloat   (inputs in bf16) the same, 2^+-75 at most, these operands in
//            bf16; between blocks 2^-150 and less occurs, so there the decay is
//            applied in two steps
//   pairs    no exponent above 0: `prepare` takes at_q at the block's start,
//            at_k at its end, and forms the pairs within a block one by one in
//            fp32; `gradients` forms all pairs so.
// One decay a head (delta, gdn) needs none of this: the couplings are products
// of q and k as they are, scaled afterwards; Kt, Rt and Qt are k and q whose
// rows the walk scales.  These families have a `prepare` and a `gradients` of
// their own.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common.cuh"
#include "kernels.hpp"
#include "mma.cuh"

namespace carve::cuda {
namespace {

using mma::quad_reg;

constexpr int chunk = 64;

enum kind : unsigned { half = 0, bfloat = 1, pairs = 2 };
/// Largest exponents of the first two kinds, in bits.
constexpr float widest_half = 11.5f, widest_bfloat = 75.f;
/// L and P between two blocks are formed 2^10 too large: an fp16 factor of
/// 2^-23 would keep two bits.
constexpr float lift_bits = 10.f, unlift = 0x1p-10f;
/// The first chunk's Rt, Qt and W are made this much larger: the cotangent of
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
  int most_chunks;               // entries of `table`, unused ones length -1
  chunk_entry* table;            // chunks in order
  int* first_chunk;              // [N+1]
  unsigned* peak;                // [N,HV], bits of the largest cotangent
  __half *W, *Kt, *M, *Qt, *Rt;  // [64,K]; one decay a head: Kt, Qt are k, q
  __half *Y, *Z, *U, *dR, *d_o;  // [64,V], d_o scaled
  uint2 *S, *dS;                 // [V/16,K/16] blocks of 512 bytes, see walk
  float* decay;                  // [K], e^Gamma_C
  float* ends;                   // [4,K], Gamma at the blocks' ends, in bits
  float* factors;                // one decay a head: see `factor`, [4,64]
  float *dq_part, *dk_part;      // [B*T,HV,K] when groups are summed
};

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

/// The scale of the cotangents, and its inverse.
__device__ __forceinline__ float2 cotangent_scale(const arguments& a,
                                                  int sequence, int head) {
  const int e = a.peak[sequence * a.p.HV + head] >> 23;
  if (e == 0 || e == 255) return {1.f, 1.f};
  const int f = min(max(255 - e, 27), 227);  // the peak comes to 2..4
  return {__int_as_float(f << 23), __int_as_float((254 - f) << 23)};
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
/// does: columns 2 quad, 2 quad + 1 in `low`, 8 more in `high`.
template <typename T>
__device__ __forceinline__ void store_row16(T* row, int quad, std::uint32_t low,
                                            std::uint32_t high,
                                            bool valid = true) {
  const bool odd = quad & 1;
  const std::uint32_t other = __shfl_xor_sync(~0u, odd ? low : high, 1);
  if (!valid) return;
  *reinterpret_cast<uint2*>(row + (odd ? 8 : 0) + (quad & 2) * 2) =
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

/// One 16-bit gate twice in a word.
template <typename E>
__device__ __forceinline__ unsigned twice(const tensor& x, const chunk_entry& c,
                                          int row, int head) {
  return 0x10001u * *reinterpret_cast<const unsigned short*>(
                        row_of<E>(x, c.batch, c.first + row, head));
}

/// Erase gates of four channels, the same rows.
template <typename E, int Rows>
__device__ __forceinline__ void fetch_erase(uint2 (&y)[Rows], const problem& p,
                                            const chunk_entry& c, int group,
                                            int first, int head, int channel) {
  if (p.family == family::gdn2) {
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
template <typename E>
__device__ __forceinline__ uint4 fetch_write(const problem& p,
                                             const chunk_entry& c, int row,
                                             int head, int channel) {
  if (p.family == family::gdn2)
    return *reinterpret_cast<const uint4*>(
        row_of<E>(p.w, c.batch, c.first + row, head) + channel);
  const unsigned x = twice<E>(p.beta, c, row, head);
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
template <typename E>
__device__ __forceinline__ unsigned kind_of(const float (&ends)[5][4]) {
  float most = 0.f;
#pragma unroll
  for (int b = 0; b < 4; ++b)
#pragma unroll
    for (int j = 0; j < 4; ++j) most = fmaxf(most, ends[b][j] - ends[b + 1][j]);
  most *= 0.5f;
  if (__all_sync(~0u, most <= widest_half)) return half;
  if (std::is_same_v<E, __half>) return pairs;
  return __all_sync(~0u, most <= widest_bfloat) ? bfloat : pairs;
}

/// What the pairs of row `t` with all rows of the chunk give to dq, -dr and
/// the part of dk that is not b*dr, four channels; for slices of kind `pairs`,
/// which are rare: kept out of line.  `dP`, `dL`: tiles of [64,64].
struct pair_terms {
  float q[4], r[4], k[4];
};
template <typename E>
__device__ __noinline__ void sum_pairs(pair_terms& y, const problem& p,
                                       chunk_entry c, const std::uint8_t* dP,
                                       const std::uint8_t* dL, int t, int head,
                                       int channel) {
  const int qk_head = head / (p.HV / p.H);
  auto entry = [](const std::uint8_t* tile, int row, int col) {
    return __half2float(*reinterpret_cast<const __half*>(
        tile + mma::tile_offset<chunk>(row, col)));
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
      if (p.family == family::gdn2)
        load4(b, row_of<E>(p.b, c.batch, row, head) + channel);
      else
        b[0] = b[1] = b[2] = b[3] =
            static_cast<float>(*row_of<E>(p.beta, c.batch, row, head));
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
      tile + mma::tile_offset<Columns>(row, base + 2 * quad)) = y.x;
  *reinterpret_cast<std::uint32_t*>(
      tile + mma::tile_offset<Columns>(row, base + 8 + 2 * quad)) = y.y;
}
/// Byte offset of this lane's first two channels of a row; those of the other
/// two differ in bit 4.
template <int Columns>
__device__ __forceinline__ std::uint32_t tile_row(int row, int base, int quad) {
  return mma::tile_offset<Columns>(row, base + 2 * quad);
}
__device__ __forceinline__ void put_pair(std::uint8_t* tile, std::uint32_t at,
                                         std::uint32_t x, std::uint32_t y) {
  *reinterpret_cast<std::uint32_t*>(tile + at) = x;
  *reinterpret_cast<std::uint32_t*>(tile + (at ^ 16)) = y;
}

/// acc (16x16) += a (16x16, fp16) b (16x16, of this kind), twice.
__device__ __forceinline__ void multiply_kind(unsigned kind, float (&acc)[2][4],
                                              quad_reg a, const quad_reg& b,
                                              float (&acc_2)[2][4],
                                              quad_reg a_2,
                                              const quad_reg& b_2) {
  if (kind == bfloat) {
    // The left operands in two parts, so that they are not rounded again.
    using E = element<__nv_bfloat16>;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      quad_reg z, z_2;
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
      mma::multiply_bf16(acc[0], z, b.r[0], b.r[1]);
      mma::multiply_bf16(acc[1], z, b.r[2], b.r[3]);
      mma::multiply_bf16(acc_2[0], z_2, b_2.r[0], b_2.r[1]);
      mma::multiply_bf16(acc_2[1], z_2, b_2.r[2], b_2.r[3]);
    }
  } else {
    mma::multiply_fp16(acc[0], a, b.r[0], b.r[1]);
    mma::multiply_fp16(acc[1], a, b.r[2], b.r[3]);
    mma::multiply_fp16(acc_2[0], a_2, b_2.r[0], b_2.r[1]);
    mma::multiply_fp16(acc_2[1], a_2, b_2.r[2], b_2.r[3]);
  }
}

// ---------------------------------------------------------------- the table

/// Lists the chunks of all sequences; one block.
__global__ void list_chunks(arguments a) {
  __shared__ int total;
  if (threadIdx.x < 32) {
    int carry = 0;
    for (int base = 0; base < a.p.N; base += 32) {
      const int n = base + threadIdx.x;
      int count = 0;
      if (n < a.p.N)
        count = static_cast<int>(
            (span_of(a.p.cu_seqlens, a.p.T, n).length + chunk - 1) / chunk);
      int sum = count;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, sum, step);
        if (threadIdx.x >= step) sum += other;
      }
      if (n < a.p.N) a.first_chunk[n] = carry + sum - count;
      carry += __shfl_sync(~0u, sum, 31);
    }
    if (threadIdx.x == 0) a.first_chunk[a.p.N] = total = carry;
  }
  __syncthreads();
  for (int n = threadIdx.x / 32; n < a.p.N; n += blockDim.x / 32) {
    const sequence_span s = span_of(a.p.cu_seqlens, a.p.T, n);
    const int begin = a.first_chunk[n], end = a.first_chunk[n + 1];
    for (int c = begin + threadIdx.x % 32; c < end; c += 32) {
      const int done = (c - begin) * chunk;
      a.table[c] = {static_cast<int>(s.batch), static_cast<int>(s.first) + done,
                    min(chunk, static_cast<int>(s.length) - done), n};
    }
  }
  for (int c = total + threadIdx.x; c < a.most_chunks; c += blockDim.x)
    a.table[c] = {0, 0, -1, 0};
  for (int n = threadIdx.x; n < a.p.N * a.p.HV; n += blockDim.x) a.peak[n] = 0;
}

/// The largest cotangent of every (sequence, value head): a warp a chunk and
/// head, then a block an end state.
template <typename E, int K, int V>
__global__ void __launch_bounds__(256)
    find_peaks(const __grid_constant__ arguments a) {
  const int lane = threadIdx.x & 31;
  const std::int64_t tiles = static_cast<std::int64_t>(a.most_chunks) * a.p.HV;
  const std::int64_t tile_blocks = (tiles + 7) / 8;
  float most = 0.f;
  std::int64_t to;
  if (blockIdx.x < tile_blocks) {
    const std::int64_t tile = blockIdx.x * 8ll + threadIdx.x / 32;
    if (tile >= tiles) return;
    const int head = tile % a.p.HV;
    const chunk_entry c = a.table[tile / a.p.HV];
    if (c.length < 0) return;
    constexpr int lanes = V / 8, rows = 32 / lanes;
    const E* from =
        row_of<E>(a.d.d_o, c.batch, c.first, head) + lane % lanes * 8;
#pragma unroll 8
    for (int i = 0; i < chunk / rows; ++i) {
      const int row = min(i * rows + lane / lanes, c.length - 1);
      float x[8];
      unpack8<E>(x,
                 *reinterpret_cast<const uint4*>(from + row * a.d.d_o.token));
#pragma unroll
      for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(x[j]));
    }
    to = c.sequence * a.p.HV + head;
  } else {
    to = blockIdx.x - tile_blocks;
    const float4* from =
        reinterpret_cast<const float4*>(a.d.d_final_state + to * K * V);
    for (int i = threadIdx.x; i < K * V / 4; i += 256) {
      const float4 x = from[i];
      most = fmaxf(most, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)),
                               fmaxf(fabsf(x.z), fabsf(x.w))));
    }
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2)
    most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  // Bits of numbers that are not negative are ordered as the numbers are.
  if (lane == 0) atomicMax(a.peak + to, __float_as_uint(most));
}

/// A slice's running sums and R, q, k as they are, [64,16] each: what `prepare`
/// needs of a slice of kind `pairs`.
template <typename E>
__device__ __noinline__ void stage_pairs(float* decay, __half* raw,
                                         const problem& p, chunk_entry c,
                                         int head, int base) {
  const int lane = threadIdx.x & 31, group = lane >> 2, quad = lane & 3;
  const int channel = base + 4 * quad, qk_head = head / (p.HV / p.H);
  float sum[8][4], total[4];
  fetch_decay(sum, p, c, group, head, channel);
  running_sum(sum, total, lane);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = group + 8 * i;
    uint2 q_raw[1], k_raw[1], b_raw[1];
    fetch_rows<E>(q_raw, p.q, c, row, 0, qk_head, channel);
    fetch_rows<E>(k_raw, p.k, c, row, 0, qk_head, channel);
    fetch_erase<E>(b_raw, p, c, row, 0, head, channel);
    float q[4], k[4], R[4];
    unpack4<E>(q, q_raw[0]);
    unpack4<E>(k, k_raw[0]);
    unpack4<E>(R, b_raw[0]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      decay[row * 16 + 4 * quad + j] = sum[i][j];
      R[j] *= k[j];
    }
    store4(raw + row * 16 + 4 * quad, R);
    store4(raw + 1024 + row * 16 + 4 * quad, q);
    store4(raw + 2048 + row * 16 + 4 * quad, k);
  }
}

// ------------------------------------------------------------------ prepare

template <int K, int V>
struct prepare_layout {
  static constexpr int wide = K > V ? K : V;
  static constexpr int R = 0;                     // R decayed, then Rt
  static constexpr int k = R + chunk * K * 2;     // k decayed, then Kt
  static constexpr int q = k + chunk * K * 2;     // q decayed, then do
  static constexpr int X = q + chunk * wide * 2;  // w*v
  static constexpr int L = X + chunk * V * 2;     // w, then L in fp32, then P T
  static constexpr int L_stride = 68;
  static constexpr int T = L + chunk * L_stride * 4;
  static constexpr int D = T + chunk * chunk * 2;  // fp32 diagonal of T
  static constexpr int D_stride = 18;
  static constexpr int P = D + 4 * 16 * D_stride * 4;
  static constexpr int ratio = P + chunk * chunk * 2;   // [6,K] between blocks
  static constexpr int half_ratio = ratio + 6 * K * 2;  // [6,K], for `bfloat`
  static constexpr int flags = half_ratio + 6 * K * 2;
  static constexpr int bytes = flags + 16;
};

/// T = (I + L)^-1 of L in fp32, where all threads see it.
template <typename lay>
__device__ __forceinline__ void invert(std::uint8_t* base, int tid, int warp,
                                       int group, int quad) {
  auto* L = reinterpret_cast<float*>(base + lay::L);
  auto* D = reinterpret_cast<float*>(base + lay::D);
  // The diagonal blocks by substitution, a column a thread.
  if (tid < 64) {
    const int block = tid / 16, col = tid % 16;
    const float* from = L + block * (16 * lay::L_stride + 16);
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float y = i == col ? 1.f : 0.f;
#pragma unroll
      for (int j = 0; j < i; ++j) y -= from[i * lay::L_stride + j] * x[j];
      x[i] = y;
      D[(block * 16 + i) * lay::D_stride + col] = y;
      *reinterpret_cast<__half*>(
          base + lay::T +
          mma::tile_offset<chunk>(block * 16 + i, block * 16 + col)) =
          __float2half_rn(y);
    }
  }
  __syncthreads();
  // Below the diagonal, one warp a block column j, transposed so that each
  // result is the next product's left operand as it stands:
  // T_ij^T = -(sum_k T_kj^T L_ik^T) T_ii^T.
  if (warp < 3) {
    const int j = warp;
    std::uint32_t kept[3][2][4];  // T_kj^T, k = j, j + 1, j + 2
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int col = 8 * n + 2 * quad;
#pragma unroll
      for (int x = 0; x < 4; ++x)
        kept[0][n][x] = mma::to_tf32(
            D[(j * 16 + col + (x >> 1)) * lay::D_stride + group + 8 * (x & 1)]);
    }
#pragma unroll
    for (int step = 1; step < 4; ++step) {
      const int i = j + step;
      if (i > 3) break;
      float y[2][4] = {};
#pragma unroll
      for (int from = 0; from < step; ++from) {
#pragma unroll
        for (int kk = 0; kk < 2; ++kk) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const float2 b = *reinterpret_cast<const float2*>(
                L + (i * 16 + 8 * n + group) * lay::L_stride + (j + from) * 16 +
                8 * kk + 2 * quad);
            mma::multiply_tf32(y[n], kept[from][kk], mma::to_tf32(b.x),
                               mma::to_tf32(b.y));
          }
        }
      }
      float z[2][4] = {};
#pragma unroll
      for (int kk = 0; kk < 2; ++kk) {
        const std::uint32_t x[4] = {
            mma::to_tf32(-y[kk][0]), mma::to_tf32(-y[kk][2]),
            mma::to_tf32(-y[kk][1]), mma::to_tf32(-y[kk][3])};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float2 b = *reinterpret_cast<const float2*>(
              D + (i * 16 + 8 * n + group) * lay::D_stride + 8 * kk + 2 * quad);
          mma::multiply_tf32(z[n], x, mma::to_tf32(b.x), mma::to_tf32(b.y));
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int x = 0; x < 4; ++x)
          *reinterpret_cast<__half*>(
              base + lay::T +
              mma::tile_offset<chunk>(i * 16 + 8 * n + 2 * quad + (x & 1),
                                      j * 16 + group + 8 * (x >> 1))) =
              __float2half_rn(z[n][x]);
        if (step < 3) {
          kept[step][n][0] = mma::to_tf32(z[n][0]);
          kept[step][n][1] = mma::to_tf32(z[n][2]);
          kept[step][n][2] = mma::to_tf32(z[n][1]);
          kept[step][n][3] = mma::to_tf32(z[n][3]);
        }
      }
    }
  }
  __syncthreads();
}

/// P T, in the place of L.
template <typename lay, int warps>
__device__ __forceinline__ void multiply_PT(std::uint8_t* base, int warp,
                                            int lane) {
  const int group = lane >> 2, quad = lane & 3;
  const std::uint32_t shared = mma::shared_address(base);
  for (int job = warp; job < 8; job += warps) {
    const int block = job & 3;
#pragma unroll
    for (int nb = job >> 2; nb < 4; nb += 2) {
      if (nb > block) break;
      float y[2][4] = {};
      for (int kb = nb; kb <= block; ++kb) {
        const quad_reg x =
            mma::left<chunk>(shared + lay::P, block * 16, kb * 16, lane);
        const quad_reg z =
            mma::right_trans<chunk>(shared + lay::T, kb * 16, nb * 16, lane);
        mma::multiply_fp16(y[0], x, z.r[0], z.r[1]);
        mma::multiply_fp16(y[1], x, z.r[2], z.r[3]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *reinterpret_cast<std::uint32_t*>(
              base + lay::L +
              mma::tile_offset<chunk>(block * 16 + group + 8 * h,
                                      nb * 16 + 8 * n + 2 * quad)) =
              operand::pack(y[n][2 * h], y[n][2 * h + 1]);
    }
  }
}

/// Y = T X and Z = (P T)^T do, 16 value channels a turn.
template <typename lay, int V, int warps>
__device__ __forceinline__ void multiply_values(const arguments& a,
                                                std::int64_t at,
                                                std::uint32_t shared, int warp,
                                                int lane) {
  const int group = lane >> 2, quad = lane & 3;
  const std::uint32_t PT = shared + lay::L;
  for (int slice = warp * 16; slice < V; slice += warps * 16) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      __half* const to_slice =
          (which ? a.Z : a.Y) + at * chunk * V + group * V + slice;
      quad_reg x[4];
#pragma unroll
      for (int kb = 0; kb < 4; ++kb)
        x[kb] = mma::right_trans<V>(shared + (which ? lay::q : lay::X), kb * 16,
                                    slice, lane);
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        float y[2][4] = {};
#pragma unroll
        for (int kb = 0; kb < 4; ++kb) {
          if (which ? kb < block : kb > block) continue;
          const quad_reg t =
              which ? mma::left_trans<chunk>(PT, block * 16, kb * 16, lane)
                    : mma::left<chunk>(shared + lay::T, block * 16, kb * 16,
                                       lane);
          mma::multiply_fp16(y[0], t, x[kb].r[0], x[kb].r[1]);
          mma::multiply_fp16(y[1], t, x[kb].r[2], x[kb].r[3]);
        }
        __half* const to = to_slice + block * 16 * V;
#pragma unroll
        for (int h = 0; h < 2; ++h)
          store_row16(to + 8 * h * V, quad,
                      operand::pack(y[0][2 * h], y[0][2 * h + 1]),
                      operand::pack(y[1][2 * h], y[1][2 * h + 1]));
      }
    }
  }
}

template <typename E, int K, int V>
__global__ void __launch_bounds__(K * 2, K == 64 ? 3 : 2)
    prepare(const __grid_constant__ arguments a) {
  using lay = prepare_layout<K, V>;
  constexpr int warps = K / 16, threads = K * 2, jobs = 8 / warps;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const problem& p = a.p;
  const int head = blockIdx.x % p.HV, index = blockIdx.x / p.HV;
  const chunk_entry c = a.table[index];
  if (c.length < 0) return;
  const int tid = threadIdx.x, lane = tid & 31;
  const int warp = __shfl_sync(~0u, tid >> 5, 0);  // known to be uniform
  const int group = lane >> 2, quad = lane & 3;
  const int base = warp * 16, channel = base + 4 * quad;
  const int qk_head = head / (p.HV / p.H);
  const std::int64_t at = static_cast<std::int64_t>(index) * p.HV + head;
  const std::uint32_t shared = mma::shared_address(memory);
  auto* flags = reinterpret_cast<unsigned*>(memory + lay::flags);

  if (tid == 0) *flags = 0;
  for (int i = tid; i < chunk * V / 8; i += threads) {
    const int row = i / (V / 8), col = i % (V / 8) * 8;
    const bool valid = row < c.length;
    const int from = c.first + (valid ? row : 0);
    const std::uint32_t to = shared + mma::tile_offset<V>(row, col);
    mma::copy16(to + lay::X, row_of<E>(p.v, c.batch, from, head) + col, valid);
    if (p.family == family::gdn2)
      mma::copy16(to + lay::L, row_of<E>(p.w, c.batch, from, head) + col,
                  valid);
  }
  mma::copy_commit();
  uint2 Rt[8], Kt[8];
  {
    __half* const Qt_row = a.Qt + at * chunk * K + group * K + channel;
    __half* const Rt_row = a.Rt + at * chunk * K + group * K + channel;
    __half* const Kt_row = a.Kt + at * chunk * K + group * K + channel;
    float sum[8][4], total[4], ends[5][4];
    uint2 q_raw[8], k_raw[8], b_raw[8];
    fetch_decay(sum, p, c, group, head, channel);
    fetch_rows<E>(q_raw, p.q, c, group, 0, qk_head, channel);
    fetch_rows<E>(k_raw, p.k, c, group, 0, qk_head, channel);
    fetch_erase<E>(b_raw, p, c, group, 0, head, channel);
    running_sum(sum, total, lane);
    block_ends(ends, sum, quad);
    const float lift = index == a.first_chunk[c.sequence] ? first_lift : 1.f;
#pragma unroll
    for (int b = 0; b < 4; ++b)
      if (group == b) store16(a.ends + (at * 4 + b) * K + channel, ends[b + 1]);
    const unsigned kind = kind_of<E>(ends);
    __syncthreads();
    if (lane == 0 && kind != half) atomicOr(flags, kind << (2 * warp));
      // Between blocks i > j: e^(at_q[i] - at_k[j]), a group of lanes a pair;
      // as two factors, the first a power of two, for `bfloat`.
#pragma unroll
    for (int i = 1; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < i; ++j) {
        const int pair = i * (i - 1) / 2 + j;
        if (group != pair) continue;
        const reference later = reference_of(ends[i], ends[i + 1], kind);
        const reference earlier = reference_of(ends[j], ends[j + 1], kind);
        auto* to = reinterpret_cast<std::uint32_t*>(
            memory + lay::ratio + (pair * K + base + 2 * quad) * 2);
        float f[4], first[4];
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          f[x] = later.q[x] - earlier.k[x];
          first[x] = kind == bfloat ? rintf(0.5f * f[x]) : 0.f;
          f[x] = power(f[x] - first[x] + lift_bits);
          first[x] = power(first[x]);
        }
        to[0] = pack_kind(kind, f[0], f[1]);
        to[4] = pack_kind(kind, f[2], f[3]);
        to += (lay::half_ratio - lay::ratio) / 4;
        to[0] = pack_kind(kind, first[0], first[1]);
        to[4] = pack_kind(kind, first[2], first[3]);
      }
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const reference r = reference_of(ends[b], ends[b + 1], kind);
      float from_start[4], from_start_scaled[4], to_end[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        from_start[j] = power(r.q[j]) * lift;
        from_start_scaled[j] = from_start[j] * p.scale;
        to_end[j] = power(total[j] - r.k[j]);
      }
#pragma unroll
      for (int i = 2 * b; i < 2 * b + 2; ++i) {
        const int row = group + 8 * i;
        float q[4], k[4], R[4];
        unpack4<E>(q, q_raw[i]);
        unpack4<E>(k, k_raw[i]);
        unpack4<E>(R, b_raw[i]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float up = power(sum[i][j] - r.q[j]);
          R[j] *= k[j];
          q[j] *= up, R[j] *= up, k[j] *= power(r.k[j] - sum[i][j]);
        }
        put_row<K>(
            memory + lay::q, row, base, quad,
            uint2{pack_kind(kind, q[0], q[1]), pack_kind(kind, q[2], q[3])});
        put_row<K>(
            memory + lay::R, row, base, quad,
            uint2{pack_kind(kind, R[0], R[1]), pack_kind(kind, R[2], R[3])});
        put_row<K>(
            memory + lay::k, row, base, quad,
            uint2{pack_kind(kind, k[0], k[1]), pack_kind(kind, k[2], k[3])});
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          q[j] *= from_start_scaled[j];
          R[j] *= from_start[j];
          k[j] *= to_end[j];
        }
        Rt[i] = {operand::pack(R[0], R[1]), operand::pack(R[2], R[3])};
        Kt[i] = {operand::pack(k[0], k[1]), operand::pack(k[2], k[3])};
        store4(Qt_row + 8 * i * K, q);
        *reinterpret_cast<uint2*>(Rt_row + 8 * i * K) = Rt[i];
        *reinterpret_cast<uint2*>(Kt_row + 8 * i * K) = Kt[i];
      }
    }
    if (group == 0)
      *reinterpret_cast<float4*>(a.decay + at * K + channel) = make_float4(
          power(total[0]), power(total[1]), power(total[2]), power(total[3]));
  }
  mma::copy_wait<0>();
  // X = w*v, by the threads that copied.
  for (int i = tid; i < chunk * V / 8; i += threads) {
    const int row = i / (V / 8), col = i % (V / 8) * 8;
    auto* to = reinterpret_cast<uint4*>(memory + lay::X +
                                        mma::tile_offset<V>(row, col));
    float x[8], w[8];
    unpack8<E>(x, *to);
    if (p.family == family::gdn2)
      unpack8<E>(w, to[(lay::L - lay::X) / 16]);
    else
      unpack8<E>(w, fetch_write<E>(p, c, min(row, c.length - 1), head, col));
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= w[j];
    *to = pack8<__half>(x);
  }
  __syncthreads();

  // L and P: eight jobs of 16 rows.
  const unsigned kinds = *flags;
  float acc[jobs][8][4] = {};
#pragma unroll
  for (int job = 0; job < jobs; ++job) {
    const int block = (warp + job * warps) & 3;
    const bool is_P = (warp + job * warps) >= 4;
#pragma unroll 2
    for (int kb = 0; kb < K / 16; ++kb) {
      // Votes, so that the compiler knows the branches to be uniform.
      const bool is_bfloat =
          !std::is_same_v<E, __half> && __any_sync(~0u, kinds >> (2 * kb) & 1);
      const bool is_pairs = __any_sync(~0u, kinds >> (2 * kb + 1) & 1);
      const quad_reg x = mma::left<K>(shared + (is_P ? lay::q : lay::R),
                                      block * 16, kb * 16, lane);
#pragma unroll
      for (int nb = 0; nb < 4; ++nb) {
        if (nb > block || (nb == block && is_pairs)) break;
        const quad_reg y =
            mma::right<K>(shared + lay::k, kb * 16, nb * 16, lane);
        quad_reg z = x;
        if (nb < block) {
          const auto* f = reinterpret_cast<const std::uint32_t*>(
              memory + lay::ratio +
              ((block * (block - 1) / 2 + nb) * K + kb * 16 + 2 * quad) * 2);
          const std::uint32_t lo = f[0], hi = f[4];
          if (is_bfloat) {
            constexpr int first = (lay::half_ratio - lay::ratio) / 4;
            mma::scale_bf16(z, f[first], f[first + 4]);
            mma::scale_bf16(z, lo, hi);
          } else {
            mma::scale_fp16(z, lo, hi);
          }
        }
        if (is_bfloat) {
          mma::multiply_bf16(acc[job][2 * nb], z, y.r[0], y.r[1]);
          mma::multiply_bf16(acc[job][2 * nb + 1], z, y.r[2], y.r[3]);
        } else {
          mma::multiply_fp16(acc[job][2 * nb], z, y.r[0], y.r[1]);
          mma::multiply_fp16(acc[job][2 * nb + 1], z, y.r[2], y.r[3]);
        }
      }
    }
  }
  // The diagonal blocks of slices of kind `pairs`.
  if (kinds & 0xaaaaaaaau) {
    // Set aside by hand, or the compiler would spill them on everyone's path.
    volatile std::uint32_t kept[32];
    volatile float kept_acc[jobs * 32];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      kept[4 * n] = Rt[n].x, kept[4 * n + 1] = Rt[n].y;
      kept[4 * n + 2] = Kt[n].x, kept[4 * n + 3] = Kt[n].y;
    }
#pragma unroll
    for (int n = 0; n < jobs * 32; ++n)
      kept_acc[n] = acc[n >> 5][n >> 2 & 7][n & 3];
#pragma unroll 1
    for (int kb = 0; kb < K / 16; ++kb) {
      if ((kinds >> (2 * kb) & 3) != pairs) continue;
      auto* decay = reinterpret_cast<float*>(memory + lay::T);  // [64,16]
      auto* raw = reinterpret_cast<__half*>(memory + lay::T + 4096);
      __syncthreads();
      if (kb == warp) stage_pairs<E>(decay, raw, p, c, head, base);
      __syncthreads();
#pragma unroll
      for (int job = 0; job < jobs; ++job) {
        const int block = (warp + job * warps) & 3;
        const int which = (warp + job * warps) >= 4 ? 1024 : 0;
#pragma unroll
        for (int nt = 0; nt < 8; ++nt) {
          if (nt / 2 != block) continue;
#pragma unroll
          for (int x = 0; x < 4; ++x) {
            const int t = block * 16 + group + 8 * (x >> 1);
            const int s = nt * 8 + 2 * quad + (x & 1);
            if (s > t) continue;
            float y = 0.f;
#pragma unroll 1
            for (int i = 0; i < 16; ++i)
              y += __half2float(raw[which + t * 16 + i]) *
                   __half2float(raw[2048 + s * 16 + i]) *
                   power(decay[t * 16 + i] - decay[s * 16 + i]);
            const int to = job * 32 + nt * 4 + x;
            kept_acc[to] = kept_acc[to] + y;
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      Rt[n] = {kept[4 * n], kept[4 * n + 1]};
      Kt[n] = {kept[4 * n + 2], kept[4 * n + 3]};
    }
#pragma unroll
    for (int n = 0; n < jobs * 32; ++n)
      acc[n >> 5][n >> 2 & 7][n & 3] = kept_acc[n];
  }
#pragma unroll
  for (int job = 0; job < jobs; ++job) {
    const int block = (warp + job * warps) & 3;
    const bool is_P = (warp + job * warps) >= 4;
#pragma unroll
    for (int nt = 0; nt < 8; ++nt) {
      if (nt > 2 * block + 1) break;
      const int s = nt * 8 + 2 * quad;
      const float factor = nt < 2 * block ? unlift : 1.f;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = block * 16 + group + 8 * h;
        float x = acc[job][nt][2 * h] * factor,
              y = acc[job][nt][2 * h + 1] * factor;
        if (is_P) {
          x = s <= t ? x * p.scale : 0.f, y = s + 1 <= t ? y * p.scale : 0.f;
          *reinterpret_cast<std::uint32_t*>(memory + lay::P +
                                            mma::tile_offset<chunk>(t, s)) =
              operand::pack(x, y);
        } else {
          x = s < t ? x : 0.f, y = s + 1 < t ? y : 0.f;
          *reinterpret_cast<float2*>(memory + lay::L +
                                     (t * lay::L_stride + s) * 4) =
              make_float2(x, y);
        }
      }
    }
  }
  __syncthreads();
  // The tiles of q, R and k have been read by all: do, Rt, Kt take their place.
  for (int i = tid; i < chunk * V / 8; i += threads) {
    const int row = i / (V / 8), col = i % (V / 8) * 8;
    const bool valid = row < c.length;
    mma::copy16(
        shared + lay::q + mma::tile_offset<V>(row, col),
        row_of<E>(a.d.d_o, c.batch, c.first + (valid ? row : 0), head) + col,
        valid);
  }
  mma::copy_commit();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    put_row<K>(memory + lay::R, group + 8 * i, base, quad, Rt[i]);
    put_row<K>(memory + lay::k, group + 8 * i, base, quad, Kt[i]);
  }

  invert<lay>(memory, tid, warp, group, quad);

  multiply_PT<lay, warps>(memory, warp, lane);
  // W = T Rt and M = T^T Kt, this warp's channels.
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    __half* const to =
        (which ? a.M : a.W) + at * chunk * K + group * K + channel;
    quad_reg x[4];
#pragma unroll
    for (int kb = 0; kb < 4; ++kb)
      x[kb] = mma::right_trans<K>(shared + (which ? lay::k : lay::R), kb * 16,
                                  base, lane);
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      float y[2][4] = {};
#pragma unroll
      for (int kb = 0; kb < 4; ++kb) {
        if (which ? kb < block : kb > block) continue;
        const quad_reg t =
            which
                ? mma::left_trans<chunk>(shared + lay::T, block * 16, kb * 16,
                                         lane)
                : mma::left<chunk>(shared + lay::T, block * 16, kb * 16, lane);
        mma::multiply_fp16(y[0], t, x[kb].r[0], x[kb].r[1]);
        mma::multiply_fp16(y[1], t, x[kb].r[2], x[kb].r[3]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float z[4] = {y[0][2 * h], y[0][2 * h + 1], y[1][2 * h],
                            y[1][2 * h + 1]};
        store4(to + (block * 16 + 8 * h) * K, z);
      }
    }
  }
  mma::copy_wait<0>();
  // do scaled, by the threads that copied; kept for the kernels to come.
  const float norm = cotangent_scale(a, c.sequence, head).x;
  for (int i = tid; i < chunk * V / 8; i += threads) {
    const int row = i / (V / 8), col = i % (V / 8) * 8;
    auto* to = reinterpret_cast<uint4*>(memory + lay::q +
                                        mma::tile_offset<V>(row, col));
    float x[8];
    unpack8<E>(x, *to);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= norm;
    const uint4 y = pack8<__half>(x);
    *to = y;
    *reinterpret_cast<uint4*>(a.d_o + (at * chunk + row) * V + col) = y;
  }
  __syncthreads();
  multiply_values<lay, V, warps>(a, at, shared, warp, lane);
}

/// `prepare` for a decay of one number a head.
template <int K, int V>
struct scalar_prepare_layout {
  static constexpr int wide = K > V ? K : V;
  static constexpr int k = 0;
  static constexpr int q = k + chunk * K * 2;     // q, then do
  static constexpr int X = q + chunk * wide * 2;  // w*v
  static constexpr int L = X + chunk * V * 2;     // L in fp32, then P T
  static constexpr int L_stride = 68;
  static constexpr int T = L + chunk * L_stride * 4;
  static constexpr int D = T + chunk * chunk * 2;  // fp32 diagonal of T
  static constexpr int D_stride = 18;
  static constexpr int P = D + 4 * 16 * D_stride * 4;
  static constexpr int factors = P + chunk * chunk * 2;
  static constexpr int bytes = factors + 4 * chunk * 4;
};

/// A right operand's two rows of tokens scaled: `low` holds the factors of
/// rows 2 quad and 2 quad + 1, `high` those of 8 more.
__device__ __forceinline__ quad_reg scale_rows(quad_reg x, float2 low,
                                               float2 high) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const float2 y = operand::unpack(x.r[n]), f = n & 1 ? high : low;
    x.r[n] = operand::pack(y.x * f.x, y.y * f.y);
  }
  return x;
}

template <typename E, int K, int V>
__global__ void __launch_bounds__(K * 2, K == 64 ? 3 : 2)
    scalar_prepare(const __grid_constant__ arguments a) {
  using lay = scalar_prepare_layout<K, V>;
  constexpr int warps = K / 16, threads = K * 2, jobs = 8 / warps;
  constexpr int key_turns = chunk * K / 8 / threads,
                value_turns = chunk * V / 8 / threads;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const problem& p = a.p;
  const int head = blockIdx.x % p.HV, index = blockIdx.x / p.HV;
  const chunk_entry c = a.table[index];
  if (c.length < 0) return;
  const int tid = threadIdx.x, lane = tid & 31;
  const int warp = __shfl_sync(~0u, tid >> 5, 0);  // known to be uniform
  const int group = lane >> 2, quad = lane & 3;
  const int qk_head = head / (p.HV / p.H);
  const std::int64_t at = static_cast<std::int64_t>(index) * p.HV + head;
  const std::uint32_t shared = mma::shared_address(memory);
  auto* const factors = reinterpret_cast<float*>(memory + lay::factors);

#pragma unroll
  for (int i = 0; i < key_turns; ++i) {
    const int row = (tid + i * threads) / (K / 8),
              col = (tid + i * threads) % (K / 8) * 8;
    const bool valid = row < c.length;
    const int from = c.first + (valid ? row : 0);
    const std::uint32_t to = shared + mma::tile_offset<K>(row, col);
    mma::copy16(to + lay::k, row_of<E>(p.k, c.batch, from, qk_head) + col,
                valid);
    mma::copy16(to + lay::q, row_of<E>(p.q, c.batch, from, qk_head) + col,
                valid);
  }
  mma::copy_commit();
#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const int row = (tid + i * threads) / (V / 8),
              col = (tid + i * threads) % (V / 8) * 8;
    const bool valid = row < c.length;
    mma::copy16(
        shared + lay::X + mma::tile_offset<V>(row, col),
        row_of<E>(p.v, c.batch, c.first + (valid ? row : 0), head) + col,
        valid);
  }
  mma::copy_commit();
  if (warp == 0) {
    // Tokens 2 lane and 2 lane + 1.
    float x[2], beta[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = 2 * lane + j;
      x[j] = beta[j] = 0.f;
      if (row >= c.length) continue;
      if (p.family == family::gdn)
        x[j] = *row_of<float>(p.g, c.batch, c.first + row, head) * log2_e;
      beta[j] =
          static_cast<float>(*row_of<E>(p.beta, c.batch, c.first + row, head));
      // As good as 2^-160, which is zero; sums keep their precision.
      x[j] = x[j] < -160.f ? -160.f : x[j];
    }
    float sum = x[0] + x[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const float total = __shfl_sync(~0u, sum, 31);
    const float bits[2] = {sum - x[1], sum};
    auto put = [&](int which, float y, float z) {
      reinterpret_cast<float2*>(factors + which)[lane] = make_float2(y, z);
      reinterpret_cast<float2*>(a.factors + at * (4 * chunk) + which)[lane] =
          make_float2(y, z);
    };
    put(to_bits, bits[0], bits[1]);
    put(to_tail, power(total - bits[0]), power(total - bits[1]));
    put(to_start, power(bits[0]), power(bits[1]));
    put(to_beta, beta[0], beta[1]);
    const float all = power(total);
    if (lane < K / 4)
      *reinterpret_cast<float4*>(a.decay + at * K + lane * 4) =
          make_float4(all, all, all, all);
  }
  mma::copy_wait<1>();
  // q and k in fp16, by the threads that copied; kept for the kernels to come.
#pragma unroll
  for (int i = 0; i < 2 * key_turns; ++i) {
    const bool is_k = i >= key_turns;
    const int piece = tid + i % key_turns * threads;
    const int row = piece / (K / 8), col = piece % (K / 8) * 8;
    auto* tile = reinterpret_cast<uint4*>(memory + (is_k ? lay::k : lay::q) +
                                          mma::tile_offset<K>(row, col));
    uint4 x = *tile;
    if (!std::is_same_v<E, __half>) {
      float y[8];
      unpack8<E>(y, x);
      *tile = x = pack8<__half>(y);
    }
    *reinterpret_cast<uint4*>((is_k ? a.Kt : a.Qt) + at * chunk * K + row * K +
                              col) = x;
  }
  __syncthreads();

  // L and P: eight jobs of 16 rows.
#pragma unroll
  for (int job = 0; job < jobs; ++job) {
    const int block = (warp + job * warps) & 3;
    const bool is_P = (warp + job * warps) >= 4;
    float acc[8][4] = {};
#pragma unroll
    for (int kb = 0; kb < K / 16; ++kb) {
      const quad_reg x = mma::left<K>(shared + (is_P ? lay::q : lay::k),
                                      block * 16, kb * 16, lane);
#pragma unroll
      for (int nb = 0; nb < 4; ++nb) {
        if (nb > block) break;
        const quad_reg y =
            mma::right<K>(shared + lay::k, kb * 16, nb * 16, lane);
        mma::multiply_fp16(acc[2 * nb], x, y.r[0], y.r[1]);
        mma::multiply_fp16(acc[2 * nb + 1], x, y.r[2], y.r[3]);
      }
    }
    float bits[2], by[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = block * 16 + group + 8 * h;
      bits[h] = factors[to_bits + t];
      by[h] = is_P ? p.scale : factors[to_beta + t];
    }
#pragma unroll
    for (int nt = 0; nt < 8; ++nt) {
      if (nt > 2 * block + 1) break;
      const int s = nt * 8 + 2 * quad;
      const float2 from =
          *reinterpret_cast<const float2*>(factors + to_bits + s);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = block * 16 + group + 8 * h;
        float x = acc[nt][2 * h] * by[h] * power(bits[h] - from.x),
              y = acc[nt][2 * h + 1] * by[h] * power(bits[h] - from.y);
        if (is_P) {
          x = s <= t ? x : 0.f, y = s + 1 <= t ? y : 0.f;
          *reinterpret_cast<std::uint32_t*>(memory + lay::P +
                                            mma::tile_offset<chunk>(t, s)) =
              operand::pack(x, y);
        } else {
          x = s < t ? x : 0.f, y = s + 1 < t ? y : 0.f;
          *reinterpret_cast<float2*>(memory + lay::L +
                                     (t * lay::L_stride + s) * 4) =
              make_float2(x, y);
        }
      }
    }
  }
  __syncthreads();
  // q has been read by all: do takes its place.
#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const int row = (tid + i * threads) / (V / 8),
              col = (tid + i * threads) % (V / 8) * 8;
    const bool valid = row < c.length;
    mma::copy16(
        shared + lay::q + mma::tile_offset<V>(row, col),
        row_of<E>(a.d.d_o, c.batch, c.first + (valid ? row : 0), head) + col,
        valid);
  }
  mma::copy_commit();
  invert<lay>(memory, tid, warp, group, quad);

  multiply_PT<lay, warps>(memory, warp, lane);
  // W = T Rt and M = T^T Kt, this warp's channels.
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    __half* const to =
        (which ? a.M : a.W) + at * chunk * K + group * K + warp * 16;
    quad_reg x[4];
#pragma unroll
    for (int kb = 0; kb < 4; ++kb) {
      const auto* const by =
          reinterpret_cast<const float2*>(factors + kb * 16 + 2 * quad);
      float2 low = by[(which ? to_tail : to_start) / 2],
             high = by[(which ? to_tail : to_start) / 2 + 4];
      if (!which) {
        const float2 low_beta = by[to_beta / 2],
                     high_beta = by[to_beta / 2 + 4];
        low.x *= low_beta.x, low.y *= low_beta.y;
        high.x *= high_beta.x, high.y *= high_beta.y;
      }
      x[kb] = scale_rows(
          mma::right_trans<K>(shared + lay::k, kb * 16, warp * 16, lane), low,
          high);
    }
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      float y[2][4] = {};
#pragma unroll
      for (int kb = 0; kb < 4; ++kb) {
        if (which ? kb < block : kb > block) continue;
        const quad_reg t =
            which
                ? mma::left_trans<chunk>(shared + lay::T, block * 16, kb * 16,
                                         lane)
                : mma::left<chunk>(shared + lay::T, block * 16, kb * 16, lane);
        mma::multiply_fp16(y[0], t, x[kb].r[0], x[kb].r[1]);
        mma::multiply_fp16(y[1], t, x[kb].r[2], x[kb].r[3]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_row16(to + (block * 16 + 8 * h) * K, quad,
                    operand::pack(y[0][2 * h], y[0][2 * h + 1]),
                    operand::pack(y[1][2 * h], y[1][2 * h + 1]));
    }
  }
  mma::copy_wait<0>();
  // X = w*v, and do scaled, by the threads that copied.
  const float norm = cotangent_scale(a, c.sequence, head).x;
#pragma unroll
  for (int i = 0; i < 2 * value_turns; ++i) {
    const bool is_X = i >= value_turns;
    const int piece = tid + i % value_turns * threads;
    const int row = piece / (V / 8), col = piece % (V / 8) * 8;
    auto* tile = reinterpret_cast<uint4*>(memory + (is_X ? lay::X : lay::q) +
                                          mma::tile_offset<V>(row, col));
    const float by = is_X ? factors[to_beta + row] : norm;
    float x[8];
    unpack8<E>(x, *tile);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= by;
    const uint4 y = pack8<__half>(x);
    *tile = y;
    if (!is_X)
      *reinterpret_cast<uint4*>(a.d_o + (at * chunk + row) * V + col) = y;
  }
  __syncthreads();
  multiply_values<lay, V, warps>(a, at, shared, warp, lane);
}

// --------------------------------------------------------------------- walk

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

// ---------------------------------------------------------------- gradients

/// Two blocks a multiprocessor: one loads while the other computes.
template <int K, int V>
struct gradients_layout {
  static constexpr int slices = K / 16;
  static constexpr int d_o = 0;
  static constexpr int dR = d_o + chunk * V * 2;
  static constexpr int U = dR + chunk * V * 2;
  // Of the turn's 64 channels:
  static constexpr int q = U + chunk * V * 2;   // q decayed
  static constexpr int R = q + chunk * 64 * 2;  // -b*k decayed
  static constexpr int k = R + chunk * 64 * 2;  // k decayed
  static constexpr int dP = k + chunk * 64 * 2;
  static constexpr int dL = dP + chunk * chunk * 2;  // -dL
  // fp32: Gamma at the blocks' reference points [4,K], what decays from the
  // last of them to the chunk's end [K], Gamma there [K].
  static constexpr int point = dL + chunk * chunk * 2;
  static constexpr int out = point + 4 * K * 4;
  static constexpr int all = out + K * 4;
  // fp32: what the end state gives dg, by half [2,K]; dG summed over the
  // second half [K]; sums over 16 channels [2,slices,32], over values [64].
  static constexpr int tail = all + K * 4;
  static constexpr int later = tail + 2 * K * 4;
  static constexpr int erase_sum = later + K * 4;
  static constexpr int write_sum = erase_sum + 2 * slices * 128;
  // fp32: each thread's Gamma from its blocks' reference points, 4 rows of 4
  // channels [4,256,4].
  static constexpr int exponent = write_sum + chunk * 4;
  static constexpr int bytes = exponent + chunk * 64 * 4;
};

/// A warp a half of the chunk (32 rows) and, turn by turn, a slice of 16
/// channels.
template <typename E, int K, int V>
__global__ void __launch_bounds__(256, 2)
    chunk_gradients(const __grid_constant__ arguments a) {
  using lay = gradients_layout<K, V>;
  constexpr int warps = 8, threads = 256, slices = 4;  // of a turn
  constexpr int value_turns = chunk * V / 8 / threads;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const problem& p = a.p;
  const int head = blockIdx.x % p.HV, index = blockIdx.x / p.HV;
  const chunk_entry c = a.table[index];
  const int tid = threadIdx.x, lane = tid & 31;
  const int warp = __shfl_sync(~0u, tid >> 5, 0);  // known to be uniform
  const int second = warp / slices;
  const int base = warp % slices * 16;  // within the turn's channels
  const int group = lane >> 2, quad = lane & 3;
  int channel = base + 4 * quad;
  const int first_row = 32 * second + group;  // then 8, 16 and 24 more
  const int qk_head = head / (p.HV / p.H);
  const bool grouped = p.HV != p.H;
  const std::int64_t at = static_cast<std::int64_t>(index) * p.HV + head;
  const std::uint32_t shared = mma::shared_address(memory);
  auto at_channel = [&](int offset) {
    return reinterpret_cast<float*>(memory + offset) + channel;
  };
  auto read = [&](float(&y)[4], int offset) {
    const float4 x = *reinterpret_cast<const float4*>(at_channel(offset));
    y[0] = x.x, y[1] = x.y, y[2] = x.z, y[3] = x.w;
  };
  auto write = [&](int offset, const float(&y)[4]) {
    *reinterpret_cast<float4*>(at_channel(offset)) =
        make_float4(y[0], y[1], y[2], y[3]);
  };
  unsigned kind;
  // Decay from block b - 1's reference point (or the chunk's start) to b's;
  // between two blocks of `bfloat` half of it, to be applied twice.
  auto decay_into = [&](float(&y)[4], int b) {
    float from[4] = {};
    if (b > 0) read(from, lay::point + (b - 1) * K * 4);
    read(y, lay::point + b * K * 4);
    const float part = b > 0 && kind == bfloat ? 0.5f : 1.f;
#pragma unroll
    for (int j = 0; j < 4; ++j) y[j] = power((y[j] - from[j]) * part);
  };

#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const int row = (tid + i * threads) / (V / 8),
              col = (tid + i * threads) % (V / 8) * 8;
    const std::int64_t from = (at * chunk + row) * V + col;
    const std::uint32_t to = shared + mma::tile_offset<V>(row, col);
    mma::copy16(to + lay::d_o, a.d_o + from, true);
    mma::copy16(to + lay::dR, a.dR + from, true);
    mma::copy16(to + lay::U, a.U + from, true);
  }
  mma::copy_commit();
  // Only now, since what stands above does not wait for the table.
  if (c.length < 0) {
    mma::copy_wait<0>();
    return;
  }
  const float2 norm = cotangent_scale(a, c.sequence, head);
  const float unscale = norm.y;

  auto* const exponents =
      reinterpret_cast<float4*>(memory + lay::exponent) + tid;
#pragma unroll 1
  for (int turn = 0; turn < K / 64; ++turn, channel += 64) {
    {
      float x[4][4];  // Gamma, later from its block's reference point
      float ends[5][4] = {};
      const float* g =
          row_of<float>(p.g, c.batch, c.first + first_row, head) + channel;
#pragma unroll
      for (int i = 0; i < 4; ++i, g += 8 * p.g.token) {
        const float4 y = load_or_zero16(g, first_row + 8 * i < c.length);
        x[i][0] = y.x, x[i][1] = y.y, x[i][2] = y.z, x[i][3] = y.w;
        const float4 z = __ldg(reinterpret_cast<const float4*>(
            a.ends + (at * 4 + i) * K + channel));
        ends[i + 1][0] = z.x, ends[i + 1][1] = z.y;
        ends[i + 1][2] = z.z, ends[i + 1][3] = z.w;
      }
      uint2 q_raw[4], k_raw[4], b_raw[4];
      fetch_rows<E>(q_raw, p.q, c, first_row, 0, qk_head, channel);
      fetch_rows<E>(k_raw, p.k, c, first_row, 0, qk_head, channel);
      fetch_erase<E>(b_raw, p, c, first_row, 0, head, channel);
      // Gamma, summed in the same order as in `running_sum`: equal where
      // nothing decays.
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float v = __fmul_rn(x[i][j], log2_e);
#pragma unroll
          for (int step = 4; step < 32; step *= 2) {
            const float before = __shfl_up_sync(~0u, v, step);
            if (lane >= step) v += before;
          }
          x[i][j] = v + (i & 1 ? __shfl_sync(~0u, x[i - (i & 1)][j], 28 + quad)
                         : second ? ends[2 + i / 2][j]
                                  : ends[i / 2][j]);
        }
      kind = kind_of<E>(ends);
      float mid[4][4];
#pragma unroll
      for (int b = 0; b < 4; ++b) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          // Pairs: the chunk's start is every block's reference point.
          mid[b][j] =
              kind == pairs ? 0.f : 0.5f * (ends[b][j] + ends[b + 1][j]);
        if (group == b && !second) write(lay::point + b * K * 4, mid[b]);
      }
      if (group == 4 && !second) {
        float y[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          y[j] = kind == pairs ? 1.f : power(ends[4][j] - mid[3][j]);
        write(lay::all, ends[4]);
        write(lay::out, y);
      }
      const std::uint32_t to = lay::q + tile_row<64>(first_row, base, quad);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float q[4], k[4], R[4];
        unpack4<E>(q, q_raw[i]);
        unpack4<E>(k, k_raw[i]);
        unpack4<E>(R, b_raw[i]);
        // Minus R, which spares a sign below; nothing for `pairs`.
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          x[i][j] -= second ? mid[2 + i / 2][j] : mid[i / 2][j];
          const float up = kind == pairs ? 0.f : power(x[i][j]);
          const float down = kind == pairs ? 0.f : power(-x[i][j]);
          R[j] *= -k[j];
          q[j] *= up, R[j] *= up, k[j] *= down;
        }
        exponents[i * threads] =
            make_float4(x[i][0], x[i][1], x[i][2], x[i][3]);
        put_pair(memory + i * 16 * 64, to, pack_kind(kind, q[0], q[1]),
                 pack_kind(kind, q[2], q[3]));
        put_pair(memory + i * 16 * 64 + (lay::R - lay::q), to,
                 pack_kind(kind, R[0], R[1]), pack_kind(kind, R[2], R[3]));
        put_pair(memory + i * 16 * 64 + (lay::k - lay::q), to,
                 pack_kind(kind, k[0], k[1]), pack_kind(kind, k[2], k[3]));
      }
    }
    // Both halves of a slice read each other's rows.
    if (turn > 0) mma::named_barrier(1 + warp % slices, 64);
    if (turn == 0) {
      uint4 v_raw[value_turns], w_raw[value_turns];
#pragma unroll
      for (int i = 0; i < value_turns; ++i) {
        const int row = min((tid + i * threads) / (V / 8), c.length - 1),
                  col = (tid + i * threads) % (V / 8) * 8;
        v_raw[i] = *reinterpret_cast<const uint4*>(
            row_of<E>(p.v, c.batch, c.first + row, head) + col);
        w_raw[i] = fetch_write<E>(p, c, row, head, col);
      }
      mma::copy_wait<0>();
      __syncthreads();
      // dv = dR*w and dw = dR*v.
#pragma unroll
      for (int i = 0; i < value_turns; ++i) {
        const int row = (tid + i * threads) / (V / 8),
                  col = (tid + i * threads) % (V / 8) * 8;
        float d[8], v[8], w[8], total = 0.f;
        unpack8<__half>(
            d, *reinterpret_cast<const uint4*>(memory + lay::dR +
                                               mma::tile_offset<V>(row, col)));
        unpack8<E>(v, v_raw[i]);
        unpack8<E>(w, w_raw[i]);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          d[j] *= unscale;
          w[j] *= d[j];
          v[j] *= d[j];
          total += v[j];
        }
        if (row < c.length) {
          if (a.d.dv.data)
            *reinterpret_cast<uint4*>(
                row_of_out<E>(a.d.dv, c.batch, c.first + row, head) + col) =
                pack8<E>(w);
          if (a.d.dw.data && p.family == family::gdn2)
            *reinterpret_cast<uint4*>(
                row_of_out<E>(a.d.dw, c.batch, c.first + row, head) + col) =
                pack8<E>(v);
        }
        if (p.family != family::gdn2) {
#pragma unroll
          for (int step = 1; step < V / 8; step *= 2)
            total += __shfl_xor_sync(~0u, total, step);
          if (col == 0)
            reinterpret_cast<float*>(memory + lay::write_sum)[row] = total;
        }
      }
    }

    // Where this lane's ldmatrix rows begin in tiles of V and of 64 columns; a
    // column block is added by exclusive or.
    const std::uint32_t in_V = mma::tile_offset<V>(lane & 15, (lane >> 4) * 8);
    const std::uint32_t in_V_right = mma::tile_offset<V>(
        (lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
    // dP = scale tril(do U^T) and -dL = stril(dR U^T): twenty products of
    // 16 x 16.
#pragma unroll 1
    for (int job = turn == 0 ? warp : 20; job < 20; job += warps) {
      const bool is_P = job >= 10;
      const int pair = is_P ? job - 10 : job;
      const int block = pair >= 6 ? 3 : pair >= 3 ? 2 : pair >= 1 ? 1 : 0;
      const int nb = pair - block * (block + 1) / 2;
      const std::uint32_t left_at =
          shared + (is_P ? lay::d_o : lay::dR) + block * 32 * V;
      const std::uint32_t right_at = shared + lay::U + nb * 32 * V;
      float y[2][4] = {};
#pragma unroll
      for (int kb = 0; kb < V / 16; ++kb) {
        const quad_reg l = mma::ldmatrix(left_at + (in_V ^ (kb * 32)));
        const quad_reg r = mma::ldmatrix(right_at + (in_V_right ^ (kb * 32)));
        mma::multiply_fp16(y[0], l, r.r[0], r.r[1]);
        mma::multiply_fp16(y[1], l, r.r[2], r.r[3]);
      }
      const float factor = is_P ? p.scale : 1.f;
      const int keep = is_P ? 0 : 1;  // least t - s
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int s = nb * 16 + n * 8 + 2 * quad;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int t = block * 16 + group + 8 * h;
          const float lo = t - s >= keep ? y[n][2 * h] * factor : 0.f;
          const float hi = t - s - 1 >= keep ? y[n][2 * h + 1] * factor : 0.f;
          *reinterpret_cast<std::uint32_t*>(
              memory + (is_P ? lay::dP : lay::dL) +
              mma::tile_offset<chunk>(t, s)) = operand::pack(lo, hi);
        }
      }
    }

    // The state's part.
    float dq[2][2][4] = {}, dr[2][2][4] = {}, dk[2][2][4] = {};  // dr: minus dr
    // Sums over the values of S*dS: columns (0,n), (1,n) on the diagonals of
    // the accumulator's two 8x8 halves.
    float dot[4] = {};
    {
      const std::int64_t block =
          at * (K * V / 8) + (turn * 64 + base) * 2 + lane;
      const uint4* const S = reinterpret_cast<const uint4*>(a.S) + block;
      const uint4* const dS = reinterpret_cast<const uint4*>(a.dS) + block;
      const std::uint32_t rows = shared + second * 64 * V;
#pragma unroll 4
      for (int vb = 0; vb < V / 16; ++vb) {
        const uint4 s = __ldg(S + vb * 2 * K), ds = __ldg(dS + vb * 2 * K);
        if (!second) {
          // dS's registers are as well the left operand of its transpose.
          mma::multiply_fp16(dot, {{ds.x, 0, ds.y, 0}}, s.x, s.y);
          mma::multiply_fp16(dot, {{0, ds.z, 0, ds.w}}, s.z, s.w);
        }
        const std::uint32_t from = rows + (in_V ^ (vb * 32));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const quad_reg o = mma::ldmatrix(from + lay::d_o + m * 32 * V);
          mma::multiply_fp16(dq[m][0], o, s.x, s.y);
          mma::multiply_fp16(dq[m][1], o, s.z, s.w);
          const quad_reg r = mma::ldmatrix(from + lay::dR + m * 32 * V);
          mma::multiply_fp16(dr[m][0], r, s.x, s.y);
          mma::multiply_fp16(dr[m][1], r, s.z, s.w);
          const quad_reg u = mma::ldmatrix(from + lay::U + m * 32 * V);
          mma::multiply_fp16(dk[m][0], u, ds.x, ds.y);
          mma::multiply_fp16(dk[m][1], u, ds.z, ds.w);
        }
      }
    }
    // Brought to the reference points of the first block (dq, dr) and of the
    // last (dk).
    const std::uint32_t own_row = tile_row<64>(first_row, base, quad);
    auto get = [&](float(&y)[4], int tile, int i) {
      const uint2 z = {*reinterpret_cast<const std::uint32_t*>(
                           memory + tile + i * 16 * 64 + own_row),
                       *reinterpret_cast<const std::uint32_t*>(
                           memory + tile + i * 16 * 64 + (own_row ^ 16))};
      if (kind == bfloat)
        unpack4<__nv_bfloat16>(y, z);
      else
        unpack4<__half>(y, z);
    };
    float tail[4] = {};  // what every token's Gamma shares: the end state's
    {
      float start[4], end[4], total[4];
      decay_into(start, 0);
      read(end, lay::out);
      read(total, lay::all);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        float own_end[4];
        read(own_end, lay::point + (2 * second + m) * K * 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) own_end[j] = power(total[j] - own_end[j]);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float k[4];
          get(k, lay::k, 2 * m + h);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            tail[j] += k[j] * (own_end[j] * dk[m][j >> 1][2 * h + (j & 1)]);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int j = (i >> 2) * 2 + (i & 1);
          dq[m][i >> 2][i & 3] *= p.scale * start[j];
          dr[m][i >> 2][i & 3] *= start[j];
          dk[m][i >> 2][i & 3] *= end[j];
        }
    }
    if (turn == 0) __syncthreads();  // dP, dL

    // Slices of kind `pairs` call a function here.  What lives across the call
    // is set aside by hand, or the compiler would spill it on everyone's path.
    pair_terms pair_sums[4];
    if (kind == pairs) {
      volatile float kept[56];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        kept[i] = dq[i >> 3][i >> 2 & 1][i & 3];
        kept[16 + i] = dr[i >> 3][i >> 2 & 1][i & 3];
        kept[32 + i] = dk[i >> 3][i >> 2 & 1][i & 3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) kept[48 + i] = dot[i], kept[52 + i] = tail[i];
#pragma unroll 1
      for (int i = 0; i < 4; ++i)
        sum_pairs<E>(pair_sums[i], p, c, memory + lay::dP, memory + lay::dL,
                     first_row + 8 * i, head, channel);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        dq[i >> 3][i >> 2 & 1][i & 3] = kept[i];
        dr[i >> 3][i >> 2 & 1][i & 3] = kept[16 + i];
        dk[i >> 3][i >> 2 & 1][i & 3] = kept[32 + i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) dot[i] = kept[48 + i], tail[i] = kept[52 + i];
    }
    // One row's inputs, fetched while the row before is worked on.
    uint2 k_raw[1], b_raw[1];
    auto fetch = [&](int i) {
      fetch_rows<E>(k_raw, p.k, c, first_row + 8 * i, 0, qk_head, channel);
      fetch_erase<E>(b_raw, p, c, first_row + 8 * i, 0, head, channel);
    };
    fetch(0);

    // Within the chunk: dq and dr from the first block on, dk from the last
    // back; between two blocks all decay by as much.
    const std::uint32_t in_chunk =
        shared + lay::dP + second * 64 * chunk;  // rows of this half
    const std::uint32_t in_chunk_left =
        mma::tile_offset<chunk>(lane & 15, (lane >> 4) * 8);
    const std::uint32_t in_chunk_trans = mma::tile_offset<chunk>(
        (lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
    const std::uint32_t in_K =
        shared + mma::tile_offset<64>(((lane >> 3) & 1) * 8 + (lane & 7),
                                      base + (lane >> 4) * 8);
#pragma unroll
    for (int sb = 0; sb < 4; ++sb) {
      if (sb > 2 * second + 1) break;
      if (sb > 0) {
        float f[4];
        decay_into(f, sb);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          if (sb > 2 * second + m) continue;
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            dq[m][i >> 2][i & 3] *= f[(i >> 2) * 2 + (i & 1)];
            dr[m][i >> 2][i & 3] *= f[(i >> 2) * 2 + (i & 1)];
          }
          if (kind != bfloat) continue;
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            dq[m][i >> 2][i & 3] *= f[(i >> 2) * 2 + (i & 1)];
            dr[m][i >> 2][i & 3] *= f[(i >> 2) * 2 + (i & 1)];
          }
        }
      }
      const quad_reg k = mma::ldmatrix_trans(in_K + lay::k + sb * 32 * 64);
      const std::uint32_t from = in_chunk + (in_chunk_left ^ (sb * 32));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (sb > 2 * second + m) continue;
        const quad_reg y = mma::ldmatrix(from + m * 32 * chunk);
        const quad_reg z =
            mma::ldmatrix(from + m * 32 * chunk + (lay::dL - lay::dP));
        multiply_kind(kind, dq[m], y, k, dr[m], z, k);
      }
    }
#pragma unroll
    for (int tb = 3; tb >= 0; --tb) {
      if (tb < 2 * second) break;
      if (tb < 3) {
        float f[4];
        decay_into(f, tb + 1);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          if (tb < 2 * second + m) continue;
#pragma unroll
          for (int i = 0; i < 8; ++i)
            dk[m][i >> 2][i & 3] *= f[(i >> 2) * 2 + (i & 1)];
          if (kind != bfloat) continue;
#pragma unroll
          for (int i = 0; i < 8; ++i)
            dk[m][i >> 2][i & 3] *= f[(i >> 2) * 2 + (i & 1)];
        }
      }
      const quad_reg q = mma::ldmatrix_trans(in_K + lay::q + tb * 32 * 64);
      const quad_reg r = mma::ldmatrix_trans(in_K + lay::R + tb * 32 * 64);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (tb < 2 * second + m) continue;
        const std::uint32_t from = shared + lay::dP + tb * 32 * chunk +
                                   (in_chunk_trans ^ (second * 64 + m * 32));
        const quad_reg y = mma::ldmatrix_trans(from);
        const quad_reg z = mma::ldmatrix_trans(from + (lay::dL - lay::dP));
        multiply_kind(kind, dk[m], y, q, dk[m], z, r);
      }
    }

    // Back to the inputs; the cotangents' scale goes with the exponents.
    const float unscale_bits = (__float_as_int(unscale) >> 23) - 127;
    float add_k[4];
    read(add_k, lay::all);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      add_k[j] = (kind == pairs ? add_k[j] : 0.f) + unscale_bits;
    const bool want_q = a.d.dq.data && !grouped,
               want_k = a.d.dk.data && !grouped,
               want_b = a.d.db.data && p.family == family::gdn2;
    const int token = c.first + first_row;
    E* dq_row = row_of_out<E>(a.d.dq, c.batch, token, qk_head) + channel;
    E* dk_row = row_of_out<E>(a.d.dk, c.batch, token, qk_head) + channel;
    E* db_row = row_of_out<E>(a.d.db, c.batch, token, head) + channel;
    float dG[4][4];  // cotangent of Gamma
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = i / 2, h = i % 2, row = first_row + 8 * i;
      float q[4], k[4], erase[4], to_q[4], minus_r[4], to_k[4], to_b[4];
      const float4 exponent = exponents[i * threads];
      const float x[4] = {exponent.x, exponent.y, exponent.z, exponent.w};
      const uint2 k_now = k_raw[0], b_now = b_raw[0];
      if (i < 3) fetch(i + 1);
      // From the operands as they were rounded: what two tokens of the chunk
      // give each other then cancels in the sum over tokens.
      get(q, lay::q, i);
      get(erase, lay::R, i);
      get(k, lay::k, i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int t = j >> 1, e = 2 * h + (j & 1);
        dG[i][j] =
            (q[j] * dq[m][t][e] + erase[j] * dr[m][t][e] - k[j] * dk[m][t][e]) *
            unscale;
        const float up = power(x[j] + unscale_bits);
        to_q[j] = dq[m][t][e] * up;
        minus_r[j] = dr[m][t][e] * up;
        to_k[j] = dk[m][t][e] * power(add_k[j] - x[j]);
      }
      unpack4<E>(k, k_now);
      unpack4<E>(erase, b_now);
      if (kind == pairs) {
        load4(q, row_of<E>(p.q, c.batch, c.first + min(row, c.length - 1),
                           qk_head) +
                     channel);
        const pair_terms& z = pair_sums[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          tail[j] += k[j] * to_k[j] * norm.x;
          to_q[j] += z.q[j] * unscale, minus_r[j] += z.r[j] * unscale;
          to_k[j] += z.k[j] * unscale;
          dG[i][j] = q[j] * to_q[j] - k[j] * (to_k[j] + erase[j] * minus_r[j]);
        }
      }
      float gate_sum = 0.f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to_k[j] -= erase[j] * minus_r[j];
        to_b[j] = -k[j] * minus_r[j];
        gate_sum += to_b[j];
      }
      if (p.family != family::gdn2) {
        gate_sum += __shfl_xor_sync(~0u, gate_sum, 1);
        gate_sum += __shfl_xor_sync(~0u, gate_sum, 2);
        if (quad == 0)
          reinterpret_cast<float*>(memory + lay::erase_sum)
              [(second * lay::slices + turn * slices + warp % slices) * 32 +
               group + 8 * i] = gate_sum;
      }
      const bool valid = row < c.length;
      if (valid && want_b) store4(db_row, to_b);
      if (valid && want_q) store4(dq_row, to_q);
      if (valid && want_k) store4(dk_row, to_k);
      db_row += 8 * a.d.db.token;
      dq_row += 8 * a.d.dq.token;
      dk_row += 8 * a.d.dk.token;
      if (grouped && valid) {
        const std::int64_t to =
            ((static_cast<std::int64_t>(c.batch) * p.T + c.first + row) * p.HV +
             head) *
                K +
            channel;
        store16(a.dq_part + to, to_q);
        store16(a.dk_part + to, to_k);
      }
    }

    // dg_t = sum of dG over t and later, plus what the end state gives.
    float sum[4] = {};
#pragma unroll
    for (int i = 3; i >= 0; --i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float y = dG[i][j];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          const float other = __shfl_down_sync(~0u, y, step);
          if (lane + step < 32) y += other;
        }
        y += sum[j];
        dG[i][j] = y;
        sum[j] = __shfl_sync(~0u, y, quad);
      }
    }
    {
      float total[4];
      read(total, lay::all);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
          tail[j] += __shfl_xor_sync(~0u, tail[j], step);
        tail[j] += power(total[j]) *
                   __shfl_sync(~0u, dot[j], (2 * quad + (j & 1)) * 4 + quad);
        tail[j] *= unscale;
      }
    }
    if (group == 0) {
      write(lay::tail + second * K * 4, tail);
      if (second) write(lay::later, sum);
    }
    mma::named_barrier(1 + warp % slices, 64);
    {
      float other[4], later[4] = {};
      read(other, lay::tail + (1 - second) * K * 4);
      if (!second) read(later, lay::later);
#pragma unroll
      for (int j = 0; j < 4; ++j) tail[j] += other[j] + later[j];
    }
    const bool want_g = a.d.dg.data;
    float* dg_row = row_of_out<float>(a.d.dg, c.batch, token, head) + channel;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) dG[i][j] += tail[j];
      if (want_g && first_row + 8 * i < c.length) store16(dg_row, dG[i]);
      dg_row += 8 * a.d.dg.token;
    }
  }
  if (p.family == family::gdn2) return;
  // Gates of the whole head: sums over the channels.
  __syncthreads();
  if (tid < c.length) {
    const float* sums =
        reinterpret_cast<const float*>(memory + lay::erase_sum) +
        tid / 32 * lay::slices * 32 + tid % 32;
    float y = reinterpret_cast<const float*>(memory + lay::write_sum)[tid];
    for (int i = 0; i < lay::slices; ++i) y += sums[i * 32];
    if (a.d.dbeta.data)
      *row_of_out<E>(a.d.dbeta, c.batch, c.first + tid, head) = E(y);
  }
}

/// The same for a decay of one number a head.  Two blocks a multiprocessor:
/// one loads while the other computes.
template <int K, int V>
struct scalar_gradients_layout {
  static constexpr int d_o = 0;
  static constexpr int dR = d_o + chunk * V * 2;
  static constexpr int U = dR + chunk * V * 2;
  static constexpr int q = U + chunk * V * 2;
  static constexpr int k = q + chunk * K * 2;
  static constexpr int dP = k + chunk * K * 2;       // scaled by the decay
  static constexpr int dL = dP + chunk * chunk * 2;  // -dL, likewise
  static constexpr int factors = dL + chunk * chunk * 2;
  // fp32: sums over the values of each token; over 16 channels, a warp a row
  // of 32 tokens, of dbeta and dG; what the end state gives, a warp.
  static constexpr int write_sum = factors + 4 * chunk * 4;
  static constexpr int erase_sum = write_sum + chunk * 4;
  static constexpr int decay_sum = erase_sum + 8 * 128;
  static constexpr int tail = decay_sum + 8 * 128;
  static constexpr int bytes = tail + 8 * 4;
};

/// A warp a half of the chunk (32 rows) and, turn by turn, 16 channels.
template <typename E, int K, int V>
__global__ void __launch_bounds__(256, 2)
    scalar_gradients(const __grid_constant__ arguments a) {
  using lay = scalar_gradients_layout<K, V>;
  constexpr int warps = 8, threads = 256, slices = 4;
  constexpr int value_turns = chunk * V / 8 / threads;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const problem& p = a.p;
  const int head = blockIdx.x % p.HV, index = blockIdx.x / p.HV;
  const int tid = threadIdx.x, lane = tid & 31;
  const int warp = __shfl_sync(~0u, tid >> 5, 0);  // known to be uniform
  const int second = warp / slices;
  const int group = lane >> 2, quad = lane & 3;
  const int first_row = 32 * second + group;  // then 8, 16 and 24 more
  const bool grouped = p.HV != p.H;
  const std::int64_t at = static_cast<std::int64_t>(index) * p.HV + head;
  const std::uint32_t shared = mma::shared_address(memory);
  const auto* const factors =
      reinterpret_cast<const float*>(memory + lay::factors);

#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const int row = (tid + i * threads) / (V / 8),
              col = (tid + i * threads) % (V / 8) * 8;
    const std::int64_t from = (at * chunk + row) * V + col;
    const std::uint32_t to = shared + mma::tile_offset<V>(row, col);
    mma::copy16(to + lay::d_o, a.d_o + from, true);
    mma::copy16(to + lay::dR, a.dR + from, true);
    mma::copy16(to + lay::U, a.U + from, true);
  }
#pragma unroll
  for (int i = 0; i < chunk * K / 8 / threads; ++i) {
    const int row = (tid + i * threads) / (K / 8),
              col = (tid + i * threads) % (K / 8) * 8;
    const std::int64_t from = (at * chunk + row) * K + col;
    const std::uint32_t to = shared + mma::tile_offset<K>(row, col);
    mma::copy16(to + lay::q, a.Qt + from, true);
    mma::copy16(to + lay::k, a.Kt + from, true);
  }
  if (tid < chunk)
    mma::copy16(shared + lay::factors + tid * 16,
                a.factors + at * (4 * chunk) + tid * 4, true);
  mma::copy_commit();
  // Only now, since what stands above does not wait for the table.
  const chunk_entry c = a.table[index];
  if (c.length < 0) {
    mma::copy_wait<0>();
    return;
  }
  const float unscale = cotangent_scale(a, c.sequence, head).y;
  uint4 v_raw[value_turns];
#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const int row = min((tid + i * threads) / (V / 8), c.length - 1),
              col = (tid + i * threads) % (V / 8) * 8;
    v_raw[i] = *reinterpret_cast<const uint4*>(
        row_of<E>(p.v, c.batch, c.first + row, head) + col);
  }
  mma::copy_wait<0>();
  __syncthreads();
  // dv = dR*w and dw = dR*v.
#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const int row = (tid + i * threads) / (V / 8),
              col = (tid + i * threads) % (V / 8) * 8;
    float d[8], v[8], total = 0.f;
    unpack8<__half>(d, *reinterpret_cast<const uint4*>(
                           memory + lay::dR + mma::tile_offset<V>(row, col)));
    unpack8<E>(v, v_raw[i]);
    const float beta = factors[to_beta + row] * unscale;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      total += v[j] * d[j];
      d[j] *= beta;
    }
    if (row < c.length && a.d.dv.data)
      *reinterpret_cast<uint4*>(
          row_of_out<E>(a.d.dv, c.batch, c.first + row, head) + col) =
          pack8<E>(d);
#pragma unroll
    for (int step = 1; step < V / 8; step *= 2)
      total += __shfl_xor_sync(~0u, total, step);
    if (col == 0)
      reinterpret_cast<float*>(memory + lay::write_sum)[row] = total * unscale;
  }

  // Where this lane's ldmatrix rows begin in tiles of V and of 64 columns; a
  // column block is added by exclusive or.
  const std::uint32_t in_V = mma::tile_offset<V>(lane & 15, (lane >> 4) * 8);
  const std::uint32_t in_V_right =
      mma::tile_offset<V>((lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
  // dP = scale tril(do U^T) and -dL = stril(dR U^T), by the decay: twenty
  // products of 16 x 16.
#pragma unroll 1
  for (int job = warp; job < 20; job += warps) {
    const bool is_P = job >= 10;
    const int pair = is_P ? job - 10 : job;
    const int block = pair >= 6 ? 3 : pair >= 3 ? 2 : pair >= 1 ? 1 : 0;
    const int nb = pair - block * (block + 1) / 2;
    const std::uint32_t left_at =
        shared + (is_P ? lay::d_o : lay::dR) + block * 32 * V;
    const std::uint32_t right_at = shared + lay::U + nb * 32 * V;
    float y[2][4] = {};
#pragma unroll
    for (int kb = 0; kb < V / 16; ++kb) {
      const quad_reg l = mma::ldmatrix(left_at + (in_V ^ (kb * 32)));
      const quad_reg r = mma::ldmatrix(right_at + (in_V_right ^ (kb * 32)));
      mma::multiply_fp16(y[0], l, r.r[0], r.r[1]);
      mma::multiply_fp16(y[1], l, r.r[2], r.r[3]);
    }
    const float by = is_P ? p.scale : 1.f;
    const int keep = is_P ? 0 : 1;  // least t - s
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int s = nb * 16 + n * 8 + 2 * quad;
      const float2 from =
          *reinterpret_cast<const float2*>(factors + to_bits + s);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = block * 16 + group + 8 * h;
        const float bits = factors[to_bits + t];
        float lo = y[n][2 * h] * by * power(bits - from.x),
              hi = y[n][2 * h + 1] * by * power(bits - from.y);
        lo = t - s >= keep ? lo : 0.f, hi = t - s - 1 >= keep ? hi : 0.f;
        *reinterpret_cast<std::uint32_t*>(memory + (is_P ? lay::dP : lay::dL) +
                                          mma::tile_offset<chunk>(t, s)) =
            operand::pack(lo, hi);
      }
    }
  }

  const std::uint32_t in_chunk =
      shared + lay::dP + second * 64 * chunk;  // rows of this half
  const std::uint32_t in_chunk_left =
      mma::tile_offset<chunk>(lane & 15, (lane >> 4) * 8);
  const std::uint32_t in_chunk_trans = mma::tile_offset<chunk>(
      (lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
  const bool want_q = a.d.dq.data && !grouped, want_k = a.d.dk.data && !grouped;
  const int qk_head = head / (p.HV / p.H);
  float row_sum[4] = {}, gate_sum[4] = {}, tail = 0.f;
#pragma unroll 1
  for (int turn = 0; turn < K / 64; ++turn) {
    const int base = turn * 64 + warp % slices * 16;
    // The state's part.
    float dq[2][2][4] = {}, dr[2][2][4] = {}, dk[2][2][4] = {};  // minus dr
    {
      // Sums over the values of S*dS: on the diagonals of the accumulator's
      // two 8x8 halves.
      float dot[4] = {};
      const std::int64_t block = at * (K * V / 8) + base * 2 + lane;
      const uint4* const S = reinterpret_cast<const uint4*>(a.S) + block;
      const uint4* const dS = reinterpret_cast<const uint4*>(a.dS) + block;
      const std::uint32_t rows = shared + second * 64 * V;
#pragma unroll 4
      for (int vb = 0; vb < V / 16; ++vb) {
        const uint4 s = __ldg(S + vb * 2 * K), ds = __ldg(dS + vb * 2 * K);
        if (!second) {
          // dS's registers are as well the left operand of its transpose.
          mma::multiply_fp16(dot, {{ds.x, 0, ds.y, 0}}, s.x, s.y);
          mma::multiply_fp16(dot, {{0, ds.z, 0, ds.w}}, s.z, s.w);
        }
        const std::uint32_t from = rows + (in_V ^ (vb * 32));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const quad_reg o = mma::ldmatrix(from + lay::d_o + m * 32 * V);
          mma::multiply_fp16(dq[m][0], o, s.x, s.y);
          mma::multiply_fp16(dq[m][1], o, s.z, s.w);
          const quad_reg r = mma::ldmatrix(from + lay::dR + m * 32 * V);
          mma::multiply_fp16(dr[m][0], r, s.x, s.y);
          mma::multiply_fp16(dr[m][1], r, s.z, s.w);
          const quad_reg u = mma::ldmatrix(from + lay::U + m * 32 * V);
          mma::multiply_fp16(dk[m][0], u, ds.x, ds.y);
          mma::multiply_fp16(dk[m][1], u, ds.z, ds.w);
        }
      }
      float diagonal = group == 2 * quad ? dot[0] + dot[2] : 0.f;
      if (group == 2 * quad + 1) diagonal += dot[1] + dot[3];
      tail += diagonal * factors[to_start + chunk - 1];
    }
    // A tile's row of this lane: columns base + 2 quad and 8 more.
    const std::uint32_t own_row =
        mma::tile_offset<K>(first_row, base + 2 * quad);
    auto get = [&](float(&y)[4], int tile, int i) {
      unpack4<__half>(y, {*reinterpret_cast<const std::uint32_t*>(
                              memory + tile + i * 16 * K + own_row),
                          *reinterpret_cast<const std::uint32_t*>(
                              memory + tile + i * 16 * K + (own_row ^ 16))});
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = i / 2, h = i % 2, row = first_row + 8 * i;
      const float start = factors[to_start + row], end = factors[to_tail + row];
      float k[4];
      get(k, lay::k, i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = j >> 1, e = 2 * h + (j & 1);
        dq[m][n][e] *= p.scale * start;
        dr[m][n][e] *= start;
        dk[m][n][e] *= end;
        tail += k[j] * dk[m][n][e];
      }
    }
    if (turn == 0) __syncthreads();  // dP, dL

    // Within the chunk.
    const std::uint32_t in_K =
        shared + mma::tile_offset<K>(((lane >> 3) & 1) * 8 + (lane & 7),
                                     base + (lane >> 4) * 8);
#pragma unroll
    for (int sb = 0; sb < 4; ++sb) {
      if (sb > 2 * second + 1) break;
      const quad_reg k = mma::ldmatrix_trans(in_K + lay::k + sb * 32 * K);
      const std::uint32_t from = in_chunk + (in_chunk_left ^ (sb * 32));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (sb > 2 * second + m) continue;
        const quad_reg y = mma::ldmatrix(from + m * 32 * chunk);
        const quad_reg z =
            mma::ldmatrix(from + m * 32 * chunk + (lay::dL - lay::dP));
        multiply_kind(half, dq[m], y, k, dr[m], z, k);
      }
    }
#pragma unroll
    for (int tb = 3; tb >= 0; --tb) {
      if (tb < 2 * second) break;
      const quad_reg q = mma::ldmatrix_trans(in_K + lay::q + tb * 32 * K);
      const auto* const beta = reinterpret_cast<const float2*>(
          factors + to_beta + tb * 16 + 2 * quad);
      const float2 low = beta[0], high = beta[4];
      // Minus R, which spares a sign below.
      const quad_reg r = scale_rows(
          mma::ldmatrix_trans(in_K + lay::k + tb * 32 * K),
          make_float2(-low.x, -low.y), make_float2(-high.x, -high.y));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (tb < 2 * second + m) continue;
        const std::uint32_t from = shared + lay::dP + tb * 32 * chunk +
                                   (in_chunk_trans ^ (second * 64 + m * 32));
        const quad_reg y = mma::ldmatrix_trans(from);
        const quad_reg z = mma::ldmatrix_trans(from + (lay::dL - lay::dP));
        multiply_kind(half, dk[m], y, q, dk[m], z, r);
      }
    }

    const int token = c.first + first_row;
    E* dq_row = row_of_out<E>(a.d.dq, c.batch, token, qk_head) + base;
    E* dk_row = row_of_out<E>(a.d.dk, c.batch, token, qk_head) + base;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = i / 2, h = i % 2, row = first_row + 8 * i;
      const bool valid = row < c.length;
      const float beta = factors[to_beta + row];
      float q[4], k[4], to_q[4], to_k[4];
      get(q, lay::q, i);
      get(k, lay::k, i);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const int n = j >> 1, e = 2 * h;
        // From the operands as they were rounded: what two tokens of the chunk
        // give each other then cancels in the sum over tokens.
        const float2 R =
            operand::unpack(operand::pack(-beta * k[j], -beta * k[j + 1]));
        row_sum[i] += q[j] * dq[m][n][e] + q[j + 1] * dq[m][n][e + 1] +
                      (R.x * dr[m][n][e] + R.y * dr[m][n][e + 1]) -
                      (k[j] * dk[m][n][e] + k[j + 1] * dk[m][n][e + 1]);
        gate_sum[i] -= k[j] * dr[m][n][e] + k[j + 1] * dr[m][n][e + 1];
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          to_q[j + x] = dq[m][n][e + x] * unscale;
          to_k[j + x] = (dk[m][n][e + x] - beta * dr[m][n][e + x]) * unscale;
        }
      }
      store_row16(dq_row, quad, element<E>::pack(to_q[0], to_q[1]),
                  element<E>::pack(to_q[2], to_q[3]), valid && want_q);
      store_row16(dk_row, quad, element<E>::pack(to_k[0], to_k[1]),
                  element<E>::pack(to_k[2], to_k[3]), valid && want_k);
      dq_row += 8 * a.d.dq.token;
      dk_row += 8 * a.d.dk.token;
      if (grouped && valid) {
        const std::int64_t to =
            ((static_cast<std::int64_t>(c.batch) * p.T + c.first + row) * p.HV +
             head) *
                K +
            base + 2 * quad;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          *reinterpret_cast<float2*>(a.dq_part + to + 8 * n) =
              make_float2(to_q[2 * n], to_q[2 * n + 1]);
          *reinterpret_cast<float2*>(a.dk_part + to + 8 * n) =
              make_float2(to_k[2 * n], to_k[2 * n + 1]);
        }
      }
    }
  }

  // Sums over the channels.
#pragma unroll
  for (int step = 1; step < 32; step *= 2)
    tail += __shfl_xor_sync(~0u, tail, step);
  if (lane == 0) reinterpret_cast<float*>(memory + lay::tail)[warp] = tail;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      row_sum[i] += __shfl_xor_sync(~0u, row_sum[i], step);
      gate_sum[i] += __shfl_xor_sync(~0u, gate_sum[i], step);
    }
    if (quad != 0) continue;
    const int to = warp * 32 + group + 8 * i;
    reinterpret_cast<float*>(memory + lay::decay_sum)[to] = row_sum[i];
    reinterpret_cast<float*>(memory + lay::erase_sum)[to] = gate_sum[i];
  }
  __syncthreads();
  if (warp == 0) {
    // Tokens 2 lane and 2 lane + 1.
    float gate[2] = {}, change[2] = {}, end = 0.f;
    const int from = lane / 16 * slices * 32 + lane % 16 * 2;
#pragma unroll
    for (int i = 0; i < slices; ++i) {
      const auto* sums =
          reinterpret_cast<const float2*>(memory + lay::erase_sum) +
          (from + i * 32) / 2;
      gate[0] += sums->x, gate[1] += sums->y;
      sums += (lay::decay_sum - lay::erase_sum) / 8;
      change[0] += sums->x, change[1] += sums->y;
    }
#pragma unroll
    for (int i = 0; i < warps; ++i)
      end += reinterpret_cast<const float*>(memory + lay::tail)[i];
    // dg_t = sum of dG over t and later, plus what the end state gives.
    float later = change[0] + change[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float other = __shfl_down_sync(~0u, later, step);
      if (lane + step < 32) later += other;
    }
    const float dg[2] = {later, later - change[0]};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = 2 * lane + j;
      if (row >= c.length) continue;
      if (a.d.dbeta.data)
        *row_of_out<E>(a.d.dbeta, c.batch, c.first + row, head) =
            E(gate[j] * unscale +
              reinterpret_cast<const float*>(memory + lay::write_sum)[row]);
      if (a.d.dg.data && p.family == family::gdn)
        *row_of_out<float>(a.d.dg, c.batch, c.first + row, head) =
            (dg[j] + end) * unscale;
    }
  }
}

// ------------------------------------------------------------------- reduce

/// Sums dq and dk over the value heads of each group, in their order.
template <typename E>
__global__ void reduce_groups(const __grid_constant__ arguments a) {
  const problem& p = a.p;
  const int pieces = p.K / 4, ratio = p.HV / p.H;
  const std::int64_t all = static_cast<std::int64_t>(p.B) * p.T * p.H * pieces;
  for (std::int64_t i =
           blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
       i < all; i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const int channel = i % pieces * 4, head = i / pieces % p.H;
    const std::int64_t token = i / (pieces * p.H);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const tensor& out = which ? a.d.dk : a.d.dq;
      if (out.data == nullptr) continue;
      const float* from = (which ? a.dk_part : a.dq_part) +
                          (token * p.HV + head * ratio) * p.K + channel;
      float x[4] = {};
      for (int n = 0; n < ratio; ++n) {
        const float4 y = *reinterpret_cast<const float4*>(from + n * p.K);
        x[0] += y.x, x[1] += y.y, x[2] += y.z, x[3] += y.w;
      }
      store4(row_of_out<E>(out, token / p.T, token % p.T, head) + channel, x);
    }
  }
}

// ---------------------------------------------------------------- launching

/// Decays are one number a head, or none.
bool one_decay(const problem& p) {
  return p.family == family::delta || p.family == family::gdn;
}

/// Lays the workspace out; with a null base only its size counts.
std::size_t lay_out(arguments& a, std::uint8_t* base) {
  const problem& p = a.p;
  std::size_t used = 0;
  auto take = [&](auto*& pointer, std::size_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
        base + used);
    used += (count * sizeof(*pointer) + 255) / 256 * 256;
  };
  a.most_chunks =
      p.cu_seqlens ? p.T / chunk + p.N : p.N * ((p.T + chunk - 1) / chunk);
  const std::size_t each = static_cast<std::size_t>(a.most_chunks) * p.HV;
  take(a.table, a.most_chunks);
  take(a.first_chunk, p.N + 1);
  for (auto* x : {&a.W, &a.Kt, &a.M, &a.Qt}) take(*x, each * chunk * p.K);
  take(a.peak, static_cast<std::size_t>(p.N) * p.HV);
  for (auto* x : {&a.Y, &a.Z, &a.U, &a.dR, &a.d_o})
    take(*x, each * chunk * p.V);
  for (auto* x : {&a.S, &a.dS}) take(*x, each * p.K * p.V / 4);
  take(a.decay, each * p.K);
  if (one_decay(p)) {
    take(a.factors, each * chunk * 4);
  } else {
    take(a.Rt, each * chunk * p.K);
    take(a.ends, each * 4 * p.K);
  }
  if (p.HV != p.H)
    for (auto* x : {&a.dq_part, &a.dk_part})
      take(*x, static_cast<std::size_t>(p.B) * p.T * p.HV * p.K);
  return used;
}

template <typename Kernel>
status launch(Kernel kernel, std::int64_t blocks, int threads, int bytes,
              const arguments& a, cudaStream_t stream) {
  if (blocks == 0) return {};
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <int K, int V, int Warps>
status launch_walk(const arguments& a, cudaStream_t stream) {
  constexpr int slice = Warps * 16;
  return launch(
      one_decay(a.p) ? walk<K, V, Warps, true> : walk<K, V, Warps, false>,
      static_cast<std::int64_t>(a.p.N) * a.p.HV * (V / slice), Warps * 64,
      walk_layout<K, (slice < 64 ? 64 : slice)>::bytes, a, stream);
}

template <typename E, int K, int V>
status run(const arguments& a, cudaStream_t stream) {
  const problem& p = a.p;
  list_chunks<<<1, 1024, 0, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  const std::int64_t blocks = static_cast<std::int64_t>(a.most_chunks) * p.HV;
  status s = launch(find_peaks<E, K, V>,
                    (blocks + 7) / 8 + (a.d.d_final_state ? p.N * p.HV : 0),
                    256, 0, a, stream);
  if (!s) return s;
  s = one_decay(p) ? launch(scalar_prepare<E, K, V>, blocks, K * 2,
                            scalar_prepare_layout<K, V>::bytes, a, stream)
                   : launch(prepare<E, K, V>, blocks, K * 2,
                            prepare_layout<K, V>::bytes, a, stream);
  if (!s) return s;
  // Few heads: narrower slices of the values, so that more blocks walk.
  const std::int64_t heads = static_cast<std::int64_t>(p.N) * p.HV;
  if (heads * (V / 64) >= 132)
    s = launch_walk<K, V, 4>(a, stream);
  else if (heads * (V / 32) >= 132)
    s = launch_walk<K, V, 2>(a, stream);
  else
    s = launch_walk<K, V, 1>(a, stream);
  if (!s) return s;
  s = one_decay(p) ? launch(scalar_gradients<E, K, V>, blocks, 256,
                            scalar_gradients_layout<K, V>::bytes, a, stream)
                   : launch(chunk_gradients<E, K, V>, blocks, 256,
                            gradients_layout<K, V>::bytes, a, stream);
  if (!s || p.HV == p.H) return s;
  const std::int64_t work =
      static_cast<std::int64_t>(p.B) * p.T * p.H * (K / 4);
  return launch(reduce_groups<E>,
                std::min<std::int64_t>((work + 255) / 256, 132 * 16), 256, 0, a,
                stream);
}

template <typename E>
status run_shape(const arguments& a, cudaStream_t stream) {
  if (a.p.K == 128 && a.p.V == 128) return run<E, 128, 128>(a, stream);
  if (a.p.K == 128) return run<E, 128, 64>(a, stream);
  if (a.p.V == 128) return run<E, 64, 128>(a, stream);
  return run<E, 64, 64>(a, stream);
}

bool aligned(const tensor& x, std::int64_t elements, std::uintptr_t bytes) {
  return x.data == nullptr ||
         (reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0 &&
          x.batch % elements == 0 && x.token % elements == 0 &&
          x.head % elements == 0);
}

}  // namespace

bool backward_hopper_supports(const problem& p) {
  const bool gdn2 = p.family == family::gdn2;
  if (!gdn2 && p.family != family::delta && p.family != family::gdn &&
      p.family != family::kda)
    return false;
  const bool vector_decay = gdn2 || p.family == family::kda;
  return (p.input == format::bf16 || p.input == format::fp16) &&
         p.decay_format == format::fp32 && (p.K == 64 || p.K == 128) &&
         (p.V == 64 || p.V == 128) && !p.read_before && p.H > 0 &&
         p.HV % p.H == 0 && p.B * p.T > 0 && aligned(p.v, 8, 16) &&
         (vector_decay
              ? aligned(p.q, 4, 8) && aligned(p.k, 4, 8) && aligned(p.g, 4, 16)
              : aligned(p.q, 8, 16) && aligned(p.k, 8, 16)) &&
         (!gdn2 || (aligned(p.b, 4, 8) && aligned(p.w, 8, 16)));
}

status backward_hopper_workspace(const problem& p, std::size_t* bytes) {
  if (!backward_hopper_supports(p))
    return {unsupported, "this shape has no Hopper backward"};
  arguments a{};
  a.p = p;
  *bytes = lay_out(a, nullptr);
  return {};
}

status backward_hopper(const problem& p, const gradients& d, void* workspace,
                       std::size_t bytes, CUstream_st* stream) {
  if (!backward_hopper_supports(p))
    return {unsupported, "this shape has no Hopper backward"};
  const bool gdn2 = p.family == family::gdn2;
  if (!aligned(d.d_o, 8, 16) || !aligned(d.dq, 4, 8) || !aligned(d.dk, 4, 8) ||
      !aligned(d.dv, 8, 16) ||
      (gdn2 && (!aligned(d.db, 4, 8) || !aligned(d.dw, 8, 16))) ||
      ((gdn2 || p.family == family::kda) && !aligned(d.dg, 4, 16)))
    return {unsupported, "a gradient's rows are not aligned to 16 bytes"};
  if (reinterpret_cast<std::uintptr_t>(d.d_final_state) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0)
    return {bad_argument,
            "d_final_state must be aligned to 16 bytes, the workspace to 256"};
  arguments a{};
  a.p = p;
  a.d = d;
  const std::size_t need = lay_out(a, static_cast<std::uint8_t*>(workspace));
  if (workspace == nullptr || bytes < need)
    return {workspace_too_small, "workspace is smaller than asked for"};
  return p.input == format::bf16 ? run_shape<__nv_bfloat16>(a, stream)
                                 : run_shape<__half>(a, stream);
}

}  // namespace carve::cuda
