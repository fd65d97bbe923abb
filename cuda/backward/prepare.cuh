// The chunked backward before the walk: the table of chunks, the scale of the
// cotangents, and what a chunk gives without the state (`prepare`, and
// `scalar_prepare` for one decay a head).
#pragma once

#include "backward/parts.cuh"

namespace carve::cuda::backward_chunks {

/// The warp's largest number into `peak`, as bits: those of numbers that are
/// not negative are ordered as the numbers are.
__device__ __forceinline__ void raise_peak(unsigned* peak, float most,
                                           int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2)
    most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  if (lane == 0) atomicMax(peak, __float_as_uint(most));
}

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
  if (a.ready != nullptr)
    for (int n = threadIdx.x; n < a.most_chunks * a.p.HV; n += blockDim.x)
      a.ready[n] = 0;
}

/// The largest cotangent of every end state, a block each; those of the outputs
/// are added by `prepare`.
template <int K, int V>
__global__ void __launch_bounds__(256)
    find_peaks(const __grid_constant__ arguments a) {
  const float4* from = reinterpret_cast<const float4*>(
      a.d.d_final_state + static_cast<std::int64_t>(blockIdx.x) * K * V);
  float most = 0.f;
  for (int i = threadIdx.x; i < K * V / 4; i += 256) {
    const float4 x = from[i];
    most = fmaxf(most, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)),
                             fmaxf(fabsf(x.z), fabsf(x.w))));
  }
  raise_peak(a.peak + blockIdx.x, most, threadIdx.x & 31);
}

/// A slice's running sums and R, q, k as they are, [64,16] each: what `prepare`
/// needs of a slice of kind `pairs`.
template <typename E, bool Content>
__device__ __noinline__ void stage_pairs(float* decay, __half* raw,
                                         const problem& p, chunk_entry c,
                                         int head, int base,
                                         const float* shift) {
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
    fetch_erase<E, Content>(b_raw, p, c, row, 0, head, channel);
    float q[4], k[4], R[4];
    unpack4<E>(q, q_raw[0]);
    unpack4<E>(k, k_raw[0]);
    unpack4<E>(R, b_raw[0]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (Content) R[j] = logistic(R[j] + shift[channel + j]).x;
      decay[row * 16 + 4 * quad + j] = sum[i][j];
      R[j] *= k[j];
    }
    store4(raw + row * 16 + 4 * quad, R);
    store4(raw + 1024 + row * 16 + 4 * quad, q);
    store4(raw + 2048 + row * 16 + 4 * quad, k);
  }
}

// ------------------------------------------------------------------ prepare

/// T and P take the place of q, L and T's diagonal that of R and the ratios,
/// when these have been read.
template <int K, int V>
struct prepare_layout {
  static constexpr int q = 0;                    // q as it is, then decayed
  static constexpr int k = q + chunk * K * 2;    // k likewise, at last Kt
  static constexpr int d_o = k + chunk * K * 2;  // or one slice's pairs
  static constexpr int pairs_bytes = chunk * 16 * 10;
  static constexpr int R =  // b, then R decayed
      d_o + (chunk * V * 2 > pairs_bytes ? chunk * V * 2 : pairs_bytes);
  static constexpr int ratio = R + chunk * K * 2;       // [6,K] between blocks
  static constexpr int half_ratio = ratio + 6 * K * 2;  // [6,K], for `bfloat`
  static constexpr int L = R;                           // fp32, then P T
  static constexpr int L_stride = 68;
  static constexpr int D = L + chunk * L_stride * 4;  // fp32 diagonal of T
  static constexpr int D_stride = 18;
  static constexpr int D_end = D + 4 * 16 * D_stride * 4;
  static constexpr int T = q;
  static constexpr int P = K == 128 ? q + chunk * chunk * 2 : D_end;
  static constexpr int flags = K == 128 ? D_end : D_end + chunk * chunk * 2;
  static constexpr int peak = flags + 4;  // bits of the largest do
  static constexpr int bytes = flags + 16;
  static_assert(half_ratio + 6 * K * 2 <= flags);
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
          arch::tile_offset<chunk>(block * 16 + i, block * 16 + col)) =
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
        kept[0][n][x] = arch::to_tf32(
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
            arch::multiply_tf32(y[n], kept[from][kk], arch::to_tf32(b.x),
                                arch::to_tf32(b.y));
          }
        }
      }
      float z[2][4] = {};
