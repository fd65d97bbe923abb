// CARVE's content gate, put on prepared chunks by warpgroups of their own.
//
// The erase gate of a window depends on the mean output of the window before,
//   b = sigmoid(x + W_up W_down m),
// so the erase keys' gate and their couplings L are on the chain from chunk to
// chunk.  They are made here, and T = (I + L)^-1; the walking warpgroups
// meanwhile finish the state and the outputs of the chunk before.
//
// The sum of a chunk's outputs is S^T sum(q) + U^T sum(P), where sum is over
// tokens.  With U = T R it is
//   S^T sum(q) + R^T z,  z = T^T sum(P),
// and z needs only T's diagonal blocks, so it is there long before T and U.
#pragma once

#include "forward/prepare.cuh"

namespace carve::cuda::forward_chunks {

/// Threads that meet at a barrier of the gate's (arch/barrier.cuh) between it
/// and `Walkers` walking warpgroups.
template <int Walkers>
constexpr int with_gate = group*(Walkers + 1);
template <int Walkers>
constexpr int with_solver = group* Walkers + 32;

/// Copies a chunk's logits to global memory as tiles (rows past the end become
/// zeros), by one warpgroup.
template <int K>
__device__ __forceinline__ void copy_logits(const problem& p,
                                            const sequence_span& span, int head,
                                            int first, char* to, int thread) {
  constexpr int pieces = K / 8, rows = group / pieces;
  const int row = thread / pieces, piece = thread % pieces;
  const char* from =
      static_cast<const char*>(p.b.data) +
      offset(p.b, span.batch, span.first + first + row, head) * 2 + piece * 16;
  uint4 x[chunk / rows];
#pragma unroll
  for (int m = 0; m < chunk / rows; ++m) {
    x[m] = make_uint4(0, 0, 0, 0);
    if (first + row + m * rows < span.length)
      x[m] = *reinterpret_cast<const uint4*>(from + m * rows * 2 * p.b.token);
  }
  to += piece / 8 * tile::bytes + swizzled(row, piece % 8);
#pragma unroll
  for (int m = 0; m < chunk / rows; ++m)
    *reinterpret_cast<uint4*>(to + m * rows * 128) = x[m];
}

/// 2^x, finite and not zero, so that it multiplies with infinity or zero.
__device__ __forceinline__ float power(float x) {
  return exp2_fast(max_nan(min_nan(x, 120.f), -120.f));
}
/// The logistic function of minus the logarithm of a product.
__device__ __forceinline__ float sigmoid(float x, float y) {
  return reciprocal(fmaf(x, y, 1.f));
}

/// One thread's part in gating the chunks of one head, in order, by `Groups`
/// warpgroups, of which the first makes T.  One warpgroup, the leader, brings
/// the logits and finds their shifts; it is the only one, or none of two.
template <class In, int K, int V, int Groups>
struct content_gate {
  using tiles = chunk_tiles<K, axis::content>;
  using numbers_of = content_numbers;
  using memory = gate_memory<K, V, Groups>;
  static constexpr int walkers = Groups == 1 ? V / 64 : 1;  // of the block
  static constexpr int threads = Groups * group;
  static constexpr int channels = K / (threads / 32);  // of a warp
  static constexpr int step = 256 / channels;          // rows at a time
  static constexpr int count = chunk / step;           // of a thread's pieces
  static constexpr int batch =
      Groups == 1 || count < 4 ? 2 : 4;            // held at a time
  static constexpr int ranks = 16;                 // taken at a time
  static constexpr int lanes = group / ranks;      // of a row of W_down
  static constexpr int depth = ranks * K / group;  // of a lane, of W_up

  std::uint32_t moved;  // where the thread's first piece lies in tiles
  float mean;           // of the sum
  int length, head;
  shared<memory> at;
  int thread, warp, lane;  // thread: of all; warp: of the warpgroup

  // The thread's pieces are of rows lane % step + m * step.
  __device__ int piece() const {
    return thread / 32 * (channels / 8) + lane / step;
  }

  __device__ void start(const problem& p, const sequence_span& span,
                        int of_head, shared<memory> address, int of_all) {
    thread = of_all;
    warp = __shfl_sync(~0u, thread / 32 % 4, 0);
    lane = thread % 32;
    at = address;
    head = of_head;
    length = static_cast<int>(span.length);
    mean = p.scale / static_cast<float>(p.window);
    moved = piece() / 8 * tile::bytes + swizzled(lane % step, piece() % 8);
  }

