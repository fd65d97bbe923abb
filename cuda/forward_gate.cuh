// CARVE's content gate, put on prepared chunks by warpgroups of their own.
//
// The erase gate of a window depends on the mean output of the window before,
//   b = sigmoid(x + W_up W_down m),
// so what depends on it, the erase keys' gate, their couplings L and
// T = (I + L)^-1, is on the chain from chunk to chunk.  That is done here; the
// walking warpgroups meanwhile finish the state and the outputs of the chunk
// before.
#pragma once

#include "forward_prepare.cuh"

namespace carve::cuda::forward_chunks {

constexpr int largest_rank = 128;

/// Named barriers between the gate's warpgroups (`all`, and the first alone)
/// and between them and the walkers, who wake sooner so than by an mbarrier: of
/// a stage, its erase keys have their gate and L is made; T is there; and the
/// sums of the window's outputs are known.
struct gate_barriers {
  static constexpr int all = 4, first = 5;
  static constexpr int coupled = 6, inverted = 8, known = 10;
  template <int Walkers>
  static constexpr int stage_threads = group*(Walkers + 1);
  template <int Walkers, int Groups>
  static constexpr int known_threads = group*(Walkers + Groups);
};

/// Shared memory of the gate: the logits of a chunk (tiles), scratch of
/// `invert`, the sums of a window's outputs (but for their scale), W_down times
/// the mean and -log2(e) times the shift of the logits.
template <int K, int V>
struct gate_memory {
  static constexpr int logits = 0;
  static constexpr int lower = K / 64 * tile_bytes;
  static constexpr int sums = lower + 4 * invert_bytes;
  static constexpr int inner = sums + V * 4;
  static constexpr int shift = inner + largest_rank * 4;
  static constexpr int bytes = shift + K * 4;
};

/// 2^x, finite and not zero, so that it multiplies with infinity or zero.
__device__ __forceinline__ float power(float x) {
  return exp2_fast(max_nan(min_nan(x, 120.f), -120.f));
}
/// The logistic function of minus the logarithm of a product.
__device__ __forceinline__ float sigmoid(float x, float y) {
  return reciprocal(fmaf(x, y, 1.f));
}

/// One thread's part in gating the chunks of one head, in order, by `Groups`
/// warpgroups.  A warp gates some channels of all rows, so that it finds what
/// it needs of the shift of the logits alone; the first warpgroup makes T.
template <class In, int K, int V, int Groups>
struct content_gate {
  using part = prepared<K, axis::content>;
  using memory = gate_memory<K, V>;
  static constexpr int threads = Groups * group;
  static constexpr int channels = K / (threads / 32);  // of a warp
  static constexpr int step = 256 / channels;          // rows at a time
  static constexpr int count = chunk / step;           // of a thread's pieces
  static constexpr int batch =
      Groups == 1 || count < 4 ? 2 : 4;                // held at a time
  static constexpr int ranks = 16;                     // taken at a time
  static constexpr int lanes = threads / ranks;        // of a row of W_down
  static constexpr int depth = ranks * channels / 32;  // of a lane, of W_up

  std::uint32_t moved;  // where the thread's first piece lies in tiles
  float mean;           // of the sum
  int length, head;
  std::uint32_t at;        // gate_memory
  int thread, warp, lane;  // warp: of the warpgroup

  // The thread's rows and pieces: `row()` + m * step, piece `piece()`.
  __device__ int row() const { return lane % step; }
  __device__ int piece() const {
    return thread / 32 * (channels / 8) + lane / step;
  }

  __device__ std::uint32_t place(int piece) const {
    return piece / 8 * tile_bytes + swizzled(row(), piece % 8);
  }

  /// `blocks`: the two stages, whose T is cleared above the diagonal.
  __device__ void start(const problem& p, const sequence_span& span,
                        int of_head, std::uint32_t address,
                        std::uint32_t blocks, int of_all) {
    thread = of_all;
    warp = __shfl_sync(~0u, thread / 32 % 4, 0);
    lane = thread % 32;
    at = address;
    head = of_head;
    length = static_cast<int>(span.length);
    mean = p.scale / static_cast<float>(p.window);
    moved = place(piece());
    if (thread < group)
      for (int s = 0; s < 2; ++s)
        clear_above(blocks + s * part::tiles + part::inverse, warp, lane);
    if (thread < K) write4(at + memory::shift + thread * 4, 0.f);
    sync_group<threads>(gate_barriers::all);
  }