#pragma unroll
      for (int kk = 0; kk < 2; ++kk) {
        const std::uint32_t x[4] = {
            arch::to_tf32(-y[kk][0]), arch::to_tf32(-y[kk][2]),
            arch::to_tf32(-y[kk][1]), arch::to_tf32(-y[kk][3])};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float2 b = *reinterpret_cast<const float2*>(
              D + (i * 16 + 8 * n + group) * lay::D_stride + 8 * kk + 2 * quad);
          arch::multiply_tf32(z[n], x, arch::to_tf32(b.x), arch::to_tf32(b.y));
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int x = 0; x < 4; ++x)
          *reinterpret_cast<__half*>(
              base + lay::T +
              arch::tile_offset<chunk>(i * 16 + 8 * n + 2 * quad + (x & 1),
                                       j * 16 + group + 8 * (x >> 1))) =
              __float2half_rn(z[n][x]);
        if (step < 3) {
          kept[step][n][0] = arch::to_tf32(z[n][0]);
          kept[step][n][1] = arch::to_tf32(z[n][2]);
          kept[step][n][2] = arch::to_tf32(z[n][1]);
          kept[step][n][3] = arch::to_tf32(z[n][3]);
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
  const std::uint32_t shared = arch::shared_address(base);
  for (int job = warp; job < 8; job += warps) {
    const int block = job & 3;
#pragma unroll
    for (int nb = job >> 2; nb < 4; nb += 2) {
      if (nb > block) break;
      float y[2][4] = {};
      for (int kb = nb; kb <= block; ++kb) {
        const fragment x =
            arch::left<chunk>(shared + lay::P, block * 16, kb * 16, lane);
        const fragment z =
            arch::right_trans<chunk>(shared + lay::T, kb * 16, nb * 16, lane);
        arch::multiply<__half>(y[0], x, z.r[0], z.r[1]);
        arch::multiply<__half>(y[1], x, z.r[2], z.r[3]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *reinterpret_cast<std::uint32_t*>(
              base + lay::L +
              arch::tile_offset<chunk>(block * 16 + group + 8 * h,
                                       nb * 16 + 8 * n + 2 * quad)) =
              operand::pack(y[n][2 * h], y[n][2 * h + 1]);
    }
  }
}

/// Z = (P T)^T do, 16 value channels a turn.
template <typename lay, int V, int warps>
__device__ __forceinline__ void multiply_Z(const arguments& a, std::int64_t at,
                                           std::uint32_t shared, int warp,
                                           int lane) {
  const int group = lane >> 2, quad = lane & 3;
  for (int slice = warp * 16; slice < V; slice += warps * 16) {
    __half* const to = a.Z + at * chunk * V + slice * chunk + group * 16;
    fragment x[4];
#pragma unroll
    for (int kb = 0; kb < 4; ++kb)
      x[kb] = arch::right_trans<V>(shared + lay::d_o, kb * 16, slice, lane);
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      float y[2][4] = {};
#pragma unroll
      for (int kb = block; kb < 4; ++kb) {
        const fragment t =
            arch::left_trans<chunk>(shared + lay::L, block * 16, kb * 16, lane);
        arch::multiply<__half>(y[0], t, x[kb].r[0], x[kb].r[1]);
        arch::multiply<__half>(y[1], t, x[kb].r[2], x[kb].r[3]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_row16(to + (block * 16 + 8 * h) * 16, quad,
                    operand::pack(y[0][2 * h], y[0][2 * h + 1]),
                    operand::pack(y[1][2 * h], y[1][2 * h + 1]), true,
                    group * 2 & 8);
    }
  }
}

/// The sums of P T over its rows, a column two threads.
template <typename lay>
__device__ __forceinline__ void sum_rows(const arguments& a, std::int64_t at,
                                         const std::uint8_t* base, int tid) {
  const int col = tid / 2, half_row = tid % 2;
  if (col >= chunk) return;
  float sum = 0.f;
  for (int row = col / 16 * 16 + half_row; row < chunk; row += 2)
    sum += __half2float(*reinterpret_cast<const __half*>(
        base + lay::L + arch::tile_offset<chunk>(row, col)));
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (half_row == 0) a.factors[at * (4 * chunk) + to_start + col] = sum;
}

/// A lane's piece of arguments::change and keys, 16 tokens.
struct gate_parts {
  uint4 change, keys;

  /// Of rows `group` (h = 0) or eight more.
  __device__ __forceinline__ void put(int h, unsigned kind, const float (&b)[4],
                                      const float (&k)[4]) {
    // Two tokens a register.  Pairs are formed apart.
    const std::uint32_t low = arch::transpose8(pack_kind(kind, b[0], b[1])),
                        high = arch::transpose8(pack_kind(kind, b[2], b[3]));
    std::uint32_t key_low = 0, key_high = 0;
    if (kind != pairs) {
      key_low = arch::transpose8(pack_kind(kind, k[0], k[1]));
      key_high = arch::transpose8(pack_kind(kind, k[2], k[3]));
    }
    if (h == 0) {
      change.x = low, change.y = high, keys.x = key_low, keys.z = key_high;
    } else {
      change.z = low, change.w = high, keys.y = key_low, keys.w = key_high;
    }
  }
};

/// T from shared memory to the workspace, its diagonal blocks and below.
template <typename lay, int threads>
__device__ __forceinline__ void keep_T(const arguments& a, std::int64_t at,
                                       const std::uint8_t* base, int tid) {
  for (int i = tid; i < chunk * chunk / 8; i += threads) {
    const int row = i / 8, col = i % 8 * 8;
    const int offset = arch::tile_offset<chunk>(row, col);
    if (col / 16 <= row / 16)
      *reinterpret_cast<uint4*>(a.T + at * chunk * chunk + offset / 2) =
          *reinterpret_cast<const uint4*>(base + lay::T + offset);
  }
}

/// A thread's pieces of the tile of do: the largest of all threads' into
/// lay::peak.
template <typename E, int V, int threads, typename lay>
__device__ __forceinline__ void find_peak(std::uint8_t* base, int tid) {
  float most = 0.f;
#pragma unroll 1
  for (int i = 0; i < chunk * V / 8; i += threads) {
    const int row = (tid + i) / (V / 8), col = (tid + i) % (V / 8) * 8;
    float x[8];
    unpack8<E>(x, *reinterpret_cast<const uint4*>(
                      base + lay::d_o + arch::tile_offset<V>(row, col)));
#pragma unroll
    for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(x[j]));
  }
  raise_peak(reinterpret_cast<unsigned*>(base + lay::peak), most, tid & 31);
}

/// The same pieces scaled by that peak, in the tile and in the workspace.
template <typename E, int K, int V, int threads, typename lay>
__device__ __forceinline__ void scale_d_o(const arguments& a, std::int64_t at,
                                          int sequence, int head,
                                          std::uint8_t* base, int tid) {
  const unsigned peak = *reinterpret_cast<unsigned*>(base + lay::peak);
  const float2 norm = scale_of(peak);
  if (tid == 0) {
    a.decay[at * (K + 4) + K] = norm.y;
    atomicMax(a.peak + sequence * a.p.HV + head, peak);
  }
#pragma unroll 1
  for (int i = 0; i < chunk * V / 8; i += threads) {
    const int row = (tid + i) / (V / 8), col = (tid + i) % (V / 8) * 8;
    auto* tile = reinterpret_cast<uint4*>(base + lay::d_o +
                                          arch::tile_offset<V>(row, col));
    float x[8];
    unpack8<E>(x, *tile);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= norm.x;
    *reinterpret_cast<uint4*>(a.d_o + at * chunk * V + panel_offset(row, col)) =
        *tile = pack8<__half>(x);
  }
}

/// `Content`: b holds the logits of a gate that moves from window to window.
template <typename E, int K, int V, bool Content>
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
  const std::uint32_t shared = arch::shared_address(memory);
  auto* flags = reinterpret_cast<unsigned*>(memory + lay::flags);

  if (tid == 0)
    *flags = 0, *reinterpret_cast<unsigned*>(memory + lay::peak) = 0;
  // Each lane's inputs wait in its slice of the tiles.
  {
    const std::uint32_t to = shared + arch::tile_offset<K>(group, channel);
    copy_rows<E, K>(to + lay::q, p.q, c, group, qk_head, channel);
    copy_rows<E, K>(to + lay::k, p.k, c, group, qk_head, channel);
    if (Content || p.family == family::gdn2) {
      copy_rows<E, K>(to + lay::R, p.b, c, group, head, channel);
    } else {
      uint2 b_raw[8];
      fetch_erase<E, Content>(b_raw, p, c, group, 0, head, channel);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        *reinterpret_cast<uint2*>(
            memory + lay::R + arch::tile_offset<K>(group + 8 * i, channel)) =
            b_raw[i];
    }
  }
  arch::copy_async_commit();
  for (int i = tid; i < chunk * V / 8; i += threads) {
    const int row = i / (V / 8), col = i % (V / 8) * 8;
    const bool valid = row < c.length;
    const int from = c.first + (valid ? row : 0);
    arch::copy_async_16(shared + lay::d_o + arch::tile_offset<V>(row, col),
                        row_of<E>(a.d.d_o, c.batch, from, head) + col, valid);
  }
  arch::copy_async_commit();
  uint2 Kt[8];
  {
    const std::int64_t own = at * chunk * K + wide_offset(group, channel) / 2;
    __half* const Qt_row = a.Qt + own;
    __half* const Rt_row = a.Rt + own;
    float sum[8][4], total[4], ends[5][4];
    fetch_decay(sum, p, c, group, head, channel);
    if ((Content || p.family != family::gdn2) && tid < chunk)
      a.factors[at * (4 * chunk) + to_beta + tid] =
          tid < c.length
              ? static_cast<float>(*row_of<E>(Content ? p.w : p.beta, c.batch,
                                              c.first + tid, head))
              : 0.f;
    [[maybe_unused]] float shift[4];
    if constexpr (Content)
      read4(shift, shifts_of<K>(a, c, index, head) + channel);
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
    arch::copy_async_wait<1>();
    const std::uint8_t* const raw =
        memory + arch::tile_offset<K>(group, channel);
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      uint2 q_raw[2], k_raw[2], b_raw[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint8_t* const from = raw + (2 * b + i) * 16 * K;
        q_raw[i] = *reinterpret_cast<const uint2*>(from + lay::q);
        k_raw[i] = *reinterpret_cast<const uint2*>(from + lay::k);
        b_raw[i] = *reinterpret_cast<const uint2*>(from + lay::R);
      }
      // The scaled forms stand in other lanes' columns.
      __syncwarp();
      const reference r = reference_of(ends[b], ends[b + 1], kind);
      [[maybe_unused]] gate_parts keep;
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
        float q[4], k[4], R[4], change[4];
        unpack4<E>(q, q_raw[i - 2 * b]);
        unpack4<E>(k, k_raw[i - 2 * b]);
        unpack4<E>(R, b_raw[i - 2 * b]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float up = power(sum[i][j] - r.q[j]);
          float2 gate = {R[j], 0.f};
          if constexpr (Content) gate = logistic(R[j] + shift[j]);
          R[j] = gate.x * k[j];
          change[j] = R[j] * gate.y * (kind == pairs ? power(sum[i][j]) : up);
          q[j] *= up, R[j] *= up, k[j] *= power(r.k[j] - sum[i][j]);
        }
        if constexpr (Content) keep.put(i % 2, kind, change, k);
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
        Kt[i] = {operand::pack(k[0], k[1]), operand::pack(k[2], k[3])};
        store4(Qt_row + 8 * i * 64, q);
        store4(Rt_row + 8 * i * 64, R);
      }
      if constexpr (Content) {
        const std::int64_t to = ((at * warps + warp) * 4 + b) * 32 + lane;
        a.change[to] = keep.change;
        a.keys[to] = keep.keys;
      }
    }
    if (group == 0)
      *reinterpret_cast<float4*>(a.decay + at * (K + 4) + channel) =
          make_float4(power(total[0]), power(total[1]), power(total[2]),
                      power(total[3]));
  }
  arch::copy_async_wait<0>();
  find_peak<E, V, threads, lay>(memory, tid);
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
      const fragment x = arch::left<K>(shared + (is_P ? lay::q : lay::R),
                                       block * 16, kb * 16, lane);
