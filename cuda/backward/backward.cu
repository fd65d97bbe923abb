// Chunked backward of the key-axis erase families on Hopper's tensor cores.
//
// With C = 64 tokens a chunk, start state S, cotangent dS of the end state,
// Gamma the running sum of the log decays, R = b*k and
//   L = stril(R e^(Gamma_t - Gamma_s) k),  P = scale tril(q e^(...) k),
//   T = (I + L)^-1,
// four kernels walk what must be walked and spread the rest over all chunks:
//   prepare     T, M = T^T (k e^(Gamma_C - Gamma)), Z = (P T)^T do,
//               Rt = R e^Gamma, Qt = scale q e^Gamma   (every chunk at once)
//   walk        U' = w*v - Rt S,  S <- e^Gamma_C S + M^T U',
//               U = T U'                                         (forwards)
//               dR = Z + M dS,  dS <- e^Gamma_C dS + Qt^T do - Rt^T dR
//                                                 (backwards, beside it)
//   gradients   dP = scale tril(do U^T), dL = -stril(dR U^T) and from these,
//               S and dS every gradient                (every chunk at once)
//   reduce      sums dq and dk over the value heads of a group.
// With a content gate the forward runs first, for the gates, and the walk
// backwards after the one forwards (backward/content_walk.cuh).
// Operands are fp16: their three more bits than bf16's halve the error.  What
// is linear in the cotangents is therefore scaled by a power of two, one a
// (sequence, value head), that brings the largest of them near 1; do and Z,
// which are written before that is known, by one of their own chunk.
//
// Decay ratios: the chunk is cut in blocks of 16 rows.  A slice of 16 channels
// forms q e^(Gamma_t - at_q[block]) and k e^(at_k[block] - Gamma_s); between
// blocks the missing e^(at_q - at_k), never above 1, is applied apart.  As
// `kind` of slice says, the reference points are
//   half     the middle of the block, 2^+-11.5 at most
//   bfloat   (inputs in bf16) the same, 2^+-75 at most, these operands in
//            bf16; between blocks 2^-150 and less occurs, so there the decay is
//            applied in two steps
//   pairs    no exponent above 0: `prepare` takes at_q at the block's start,
//            at_k at its end, and forms the pairs within a block one by one in
//            fp32; `gradients` forms all pairs so.
// One decay a head (delta, gdn) needs none of this: the couplings are products
// of q and k as they are, scaled afterwards; Rt and Qt are k and q whose rows
// the walk scales.  These families have a `prepare` and a `gradients` of
// their own.
#include <cuda_runtime.h>

#include <cstdint>

#include "backward/content_gate.cuh"
#include "backward/content_walk.cuh"
#include "backward/gradients.cuh"
#include "backward/parts.cuh"
#include "backward/prepare.cuh"
#include "backward/walk.cuh"

