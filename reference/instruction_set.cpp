/// @file
/// Which vector instructions does this machine have?
#include "targets.hpp"

namespace carve {

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
#if CARVE_HAS_TARGETS
  static const instruction_set widest =
      __builtin_cpu_supports("x86-64-v4")   ? instruction_set::avx512
      : __builtin_cpu_supports("x86-64-v3") ? instruction_set::avx2
                                            : instruction_set::baseline;
  return widest;
#else
  return instruction_set::baseline;
#endif
}

}  // namespace carve