#pragma unroll
      for (int nb = 0; nb < 4; ++nb) {
        if (nb > block || (nb == block && is_pairs)) break;
        const fragment y =
            arch::right<K>(shared + lay::k, kb * 16, nb * 16, lane);
        fragment z = x;
        if (nb < block) {
          const auto* f = reinterpret_cast<const std::uint32_t*>(
              memory + lay::ratio +
              ((block * (block - 1) / 2 + nb) * K + kb * 16 + 2 * quad) * 2);
          const std::uint32_t lo = f[0], hi = f[4];
          if (is_bfloat) {
            constexpr int first = (lay::half_ratio - lay::ratio) / 4;
            arch::scale_columns<__nv_bfloat16>(z, f[first], f[first + 4]);
            arch::scale_columns<__nv_bfloat16>(z, lo, hi);
          } else {
            arch::scale_columns<__half>(z, lo, hi);
          }
        }
        if (is_bfloat) {
          arch::multiply<__nv_bfloat16>(acc[job][2 * nb], z, y.r[0], y.r[1]);
          arch::multiply<__nv_bfloat16>(acc[job][2 * nb + 1], z, y.r[2],
                                        y.r[3]);
        } else {
          arch::multiply<__half>(acc[job][2 * nb], z, y.r[0], y.r[1]);
          arch::multiply<__half>(acc[job][2 * nb + 1], z, y.r[2], y.r[3]);
        }
      }
    }
  }
  // The diagonal blocks of slices of kind `pairs`.
  if (kinds & 0xaaaaaaaau) {
    // Set aside by hand, or the compiler would spill them on everyone's path.
    volatile std::uint32_t kept[16];
    volatile float kept_acc[jobs * 32];
#pragma unroll
    for (int n = 0; n < 8; ++n)
      kept[2 * n] = Kt[n].x, kept[2 * n + 1] = Kt[n].y;
#pragma unroll
    for (int n = 0; n < jobs * 32; ++n)
      kept_acc[n] = acc[n >> 5][n >> 2 & 7][n & 3];
#pragma unroll 1
    for (int kb = 0; kb < K / 16; ++kb) {
      if ((kinds >> (2 * kb) & 3) != pairs) continue;
      auto* decay = reinterpret_cast<float*>(memory + lay::d_o);  // [64,16]
      auto* raw = reinterpret_cast<__half*>(memory + lay::d_o + 4096);
      __syncthreads();
      if (kb == warp)
        stage_pairs<E, Content>(
            decay, raw, p, c, head, base,
            Content ? shifts_of<K>(a, c, index, head) : nullptr);
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
    for (int n = 0; n < 8; ++n) Kt[n] = {kept[2 * n], kept[2 * n + 1]};
#pragma unroll
    for (int n = 0; n < jobs * 32; ++n)
      acc[n >> 5][n >> 2 & 7][n & 3] = kept_acc[n];
    __syncthreads();
    for (int i = tid; i < chunk * V / 8; i += threads) {
      const int row = i / (V / 8), col = i % (V / 8) * 8;
      const bool valid = row < c.length;
      const int from = c.first + (valid ? row : 0);
      arch::copy_async_16(shared + lay::d_o + arch::tile_offset<V>(row, col),
                          row_of<E>(a.d.d_o, c.batch, from, head) + col, valid);
    }
    arch::copy_async_commit();
    arch::copy_async_wait<0>();
  }
  // The tiles of q, R and k have been read by all: T and P, L and Kt take their
  // place.
  __syncthreads();
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
                                            arch::tile_offset<chunk>(t, s)) =
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
#pragma unroll
  for (int i = 0; i < 8; ++i)
    put_row<K>(memory + lay::k, group + 8 * i, base, quad, Kt[i]);
  scale_d_o<E, K, V, threads, lay>(a, at, c.sequence, head, memory, tid);
  __syncthreads();

  invert<lay>(memory, tid, warp, group, quad);

  multiply_PT<lay, warps>(memory, warp, lane);
  keep_T<lay, threads>(a, at, memory, tid);
  // M = T^T Kt, this warp's channels.
  __half* const to = a.M + at * chunk * K + wide_offset(group, channel) / 2;
  fragment x[4];
