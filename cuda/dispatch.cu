// The functions of carve/cuda.hpp: is the problem well formed, and which
// kernel takes it.
#include "common.cuh"
#include "kernels.hpp"

namespace carve::cuda {
namespace {

status bad(const char* text) { return {bad_argument, text}; }

std::size_t element_size(format f) { return f == format::fp32 ? 4 : 2; }

bool aligned(const void* data, std::size_t to) {
  return reinterpret_cast<std::uintptr_t>(data) % to == 0;
}

// One text for each tensor and fault, so that a status can point at it.
#define CARVE_CUDA_NEED(x, name, size)                          \
  do {                                                          \
    if ((x).data == nullptr) return bad(name ": null pointer"); \
    CARVE_CUDA_ALIGNED((x).data, name, size);                   \
  } while (0)
#define CARVE_CUDA_ALIGNED(pointer, name, size)                \
  do {                                                         \
    if (!aligned(pointer, size))                               \
      return bad(name ": pointer not aligned to its element"); \
  } while (0)
// Overlapping rows would be written by two threads at once.
#define CARVE_CUDA_ROWS(x, name, p, heads, channels)                        \
  do {                                                                      \
    if ((x).data != nullptr && (((heads) > 1 && (x).head < (channels)) ||   \
                                ((p).T > 1 && (x).token < (channels)) ||    \
                                ((p).B > 1 && (x).batch < (channels))))     \
      return bad(name ": stride smaller than the row it has to step over"); \
  } while (0)

bool has_decay(family f) { return f != family::delta; }

bool has_beta(family f) {
  return f == family::delta || f == family::gdn || f == family::kda;
}

status check(const problem& p) {
  switch (p.family) {
    case family::delta:
    case family::gdn:
    case family::kda:
    case family::gdn2:
    case family::carve:
    case family::value_erase:
      break;
    default:
      return {unsupported, "family: not one of the known families"};
  }
  for (const format f : {p.input, p.decay_format})
    if (f != format::fp32 && f != format::bf16 && f != format::fp16)
      return {unsupported, "format: expected fp32, bf16 or fp16"};
  if (p.B < 1 || p.T < 0 || p.H < 1 || p.HV < 1)
    return bad("B, H and HV must be at least 1 and T at least 0");
  if (p.HV % p.H != 0) return bad("HV must be a multiple of H");
  if (p.K < 16 || p.K > 256 || p.K % 16 != 0)
    return {unsupported, "K must be a multiple of 16 from 16 to 256"};
  if (p.V < 16 || p.V > 256 || p.V % 16 != 0)
    return {unsupported, "V must be a multiple of 16 from 16 to 256"};
  if (p.N < 1) return bad("N must be at least 1");
  if (p.cu_seqlens == nullptr && p.N != p.B)
    return bad("N must equal B when cu_seqlens is null");
  if (p.cu_seqlens != nullptr && p.B != 1)
    return bad("B must be 1 when cu_seqlens is given");
  CARVE_CUDA_ALIGNED(p.cu_seqlens, "cu_seqlens", 8);
  if (p.H > 65535 || static_cast<std::int64_t>(p.N) * p.HV > 0x7fffffffLL / 64)
    return {unsupported, "too many heads or sequences for one launch"};
  const std::size_t size = element_size(p.input);
  CARVE_CUDA_NEED(p.q, "q", size);
  CARVE_CUDA_NEED(p.k, "k", size);
  CARVE_CUDA_NEED(p.v, "v", size);
  if (has_decay(p.family))
    CARVE_CUDA_NEED(p.g, "g", element_size(p.decay_format));
  if (has_beta(p.family)) {
    CARVE_CUDA_NEED(p.beta, "beta", size);
  } else {
    CARVE_CUDA_NEED(p.w, "w", size);
    if (p.family == family::value_erase)
      CARVE_CUDA_NEED(p.e, "e", size);
    else
      CARVE_CUDA_NEED(p.b, "b", size);
  }
  CARVE_CUDA_ALIGNED(p.initial_state, "initial_state", 16);
  return {};
}

status check_content_gate(const problem& p) {
  if (p.family != family::carve) return {};
  if (p.window < 1) return bad("window must be at least 1");
  if (p.rank < 1 || p.rank > 256)
    return {unsupported, "rank must be from 1 to 256"};
  if (p.w_down == nullptr) return bad("w_down: null pointer");
  if (p.w_up == nullptr) return bad("w_up: null pointer");
  CARVE_CUDA_ALIGNED(p.w_down, "w_down", 4);
  CARVE_CUDA_ALIGNED(p.w_up, "w_up", 4);
  return {};
}

status check_forward(const problem& p) {
  if (const status s = check(p); !s) return s;
  return check_content_gate(p);
}

status check_outputs(const problem& p, const outputs& out) {
  CARVE_CUDA_NEED(out.o, "o", element_size(p.input));
  CARVE_CUDA_ROWS(out.o, "o", p, p.HV, p.V);
  CARVE_CUDA_ALIGNED(out.final_state, "final_state", 16);
  return {};
}

status check_gradients(const problem& p, const gradients& g) {
  const std::size_t size = element_size(p.input);
  const int gate_channels = p.family == family::gdn ? 1 : p.K;
  const int write_channels = p.family == family::carve ? 1 : p.V;
  CARVE_CUDA_NEED(g.d_o, "d_o", size);
  CARVE_CUDA_ALIGNED(g.dq.data, "dq", size);
  CARVE_CUDA_ROWS(g.dq, "dq", p, p.H, p.K);
  CARVE_CUDA_ALIGNED(g.dk.data, "dk", size);
  CARVE_CUDA_ROWS(g.dk, "dk", p, p.H, p.K);
  CARVE_CUDA_ALIGNED(g.dv.data, "dv", size);
  CARVE_CUDA_ROWS(g.dv, "dv", p, p.HV, p.V);
  CARVE_CUDA_ALIGNED(g.dg.data, "dg", 4);
  CARVE_CUDA_ROWS(g.dg, "dg", p, p.HV, gate_channels);
  CARVE_CUDA_ALIGNED(g.dbeta.data, "dbeta", size);
  CARVE_CUDA_ROWS(g.dbeta, "dbeta", p, p.HV, 1);
  CARVE_CUDA_ALIGNED(g.db.data, "db", size);
  CARVE_CUDA_ROWS(g.db, "db", p, p.HV, p.K);
  CARVE_CUDA_ALIGNED(g.de.data, "de", size);
  CARVE_CUDA_ROWS(g.de, "de", p, p.HV, p.V);
  CARVE_CUDA_ALIGNED(g.dw.data, "dw", size);
  CARVE_CUDA_ROWS(g.dw, "dw", p, p.HV, write_channels);
  CARVE_CUDA_ALIGNED(g.d_final_state, "d_final_state", 16);
  CARVE_CUDA_ALIGNED(g.d_initial_state, "d_initial_state", 16);
  // A gradient of a gate that the family lacks would never be written.
  if (!has_decay(p.family) && g.dg.data != nullptr)
    return bad("dg: this family has no decay");
  if (!has_beta(p.family) && g.dbeta.data != nullptr)
    return bad("dbeta: this family has no beta");
  if (p.family != family::gdn2 && p.family != family::carve &&
      g.db.data != nullptr)
    return bad("db: this family has no key-axis erase gate");
  if (p.family != family::value_erase && g.de.data != nullptr)
    return bad("de: this family has no value-axis erase gate");
  if (has_beta(p.family) && g.dw.data != nullptr)
    return bad("dw: this family has no write gate of its own");
  if (p.family != family::carve &&
      (g.d_w_down != nullptr || g.d_w_up != nullptr))
    return bad("d_w_down, d_w_up: this family has no content gate");
  return {};
}

status compute_capability(int* major) {
  int device = 0;
  CARVE_CUDA_TRY(cudaGetDevice(&device));
  CARVE_CUDA_TRY(
      cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor, device));
  if (*major < 8)
    return {unsupported, "the device is older than compute capability 8.0"};
  return {};
}

enum class kernel { general, hopper, columnwise };

status choose(const problem& p, bool backward, path how, kernel* which) {
  int major = 0;
  if (const status s = compute_capability(&major); !s) return s;
  *which = kernel::general;
  if (how == path::general || p.T == 0) return {};
  if (backward) {
    if (major == 9 && backward_hopper_supports(p)) *which = kernel::hopper;
  } else if (major == 9 && forward_hopper_supports(p)) {
    *which = kernel::hopper;
  } else if (forward_columnwise_supports(p)) {
    *which = kernel::columnwise;
  }
  return {};
}

status check_workspace(const void* workspace, std::size_t bytes,
                       std::size_t needed) {
  if (needed > bytes)
    return {workspace_too_small, "workspace smaller than the size asked for"};
  if (needed > 0 && workspace == nullptr) return bad("workspace: null pointer");
  if (!aligned(workspace, 256))
    return bad("workspace: pointer not aligned to 256 bytes");
  return {};
}

}  // namespace

