// The part of the chunked forward pass that needs no state: a chunk's decayed
// queries and keys, the products P and the inverse T = (I + L)^-1, made by one
// warpgroup in shared memory.
//
// Per-channel decays.  With y_t the log2 of the decay from about the middle of
// the chunk to token t (positive before it, negative after),
//   L_ts = sum (b*k)_t 2^{y_t} k_s 2^{-y_s},
// so both couplings are plain products of tiles, in bf16, which has the range
// for decays down to 2^-90 in each half of the chunk.  The walk makes up for
// the reference point: it multiplies the state by the decay up to it (rounded
// to a power of two, the reference being moved accordingly) before the products
// and by the rest of the chunk's decay after them.  A channel
// that decays faster is referenced to the chunk's start, contributes nothing to
// those products, and its couplings are added pair by pair, every exponent at
// most zero (couple_exactly).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/product.cuh"
#include "arch/shared.cuh"
#include "carve/cuda.hpp"
#include "common.cuh"

namespace carve::cuda::forward_chunks {

using namespace arch;

constexpr int chunk = 64;         // tokens prepared together
constexpr int tile_bytes = 8192;  // 64 rows of 64 16-bit elements
constexpr int group = 128;        // threads of a warpgroup

/// Along which axis a gate varies; `content`: a gate per channel made of its
/// logits and of the outputs of the window before.
enum class axis { none, head, channel, content };

/// Where the parts of a prepared chunk of K key channels lie, in bytes from
/// its start: tiles, each a row a token, and apart from them some numbers.
/// With a content gate the erase keys lack the gate, there is no T yet (a
/// place for it follows what is prepared), and the keys to couple them with are
/// part of the chunk.
template <int K, axis Erase>
struct prepared {
  static constexpr bool content = Erase == axis::content;
  static constexpr int panels = K / 64;
  static constexpr int tiles_of_keys = panels * tile_bytes;
  static constexpr int erase_keys = 0;                            // b*k*2^y
  static constexpr int keys = erase_keys + tiles_of_keys;         // k*2^-y
  static constexpr int queries = keys + content * tiles_of_keys;  // q*2^y
  static constexpr int tail_keys = queries + tiles_of_keys;       // k*e^{G_C-G}
  static constexpr int products = tail_keys + tiles_of_keys;      // P
  static constexpr int inverse = products + tile_bytes;           // T
  static constexpr int tiles = inverse + tile_bytes;
  // Content, in T's last rows until it is there: the queries summed over the
  // rows of each preparing thread.
  static constexpr int sums = inverse + 48 * 128;
  static constexpr int stored = content ? inverse : tiles;
  // Numbers: decay from the chunk's start to the reference (powers of two,
  // bf16) and from there to its end (fp32); gates of one number per token.
  // Content: the queries and the rows of P, summed over the tokens, and which
  // channels were left out of the products, a bit each.
  static constexpr int before = 0, after = 256, write = 768;
  static constexpr int queries_sum = 1024, products_sum = 1536, apart = 1792;
  static constexpr int numbers = Erase == axis::channel ? write
                                 : content              ? apart + 16
                                                        : queries_sum;
  // In global memory the logits follow, for the copy engine as tiles too.
  static constexpr int logits = stored + numbers;
  static constexpr int bytes = logits + content * tiles_of_keys;
};

/// Scratch of a warp in `invert`: two diagonal blocks of 8 x 8 in fp32, on
/// different banks, and their inverses, transposed, in fp16.
constexpr int invert_second = 272, invert_inverses = 528, invert_bytes = 784;

/// Shared memory that only the preparing warpgroup uses.
template <int K, axis Decay, bool Content>
struct scratch {
  // The logs y of a chunk, fp32, 16 rows at a time: first where the chunk's
  // products (and inverse) will stand, the rest here.
  static constexpr int block_bytes = 16 * K * 4;
  static constexpr int lent =
      (Content ? 1 : 2) * tile_bytes / block_bytes >= 4
          ? 4
          : (Content ? 1 : 2) * tile_bytes / block_bytes;
  static constexpr bool channels = Decay == axis::channel;

