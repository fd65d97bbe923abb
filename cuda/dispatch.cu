// The functions of carve/cuda.hpp: is the problem well formed, and which
// kernel takes it.
#include <algorithm>

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
#define CARVE_CUDA_ALIGNED(pointer, name, size)                \
  do {                                                         \
    if (!aligned(pointer, size))                               \
      return bad(name ": pointer not aligned to its element"); \
  } while (0)
#define CARVE_CUDA_NEED(x, name, size)                          \
  do {                                                          \
    if ((x).data == nullptr) return bad(name ": null pointer"); \
    CARVE_CUDA_ALIGNED((x).data, name, size);                   \
  } while (0)
// What is written: overlapping rows would be written by two threads at once.
#define CARVE_CUDA_ROWS(x, name, size, p, heads, channels)                  \
  do {                                                                      \
    CARVE_CUDA_ALIGNED((x).data, name, size);                               \
    if ((x).data != nullptr && (((heads) > 1 && (x).head < (channels)) ||   \
                                ((p).T > 1 && (x).token < (channels)) ||    \
                                ((p).B > 1 && (x).batch < (channels))))     \
      return bad(name ": stride smaller than the row it has to step over"); \
  } while (0)

status check(const problem& p) {
  if (static_cast<std::size_t>(p.family) >= families.size())
    return {unsupported, "family: not one of the known families"};
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
  if (p.HV > 65535 || static_cast<std::int64_t>(p.N) * p.HV > 0x7fffffffLL / 64)
    return {unsupported, "too many heads or sequences for one launch"};
  const std::size_t size = element_size(p.input);
  const gate_channels have = gate_channels_of(p);
  CARVE_CUDA_NEED(p.q, "q", size);
  CARVE_CUDA_NEED(p.k, "k", size);
  CARVE_CUDA_NEED(p.v, "v", size);
  if (have.g != 0) CARVE_CUDA_NEED(p.g, "g", element_size(p.decay_format));
  if (have.beta != 0) CARVE_CUDA_NEED(p.beta, "beta", size);
  if (have.w != 0) CARVE_CUDA_NEED(p.w, "w", size);
  if (have.e != 0) CARVE_CUDA_NEED(p.e, "e", size);
  if (have.b != 0) CARVE_CUDA_NEED(p.b, "b", size);
  if (have.E != 0) CARVE_CUDA_NEED(p.E, "E", size);
  if (have.p != 0) CARVE_CUDA_NEED(p.p, "p", size);
  if (have.eta != 0) CARVE_CUDA_NEED(p.eta, "eta", size);
  if (have.r != 0) CARVE_CUDA_NEED(p.r, "r", size);
  if (have.y != 0) CARVE_CUDA_NEED(p.y, "y", size);
  if (have.w_last != 0) CARVE_CUDA_NEED(p.w_last, "w_last", size);
  CARVE_CUDA_ALIGNED(p.gd.data, "gd", element_size(p.decay_format));
  if (p.substeps < 1 || p.substeps > 32)
    return {unsupported, "substeps must be from 1 to 32"};
  if (p.substeps != 1 && info(p.family).steps != substeps::given)
    return bad("substeps: this family takes one");
  if (info(p.family).content_gate && !takes_delta_steps(p))
    return {unsupported,
            "gd, erase_reads: not beside a content gate, which has no kernel "
            "for them"};
  CARVE_CUDA_ALIGNED(p.initial_state, "initial_state", 16);
  return {};
}

status check_content_gate(const problem& p) {
  if (!info(p.family).content_gate) return {};
  if (p.window < 1) return bad("window must be at least 1");
  if (p.rank < 1 || p.rank > 256)
    return {unsupported, "rank must be from 1 to 256"};
  if (p.w_down == nullptr) return bad("w_down: null pointer");
  if (p.w_up == nullptr) return bad("w_up: null pointer");
  CARVE_CUDA_ALIGNED(p.w_down, "w_down", 4);
  CARVE_CUDA_ALIGNED(p.w_up, "w_up", 4);
  return {};
}

status check_results(const problem& p, const outputs& out) {
  CARVE_CUDA_NEED(out.o, "o", element_size(p.input));
  CARVE_CUDA_ROWS(out.o, "o", element_size(p.input), p, p.HV, p.V);
  CARVE_CUDA_ALIGNED(out.final_state, "final_state", 16);
  CARVE_CUDA_ALIGNED(out.window_means, "window_means", 16);
  if (out.window_means != nullptr && p.family != family::carve)
    return bad("window_means: this family has no windows");
  return {};
}

