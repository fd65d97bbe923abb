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

#include <cstdint>
#include <type_traits>

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/product.cuh"
#include "chunk/couplings.cuh"
#include "chunk/inverse.cuh"
#include "common.cuh"
#include "forward/memory.cuh"

namespace carve::cuda::forward_chunks {

/// One thread's part in preparing the chunks of one head, in order, or of
/// `Every` one.
template <class In, int K, axis Decay, axis Erase, int Every = 1,
          purpose For = purpose::outputs>
struct preparation {
  static constexpr bool content = Erase == axis::content;
  static constexpr bool channels = Decay == axis::channel;
  static constexpr bool reads = For == purpose::outputs;
  static constexpr bool states = For == purpose::states;
  static_assert(!states || (!channels && Erase == axis::head));
  using operand = std::conditional_t<states, __half, In>;  // of the walk
  using tiles = chunk_tiles<K, Erase, reads>;
  using numbers_of = chunk_numbers<Erase>;
  using memory = preparing_memory<K, Decay, content, reads>;

  // What `fetch` reads next: the thread's first row and piece of a tensor.
  const char *q, *k, *b, *g;
  const In* scalar_gates;  // of token 0 (content: the write gates)
  const float* decays;     // likewise, one number a token
  int left;                // rows of the sequence from the next chunk on
  int length;              // tokens of the sequence
  shared<memory> own;
  int barrier;  // named barrier of the warpgroup
  int thread, warp, lane;

  static constexpr int pieces = K / 8;         // of 16 bytes, in 16-bit rows
  static constexpr int step = group / pieces;  // rows between a thread's
  static constexpr int log_pieces = K / 4;     // in fp32 rows
  static constexpr int log_step = group / log_pieces;