  static constexpr int keys = 0;  // k*2^-y
  static constexpr int logs = channels && !Content ? K / 64 * tile_bytes : 0;
  static constexpr int lower = logs + (channels ? (4 - lent) * block_bytes : 0);
  // The halves' totals; or, of decays of one number per token, the prefixes
  // in a block of 16 and the factors of query, erase key and tail key, of this
  // chunk and of the one before.
  static constexpr int totals = lower + (Content ? 0 : 4 * invert_bytes);
  static constexpr int totals_bytes = 4 * chunk * 4;
  static constexpr int apart =
      totals + (channels ? 1 : 2) * totals_bytes;  // 2 halves x 4 words
  static constexpr int bytes = apart + 32;
  static_assert(2 * K * 4 <= totals_bytes);
};

/// A decay's log2.  2^-160 is zero in fp32, so a faster one is no different,
/// and sums of these keep their precision; -inf is such a decay, NaN stays.
__device__ __forceinline__ float log_decay(float g) {
  return max_nan(g * log2e, -160.f);
}

/// Log2 of the decay that a half of a chunk may have in a channel whose
/// couplings are products of tiles.  fp16 has no range to spare.
template <class In>
constexpr float half_limit = std::is_same_v<In, __half> ? 8.f : 90.f;

/// A channel of a chunk as couple_exactly reads it: tokens 2 * lane and + 1.
struct channel_pair {
  float log[2], key[2], query[2], erase[2];
};

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
/// `lower`: four times invert_bytes.  Before the first barrier, where blocks of
/// 16 are done, `coupled` is given T_ww L_wk; `meanwhile` runs after it.
template <class Coupled, class Meanwhile>
__device__ __forceinline__ void invert(const float (&l)[32], std::uint32_t tile,
                                       std::uint32_t lower, int warp, int lane,
                                       int barrier, Coupled&& coupled,
                                       Meanwhile&& meanwhile) {
  // Blocks of 16 of the tile, for this lane of ldmatrix and stmatrix.
  const std::uint32_t corner_at = tile + swizzled(lane & 15, lane >> 4);
  const auto block = [&](int row, int column) {
    return (corner_at ^ (column << 5)) + row * 2048;
  };
  lower += warp * invert_bytes;
  std::uint32_t corner = 0;  // of the diagonal block, its lower left
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (k == warp) {
      const float* m = l + 8 * k;
      write8(lower + lane * 8, __float_as_uint(m[0]), __float_as_uint(m[1]));
      write8(lower + invert_second + lane * 8, __float_as_uint(m[6]),
             __float_as_uint(m[7]));
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
  const std::uint32_t rows = lower + (lane & 8 ? invert_second : 0);
#pragma unroll
  for (int s = 0; s < 8; s += 4) {
#pragma unroll
    for (int t = s + 1; t < 8; ++t) {
      const uint4 r = read16(rows + t * 32 + s * 4);
      x[t] = fmaf(-__uint_as_float(r.x), x[s], x[t]);
      if (s + 1 < t) x[t] = fmaf(-__uint_as_float(r.y), x[s + 1], x[t]);
      if (s + 2 < t) x[t] = fmaf(-__uint_as_float(r.z), x[s + 2], x[t]);
      if (s + 3 < t) x[t] = fmaf(-__uint_as_float(r.w), x[s + 3], x[t]);
    }
  }
  const std::uint32_t inverses = lower + invert_inverses + (lane & 15) * 16;
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

/// One thread's part in preparing the chunks of one head, in order, or of
/// `Every` one.
template <class In, int K, axis Decay, axis Erase, int Every = 1>
struct preparation {
  static constexpr bool content = Erase == axis::content;
  static constexpr bool channels = Decay == axis::channel;
  using part = prepared<K, Erase>;
  using own = scratch<K, Decay, content>;

  // What `fetch` reads next: the thread's first row and piece of a tensor.
  const char *q, *k, *b, *g;
  const In* scalar_gates;  // of token 0 (content: the write gates)
  const float* decays;     // likewise, one number a token
  int left;                // rows of the sequence from the next chunk on
  int length;              // tokens of the sequence
  std::uint32_t shared;    // scratch
  int barrier;             // named barrier of the warpgroup
  int thread, warp, lane;

  static constexpr int pieces = K / 8;         // of 16 bytes, in 16-bit rows
  static constexpr int step = group / pieces;  // rows between a thread's
  static constexpr int log_pieces = K / 4;     // in fp32 rows
  static constexpr int log_step = group / log_pieces;

  __device__ void start(const problem& p, const sequence_span& span, int head,
                        int first, std::uint32_t scratch_address,
                        int named_barrier, int thread_of_group) {
    thread = thread_of_group;
    barrier = named_barrier;
    warp = __shfl_sync(~0u, thread / 32, 0);
    lane = thread % 32;
    shared = scratch_address;
    length = static_cast<int>(span.length);
    left = length - first;
    const int key_head = head / (p.HV / p.H);
    const std::int64_t token = span.first + first;
    const auto rows = [&](const tensor& x, int of_head, int size, int per_row) {
      return static_cast<const char*>(x.data) +
             offset(x, span.batch, token + thread / per_row, of_head) * size +
             thread % per_row * 16;
    };
    q = rows(p.q, key_head, 2, pieces);
    k = rows(p.k, key_head, 2, pieces);
    if constexpr (Erase == axis::channel) b = rows(p.b, head, 2, pieces);
    if constexpr (channels) g = rows(p.g, head, 4, log_pieces);
    if constexpr (Erase != axis::channel) {
      const tensor& x = content ? p.w : p.beta;
      scalar_gates = static_cast<const In*>(x.data) +
                     offset(x, span.batch, span.first, head);
    }
    if constexpr (Decay == axis::head)
      decays = static_cast<const float*>(p.g.data) +
               offset(p.g, span.batch, span.first, head);
  }

  /// Rows 16 * b.. of the logs.
  __device__ std::uint32_t logs(std::uint32_t block, int b) const {
    return b < own::lent
               ? block + part::products + b * own::block_bytes
               : shared + own::logs + (b - own::lent) * own::block_bytes;
  }
  /// The keys on their way to k*2^-y.
  __device__ std::uint32_t keys(std::uint32_t block) const {
    if constexpr (content) return block + part::keys;
    if constexpr (!channels) return block + part::erase_keys;
    return shared + own::keys;
  }

  /// Starts the loads of the next chunk (rows past the end become zeros).
  __device__ void fetch(const problem& p, std::uint32_t block) {
    const std::uint32_t to = (thread % pieces / 8) * tile_bytes +
                             swizzled(thread / pieces, thread % 8);
    const auto rows = [&](const char*& from, const tensor& x,
                          std::uint32_t tile) {
      const char* next = from;
#pragma unroll
      for (int m = 0; m < chunk / step; ++m) {
        const bool valid = thread / pieces + m * step < left;
        copy_async_16(tile + to + m * step * 128,
                      valid ? next : static_cast<const char*>(x.data), valid);
        next += step * 2 * x.token;
      }
      from += Every * chunk * 2 * x.token;
    };
    rows(q, p.q, block + part::queries);
    rows(k, p.k, keys(block));
    if constexpr (Erase == axis::channel)
      rows(b, p.b, block + part::erase_keys);
    if constexpr (channels) {
      const char* next = g;
#pragma unroll
      for (int m = 0; m < chunk / log_step; ++m) {
        const bool valid = thread / log_pieces + m * log_step < left;
        copy_async_16(logs(block, m * log_step / 16) +
                          (thread / log_pieces + m * log_step % 16) * K * 4 +
                          thread % log_pieces * 16,
                      valid ? next : static_cast<const char*>(p.g.data), valid);
        next += log_step * 4 * p.g.token;
      }
      g += Every * chunk * 4 * p.g.token;
    }
    copy_async_commit();
    left -= Every * chunk;
  }

  /// The gates of one number per token: the decays of the chunk's tokens
  /// 2 * lane and + 1, and the erase (or write) gates of the same tokens, left
  /// as they are so that nothing waits for them yet.
  struct scalars {
    float decay[2];
    In raw_gate[2];
    __device__ float gate(int j) const { return to_float(raw_gate[j]); }
  };
  __device__ scalars fetch_scalars(const problem& p, int first) const {
    scalars x = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = first + 2 * lane + j;
      x.raw_gate[j] = from_float<In>(0.f);
      if constexpr (Decay == axis::head)
        if (token < length) x.decay[j] = decays[token * p.g.token];
      if constexpr (Erase != axis::channel)
        if (token < length)
          x.raw_gate[j] =
              scalar_gates[token * (content ? p.w.token : p.beta.token)];
    }
    return x;
  }

  /// Prepares the chunk that starts at token `first` and whose loads were
  /// started.  `meanwhile` runs when loads into the scratch are welcome again.
  template <class Meanwhile>
  __device__ __forceinline__ void run(const problem& p, int first,
                                      std::uint32_t block,
                                      std::uint32_t numbers, const scalars& one,
                                      const sequence_span& span, int head,
                                      Meanwhile&& meanwhile);

  __device__ __forceinline__ void sum_logs(std::uint32_t block) const;
  template <bool Apart>
  __device__ __forceinline__ void scale_channels(std::uint32_t block,
                                                 std::uint32_t numbers) const;
  __device__ __forceinline__ void scale_rows(std::uint32_t block,
                                             std::uint32_t factors) const;
  __device__ __forceinline__ void store_products(std::uint32_t block,
                                                 const float (&m)[32]) const;
  __device__ __forceinline__ void sum_rows(std::uint32_t block,
                                           std::uint32_t numbers) const;
};

/// Replaces the log decays by y, and notes both halves' totals and which
/// channels leave the range.
template <class In, int K, axis Decay, axis Erase, int Every>
__device__ __forceinline__ void
preparation<In, K, Decay, Erase, Every>::sum_logs(std::uint32_t block) const {
  if (K < 128 && thread >= K) return;
  const int pair = thread % (K / 2), late = thread / (K / 2);
  float2 sum = make_float2(0, 0);
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    // From the middle of the chunk outwards.
    const std::uint32_t at = late ? logs(block, 2 + b) + pair * 8
                                  : logs(block, 1 - b) + 15 * K * 4 + pair * 8;
    const int row = late ? K * 4 : -K * 4;
    uint2 g[16];
#pragma unroll
    for (int t = 0; t < 16; ++t) g[t] = read8(at + t * row);
#pragma unroll
    for (int t = 0; t < 16; ++t) {
      const float2 before = sum;
      sum.x += log_decay(__uint_as_float(g[t].x));
      sum.y += log_decay(__uint_as_float(g[t].y));
      write8(at + t * row, __float_as_uint(late ? sum.x : -before.x),
             __float_as_uint(late ? sum.y : -before.y));
    }
  }
  write8(shared + own::totals + late * K * 4 + pair * 8, __float_as_uint(sum.x),
         __float_as_uint(sum.y));
  const std::uint32_t even = __ballot_sync(~0u, sum.x < -half_limit<In>);
  const std::uint32_t odd = __ballot_sync(~0u, sum.y < -half_limit<In>);
  if (lane == 0)
    write8(shared + own::apart + late * 16 + pair / 32 * 8, even, odd);
}

/// Scales queries, keys and erase keys of two channels by the decays, in
/// place, and writes the tail keys (and, content, sums of the queries).
/// `Apart`: some channels of the chunk are.
template <class In, int K, axis Decay, axis Erase, int Every>
template <bool Apart>
__device__ __forceinline__ void
preparation<In, K, Decay, Erase, Every>::scale_channels(
    std::uint32_t block, std::uint32_t numbers) const {
  constexpr int pairs = K / 2, rows = chunk * pairs / group;
  const int pair = thread % pairs, first = thread / pairs * rows;
  const float2 d0 = as_float2(read8(shared + own::totals + pair * 8));
  const float2 d1 = as_float2(read8(shared + own::totals + K * 4 + pair * 8));
  const bool apart[2] = {Apart && fminf(d0.x, d1.x) < -half_limit<In>,
                         Apart && fminf(d0.y, d1.y) < -half_limit<In>};
  // The reference, log2, from the chunk's start; the middle from there.
  const float reference[2] = {apart[0] ? 0.f : rintf(d0.x),
                              apart[1] ? 0.f : rintf(d0.y)};
  const float middle[2] = {d0.x - reference[0], d0.y - reference[1]};
  const float after[2] = {exp2_fast(d1.x + middle[0]),
                          exp2_fast(d1.y + middle[1])};
  if (first == 0) {
    write_word(
        numbers + part::before + pair * 4,
        pack<__nv_bfloat16>(exp2_fast(reference[0]), exp2_fast(reference[1])));
    write8(numbers + part::after + pair * 8, __float_as_uint(after[0]),
           __float_as_uint(after[1]));
  }
  const std::uint32_t within =
      pair / 32 * tile_bytes + pair % 32 / 4 * 16 + pair % 4 * 4 + first * 128;
  [[maybe_unused]] float2 sum = make_float2(0, 0);
#pragma unroll 1
  for (int s = 0; s < rows; s += 8) {
    const std::uint32_t at = block + within + s * 128;
    const std::uint32_t key_at = keys(block) + within + s * 128;
    const std::uint32_t y_at =
        logs(block, (first + s) / 16) + (first + s) % 16 * K * 4 + pair * 8;
    float2 y[8];
    std::uint32_t qw[8], kw[8], bw[8];
    float beta[8];
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const std::uint32_t o = t * 128;
      y[t] = as_float2(read8(y_at + t * K * 4));
      qw[t] = read_word((at ^ (t << 4)) + o + part::queries);
      kw[t] = read_word((key_at ^ (t << 4)) + o);
      if constexpr (Erase == axis::channel)
        bw[t] = read_word((at ^ (t << 4)) + o + part::erase_keys);
    }
    if constexpr (Erase == axis::head) {
#pragma unroll
      for (int t = 0; t < 8; t += 4) {
        const uint4 x = read16(numbers + part::write + (first + s + t) * 4);
        beta[t] = __uint_as_float(x.x);
        beta[t + 1] = __uint_as_float(x.y);
        beta[t + 2] = __uint_as_float(x.z);
        beta[t + 3] = __uint_as_float(x.w);
      }
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const std::uint32_t o = t * 128;
      const float2 qv = unpack<In>(qw[t]), kv = unpack<In>(kw[t]);
      float up[2], down[2], tail[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float log = e ? y[t].y : y[t].x, z = log + middle[e];
        up[e] = exp2_fast(z);
        if constexpr (Apart) {
          down[e] = apart[e] ? 0.f : exp2_fast(-z);
          tail[e] = exp2_fast((e ? d1.y : d1.x) - log);
        } else {
          down[e] = exp2_fast(-z);
          tail[e] = down[e] * after[e];
        }
      }
      float r[2] = {kv.x * up[0], kv.y * up[1]};
      if constexpr (Erase == axis::channel) {
        const float2 bv = unpack<In>(bw[t]);
        r[0] *= bv.x;
        r[1] *= bv.y;
      } else if constexpr (Erase == axis::head) {
        r[0] *= beta[t];
        r[1] *= beta[t];
      }
      const float2 query = make_float2(qv.x * up[0], qv.y * up[1]);
      if constexpr (content) {
        sum.x += query.x;
        sum.y += query.y;
      }
      write_word((at ^ (t << 4)) + o + part::queries,
                 pack<In>(query.x, query.y));
      write_word((at ^ (t << 4)) + o + part::erase_keys, pack<In>(r[0], r[1]));
      write_word((key_at ^ (t << 4)) + o,
                 pack<In>(kv.x * down[0], kv.y * down[1]));
      write_word((at ^ (t << 4)) + o + part::tail_keys,
                 pack<__half>(kv.x * tail[0], kv.y * tail[1]));
    }
  }
  if constexpr (content)
    write8(block + part::sums + thread * 8, __float_as_uint(sum.x),
           __float_as_uint(sum.y));
}

