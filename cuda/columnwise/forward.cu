// How fast is the chunked form when no single inverse serves every column?
//
// Value-axis erase, forward.  One block walks the chunks of 64 tokens of one
// (sequence, value head); each warp keeps sixteen value columns of the state
// in registers, transposed, as the left operand of its products.  The coupling
// L is formed once for all columns.  Only its diagonal blocks of 16 tokens
// need a solve for each column (fp32 substitution, e scaling each row): what
// earlier blocks contribute is L times U before the gate is applied, and so a
// matrix product for any e.
//
// Exponents of decay ratios are never positive but inside a diagonal block,
// where they are taken from the block's middle; a block that decays by more
// than the operand format can carry is formed pair by pair instead.
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/shared.cuh"
#include "chunk/decay.cuh"
#include "common.cuh"
#include "gates.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

using namespace arch;

using chunks::chunk;
constexpr int side = 16, sides = chunk / side;

/// Largest log2 decay over a diagonal block that its factored form carries: it
/// is referenced to the middle.
template <class T>
constexpr float steep_from = 2 * chunks::widest_factor<T>;

struct column_arguments {
  problem p;
  outputs out;
};

/// Shared memory of a block.
template <class T, int K, int V>
struct block_memory {
  using keys = swizzled_matrix<T, chunk, K>;
  using couplings = swizzled_matrix<__half, chunk, chunk>;
  using values = T[chunk][V + 8];
  keys q, k;
  keys erase_keys, queries;  // k e^G, q e^G
  swizzled_matrix<__half, chunk, K> tail_keys;
  couplings L, P;  // L but for its diagonal blocks
  values v, w, e;
  float log[chunk + 1][K + 8];        // G in bits, before each token
  float diagonal[sides][side][side];  // of L, transposed
  float total[K];                     // decay of the chunk
  float part[4 * K];                  // each thread's sum of logs
};

/// Running log decay, and keys and queries seen from the chunk's ends.
template <class T, int K, int V>
__device__ __forceinline__ void decay_keys(block_memory<T, K, V>& m,
                                           bool read_before) {
  constexpr int threads = V * 2, parts = threads / K, part = chunk / parts;
  static_assert(parts >= 1 && parts <= 4);
  const int i = threadIdx.x % K, from = threadIdx.x / K * part;
  float sum = 0.0f;
#pragma unroll 16
  for (int t = 0; t < part; ++t) {
    float& x = m.log[from + t + 1][i];
    sum += chunks::log_decay(x);
    x = sum;
  }
  m.part[threadIdx.x] = sum;
  __syncthreads();
  float before = 0.0f, all = 0.0f;
#pragma unroll
  for (int x = 0; x < parts; ++x) {
    if (x < static_cast<int>(threadIdx.x) / K) before += m.part[x * K + i];
    all += m.part[x * K + i];
  }
  if (from == 0) m.total[i] = exp2_fast(all);
  float previous = before;
#pragma unroll 8
  for (int t = 0; t < part; ++t) {
    float& x = m.log[from + t + 1][i];
    const float g = x + before;
    x = g;
    const float k = to_float(m.k.at(from + t, i));
    const float q = to_float(m.q.at(from + t, i));
    m.erase_keys.at(from + t, i) = from_float<T>(k * exp2_fast(g));
    m.queries.at(from + t, i) =
        from_float<T>(q * exp2_fast(read_before ? previous : g));
    m.tail_keys.at(from + t, i) = from_float<__half>(k * exp2_fast(all - g));
    previous = g;
  }
}

