/// @file
/// How does carve_cuda.h reach the CUDA kernels?  Each struct of C becomes the
/// one of carve/cuda.hpp, a status of theirs one of the C interface.
#include "c_status.hpp"
#include "carve/carve_cuda.h"

#ifndef CARVE_WITH_CUDA

namespace {

carve_status not_built() {
  return carve::program::failed(
      CARVE_BAD_INPUT, "CUDA: this library was built without the kernels");
}

}  // namespace

int carve_cuda_built(void) { return 0; }
carve_status carve_cuda_forward_workspace(const carve_cuda_problem*, size_t*) {
  return not_built();
}
carve_status carve_cuda_forward(const carve_cuda_problem*,
                                const carve_cuda_outputs*, void*, size_t,
                                void*) {
  return not_built();
}
carve_status carve_cuda_backward_workspace(const carve_cuda_problem*, size_t*) {
  return not_built();
}
carve_status carve_cuda_backward(const carve_cuda_problem*,
                                 const carve_cuda_gradients*, void*, size_t,
                                 void*) {
  return not_built();
}
carve_status carve_cuda_decode(const carve_cuda_problem*,
                               const carve_cuda_tensor*, float*, void*) {
  return not_built();
}
const char* carve_cuda_kernel(const carve_cuda_problem*, int) { return "none"; }

#else

#include <optional>

#include "carve/cuda.hpp"
#include "carve/family_name.hpp"

namespace carve::program {

namespace {

cuda::format format_of(carve_dtype t, const char* what) {
  switch (t) {
    case CARVE_F32:
      return cuda::format::fp32;
    case CARVE_F16:
      return cuda::format::fp16;
    case CARVE_BF16:
      return cuda::format::bf16;
    default:
      throw error(what, ": expected F32, F16 or BF16, got dtype ",
                  static_cast<int>(t));
  }
}

cuda::tensor tensor_of(const carve_cuda_tensor& t) {
  return {t.data, t.batch, t.token, t.head};
}

cuda::path path_of(const carve_cuda_problem& p) {
  return p.general ? cuda::path::general : cuda::path::best;
}

std::optional<erase_order> order_of(carve_cuda_erase_order order) {
  switch (order) {
    case CARVE_CUDA_ERASE_ORDER_OF_FAMILY:
      return {};
    case CARVE_CUDA_ERASE_AFTER_DECAY:
      return erase_order::after_decay;
    case CARVE_CUDA_ERASE_BEFORE_DECAY:
      return erase_order::before_decay;
  }
  throw error("erase_order: not one of its values, got ",
              static_cast<int>(order));
}

/// A tensor that is the same one in C and in C++, and its gradient.
struct same_tensor {
  carve_cuda_tensor carve_cuda_problem::*from;
  cuda::tensor cuda::problem::*to;
  carve_cuda_tensor carve_cuda_gradients::*gradient_from;
  cuda::tensor cuda::gradients::*gradient_to;
};

#define CARVE_SAME_TENSOR(x)                                                \
  same_tensor {                                                             \
    &carve_cuda_problem::x, &cuda::problem::x, &carve_cuda_gradients::d##x, \
        &cuda::gradients::d##x                                              \
  }
constexpr same_tensor same_tensors[] = {
    CARVE_SAME_TENSOR(q), CARVE_SAME_TENSOR(k),    CARVE_SAME_TENSOR(v),
    CARVE_SAME_TENSOR(g), CARVE_SAME_TENSOR(beta), CARVE_SAME_TENSOR(b),
    CARVE_SAME_TENSOR(e), CARVE_SAME_TENSOR(w),    CARVE_SAME_TENSOR(gd),
    CARVE_SAME_TENSOR(E), CARVE_SAME_TENSOR(p),    CARVE_SAME_TENSOR(eta),
    CARVE_SAME_TENSOR(r), CARVE_SAME_TENSOR(y),    CARVE_SAME_TENSOR(w_last)};
#undef CARVE_SAME_TENSOR

cuda::problem problem_of(const carve_cuda_problem* from) {
  const carve_cuda_problem& c = given(from, "problem");
  cuda::problem p;
  p.family = family_named(&given(c.family, "family"));
  p.input = format_of(c.input, "input");
  p.decay_format = format_of(c.decay, "decay");
  p.B = c.B, p.T = c.T, p.H = c.H, p.HV = c.HV, p.K = c.K, p.V = c.V;
  p.N = c.N, p.window = c.window, p.rank = c.rank;
  p.read_before = c.read_before != 0, p.scale = c.scale;
  p.substeps = c.substeps == 0 ? 1 : c.substeps;
  p.erase_reads = order_of(c.erase_order);
  for (const same_tensor& t : same_tensors) p.*t.to = tensor_of(c.*t.from);
  p.cu_seqlens = c.cu_seqlens, p.initial_state = c.initial_state;
  p.w_down = c.w_down, p.w_up = c.w_up;
  return p;
}

/// A call of the kernels; `f` returns their status.
template <class F>
carve_status run(F&& f) noexcept {
  carve_status found = CARVE_OK;
  const carve_status thrown = guarded([&] {
    const cuda::status s = f();
    // The codes of faults in the call are above those of the CUDA runtime.
    if (!s)
      found = failed(s.code > 10000 ? CARVE_BAD_INPUT : CARVE_INTERNAL, s.text);
  });
  return thrown == CARVE_OK ? found : thrown;
}

}  // namespace

}  // namespace carve::program