namespace carve::cuda {
namespace {

using namespace backward_chunks;

/// Sums dq and dk over the value heads of each group, in their order.
template <typename E>
__global__ void reduce_groups(const __grid_constant__ arguments a) {
  const problem& p = a.p;
  const int pieces = p.K / 4, ratio = p.HV / p.H;
  const std::int64_t all = static_cast<std::int64_t>(p.B) * p.T * p.H * pieces;
  for (std::int64_t i =
           blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
       i < all; i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const int channel = i % pieces * 4, head = i / pieces % p.H;
    const std::int64_t token = i / (pieces * p.H);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const tensor& out = which ? a.d.dk : a.d.dq;
      if (out.data == nullptr) continue;
      const float* from = (which ? a.dk_part : a.dq_part) +
                          (token * p.HV + head * ratio) * p.K + channel;
      float x[4] = {};
      for (int n = 0; n < ratio; ++n) {
        const float4 y = *reinterpret_cast<const float4*>(from + n * p.K);
        x[0] += y.x, x[1] += y.y, x[2] += y.z, x[3] += y.w;
      }
      store4(row_of_out<E>(out, token / p.T, token % p.T, head) + channel, x);
    }
  }
}

// ---------------------------------------------------------------- launching

/// Decays are one number a head, or none.
bool one_decay(const problem& p) {
  return p.family == family::delta || p.family == family::gdn;
}

int gate_pieces(const arguments& a) {
  return (a.most_chunks + gate_chunks - 1) / gate_chunks;
}

/// Lays the workspace out; with a null base only its size counts.
std::size_t lay_out(arguments& a, std::uint8_t* base) {
  const problem& p = a.p;
  std::size_t used = 0;
  auto take = [&](auto*& pointer, std::size_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
        base + used);
    used += (count * sizeof(*pointer) + 255) / 256 * 256;
  };
  a.most_chunks =
      p.cu_seqlens ? p.T / chunk + p.N : p.N * ((p.T + chunk - 1) / chunk);
  const std::size_t each = static_cast<std::size_t>(a.most_chunks) * p.HV;
  take(a.table, a.most_chunks);
  take(a.first_chunk, p.N + 1);
  take(a.peak, static_cast<std::size_t>(p.N) * p.HV);
  const bool content = p.family == family::carve;
  std::size_t forward_end = 0;
  if (content) {
    take(a.mean, static_cast<std::size_t>(window_slots(p)) * p.HV * p.V);
    const std::size_t here = used;
    forward_hopper_workspace(p, &a.forward_bytes);
    take(a.forward, a.forward_bytes);
    take(a.o, static_cast<std::size_t>(p.B) * p.T * p.HV * p.V);
    forward_end = used;
    used = here;
  }
  for (auto* x : {&a.M, &a.Qt, &a.Rt}) take(*x, each * chunk * p.K);
  take(a.T, each * chunk * chunk);
  for (auto* x : {&a.Z, &a.U, &a.dR, &a.d_o}) take(*x, each * chunk * p.V);
  for (auto* x : {&a.S, &a.dS}) take(*x, each * p.K * p.V / 4);
  take(a.decay, each * (p.K + 4));
  if (p.family != family::gdn2) take(a.factors, each * chunk * 4);
  if (!one_decay(p)) take(a.ends, each * 4 * p.K);
  if (p.HV != p.H)
    for (auto* x : {&a.dq_part, &a.dk_part})
      take(*x, static_cast<std::size_t>(p.B) * p.T * p.HV * p.K);
  if (content) {
    for (auto* x : {&a.change, &a.keys}) take(*x, each * chunk * p.K / 8);
    for (auto* x : {&a.shift, &a.d_shift}) take(*x, each * p.K);
    for (auto* x : {&a.inner, &a.d_inner}) take(*x, each * p.rank);
    take(a.ready, each);
    take(a.d_gate, static_cast<std::size_t>(gate_pieces(a)) * p.HV * p.rank *
                       (p.K + p.V));
  }
  return std::max(used, forward_end);
}

/// `beside`: it may begin before the kernel launched last has ended.
template <typename Kernel>
status launch(Kernel kernel, std::int64_t blocks, int threads, int bytes,
              const arguments& a, cudaStream_t stream, bool beside = false) {
  if (blocks == 0) return {};
  CARVE_CUDA_TRY(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = beside ? 1 : 0;
  CARVE_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, a));
  return {};
}

template <typename E, int K, int V, int Warps>
status launch_walk(const arguments& a, cudaStream_t stream) {
  return launch(
      one_decay(a.p) ? walk<E, K, V, Warps, true> : walk<E, K, V, Warps, false>,
      (a.p.family == family::carve ? 1ll : 2ll) * a.p.N * a.p.HV *
          (V / (Warps * 16)),
      walk_layout<K, Warps>::threads, walk_layout<K, Warps>::bytes, a, stream);
}

/// The means of the windows' outputs, by the forward; then the shifts of the
/// logits.
template <int K, int V>
status find_windows(const arguments& a, cudaStream_t stream) {
  const problem& p = a.p;
  const std::int64_t blocks = static_cast<std::int64_t>(a.most_chunks) * p.HV;
  if (a.d.window_means != nullptr)
    return launch(move_windows<K, V>, blocks, 128, 0, a, stream);
  outputs out;
  out.window_means = a.mean;
  out.o = {a.o, static_cast<std::int64_t>(p.T) * p.HV * p.V,
           static_cast<std::int64_t>(p.HV) * p.V, p.V};
  if (const status s =
          forward_hopper(p, out, a.forward, a.forward_bytes, stream);
      !s)
    return s;
  return launch(move_windows<K, V>, blocks, 128, 0, a, stream);
}

