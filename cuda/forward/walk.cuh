// The part of the chunked forward pass that carries the state: one warpgroup
// takes 64 value channels through the prepared chunks of a head, S^T in fp32
// registers.
#pragma once

#include "forward/gate.cuh"
#include "forward/prepare.cuh"

namespace carve::cuda::forward_chunks {

/// Which of the states [slots,HV,K,V] a walk begins with, of
/// problem::initial_state (where that is null: with zero), and ends with, of
/// outputs::final_state; below zero: zero, and none.  `transfer` (with
/// share::state): it begins with the unit matrix instead and nothing is written
/// on the way, so that it ends with the matrix A of S_end = A S_begin + b.
struct endpoints {
  int begin, end;
  bool transfer = false;
};

/// One warpgroup takes 64 value channels from `column` on through all chunks.
/// Each warp arrives at `empty` once it is done with a stage.
///
/// `Split`: the products of successive chunks overlap for a short chain from
/// state to state.  With a content gate the longer chain is from one window's
/// mean output to the next's, through the gate (gate.cuh), so the mean
/// is made apart from the outputs and before them, as S^T sum(q) + R^T z, and
/// with `Split` a chunk's outputs are not written until the next's mean is out.
template <class In, int K, int V, axis Decay, axis Erase, axis Write,
          share Share>
__device__ __forceinline__ void walk_chunks(
    const problem& p, const outputs& out, const sequence_span& span,
    const endpoints& states, int head, int column,
    shared<walk_memory<K, V, Decay, Erase, Write, Share>> m, int walker,
    int thread) {
  using memory = walk_memory<K, V, Decay, Erase, Write, Share>;
  constexpr bool Split = memory::narrow;
  constexpr bool content = Erase == axis::content;
  constexpr bool reads = memory::reads;
  using tiles = typename memory::part::tiles;
  using numbers_of = typename memory::part::numbers;
  using values = typename memory::values_of;
  constexpr int walkers = memory::walkers;
  constexpr int vs = values::v_stages, ws = values::w_stages;
  const int barrier = named::walk + walker;
  const shared<values> own = m[&memory::values][walker];
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
  In* o = nullptr;
  if constexpr (reads)
    o = static_cast<In*>(out.o.data) +
        offset(out.o, span.batch, span.first + row, head) + column + piece * 8;
  // The warpgroup's tiles, moved to the thread's piece.
  const shared<values> moved = {own + swizzled(row, piece)};

  // Content: sums of o / scale over the window, of two channels, how many
  // tokens of the window are left, and which it is.
  [[maybe_unused]] float sum[2] = {0, 0};
  [[maybe_unused]] int left = content ? p.window : 0, window = 0;

  // Starts the loads of a tensor's rows of chunk n.
  const auto fetch = [&](const In*& from, std::int64_t stride, int n,
                         std::uint32_t to) {
    if (n < chunks) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        bool valid = n * chunk + row + 16 * i < length;
        if constexpr (!reads) valid = valid && !states.transfer;
        copy_async_16(to + 2048 * i,
                      from + (valid ? 16 * i * stride : -row * stride), valid);
      }
      from += chunk * stride;
    }
  };
  const auto fetch_v = [&](int n) {
    fetch(v, p.v.token, n, moved[&values::v][n % vs]);
  };
  const auto fetch_w = [&](int n) {
    if constexpr (ws > 0) fetch(w, p.w.token, n, moved[&values::w][n % ws]);
  };

  // S^T: rows i and i + 8 of the warp's 16, columns 8j + 2c and + 1.
  float state[K / 2];
  const auto state_at = [&](int slot) {
    return (static_cast<std::int64_t>(slot) * p.HV + head) * K * V + 2 * c * V +
           column + 16 * warp + i;
  };
  if (!reads && states.transfer) {
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        state[4 * j + e] =
            8 * j + 2 * c + (e & 1) == column + 16 * warp + i + 8 * (e >> 1);
  } else if (states.begin >= 0 && p.initial_state != nullptr) {
    const float* from = p.initial_state + state_at(states.begin);
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        state[4 * j + e] = from[(8 * j + (e & 1)) * V + 8 * (e >> 1)];
  } else {
#pragma unroll
    for (int j = 0; j < K / 2; ++j) state[j] = 0;
  }

  fetch_v(0);
  fetch_w(0);
  copy_async_commit();
  if constexpr (vs == 2) fetch_v(1);
  if constexpr (ws == 2) fetch_w(1);
  copy_async_commit();

  // Addresses within a swizzled tile of 64 tokens by 64 channels of the
  // warp's 16 channels, by ldmatrix/stmatrix lanes; 16 tokens on: + 2048.
  const std::uint32_t lane_tile =
      swizzled((lane & 7) + 8 * (lane >> 4), 2 * warp + ((lane >> 3) & 1));

  // o of chunk n takes v's place: each warp alone has read its channels of v.
  const auto put_out = [&](int n, const float(&y)[32]) {
    const float f = p.scale;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      store_matrices_transposed(own[&values::v][n % vs] + lane_tile + 2048 * j,
                                {pack<In>(f * y[8 * j], f * y[8 * j + 1]),
                                 pack<In>(f * y[8 * j + 2], f * y[8 * j + 3]),
                                 pack<In>(f * y[8 * j + 4], f * y[8 * j + 5]),
                                 pack<In>(f * y[8 * j + 6], f * y[8 * j + 7])});
  };
  const auto fetch_values = [&](int n) {
    fetch_v(n + vs);
    fetch_w(n + ws);
    copy_async_commit();
  };
  const auto write_out = [&](int n) {
    sync_group<group>(barrier);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 x = read16(moved[&values::v][n % vs] + 2048 * i);
      if (n * chunk + row + 16 * i < length)
        *reinterpret_cast<uint4*>(o + 16 * i * out.o.token) = x;
    }
    o += chunk * out.o.token;
    fetch_values(n);
  };

  ring<memory::stages> turn;  // of chunk n
  // Takes the state to the reference of the chunk in `stage`, rounds it,
  // starts its product with the erase keys and decays it over the rest.
  std::uint32_t operand[K / 4];
  const auto scale_state = [&](int j, float x, float y) {
    state[4 * j] *= x;
    state[4 * j + 1] *= y;
    state[4 * j + 2] *= x;
    state[4 * j + 3] *= y;
  };
  const auto start = [&](int stage, float(&u)[32], auto&& meanwhile) {
    const shared<tiles> block = m[&memory::blocks][stage];
    const shared<numbers_of> numbers = m[&memory::numbers][stage];
#pragma unroll
    for (int j = 0; j < K / 8; ++j) {
      if constexpr (Decay == axis::channel) {
        const float2 f = unpack<__nv_bfloat16>(
            load<std::uint32_t>(numbers[&numbers_of::before], 8 * j + 2 * c));
        scale_state(j, f.x, f.y);
      }
      operand[2 * j] = pack<In>(state[4 * j], state[4 * j + 1]);
      operand[2 * j + 1] = pack<In>(state[4 * j + 2], state[4 * j + 3]);
    }
    // What the outputs' sums take of the state.
    const auto add_state = [&](auto numbers) {
      float more[4] = {0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < K / 8; ++j) {
        const float2 q =
            load<float2>(numbers[&content_numbers::queries_sum], 8 * j + 2 * c);
        more[0] = fmaf(state[4 * j], q.x, more[0]);
        more[1] = fmaf(state[4 * j + 2], q.x, more[1]);
        more[2] = fmaf(state[4 * j + 1], q.y, more[2]);
        more[3] = fmaf(state[4 * j + 3], q.y, more[3]);
      }
      sum[0] += more[0] + more[2];
      sum[1] += more[1] + more[3];
    };
    if constexpr (content) {
      if constexpr (!Split) add_state(numbers);
      meanwhile();
      sync_group<with_gate<walkers>>(named::coupled + stage);
    }
    product_fence();
    product_with_tiles<In, K>(u, operand, block[&tiles::erase_keys]);
    product_commit();
    if constexpr (content && Split) add_state(numbers);
    if constexpr (Decay == axis::head) {
      const float f = load<float>(numbers[&numbers_of::after], 0);
#pragma unroll
      for (int j = 0; j < K / 8; ++j) scale_state(j, f, f);
    } else if constexpr (Decay == axis::channel) {
#pragma unroll
      for (int j = 0; j < K / 8; ++j) {
        const float2 f =
            load<float2>(numbers[&numbers_of::after], 8 * j + 2 * c);
        scale_state(j, f.x, f.y);
      }
    }
  };
  [[maybe_unused]] float ahead[32];  // from chunk to chunk, u
  if constexpr (Split) {
    if (chunks > 0) {
      barrier_wait(m[&memory::ready], 0);
      start(0, ahead, [] {});
    }
    product_wait<0>();
    pin(ahead);
  }
  // Content: adds to the sums the channels' rows of x times numbers of the
  // tokens, and sends them where the window ends.
  const auto add_sums = [&](const float(&u)[32], shared<float[chunk]> from,
                            int n, int number, auto m) {
    float2 x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = load<float2>(from, 8 * j + 2 * c);
    float more[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      more[0] = fmaf(u[4 * j], x[j].x, more[0]);
      more[1] = fmaf(u[4 * j + 2], x[j].x, more[1]);
      more[2] = fmaf(u[4 * j + 1], x[j].y, more[2]);
      more[3] = fmaf(u[4 * j + 3], x[j].y, more[3]);
    }
    sum[0] += more[0] + more[2];
    sum[1] += more[1] + more[3];
    if ((left -= chunk) == 0 && n + 1 < chunks) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        sum[j] += __shfl_xor_sync(~0u, sum[j], 1);
        sum[j] += __shfl_xor_sync(~0u, sum[j], 2);
      }
      // Value channel 16 w + i of the walkers' warp w.
      const int which = Split ? window & 1 : 0;
      const shared<float[V]> sums =
          m[&memory::gate][&memory::gate_type::sums][which];
      const int channel = number / 32 * 16 + number % 32 / 4;
      if constexpr (Split) {
        const shared<std::uint64_t> known =
            m[&memory::gate_barriers][&memory::gate_waits::known][which];
        if (number % 4 == 0)
#pragma unroll
          for (int rank = 0; rank < V / 64; ++rank) {
            const std::uint32_t there = cluster_address(known, rank);
            const shared<float[16]> to = {
                cluster_address(sums[column + channel], rank)};
            store_async(to, sum[0], there);
            store_async(to[8], sum[1], there);
          }
      } else {
        if (number % 4 == 0) {
          store(sums, channel, sum[0]);
          store(sums, channel + 8, sum[1]);
        }
        arrive_group<with_gate<walkers>>(named::known);
      }
      sum[0] = sum[1] = 0;
      left = p.window;
      ++window;
    }
  };