namespace program = carve::program;
namespace cuda = carve::cuda;

int carve_cuda_built(void) { return 1; }

carve_status carve_cuda_forward_workspace(const carve_cuda_problem* problem,
                                          size_t* bytes) {
  return program::run([&] {
    return cuda::forward_workspace(program::problem_of(problem),
                                   &program::given(bytes, "bytes"),
                                   program::path_of(*problem));
  });
}

carve_status carve_cuda_forward(const carve_cuda_problem* problem,
                                const carve_cuda_outputs* out, void* workspace,
                                size_t bytes, void* stream) {
  return program::run([&] {
    const cuda::problem p = program::problem_of(problem);
    const carve_cuda_outputs& c = program::given(out, "out");
    const cuda::outputs results{program::tensor_of(c.o), c.final_state,
                                c.window_means};
    return cuda::forward(p, results, workspace, bytes,
                         static_cast<CUstream_st*>(stream),
                         program::path_of(*problem));
  });
}

carve_status carve_cuda_backward_workspace(const carve_cuda_problem* problem,
                                           size_t* bytes) {
  return program::run([&] {
    return cuda::backward_workspace(program::problem_of(problem),
                                    &program::given(bytes, "bytes"),
                                    program::path_of(*problem));
  });
}

carve_status carve_cuda_backward(const carve_cuda_problem* problem,
                                 const carve_cuda_gradients* out,
                                 void* workspace, size_t bytes, void* stream) {
  return program::run([&] {
    const cuda::problem p = program::problem_of(problem);
    const carve_cuda_gradients& c = program::given(out, "out");
    cuda::gradients r;
    const auto of = program::tensor_of;
    r.d_o = of(c.d_o), r.d_final_state = c.d_final_state;
    r.window_means = c.window_means;
    for (const program::same_tensor& t : program::same_tensors)
      r.*t.gradient_to = of(c.*t.gradient_from);
    r.d_initial_state = c.d_initial_state;
    r.d_w_down = c.d_w_down, r.d_w_up = c.d_w_up;
    return cuda::backward(p, r, workspace, bytes,
                          static_cast<CUstream_st*>(stream),
                          program::path_of(*problem));
  });
}

carve_status carve_cuda_decode(const carve_cuda_problem* problem,
                               const carve_cuda_tensor* o, float* state,
                               void* stream) {
  return program::run([&] {
    return cuda::decode(program::problem_of(problem),
                        program::tensor_of(program::given(o, "o")), state,
                        static_cast<CUstream_st*>(stream));
  });
}

const char* carve_cuda_kernel(const carve_cuda_problem* problem, int backward) {
  const char* name = "none";
  program::guarded([&] {
    name = cuda::kernel_name(program::problem_of(problem), backward != 0,
                             program::path_of(*problem));
  });
  return name;
}

#endif
