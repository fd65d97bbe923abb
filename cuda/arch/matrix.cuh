// What does a warp do with small matrices: bring their fragments from shared
// memory, transpose them, multiply them (ldmatrix, stmatrix, mma.sync).
//
// A lane is written as (group, quad) = (lane / 4, lane % 4); of an 8 x 8
// matrix of 16-bit elements it holds row `group`, columns 2 quad and + 1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "arch/tile.cuh"

namespace carve::cuda::arch {

/// Four 8 x 8 matrices: an m16k16 operand, or two k16n8 operands.
struct fragment {
  std::uint32_t r[4];
};

__device__ __forceinline__ fragment load_matrices(std::uint32_t address) {
  fragment q;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(q.r[0]), "=r"(q.r[1]), "=r"(q.r[2]), "=r"(q.r[3])
               : "r"(address)
               : "memory");
  return q;
}
__device__ __forceinline__ fragment
load_matrices_transposed(std::uint32_t address) {
  fragment q;
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
      : "=r"(q.r[0]), "=r"(q.r[1]), "=r"(q.r[2]), "=r"(q.r[3])
      : "r"(address)
      : "memory");
  return q;
}

/// Left operand (m16, k16) at (m, k) of a matrix of `Columns` columns stored
/// [m][k].
template <int Columns>
__device__ __forceinline__ fragment left(std::uint32_t matrix, int m, int k,
                                         int lane) {
  return load_matrices(
      matrix + tile_offset<Columns>(m + (lane & 15), k + (lane >> 4) * 8));
}
/// Left operand (m16, k16) at (m, k) of one stored [k][m].
template <int Columns>
__device__ __forceinline__ fragment left_trans(std::uint32_t matrix, int m,
                                               int k, int lane) {
  return load_matrices_transposed(
      matrix + tile_offset<Columns>(k + (lane >> 4) * 8 + (lane & 7),
                                    m + ((lane >> 3) & 1) * 8));
}
/// Two right operands (k16, n8) at (k, n) and (k, n + 8) of one stored [n][k]:
/// registers 0, 1 and 2, 3.
template <int Columns>
__device__ __forceinline__ fragment right(std::uint32_t matrix, int k, int n,
                                          int lane) {
  return load_matrices(matrix +
                       tile_offset<Columns>(n + (lane >> 4) * 8 + (lane & 7),
                                            k + ((lane >> 3) & 1) * 8));
}
/// The same of one stored [k][n].
template <int Columns>
__device__ __forceinline__ fragment right_trans(std::uint32_t matrix, int k,
                                                int n, int lane) {
  return load_matrices_transposed(
      matrix + tile_offset<Columns>(k + ((lane >> 3) & 1) * 8 + (lane & 7),
                                    n + (lane >> 4) * 8));
}

/// The transpose of an 8 x 8 matrix.
__device__ __forceinline__ std::uint32_t transpose8(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n"
               : "=r"(y)
               : "r"(x));
  return y;
}

/// acc (16x8) += a (16x16) b (16x8), operands of format T.
template <class T>
__device__ __forceinline__ void multiply(float (&acc)[4], const fragment& a,
                                         std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}
/// acc (16x16) += a (16x16) b (16x16).
template <class T>
__device__ __forceinline__ void multiply(float (&acc)[2][4], const fragment& a,
                                         const fragment& b) {
  multiply<T>(acc[0], a, b.r[0], b.r[1]);
  multiply<T>(acc[1], a, b.r[2], b.r[3]);
}
/// acc (16x8) += a (16x8) b (8x8), operands rounded to tf32.
__device__ __forceinline__ void multiply_tf32(float (&acc)[4],
                                              const std::uint32_t (&a)[4],
                                              std::uint32_t b0,
                                              std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Multiplies a left operand's columns: `lo` holds the factors of columns
/// 2 quad and 2 quad + 1, `hi` those of 8 more.
template <class T>
__device__ __forceinline__ void scale_columns(fragment& a, std::uint32_t lo,
                                              std::uint32_t hi) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t f = i < 2 ? lo : hi;
    if constexpr (std::is_same_v<T, __half>)
      asm("mul.rn.f16x2 %0, %0, %1;\n" : "+r"(a.r[i]) : "r"(f));
    else
      asm("mul.rn.bf16x2 %0, %0, %1;\n" : "+r"(a.r[i]) : "r"(f));
  }
}

// ---- what only compute capability 9.0 has ----

__device__ __forceinline__ void store_matrices(std::uint32_t address,
                                               const fragment& x) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(
          address),
      "r"(x.r[0]), "r"(x.r[1]), "r"(x.r[2]), "r"(x.r[3])
      : "memory");
}
__device__ __forceinline__ void store_matrices_transposed(std::uint32_t address,
                                                          const fragment& x) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], "
      "{%1,%2,%3,%4};\n" ::"r"(address),
      "r"(x.r[0]), "r"(x.r[1]), "r"(x.r[2]), "r"(x.r[3])
      : "memory");
}

}  // namespace carve::cuda::arch
