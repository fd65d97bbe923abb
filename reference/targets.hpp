/// @file
/// How is one template compiled for several instruction sets in one binary?
///
/// Functions with a target attribute inline everything below them, so that
/// nothing compiled for wide registers carries the name of a template: the
/// linker could pick it for a machine without them.  For the same reason no
/// template may be declared `extern` here.
#pragma once

#include "carve/dispatch.hpp"
#include "carve/tiled_walk.hpp"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && \
    !defined(__SANITIZE_ADDRESS__)
#define CARVE_HAS_TARGETS 1
#define CARVE_TARGET(options) [[gnu::target(options), gnu::flatten]]
#define CARVE_AVX2 CARVE_TARGET("arch=x86-64-v3")
#define CARVE_AVX512 CARVE_TARGET("arch=x86-64-v4,prefer-vector-width=512")
#else
#define CARVE_HAS_TARGETS 0
#define CARVE_AVX2
#define CARVE_AVX512
#endif

/// Defines the dispatched functions of scalar T in namespace carve.
#define CARVE_DISPATCH(T)                                                    \
  namespace {                                                                \
  CARVE_AVX2 void forward_avx2(const head<T>& p, const rows<T>& o,           \
                               const state_view<T>& S) {                     \
    recurrent_forward(p, o, S);                                              \
  }                                                                          \
  CARVE_AVX512 void forward_avx512(const head<T>& p, const rows<T>& o,       \
                                   const state_view<T>& S) {                 \
    recurrent_forward(p, o, S);                                              \
  }                                                                          \
  CARVE_AVX2 void backward_avx2(const head<T>& p,                            \
                                const head_cotangents<T>& in,                \
                                const head_gradients<T>& out,                \
                                const rows<T>& o, const state_view<T>& S) {  \
    recurrent_backward(p, in, out, o, S);                                    \
  }                                                                          \
  CARVE_AVX512 void backward_avx512(const head<T>& p,                        \
                                    const head_cotangents<T>& in,            \
                                    const head_gradients<T>& out,            \
                                    const rows<T>& o,                        \
                                    const state_view<T>& S) {                \
    recurrent_backward(p, in, out, o, S);                                    \
  }                                                                          \
  }                                                                          \
  void recurrent_forward_on(instruction_set level, const head<T>& p,         \
                            const rows<T>& o, const state_view<T>& S) {      \
    switch (level) {                                                         \
      case instruction_set::avx512:                                          \
        return forward_avx512(p, o, S);                                      \
      case instruction_set::avx2:                                            \
        return forward_avx2(p, o, S);                                        \
      case instruction_set::baseline:                                        \
        recurrent_forward(p, o, S);                                          \
    }                                                                        \
  }                                                                          \
  void recurrent_backward_on(instruction_set level, const head<T>& p,        \
                             const head_cotangents<T>& in,                   \
                             const head_gradients<T>& out, const rows<T>& o, \
                             const state_view<T>& S) {                       \
    switch (level) {                                                         \
      case instruction_set::avx512:                                          \
        return backward_avx512(p, in, out, o, S);                            \
      case instruction_set::avx2:                                            \
        return backward_avx2(p, in, out, o, S);                              \
      case instruction_set::baseline:                                        \
        recurrent_backward(p, in, out, o, S);                                \
    }                                                                        \
  }
