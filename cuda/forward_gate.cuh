// CARVE's content gate, put on prepared chunks by one warpgroup.
//
// The erase gate of a window depends on the mean output of the window before,
//   b = sigmoid(x + W_up W_down m),
// so what depends on it, the erase keys' gate, their couplings L and
// T = (I + L)^-1, is on the chain from chunk to chunk.  This warpgroup does
// that; the walking warpgroups meanwhile finish the state and the outputs of
// the chunk before, and then help it to put the gate on.
#pragma once

#include "forward_prepare.cuh"

namespace carve::cuda::forward_chunks {

constexpr int largest_rank = 128;

/// Shared memory of the gate: the logits of a chunk (tiles), diagonal blocks
/// of L, the window's mean, W_down times it, and -log2(e) times the shift of
/// the logits.
template <int K, int V>
struct gate_memory {
  static constexpr int logits = 0;
  static constexpr int lower = K / 64 * tile_bytes;
  static constexpr int mean = lower + 4 * 1280;
  static constexpr int inner = mean + V * 4;
  static constexpr int shift = inner + largest_rank * 4;
  static constexpr int bytes = shift + K * 4;
};

/// Two values of the logistic function for one reciprocal, of -log2(e) times
/// their arguments; below 2^-60 they stay where they are.
__device__ __forceinline__ float2 sigmoid_pair(float x, float y) {
  const float a = 1.f + exp2_fast(min_nan(x, 60.f));
  const float b = 1.f + exp2_fast(min_nan(y, 60.f));
  const float r = reciprocal(a * b);
  return make_float2(r * b, r * a);
}

/// sigmoid of two logits, given -log2(e) times their shifts.  The hardware's
/// tanh is good to 2^-11, enough before a rounding to bf16.
template <class In>
__device__ __forceinline__ float2 gate_pair(float2 x, float shift_x,
                                            float shift_y) {
  if constexpr (std::is_same_v<In, __half>) {
    return sigmoid_pair(fmaf(x.x, -log2e, shift_x), fmaf(x.y, -log2e, shift_y));
  } else {
    constexpr float half = -0.5f / log2e;
    const float a = tanh_fast(fmaf(x.x, 0.5f, half * shift_x));
    const float b = tanh_fast(fmaf(x.y, 0.5f, half * shift_y));
    return make_float2(fmaf(a, 0.5f, 0.5f), fmaf(b, 0.5f, 0.5f));
  }
}

/// One thread's part in gating the chunks of one head, in order.
template <class In, int K, int V>
struct content_gate {
  using part = prepared<K, axis::content>;
  using memory = gate_memory<K, V>;
  static constexpr int pieces = K / 8, step = group / pieces;
  static constexpr int ranks = 16;             // taken at a time
  static constexpr int lanes = group / ranks;  // of a row of W_down
  // Of a thread's pieces, this warpgroup's and each walking one's.
  static constexpr int count = chunk / step, own_count = count / 2;
  static constexpr int walker_count = (count - own_count) / (V / 64);

  const char* logits;  // the thread's first piece of the next chunk
  int left;            // rows from there on
  int length, head;
  std::uint32_t at;  // gate_memory
  int barrier;       // named barrier of the warpgroup
  int thread, warp, lane;

  /// `blocks`: the two stages, whose T is cleared above the diagonal.
  __device__ void start(const problem& p, const sequence_span& span,
                        int of_head, std::uint32_t address,
                        std::uint32_t blocks, int named_barrier,
                        int thread_of_group) {
    thread = thread_of_group;
    barrier = named_barrier;
    warp = __shfl_sync(~0u, thread / 32, 0);
    lane = thread % 32;
    at = address;
    head = of_head;
    length = static_cast<int>(span.length);
    left = length;
    logits = static_cast<const char*>(p.b.data) +
             offset(p.b, span.batch, span.first + thread / pieces, head) * 2 +
             thread % pieces * 16;
    for (int s = 0; s < 2; ++s)
      clear_above(blocks + s * part::tiles + part::inverse, warp, lane);
    if (thread < K) write4(at + memory::shift + thread * 4, 0.f);
    sync_group<group>(barrier);
  }