status forward_workspace(const problem& p, std::size_t* bytes, path how) {
  *bytes = 0;
  if (const status s = check_forward(p); !s) return s;
  kernel which;
  if (const status s = choose(p, false, how, &which); !s) return s;
  if (which == kernel::hopper) return forward_hopper_workspace(p, bytes);
  if (which == kernel::columnwise)
    return forward_columnwise_workspace(p, bytes);
  return forward_general_workspace(p, bytes);
}

status forward(const problem& p, const outputs& out, void* workspace,
               std::size_t bytes, CUstream_st* stream, path how) {
  std::size_t needed = 0;
  if (const status s = forward_workspace(p, &needed, how); !s) return s;
  if (const status s = check_outputs(p, out); !s) return s;
  if (const status s = check_workspace(workspace, bytes, needed); !s) return s;
  kernel which;
  if (const status s = choose(p, false, how, &which); !s) return s;
  if (which == kernel::hopper)
    return forward_hopper(p, out, workspace, bytes, stream);
  if (which == kernel::columnwise)
    return forward_columnwise(p, out, workspace, bytes, stream);
  return forward_general(p, out, workspace, bytes, stream);
}

status backward_workspace(const problem& p, std::size_t* bytes, path how) {
  *bytes = 0;
  if (const status s = check_forward(p); !s) return s;
  kernel which;
  if (const status s = choose(p, true, how, &which); !s) return s;
  if (which == kernel::hopper) return backward_hopper_workspace(p, bytes);
  return backward_general_workspace(p, bytes);
}

