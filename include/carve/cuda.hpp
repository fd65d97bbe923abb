/// @file
/// What a caller hands to the CUDA kernels: plain pointers, strides, sizes,
/// formats and a stream.  No Eigen, no Boost, no allocation inside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "carve/family.hpp"

struct CUstream_st;  // what the CUDA runtime's cudaStream_t points to

namespace carve::cuda {

/// Members of the family are those of the library's table, carve::families,
/// which says along which axis each gate varies.  There are kernels for all.
using carve::family;

/// Whether a member takes one delta step a token: one erase, at the key and
/// after the decay, and one write.  These have the tuned kernels and `decode`;
/// the others go token by token (plain/steps.cu), forward and backward.
inline bool takes_delta_steps(family f) {
  const family_info& x = info(f);
  return (x.erase == axis::head || x.erase == axis::key ||
          x.erase == axis::value) &&
         x.write != axis::none && x.address == erase_address::gated_key &&
         x.direction == erase_direction::key &&
         x.erase_reads == erase_order::after_decay && x.steps == substeps::one;
}

/// Element format of q, k, v, the gates and o.  States and accumulators are
/// fp32 always.
enum class format : int { fp32, bf16, fp16 };

/// A device tensor `[B, T, heads, channels]`; strides count elements, the
/// channel stride is one.  A null pointer means "absent".
struct tensor {
  void* data = nullptr;    ///< element [0,0,0,0], in device memory
  std::int64_t batch = 0;  ///< stride of the batch axis
  std::int64_t token = 0;  ///< stride of the token axis
  std::int64_t head = 0;   ///< stride of the head axis
};

/// One batched problem.  Every pointer is device memory.
///
/// | tensor | shape | used by |
/// |---|---|---|
/// | q, k | [B,T,H,K] | all |
/// | v | [B,T,HV,V] | all |
/// | g | [B,T,HV] or [B,T,HV,K] | the decay of the family's row, if any |
/// | beta | [B,T,HV] | families whose erase and write gate are one |
/// | b | [B,T,HV,K] | gdn2, carve, rwkv7 |
/// | e | [B,T,HV,V] | value_erase |
/// | w | [B,T,HV,V] or [B,T,HV] | gdn2, value_erase, full_erase; carve, mamba3
/// | | gd | [B,T,HV,V] | any but the content gate's, or null | | E | [B,T,HV,K
/// V] | full_erase | | p | [B,T,HV,K] | comba, eda | | eta | [B,T,HV] | eda |
/// | r, y | [B,T,HV,K] | dplr; rwkv7 r alone |
/// | w_last | [B,T,HV] | mamba3 |
///
/// g is the **natural log** of the decay, at most 0, gd that along the values;
/// beta is erase and write
/// gate in one; b is the key-axis erase gate, for carve its logits; e is the
/// value-axis erase gate; w is the write gate.  The others are those of the
/// library's table of tensors.  With `substeps` n, k, v and beta have T n rows.
/// Value head i reads query and key head `i / (HV / H)`.
struct problem {
  cuda::family family = cuda::family::gdn2;  ///< which gates there are
  format input = format::bf16;               ///< q, k, v, beta, b, e, w, o
  format decay_format = format::fp32;        ///< g
  /// Batch, tokens, query and key heads, value heads, key channels, value
  /// channels.
  ///@{
  int B = 0, T = 0, H = 0, HV = 0, K = 0, V = 0;
  ///@}
  /// An input of the table of `problem`.
  ///@{
  tensor q, k, v, g, beta, b, e, w;
  ///@}
  float scale = 0;           ///< factor of the read-out; 1/sqrt(K) as a rule
  bool read_before = false;  ///< o_t from S_{t-1} instead of S_t
  /// Packed sequences: B = 1 and N + 1 offsets in device memory, first 0,
  /// last T, never decreasing.  Null: each batch entry is one sequence, N = B.
  const std::int64_t* cu_seqlens = nullptr;
  int N = 0;                             ///< number of sequences
  const float* initial_state = nullptr;  ///< [N,HV,K,V] or null for zeros
  /// Window length Lc and inner rank rho of the content gate (family carve),
  /// `b = sigmoid(x + W_up W_down m)`.
  ///@{
  int window = 0, rank = 0;
  ///@}
  const float* w_down = nullptr;  ///< [HV,rank,V]
  const float* w_up = nullptr;    ///< [HV,K,rank]
  /// An input of the table that delta steps do not have.
  ///@{
  tensor gd, E, p, eta, r, y, w_last;
  ///@}
  int substeps = 1;  ///< n of gated_delta_product, 1 for all others
  /// Which state the erase looks into; absent: what the family's row says.
  std::optional<erase_order> erase_reads;
};

/// Whether the kernels for delta steps take a problem.
inline bool takes_delta_steps(const problem& p) {
  return takes_delta_steps(p.family) && p.gd.data == nullptr &&
         p.erase_reads.value_or(erase_order::after_decay) ==
             erase_order::after_decay;
}

/// Channels of each gate's tensor by the table above; 0: the family has none.
struct gate_channels {
  /// Of the tensor of that name.
  ///@{
  int g, beta, b, e, w;
  int E, p, eta, r, y, w_last;
  ///@}
};
/// Channels of the gates of a problem, from its family, K and V.
inline gate_channels gate_channels_of(const problem& p) {
  const family_info& f = info(p.family);
  const auto along = [&](axis a) {
    return a == axis::none    ? 0
           : a == axis::head  ? 1
           : a == axis::key   ? p.K
           : a == axis::value ? p.V
                              : p.K * p.V;
  };
  const auto erase_along = [&](axis a) {
    return !f.tied && f.erase == a ? along(a) : 0;
  };
  const bool twice = f.steps == substeps::erase_then_delta;
  return {.g = along(f.decay),
          .beta = f.tied ? 1 : 0,
          .b = erase_along(axis::key),
          .e = erase_along(axis::value),
          .w = f.tied ? 0 : along(f.write),
          .E = erase_along(axis::mask),
          .p = twice || f.address == erase_address::gated_p ? p.K : 0,
          .eta = twice ? 1 : 0,
          .r = f.address == erase_address::given ? p.K : 0,
          .y = f.direction == erase_direction::given ? p.K : 0,
          .w_last = f.steps == substeps::trapezoid ? 1 : 0};
}

/// What the forward writes.
struct outputs {
  tensor o;                      ///< [B,T,HV,V], format `problem::input`
  float* final_state = nullptr;  ///< [N,HV,K,V] fp32, or null
  /// Family carve: the mean of o over every window that another one follows,
  /// [slots,HV,V] fp32, or null. Of sequence n, which begins at token `first`
  /// (of all batch entries one after the other), the mean that window c follows
  /// stands in slot first / window + n + c; slots: B T / window + N.
  float* window_means = nullptr;
};

/// Cotangents in, gradients out; shapes as the tensors they belong to.
/// Gradients of inputs are in `problem::input`, but dg and dgd in fp32, as
/// states and content-gate parameters in fp32.  dq and dk of grouped value
/// heads are summed over the group.  A null pointer skips that gradient.
struct gradients {
  tensor d_o;                            ///< in: [B,T,HV,V]
  const float* d_final_state = nullptr;  ///< in: [N,HV,K,V] or null
  /// in: what the forward of the same inputs wrote there, or null; spares the
  /// fast backward of family carve a forward of its own
  const float* window_means = nullptr;
  /// out: gradients, shaped as the inputs; that of g is the gradient with
  /// respect to the natural log
  ///@{
  tensor dq, dk, dv, dg, dbeta, db, de, dw;
  ///@}
  float* d_initial_state = nullptr;  ///< [N,HV,K,V]
  float* d_w_down = nullptr;         ///< [HV,rank,V]
  float* d_w_up = nullptr;           ///< [HV,K,rank]
  /// out: those of the tensors that delta steps do not have; dgd is fp32
  ///@{
  tensor dgd, dE, dp, deta, dr, dy, dw_last;
  ///@}
};

/// Outcome of a call: zero is success, anything else is explained by `text`,
/// a static string.
struct status {
  int code = 0;           ///< 0, or which fault
  const char* text = "";  ///< what was expected and what came
  /// Success.
  explicit operator bool() const { return code == 0; }
};

/// Which kernel to run: the fastest that supports the problem, or the plain
/// general one (the yardstick of the fast ones).
///
/// The fast ones need finite log decays and hold what a token writes (u), the
/// tail keys and, of the backward, the states in fp16: |u|, |k| and there |q|
/// and |S| must stay below 65504; beyond, infinities come out, never a silent
/// clip.  carve: the erase logits and what the content adds to them must each
/// stay within 80; the fast forward makes their exponentials apart, so beyond
/// that a gate may end at 0 or 1 where the two cancel.  In its backward what an
/// output receives through the gate may be 2^13 times the largest cotangent of
/// its sequence.  The general ones compute in fp32 throughout.
///
/// Gradients of the fast backward known to err by more than 1.5 of the
/// library's rounding replay (the factor in brackets, most by emulation; see
/// "Limits" in cuda/NOTES.md): with fp16 inputs, dg of gdn at a steady log
/// decay of -7 and -10 a token (2.8) and, K = 64, V = 128, without decay
/// (1.95), dg and d_initial_state at log decays uniform in 0..-50 (3.4),
/// d_initial_state at K = 128 without decay (1.64); with bf16, db of gdn2 at a
/// steady -3 and -4 (1.67).
enum class path : int { best, general };

/// Bytes of workspace that `forward` needs for this problem.
status forward_workspace(const problem&, std::size_t* bytes, path = path::best);
/// Writes o and the final state.  Asynchronous on `stream`.
status forward(const problem&, const outputs&, void* workspace,
               std::size_t bytes, CUstream_st* stream, path = path::best);

/// Bytes of workspace that `backward` needs for this problem.
status backward_workspace(const problem&, std::size_t* bytes,
                          path = path::best);
/// Writes the gradients asked for; recomputes what it needs of the forward.
status backward(const problem&, const gradients&, void* workspace,
                std::size_t bytes, CUstream_st* stream, path = path::best);

/// One token for each of N sequences (T = 1): reads `state` [N,HV,K,V] fp32,
/// writes it back in place, writes o.  For carve, `b` holds the finished gate:
/// the window mean is the caller's.
status decode(const problem&, const tensor& o, float* state,
              CUstream_st* stream);

/// Name of the kernel that `forward` (or `backward`) would launch.
const char* kernel_name(const problem&, bool backward, path = path::best);

}  // namespace carve::cuda