/// L and P, a row of 16x16 blocks for each task.
template <class T, int K, int V>
__device__ __forceinline__ void couple(block_memory<T, K, V>& m,
                                       bool read_before, int warp, int lane) {
  constexpr int warps = V / 16;
  const int group = lane / 4, quad = lane % 4;
  for (int task = warp; task < 2 * sides; task += warps) {
    const bool reads = task % 2 == 1;  // P, else L
    const int I = sides - 1 - task / 2;
    auto& rows = reads ? m.q : m.k;
    const int shift = reads && read_before ? 0 : 1;
    const float* start = m.log[I * side];
    const float* end = m.log[(I + 1) * side];
    float range = 0.0f;
    for (int i = lane; i < K; i += 32) range = fmaxf(range, start[i] - end[i]);
    for (int d = 16; d > 0; d /= 2)
      range = fmaxf(range, __shfl_xor_sync(0xffffffffu, range, d));
    const bool steep = range > steep_from<T>;

    float acc[sides][2][4] = {};
#pragma unroll 1
    for (int i = 0; i < K; i += 16) {
      const fragment raw = left<K>(shared_address(&rows), I * side, i, lane);
      fragment outside, inside;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int t = I * side + group + c % 2 * 8;
        const int key = i + quad * 2 + c / 2 * 8;
        const float2 x = unpack<T>(raw.r[c]);
        const float2 g = reinterpret_cast<const float2&>(m.log[t + shift][key]);
        const float2 g0 = reinterpret_cast<const float2&>(start[key]);
        const float2 g1 = reinterpret_cast<const float2&>(end[key]);
        outside.r[c] =
            pack<T>(x.x * exp2_fast(g.x - g0.x), x.y * exp2_fast(g.y - g0.y));
        inside.r[c] = pack<T>(x.x * exp2_fast(g.x - 0.5f * (g0.x + g1.x)),
                              x.y * exp2_fast(g.y - 0.5f * (g0.y + g1.y)));
      }
#pragma unroll
      for (int J = 0; J < sides; ++J) {
        if (J > I) break;
        fragment b = right<K>(shared_address(&m.k), i, J * side, lane);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int s = J * side + group + c / 2 * 8;
          const int key = i + quad * 2 + c % 2 * 8;
          const float2 x = unpack<T>(b.r[c]);
          const float2 g = reinterpret_cast<const float2&>(m.log[s + 1][key]);
          float2 to = reinterpret_cast<const float2&>(start[key]);
          if (J == I) {
            const float2 g1 = reinterpret_cast<const float2&>(end[key]);
            to.x = 0.5f * (to.x + g1.x);
            to.y = 0.5f * (to.y + g1.y);
          }
          b.r[c] =
              pack<T>(x.x * exp2_fast(to.x - g.x), x.y * exp2_fast(to.y - g.y));
        }
        const fragment& a = J == I ? inside : outside;
        multiply<T>(acc[J], a, b);
      }
    }
    auto& couplings = reads ? m.P : m.L;
#pragma unroll
    for (int J = 0; J < sides; ++J) {
      if (J > I) break;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int t = group + r * 8, s = half * 8 + quad * 2;
          float2 x = {acc[J][half][2 * r], acc[J][half][2 * r + 1]};
          if (J == I) {
            if (steep) continue;
            const int reach = reads && !read_before ? t + 1 : t;
            x.x = s < reach ? x.x : 0.0f;
            x.y = s + 1 < reach ? x.y : 0.0f;
            if (!reads) {
              m.diagonal[I][s][t] = x.x;
              m.diagonal[I][s + 1][t] = x.y;
              continue;
            }
          }
          couplings.template at<__half2>(I * side + t, J * side + s) =
              __floats2half2_rn(x.x, x.y);
        }
    }
    if (!steep) continue;
    for (int t = 0; t < side; ++t)
      for (int s = 0; s < side; ++s) {
        float sum = 0.0f;
        const bool in = reads && !read_before ? s <= t : s < t;
        const int row = I * side + t, other = I * side + s;
        if (in)
          for (int i = lane; i < K; i += 32)
            sum += to_float(rows.at(row, i)) * to_float(m.k.at(other, i)) *
                   exp2_fast(m.log[row + shift][i] - m.log[other + 1][i]);
        for (int d = 16; d > 0; d /= 2)
          sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (lane != 0) continue;
        if (reads)
          couplings.at(row, other) = from_float<__half>(sum);
        else
          m.diagonal[I][s][t] = sum;
      }
  }
}

/// U of a warp's 16 columns, column by column; y: what the start state
/// contributes to the erased values.
template <class T, int K, int V>
__device__ __forceinline__ void solve(const block_memory<T, K, V>& m,
                                      fragment (&U)[sides],
                                      float (&y)[chunk / 8][4], int column,
                                      int lane) {
  const int group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int I = 0; I < sides; ++I) {
#pragma unroll
    for (int J = 0; J < I; ++J) {
      const fragment b =
          right<chunk>(shared_address(&m.L), J * side, I * side, lane);
      multiply<__half>(y[2 * I], U[J], b.r[0], b.r[1]);
      multiply<__half>(y[2 * I + 1], U[J], b.r[2], b.r[3]);
    }
    float written[2][4], erase[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int t = I * side + half * 8 + quad * 2 + c % 2;
        const int j = column + group + c / 2 * 8;
        written[half][c] = to_float(m.v[t][j]) * to_float(m.w[t][j]);
        erase[half][c] = to_float(m.e[t][j]);
      }
#pragma unroll
    for (int s = 0; s < side - 1; ++s) {
      const int half = s / 8, c = s % 2;
      const int owner = (lane & ~3) | (s % 8 / 2);
      float u[2];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        u[r] =
            __shfl_sync(0xffffffffu,
                        written[half][2 * r + c] -
                            erase[half][2 * r + c] * y[2 * I + half][2 * r + c],
                        owner);
#pragma unroll
      for (int x = half; x < 2; ++x) {
        const float2 l =
            reinterpret_cast<const float2&>(m.diagonal[I][s][x * 8 + quad * 2]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          y[2 * I + x][2 * r] += l.x * u[r];
          y[2 * I + x][2 * r + 1] += l.y * u[r];
        }
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int half = c / 2, r = c % 2 * 2;
      const auto u = [&](int r) {
        return written[half][r] - erase[half][r] * y[2 * I + half][r];
      };
      U[I].r[c] = pack<__half>(u(r), u(r + 1));
    }
  }
}