/// The same for decays of one number per token: rows of queries and keys are
/// scaled by the factors that `run` left.
template <class In, int K, axis Decay, axis Erase, int Every>
__device__ __forceinline__ void
preparation<In, K, Decay, Erase, Every>::scale_rows(
    std::uint32_t block, std::uint32_t all_factors) const {
  const std::uint32_t at = block + (thread % pieces / 8) * tile_bytes +
                           swizzled(thread / pieces, thread % 8);
  const std::uint32_t factors = all_factors + chunk * 4 + thread / pieces * 4;
#pragma unroll 2
  for (int m = 0; m < chunk / step; ++m) {
    const std::uint32_t o = m * step * 128;
    const float up = read4(factors + m * step * 4);
    const float erase = read4(factors + (chunk + m * step) * 4);
    const float down = read4(factors + (2 * chunk + m * step) * 4);
    const uint4 kx = read16(at + o + part::erase_keys);
    const std::uint32_t kw[4] = {kx.x, kx.y, kx.z, kx.w};
    std::uint32_t r[4], t[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 v = unpack<In>(kw[e]);
      r[e] = pack<In>(v.x * erase, v.y * erase);
      t[e] = pack<__half>(v.x * down, v.y * down);
    }
    write16(at + o + part::erase_keys, make_uint4(r[0], r[1], r[2], r[3]));
    write16(at + o + part::tail_keys, make_uint4(t[0], t[1], t[2], t[3]));
    if constexpr (Decay != axis::none) {
      const uint4 qx = read16(at + o + part::queries);
      const std::uint32_t qw[4] = {qx.x, qx.y, qx.z, qx.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 v = unpack<In>(qw[e]);
        r[e] = pack<In>(v.x * up, v.y * up);
      }
      write16(at + o + part::queries, make_uint4(r[0], r[1], r[2], r[3]));
    }
  }
}

