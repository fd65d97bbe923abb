// Warp-level tensor-core pieces for Hopper's backward: swizzled tiles in
// shared memory, ldmatrix, mma.sync, asynchronous copies.
//
// A fragment's lane is written as (group, quad) = (lane / 4, lane % 4).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace carve::cuda::mma {

/// Four 32-bit registers: an m16k16 operand, or two k16n8 operands.
struct quad_reg {
  std::uint32_t r[4];
};

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// Byte offset of element (row, col) of a tile of 16-bit elements with
/// `Columns` (a multiple of 64) a row.  The 16-byte pieces of a row are
/// permuted by the row number, so eight rows of one column lie in 32 banks.
template <int Columns>
__device__ __forceinline__ std::uint32_t tile_offset(int row, int col) {
  return row * (Columns * 2) +
         ((((col >> 3) ^ (row & 7)) << 4) | ((col & 7) << 1));
}

__device__ __forceinline__ quad_reg ldmatrix(std::uint32_t address) {
  quad_reg q;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(q.r[0]), "=r"(q.r[1]), "=r"(q.r[2]), "=r"(q.r[3])
               : "r"(address)
               : "memory");
  return q;
}

__device__ __forceinline__ quad_reg ldmatrix_trans(std::uint32_t address) {
  quad_reg q;
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
      : "=r"(q.r[0]), "=r"(q.r[1]), "=r"(q.r[2]), "=r"(q.r[3])
      : "r"(address)
      : "memory");
  return q;
}

/// Left operand (m16, k16) at (m, k) of a tile stored [m][k].
template <int Columns>
__device__ __forceinline__ quad_reg left(std::uint32_t tile, int m, int k,
                                         int lane) {
  return ldmatrix(tile +
                  tile_offset<Columns>(m + (lane & 15), k + (lane >> 4) * 8));
}

/// Left operand (m16, k16) at (m, k) of a tile stored [k][m].
template <int Columns>
__device__ __forceinline__ quad_reg left_trans(std::uint32_t tile, int m, int k,
                                               int lane) {
  return ldmatrix_trans(tile +
                        tile_offset<Columns>(k + (lane >> 4) * 8 + (lane & 7),
                                             m + ((lane >> 3) & 1) * 8));
}

/// Two right operands (k16, n8) at (k, n) and (k, n + 8) of a tile stored
/// [n][k]: registers 0, 1 and 2, 3.
template <int Columns>
__device__ __forceinline__ quad_reg right(std::uint32_t tile, int k, int n,
                                          int lane) {
  return ldmatrix(tile + tile_offset<Columns>(n + (lane >> 4) * 8 + (lane & 7),
                                              k + ((lane >> 3) & 1) * 8));
}

/// The same of a tile stored [k][n].
template <int Columns>
__device__ __forceinline__ quad_reg right_trans(std::uint32_t tile, int k,
                                                int n, int lane) {
  return ldmatrix_trans(
      tile + tile_offset<Columns>(k + ((lane >> 3) & 1) * 8 + (lane & 7),
                                  n + (lane >> 4) * 8));
}

/// Transpose of an 8x8 matrix held one row a group.
__device__ __forceinline__ std::uint32_t transpose8(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n"
               : "=r"(y)
               : "r"(x));
  return y;
}

/// acc (16x8) += a (16x16) b (16x8), bf16 operands.
__device__ __forceinline__ void multiply_bf16(float (&acc)[4],
                                              const quad_reg& a,
                                              std::uint32_t b0,
                                              std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

/// acc (16x8) += a (16x16) b (16x8), fp16 operands.
__device__ __forceinline__ void multiply_fp16(float (&acc)[4],
                                              const quad_reg& a,
                                              std::uint32_t b0,
                                              std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

/// Multiplies a left operand's columns: `lo` holds the factors of columns
/// 2 quad and 2 quad + 1, `hi` those of 8 more.
__device__ __forceinline__ void scale_fp16(quad_reg& a, std::uint32_t lo,
                                           std::uint32_t hi) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t f = i < 2 ? lo : hi;
    asm("mul.rn.f16x2 %0, %0, %1;\n" : "+r"(a.r[i]) : "r"(f));
  }
}
__device__ __forceinline__ void scale_bf16(quad_reg& a, std::uint32_t lo,
                                           std::uint32_t hi) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t f = i < 2 ? lo : hi;
    asm("mul.rn.bf16x2 %0, %0, %1;\n" : "+r"(a.r[i]) : "r"(f));
  }
}

__device__ __forceinline__ std::uint32_t to_tf32(float x) {
  std::uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(y) : "f"(x));
  return y;
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

/// Copies 16 bytes, or writes zeros when `valid` is false.
__device__ __forceinline__ void copy16(std::uint32_t shared, const void* global,
                                       bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

/// The same of eight bytes.
__device__ __forceinline__ void copy8(std::uint32_t shared, const void* global,
                                      bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(shared),
               "l"(global), "r"(valid ? 8 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/// Waits until at most `Pending` of this thread's groups are under way.
template <int Pending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

/// Barrier `id` (1..15) among `threads` threads of the block.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace carve::cuda::mma
