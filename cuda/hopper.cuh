// The names under which the chunked backward knows arch/.
#pragma once

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/product.cuh"
#include "arch/shared.cuh"

namespace carve::cuda::hopper {

using namespace arch;

/// d = a b^T + (add ? d : 0), 64 x 64, of two tiles by their descriptors.
template <class T>
__device__ __forceinline__ void product_of_tiles(float (&d)[32],
                                                 std::uint64_t a,
                                                 std::uint64_t b, int add) {
  product<T>(d, a, b, add);
}
__device__ __forceinline__ void store_matrices_transposed(std::uint32_t address,
                                                          std::uint32_t r0,
                                                          std::uint32_t r1,
                                                          std::uint32_t r2,
                                                          std::uint32_t r3) {
  arch::store_matrices_transposed(address, {r0, r1, r2, r3});
}

}  // namespace carve::cuda::hopper