/// Writes P, zero above the diagonal.
template <class In, int K, axis Decay, axis Erase, int Every>
__device__ __forceinline__ void
preparation<In, K, Decay, Erase, Every>::store_products(
    std::uint32_t block, const float (&m)[32]) const {
  const int i = lane >> 2, c = lane & 3;
  const int row = 16 * warp + (lane & 7) + 8 * ((lane >> 3) & 1);
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    fragment x;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      // e & 1: rows + 8; e >> 1: columns + 8.
      const int r = 16 * warp + i + 8 * (e & 1);
      const int s = 8 * (j + (e >> 1)) + 2 * c;
      const int at = 4 * (j + (e >> 1)) + 2 * (e & 1);
      x.r[e] = pack<__half>(s <= r ? m[at] : 0.f, s < r ? m[at + 1] : 0.f);
    }
    store_matrices(block + part::products + swizzled(row, j + (lane >> 4)), x);
  }
}

/// Sums of the queries' channels and of P's columns over the tokens.
template <class In, int K, axis Decay, axis Erase, int Every>
__device__ __forceinline__ void
preparation<In, K, Decay, Erase, Every>::sum_rows(std::uint32_t block,
                                                  std::uint32_t numbers) const {
  constexpr int pairs = K / 2;
  if (thread < pairs) {
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int m = 0; m < group; m += pairs) {
      const float2 x = as_float2(read8(block + part::sums + (thread + m) * 8));
      sum.x += x.x;
      sum.y += x.y;
    }
    write8(numbers + part::queries_sum + thread * 8, __float_as_uint(sum.x),
           __float_as_uint(sum.y));
  }
  // Columns 16w..: every row of the product of ones and P is their sum.
  constexpr std::uint32_t one = 0x3C003C00;
  const fragment ones = {one, one, one, one};
  float sum[2][4] = {};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    if (t < warp) continue;
    multiply<__half>(
        sum, ones,
        load_matrices_transposed(
            block + part::products +
            swizzled(16 * t + (lane & 15), 2 * warp + (lane >> 4))));
  }
  if (lane < 4)