  __device__ static std::uint32_t moved(std::uint32_t tiles, int thread) {
    return tiles + thread % pieces / 8 * tile_bytes +
           swizzled(thread / pieces, thread % 8);
  }

  /// Starts the loads of the next chunk's logits.
  __device__ void fetch(const problem& p) {
    const char* next = logits;
#pragma unroll
    for (int m = 0; m < chunk / step; ++m) {
      const bool valid = thread / pieces + m * step < left;
      copy_async_16(moved(at + memory::logits, thread) + m * step * 128,
                    valid ? next : static_cast<const char*>(p.b.data), valid);
      next += step * 2 * p.b.token;
    }
    logits += chunk * 2 * p.b.token;
    left -= chunk;
    copy_async_commit();
  }

  /// `ranks` of the rank, from `first` on, of both weights: a lane's part of a
  /// row of W_down, and a channel's of W_up.
  struct weights {
    float down[V / lanes], up[ranks];
  };
  __device__ static void put(float* to, float4 x) {
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
  }
  __device__ weights load(const problem& p, int first) const {
    weights w = {};
    const int r = first + thread / lanes;
    if (r < p.rank) {
      const float4* down = reinterpret_cast<const float4*>(
          p.w_down + (static_cast<std::int64_t>(head) * p.rank + r) * V);
#pragma unroll
      for (int j = 0; j < V / lanes; j += 4)
        put(w.down + j, down[thread % lanes + j / 4 * lanes]);
    }
    if (thread < K) {
      const float* up =
          p.w_up + (static_cast<std::int64_t>(head) * K + thread) * p.rank +
          first;
#pragma unroll
      for (int j = 0; j < ranks; j += 4)
        if (first + j < p.rank)
          put(w.up + j, *reinterpret_cast<const float4*>(up + j));
    }
    return w;
  }