#pragma unroll 1
  for (int n = 0; n < chunks; ++n) {
    const int stage = turn.stage;
    const shared<tiles> block = m[&memory::blocks][stage];
    const shared<numbers_of> numbers = m[&memory::numbers][stage];
    // Local, since a product that does not add is taken to read them.
    float y[32], here[32];
    float(&u)[32] = Split ? ahead : here;
    const auto read_state = [&] {
      product_with_tiles<In, K>(y, operand, block[&tiles::queries]);
    };
    // Content, not split: v is read while the products are made.
    constexpr bool hold = content && !Split;
    fragment v_held[hold ? 4 : 1];
    const auto load_v = [&](int j) {
      return load_matrices_transposed(own[&values::v][n % vs] + lane_tile +
                                      2048 * j);
    };
    if constexpr (Split && content) {
      copy_async_wait<0>();
      sync_group<group>(barrier);
    } else if constexpr (Split) {
      product_fence();
      read_state();
      product_commit();
      copy_async_wait<1>();
      sync_group<group>(barrier);
    } else {
      barrier_wait(m[&memory::ready][stage], turn.phase);
      start(stage, u, [] {});
      copy_async_wait<!reads && vs == 2 && ws == 0 ? 1 : 0>();
      sync_group<group>(barrier);
      if constexpr (hold)
#pragma unroll
        for (int j = 0; j < 4; ++j) v_held[j] = load_v(j);
      product_wait<0>();
      pin(u);
    }

    // What is written less what is erased, rounded for the next product.
    std::uint32_t rest[16];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      fragment wr;
      if constexpr (!hold) v_held[0] = load_v(j);
      const fragment& vr = v_held[hold ? j : 0];
      if constexpr (Write == axis::channel)
        wr = load_matrices_transposed(own[&values::w][n % ws] + lane_tile +
                                      2048 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // e & 1: value channel + 8; e >> 1: tokens + 8.
        const float2 x = unpack<In>(vr.r[e]);
        float2 f;
        if constexpr (Write == axis::channel)
          f = unpack<In>(wr.r[e]);
        else
          f = load<float2>(numbers[&numbers_of::write],
                           16 * j + 8 * (e >> 1) + 2 * c);
        const int k = 8 * j + 4 * (e >> 1) + 2 * (e & 1);
        u[k] = fmaf(x.x, f.x, -u[k]);
        u[k + 1] = fmaf(x.y, f.y, -u[k + 1]);
        rest[4 * j + e] = pack<__half>(u[k], u[k + 1]);
      }
    }
    if constexpr (content) {
      // The thread's number, from which the sums' place is made anew.
      int number = threadIdx.x;
      forget(number);
      sync_group<with_solver<walkers>>(named::solved + stage);
      add_sums(u, m[&memory::gate][&memory::gate_type::solution][stage], n,
               number, m);
      if constexpr (Split) {
        if (n > 0) write_out(n - 1);
        product_fence();
        read_state();
        product_commit();
      }
      sync_group<with_gate<walkers>>(named::inverted + stage);
    }
    product_fence();
    product_with_tiles<__half, chunk>(u, rest, block[&tiles::inverse]);
    product_commit();
    if constexpr (!reads) {
      // All have read v and w, in whose place no outputs will stand.
      sync_group<group>(barrier);
      fetch_values(n);
    }
    product_wait<0>();
    pin(u);
    if constexpr (Split) pin(y);
    if constexpr (content && Split)
      barrier_arrive_warp(
          m[&memory::gate_barriers][&memory::gate_waits::erased][stage], lane);