#pragma unroll
    for (int j = 0; j < 2; ++j)
      write8(numbers + part::products_sum + (16 * warp + 8 * j + 2 * lane) * 4,
             __float_as_uint(sum[j][0]), __float_as_uint(sum[j][1]));
}

template <class In, int K, axis Decay, axis Erase, int Every>
template <class Meanwhile>
__device__ __forceinline__ void preparation<In, K, Decay, Erase, Every>::run(
    const problem& p, int first, std::uint32_t block, std::uint32_t numbers,
    const scalars& one, const sequence_span& span, int head,
    Meanwhile&& meanwhile) {
  const int i = lane >> 2, c = lane & 3;
  // Write gates of one number per token, the erase gates that go with them.
  if constexpr (Erase != axis::channel)
    if (warp == 0)
      write8(numbers + part::write + lane * 8, __float_as_uint(one.gate(0)),
             __float_as_uint(one.gate(1)));
  copy_async_wait<0>();

  [[maybe_unused]] const std::uint32_t factors =
      shared + own::totals + (first / (Every * chunk) & 1) * own::totals_bytes;
  float m[32];
  [[maybe_unused]] float l[32];
  if constexpr (channels) {
    sync_group<group>(barrier);
    sum_logs(block);
    sync_group<group>(barrier);
    std::uint32_t apart[4];
    {
      const uint4 x = read16(shared + own::apart);
      const uint4 y = read16(shared + own::apart + 16);
      apart[0] = x.x | y.x;
      apart[1] = x.y | y.y;
      apart[2] = K > 64 ? x.z | y.z : 0;
      apart[3] = K > 64 ? x.w | y.w : 0;
    }
    const bool any = (apart[0] | apart[1] | apart[2] | apart[3]) != 0;
    if constexpr (content)
      if (thread == 0)
        write16(numbers + part::apart,
                make_uint4(apart[0], apart[1], apart[2], apart[3]));
    if (any)
      scale_channels<true>(block, numbers);
    else
      scale_channels<false>(block, numbers);
    fence_async_proxy();
    sync_group<group>(barrier);
    product_fence();
    if constexpr (!content)
      product_of_tiles<In, K>(l, block + part::erase_keys, keys(block));
    product_of_tiles<In, K>(m, block + part::queries, keys(block));
    product_commit();
    if constexpr (content) meanwhile();
    product_wait<0>();
    if constexpr (!content) pin(l);
    pin(m);
    if (any) {
      const int key_head = head / (p.HV / p.H);
      couple_exactly<K, !content, true>(
          apart, warp, lane, l, m, [&](int channel) {
            channel_pair x = {};
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const int token = first + 2 * lane + j;
              if (token >= length) continue;
              const std::int64_t t = span.first + token;
              const auto at = [&](const tensor& y, int h) {
                return offset(y, span.batch, t, h) + channel;
              };
              x.log[j] = static_cast<const float*>(p.g.data)[at(p.g, head)];
              x.key[j] =
                  to_float(static_cast<const In*>(p.k.data)[at(p.k, key_head)]);
              x.query[j] =
                  to_float(static_cast<const In*>(p.q.data)[at(p.q, key_head)]);
              if constexpr (Erase == axis::channel)
                x.erase[j] =
                    to_float(static_cast<const In*>(p.b.data)[at(p.b, head)]);
              else
                x.erase[j] = one.gate(j);
            }
            return x;
          });
    }
  } else {
    // Prefixes of the logs in blocks of 16, for tokens 2 * lane and + 1, the
    // blocks' totals, and what is before and after the own block.
    float prefix[2] = {0, 0}, total[4] = {0, 0, 0, 0};
    float between[4] = {0, 0, 0, 0};  // own block's start from block b's end
    if constexpr (Decay == axis::head) {
      const float a0 = log_decay(one.decay[0]), a1 = log_decay(one.decay[1]);
      float sum = a0 + a1;
#pragma unroll
      for (int d = 1; d < 8; d *= 2) {
        const float x = __shfl_up_sync(~0u, sum, d, 8);
        if ((lane & 7) >= d) sum += x;
      }
      float beyond = __shfl_up_sync(~0u, sum, 1, 8);
      if ((lane & 7) == 0) beyond = 0;
      prefix[0] = beyond + a0;
      prefix[1] = prefix[0] + a1;
#pragma unroll
      for (int b = 0; b < 4; ++b)
        total[b] = __shfl_sync(~0u, prefix[1], 8 * b + 7);
    }
    if (warp == 0) {
      // Factors of a token's query, erase key and tail key.
      const int b = lane >> 3;
      const float before = (b > 0 ? total[0] : 0.f) + (b > 1 ? total[1] : 0.f) +
                           (b > 2 ? total[2] : 0.f);
      const float after = (b < 3 ? total[3] : 0.f) + (b < 2 ? total[2] : 0.f) +
                          (b < 1 ? total[1] : 0.f);
      const float mine = b == 0   ? total[0]
                         : b == 1 ? total[1]
                         : b == 2 ? total[2]
                                  : total[3];
      const std::uint32_t at = factors + lane * 8;
      const auto two = [&](int which, float x, float y) {
        write8(at + which * chunk * 4, __float_as_uint(x), __float_as_uint(y));
      };
      const float up[2] = {exp2_fast(before + prefix[0]),
                           exp2_fast(before + prefix[1])};
      two(0, prefix[0], prefix[1]);
      two(1, up[0], up[1]);
      two(2, up[0] * one.gate(0), up[1] * one.gate(1));
      two(3, exp2_fast((mine - prefix[0]) + after),
          exp2_fast((mine - prefix[1]) + after));
    }
    const float all = exp2_fast((total[0] + total[1]) + (total[2] + total[3]));
    if (thread < K) write4(numbers + part::after + thread * 4, all);
    fence_async_proxy();
    sync_group<group>(barrier);
    product_fence();
    const auto lower = [&] {
      product_of_tiles<In, K>(l, block + part::erase_keys,
                              block + part::erase_keys);
    };
    if constexpr (Every == 1) lower();
    product_of_tiles<In, K>(m, block + part::queries, block + part::erase_keys);
    product_commit();
    // Log from the end of block b to the start of the own.
    if (warp == 3) between[1] = total[2];
    if (warp == 2) between[0] = total[1];
    if (warp == 3) between[0] = total[1] + total[2];
    float row_log[2], gate[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = 16 * warp + i + 8 * j;
      row_log[j] = read4(factors + row * 4);
      gate[j] = read4(numbers + part::write + row * 4);
    }
    product_wait<0>();
    const auto decay = [&](bool of_m, bool of_l) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int b = j / 2;
        if (b > warp) continue;
        if constexpr (Decay == axis::head) {
          const float2 column = as_float2(read8(factors + (8 * j + 2 * c) * 4));
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float s = e & 1 ? column.y : column.x;
            const float log =
                b == warp ? row_log[e >> 1] - s
                          : row_log[e >> 1] + (between[b] + (total[b] - s));
            const float f = exp2_fast(fminf(log, 0.f));
            if (of_m) m[4 * j + e] *= f;
            if (of_l) l[4 * j + e] *= f * gate[e >> 1];
          }
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (of_l) l[4 * j + e] *= gate[e >> 1];
        }
      }
    };
    pin(m);
    if constexpr (Every == 1) {
      pin(l);
      decay(true, true);
    } else {
      decay(true, false);
      store_products(block, m);
      product_fence();
      lower();
      product_commit();
      product_wait<0>();
      pin(l);
      decay(false, true);
    }
  }
  if constexpr (Every == 1) store_products(block, m);
  if constexpr (content) {
    sync_group<group>(barrier);
    sum_rows(block, numbers);
  } else {
    clear_above(block + part::inverse, warp, lane);
    invert(
        l, block + part::inverse, shared + own::lower, warp, lane, barrier,
        [](auto&) {}, meanwhile);
    if constexpr (!channels) scale_rows(block, factors);
  }
}

}  // namespace carve::cuda::forward_chunks