  __device__ void start(const problem& p, const sequence_span& span, int head,
                        int first, shared<memory> own_memory, int named_barrier,
                        int thread_of_group) {
    thread = thread_of_group;
    barrier = named_barrier;
    warp = __shfl_sync(~0u, thread / 32, 0);
    lane = thread % 32;
    own = own_memory;
    length = static_cast<int>(span.length);
    left = length - first;
    const int key_head = head / (p.HV / p.H);
    const std::int64_t token = span.first + first;
    const auto rows = [&](const tensor& x, int of_head, int size, int per_row) {
      return static_cast<const char*>(x.data) +
             offset(x, span.batch, token + thread / per_row, of_head) * size +
             thread % per_row * 16;
    };
    if constexpr (reads) q = rows(p.q, key_head, 2, pieces);
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
  using log_rows = typename memory::log_rows;
  __device__ shared<log_rows> logs(shared<tiles> block, int b) const {
    const shared<log_rows[memory::lent]> lent = {
        reads ? std::uint32_t{block[&tiles::products]}
              : std::uint32_t{block[&tiles::inverse]}};
    if constexpr (memory::kept == 0)
      return lent[b];
    else
      return b < memory::lent ? lent[b] : own[&memory::logs][b - memory::lent];
  }
  /// The keys on their way to k*2^-y.
  __device__ shared<tile[K / 64]> keys(shared<tiles> block) const {
    if constexpr (content)
      return block[&tiles::own_keys];
    else if constexpr (channels)
      return own[&memory::own_keys];
    else
      return block[&tiles::erase_keys];
  }
  /// Content, in T's last rows until it is there: the queries summed over the
  /// rows of each thread.
  __device__ static shared<float2[group]> sums(shared<tiles> block) {
    return {block[&tiles::inverse] + 48 * tile::row_bytes};
  }

  /// Starts the loads of the next chunk (rows past the end become zeros).
  __device__ void fetch(const problem& p, shared<tiles> block) {
    const std::uint32_t within = (thread % pieces / 8) * tile::bytes +
                                 swizzled(thread / pieces, thread % 8);
    const auto rows = [&](const char*& from, const tensor& x,
                          shared<tile[K / 64]> to) {
      const char* next = from;
#pragma unroll
      for (int m = 0; m < chunk / step; ++m) {
        const bool valid = thread / pieces + m * step < left;
        copy_async_16(to + within + m * step * tile::row_bytes,
                      valid ? next : static_cast<const char*>(x.data), valid);
        next += step * 2 * x.token;
      }
      from += Every * chunk * 2 * x.token;
    };
    if constexpr (reads) rows(q, p.q, block[&tiles::queries]);
    rows(k, p.k, keys(block));
    if constexpr (Erase == axis::channel)
      rows(b, p.b, block[&tiles::erase_keys]);
    if constexpr (channels) {
      const char* next = g;
#pragma unroll
      for (int m = 0; m < chunk / log_step; ++m) {
        const bool valid = thread / log_pieces + m * log_step < left;
        copy_async_16(
            logs(block, m * log_step /
                            16)[(thread / log_pieces + m * log_step % 16) * K +
                                thread % log_pieces * 4],
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

  /// Replaces the log decays by y, and notes both halves' totals and which
  /// channels leave the range.
  __device__ __forceinline__ void sum_logs(shared<tiles> block) const {
    if (K < 128 && thread >= K) return;
    const int pair = thread % (K / 2), late = thread / (K / 2);
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      // From the middle of the chunk outwards.
      const shared<float> at = late ? logs(block, 2 + b)[2 * pair]
                                    : logs(block, 1 - b)[15 * K + 2 * pair];
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
    store(own[&memory::totals][0], late * K + 2 * pair, sum);
    const std::uint32_t even = __ballot_sync(~0u, sum.x < -widest_factor<In>);
    const std::uint32_t odd = __ballot_sync(~0u, sum.y < -widest_factor<In>);
    if (lane == 0)
      store(own[&memory::apart][late], pair / 32 * 2, make_uint2(even, odd));
  }

  /// Scales queries, keys and erase keys of two channels by the decays, in
  /// place, and writes the tail keys (and, content, sums of the queries).
  /// `Apart`: some channels of the chunk are.
  template <bool Apart>
  __device__ __forceinline__ void scale_channels(
      shared<tiles> block, shared<numbers_of> numbers) const {
    constexpr int pairs = K / 2, rows = chunk * pairs / group;
    const int pair = thread % pairs, first = thread / pairs * rows;
    const float2 d0 = load<float2>(own[&memory::totals][0], 2 * pair);
    const float2 d1 = load<float2>(own[&memory::totals][0], K + 2 * pair);
    const bool apart[2] = {Apart && fminf(d0.x, d1.x) < -widest_factor<In>,
                           Apart && fminf(d0.y, d1.y) < -widest_factor<In>};
    // The reference, log2, from the chunk's start; the middle from there.
    const float reference[2] = {apart[0] ? 0.f : rintf(d0.x),
                                apart[1] ? 0.f : rintf(d0.y)};
    const float middle[2] = {d0.x - reference[0], d0.y - reference[1]};
    const float after[2] = {exp2_fast(d1.x + middle[0]),
                            exp2_fast(d1.y + middle[1])};
    if (first == 0) {
      store(numbers[&numbers_of::before], 2 * pair,
            pack<__nv_bfloat16>(exp2_fast(reference[0]),
                                exp2_fast(reference[1])));
      store(numbers[&numbers_of::after], 2 * pair,
            make_float2(after[0], after[1]));
    }
    const std::uint32_t within = pair / 32 * tile::bytes + pair % 32 / 4 * 16 +
                                 pair % 4 * 4 + first * tile::row_bytes;
    [[maybe_unused]] float2 sum = make_float2(0, 0);
#pragma unroll 1
    for (int s = 0; s < rows; s += 8) {
      const std::uint32_t at = block + within + s * tile::row_bytes;
      const std::uint32_t key_at = keys(block) + within + s * tile::row_bytes;
      const shared<log_rows> y_rows = logs(block, (first + s) / 16);
      // The block, moved to the thread's place in row t of each tile.
      const auto moved = [&](int t) {
        return shared<tiles>{(at ^ (t << 4)) + t * tile::row_bytes};
      };
      const auto key = [&](int t) {
        return (key_at ^ (t << 4)) + t * tile::row_bytes;
      };
      float2 y[8];
      std::uint32_t qw[8], kw[8], bw[8];
      float beta[8];
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        y[t] = load<float2>(y_rows, ((first + s) % 16 + t) * K + 2 * pair);
        if constexpr (reads) qw[t] = read_word(moved(t)[&tiles::queries]);
        kw[t] = read_word(key(t));
        if constexpr (Erase == axis::channel)
          bw[t] = read_word(moved(t)[&tiles::erase_keys]);
      }
      if constexpr (Erase == axis::head) {
#pragma unroll
        for (int t = 0; t < 8; t += 4) {
          const float4 x =
              load<float4>(numbers[&numbers_of::write], first + s + t);
          beta[t] = x.x;
          beta[t + 1] = x.y;
          beta[t + 2] = x.z;
          beta[t + 3] = x.w;
        }
      }
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        const float2 kv = unpack<In>(kw[t]);
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
        if constexpr (reads) {
          const float2 qv = unpack<In>(qw[t]);
          const float2 query = make_float2(qv.x * up[0], qv.y * up[1]);
          if constexpr (content) {
            sum.x += query.x;
            sum.y += query.y;
          }
          write_word(moved(t)[&tiles::queries], pack<In>(query.x, query.y));
        }
        write_word(moved(t)[&tiles::erase_keys], pack<In>(r[0], r[1]));
        write_word(key(t), pack<In>(kv.x * down[0], kv.y * down[1]));
        write_word(moved(t)[&tiles::tail_keys],
                   pack<__half>(kv.x * tail[0], kv.y * tail[1]));
      }
    }
    if constexpr (content) store(sums(block), thread, sum);
  }

  /// The same for decays of one number per token: rows are scaled by the
  /// factors that `run` left, which begin at `first`.
  template <class To>
  __device__ __forceinline__ void scale_rows(
      shared<tile[K / 64]> from, shared<tile[K / 64]> to,
      shared<typename memory::log_sums> factors, int first) const {
    const std::uint32_t at = (thread % pieces / 8) * tile::bytes +
                             swizzled(thread / pieces, thread % 8);
    constexpr int rows = chunk / step, at_once = 4;
#pragma unroll 1
    for (int m = 0; m < rows; m += at_once) {
      uint4 x[at_once];
      float factor[at_once];
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        x[j] = read16(from + at + (m + j) * step * tile::row_bytes);
        factor[j] =
            load<float>(factors, first + thread / pieces + (m + j) * step);
      }
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        const auto scaled = [&](std::uint32_t w) {
          const float2 v = unpack<In>(w);
          return pack<To>(v.x * factor[j], v.y * factor[j]);
        };
        write16(to + at + (m + j) * step * tile::row_bytes,
                make_uint4(scaled(x[j].x), scaled(x[j].y), scaled(x[j].z),
                           scaled(x[j].w)));
      }
    }
  }

  /// Writes P, zero above the diagonal.
  __device__ __forceinline__ void store_products(shared<tiles> block,
                                                 const float (&m)[32]) const {
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
      store_matrices(block[&tiles::products] + swizzled(row, j + (lane >> 4)),
                     x);
    }
  }