  /// Starts the loads of a chunk's logits (rows past the end become zeros), by
  /// the last warpgroup for all; they arrive at `landed`.
  __device__ void fetch(const problem& p, const sequence_span& span, int first,
                        std::uint32_t landed) const {
#pragma unroll
    for (int g = 0; g < Groups; ++g) {
      const int mine = piece() - g * K / 8 / Groups;
      const std::uint32_t to = at + memory::logits + place(mine);
      const char* from =
          static_cast<const char*>(p.b.data) +
          offset(p.b, span.batch, span.first + first + row(), head) * 2 +
          mine * 16;
#pragma unroll
      for (int m = 0; m < count; ++m) {
        const bool valid = first + row() + m * step < length;
        copy_async_16(to + m * step * 128,
                      valid ? from : static_cast<const char*>(p.b.data), valid);
        from += step * 2 * p.b.token;
      }
    }
    copy_async_arrive(landed);
  }

  /// e to minus some pieces of the logits, made ahead.
  struct pieces {
    float x[batch][8];
  };
  __device__ pieces take(int from) const {
    pieces y;
#pragma unroll
    for (int m = 0; m < batch; ++m) {
      const uint4 x =
          read16(at + memory::logits + moved + (from + m) * step * 128);
      const std::uint32_t w[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 z = unpack<In>(w[e]);
        y.x[m][2 * e] = exp2_fast(z.x * -log2e);
        y.x[m][2 * e + 1] = exp2_fast(z.y * -log2e);
      }
    }
    return y;
  }

  /// e to minus the shifts of the logits of the channels of the thread's
  /// pieces.
  struct shifts {
    float y[8];
  };
  /// As they were for the chunk before.
  __device__ shifts same() const {
    shifts s;
    const std::uint32_t from =
        at + memory::shift + (thread / 32 * channels + lane / step * 8) * 4;
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      const uint4 y = read16(from + e * 4);
      s.y[e] = power(__uint_as_float(y.x));
      s.y[e + 1] = power(__uint_as_float(y.y));
      s.y[e + 2] = power(__uint_as_float(y.z));
      s.y[e + 3] = power(__uint_as_float(y.w));
    }
    return s;
  }

  /// A lane's part of row r of W_down and, from column r on, of its channel's
  /// row of W_up; zero beyond the rank.
  static constexpr int downs = V / lanes / 4, ups = depth / 4;
  __device__ float4 down(const problem& p, int r, int j) const {
    r += thread / lanes;
    if (r >= p.rank) return make_float4(0, 0, 0, 0);
    return reinterpret_cast<const float4*>(
        p.w_down + (static_cast<std::int64_t>(head) * p.rank + r) *
                       V)[thread % lanes + j * lanes];
  }
  __device__ float4 up(const problem& p, int r, int j) const {
    r += lane / channels * depth + 4 * j;
    if (r >= p.rank) return make_float4(0, 0, 0, 0);
    const int channel = thread / 32 * channels + lane % channels;
    return *reinterpret_cast<const float4*>(
        p.w_up + (static_cast<std::int64_t>(head) * K + channel) * p.rank + r);
  }
  /// Those of the first ranks.
  struct weights {
    float4 down[downs], up[ups];
  };
  __device__ weights load(const problem& p) const {
    weights w;
#pragma unroll
    for (int j = 0; j < downs; ++j) w.down[j] = down(p, 0, j);
#pragma unroll
    for (int j = 0; j < ups; ++j) w.up[j] = up(p, 0, j);
    return w;
  }

