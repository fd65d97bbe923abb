// The reverse walk (reverse.cuh): the warpgroups that walk, holding dS^T, bring
// q, k and do and write dv.
#pragma once

#include "backward/reverse.cuh"

namespace carve::cuda::full_backward {

/// What the walking warpgroups do with whole rows: bring q, k and do of a
/// chunk, turn them into what the products take, and write dv.
template <class In, int K, int V>
struct token_bringer {
  using memory = reverse_memory<K, V>;
  using tokens_of = typename memory::token_tiles;
  static constexpr int threads = memory::walkers * group;
  static constexpr std::integral_constant<int, K> of_keys = {};
  static constexpr std::integral_constant<int, V> of_values = {};
  const problem& p;
  const gradients& d;
  const sequence_span& span;
  shared<memory> m;
  int head, thread, warp;  // of all that walk
  int length, chunks;
  std::uint32_t peak = 0;  // bits of the largest cotangent met so far
  float unscale = 1;       // of the chunk converted last
  // Log decays and bits of the gates of tokens 2 lane and + 1, by the first
  // warp; past the end those of the last.
  float log[2] = {0, 0};
  unsigned gate[2];

  __device__ token_bringer(const problem& the_problem,
                           const gradients& the_gradients,
                           const sequence_span& the_span, int the_head,
                           shared<memory> the_memory, int walker,
                           int warp_of_group, int thread_of_group)
      : p(the_problem),
        d(the_gradients),
        span(the_span),
        m(the_memory),
        head(the_head),
        thread(walker * group + thread_of_group),
        warp(4 * walker + warp_of_group),
        length(static_cast<int>(the_span.length)),
        chunks((length + chunk - 1) / chunk) {}

  /// A thread has pieces of 16 bytes of rows `step` apart.
  template <int Channels>
  struct pieces {
    static constexpr int of_row = Channels / 8, step = threads / of_row;
    static constexpr int count = chunk / step;
    static_assert(step % 8 == 0);
  };
  template <int Channels, class Use>
  __device__ __forceinline__ void each_piece(
      std::integral_constant<int, Channels>, Use&& use) const {
    using own = pieces<Channels>;
    const std::uint32_t within = thread % own::of_row / 8 * tile::bytes +
                                 swizzled(thread / own::of_row, thread % 8);
#pragma unroll
    for (int j = 0; j < own::count; ++j)
      use(within + j * own::step * tile::row_bytes, j);
  }

  /// The largest of all that walk.
  __device__ __forceinline__ std::uint32_t largest(std::uint32_t most,
                                                   int lane) const {
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) store(m[&memory::peaks], warp, most);
    sync_group<threads>(named::peaks);
#pragma unroll
    for (int w = 0; w < memory::walking_warps; ++w)
      most = max(most, load<std::uint32_t>(m[&memory::peaks], w));
    return most;
  }

  template <int Channels>
  __device__ __forceinline__ void bring(
      const tensor& x, int of_head, int first,
      std::integral_constant<int, Channels> channels, std::uint32_t to) const {
    using own = pieces<Channels>;
    int token = first + thread / own::of_row;
    const std::int64_t step = 2 * own::step * x.token;
    const char* const base = static_cast<const char*>(x.data) +
                             2 * offset(x, span.batch, span.first, of_head);
    const char* from = base + 2 * token * x.token + thread % own::of_row * 16;
    each_piece(channels, [&](std::uint32_t within, int) {
      const bool valid = token < length;
      copy_async_16(to + within, valid ? from : base, valid);
      token += own::step;
      from += step;
    });
  }

