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
#include <type_traits>

#include "common.cuh"
#include "kernels.hpp"
#include "mma.cuh"

namespace carve::cuda {
namespace {

constexpr int chunk = 64, side = 16, sides = chunk / side;

/// exp2 of a decay below the smallest float is zero; bounding the log keeps
/// its running sum exact enough for what follows.
constexpr float lowest_log2 = -160.0f;

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
struct operand {
  static constexpr bool bf16 = std::is_same_v<T, __nv_bfloat16>;
  /// Largest log2 decay over a diagonal block that its factored form carries.
  static constexpr float steep = bf16 ? 200.0f : 16.0f;

  static __device__ __forceinline__ float2 unpack(std::uint32_t x) {
    if constexpr (bf16)
      return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&x));
    else
      return __half22float2(*reinterpret_cast<__half2*>(&x));
  }
  static __device__ __forceinline__ std::uint32_t pack(float a, float b) {
    std::uint32_t x;
    if constexpr (bf16)
      *reinterpret_cast<__nv_bfloat162*>(&x) = __floats2bfloat162_rn(a, b);
    else
      *reinterpret_cast<__half2*>(&x) = __floats2half2_rn(a, b);
    return x;
  }
  static __device__ __forceinline__ float value(T x) {
    if constexpr (bf16)
      return __bfloat162float(x);
    else
      return __half2float(x);
  }
  static __device__ __forceinline__ T round(float x) {
    if constexpr (bf16)
      return __float2bfloat16_rn(x);
    else
      return __float2half_rn(x);
  }
  static __device__ __forceinline__ void multiply(float (&acc)[4],
                                                  const mma::quad_reg& a,
                                                  std::uint32_t b0,
                                                  std::uint32_t b1) {
    if constexpr (bf16)
      mma::multiply_bf16(acc, a, b0, b1);
    else
      mma::multiply_fp16(acc, a, b0, b1);
  }
};

struct column_arguments {
  problem p;
  outputs out;
};

/// Where things lie in shared memory, in bytes.
template <int K, int V>
struct layout {
  static constexpr int log_stride = K + 8;    // floats
  static constexpr int value_stride = V + 8;  // elements
  static constexpr int keys = chunk * K * 2;
  static constexpr int q = 0, k = q + keys, kr = k + keys, qr = kr + keys,
                       kt = qr + keys, l = kt + keys, p = l + chunk * chunk * 2,
                       v = p + chunk * chunk * 2,
                       w = v + chunk * value_stride * 2,
                       e = w + chunk * value_stride * 2,
                       log = e + chunk * value_stride * 2,
                       diagonal = log + (chunk + 1) * log_stride * 4,
                       total = diagonal + sides * side * side * 4,
                       parts = total + K * 4, bytes = parts + 4 * K * 4;
};

template <class T, int K, int V>
__global__ void __launch_bounds__(V * 2, 1)
    columnwise_kernel(const __grid_constant__ column_arguments args) {
  using op = operand<T>;
  using at = layout<K, V>;
  constexpr int threads = V * 2, warps = V / 16;
  constexpr int parts = threads / K, part = chunk / parts;
  static_assert(parts >= 1 && parts <= 4);
  const problem& p = args.p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, quad = lane % 4;
  const int n = blockIdx.x / p.HV, hv = blockIdx.x % p.HV;
  const int h = hv / (p.HV / p.H);
  const int column = warp * 16;
  const sequence_span span = span_of(p.cu_seqlens, p.T, n);

  extern __shared__ char shared[];
  const std::uint32_t base = mma::shared_address(shared);
  float* logs = reinterpret_cast<float*>(shared + at::log);
  float* diagonal = reinterpret_cast<float*>(shared + at::diagonal);
  float* total = reinterpret_cast<float*>(shared + at::total);
  float* part_sum = reinterpret_cast<float*>(shared + at::parts);
  const T* vs = reinterpret_cast<const T*>(shared + at::v);
  const T* ws = reinterpret_cast<const T*>(shared + at::w);
  const T* es = reinterpret_cast<const T*>(shared + at::e);

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
      const std::uint32_t to = mma::tile_offset<K>(t, i);
      mma::copy16(base + at::q + to, q_rows + row * p.q.token + i, in);
      mma::copy16(base + at::k + to, k_rows + row * p.k.token + i, in);
    }
    for (int x = threadIdx.x; x < chunk * K / 4; x += threads) {
      const int t = x / (K / 4), i = x % (K / 4) * 4;
      const bool in = t0 + t < span.length;
      const std::int64_t row = in ? t0 + t : 0;
      mma::copy16(base + at::log + ((t + 1) * at::log_stride + i) * 4,
                  g_rows + row * p.g.token + i, in);
    }
  };
  auto fetch_columns = [&](std::int64_t t0) {
    const tensor* const sources[] = {&p.v, &p.w, &p.e};
    const int places[] = {at::v, at::w, at::e};
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      const tensor& x = *sources[s];
      const T* rows = static_cast<const T*>(x.data) +
                      offset(x, span.batch, span.first, hv) + column;
#pragma unroll
      for (int m = lane; m < chunk * 2; m += 32) {
        const int t = m / 2, j = m % 2 * 8;
        const bool in = t0 + t < span.length;
        const std::int64_t row = in ? t0 + t : 0;
        mma::copy16(base + places[s] + (t * at::value_stride + column + j) * 2,
                    rows + row * x.token + j, in);
      }
    }
  };

  float S[K / 8][4];  // S^T: rows are this warp's columns
  const std::int64_t state = (static_cast<std::int64_t>(n) * p.HV + hv) * K * V;