  /// T of the two stages stays zero above the diagonal, by the first warpgroup.
  __device__ void clear(shared<tiles[2]> blocks) const {
    for (int s = 0; s < 2; ++s)
      clear_above(blocks[s][&tiles::inverse], warp, lane);
  }
  /// The shifts are zero in the first window.
  __device__ void clear_shifts() const {
    if (own() < K) store(at[&memory::shift], own(), 1.f);
  }

  /// Where block (w, k) of -T_ww L is kept, 16 x 16, fp16, k < w, as two
  /// columns of pieces: the first of each warp in its scratch, which it has
  /// done with.
  __device__ shared<uint4[32]> kept(int w, int k) const {
    if (k == 0) return {at[&memory::inverting][w]};
    return at[&memory::blocks][w == 2 ? 0 : k];
  }

  /// Starts the loads of a chunk's logits (rows past the end become zeros), by
  /// one warpgroup; they arrive at `landed`.
  __device__ void fetch(const problem& p, const sequence_span& span, int first,
                        std::uint32_t landed) const {
    constexpr int pieces = K / 8, rows = group / pieces;
    const int piece = own() % pieces;
    int row = own() / pieces;
    const std::uint32_t to = at[&memory::logits] + piece / 8 * tile::bytes +
                             swizzled(row, piece % 8);
    const char* from =
        static_cast<const char*>(p.b.data) +
        offset(p.b, span.batch, span.first + first + row, head) * 2 +
        piece * 16;
#pragma unroll
    for (int m = 0; m < chunk / rows; ++m) {
      const bool valid = first + row < length;
      copy_async_16(to + m * rows * 128,
                    valid ? from : static_cast<const char*>(p.b.data), valid);
      from += rows * 2 * p.b.token;
      row += rows;
    }
    copy_async_arrive(landed);
  }

  /// e to minus some pieces of the logits and, of more than one warpgroup, the
  /// erase keys that the gate is for, taken ahead.
  struct pieces {
    float x[batch][8], key[batch][8];
  };
  __device__ static void read_piece(float (&to)[8], std::uint32_t from) {
    const uint4 x = read16(from);
    const std::uint32_t w[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 z = unpack<In>(w[e]);
      to[2 * e] = z.x;
      to[2 * e + 1] = z.y;
    }
  }
  __device__ void take_keys(pieces& y, shared<tiles> block, int from) const {
#pragma unroll
    for (int m = 0; m < batch; ++m)
      read_piece(y.key[m], block[&tiles::erase_keys] + moved +
                               (from + m) * step * tile::row_bytes);
  }
  __device__ pieces take(shared<tiles> block, int from) const {
    pieces y = {};
#pragma unroll
    for (int m = 0; m < batch; ++m) {
      read_piece(y.x[m], at[&memory::logits] + moved +
                             (from + m) * step * tile::row_bytes);
#pragma unroll
      for (int e = 0; e < 8; ++e) y.x[m][e] = exp2_fast(y.x[m][e] * -log2e);
    }
    if constexpr (Groups > 1) take_keys(y, block, from);
    return y;
  }

  /// e to minus the shifts of the logits of the channels of the thread's
  /// pieces.
  struct shifts {
    float y[8];
  };
  __device__ shifts current() const {
    shifts s;
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      const float4 y = load<float4>(at[&memory::shift], piece() * 8 + e);
      s.y[e] = y.x;
      s.y[e + 1] = y.y;
      s.y[e + 2] = y.z;
      s.y[e + 3] = y.w;
    }
    return s;
  }

  /// A lane's part of row r of W_down and, from column r on, of its channel's
  /// row of W_up; zero beyond the rank.  By the leader.
  static constexpr int downs = V / lanes / 4, ups = depth / 4;
  __device__ int own() const { return thread % group; }
  __device__ float4 down(const problem& p, int r, int j) const {
    r += own() / lanes;
    if (r >= p.rank) return make_float4(0, 0, 0, 0);
    return reinterpret_cast<const float4*>(
        p.w_down + (static_cast<std::int64_t>(head) * p.rank + r) *
                       V)[own() % lanes + j * lanes];
  }
  static constexpr int moved_channels = K / 4;  // by a warp
  __device__ int moved_channel() const {
    return warp * moved_channels + lane % moved_channels;
  }
  __device__ float4 up(const problem& p, int r, int j) const {
    r += lane / moved_channels * depth + 4 * j;
    if (r >= p.rank) return make_float4(0, 0, 0, 0);
    return *reinterpret_cast<const float4*>(
        p.w_up +
        (static_cast<std::int64_t>(head) * K + moved_channel()) * p.rank + r);
  }
  /// Those of the first ranks.
  struct weights {
    float4 down[downs], up[ups];
  };
  __device__ weights load_weights(const problem& p) const {
    weights w;
#pragma unroll
    for (int j = 0; j < downs; ++j) w.down[j] = down(p, 0, j);
#pragma unroll
    for (int j = 0; j < ups; ++j) w.up[j] = up(p, 0, j);
    return w;
  }