/// The reverse walk through a content gate, after the forward one, whose states
/// it needs.
template <typename E, int K, int V>
status launch_content_walk(const arguments& a, cudaStream_t stream) {
  const problem& p = a.p;
  const std::int64_t walks = static_cast<std::int64_t>(p.N) * p.HV;
  return launch(walk_content<E, K, V>, walks, content_layout<K, V>::threads,
                content_layout<K, V>::bytes, a, stream);
}

/// The gradients of W_down and W_up.
template <int K, int V>
status sum_gates(const arguments& a, cudaStream_t stream) {
  const problem& p = a.p;
  if (a.d.d_w_down == nullptr && a.d.d_w_up == nullptr) return {};
  const int pieces = gate_pieces(a);
  sum_gate<K, V><<<dim3(pieces, p.HV, (p.rank + gate_ranks - 1) / gate_ranks),
                   K + V, 0, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  add_gate<K, V><<<p.HV * p.rank, K + V, 0, stream>>>(a, pieces);
  CARVE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <typename E, int K, int V>
status run(arguments a, cudaStream_t stream) {
  const problem& p = a.p;
  const bool content = p.family == family::carve;
  int device = 0, multiprocessors = 0;
  CARVE_CUDA_TRY(cudaGetDevice(&device));
  CARVE_CUDA_TRY(cudaDeviceGetAttribute(
      &multiprocessors, cudaDevAttrMultiProcessorCount, device));
  // Where few heads walk, the rest of the device has the gradients meanwhile.
  if (p.cu_seqlens != nullptr || 2ll * p.N * p.HV > multiprocessors)
    a.ready = nullptr;
  list_chunks<<<1, 1024, 0, stream>>>(a);
  CARVE_CUDA_TRY(cudaGetLastError());
  const std::int64_t blocks = static_cast<std::int64_t>(a.most_chunks) * p.HV;
  if (content)
    if (const status s = find_windows<K, V>(a, stream); !s) return s;
  status s = launch(find_peaks<K, V>, a.d.d_final_state ? p.N * p.HV : 0, 256,
                    0, a, stream);
  if (!s) return s;
  s = one_decay(p)
          ? launch(scalar_prepare<E, K, V>, blocks, K * 2,
                   scalar_prepare_layout<K, V>::bytes, a, stream)
          : launch(content ? prepare<E, K, V, true> : prepare<E, K, V, false>,
                   blocks, K * 2, prepare_layout<K, V>::bytes, a, stream);
  if (!s) return s;
  // The narrowest slices of the values whose blocks all run at once; where
  // there are more, the widest, for every slice's block reads the keys' tiles.
  const std::int64_t walks = (content ? 1ll : 2ll) * p.N * p.HV;
  if (walks * (V / 16) <= multiprocessors)
    s = launch_walk<E, K, V, 1>(a, stream);
  else if (walks * (V / 32) <= multiprocessors)
    s = launch_walk<E, K, V, 2>(a, stream);
  else if (V == 64 || walks <= multiprocessors)
    s = launch_walk<E, K, V, 4>(a, stream);
  else
    s = launch_walk<E, K, V, V / 16>(a, stream);
  if (!s) return s;
  if (content)
    if (s = launch_content_walk<E, K, V>(a, stream); !s) return s;
  // As many as run at once, for they go from chunk to chunk.
  const std::int64_t at_once = (K + V == 128 ? 2ll : 1ll) * multiprocessors;
  s = one_decay(p)
          ? launch(scalar_gradients<E, K, V>, std::min(blocks, at_once), K * 4,
                   sizeof(scalar_gradients_memory<K, V>), a, stream)
          : launch(content ? chunk_gradients<E, K, V, true>
                           : chunk_gradients<E, K, V, false>,
                   blocks, 256, gradients_layout<K, V>::bytes, a, stream,
                   a.ready != nullptr);
  if (!s) return s;
  if (content)
    if (s = sum_gates<K, V>(a, stream); !s) return s;
  if (p.HV == p.H) return s;
  const std::int64_t work =
      static_cast<std::int64_t>(p.B) * p.T * p.H * (K / 4);
  return launch(
      reduce_groups<E>,
      std::min<std::int64_t>((work + 255) / 256, 16 * multiprocessors), 256, 0,
      a, stream);
}

template <typename E>
status run_shape(const arguments& a, cudaStream_t stream) {
  if (a.p.K == 128 && a.p.V == 128) return run<E, 128, 128>(a, stream);
  if (a.p.K == 128) return run<E, 128, 64>(a, stream);
  if (a.p.V == 128) return run<E, 64, 128>(a, stream);
  return run<E, 64, 64>(a, stream);
}

bool aligned(const tensor& x, std::int64_t elements, std::uintptr_t bytes) {
  return x.data == nullptr ||
         (reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0 &&
          x.batch % elements == 0 && x.token % elements == 0 &&
          x.head % elements == 0);
}

}  // namespace

