/// The WebAssembly module of the page that answers back: one function that
/// runs the three ways, and where its numbers lie.
#include "answers.hpp"

namespace {
double result[3 * answers::tokens + 4];
}

extern "C" {

/// Relative errors of the sound and of the chosen kernel, norms of the state,
/// then the last token's first output: double-double in two parts, sound,
/// chosen.
__attribute__((export_name("run"))) double* run(int family, double decay,
                                                double alike, double erase,
                                                int chunk, int format,
                                                int inverse, int factored,
                                                int cut) {
  const answers::answer a =
      answers::run({family, decay, alike, erase, chunk, format, inverse,
                    factored != 0, cut != 0});
  constexpr auto n = answers::tokens;
  for (answers::index_t t = 0; t < n; ++t) {
    result[t] = a.sound[t], result[n + t] = a.chosen[t];
    result[2 * n + t] = a.size[t];
  }
  result[3 * n] = a.exact, result[3 * n + 1] = a.low;
  result[3 * n + 2] = a.by_sound, result[3 * n + 3] = a.by_chosen;
  return result;
}

// Nothing here throws for the choices of the page; what would, stops.
void* __cxa_allocate_exception(unsigned long) { __builtin_trap(); }
void __cxa_throw(void*, void*, void (*)(void*)) { __builtin_trap(); }
}
