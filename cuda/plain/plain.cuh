// What the two plain kernels share: the cut of a sequence, how lanes hold
// keys, and how tokens are brought into shared memory.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common.cuh"
#include "gates.cuh"
#include "kernels.hpp"

namespace carve::cuda::general {

constexpr int stage_tokens = 8, segment_stages = 8;
constexpr int block_columns = 16;

/// The cut of a sequence: windows of `window` tokens, each in `parts`
/// segments of `length` tokens (the last ones shorter).  Families without a
/// content gate have one part a window.
struct segmentation {
  int window, parts, length;

  __host__ __device__ std::int64_t begin(std::int64_t s) const {
    const std::int64_t inside = (s % parts) * length;
    return (s / parts) * window + (inside < window ? inside : window);
  }
  /// Segments of a sequence of `tokens` tokens that may hold tokens.
  __host__ __device__ std::int64_t count(std::int64_t tokens) const {
    return (tokens + window - 1) / window * parts;
  }
  /// First slot of sequence n in an array over all segments: starts are
  /// never decreasing, so the ranges of two sequences never overlap.
  __host__ __device__ std::int64_t slot(std::int64_t first, std::int64_t batch,
                                        std::int64_t T, std::int64_t n) const {
    return ((batch * T + first) / window + n) * parts;
  }
  __host__ __device__ std::int64_t slots(std::int64_t tokens,
                                         std::int64_t n) const {
    return (tokens / window + n) * parts;
  }
};

inline segmentation segments_of(const problem& p) {
  const int longest = stage_tokens * segment_stages;
  if (!info(p.family).content_gate) return {longest, 1, longest};
  const int parts = (p.window + longest - 1) / longest;
  return {p.window, parts, (p.window + parts - 1) / parts};
}

/// What the kernels know of a problem.
struct arguments {
  problem p;
  gates gate;
  outputs out;
  gradients grad;
  segmentation cut;
  int kpad;           // keys, padded to a multiple of 32
  float* state;       // carve forward: state between passes
  float* checkpoint;  // states at segment starts
  float* mean;        // window means, [window slots][HV][V]
  float* gate_shift;  // W_up W_down m of the current window, [N][HV][K]
  float* d_state;     // running cotangent of the state
  float* partial;     // block partials of the current segment
  float* dx_sum;      // content gate: sum of dx over the window, [N][HV][K]
  float* d_mean;      // what every o of the window receives, [N][HV][V]
  float* d_gate;      // per sequence dW_down then dW_up
  bool by_slot;       // partials indexed by (n, token of the segment)
  int tied;           // b and w are one tensor, beta
  int content;        // b holds logits, the content is added to them
};

__device__ __forceinline__ std::int64_t partial_row(const arguments& a, int n,
                                                    std::int64_t batch,
                                                    std::int64_t token,
                                                    int in_segment) {
  return a.by_slot ? static_cast<std::int64_t>(n) * a.cut.length + in_segment
                   : batch * a.p.T + token;
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <int KPL>
__device__ __forceinline__ int key_of(int lane, int e) {
  constexpr int width = KPL < 4 ? KPL : 4;
  return (e / width) * (32 * width) + lane * width + e % width;
}

template <int KPL>
__device__ __forceinline__ void read_keys(const float* row, int lane,
                                          float (&x)[KPL]) {
  if constexpr (KPL == 1) {
    x[0] = row[lane];
  } else if constexpr (KPL == 2) {
    const float2 y = reinterpret_cast<const float2*>(row)[lane];
    x[0] = y.x;
    x[1] = y.y;
  } else {
#pragma unroll
    for (int m = 0; m < KPL / 4; ++m) {
      const float4 y = reinterpret_cast<const float4*>(row)[m * 32 + lane];
      x[4 * m] = y.x;
      x[4 * m + 1] = y.y;
      x[4 * m + 2] = y.z;
      x[4 * m + 3] = y.w;
    }
  }
}

template <int KPL>
__device__ __forceinline__ void write_keys(float* row, int lane,
                                           const float (&x)[KPL]) {
  if constexpr (KPL == 1) {
    row[lane] = x[0];
  } else if constexpr (KPL == 2) {
    reinterpret_cast<float2*>(row)[lane] = make_float2(x[0], x[1]);
  } else {
#pragma unroll
    for (int m = 0; m < KPL / 4; ++m)
      reinterpret_cast<float4*>(row)[m * 32 + lane] =
          make_float4(x[4 * m], x[4 * m + 1], x[4 * m + 2], x[4 * m + 3]);
  }
}

constexpr unsigned all_lanes = 0xffffffffu;

/// Sums each of TV values over the warp; every lane gets every sum.  The
/// first steps fold several values into one, so four sums cost ten shuffles.
template <int TV>
__device__ __forceinline__ void warp_sums(float (&x)[TV], int lane) {
  static_assert(TV == 2 || TV == 4);
  float y;
  if constexpr (TV == 4) {
    const bool up = lane & 16, up2 = lane & 8;
    const float a = up ? x[2] : x[0], b = up ? x[3] : x[1];
    const float c = up ? x[0] : x[2], d = up ? x[1] : x[3];
    const float s = a + __shfl_xor_sync(all_lanes, c, 16);
    const float t = b + __shfl_xor_sync(all_lanes, d, 16);
    y = (up2 ? t : s) + __shfl_xor_sync(all_lanes, up2 ? s : t, 8);
  } else {
    const bool up = lane & 16;
    y = (up ? x[1] : x[0]) + __shfl_xor_sync(all_lanes, up ? x[0] : x[1], 16);
    y += __shfl_xor_sync(all_lanes, y, 8);
  }
  y += __shfl_xor_sync(all_lanes, y, 4);
  y += __shfl_xor_sync(all_lanes, y, 2);
  y += __shfl_xor_sync(all_lanes, y, 1);
#pragma unroll
  for (int c = 0; c < TV; ++c) x[c] = __shfl_sync(all_lanes, y, c * (32 / TV));
}

/// `count` tokens of one (sequence, value head) from token `token` on.
struct token_block {
  std::int64_t batch, token;
  int h, hv, count;
};

/// Some tokens as the kernels read them from shared memory, rows of 32 KPL
/// floats, zeros past K.
template <int KPL>
struct staged_keys {
  static constexpr int kpad = 32 * KPL;
  using rows = float[stage_tokens * kpad];
  rows query, key, decay, erase;
};

/// Brings keys, decays and erase addresses of a block of tokens into shared
/// memory; queries too if asked.  Loads
/// come in groups of four tokens' worth before the first of them is used.
template <class T, class G, int KPL, bool Queries>
__device__ __forceinline__ void stage_keys_as(const arguments& a,
                                              const token_block& at,
                                              const float* shift,
                                              staged_keys<KPL>& to) {
  constexpr int kpad = 32 * KPL, group = 4;
  const problem& p = a.p;
  const T* q =
      static_cast<const T*>(p.q.data) + offset(p.q, at.batch, at.token, at.h);
  const T* k =
      static_cast<const T*>(p.k.data) + offset(p.k, at.batch, at.token, at.h);
  const G* g = a.gate.g.row<G>(at.batch, at.token, at.hv);
  const T* b = a.gate.b.row<T>(at.batch, at.token, at.hv);
  for (int base = threadIdx.x; base < stage_tokens * kpad;
       base += group * blockDim.x) {
    T q_raw[group], k_raw[group], b_raw[group];
    G g_raw[group];
#pragma unroll
    for (int u = 0; u < group; ++u) {
      const int x = base + u * blockDim.x;
      const int t = min(x / kpad, at.count - 1), i = min(x % kpad, p.K - 1);
      if constexpr (Queries) q_raw[u] = q[t * p.q.token + i];
      k_raw[u] = k[t * p.k.token + i];
      g_raw[u] = g[t * a.gate.g.x.token + i * a.gate.g.step];
      b_raw[u] = b[t * a.gate.b.x.token + i * a.gate.b.step];
    }
#pragma unroll
    for (int u = 0; u < group; ++u) {
      const int x = base + u * blockDim.x;
      if (x >= stage_tokens * kpad) break;
      const int i = x % kpad;
      const bool in = i < p.K;
      const float key = in ? to_float(k_raw[u]) : 0.0f;
      float erase = a.gate.b.present ? to_float(b_raw[u]) : 1.0f;
      if (a.content) erase = sigmoid(erase + shift[i]);
      if constexpr (Queries) to.query[x] = in ? to_float(q_raw[u]) : 0.0f;
      to.key[x] = key;
      to.decay[x] = a.gate.g.present ? expf(to_float(g_raw[u])) : 1.0f;
      to.erase[x] = in ? key * erase : 0.0f;
    }
  }
}

template <class T, int KPL, bool Queries>
__device__ __forceinline__ void stage_keys(const arguments& a,
                                           const token_block& at,
                                           const float* shift,
                                           staged_keys<KPL>& to) {
  // An absent decay is read as an element of the queries.
  const format f = a.gate.g.present ? a.p.decay_format : a.p.input;
  if (f == format::fp32)
    stage_keys_as<T, float, KPL, Queries>(a, at, shift, to);
  else if (f == format::bf16)
    stage_keys_as<T, __nv_bfloat16, KPL, Queries>(a, at, shift, to);
  else
    stage_keys_as<T, __half, KPL, Queries>(a, at, shift, to);
}

/// z = W_up W_down m for one head, by the whole block.  `inner` holds rank
/// floats.  Needs a barrier before z is read; m null means zeros.
__device__ inline void content_shift(const problem& p, int hv, const float* m,
                                     float* inner, float* z) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warps = blockDim.x / 32;
  if (m == nullptr) {
    for (int i = threadIdx.x; i < p.K; i += blockDim.x) z[i] = 0.0f;
    return;
  }
  const float* down = p.w_down + static_cast<std::int64_t>(hv) * p.rank * p.V;
  for (int r = warp; r < p.rank; r += warps) {
    float sum = 0.0f;
    for (int j = lane; j < p.V; j += 32) sum += down[r * p.V + j] * m[j];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(all_lanes, sum, d);
    if (lane == 0) inner[r] = sum;
  }
  __syncthreads();
  const float* up = p.w_up + static_cast<std::int64_t>(hv) * p.K * p.rank;
  for (int i = threadIdx.x; i < p.K; i += blockDim.x) {
    float sum = 0.0f;
    for (int r = 0; r < p.rank; ++r) sum += up[i * p.rank + r] * inner[r];
    z[i] = sum;
  }
}

// ------------------------------------------------------------------- host

/// Hands out 256-byte aligned pieces; with a null base it only counts.
class carver {
 public:
  explicit carver(void* base) : base_(static_cast<char*>(base)) {}
  float* take(std::int64_t floats) {
    char* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ +=
        (static_cast<std::size_t>(floats) * sizeof(float) + 255) / 256 * 256;
    return reinterpret_cast<float*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

inline int key_lanes(int K) { return K <= 64 ? 2 : K <= 128 ? 4 : 8; }

/// What both passes are told of the problem.
inline arguments arguments_of(const problem& p) {
  arguments a{};
  a.p = p;
  a.gate = gates_of(p, p.q.data);
  a.tied = info(p.family).tied;
  a.content = info(p.family).content_gate;
  a.cut = segments_of(p);
  a.kpad = 32 * key_lanes(p.K);
  return a;
}

/// Runs the forward kernel, as a call of its own or as the backward's first
/// pass, which keeps checkpoints and window means.
status run_forward(const arguments& a, CUstream_st* stream);

}  // namespace carve::cuda::general