bool backward_hopper_supports(const problem& p) {
  const bool gdn2 = p.family == family::gdn2;
  // The content gate follows the forward.
  if (p.family == family::carve)
    return p.B * p.T > 0 && forward_hopper_supports(p);
  if (!gdn2 && p.family != family::delta && p.family != family::gdn &&
      p.family != family::kda)
    return false;
  const bool vector_decay = gdn2 || p.family == family::kda;
  return (p.input == format::bf16 || p.input == format::fp16) &&
         p.decay_format == format::fp32 && (p.K == 64 || p.K == 128) &&
         (p.V == 64 || p.V == 128) && !p.read_before && p.H > 0 &&
         p.HV % p.H == 0 && p.B * p.T > 0 && aligned(p.v, 8, 16) &&
         (vector_decay
              ? aligned(p.q, 4, 8) && aligned(p.k, 4, 8) && aligned(p.g, 4, 16)
              : aligned(p.q, 8, 16) && aligned(p.k, 8, 16)) &&
         (!gdn2 || (aligned(p.b, 4, 8) && aligned(p.w, 8, 16)));
}

status backward_hopper_workspace(const problem& p, std::size_t* bytes) {
  if (!backward_hopper_supports(p))
    return {unsupported, "this shape has no Hopper backward"};
  arguments a{};
  a.p = p;
  *bytes = lay_out(a, nullptr);
  return {};
}

status backward_hopper(const problem& p, const gradients& d, void* workspace,
                       std::size_t bytes, CUstream_st* stream) {
  if (!backward_hopper_supports(p))
    return {unsupported, "this shape has no Hopper backward"};
  const bool gdn2 = p.family == family::gdn2,
             content = p.family == family::carve;
  if (!aligned(d.d_o, 8, 16) || !aligned(d.dq, 4, 8) || !aligned(d.dk, 4, 8) ||
      !aligned(d.dv, 8, 16) || (gdn2 && !aligned(d.dw, 8, 16)) ||
      ((gdn2 || content) && !aligned(d.db, 4, 8)) ||
      (!one_decay(p) && !aligned(d.dg, 4, 16)))
    return {unsupported, "a gradient's rows are not aligned to 16 bytes"};
  if (reinterpret_cast<std::uintptr_t>(d.d_final_state) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0)
    return {bad_argument,
            "d_final_state must be aligned to 16 bytes, the workspace to 256"};
  arguments a{};
  a.p = p;
  a.d = d;
  const std::size_t need = lay_out(a, static_cast<std::uint8_t*>(workspace));
  if (workspace == nullptr || bytes < need)
    return {workspace_too_small, "workspace is smaller than asked for"};
  return p.input == format::bf16 ? run_shape<__nv_bfloat16>(a, stream)
                                 : run_shape<__half>(a, stream);
}

}  // namespace carve::cuda