#pragma unroll
  for (int m = 0; m < K / 8; ++m)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = m * 8 + quad * 2 + c % 2, j = column + group + c / 2 * 8;
      S[m][c] = p.initial_state == nullptr
                    ? 0.0f
                    : p.initial_state[state + std::int64_t(i) * V + j];
    }
  for (int i = threadIdx.x; i < K; i += threads) logs[i] = 0.0f;
  if (span.length > 0) {
    fetch_keys(0);
    fetch_columns(0);
  }
  mma::copy_commit();

  for (std::int64_t t0 = 0; t0 < span.length; t0 += chunk) {
    mma::copy_wait<0>();
    __syncthreads();

    // Running log decay, and keys and queries seen from the chunk's ends.
    {
      const int i = threadIdx.x % K, from = threadIdx.x / K * part;
      float sum = 0.0f;
#pragma unroll 16
      for (int t = 0; t < part; ++t) {
        float* x = logs + (from + t + 1) * at::log_stride + i;
        sum += fmaxf(*x * 1.4426950408889634f, lowest_log2);
        *x = sum;
      }
      part_sum[threadIdx.x] = sum;
      __syncthreads();
      float before = 0.0f, all = 0.0f;
#pragma unroll
      for (int x = 0; x < parts; ++x) {
        if (x < static_cast<int>(threadIdx.x) / K)
          before += part_sum[x * K + i];
        all += part_sum[x * K + i];
      }
      if (from == 0) total[i] = exp2_of(all);
      float previous = before;
#pragma unroll 8
      for (int t = 0; t < part; ++t) {
        float* x = logs + (from + t + 1) * at::log_stride + i;
        const float g = *x + before;
        *x = g;
        const std::uint32_t to = mma::tile_offset<K>(from + t, i);
        const float k = op::value(*reinterpret_cast<T*>(shared + at::k + to));
        const float q = op::value(*reinterpret_cast<T*>(shared + at::q + to));
        *reinterpret_cast<T*>(shared + at::kr + to) = op::round(k * exp2_of(g));
        *reinterpret_cast<T*>(shared + at::qr + to) =
            op::round(q * exp2_of(p.read_before ? previous : g));
        *reinterpret_cast<__half*>(shared + at::kt + to) =
            __float2half_rn(k * exp2_of(all - g));
        previous = g;
      }
    }
    __syncthreads();

    // L and P, a row of 16x16 blocks for each task.
    for (int task = warp; task < 2 * sides; task += warps) {
      const bool reads = task % 2 == 1;  // P, else L
      const int I = sides - 1 - task / 2;
      const std::uint32_t rows = base + (reads ? at::q : at::k);
      const int shift = reads && p.read_before ? 0 : 1;
      const float* start = logs + I * side * at::log_stride;
      const float* end = start + side * at::log_stride;
      float range = 0.0f;
      for (int i = lane; i < K; i += 32)
        range = fmaxf(range, start[i] - end[i]);
      for (int d = 16; d > 0; d /= 2)
        range = fmaxf(range, __shfl_xor_sync(0xffffffffu, range, d));
      const bool steep = range > op::steep;

      float acc[sides][2][4] = {};
#pragma unroll 1
      for (int i = 0; i < K; i += 16) {
        const mma::quad_reg raw = mma::left<K>(rows, I * side, i, lane);
        mma::quad_reg outside, inside;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int t = I * side + group + c % 2 * 8;
          const int key = i + quad * 2 + c / 2 * 8;
          const float2 x = op::unpack(raw.r[c]);
          const float2 g = *reinterpret_cast<const float2*>(
              logs + (t + shift) * at::log_stride + key);
          const float2 g0 = *reinterpret_cast<const float2*>(start + key);
          const float2 g1 = *reinterpret_cast<const float2*>(end + key);
          outside.r[c] =
              op::pack(x.x * exp2_of(g.x - g0.x), x.y * exp2_of(g.y - g0.y));
          inside.r[c] = op::pack(x.x * exp2_of(g.x - 0.5f * (g0.x + g1.x)),
                                 x.y * exp2_of(g.y - 0.5f * (g0.y + g1.y)));
        }
#pragma unroll
        for (int J = 0; J < sides; ++J) {
          if (J > I) break;
          mma::quad_reg b = mma::right<K>(base + at::k, i, J * side, lane);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int s = J * side + group + c / 2 * 8;
            const int key = i + quad * 2 + c % 2 * 8;
            const float2 x = op::unpack(b.r[c]);
            const float2 g = *reinterpret_cast<const float2*>(
                logs + (s + 1) * at::log_stride + key);
            float2 to = *reinterpret_cast<const float2*>(start + key);
            if (J == I) {
              const float2 g1 = *reinterpret_cast<const float2*>(end + key);
              to.x = 0.5f * (to.x + g1.x);
              to.y = 0.5f * (to.y + g1.y);
            }
            b.r[c] =
                op::pack(x.x * exp2_of(to.x - g.x), x.y * exp2_of(to.y - g.y));
          }
          const mma::quad_reg& a = J == I ? inside : outside;
          op::multiply(acc[J][0], a, b.r[0], b.r[1]);
          op::multiply(acc[J][1], a, b.r[2], b.r[3]);
        }
      }
      char* tile = shared + (reads ? at::p : at::l);
