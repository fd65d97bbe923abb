/// @file
/// Which vector instructions does this machine have, and which code uses them?
#include "carve/dispatch.hpp"

#include <atomic>

#include "carve/error.hpp"
#include "levels.hpp"

namespace carve {

namespace {

std::atomic<std::int64_t> heads{0};

}  // namespace

std::string_view name_of(instruction_set level) {
  switch (level) {
    case instruction_set::avx512:
      return "avx512";
    case instruction_set::avx2:
      return "avx2";
    case instruction_set::baseline:
      break;
  }
  return "baseline";
}

namespace {

// The build says which were compiled, a definition for each.
#ifdef CARVE_COMPILED_baseline
constexpr bool has_baseline = true;
#else
constexpr bool has_baseline = false;
#endif
#ifdef CARVE_COMPILED_avx2
constexpr bool has_avx2 = true;
#else
constexpr bool has_avx2 = false;
#endif
#ifdef CARVE_COMPILED_avx512
constexpr bool has_avx512 = true;
#else
constexpr bool has_avx512 = false;
#endif

[[noreturn]] void not_compiled() {
  throw error("carve was compiled for the vector instructions",
              has_baseline ? " baseline" : "", has_avx2 ? " avx2" : "",
              has_avx512 ? " avx512" : "",
              " only (the CMake variable CARVE_LEVELS), and not for those of "
              "this machine");
}

}  // namespace

instruction_set widest_instruction_set() {
  static const instruction_set widest = [] {
#if defined(__GNUC__) && defined(__x86_64__)
    if (has_avx512 && __builtin_cpu_supports("x86-64-v4")) {
      return instruction_set::avx512;
    }
    if (has_avx2 && __builtin_cpu_supports("x86-64-v3")) {
      return instruction_set::avx2;
    }
#endif
    if (!has_baseline) not_compiled();
    return instruction_set::baseline;
  }();
  return widest;
}

std::int64_t dispatched_heads() { return heads; }

namespace {

// What is not compiled is not called: it is left out of the template.
template <class T>
void forward_on(instruction_set level, const head<T>& p, const rows<T>& o,
                const state_view<T>& S) {
  ++heads;
  switch (level) {
    case instruction_set::avx512:
      if constexpr (has_avx512) return carve_avx512::walk_forward(p, o, S);
      break;
    case instruction_set::avx2:
      if constexpr (has_avx2) return carve_avx2::walk_forward(p, o, S);
      break;
    case instruction_set::baseline:
      if constexpr (has_baseline) return carve_baseline::walk_forward(p, o, S);
      break;
  }
  not_compiled();
}

template <class T>
void backward_on(instruction_set level, const head<T>& p,
                 const head_cotangents<T>& in, const head_gradients<T>& out,
                 const rows<T>& o, const state_view<T>& S) {
  ++heads;
  switch (level) {
    case instruction_set::avx512:
      if constexpr (has_avx512) {
        return carve_avx512::walk_backward(p, in, out, o, S);
      }
      break;
    case instruction_set::avx2:
      if constexpr (has_avx2) {
        return carve_avx2::walk_backward(p, in, out, o, S);
      }
      break;
    case instruction_set::baseline:
      if constexpr (has_baseline) {
        return carve_baseline::walk_backward(p, in, out, o, S);
      }
      break;
  }
  not_compiled();
}

}  // namespace

/// Defines the dispatched functions of scalar T.
#define CARVE_DISPATCH(T)                                                    \
  void recurrent_forward_on(instruction_set level, const head<T>& p,         \
                            const rows<T>& o, const state_view<T>& S) {      \
    forward_on(level, p, o, S);                                              \
  }                                                                          \
  void recurrent_backward_on(instruction_set level, const head<T>& p,        \
                             const head_cotangents<T>& in,                   \
                             const head_gradients<T>& out, const rows<T>& o, \
                             const state_view<T>& S) {                       \
    backward_on(level, p, in, out, o, S);                                    \
  }

CARVE_DISPATCH(float)
CARVE_DISPATCH(double)
CARVE_DISPATCH(double_double)

}  // namespace carve