  /// Moves the shifts to W_up W_down m, of the sums in place `which`, by the
  /// leader.  `w` was loaded before the mean was waited for; what is beyond is
  /// not held, to spare registers.  `keep`: where the mean is written, or null.
  __device__ void move(const problem& p, const weights& w, int which,
                       float* keep) const {
    const shared<float[V]> sums = at[&memory::sums][which];
    const shared<float[largest_rank]> inner = at[&memory::inner];
    if (keep != nullptr && own() < V)
      keep[own()] = mean * load<float>(sums, own());
    const auto project = [&](int r, float4 total) {
      float x = mean * ((total.x + total.y) + (total.z + total.w));
#pragma unroll
      for (int d = lanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
      if (own() % lanes == 0) store(inner, r + own() / lanes, x);
    };
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < downs; ++j)
      multiply_add(total, w.down[j], sums[(own() % lanes + j * lanes) * 4]);
    project(0, total);
    if (p.rank > ranks) [[unlikely]]
#pragma unroll 1
      for (int r = ranks; r < p.rank; r += ranks) {
        total = make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (int j = 0; j < downs; ++j)
          multiply_add(total, down(p, r, j),
                       sums[(own() % lanes + j * lanes) * 4]);
        project(r, total);
      }
    sync_group<group>(named::leading);
    const int mine = lane / moved_channels * depth;
    total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < ups; ++j)
      multiply_add(total, w.up[j], inner[mine + j * 4]);
    if (p.rank > ranks) [[unlikely]]
#pragma unroll 1
      for (int r = ranks; r < p.rank; r += ranks)
#pragma unroll 1
        for (int j = 0; j < ups; ++j)
          multiply_add(total, up(p, r, j), inner[mine + r + j * 4]);
    float shift = (total.x + total.y) + (total.z + total.w);
#pragma unroll
    for (int d = moved_channels; d < 32; d *= 2)
      shift += __shfl_xor_sync(~0u, shift, d);
    if (lane < moved_channels)
      store(at[&memory::shift], moved_channel(), power(-log2e * shift));
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
  __device__ __forceinline__ void apply(shared<tiles> block, pieces y,
                                        const shifts& s) const {
#pragma unroll
    for (int from = 0; from < count; from += batch) {
      if constexpr (Groups == 1) take_keys(y, block, from);
      pieces next = {};
      if (from + batch < count) next = take(block, from + batch);
#pragma unroll
      for (int m = 0; m < batch; ++m) {
        std::uint32_t r[4];
#pragma unroll
        for (int e = 0; e < 8; e += 2)
          r[e / 2] =
              pack<In>(sigmoid(y.x[m][e], s.y[e]) * y.key[m][e],
                       sigmoid(y.x[m][e + 1], s.y[e + 1]) * y.key[m][e + 1]);
        write16(block[&tiles::erase_keys] + moved +
                    (from + m) * step * tile::row_bytes,
                make_uint4(r[0], r[1], r[2], r[3]));
      }
      y = next;
    }
  }

  /// L of a chunk whose erase keys have their gate, by the first warpgroup.
  /// `coupled` runs when the products have left the tensor cores.
  template <class Coupled>
  __device__ __forceinline__ void couple(float (&l)[32], const problem& p,
                                         const sequence_span& span, int first,
                                         shared<tiles> block,
                                         shared<numbers_of> numbers,
                                         Coupled&& coupled) const {
    product_fence();
    product_of_tiles<In, K>(l, block[&tiles::erase_keys],
                            block[&tiles::own_keys]);
    product_commit();
    if (warp == 0) scale_sums(numbers);
    const uint4 x = load<uint4>(numbers[&numbers_of::apart], 0);
    product_wait<0>();
    pin(l);
    coupled();
    if ((x.x | x.y | x.z | x.w) != 0) [[unlikely]] {
      const std::uint32_t words[4] = {x.x, x.y, x.z, x.w};
      const int key_head = head / (p.HV / p.H);
      couple_exactly<K, true, false>(words, warp, lane, l, l, [&](int channel) {
        const float shift = load<float>(at[&memory::shift], channel);
        return load_pair<In, false>(p, span, length, first, key_head, head,
                                    lane, channel, [&](int, auto&& b) {
                                      return sigmoid(exp2_fast(b() * -log2e),
                                                     shift);
                                    });
      });
    }
  }