#pragma unroll
      for (int J = 0; J < sides; ++J) {
        if (J > I) break;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int t = group + r * 8, s = m * 8 + quad * 2;
            float2 x = {acc[J][m][2 * r], acc[J][m][2 * r + 1]};
            if (J == I) {
              if (steep) continue;
              const int reach = reads && !p.read_before ? t + 1 : t;
              x.x = s < reach ? x.x : 0.0f;
              x.y = s + 1 < reach ? x.y : 0.0f;
              if (!reads) {
                diagonal[(I * side + s) * side + t] = x.x;
                diagonal[(I * side + s + 1) * side + t] = x.y;
                continue;
              }
            }
            *reinterpret_cast<__half2*>(
                tile + mma::tile_offset<chunk>(I * side + t, J * side + s)) =
                __floats2half2_rn(x.x, x.y);
          }
      }
      if (!steep) continue;
      for (int t = 0; t < side; ++t)
        for (int s = 0; s < side; ++s) {
          float sum = 0.0f;
          const bool in = reads && !p.read_before ? s <= t : s < t;
          const int row = I * side + t, other = I * side + s;
          if (in)
            for (int i = lane; i < K; i += 32)
              sum += op::value(*reinterpret_cast<T*>(
                         shared + (reads ? at::q : at::k) +
                         mma::tile_offset<K>(row, i))) *
                     op::value(*reinterpret_cast<T*>(
                         shared + at::k + mma::tile_offset<K>(other, i))) *
                     exp2_of(logs[(row + shift) * at::log_stride + i] -
                             logs[(other + 1) * at::log_stride + i]);
          for (int d = 16; d > 0; d /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, d);
          if (lane != 0) continue;
          if (reads)
            *reinterpret_cast<__half*>(tile +
                                       mma::tile_offset<chunk>(row, other)) =
                __float2half_rn(sum);
          else
            diagonal[(I * side + s) * side + t] = sum;
        }
    }
    __syncthreads();
    if (t0 + chunk < span.length) fetch_keys(t0 + chunk);

    // What the start state contributes to the erased values and the output.
    float y[chunk / 8][4] = {}, o[chunk / 8][4] = {};
#pragma unroll
    for (int m = 0; m < K / 16; ++m) {
      mma::quad_reg a;
#pragma unroll
      for (int c = 0; c < 4; ++c)
        a.r[c] = op::pack(S[2 * m + c / 2][c % 2 * 2],
                          S[2 * m + c / 2][c % 2 * 2 + 1]);
#pragma unroll
      for (int t = 0; t < sides; ++t) {
        const mma::quad_reg br =
            mma::right<K>(base + at::kr, m * 16, t * side, lane);
        op::multiply(y[2 * t], a, br.r[0], br.r[1]);
        op::multiply(y[2 * t + 1], a, br.r[2], br.r[3]);
        const mma::quad_reg bq =
            mma::right<K>(base + at::qr, m * 16, t * side, lane);
        op::multiply(o[2 * t], a, bq.r[0], bq.r[1]);
        op::multiply(o[2 * t + 1], a, bq.r[2], bq.r[3]);
      }
    }

    // The solve, column by column.
    mma::quad_reg U[sides];