#pragma unroll
  for (int kb = 0; kb < 4; ++kb)
    x[kb] = arch::right_trans<K>(shared + lay::k, kb * 16, base, lane);
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    float y[2][4] = {};
#pragma unroll
    for (int kb = block; kb < 4; ++kb) {
      const fragment t =
          arch::left_trans<chunk>(shared + lay::T, block * 16, kb * 16, lane);
      arch::multiply<__half>(y[0], t, x[kb].r[0], x[kb].r[1]);
      arch::multiply<__half>(y[1], t, x[kb].r[2], x[kb].r[3]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float z[4] = {y[0][2 * h], y[0][2 * h + 1], y[1][2 * h],
                          y[1][2 * h + 1]};
      store4(to + (block * 16 + 8 * h) * 64, z);
    }
  }
  __syncthreads();
  if constexpr (Content) sum_rows<lay>(a, at, memory, tid);
  multiply_Z<lay, V, warps>(a, at, shared, warp, lane);
}

/// `prepare` for a decay of one number a head.  Three blocks a multiprocessor
/// for K = 128: T and P take the place of q.
template <int K, int V>
struct scalar_prepare_layout {
  static constexpr int k = 0;
  static constexpr int q = k + chunk * K * 2;
  static constexpr int d_o = q + chunk * K * 2;
  static constexpr int L = d_o + chunk * V * 2;  // L in fp32, then P T
  static constexpr int L_stride = 68;
  static constexpr int D = L + chunk * L_stride * 4;  // fp32 diagonal of T
  static constexpr int D_stride = 18;
  static constexpr int factors = D + 4 * 16 * D_stride * 4;
  static constexpr int peak =
      factors + 4 * chunk * 4;  // bits of the largest do
  static constexpr int T = q;
  static constexpr int P = K == 128 ? q + chunk * chunk * 2 : peak + 16;
  static constexpr int bytes = peak + 16 + (K == 128 ? 0 : chunk * chunk * 2);
};

