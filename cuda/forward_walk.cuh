// The part of the chunked forward pass that carries the state: one warpgroup
// takes 64 value channels through the prepared chunks of a head, S^T in fp32
// registers.
//
// With a content gate (family carve) the erase gate of a window depends on the
// outputs of the window before it.  The preparation then stops short of the
// gate; the walking warpgroups apply it, and one of them forms and inverts
// I + L.
#pragma once

#include "forward_prepare.cuh"

namespace carve::cuda::forward_chunks {

constexpr int largest_rank = 128;

/// A walking warpgroup's buffers: v in two stages (o is assembled in v's
/// place) and, for a write gate per channel, w in two stages or one.
template <axis Write, bool Split>
constexpr int values_bytes = tile_bytes*(Write != axis::channel ? 2
                                         : Split                ? 4
                                                                : 3);

/// Shared memory of the walkers for a content gate: diagonal blocks of L, the
/// window's mean, W_down times it and the shift of the logits.
template <int K, int V>
struct gate_memory {
  static constexpr int lower = 0;
  static constexpr int mean = lower + 4 * 1280;
  static constexpr int inner = mean + V * 4;
  static constexpr int shift = inner + largest_rank * 4;
  static constexpr int bytes = shift + K * 4;
};

/// Shared addresses of what the walk reads.
struct walk_shared {
  std::uint32_t blocks, numbers;  // stages of prepared chunks
  std::uint32_t values;           // the warpgroup's own
  std::uint32_t inverse, gate;    // content: a tile for T, gate_memory
  std::uint32_t ready;            // barriers: a stage is prepared,
  std::uint32_t empty;            // it may be overwritten
};

/// Two values of the logistic function for one reciprocal; below 2^-60 they
/// stay where they are.
__device__ __forceinline__ float2 sigmoid_pair(float x, float y) {
  const float a = 1.f + exp2_fast(fminf(-log2e * x, 60.f));
  const float b = 1.f + exp2_fast(fminf(-log2e * y, 60.f));
  const float r = reciprocal(a * b);
  return make_float2(r * b, r * a);
}

/// The content gate, by all the walking warpgroups of a block together.
template <class In, int K, int V>
struct content_gate {
  using part = prepared<K, axis::content>;
  using memory = gate_memory<K, V>;
  static constexpr int threads = V / 64 * group;
  static constexpr int pieces = K / 8, step = threads / pieces;
  static constexpr int count = chunk / step;  // of a thread's pieces
  static constexpr int everyone = 4;          // named barrier

  const char* logits;  // the thread's first piece of the next chunk
  int left;            // rows from there on
  std::uint32_t at;    // gate_memory
  int thread;          // of all walkers

  __device__ void start(const problem& p, const sequence_span& span, int head,
                        std::uint32_t address, int thread_of_walkers) {
    thread = thread_of_walkers;
    at = address;
    left = static_cast<int>(span.length);
    logits = reinterpret_cast<const char*>(
                 static_cast<const In*>(p.b.data) +
                 offset(p.b, span.batch, span.first + thread / pieces, head)) +
             thread % pieces * 16;
    if (thread < K) write4(at + memory::shift + thread * 4, 0.f);
    synchronize();
  }
  __device__ static void synchronize() { sync_group<threads>(everyone); }

  __device__ void fetch(const problem& p, uint4 (&x)[count]) {
    const char* next = logits;
#pragma unroll
    for (int m = 0; m < count; ++m) {
      x[m] = make_uint4(0, 0, 0, 0);
      if (thread / pieces + m * step < left) x[m] = load_once(next);
      next += step * 2 * p.b.token;
    }
    logits += chunk * 2 * p.b.token;
    left -= chunk;
  }

