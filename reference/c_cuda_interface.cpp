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

cuda::problem problem_of(const carve_cuda_problem* from) {
  const carve_cuda_problem& c = given(from, "problem");
  cuda::problem p;
  p.family = family_named(&given(c.family, "family"));
  p.input = format_of(c.input, "input");
  p.decay_format = format_of(c.decay, "decay");
  p.B = c.B, p.T = c.T, p.H = c.H, p.HV = c.HV, p.K = c.K, p.V = c.V;
  p.N = c.N, p.window = c.window, p.rank = c.rank;
  p.read_before = c.read_before != 0, p.scale = c.scale;
  p.q = tensor_of(c.q), p.k = tensor_of(c.k), p.v = tensor_of(c.v);
  p.g = tensor_of(c.g), p.beta = tensor_of(c.beta), p.b = tensor_of(c.b);
  p.e = tensor_of(c.e), p.w = tensor_of(c.w);
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
    r.dq = of(c.dq), r.dk = of(c.dk), r.dv = of(c.dv), r.dg = of(c.dg);
    r.dbeta = of(c.dbeta), r.db = of(c.db), r.de = of(c.de), r.dw = of(c.dw);
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