status backward(const problem& p, const gradients& grad, void* workspace,
                std::size_t bytes, CUstream_st* stream, path how) {
  std::size_t needed = 0;
  if (const status s = backward_workspace(p, &needed, how); !s) return s;
  if (const status s = check_gradients(p, grad); !s) return s;
  if (const status s = check_workspace(workspace, bytes, needed); !s) return s;
  kernel which;
  if (const status s = choose(p, true, how, &which); !s) return s;
  if (which == kernel::hopper)
    return backward_hopper(p, grad, workspace, bytes, stream);
  return backward_general(p, grad, workspace, bytes, stream);
}

status decode(const problem& p, const tensor& o, float* state,
              CUstream_st* stream) {
  if (const status s = check(p); !s) return s;
  if (p.T != 1) return bad("T must be 1 for decode");
  if (p.cu_seqlens != nullptr) return bad("cu_seqlens must be null for decode");
  if (state == nullptr) return bad("state: null pointer");
  if (!aligned(state, 16)) return bad("state: pointer not aligned to 16 bytes");
  CARVE_CUDA_NEED(o, "o", element_size(p.input));
  CARVE_CUDA_ROWS(o, "o", p, p.HV, p.V);
  int major = 0;
  if (const status s = compute_capability(&major); !s) return s;
  return decode_step(p, o, state, stream);
}

const char* kernel_name(const problem& p, bool backward, path how) {
  if (!check_forward(p)) return "none";
  kernel which;
  if (!choose(p, backward, how, &which)) return "none";
  switch (which) {
    case kernel::hopper:
      return backward ? "backward_hopper" : "forward_hopper";
    case kernel::columnwise:
      return "forward_columnwise";
    default:
      return backward ? "backward_general" : "forward_general";
  }
}

}  // namespace carve::cuda