template <class T, int K, int V>
__global__ void __launch_bounds__(V * 2, 1)
    columnwise_kernel(const __grid_constant__ column_arguments args) {
  constexpr int threads = V * 2;
  const problem& p = args.p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, quad = lane % 4;
  const int n = blockIdx.x / p.HV, hv = blockIdx.x % p.HV;
  const int h = hv / (p.HV / p.H);
  const int column = warp * 16;
  const sequence_span span = span_of(p.cu_seqlens, p.T, n);

  extern __shared__ __align__(128) char dynamic_shared[];
  auto& m = reinterpret_cast<block_memory<T, K, V>&>(dynamic_shared);

  const T* q_rows =
      static_cast<const T*>(p.q.data) + offset(p.q, span.batch, span.first, h);
  const T* k_rows =
      static_cast<const T*>(p.k.data) + offset(p.k, span.batch, span.first, h);
  const float* g_rows = static_cast<const float*>(p.g.data) +
                        offset(p.g, span.batch, span.first, hv);
  T* o_rows = static_cast<T*>(args.out.o.data) +
              offset(args.out.o, span.batch, span.first, hv);

  // Rows past the end arrive as zeros: they write nothing, decay nothing.
  auto fetch_keys = [&](std::int64_t t0) {
    for (int x = threadIdx.x; x < chunk * K / 8; x += threads) {
      const int t = x / (K / 8), i = x % (K / 8) * 8;
      const bool in = t0 + t < span.length;
      const std::int64_t row = in ? t0 + t : 0;
      copy_async_16(shared_address(&m.q.at(t, i)), q_rows + row * p.q.token + i,
                    in);
      copy_async_16(shared_address(&m.k.at(t, i)), k_rows + row * p.k.token + i,
                    in);
    }
    for (int x = threadIdx.x; x < chunk * K / 4; x += threads) {
      const int t = x / (K / 4), i = x % (K / 4) * 4;
      const bool in = t0 + t < span.length;
      const std::int64_t row = in ? t0 + t : 0;
      copy_async_16(shared_address(&m.log[t + 1][i]),
                    g_rows + row * p.g.token + i, in);
    }
  };
  auto fetch_columns = [&](std::int64_t t0) {
    const auto fetch = [&](const tensor& x, auto& to) {
      const T* rows = static_cast<const T*>(x.data) +
                      offset(x, span.batch, span.first, hv) + column;
#pragma unroll
      for (int i = lane; i < chunk * 2; i += 32) {
        const int t = i / 2, j = i % 2 * 8;
        const bool in = t0 + t < span.length;
        const std::int64_t row = in ? t0 + t : 0;
        copy_async_16(shared_address(&to[t][column + j]),
                      rows + row * x.token + j, in);
      }
    };
    fetch(p.v, m.v);
    fetch(p.w, m.w);
    fetch(p.e, m.e);
  };

  float S[K / 8][4];  // S^T: rows are this warp's columns
  const std::int64_t state = (static_cast<std::int64_t>(n) * p.HV + hv) * K * V;
#pragma unroll
  for (int b = 0; b < K / 8; ++b)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = b * 8 + quad * 2 + c % 2, j = column + group + c / 2 * 8;
      S[b][c] = p.initial_state == nullptr
                    ? 0.0f
                    : p.initial_state[state + std::int64_t(i) * V + j];
    }
  for (int i = threadIdx.x; i < K; i += threads) m.log[0][i] = 0.0f;
  if (span.length > 0) {
    fetch_keys(0);
    fetch_columns(0);
  }
  copy_async_commit();

  for (std::int64_t t0 = 0; t0 < span.length; t0 += chunk) {
    copy_async_wait<0>();
    __syncthreads();

    decay_keys<T, K, V>(m, p.read_before);
    __syncthreads();
    couple<T, K, V>(m, p.read_before, warp, lane);
    __syncthreads();
    if (t0 + chunk < span.length) fetch_keys(t0 + chunk);

    // What the start state contributes to the erased values and the output.
    float y[chunk / 8][4] = {}, o[chunk / 8][4] = {};
#pragma unroll
    for (int kb = 0; kb < K / 16; ++kb) {
      fragment a;
#pragma unroll
      for (int c = 0; c < 4; ++c)
        a.r[c] = pack<T>(S[2 * kb + c / 2][c % 2 * 2],
                         S[2 * kb + c / 2][c % 2 * 2 + 1]);
#pragma unroll
      for (int t = 0; t < sides; ++t) {
        const auto add = [&](float(&to)[chunk / 8][4], const auto& keys) {
          const fragment b =
              right<K>(shared_address(&keys), kb * 16, t * side, lane);
          multiply<T>(to[2 * t], a, b.r[0], b.r[1]);
          multiply<T>(to[2 * t + 1], a, b.r[2], b.r[3]);
        };
        add(y, m.erase_keys);
        add(o, m.queries);
      }
    }

    fragment U[sides];
    solve<T, K, V>(m, U, y, column, lane);
    __syncwarp();
    if (t0 + chunk < span.length) fetch_columns(t0 + chunk);
    copy_async_commit();

    // Output.
#pragma unroll
    for (int t = 0; t < sides; ++t) {
#pragma unroll
      for (int s = 0; s <= t; ++s) {
        const fragment b =
            right<chunk>(shared_address(&m.P), s * side, t * side, lane);
        multiply<__half>(o[2 * t], U[s], b.r[0], b.r[1]);
        multiply<__half>(o[2 * t + 1], U[s], b.r[2], b.r[3]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const std::uint32_t x =
              transpose8(pack<T>(p.scale * o[2 * t + half][2 * r],
                                 p.scale * o[2 * t + half][2 * r + 1]));
          const std::int64_t row = t0 + t * side + half * 8 + group;
          if (row < span.length)
            *reinterpret_cast<std::uint32_t*>(o_rows + row * args.out.o.token +
                                              column + r * 8 + quad * 2) = x;
        }
    }

    // State.
#pragma unroll
    for (int kb = 0; kb < K / 16; ++kb) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const float2 d = reinterpret_cast<const float2&>(
            m.total[kb * 16 + x * 8 + quad * 2]);
        S[2 * kb + x][0] *= d.x;
        S[2 * kb + x][1] *= d.y;
        S[2 * kb + x][2] *= d.x;
        S[2 * kb + x][3] *= d.y;
      }
#pragma unroll
      for (int s = 0; s < sides; ++s) {
        const fragment b = right_trans<K>(shared_address(&m.tail_keys),
                                          s * side, kb * 16, lane);
        multiply<__half>(S[2 * kb], U[s], b.r[0], b.r[1]);
        multiply<__half>(S[2 * kb + 1], U[s], b.r[2], b.r[3]);
      }
    }
  }
  copy_async_wait<0>();
  if (args.out.final_state == nullptr) return;