  /// Puts the gate on the erase keys of a chunk.
  __device__ void apply(std::uint32_t block, const uint4 (&x)[count]) const {
    const int piece = thread % pieces, row = thread / pieces;
    float shift[8];
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      const uint4 y = read16(at + memory::shift + (8 * piece + e) * 4);
      shift[e] = __uint_as_float(y.x);
      shift[e + 1] = __uint_as_float(y.y);
      shift[e + 2] = __uint_as_float(y.z);
      shift[e + 3] = __uint_as_float(y.w);
    }
    const std::uint32_t to = block + part::erase_keys + piece / 8 * tile_bytes +
                             swizzled(row, piece % 8);
#pragma unroll
    for (int m = 0; m < count; ++m) {
      const uint4 k = read16(to + m * step * 128);
      const std::uint32_t kw[4] = {k.x, k.y, k.z, k.w};
      const std::uint32_t xw[4] = {x[m].x, x[m].y, x[m].z, x[m].w};
      std::uint32_t r[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 z = unpack<In>(xw[e]), y = unpack<In>(kw[e]);
        const float2 b =
            sigmoid_pair(z.x + shift[2 * e], z.y + shift[2 * e + 1]);
        r[e] = pack<In>(b.x * y.x, b.y * y.y);
      }
      write16(to + m * step * 128, make_uint4(r[0], r[1], r[2], r[3]));
    }
  }

