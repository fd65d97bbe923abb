// What is a chunk, and how far may its decays go in 16-bit operands?
#pragma once

#include <type_traits>

#include "arch/number.cuh"

namespace carve::cuda::chunks {

using namespace arch;

/// Tokens that are taken together.
constexpr int chunk = 64;

/// A decay's log2.  2^-160 is zero in fp32, so a faster one is no different,
/// and sums of these keep their precision; -inf is such a decay, NaN stays.
__device__ __forceinline__ float log_decay(float g) {
  return max_nan(g * log2e, -160.f);
}

/// Log2 of the largest factor that an operand of format T is given by a
/// reference point amid the decays: bf16's range is 2^126 on either side of 1,
/// fp16's 2^14; what is left of it, 2^36 and 2^6, is for the number itself.
template <class T>
constexpr float widest_factor = std::is_same_v<T, __half> ? 8.f : 90.f;

}  // namespace carve::cuda::chunks