  /// Sums of the queries' channels and of P's columns over the tokens.
  __device__ __forceinline__ void sum_rows(shared<tiles> block,
                                           shared<numbers_of> numbers) const {
    constexpr int pairs = K / 2;
    if (thread < pairs) {
      float2 sum = make_float2(0, 0);
#pragma unroll
      for (int m = 0; m < group; m += pairs) {
        const float2 x = load<float2>(sums(block), thread + m);
        sum.x += x.x;
        sum.y += x.y;
      }
      store(numbers[&numbers_of::queries_sum], 2 * thread, sum);
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
              block[&tiles::products] +
              swizzled(16 * t + (lane & 15), 2 * warp + (lane >> 4))));
    }
    if (lane < 4)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        store(numbers[&numbers_of::products_sum], 16 * warp + 8 * j + 2 * lane,
              make_float2(sum[j][0], sum[j][1]));
  }

  /// Prepares the chunk that starts at token `first` and whose loads were
  /// started.  `meanwhile` runs when loads into the scratch are welcome again.
  template <class Meanwhile>
  __device__ __forceinline__ void run(const problem& p, int first,
                                      shared<tiles> block,
                                      shared<numbers_of> numbers,
                                      const scalars& one,
                                      const sequence_span& span, int head,
                                      Meanwhile&& meanwhile) {
    const int i = lane >> 2, c = lane & 3;
    // Write gates of one number per token, the erase gates that go with them.
    if constexpr (Erase != axis::channel)
      if (warp == 0)
        store(numbers[&numbers_of::write], 2 * lane,
              make_float2(one.gate(0), one.gate(1)));
    copy_async_wait<0>();

    [[maybe_unused]] const shared<typename memory::log_sums> factors =
        own[&memory::totals][first / (Every * chunk) & 1];
    float m[32];
    [[maybe_unused]] float l[32];
    if constexpr (channels) {
      sync_group<group>(barrier);
      sum_logs(block);
      sync_group<group>(barrier);
      std::uint32_t apart[4];
      {
        const uint4 x = load<uint4>(own[&memory::apart][0], 0);
        const uint4 y = load<uint4>(own[&memory::apart][1], 0);
        apart[0] = x.x | y.x;
        apart[1] = x.y | y.y;
        apart[2] = K > 64 ? x.z | y.z : 0;
        apart[3] = K > 64 ? x.w | y.w : 0;
      }
      const bool any = (apart[0] | apart[1] | apart[2] | apart[3]) != 0;
      if constexpr (content)
        if (thread == 0)
          store(numbers[&numbers_of::apart], 0,
                make_uint4(apart[0], apart[1], apart[2], apart[3]));
      if (any)
        scale_channels<true>(block, numbers);
      else
        scale_channels<false>(block, numbers);
      fence_async_proxy();
      sync_group<group>(barrier);
      product_fence();
      if constexpr (!content)
        product_of_tiles<In, K>(l, block[&tiles::erase_keys], keys(block));
      if constexpr (reads)
        product_of_tiles<In, K>(m, block[&tiles::queries], keys(block));
      product_commit();
      if constexpr (content) meanwhile();
      product_wait<0>();
      if constexpr (!content) pin(l);
      if constexpr (reads) pin(m);
      if (any) {
        const int key_head = head / (p.HV / p.H);
        couple_exactly<K, !content, reads>(
            apart, warp, lane, l, m, [&](int channel) {
              return load_pair<In, reads>(
                  p, span, length, first, key_head, head, lane, channel,
                  [&](int j, auto&& b) {
                    if constexpr (Erase == axis::channel)
                      return b();
                    else
                      return one.gate(j);
                  });
            });
      }
    } else {
      // Prefixes of the logs in blocks of 16, for tokens 2 * lane and + 1, the
      // blocks' totals, and what is before and after the own block.
      float prefix[2] = {0, 0}, total[4] = {0, 0, 0, 0};
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
        const float before = (b > 0 ? total[0] : 0.f) +
                             (b > 1 ? total[1] : 0.f) +
                             (b > 2 ? total[2] : 0.f);
        const float after = (b < 3 ? total[3] : 0.f) +
                            (b < 2 ? total[2] : 0.f) + (b < 1 ? total[1] : 0.f);
        const float mine = b == 0   ? total[0]
                           : b == 1 ? total[1]
                           : b == 2 ? total[2]
                                    : total[3];
        const auto two = [&](int which, float x, float y) {
          store(factors, which * chunk + 2 * lane, make_float2(x, y));
        };
        const float up[2] = {exp2_fast(before + prefix[0]),
                             exp2_fast(before + prefix[1])};
        two(0, prefix[0], prefix[1]);
        two(1, up[0], up[1]);
        const auto gate = [&](bool there, int j) {
          return there ? one.gate(j) : 1.f;
        };
        two(2, up[0] * gate(!states, 0), up[1] * gate(!states, 1));
        two(3, exp2_fast((mine - prefix[0]) + after) * gate(states, 0),
            exp2_fast((mine - prefix[1]) + after) * gate(states, 1));
        two(4, exp2_fast(mine - prefix[0]), exp2_fast(mine - prefix[1]));
      }
      const float all =
          exp2_fast((total[0] + total[1]) + (total[2] + total[3]));
      if (thread == 0) store(numbers[&numbers_of::after], 0, all);
      fence_async_proxy();
      sync_group<group>(barrier);
      product_fence();
      const auto lower = [&] {
        product_of_tiles<In, K>(l, block[&tiles::erase_keys],
                                block[&tiles::erase_keys]);
      };
      // L and P at once where registers allow, else L after P is stored.
      constexpr bool at_once = Every == 1 || !reads;
      if constexpr (at_once) lower();
      if constexpr (reads)
        product_of_tiles<In, K>(m, block[&tiles::queries],
                                block[&tiles::erase_keys]);
      product_commit();
      // The decay from the end of block b to the start of the own; between
      // tokens of two blocks it is that, from the one token to its block's end
      // and from the own block's start to the other.
      float between[3] = {1, 1, 1};
      if (warp == 3) between[0] = exp2_fast(total[1] + total[2]);
      if (warp == 3) between[1] = exp2_fast(total[2]);
      if (warp == 2) between[0] = exp2_fast(total[1]);
      float row_log[2], row_decay[2], gate[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = 16 * warp + i + 8 * j;
        row_log[j] = load<float>(factors, row);
        row_decay[j] = exp2_fast(row_log[j]);
        gate[j] = load<float>(numbers[&numbers_of::write], row);
      }
      product_wait<0>();
      const auto decay = [&](float(&x)[32], const float(&row)[2]) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int b = j / 2;
          if (b > warp) continue;
          float f[4] = {row[0], row[0], row[1], row[1]};
          if constexpr (states) {
            const float2 column =
                load<float2>(numbers[&numbers_of::write], 8 * j + 2 * c);
            f[0] = f[2] = column.x;
            f[1] = f[3] = column.y;
          }
          if constexpr (Decay == axis::head) {
            if (b == warp) {
              const float2 column = load<float2>(factors, 8 * j + 2 * c);
#pragma unroll
              for (int e = 0; e < 4; ++e)
                f[e] *= exp2_fast(fminf(
                    row_log[e >> 1] - (e & 1 ? column.y : column.x), 0.f));
            } else if (b < 3) {
              float2 column = load<float2>(factors, 4 * chunk + 8 * j + 2 * c);
              column.x *= between[b];
              column.y *= between[b];
#pragma unroll
              for (int e = 0; e < 4; ++e)
                f[e] *= row_decay[e >> 1] * (e & 1 ? column.y : column.x);
            }
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) x[4 * j + e] *= f[e];
        }
      };
      constexpr float ones[2] = {1, 1};
      if constexpr (reads) pin(m);
      if constexpr (at_once) {
        pin(l);
        if constexpr (reads && Decay == axis::head) decay(m, ones);
        decay(l, gate);
      } else {
        if constexpr (Decay == axis::head) decay(m, ones);
        store_products(block, m);
        product_fence();
        lower();
        product_commit();
        product_wait<0>();
        pin(l);
        decay(l, gate);
      }
    }
    if constexpr (Every == 1 && reads) store_products(block, m);
    if constexpr (content) {
      sync_group<group>(barrier);
      sum_rows(block, numbers);
    } else {
      clear_above(block[&tiles::inverse], warp, lane);
      shared<inverse_scratch[4]> scratch = {block[&tiles::tail_keys]};
      if constexpr (channels) scratch = own[&memory::inverting];
      invert(
          l, block[&tiles::inverse], scratch[warp], warp, lane, barrier,
          [](auto&) {}, meanwhile);
      if constexpr (!channels) {
        const shared<tile[K / 64]> keys = block[&tiles::erase_keys];
        scale_rows<__half>(keys, block[&tiles::tail_keys], factors, 3 * chunk);
        scale_rows<operand>(keys, keys, factors, 2 * chunk);
        if constexpr (reads && Decay == axis::head) {
          const shared<tile[K / 64]> queries = block[&tiles::queries];
          scale_rows<In>(queries, queries, factors, chunk);
        }
      }
    }
  }
};

}  // namespace carve::cuda::forward_chunks