  /// Adds the couplings of the channels that the products leave out.
  __device__ void couple_apart(const problem& p, const sequence_span& span,
                               int head, int first, std::uint32_t numbers,
                               int warp, int lane, float (&l)[32]) const {
    const uint4 x = read16(numbers + part::apart);
    if ((x.x | x.y | x.z | x.w) == 0) return;
    const std::uint32_t apart[4] = {x.x, x.y, x.z, x.w};
    const int key_head = head / (p.HV / p.H);
    couple_exactly<K, true, false>(apart, warp, lane, l, l, [&](int channel) {
      const float shift = read4(at + memory::shift + channel * 4);
      channel_pair y = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = first + 2 * lane + j;
        if (token >= span.length) continue;
        const std::int64_t t = span.first + token;
        const auto in = [&](const tensor& z, int h) {
          return offset(z, span.batch, t, h) + channel;
        };
        y.log[j] = static_cast<const float*>(p.g.data)[in(p.g, head)];
        y.key[j] =
            to_float(static_cast<const In*>(p.k.data)[in(p.k, key_head)]);
        const float logit =
            to_float(static_cast<const In*>(p.b.data)[in(p.b, head)]);
        y.erase[j] = sigmoid_pair(logit + shift, 0).x;
      }
      return y;
    });
  }

  /// shift = W_up W_down mean.
  __device__ void move(const problem& p, int head) const {
    synchronize();
    const float* down = p.w_down + static_cast<std::int64_t>(head) * p.rank * V;
    constexpr int lanes = 8;  // of a row of W_down
    for (int r = thread / lanes; r < (p.rank + 3) / 4 * 4;
         r += threads / lanes) {
      float sum = 0;
      if (r < p.rank) {
#pragma unroll
        for (int j = 0; j < V / (4 * lanes); ++j) {
          const int v = 4 * (thread % lanes + lanes * j);
          const uint4 y = read16(at + memory::mean + v * 4);
          const float* w = down + r * V + v;
          sum = fmaf(w[0], __uint_as_float(y.x), sum);
          sum = fmaf(w[1], __uint_as_float(y.y), sum);
          sum = fmaf(w[2], __uint_as_float(y.z), sum);
          sum = fmaf(w[3], __uint_as_float(y.w), sum);
        }
      }
      // Rows come in fours, so whole warps are here.
#pragma unroll
      for (int d = lanes / 2; d > 0; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
      if (r < p.rank && thread % lanes == 0)
        write4(at + memory::inner + r * 4, sum);
    }
    synchronize();
    constexpr int parts = threads / K;  // threads of a channel
    const int channel = thread / parts;
    const float* up =
        p.w_up + (static_cast<std::int64_t>(head) * K + channel) * p.rank;
    float sum = 0;
#pragma unroll 8
    for (int r = thread % parts; r < p.rank; r += parts)
      sum = fmaf(up[r], read4(at + memory::inner + r * 4), sum);
#pragma unroll
    for (int d = parts / 2; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (thread % parts == 0) write4(at + memory::shift + channel * 4, sum);
    synchronize();
  }
};

/// One warpgroup takes 64 value channels from `column` on through all chunks.
/// Each warp arrives at `empty` once it is done with a stage.
///
/// `Split`: three stages, and the products of successive chunks overlap for a
/// short chain from state to state.  Otherwise, and with a content gate, there
/// are two.
template <class In, int K, int V, axis Decay, axis Erase, axis Write,
          bool Split>
__device__ __forceinline__ void walk_chunks(const problem& p,
                                            const outputs& out,
                                            const sequence_span& span,
                                            int sequence, int head, int role,
                                            int column, const walk_shared& at,
                                            int barrier, int thread) {
  constexpr bool content = Erase == axis::content;
  constexpr bool overlap = Split && !content;
  using part = prepared<K, Erase>;
  constexpr int stages = overlap ? 3 : 2;
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

  // Takes the state to the reference of the chunk in `stage`, rounds it,
  // starts its product with the erase keys and decays it over the rest.
  std::uint32_t operand[K / 4];
  const auto scale_state = [&](int j, float x, float y) {
    state[4 * j] *= x;
    state[4 * j + 1] *= y;
    state[4 * j + 2] *= x;
    state[4 * j + 3] *= y;
  };
  const auto start = [&](int stage) {
    const std::uint32_t block = at.blocks + stage * part::tiles;
    const std::uint32_t numbers = at.numbers + stage * part::numbers;
#pragma unroll
    for (int j = 0; j < K / 8; ++j) {
      if constexpr (Decay == axis::channel) {
        const float2 f = unpack<__nv_bfloat16>(
            read_word(numbers + part::before + (8 * j + 2 * c) * 2));
        scale_state(j, f.x, f.y);
      }
      operand[2 * j] = pack<In>(state[4 * j], state[4 * j + 1]);
      operand[2 * j + 1] = pack<In>(state[4 * j + 2], state[4 * j + 3]);
      if constexpr (Decay != axis::none) {
        const float2 f =
            as_float2(read8(numbers + part::after + (8 * j + 2 * c) * 4));
        scale_state(j, f.x, f.y);
      }
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
  if constexpr (overlap) {
    if (chunks > 0) {
      barrier_wait(at.ready, 0);
      start(0);
    }
    product_wait<0>();
    pin(u);
  }
  // Content: sums of o over the window, of two channels; the next logits.
  [[maybe_unused]] float sum[2] = {0, 0};
  [[maybe_unused]] content_gate<In, K, V> gate;
  [[maybe_unused]] uint4 logits[content_gate<In, K, V>::count];
  if constexpr (content) {
    gate.start(p, span, head, at.gate, role * group + thread);
    gate.fetch(p, logits);
  }

#pragma unroll 1
  for (int n = 0; n < chunks; ++n) {
    const std::uint32_t block = at.blocks + stage * part::tiles;
    const std::uint32_t numbers = at.numbers + stage * part::numbers;
    const auto read_state = [&] {
#pragma unroll
      for (int j = 0; j < K / 16; ++j)
        product<In, false>(
            y, operand + 4 * j,
            tile_descriptor(block + part::queries + (j >> 2) * tile_bytes +
                            (j & 3) * 32),
            j > 0);
    };
    if constexpr (overlap) {
      product_fence();
      read_state();
      product_commit();
      copy_async_wait<1>();
      sync_group<group>(barrier);
    } else {
      barrier_wait(at.ready + 8 * stage, phase);
      if constexpr (content) {
        gate.apply(block, logits);
        fence_async_proxy();
        gate.synchronize();
        if (role == 0) {
          float l[32];
          product_fence();
          multiply_tiles<In, K>(l, block + part::erase_keys,
                                block + part::keys);
          product_commit();
          product_wait<0>();
          pin(l);
          gate.couple_apart(p, span, head, n * chunk, numbers, warp, lane, l);
          std::uint32_t before[3][4];
          const std::uint32_t lower =
              at.gate + gate_memory<K, V>::lower + warp * 1280;
          park(l, before, lower, warp, lane);
          start(stage);
          invert(before, at.inverse, lower, warp, lane, barrier, [&] {
            product_wait<0>();
            pin(u);
          });
          fence_async_proxy();
        } else {
          start(stage);
          product_wait<0>();
          pin(u);
        }
        copy_async_wait<0>();
        sync_group<group>(barrier);
      } else {
        start(stage);
        copy_async_wait<0>();
        sync_group<group>(barrier);
        product_wait<0>();
        pin(u);
      }
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
        if constexpr (Write == axis::channel)
          f = unpack<In>(wr[e]);
        else
          f = as_float2(read8(numbers + part::write +
                              (16 * j + 8 * (e >> 1) + 2 * c) * 4));
        const int k = 8 * j + 4 * (e >> 1) + 2 * (e & 1);
        rest[4 * j + e] =
            pack<__half>(fmaf(x.x, f.x, -u[k]), fmaf(x.y, f.y, -u[k + 1]));
      }
    }
    std::uint32_t inverse = block + part::inverse;
    if constexpr (content) {
      inverse = at.inverse;
      if (n + 1 < chunks) gate.fetch(p, logits);
      gate.synchronize();
    }
    product_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      product<__half, false>(u, rest + 4 * j, tile_descriptor(inverse + j * 32),
                             j > 0);
    product_commit();
    if constexpr (content && Split) {
      read_state();
      product_commit();
      product_wait<1>();
    } else {
      product_wait<0>();
    }
    pin(u);
    if constexpr (overlap) pin(y);
#pragma unroll
    for (int j = 0; j < 16; ++j) rest[j] = pack<__half>(u[2 * j], u[2 * j + 1]);
    const auto update_state = [&] {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        product<__half, true>(
            state, rest + 4 * j,
            tile_descriptor(block + part::tail_keys + j * 2048, tile_bytes), 1);
      product_commit();
    };
    const auto read_written = [&] {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        product<__half, false>(y, rest + 4 * j,
                               tile_descriptor(block + part::products + j * 32),
                               1);
      product_commit();
    };
    // With a content gate all waits for the outputs, else for the state.
    product_fence();
    if constexpr (content) {
      if constexpr (!Split) read_state();
      read_written();
      update_state();
    } else {
      update_state();
      if constexpr (!overlap) read_state();
      read_written();
    }
    const int used = stage;
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
    if constexpr (overlap) {
      product_wait<1>();
      pin(state);
      if (n + 1 < chunks) {
        barrier_wait(at.ready + 8 * stage, phase);
        start(stage);
        product_wait<1>();
      } else {
        product_wait<0>();
      }
    } else if constexpr (content) {
      product_wait<1>();
      pin(y);
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
      product_wait<0>();
      pin(state);
      if ((n + 1) * chunk % p.window == 0 && n + 1 < chunks) {
        const float f = p.scale / static_cast<float>(p.window);
        const std::uint32_t mean =
            at.gate + gate_memory<K, V>::mean + (column + 16 * warp + i) * 4;
        if (c == 0) {
          write4(mean, sum[0] * f);
          write4(mean + 32, sum[1] * f);
        }
        sum[0] = sum[1] = 0;
        gate.move(p, head);
      }
    } else {
      product_wait<0>();
      pin(state);
    }
    pin(y);
    if (lane == 0) barrier_arrive(at.empty + 8 * used);
    write_out(n);
    if constexpr (overlap) {
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

}  // namespace carve::cuda::forward_chunks