#pragma unroll
  for (int b = 0; b < K / 8; ++b)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = b * 8 + quad * 2 + c % 2, j = column + group + c / 2 * 8;
      args.out.final_state[state + std::int64_t(i) * V + j] = S[b][c];
    }
}

template <class T, int K, int V>
status launch(const column_arguments& a, CUstream_st* stream) {
  const auto kernel = columnwise_kernel<T, K, V>;
  constexpr int bytes = sizeof(block_memory<T, K, V>);
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<a.p.N * a.p.HV, V * 2, bytes, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <class T>
status choose_shape(const column_arguments& a, CUstream_st* stream) {
  if (a.p.K == 128)
    return a.p.V == 128 ? launch<T, 128, 128>(a, stream)
                        : launch<T, 128, 64>(a, stream);
  return a.p.V == 128 ? launch<T, 64, 128>(a, stream)
                      : launch<T, 64, 64>(a, stream);
}

/// Pointer and strides in whole pieces of `bytes`.
bool whole(const tensor& x, int element, int bytes) {
  const auto multiple = [&](std::int64_t n) {
    return n * element % bytes == 0;
  };
  return reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0 &&
         multiple(x.batch) && multiple(x.token) && multiple(x.head);
}

}  // namespace

bool forward_columnwise_supports(const problem& p) {
  return info(p.family).erase == axis::value &&
         (p.input == format::bf16 || p.input == format::fp16) &&
         p.decay_format == format::fp32 && (p.K == 64 || p.K == 128) &&
         (p.V == 64 || p.V == 128) && whole(p.q, 2, 16) && whole(p.k, 2, 16) &&
         whole(p.v, 2, 16) && whole(p.w, 2, 16) && whole(p.e, 2, 16) &&
         whole(p.g, 4, 16);
}

status forward_columnwise_workspace(const problem&, std::size_t* bytes) {
  *bytes = 0;
  return {};
}

status forward_columnwise(const problem& p, const outputs& out, void*,
                          std::size_t, CUstream_st* stream) {
  if (!whole(out.o, 2, 4))
    return {unsupported, "o: pointer or stride not a multiple of 4 bytes"};
  const column_arguments a{p, out};
  return p.input == format::bf16 ? choose_shape<__nv_bfloat16>(a, stream)
                                 : choose_shape<__half>(a, stream);
}

}  // namespace carve::cuda