  /// T of L, by the first warpgroup, and on the way z.
  __device__ __forceinline__ void make_inverse(const float (&l)[32],
                                               shared<tiles> block,
                                               shared<numbers_of> numbers,
                                               int stage) const {
    const auto keep = [&](const float(&left)[3][2][4]) {
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        if (k >= warp) continue;
        store_matrices(kept(warp, k)[lane], pack_block(left[k], -1.f));
      }
    };
    const auto meanwhile = [&] {
      if (warp != 0) return;
      solve(block, numbers, at[&memory::solution][stage]);
      arrive_group<with_solver<walkers>>(named::solved + stage);
    };
    invert(l, block[&tiles::inverse], at[&memory::inverting][warp], warp, lane,
           named::inverting, keep, meanwhile);
  }

  /// Divides sum(P) by a power of two near its largest, by one warp.
  __device__ void scale_sums(shared<numbers_of> numbers) const {
    const shared<float[chunk]> sums = numbers[&numbers_of::products_sum];
    const float2 s = load<float2>(sums, 2 * lane);
    float peak = max_nan(fabsf(s.x), fabsf(s.y));
#pragma unroll
    for (int d = 1; d < 32; d *= 2)
      peak = max_nan(peak, __shfl_xor_sync(~0u, peak, d));
    const std::uint32_t exponent = __float_as_uint(peak) & 0x7F800000u;
    const float inverse = __uint_as_float(0x7F000000u - exponent);
    store(sums, 2 * lane, make_float2(s.x * inverse, s.y * inverse));
    if (lane == 0) store(at[&memory::unit], 0, __uint_as_float(exponent));
  }

  /// z = T^T s, written at `to`, by the first warp.  With y = s - (T_ww L)^T y,
  /// blocks of 16 from the last to the first, it is z_w = T_ww^T y_w.  The
  /// products are those of mma: lane 4i + c has of a vector's block the numbers
  /// i and i + 8, each as two that add up to it, the products of fp16's part of
  /// y and of what that leaves.
  __device__ __forceinline__ void solve(shared<tiles> block,
                                        shared<numbers_of> numbers,
                                        shared<float[chunk]> to) const {
    const int row = (lane & 7) + 8 * (lane >> 4), piece = lane >> 3 & 1;
    fragment m[3][3], t[4];
    float y[4][4];
#pragma unroll
    for (int w = 3; w >= 0; --w) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        y[w][2 * e] = load<float>(numbers[&numbers_of::products_sum],
                                  16 * w + 8 * e + lane / 4);
        y[w][2 * e + 1] = 0;
      }
#pragma unroll
      for (int k = 0; k < w; ++k)
        m[w - 1][k] = load_matrices_transposed(kept(w, k)[piece * 16 + row]);
      t[w] = load_matrices_transposed(block[&tiles::inverse] +
                                      swizzled(16 * w + row, 2 * w + piece));
    }
    const float unit = load<float>(at[&memory::unit], 0);
#pragma unroll
    for (int w = 3; w >= 0; --w) {
      const float low = y[w][0] + y[w][1], high = y[w][2] + y[w][3];
      const int from = lane % 4 * 8;
      std::uint32_t b[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float y0 = __shfl_sync(~0u, e ? high : low, from);
        const float y1 = __shfl_sync(~0u, e ? high : low, from + 4);
        b[e] = pack<__half>(y0, y1);
        const float2 near = unpack<__half>(b[e]);
        if (lane & 4) b[e] = pack<__half>(y0 - near.x, y1 - near.y);
      }
#pragma unroll
      for (int k = 0; k < w; ++k)
        multiply<__half>(y[k], m[w - 1][k], b[0], b[1]);
      float z[4] = {};
      multiply<__half>(z, t[w], b[0], b[1]);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (lane % 4 == 0)
          store(to, 16 * w + 8 * e + lane / 4,
                unit * (z[2 * e] + z[2 * e + 1]));
    }
  }
};

}  // namespace carve::cuda::forward_chunks