  /// Starts the loads of a chunk; rows past the end become zeros.
  __device__ __forceinline__ void fetch(int turn) {
    const int first = (chunks - 1 - turn) * chunk;
    const int key_head = head / (p.HV / p.H);
    const shared<tokens_of> to = m[&memory::tokens][turn & 1];
    bring(p.q, key_head, first, of_keys, to[&tokens_of::q]);
    bring(p.k, key_head, first, of_keys, to[&tokens_of::k]);
    bring(d.d_o, head, first, of_values, to[&tokens_of::d_o]);
    copy_async_commit();
    if (warp != 0) return;
    // Left as they are, so that nothing waits for them yet.
    const In* const gates = static_cast<const In*>(p.beta.data) +
                            offset(p.beta, span.batch, span.first, head);
    const float* const logs = static_cast<const float*>(p.g.data) +
                              offset(p.g, span.batch, span.first, head);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = min(first + 2 * (thread % 32) + j, length - 1);
      gate[j] = __ldg(reinterpret_cast<const unsigned short*>(gates) +
                      token * p.beta.token);
      if (p.family == family::gdn) log[j] = __ldg(logs + token * p.g.token);
    }
  }

  /// To fp16, times f; all is read before any is written.
  template <int Channels>
  __device__ __forceinline__ void convert_tiles(
      std::integral_constant<int, Channels> channels, std::uint32_t at,
      float f) const {
    uint4 x[pieces<Channels>::count];
    each_piece(channels, [&](std::uint32_t within, int j) {
      x[j] = read16(at + within);
    });
    each_piece(channels, [&](std::uint32_t within, int j) {
      const std::uint32_t y[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
      std::uint32_t z[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 v = unpack<In>(y[e]);
        z[e] = pack<__half>(f * v.x, f * v.y);
      }
      write16(at + within, make_uint4(z[0], z[1], z[2], z[3]));
    });
  }

  /// Makes what was fetched ready.
  __device__ __forceinline__ void convert(int turn) {
    const shared<tokens_of> tiles = m[&memory::tokens][turn & 1];
    const shared<reverse_numbers> numbers = m[&memory::numbers][turn & 1];
    const int lane = thread % 32;
    copy_async_wait<0>();
    // The largest magnitude: its bits but for the sign, as an integer.
    std::uint32_t most = 0;
    each_piece(of_values, [&](std::uint32_t within, int) {
      const uint4 x = read16(tiles[&tokens_of::d_o] + within);
      most = __vmaxu2(__vmaxu2(most, x.x & 0x7FFF7FFFu), x.y & 0x7FFF7FFFu);
      most = __vmaxu2(__vmaxu2(most, x.z & 0x7FFF7FFFu), x.w & 0x7FFF7FFFu);
    });
    most = max(most & 0xFFFFu, most >> 16);
    if (warp == 0) {
      const int left = length - (chunks - 1 - turn) * chunk - 2 * lane;
      const float log0 = left > 0 ? log_decay(log[0]) : 0.f;
      const float log1 = left > 1 ? log_decay(log[1]) : 0.f;
      float sum = log0 + log1;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
      }
      store(numbers[&reverse_numbers::bits], 2 * lane,
            make_float2(sum - log1, sum));
      store(numbers[&reverse_numbers::beta], 2 * lane,
            make_float2(left > 0 ? unpack<In>(gate[0]).x : 0.f,
                        left > 1 ? unpack<In>(gate[1]).x : 0.f));
    }
    if constexpr (!std::is_same_v<In, __half>) {
      convert_tiles(of_keys, tiles[&tokens_of::q], 1.f);
      convert_tiles(of_keys, tiles[&tokens_of::k], 1.f);
    }
    peak = max(peak, __float_as_uint(unpack<In>(largest(most, lane)).x));
    const float2 scale = scale_of(peak);
    if (thread == 0)
      write16(numbers[&reverse_numbers::scale],
              make_uint4(__float_as_uint(scale.x), __float_as_uint(scale.y),
                         __float_as_uint(scale.x * unscale), 0));
    unscale = scale.y;
    convert_tiles(of_values, tiles[&tokens_of::d_o], scale.x);
    fence_async_proxy();
    barrier_arrive_warp(m[&memory::converted], lane);
  }

  /// Writes dv, which is z.
  __device__ __forceinline__ void write_dv(int turn, float f) const {
    if (d.dv.data == nullptr) return;
    using own = pieces<V>;
    int token = (chunks - 1 - turn) * chunk + thread / own::of_row;
    In* to = static_cast<In*>(d.dv.data) +
             offset(d.dv, span.batch, span.first + token, head) +
             thread % own::of_row * 8;
    each_piece(of_values, [&](std::uint32_t within, int) {
      const uint4 x = read16(m[&memory::z] + within);
      const std::uint32_t a[4] = {x.x, x.y, x.z, x.w};
      std::uint32_t b[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 y = unpack<__half>(a[e]);
        b[e] = pack<In>(y.x * f, y.y * f);
      }
      if (token < length)
        *reinterpret_cast<uint4*>(to) = make_uint4(b[0], b[1], b[2], b[3]);
      token += own::step;
      to += own::step * d.dv.token;
    });
  }
};

