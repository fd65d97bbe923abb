// The chunked backward after the walk: every gradient of a chunk from its
// states (`chunk_gradients`, and `scalar_gradients` for one decay a head).
#pragma once

#include "backward/parts.cuh"

namespace carve::cuda::backward_chunks {

/// Byte offset in a tile of what stands as 16 bytes `piece` of the panels.
template <int V>
__device__ __forceinline__ std::uint32_t tile_of_panel(int piece) {
  const int row = piece % 128 / 2;
  return arch::tile_offset<V>(
      row, piece / 128 * 16 + ((piece ^ (row >> 2)) & 1) * 8);
}

/// The same of the 16 bytes `piece` of a tile by wide_offset.
template <int V>
__device__ __forceinline__ std::uint32_t tile_of_wide(int piece) {
  const int row = piece % 512 / 8;
  return arch::tile_offset<V>(row, piece / 512 * 64 + ((piece ^ row) & 7) * 8);
}

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
  static constexpr int shift = erase_sum;  // of logits, by half [2,K], instead
  // fp32: each thread's Gamma from its blocks' reference points, 4 rows of 4
  // channels [4,256,4].
  static constexpr int exponent = write_sum + chunk * 4;
  static constexpr int bytes = exponent + chunk * 64 * 4;
};

/// A warp a half of the chunk (32 rows) and, turn by turn, a slice of 16
/// channels.  `Content`: b holds the logits of a gate that moves from window to
/// window, db are their gradients and the write gate is one number a head.
template <typename E, int K, int V, bool Content>
__global__ void __launch_bounds__(256, 2)
    chunk_gradients(const __grid_constant__ arguments a) {
  using lay = gradients_layout<K, V>;
  constexpr int warps = 8, threads = 256, slices = 4;  // of a turn
  constexpr int value_turns = chunk * V / 8 / threads;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const problem& p = a.p;
  const int head = blockIdx.x % p.HV;
  int index = blockIdx.x / p.HV;
  const bool beside_walk = Content && a.ready != nullptr;
  if (beside_walk) {
    // The sequences' last chunks first, as the walk leaves them.
    const int count = a.most_chunks / p.N;
    index = index % p.N * count + count - 1 - index / p.N;
  }
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
  const std::uint32_t shared = arch::shared_address(memory);
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

  if (beside_walk) {
    if (tid == 0) arch::wait_flag<true>(a.ready + at);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const std::int64_t from = at * chunk * V + (tid + i * threads) * 8;
    const std::uint32_t to = shared + tile_of_panel<V>(tid + i * threads);
    const std::uint32_t wide = shared + tile_of_wide<V>(tid + i * threads);
    arch::copy_async_16(to + lay::d_o, a.d_o + from, true);
    arch::copy_async_16((Content ? wide : to) + lay::dR, a.dR + from, true);
    arch::copy_async_16(wide + lay::U, a.U + from, true);
  }
  arch::copy_async_commit();
  // Only now, since what stands above does not wait for the table.
  if (c.length < 0) {
    arch::copy_async_wait<0>();
    return;
  }
  const float2 norm = cotangent_scale(a, c.sequence, head);
  const float unscale = norm.y;
  // The outputs' scale, and what d_o's has to become.
  const float scale =
      p.scale * to_common_scale(norm.x, a.decay[at * (K + 4) + K]);

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
      fetch_erase<E, Content>(b_raw, p, c, first_row, 0, head, channel);
      [[maybe_unused]] float shift[4];
      if constexpr (Content) {
        read4(shift, shifts_of<K>(a, c, index, head) + channel);
        if (group == 5) write(lay::shift + second * K * 4, shift);
      }
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
        if constexpr (Content)
#pragma unroll
          for (int j = 0; j < 4; ++j) R[j] = logistic(R[j] + shift[j]).x;
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
    if (turn > 0) arch::sync_group<64>(arch::named::slice + warp % slices);
    if (turn == 0) {
      uint4 v_raw[value_turns], w_raw[value_turns];
#pragma unroll
      for (int i = 0; i < value_turns; ++i) {
        const int row = min((tid + i * threads) / (V / 8), c.length - 1),
                  col = (tid + i * threads) % (V / 8) * 8;
        v_raw[i] = *reinterpret_cast<const uint4*>(
            row_of<E>(p.v, c.batch, c.first + row, head) + col);
        w_raw[i] = fetch_write<E, Content>(p, c, row, head, col);
      }
      arch::copy_async_wait<0>();
      __syncthreads();
      // dv = dR*w and dw = dR*v.
#pragma unroll
      for (int i = 0; i < value_turns; ++i) {
        const int row = (tid + i * threads) / (V / 8),
                  col = (tid + i * threads) % (V / 8) * 8;
        float d[8], v[8], w[8], total = 0.f;
        unpack8<__half>(
            d, *reinterpret_cast<const uint4*>(memory + lay::dR +
                                               arch::tile_offset<V>(row, col)));
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
          if (!Content && a.d.dw.data && p.family == family::gdn2)
            *reinterpret_cast<uint4*>(
                row_of_out<E>(a.d.dw, c.batch, c.first + row, head) + col) =
                pack8<E>(v);
        }
        if (Content || p.family != family::gdn2) {
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
    const std::uint32_t in_V = arch::tile_offset<V>(lane & 15, (lane >> 4) * 8);
    const std::uint32_t in_V_right = arch::tile_offset<V>(
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
        const fragment l = arch::load_matrices(left_at + (in_V ^ (kb * 32)));
        const fragment r =
            arch::load_matrices(right_at + (in_V_right ^ (kb * 32)));
        arch::multiply<__half>(y[0], l, r.r[0], r.r[1]);
        arch::multiply<__half>(y[1], l, r.r[2], r.r[3]);
      }
      const float factor = is_P ? scale : 1.f;
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
              arch::tile_offset<chunk>(t, s)) = operand::pack(lo, hi);
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
        // Not as constants where the walk may still be on its way.
        const uint4 s = Content ? S[vb * 2 * K] : __ldg(S + vb * 2 * K),
                    ds = Content ? dS[vb * 2 * K] : __ldg(dS + vb * 2 * K);
        if (!second) {
          // dS's registers are as well the left operand of its transpose.
          arch::multiply<__half>(dot, {{ds.x, 0, ds.y, 0}}, s.x, s.y);
          arch::multiply<__half>(dot, {{0, ds.z, 0, ds.w}}, s.z, s.w);
        }
        const std::uint32_t from = rows + (in_V ^ (vb * 32));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const fragment o = arch::load_matrices(from + lay::d_o + m * 32 * V);
          arch::multiply<__half>(dq[m][0], o, s.x, s.y);
          arch::multiply<__half>(dq[m][1], o, s.z, s.w);
          const fragment r = arch::load_matrices(from + lay::dR + m * 32 * V);
          arch::multiply<__half>(dr[m][0], r, s.x, s.y);
          arch::multiply<__half>(dr[m][1], r, s.z, s.w);
          const fragment u = arch::load_matrices(from + lay::U + m * 32 * V);
          arch::multiply<__half>(dk[m][0], u, ds.x, ds.y);
          arch::multiply<__half>(dk[m][1], u, ds.z, ds.w);
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
          dq[m][i >> 2][i & 3] *= scale * start[j];
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
        sum_pairs<E, Content>(
            pair_sums[i], p, c, memory + lay::dP, memory + lay::dL,
            first_row + 8 * i, head, channel,
            Content ? shifts_of<K>(a, c, index, head) + channel : nullptr);
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
      fetch_erase<E, Content>(b_raw, p, c, first_row + 8 * i, 0, head, channel);
    };
    fetch(0);

    // Within the chunk: dq and dr from the first block on, dk from the last
    // back; between two blocks all decay by as much.
    const std::uint32_t in_chunk =
        shared + lay::dP + second * 64 * chunk;  // rows of this half
    const std::uint32_t in_chunk_left =
        arch::tile_offset<chunk>(lane & 15, (lane >> 4) * 8);
    const std::uint32_t in_chunk_trans = arch::tile_offset<chunk>(
        (lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
    const std::uint32_t in_K =
        shared + arch::tile_offset<64>(((lane >> 3) & 1) * 8 + (lane & 7),
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
      const fragment k =
          arch::load_matrices_transposed(in_K + lay::k + sb * 32 * 64);
      const std::uint32_t from = in_chunk + (in_chunk_left ^ (sb * 32));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (sb > 2 * second + m) continue;
        const fragment y = arch::load_matrices(from + m * 32 * chunk);
        const fragment z =
            arch::load_matrices(from + m * 32 * chunk + (lay::dL - lay::dP));
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
      const fragment q =
          arch::load_matrices_transposed(in_K + lay::q + tb * 32 * 64);
      const fragment r =
          arch::load_matrices_transposed(in_K + lay::R + tb * 32 * 64);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (tb < 2 * second + m) continue;
        const std::uint32_t from = shared + lay::dP + tb * 32 * chunk +
                                   (in_chunk_trans ^ (second * 64 + m * 32));
        const fragment y = arch::load_matrices_transposed(from);
        const fragment z =
            arch::load_matrices_transposed(from + (lay::dL - lay::dP));
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
               want_b = a.d.db.data && (Content || p.family == family::gdn2);
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
      [[maybe_unused]] float change[4];  // of the gate with its logit
      if constexpr (Content) {
        float shift[4];
        read(shift, lay::shift + second * K * 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 gate = logistic(erase[j] + shift[j]);
          erase[j] = gate.x, change[j] = gate.x * gate.y;
        }
      }
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
        if constexpr (Content) to_b[j] *= change[j];
      }
      if (!Content && p.family != family::gdn2) {
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
    arch::sync_group<64>(arch::named::slice + warp % slices);
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
  if (!Content && p.family == family::gdn2) return;
  // What is launched next waits for this kernel alone, not for the walk.
  if (Content && a.ready != nullptr &&
      blockIdx.x + p.N * p.HV >= a.most_chunks * p.HV)  // a first chunk
    asm volatile("griddepcontrol.wait;" ::: "memory");
  // Gates of the whole head: sums over the channels.
  __syncthreads();
  if constexpr (Content) {
    if (tid < c.length && a.d.dw.data)
      *row_of_out<E>(a.d.dw, c.batch, c.first + tid, head) =
          E(reinterpret_cast<const float*>(memory + lay::write_sum)[tid]);
    return;
  }
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

/// Shared memory of scalar_gradients: of a chunk and head what the walk left,
/// as it lies in the workspace.
template <int K, int V>
struct scalar_gradients_memory {
  static constexpr int warps = K / 8, states = 3;
  __half d_o[chunk * V], dR[chunk * V], U[chunk * V];  // panels
  __half q[chunk * K], k[chunk * K];
  __half dP[chunk * chunk], dL[chunk * chunk];  // by the decay; -dL, likewise
  uint4 S[states][K * V / 8];  // S and dS of this chunk and the next, in turn
  // Of this chunk and the next: see `factor`; sums over half of the values.
  float factors[2][4 * chunk], write_sum[2][warps / 8][chunk];
  // What is known of a chunk, likewise.
  struct {
    chunk_entry entry;
    float scale, unscale;
  } known[2];
  // A warp a row of 32 tokens, over 16 channels: of dbeta and of dG; what the
  // end state gives.
  float erase_sum[warps][32], decay_sum[warps][32], tail[warps];
  // When they are full: d_o, dR, U and factors; q and k; a state.
  std::uint64_t values_full, keys_full, state_full[states];
};

/// The gradients for a decay of one number a head.  A block goes from chunk to
/// chunk and asks for the next one's tiles as soon as their places are free.  A
/// warp has a half of the chunk (32 rows) and 16 channels.
template <typename E, int K, int V>
__global__ void __launch_bounds__(K * 4, K + V == 128 ? 2 : 1)
    scalar_gradients(const __grid_constant__ arguments a) {
  using block_memory = scalar_gradients_memory<K, V>;
  constexpr int warps = block_memory::warps, slices = K / 16;
  constexpr int states = block_memory::states, panel = chunk * 32;
  constexpr int value_turns = V / (4 * warps);
  constexpr std::uint32_t value_bytes = chunk * V * 2,
                          key_bytes = chunk * K * 2, state_bytes = K * V * 2,
                          factor_bytes = 4 * chunk * 4;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  auto& m = *reinterpret_cast<block_memory*>(memory);
  const problem& p = a.p;
  const int tid = threadIdx.x, lane = tid & 31;
  const int warp = __shfl_sync(~0u, tid >> 5, 0);  // known to be uniform
  const int second = warp / slices, base = warp % slices * 16;
  const int group = lane >> 2, quad = lane & 3;
  const int first_row = 32 * second + group;  // then 8, 16 and 24 more
  const bool grouped = p.HV != p.H;
  const int items = a.first_chunk[p.N] * p.HV, stride = gridDim.x;
  const std::uint32_t d_o = arch::shared_address(m.d_o),
                      dR = arch::shared_address(m.dR),
                      U = arch::shared_address(m.U),
                      q_tile = arch::shared_address(m.q),
                      k_tile = arch::shared_address(m.k),
                      dP = arch::shared_address(m.dP),
                      values_full = arch::shared_address(&m.values_full),
                      keys_full = arch::shared_address(&m.keys_full),
                      state_full = arch::shared_address(m.state_full);
  constexpr std::uint32_t to_dL = chunk * chunk * 2;

  const auto bring_values = [&](int item, int parity) {
    if (item >= items) return;
    arch::barrier_expect(values_full, 3 * value_bytes + factor_bytes);
    const std::int64_t at = static_cast<std::int64_t>(item) * chunk * V;
    arch::bulk_load(d_o, a.d_o + at, value_bytes, values_full);
    arch::bulk_load(dR, a.dR + at, value_bytes, values_full);
    arch::bulk_load(U, a.U + at, value_bytes, values_full);
    arch::bulk_load(arch::shared_address(m.factors[parity]),
                    a.factors + static_cast<std::int64_t>(item) * 4 * chunk,
                    factor_bytes, values_full);
  };
  const auto bring_keys = [&](int item) {
    if (item >= items) return;
    arch::barrier_expect(keys_full, 2 * key_bytes);
    const std::int64_t at = static_cast<std::int64_t>(item) * chunk * K;
    arch::bulk_load(q_tile, a.Qt + at, key_bytes, keys_full);
    arch::bulk_load(k_tile, a.Rt + at, key_bytes, keys_full);
  };
  const auto bring_state = [&](int item, bool of_S, int slot) {
    if (item >= items) return;
    const std::uint32_t full = state_full + 8 * slot;
    arch::barrier_expect(full, state_bytes);
    arch::bulk_load(
        arch::shared_address(m.S[slot]),
        (of_S ? a.S : a.dS) + static_cast<std::int64_t>(item) * (K * V / 4),
        state_bytes, full);
  };
  // A chunk's entry and scales, each of which waits for the one before.
  const auto know = [&](int item, int parity) {
    if (item >= items) return;
    auto& to = m.known[parity];
    to.entry = a.table[item / p.HV];
    const float2 norm = cotangent_scale(a, to.entry.sequence, item % p.HV);
    to.unscale = norm.y;
    // The outputs' scale, and what d_o's has to become.
    to.scale =
        p.scale *
        to_common_scale(norm.x,
                        a.decay[static_cast<std::int64_t>(item) * (K + 4) + K]);
  };
  if (tid == 32) know(blockIdx.x, 0);
  if (tid == 0) {
    arch::barrier_init(values_full, 1);
    arch::barrier_init(keys_full, 1);
    for (int i = 0; i < states; ++i) arch::barrier_init(state_full + 8 * i, 1);
    arch::fence_async_proxy();
    const int item = blockIdx.x;
    bring_values(item, 0);
    bring_state(item, true, 0);
    bring_state(item, false, 1);
    bring_keys(item);
    bring_state(item + stride, true, 2);
  }
  __syncthreads();

  // Where this lane's ldmatrix rows begin in panels and in tiles of 64
  // columns; a tile's column block is added by exclusive or.
  const std::uint32_t in_V = 2 * panel_offset(lane & 15, (lane >> 4) * 8);
  const std::uint32_t in_V_right =
      2 * panel_offset((lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
  const std::uint32_t in_chunk = dP + second * 64 * chunk;  // rows of this half
  const std::uint32_t in_chunk_left =
      arch::tile_offset<chunk>(lane & 15, (lane >> 4) * 8);
  const std::uint32_t in_chunk_trans = arch::tile_offset<chunk>(
      (lane >> 4) * 8 + (lane & 7), ((lane >> 3) & 1) * 8);
  const std::uint32_t in_K = arch::tile_offset<K>(
      ((lane >> 3) & 1) * 8 + (lane & 7), base + (lane >> 4) * 8);
  // A tile's row of this lane: columns base + 2 quad and 8 more.
  const std::uint32_t own_row =
      arch::tile_offset<K>(first_row, base + 2 * quad);
  const bool want_q = a.d.dq.data && !grouped, want_k = a.d.dk.data && !grouped;

  int slot = 0;       // of S; dS is in the next one
  unsigned full = 0;  // the phases of the slots, a bit each
  int parity = 0;
  for (int item = blockIdx.x; item < items; item += stride, parity ^= 1) {
    const int head = item % p.HV;
    const chunk_entry c = m.known[parity].entry;
    const float scale = m.known[parity].scale,
                unscale = m.known[parity].unscale;
    const float* const factors = m.factors[parity];
    // Eight rows of four pieces a warp.
    const int value_row = warp % 8 * 8 + (lane & 7),
              value_col = (warp / 8 * 4 + (lane >> 3)) * 8;
    uint4 v_raw[value_turns];
#pragma unroll
    for (int i = 0; i < value_turns; ++i)
      v_raw[i] = *reinterpret_cast<const uint4*>(
          row_of<E>(p.v, c.batch, c.first + min(value_row, c.length - 1),
                    head) +
          value_col + i * (warps * 4));
    arch::barrier_wait(values_full, parity);

    // dP = scale tril(do U^T) and -dL = stril(dR U^T), by the decay: twenty
    // products of 16 x 16.
#pragma unroll 1
    for (int job = warp; job < 20; job += warps) {
      const bool is_P = job >= 10;
      const int pair = is_P ? job - 10 : job;
      const int block = pair >= 6 ? 3 : pair >= 3 ? 2 : pair >= 1 ? 1 : 0;
      const int nb = pair - block * (block + 1) / 2;
      const std::uint32_t left_at = (is_P ? d_o : dR) + block * 512 + in_V;
      const std::uint32_t right_at = U + nb * 512 + in_V_right;
      float y[2][4] = {};
#pragma unroll
      for (int kb = 0; kb < V / 16; ++kb) {
        const fragment l = arch::load_matrices(left_at + kb * panel);
        const fragment r = arch::load_matrices(right_at + kb * panel);
        arch::multiply<__half>(y[0], l, r.r[0], r.r[1]);
        arch::multiply<__half>(y[1], l, r.r[2], r.r[3]);
      }
      const float by = is_P ? scale : 1.f;
      const int keep = is_P ? 0 : 1;  // least t - s
      auto* const to = reinterpret_cast<std::uint8_t*>(is_P ? m.dP : m.dL);
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
          *reinterpret_cast<std::uint32_t*>(
              to + arch::tile_offset<chunk>(t, s)) = operand::pack(lo, hi);
        }
      }
    }
    // dv = dR*w and, summed, dw = dR*v.
    {
      float total = 0.f;
      const float beta = factors[to_beta + value_row] * unscale;
#pragma unroll
      for (int i = 0; i < value_turns; ++i) {
        const int col = value_col + i * (warps * 4);
        float d[8], v[8];
        unpack8<__half>(d, *reinterpret_cast<const uint4*>(
                               m.dR + panel_offset(value_row, col)));
        unpack8<E>(v, v_raw[i]);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          total += v[j] * d[j];
          d[j] *= beta;
        }
        if (value_row < c.length && a.d.dv.data)
          *reinterpret_cast<uint4*>(
              row_of_out<E>(a.d.dv, c.batch, c.first + value_row, head) + col) =
              pack8<E>(d);
      }
      total += __shfl_xor_sync(~0u, total, 8);
      total += __shfl_xor_sync(~0u, total, 16);
      if (lane < 8) m.write_sum[parity][warp / 8][value_row] = total;
    }

    // The state's part.
    float dq[2][2][4] = {}, dr[2][2][4] = {}, dk[2][2][4] = {};  // minus dr
    float row_sum[4] = {}, gate_sum[4] = {}, tail = 0.f;
    {
      // Sums over the values of S*dS: on the diagonals of the accumulator's
      // two 8x8 halves.
      float dot[4] = {};
      const int dS_slot = slot == states - 1 ? 0 : slot + 1;
      const uint4* const S = m.S[slot] + base * 2 + lane;
      const uint4* const dS = m.S[dS_slot] + base * 2 + lane;
      arch::barrier_wait(state_full + 8 * slot, full >> slot & 1);
      arch::barrier_wait(state_full + 8 * dS_slot, full >> dS_slot & 1);
      full ^= 1u << slot | 1u << dS_slot;
      const std::uint32_t rows = second * 1024 + in_V;
#pragma unroll 2
      for (int vb = 0; vb < V / 16; ++vb) {
        const uint4 s = S[vb * 2 * K], ds = dS[vb * 2 * K];
        if (!second) {
          // dS's registers are as well the left operand of its transpose.
          arch::multiply<__half>(dot, {{ds.x, 0, ds.y, 0}}, s.x, s.y);
          arch::multiply<__half>(dot, {{0, ds.z, 0, ds.w}}, s.z, s.w);
        }
        const std::uint32_t from = rows + vb * panel;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const fragment o = arch::load_matrices(d_o + from + i * 512);
          arch::multiply<__half>(dq[i][0], o, s.x, s.y);
          arch::multiply<__half>(dq[i][1], o, s.z, s.w);
          const fragment r = arch::load_matrices(dR + from + i * 512);
          arch::multiply<__half>(dr[i][0], r, s.x, s.y);
          arch::multiply<__half>(dr[i][1], r, s.z, s.w);
          const fragment u = arch::load_matrices(U + from + i * 512);
          arch::multiply<__half>(dk[i][0], u, ds.x, ds.y);
          arch::multiply<__half>(dk[i][1], u, ds.z, ds.w);
        }
      }
      float diagonal = group == 2 * quad ? dot[0] + dot[2] : 0.f;
      if (group == 2 * quad + 1) diagonal += dot[1] + dot[3];
      tail += diagonal * factors[to_start + chunk - 1];
    }
    // dP and dL are there; the tiles of the values and the states are free.
    __syncthreads();
    if (tid == 0) {
      const int dS_slot = slot == states - 1 ? 0 : slot + 1;
      bring_values(item + stride, parity ^ 1);
      bring_state(item + stride, false, slot);
      bring_state(item + 2 * stride, true, dS_slot);
    }
    if (tid == 32) know(item + stride, parity ^ 1);
    slot = slot == 0 ? states - 1 : slot - 1;  // two on
    arch::barrier_wait(keys_full, parity);
    auto get = [&](float(&y)[4], const __half* tile, int i) {
      const auto* from =
          reinterpret_cast<const std::uint8_t*>(tile) + i * 16 * K;
      unpack4<__half>(
          y, {*reinterpret_cast<const std::uint32_t*>(from + own_row),
              *reinterpret_cast<const std::uint32_t*>(from + (own_row ^ 16))});
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int b = i / 2, h = i % 2, row = first_row + 8 * i;
      const float start = factors[to_start + row], end = factors[to_tail + row];
      float k[4];
      get(k, m.k, i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = j >> 1, e = 2 * h + (j & 1);
        dq[b][n][e] *= scale * start;
        dr[b][n][e] *= start;
        dk[b][n][e] *= end;
        tail += k[j] * dk[b][n][e];
      }
    }

    // Within the chunk.
#pragma unroll
    for (int sb = 0; sb < 4; ++sb) {
      if (sb > 2 * second + 1) break;
      const fragment k =
          arch::load_matrices_transposed(k_tile + in_K + sb * 32 * K);
      const std::uint32_t from = in_chunk + (in_chunk_left ^ (sb * 32));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (sb > 2 * second + i) continue;
        const fragment y = arch::load_matrices(from + i * 32 * chunk);
        const fragment z = arch::load_matrices(from + i * 32 * chunk + to_dL);
        multiply_kind(half, dq[i], y, k, dr[i], z, k);
      }
    }
#pragma unroll
    for (int tb = 3; tb >= 0; --tb) {
      if (tb < 2 * second) break;
      const fragment q =
          arch::load_matrices_transposed(q_tile + in_K + tb * 32 * K);
      const auto* const beta = reinterpret_cast<const float2*>(
          factors + to_beta + tb * 16 + 2 * quad);
      const float2 low = beta[0], high = beta[4];
      // Minus R, which spares a sign below.
      const fragment r = scale_rows(
          arch::load_matrices_transposed(k_tile + in_K + tb * 32 * K),
          make_float2(-low.x, -low.y), make_float2(-high.x, -high.y));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (tb < 2 * second + i) continue;
        const std::uint32_t from =
            dP + tb * 32 * chunk + (in_chunk_trans ^ (second * 64 + i * 32));
        const fragment y = arch::load_matrices_transposed(from);
        const fragment z = arch::load_matrices_transposed(from + to_dL);
        multiply_kind(half, dk[i], y, q, dk[i], z, r);
      }
    }

    const int token = c.first + first_row, qk_head = head / (p.HV / p.H);
    E* dq_row = row_of_out<E>(a.d.dq, c.batch, token, qk_head) + base;
    E* dk_row = row_of_out<E>(a.d.dk, c.batch, token, qk_head) + base;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int b = i / 2, h = i % 2, row = first_row + 8 * i;
      const bool valid = row < c.length;
      const float beta = factors[to_beta + row];
      float q[4], k[4], to_q[4], to_k[4];
      get(q, m.q, i);
      get(k, m.k, i);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const int n = j >> 1, e = 2 * h;
        // From the operands as they were rounded: what two tokens of the chunk
        // give each other then cancels in the sum over tokens.
        const float2 R =
            operand::unpack(operand::pack(-beta * k[j], -beta * k[j + 1]));
        row_sum[i] += q[j] * dq[b][n][e] + q[j + 1] * dq[b][n][e + 1] +
                      (R.x * dr[b][n][e] + R.y * dr[b][n][e + 1]) -
                      (k[j] * dk[b][n][e] + k[j + 1] * dk[b][n][e + 1]);
        gate_sum[i] -= k[j] * dr[b][n][e] + k[j + 1] * dr[b][n][e + 1];
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          to_q[j + x] = dq[b][n][e + x] * unscale;
          to_k[j + x] = (dk[b][n][e + x] - beta * dr[b][n][e + x]) * unscale;
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

    // Sums over the channels.
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
      tail += __shfl_xor_sync(~0u, tail, step);
    if (lane == 0) m.tail[warp] = tail;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        row_sum[i] += __shfl_xor_sync(~0u, row_sum[i], step);
        gate_sum[i] += __shfl_xor_sync(~0u, gate_sum[i], step);
      }
      if (quad != 0) continue;
      m.decay_sum[warp][group + 8 * i] = row_sum[i];
      m.erase_sum[warp][group + 8 * i] = gate_sum[i];
    }
    // The sums are there; the tiles of the keys, dP and dL are free.
    __syncthreads();
    if (tid == 0) bring_keys(item + stride);
    // One warp, while the others go on to the next chunk, as far as the barrier
    // before they write such sums again.
    if (warp != warps - 1) continue;
    // Tokens 2 lane and 2 lane + 1.
    float gate[2] = {}, change[2] = {}, end = 0.f;
    const int first_warp = lane / 16 * slices, at_row = lane % 16 * 2;
#pragma unroll
    for (int i = 0; i < slices; ++i) {
      const float2 x = *reinterpret_cast<const float2*>(
                       &m.erase_sum[first_warp + i][at_row]),
                   y = *reinterpret_cast<const float2*>(
                       &m.decay_sum[first_warp + i][at_row]);
      gate[0] += x.x, gate[1] += x.y;
      change[0] += y.x, change[1] += y.y;
    }
#pragma unroll
    for (int i = 0; i < warps; ++i) end += m.tail[i];
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
      float write = 0.f;
#pragma unroll
      for (int i = 0; i < warps / 8; ++i) write += m.write_sum[parity][i][row];
      if (a.d.dbeta.data)
        *row_of_out<E>(a.d.dbeta, c.batch, c.first + row, head) =
            E((gate[j] + write) * unscale);
      if (a.d.dg.data && p.family == family::gdn)
        *row_of_out<float>(a.d.dg, c.batch, c.first + row, head) =
            (dg[j] + end) * unscale;
    }
  }
}

}  // namespace carve::cuda::backward_chunks