template <typename E, int K, int V>
__global__ void __launch_bounds__(K * 2, 3)
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
  const std::uint32_t shared = arch::shared_address(memory);
  auto* const factors = reinterpret_cast<float*>(memory + lay::factors);
  if (tid == 0) *reinterpret_cast<unsigned*>(memory + lay::peak) = 0;

#pragma unroll
  for (int i = 0; i < key_turns; ++i) {
    const int row = (tid + i * threads) / (K / 8),
              col = (tid + i * threads) % (K / 8) * 8;
    const bool valid = row < c.length;
    const int from = c.first + (valid ? row : 0);
    const std::uint32_t to = shared + arch::tile_offset<K>(row, col);
    arch::copy_async_16(to + lay::k,
                        row_of<E>(p.k, c.batch, from, qk_head) + col, valid);
    arch::copy_async_16(to + lay::q,
                        row_of<E>(p.q, c.batch, from, qk_head) + col, valid);
  }
  arch::copy_async_commit();
#pragma unroll
  for (int i = 0; i < value_turns; ++i) {
    const int row = (tid + i * threads) / (V / 8),
              col = (tid + i * threads) % (V / 8) * 8;
    const bool valid = row < c.length;
    arch::copy_async_16(
        shared + lay::d_o + arch::tile_offset<V>(row, col),
        row_of<E>(a.d.d_o, c.batch, c.first + (valid ? row : 0), head) + col,
        valid);
  }
  arch::copy_async_commit();
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
      *reinterpret_cast<float4*>(a.decay + at * (K + 4) + lane * 4) =
          make_float4(all, all, all, all);
  }
  arch::copy_async_wait<1>();
  // q and k in fp16, by the threads that copied; kept for the kernels to come.