  /// Moves the shifts to W_up W_down m.  `w` was loaded before the mean was
  /// waited for; what is beyond is not held, to spare registers.
  __device__ shifts move(const problem& p, const weights& w) const {
    const std::uint32_t sums = at + memory::sums + thread % lanes * 16;
    const std::uint32_t inner = at + memory::inner;
    const auto project = [&](int r, float4 total) {
      float x = mean * ((total.x + total.y) + (total.z + total.w));
#pragma unroll
      for (int d = lanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
      if (thread % lanes == 0) write4(inner + (r + thread / lanes) * 4, x);
    };
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < downs; ++j)
      multiply_add(total, w.down[j], sums + j * lanes * 16);
    project(0, total);
#pragma unroll 1
    for (int r = ranks; r < p.rank; r += ranks) {
      total = make_float4(0, 0, 0, 0);
#pragma unroll 1
      for (int j = 0; j < downs; ++j)
        multiply_add(total, down(p, r, j), sums + j * lanes * 16);
      project(r, total);
    }
    sync_group<threads>(gate_barriers::all);
    const std::uint32_t mine = inner + lane / channels * depth * 4;
    total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < ups; ++j) multiply_add(total, w.up[j], mine + j * 16);
#pragma unroll 1
    for (int r = ranks; r < p.rank; r += ranks)
#pragma unroll 1
      for (int j = 0; j < ups; ++j)
        multiply_add(total, up(p, r, j), mine + r * 4 + j * 16);
    float shift = -log2e * ((total.x + total.y) + (total.z + total.w));
#pragma unroll
    for (int d = channels; d < 32; d *= 2)
      shift += __shfl_xor_sync(~0u, shift, d);
    if (lane < channels)
      write4(at + memory::shift + (thread / 32 * channels + lane) * 4, shift);
    const float power_of = power(shift);
    shifts s;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      s.y[e] = __shfl_sync(~0u, power_of, lane / step * 8 + e);
    return s;
  }
  /// sum += w times four numbers in shared memory.
  __device__ static void multiply_add(float4& sum, float4 w,
                                      std::uint32_t from) {
    const uint4 x = read16(from);
    sum.x = fmaf(w.x, __uint_as_float(x.x), sum.x);
    sum.y = fmaf(w.y, __uint_as_float(x.y), sum.y);
    sum.z = fmaf(w.z, __uint_as_float(x.z), sum.z);
    sum.w = fmaf(w.w, __uint_as_float(x.w), sum.w);
  }

  /// Puts the gate on the thread's pieces of the erase keys of a chunk.
  __device__ __forceinline__ void apply(std::uint32_t block, pieces y,
                                        const shifts& s) const {
    const std::uint32_t to = block + part::erase_keys + moved;
#pragma unroll
    for (int from = 0; from < count; from += batch) {
      uint4 keys[batch];
#pragma unroll
      for (int m = 0; m < batch; ++m)
        keys[m] = read16(to + (from + m) * step * 128);
      pieces next = {};
      if (from + batch < count) next = take(from + batch);
#pragma unroll
      for (int m = 0; m < batch; ++m) {
        const std::uint32_t k[4] = {keys[m].x, keys[m].y, keys[m].z, keys[m].w};
        std::uint32_t r[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float2 f = unpack<In>(k[e]);
          const float b0 = sigmoid(y.x[m][2 * e], s.y[2 * e]);
          const float b1 = sigmoid(y.x[m][2 * e + 1], s.y[2 * e + 1]);
          r[e] = pack<In>(b0 * f.x, b1 * f.y);
        }
        write16(to + (from + m) * step * 128,
                make_uint4(r[0], r[1], r[2], r[3]));
      }
      y = next;
    }
  }

  /// T of a chunk whose erase keys have their gate, by the first warpgroup.
  /// `apart`: some channels were left out of the products.  `coupled` runs when
  /// these have left the tensor cores.
  template <class Coupled>
  __device__ __forceinline__ void couple(const problem& p,
                                         const sequence_span& span, int first,
                                         std::uint32_t block,
                                         std::uint32_t numbers, bool apart,
                                         Coupled&& coupled) const {
    float l[32];
    product_fence();
    multiply_tiles<In, K>(l, block + part::erase_keys, block + part::keys);
    product_commit();
    product_wait<0>();
    pin(l);
    // Read before the keys' place is given free.
    uint4 x = make_uint4(0, 0, 0, 0);
    if (apart) x = read16(numbers + part::apart);
    coupled();
    if (apart) {
      const std::uint32_t words[4] = {x.x, x.y, x.z, x.w};
      const int key_head = head / (p.HV / p.H);
      couple_exactly<K, true, false>(words, warp, lane, l, l, [&](int channel) {
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
          y.erase[j] = sigmoid(exp2_fast(logit * -log2e), power(shift));
        }
        return y;
      });
    }
    invert(l, block + part::inverse, at + memory::lower, warp, lane,
           gate_barriers::first, [] {});
  }
};

}  // namespace carve::cuda::forward_chunks