/// One warpgroup takes dS^T of 64 value channels through all chunks, backwards.
template <class In, int K, int V>
__device__ __forceinline__ void walk_back(const problem& p, const gradients& d,
                                          const sequence_span& span,
                                          int sequence, int head,
                                          shared<reverse_memory<K, V>> m,
                                          int walker, int thread) {
  using memory = reverse_memory<K, V>;
  using tokens_of = typename memory::token_tiles;
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  const int of_all = 4 * walker + warp;
  int lane = thread % 32;
  const int length = static_cast<int>(span.length);
  const int chunks = (length + chunk - 1) / chunk;
  // dS^T: rows i and i + 8 of the warp's 16, columns 8j + 2c and + 1.
  float state[K / 2];
  const auto state_at = [&] {
    return (static_cast<std::int64_t>(sequence) * p.HV + head) * K * V +
           2 * (lane & 3) * V + 16 * of_all + (lane >> 2);
  };
  std::uint32_t most = 0;
  if (d.d_final_state != nullptr) {
    const float* from = d.d_final_state + state_at();
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = from[(8 * j + (e & 1)) * V + 8 * (e >> 1)];
        state[4 * j + e] = x;
        most = max(most, __float_as_uint(x) & 0x7FFFFFFFu);
      }
  } else {
#pragma unroll
    for (int j = 0; j < K / 2; ++j) state[j] = 0;
  }

  token_bringer<In, K, V> tokens(p, d, span, head, m, walker, warp, thread);
  tokens.peak = tokens.largest(most, lane);
  sync_group<tokens.threads>(named::peaks);  // they may be overwritten
  if (chunks > 0) {
    tokens.fetch(0);
    tokens.convert(0);
  }

  const shared<tile[K / 64]> own_S = m[&memory::S][walker],
                             own_dS = m[&memory::dS][walker];
  // What the state has yet to be multiplied by: the decay of the first token of
  // the chunk that it went through last; and what undoes its scale.
  float pending = 1, unscale = 1;
#pragma unroll 1
  for (int turn = 0; turn < chunks; ++turn) {
    const int phase = turn & 1;
    const shared<tokens_of> tiles = m[&memory::tokens][phase];
    const shared<reverse_numbers> numbers = m[&memory::numbers][phase];
    forget(lane);
    const int c = lane & 3;
    const std::uint32_t lane_rows = own_rows(warp, lane);
    const std::uint32_t lane_columns = own_columns(warp, lane);
    const std::uint32_t own_x = m[&memory::x][walker] + lane_columns,
                        own_z = m[&memory::z][walker] + lane_columns;
    const std::uint32_t d_o = tiles[&tokens_of::d_o][walker] + lane_columns;
    barrier_wait(m[&memory::prepared], phase);
    const float first = load<float>(numbers[&reverse_numbers::bits], 0);
    const float last = load<float>(numbers[&reverse_numbers::bits], chunk - 1);
    unscale = read4(numbers[&reverse_numbers::unscale]);
    {
      const float f = pending * read4(numbers[&reverse_numbers::rescale]);
      if (turn > 0) barrier_wait(m[&memory::dS_used], phase ^ 1);
#pragma unroll
      for (int j = 0; j < K / 16; ++j) {
        fragment x;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float* const y = state + 8 * j + 2 * e;
          y[0] *= f;
          y[1] *= f;
          x.r[e] = pack<__half>(y[0], y[1]);
        }
        store_matrices(own_dS + block_of(lane_rows, j), x);
      }
    }
    fence_async_proxy();
    barrier_arrive_warp(m[&memory::dS_full], lane);
    sync_group<group>(named::walk + walker);
    float u[32];
    product_fence();
    product_of_tiles<__half, K>(u, own_dS, tiles[&tokens_of::k]);
    product_commit();
    {
      const float rest = exp2_fast(last - first);
#pragma unroll
      for (int j = 0; j < K / 2; ++j) state[j] *= rest;
    }
    product_wait<0>();
    pin(u);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 bits =
          load<float2>(numbers[&reverse_numbers::bits], 8 * j + 2 * c);
      const float2 f =
          make_float2(exp2_fast(last - bits.x), exp2_fast(last - bits.y));
      u[4 * j] *= f.x;
      u[4 * j + 1] *= f.y;
      u[4 * j + 2] *= f.x;
      u[4 * j + 3] *= f.y;
    }
    std::uint32_t outer[16];  // do^T
    const auto load_outer = [&] {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const fragment x = load_matrices_transposed(d_o + 2048 * j);
#pragma unroll
        for (int e = 0; e < 4; ++e) outer[4 * j + e] = x.r[e];
      }
    };
    load_outer();
    product_fence();
    add_product_across<__half>(u, outer, m[&memory::P]);
    product_commit();
    product_wait<0>();
    pin(u);
    barrier_arrive_warp(m[&memory::P_used], lane);

    // The sums of dU x over the channels, and b dU.
    float2 sums;
    {
      float columns[16];
      barrier_wait(m[&memory::x_full], phase);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const fragment x = load_matrices_transposed(own_x + 2048 * j);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 a = unpack<__half>(x.r[2 * h]),
                       b = unpack<__half>(x.r[2 * h + 1]);
          const float* const y = u + 8 * j + 4 * h;
          columns[4 * j + 2 * h] = fmaf(a.x, y[0], b.x * y[2]);
          columns[4 * j + 2 * h + 1] = fmaf(a.y, y[1], b.y * y[3]);
        }
      }
      barrier_arrive_warp(m[&memory::x_used], lane);
      sums = sum_columns(columns, lane);
    }
    std::uint32_t operand[16];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 beta =
          load<float2>(numbers[&reverse_numbers::beta], 8 * j + 2 * c);
      operand[2 * j] = pack<__half>(u[4 * j] * beta.x, u[4 * j + 1] * beta.y);
      operand[2 * j + 1] =
          pack<__half>(u[4 * j + 2] * beta.x, u[4 * j + 3] * beta.y);
    }
    barrier_wait(m[&memory::inverse_full], phase);
    product_fence();
    add_product_across<__half>(u, operand, m[&memory::inverse], false);
    product_commit();
    // The decay from the first token, of the lane's tokens: dS is made but for
    // that token's.
    const auto decay_from_first = [&](int j) {
      const float2 bits =
          load<float2>(numbers[&reverse_numbers::bits], 8 * j + 2 * c);
      return make_float2(exp2_fast(bits.x - first), exp2_fast(bits.y - first));
    };
    load_outer();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 f = decay_from_first(j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 a = unpack<__half>(outer[2 * j + h]);
        outer[2 * j + h] =
            pack<__half>(a.x * (p.scale * f.x), a.y * (p.scale * f.y));
      }
    }
    product_fence();
    add_product_across<__half>(state, outer, tiles[&tokens_of::q]);
    product_commit();
    product_wait<1>();
    pin(u);