#pragma unroll
  for (int i = 0; i < 2 * key_turns; ++i) {
    const bool is_k = i >= key_turns;
    const int piece = tid + i % key_turns * threads;
    const int row = piece / (K / 8), col = piece % (K / 8) * 8;
    auto* tile = reinterpret_cast<uint4*>(memory + (is_k ? lay::k : lay::q) +
                                          arch::tile_offset<K>(row, col));
    uint4 x = *tile;
    if (!std::is_same_v<E, __half>) {
      float y[8];
      unpack8<E>(y, x);
      *tile = x = pack8<__half>(y);
    }
    *reinterpret_cast<uint4*>((is_k ? a.Rt : a.Qt) + at * chunk * K +
                              arch::tile_offset<K>(row, col) / 2) = x;
  }
  arch::copy_async_wait<0>();
  __syncthreads();  // the peak is 0
  find_peak<E, V, threads, lay>(memory, tid);
  __syncthreads();

  // L and P: eight jobs of 16 rows.
#pragma unroll
  for (int job = 0; job < jobs; ++job) {
    const int block = (warp + job * warps) & 3;
    const bool is_P = (warp + job * warps) >= 4;
    float acc[8][4] = {};
#pragma unroll
    for (int kb = 0; kb < K / 16; ++kb) {
      const fragment x = arch::left<K>(shared + (is_P ? lay::q : lay::k),
                                       block * 16, kb * 16, lane);
#pragma unroll
      for (int nb = 0; nb < 4; ++nb) {
        if (nb > block) break;
        const fragment y =
            arch::right<K>(shared + lay::k, kb * 16, nb * 16, lane);
        arch::multiply<__half>(acc[2 * nb], x, y.r[0], y.r[1]);
        arch::multiply<__half>(acc[2 * nb + 1], x, y.r[2], y.r[3]);
      }
    }
    if (K == 128) __syncthreads();  // P takes the place of q
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
                                            arch::tile_offset<chunk>(t, s)) =
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
  scale_d_o<E, K, V, threads, lay>(a, at, c.sequence, head, memory, tid);
  invert<lay>(memory, tid, warp, group, quad);

  multiply_PT<lay, warps>(memory, warp, lane);
  keep_T<lay, threads>(a, at, memory, tid);
  // M = T^T Kt, this warp's channels.
  __half* const to =
      a.M + at * chunk * K + group * K + ((warp * 16) ^ (group / 2 * 16));
  fragment x[4];
#pragma unroll
  for (int kb = 0; kb < 4; ++kb) {
    const auto* const by =
        reinterpret_cast<const float2*>(factors + to_tail + kb * 16 + 2 * quad);
    x[kb] = scale_rows(
        arch::right_trans<K>(shared + lay::k, kb * 16, warp * 16, lane), by[0],
        by[4]);
  }
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    float y[2][4] = {};
#pragma unroll
    for (int kb = block; kb < 4; ++kb) {
      const fragment t =
          arch::left_trans<chunk>(shared + lay::T, block * 16, kb * 16, lane);
      arch::multiply<__half>(y[0], t, x[kb].r[0], x[kb].r[1]);
      arch::multiply<__half>(y[1], t, x[kb].r[2], x[kb].r[3]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
      store_row16(to + (block * 16 + 8 * h) * K, quad,
                  operand::pack(y[0][2 * h], y[0][2 * h + 1]),
                  operand::pack(y[1][2 * h], y[1][2 * h + 1]), true,
                  group % 2 * 8);
  }
  __syncthreads();
  multiply_Z<lay, V, warps>(a, at, shared, warp, lane);
}

}  // namespace carve::cuda::backward_chunks