status check_results(const problem& p, const gradients& g) {
  const std::size_t size = element_size(p.input);
  const gate_channels have = gate_channels_of(p);
  CARVE_CUDA_NEED(g.d_o, "d_o", size);
  CARVE_CUDA_ROWS(g.dq, "dq", size, p, p.H, p.K);
  CARVE_CUDA_ROWS(g.dk, "dk", size, p, p.H, p.K);
  CARVE_CUDA_ROWS(g.dv, "dv", size, p, p.HV, p.V);
  CARVE_CUDA_ROWS(g.dg, "dg", 4, p, p.HV, have.g);
  CARVE_CUDA_ROWS(g.dbeta, "dbeta", size, p, p.HV, have.beta);
  CARVE_CUDA_ROWS(g.db, "db", size, p, p.HV, have.b);
  CARVE_CUDA_ROWS(g.de, "de", size, p, p.HV, have.e);
  CARVE_CUDA_ROWS(g.dw, "dw", size, p, p.HV, have.w);
  CARVE_CUDA_ROWS(g.dgd, "dgd", 4, p, p.HV, p.V);
  CARVE_CUDA_ROWS(g.dE, "dE", size, p, p.HV, have.E);
  CARVE_CUDA_ROWS(g.dp, "dp", size, p, p.HV, have.p);
  CARVE_CUDA_ROWS(g.deta, "deta", size, p, p.HV, have.eta);
  CARVE_CUDA_ROWS(g.dr, "dr", size, p, p.HV, have.r);
  CARVE_CUDA_ROWS(g.dy, "dy", size, p, p.HV, have.y);
  CARVE_CUDA_ROWS(g.dw_last, "dw_last", size, p, p.HV, have.w_last);
  CARVE_CUDA_ALIGNED(g.d_final_state, "d_final_state", 16);
  CARVE_CUDA_ALIGNED(g.d_initial_state, "d_initial_state", 16);
  CARVE_CUDA_ALIGNED(g.window_means, "window_means", 16);
  if (g.window_means != nullptr && p.family != family::carve)
    return bad("window_means: this family has no windows");
  // A gradient of a gate that the family lacks would never be written.
  if (have.g == 0 && g.dg.data != nullptr)
    return bad("dg: this family has no decay");
  if (have.beta == 0 && g.dbeta.data != nullptr)
    return bad("dbeta: this family has no beta");
  if (have.b == 0 && g.db.data != nullptr)
    return bad("db: this family has no key-axis erase gate");
  if (have.e == 0 && g.de.data != nullptr)
    return bad("de: this family has no value-axis erase gate");
  if (have.w == 0 && g.dw.data != nullptr)
    return bad("dw: this family has no write gate of its own");
  if (p.gd.data == nullptr && g.dgd.data != nullptr)
    return bad("dgd: this problem has no decay along the values");
  if (have.E == 0 && g.dE.data != nullptr)
    return bad("dE: this family has no full-mask erase gate");
  if (have.p == 0 && g.dp.data != nullptr)
    return bad("dp: this family has no p");
  if (have.eta == 0 && g.deta.data != nullptr)
    return bad("deta: this family has no eta");
  if (have.r == 0 && g.dr.data != nullptr)
    return bad("dr: this family has no erase address of its own");
  if (have.y == 0 && g.dy.data != nullptr)
    return bad("dy: this family has no erase direction of its own");
  if (have.w_last == 0 && g.dw_last.data != nullptr)
    return bad("dw_last: this family does not write the last token again");
  if (!info(p.family).content_gate &&
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

/// A way to compute: the first of a table that takes the problem is taken.
template <class Results>
struct way {
  const char* name;
  int capability;  ///< the major one that it is for; 0: any
  bool plain;      ///< token by token in fp32: what path::general takes
  bool (*supports)(const problem&);
  status (*workspace)(const problem&, std::size_t* bytes);
  status (*run)(const problem&, const Results&, void* workspace,
                std::size_t bytes, CUstream_st* stream);
};

/// The kernels for delta steps, whose shapes are not all fast.
template <bool (*Fast)(const problem&)>
bool delta_steps(const problem& p) {
  return takes_delta_steps(p) && Fast(p);
}
bool any(const problem&) { return true; }

constexpr way<outputs> ways_forward[] = {
    {"forward_scan", 9, false, delta_steps<forward_scan_supports>,
     forward_scan_workspace, forward_scan},
    {"forward_hopper", 9, false, delta_steps<forward_hopper_supports>,
     forward_hopper_workspace, forward_hopper},
    {"forward_columnwise", 0, false, delta_steps<forward_columnwise_supports>,
     forward_columnwise_workspace, forward_columnwise},
    {"forward_general", 0, true, delta_steps<any>, forward_general_workspace,
     forward_general},
    {"forward_steps", 0, true, any, forward_steps_workspace, forward_steps},
};
constexpr way<gradients> ways_backward[] = {
    {"backward_full_grid", 9, false, delta_steps<backward_full_grid_supports>,
     backward_full_grid_workspace, backward_full_grid},
    {"backward_hopper", 9, false, delta_steps<backward_hopper_supports>,
     backward_hopper_workspace, backward_hopper},
    {"backward_general", 0, true, delta_steps<any>, backward_general_workspace,
     backward_general},
    {"backward_steps", 0, true, any, backward_steps_workspace, backward_steps},
};

/// Checks the problem and finds the way that takes it; the last one takes all.
template <class Results, std::size_t N>
status choose(const way<Results> (&ways)[N], const problem& p, path how,
              const way<Results>** which) {
  if (const status s = check(p); !s) return s;
  if (const status s = check_content_gate(p); !s) return s;
  int major = 0;
  if (const status s = compute_capability(&major); !s) return s;
  const bool plain = how == path::general || p.T == 0;
  *which = std::find_if(ways, ways + N, [&](const way<Results>& w) {
    return (w.plain || !plain) &&
           (w.capability == 0 || w.capability == major) && w.supports(p);
  });
  return {};
}

template <class Results, std::size_t N>
status workspace_of(const way<Results> (&ways)[N], const problem& p, path how,
                    std::size_t* bytes) {
  *bytes = 0;
  const way<Results>* which;
  if (const status s = choose(ways, p, how, &which); !s) return s;
  return which->workspace(p, bytes);
}

template <class Results, std::size_t N>
status run(const way<Results> (&ways)[N], const problem& p,
           const Results& results, void* workspace, std::size_t bytes,
           CUstream_st* stream, path how) {
  const way<Results>* which;
  if (const status s = choose(ways, p, how, &which); !s) return s;
  std::size_t needed = 0;
  if (const status s = which->workspace(p, &needed); !s) return s;
  if (const status s = check_results(p, results); !s) return s;
  if (needed > bytes)
    return {workspace_too_small, "workspace smaller than the size asked for"};
  if (needed > 0 && workspace == nullptr) return bad("workspace: null pointer");
  if (!aligned(workspace, 256))
    return bad("workspace: pointer not aligned to 256 bytes");
  return which->run(p, results, workspace, bytes, stream);
}

}  // namespace

status forward_workspace(const problem& p, std::size_t* bytes, path how) {
  return workspace_of(ways_forward, p, how, bytes);
}

status forward(const problem& p, const outputs& out, void* workspace,
               std::size_t bytes, CUstream_st* stream, path how) {
  return run(ways_forward, p, out, workspace, bytes, stream, how);
}

status backward_workspace(const problem& p, std::size_t* bytes, path how) {
  return workspace_of(ways_backward, p, how, bytes);
}

status backward(const problem& p, const gradients& grad, void* workspace,
                std::size_t bytes, CUstream_st* stream, path how) {
  return run(ways_backward, p, grad, workspace, bytes, stream, how);
}

status decode(const problem& p, const tensor& o, float* state,
              CUstream_st* stream) {
  if (const status s = check(p); !s) return s;
  if (!takes_delta_steps(p))
    return {unsupported, "family, gd, erase_reads: decode takes delta steps"};
  if (p.T != 1) return bad("T must be 1 for decode");
  if (p.cu_seqlens != nullptr) return bad("cu_seqlens must be null for decode");
  if (state == nullptr) return bad("state: null pointer");
  if (!aligned(state, 16)) return bad("state: pointer not aligned to 16 bytes");
  if (const status s = check_results(p, outputs{.o = o}); !s) return s;
  int major = 0;
  if (const status s = compute_capability(&major); !s) return s;
  return decode_step(p, o, state, stream);
}

const char* kernel_name(const problem& p, bool backward, path how) {
  const way<outputs>* there = nullptr;
  const way<gradients>* back = nullptr;
  if (backward)
    return choose(ways_backward, p, how, &back) ? back->name : "none";
  return choose(ways_forward, p, how, &there) ? there->name : "none";
}

}  // namespace carve::cuda
