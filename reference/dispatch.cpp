/// @file
/// Which vector instructions does this machine have, and which code uses them?
#include "carve/dispatch.hpp"

#include <atomic>

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

instruction_set widest_instruction_set() {
#if CARVE_HAS_LEVELS
  static const instruction_set widest =
      __builtin_cpu_supports("x86-64-v4")   ? instruction_set::avx512
      : __builtin_cpu_supports("x86-64-v3") ? instruction_set::avx2
                                            : instruction_set::baseline;
  return widest;
#else
  return instruction_set::baseline;
#endif
}

std::int64_t dispatched_heads() { return heads; }

// Without code for a level its walk is that of the baseline.
#if CARVE_HAS_LEVELS
#define CARVE_WALK(level, way) carve_##level::walk_##way
#else
#define CARVE_WALK(level, way) carve_baseline::walk_##way
#endif

/// Defines the dispatched functions of scalar T.
#define CARVE_DISPATCH(T)                                                    \
  void recurrent_forward_on(instruction_set level, const head<T>& p,         \
                            const rows<T>& o, const state_view<T>& S) {      \
    ++heads;                                                                 \
    switch (level) {                                                         \
      case instruction_set::avx512:                                          \
        return CARVE_WALK(avx512, forward)(p, o, S);                         \
      case instruction_set::avx2:                                            \
        return CARVE_WALK(avx2, forward)(p, o, S);                           \
      case instruction_set::baseline:                                        \
        return CARVE_WALK(baseline, forward)(p, o, S);                       \
    }                                                                        \
  }                                                                          \
  void recurrent_backward_on(instruction_set level, const head<T>& p,        \
                             const head_cotangents<T>& in,                   \
                             const head_gradients<T>& out, const rows<T>& o, \
                             const state_view<T>& S) {                       \
    ++heads;                                                                 \
    switch (level) {                                                         \
      case instruction_set::avx512:                                          \
        return CARVE_WALK(avx512, backward)(p, in, out, o, S);               \
      case instruction_set::avx2:                                            \
        return CARVE_WALK(avx2, backward)(p, in, out, o, S);                 \
      case instruction_set::baseline:                                        \
        return CARVE_WALK(baseline, backward)(p, in, out, o, S);             \
    }                                                                        \
  }

CARVE_DISPATCH(float)
CARVE_DISPATCH(double)
CARVE_DISPATCH(double_double)

}  // namespace carve