#pragma unroll
    for (int I = 0; I < sides; ++I) {
#pragma unroll
      for (int J = 0; J < I; ++J) {
        const mma::quad_reg b =
            mma::right<chunk>(base + at::l, J * side, I * side, lane);
        mma::multiply_fp16(y[2 * I], U[J], b.r[0], b.r[1]);
        mma::multiply_fp16(y[2 * I + 1], U[J], b.r[2], b.r[3]);
      }
      float written[2][4], erase[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int x =
              (I * side + m * 8 + quad * 2 + c % 2) * at::value_stride +
              column + group + c / 2 * 8;
          written[m][c] = op::value(vs[x]) * op::value(ws[x]);
          erase[m][c] = op::value(es[x]);
        }
#pragma unroll
      for (int s = 0; s < side - 1; ++s) {
        const int m = s / 8, c = s % 2;
        const int owner = (lane & ~3) | (s % 8 / 2);
        float u[2];
#pragma unroll
        for (int r = 0; r < 2; ++r)
          u[r] = __shfl_sync(0xffffffffu,
                             written[m][2 * r + c] -
                                 erase[m][2 * r + c] * y[2 * I + m][2 * r + c],
                             owner);
#pragma unroll
        for (int x = m; x < 2; ++x) {
          const float2 l = *reinterpret_cast<const float2*>(
              diagonal + (I * side + s) * side + x * 8 + quad * 2);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            y[2 * I + x][2 * r] += l.x * u[r];
            y[2 * I + x][2 * r + 1] += l.y * u[r];
          }
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int m = c / 2, r = c % 2 * 2;
        const __half2 u = __floats2half2_rn(
            written[m][r] - erase[m][r] * y[2 * I + m][r],
            written[m][r + 1] - erase[m][r + 1] * y[2 * I + m][r + 1]);
        U[I].r[c] = *reinterpret_cast<const std::uint32_t*>(&u);
      }
    }
    __syncwarp();
    if (t0 + chunk < span.length) fetch_columns(t0 + chunk);
    mma::copy_commit();

    // Output.
#pragma unroll
    for (int t = 0; t < sides; ++t) {
#pragma unroll
      for (int s = 0; s <= t; ++s) {
        const mma::quad_reg b =
            mma::right<chunk>(base + at::p, s * side, t * side, lane);
        mma::multiply_fp16(o[2 * t], U[s], b.r[0], b.r[1]);
        mma::multiply_fp16(o[2 * t + 1], U[s], b.r[2], b.r[3]);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const std::uint32_t x =
              mma::transpose8(op::pack(p.scale * o[2 * t + m][2 * r],
                                       p.scale * o[2 * t + m][2 * r + 1]));
          const std::int64_t row = t0 + t * side + m * 8 + group;
          if (row < span.length)
            *reinterpret_cast<std::uint32_t*>(o_rows + row * args.out.o.token +
                                              column + r * 8 + quad * 2) = x;
        }
    }

    // State.
#pragma unroll
    for (int m = 0; m < K / 16; ++m) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const float2 d =
            *reinterpret_cast<const float2*>(total + m * 16 + x * 8 + quad * 2);
        S[2 * m + x][0] *= d.x;
        S[2 * m + x][1] *= d.y;
        S[2 * m + x][2] *= d.x;
        S[2 * m + x][3] *= d.y;
      }
#pragma unroll
      for (int s = 0; s < sides; ++s) {
        const mma::quad_reg b =
            mma::right_trans<K>(base + at::kt, s * side, m * 16, lane);
        mma::multiply_fp16(S[2 * m], U[s], b.r[0], b.r[1]);
        mma::multiply_fp16(S[2 * m + 1], U[s], b.r[2], b.r[3]);
      }
    }
  }
  mma::copy_wait<0>();
  if (args.out.final_state == nullptr) return;
#pragma unroll
  for (int m = 0; m < K / 8; ++m)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = m * 8 + quad * 2 + c % 2, j = column + group + c / 2 * 8;
      args.out.final_state[state + std::int64_t(i) * V + j] = S[m][c];
    }
}

template <class T, int K, int V>
status launch(const column_arguments& a, CUstream_st* stream) {
  const auto kernel = columnwise_kernel<T, K, V>;
  CARVE_CUDA_TRY(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           layout<K, V>::bytes));
  kernel<<<a.p.N * a.p.HV, V * 2, layout<K, V>::bytes, stream>>>(a);
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
  return p.family == family::value_erase &&
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