#pragma unroll
    for (int j = 0; j < 16; ++j)
      operand[j] = pack<__half>(u[2 * j], u[2 * j + 1]);
    if (turn > 0) barrier_wait(m[&memory::z_used], phase ^ 1);
    store(m[&memory::value_sums][of_all], 2 * lane, sums);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      store_matrices_transposed(own_z + 2048 * j,
                                {operand[4 * j], operand[4 * j + 1],
                                 operand[4 * j + 2], operand[4 * j + 3]});
    fence_async_proxy();
    barrier_arrive_warp(m[&memory::z_full], lane);

#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 f = decay_from_first(j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 a = unpack<__half>(operand[2 * j + h]);
        operand[2 * j + h] = pack<__half>(-a.x * f.x, -a.y * f.y);
      }
    }
    product_fence();
    add_product_across<__half>(state, operand, tiles[&tokens_of::k]);
    product_commit();
    // Meanwhile; the place is that of the chunk before this one.
    if (turn > 0) barrier_wait(m[&memory::tokens_used], phase ^ 1);
    if (turn + 1 < chunks) tokens.fetch(turn + 1);
    // S dS, of what the products have: this warp's part.
    barrier_wait(m[&memory::S_full], phase);
    float sum[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < K / 16; ++j) {
      const fragment a = load_matrices(own_S + block_of(lane_rows, j));
      const fragment b = load_matrices(own_dS + block_of(lane_rows, j));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 x = unpack<__half>(a.r[e]), y = unpack<__half>(b.r[e]);
        sum[0] = fmaf(x.x, y.x, sum[0]);
        sum[1] = fmaf(x.y, y.y, sum[1]);
      }
    }
    barrier_arrive_warp(m[&memory::S_used], lane);
    sum[0] = (sum[0] + sum[1]) * exp2_fast(last);
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
      sum[0] += __shfl_xor_sync(~0u, sum[0], step);
    if (lane == 0) store(m[&memory::state_sums][phase], of_all, sum[0]);
    barrier_arrive_warp(m[&memory::state_summed], lane);
    product_wait<0>();
    pin(state);
    pending = exp2_fast(first);
    barrier_arrive_warp(m[&memory::tokens_used], lane);
    if (turn + 1 < chunks) tokens.convert(turn + 1);
    barrier_wait(m[&memory::z_full], phase);
    tokens.write_dv(turn, unscale);
    barrier_arrive_warp(m[&memory::z_used], lane);
  }

  if (d.d_initial_state != nullptr) {
    forget(lane);
    float* to = d.d_initial_state + state_at();
    // In turn, for either may leave fp32's range.
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        to[(8 * j + (e & 1)) * V + 8 * (e >> 1)] =
            state[4 * j + e] * pending * unscale;
  }
}

}  // namespace carve::cuda::full_backward
