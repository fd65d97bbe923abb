// The names under which the chunked backward knows arch/.
#pragma once

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/shared.cuh"

namespace carve::cuda::mma {

using namespace arch;
using quad_reg = fragment;

__device__ __forceinline__ quad_reg ldmatrix(std::uint32_t address) {
  return load_matrices(address);
}
__device__ __forceinline__ quad_reg ldmatrix_trans(std::uint32_t address) {
  return load_matrices_transposed(address);
}
__device__ __forceinline__ void multiply_bf16(float (&acc)[4],
                                              const quad_reg& a,
                                              std::uint32_t b0,
                                              std::uint32_t b1) {
  multiply<__nv_bfloat16>(acc, a, b0, b1);
}
__device__ __forceinline__ void multiply_fp16(float (&acc)[4],
                                              const quad_reg& a,
                                              std::uint32_t b0,
                                              std::uint32_t b1) {
  multiply<__half>(acc, a, b0, b1);
}
__device__ __forceinline__ void scale_fp16(quad_reg& a, std::uint32_t lo,
                                           std::uint32_t hi) {
  scale_columns<__half>(a, lo, hi);
}
__device__ __forceinline__ void scale_bf16(quad_reg& a, std::uint32_t lo,
                                           std::uint32_t hi) {
  scale_columns<__nv_bfloat16>(a, lo, hi);
}
__device__ __forceinline__ void copy16(std::uint32_t to, const void* from,
                                       bool valid) {
  copy_async_16(to, from, valid);
}
__device__ __forceinline__ void copy8(std::uint32_t to, const void* from,
                                      bool valid) {
  copy_async_8(to, from, valid);
}
__device__ __forceinline__ void copy_commit() { copy_async_commit(); }
template <int Pending>
__device__ __forceinline__ void copy_wait() {
  copy_async_wait<Pending>();
}
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace carve::cuda::mma