#pragma unroll
    for (int j = 0; j < 16; ++j) rest[j] = pack<__half>(u[2 * j], u[2 * j + 1]);
    const auto update_state = [&] {
      add_product_across<__half>(state, rest, block[&tiles::tail_keys]);
      product_commit();
    };
    const auto read_written = [&] {
      product_with_tiles<__half, chunk>(y, rest, block[&tiles::products], true);
      product_commit();
    };
    product_fence();
    update_state();
    if constexpr (!Split && reads) read_state();
    if constexpr (reads) read_written();
    turn.advance();
    if constexpr (Split) {
      product_wait<1>();
      pin(state);
      const auto written = [&] {
        product_wait<0>();
        pin(y);
        barrier_arrive_warp(m[&memory::empty][stage], lane);
        put_out(n, y);
      };
      if (n + 1 < chunks) {
        barrier_wait(m[&memory::ready][turn.stage], turn.phase);
        start(turn.stage, u, written);
        if constexpr (!content) product_wait<1>();
      } else if constexpr (content) {
        written();
        write_out(n);
      } else {
        product_wait<0>();
      }
    } else {
      product_wait<0>();
      pin(state);
    }
    if constexpr (!reads) {
      // In both blocks of the cluster, each of which prepares every other one.
      __syncwarp();
      if (lane < memory::together)
        barrier_arrive_there(cluster_address(m[&memory::empty][stage], lane));
    } else if constexpr (!(Split && content)) {
      pin(y);
      barrier_arrive_warp(m[&memory::empty][stage], lane);
      put_out(n, y);
      write_out(n);
    }
    if constexpr (Split) {
      product_wait<0>();
      pin(u);
    }
  }
  copy_async_wait<0>();

  if (states.end >= 0 && out.final_state != nullptr) {
    float* to = out.final_state + state_at(states.end);
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        to[(8 * j + (e & 1)) * V + 8 * (e >> 1)] = state[4 * j + e];
  }
}

}  // namespace carve::cuda::forward_chunks