  /// Moves the logits by W_up W_down m.  `w`: the first ranks' weights, loaded
  /// before the mean was waited for.
  __device__ void move(const problem& p, const weights& w) const {
    project(w, 0);
    for (int r = ranks; r < p.rank; r += ranks) project(load(p, r), r);
    sync_group<group>(barrier);
    float shift = lift(w, 0);
    for (int r = ranks; r < p.rank; r += ranks) shift += lift(load(p, r), r);
    if (thread < K) write4(at + memory::shift + thread * 4, -log2e * shift);
    sync_group<group>(barrier);
  }
  /// Rows `first`.. of W_down m.
  __device__ void project(const weights& w, int first) const {
    float sum[4] = {};
#pragma unroll
    for (int j = 0; j < V / lanes; j += 4) {
      const uint4 m =
          read16(at + memory::mean + (thread % lanes * 4 + j * lanes) * 4);
      sum[0] = fmaf(w.down[j], __uint_as_float(m.x), sum[0]);
      sum[1] = fmaf(w.down[j + 1], __uint_as_float(m.y), sum[1]);
      sum[2] = fmaf(w.down[j + 2], __uint_as_float(m.z), sum[2]);
      sum[3] = fmaf(w.down[j + 3], __uint_as_float(m.w), sum[3]);
    }
    float all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
#pragma unroll
    for (int d = lanes / 2; d > 0; d /= 2) all += __shfl_xor_sync(~0u, all, d);
    if (thread % lanes == 0)
      write4(at + memory::inner + (first + thread / lanes) * 4, all);
  }
  /// What those rows add to the shift of the thread's channel.
  __device__ float lift(const weights& w, int first) const {
    float sum[4] = {};
#pragma unroll
    for (int j = 0; j < ranks; j += 4) {
      const uint4 m = read16(at + memory::inner + (first + j) * 4);
      sum[0] = fmaf(w.up[j], __uint_as_float(m.x), sum[0]);
      sum[1] = fmaf(w.up[j + 1], __uint_as_float(m.y), sum[1]);
      sum[2] = fmaf(w.up[j + 2], __uint_as_float(m.z), sum[2]);
      sum[3] = fmaf(w.up[j + 3], __uint_as_float(m.w), sum[3]);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  /// Puts the gate on rows m * step + thread / pieces, m from `First` to before
  /// `Last`, of the erase keys of a chunk; by any warpgroup.
  template <int First, int Last>
  __device__ static __forceinline__ void apply(std::uint32_t block,
                                               std::uint32_t at, int thread) {
    float shift[8];
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      const uint4 y =
          read16(at + memory::shift + (8 * (thread % pieces) + e) * 4);
      shift[e] = __uint_as_float(y.x);
      shift[e + 1] = __uint_as_float(y.y);
      shift[e + 2] = __uint_as_float(y.z);
      shift[e + 3] = __uint_as_float(y.w);
    }
    const std::uint32_t from = moved(at + memory::logits, thread);
    const std::uint32_t to = moved(block + part::erase_keys, thread);
#pragma unroll
    for (int m = First; m < Last; ++m) {
      const uint4 x = read16(from + m * step * 128);
      const uint4 k = read16(to + m * step * 128);
      const std::uint32_t xw[4] = {x.x, x.y, x.z, x.w};
      const std::uint32_t kw[4] = {k.x, k.y, k.z, k.w};
      std::uint32_t r[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 z = unpack<In>(xw[e]), y = unpack<In>(kw[e]);
        const float2 b = gate_pair<In>(z, shift[2 * e], shift[2 * e + 1]);
        r[e] = pack<In>(b.x * y.x, b.y * y.y);
      }
      write16(to + m * step * 128, make_uint4(r[0], r[1], r[2], r[3]));
    }
  }

  /// T of a chunk whose erase keys have their gate.  `coupled` runs when the
  /// products have left the tensor cores.
  template <class Coupled>
  __device__ __forceinline__ void couple(const problem& p,
                                         const sequence_span& span, int first,
                                         std::uint32_t block,
                                         std::uint32_t numbers,
                                         Coupled&& coupled) const {
    float l[32];
    product_fence();
    multiply_tiles<In, K>(l, block + part::erase_keys, block + part::keys);
    product_commit();
    product_wait<0>();
    pin(l);
    coupled();
    const uint4 words = read16(numbers + part::apart);
    if ((words.x | words.y | words.z | words.w) != 0) {
      const std::uint32_t apart[4] = {words.x, words.y, words.z, words.w};
      const int key_head = head / (p.HV / p.H);
      couple_exactly<K, true, false>(apart, warp, lane, l, l, [&](int channel) {
        const float shift = read4(at + memory::shift + channel * 4);
        channel_pair y = {};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int token = first + 2 * lane + j;
          if (token >= length) continue;
          const std::int64_t t = span.first + token;
          const auto in = [&](const tensor& z, int h) {
            return offset(z, span.batch, t, h) + channel;
          };
          y.log[j] = static_cast<const float*>(p.g.data)[in(p.g, head)];
          y.key[j] =
              to_float(static_cast<const In*>(p.k.data)[in(p.k, key_head)]);
          const float logit =
              to_float(static_cast<const In*>(p.b.data)[in(p.b, head)]);
          y.erase[j] = sigmoid_pair(fmaf(logit, -log2e, shift), 0.f).x;
        }
        return y;
      });
    }
    std::uint32_t before[3][4];
    const std::uint32_t lower = at + memory::lower + warp * 1280;
    park(l, before, lower, warp, lane);
    invert(before, block + part::inverse, lower, warp, lane, barrier, [] {});
  }
};

}  // namespace carve::cuda::forward_chunks
