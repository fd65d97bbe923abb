// How does a warpgroup multiply tiles (wgmma)?
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "arch/tile.cuh"

namespace carve::cuda::arch {

/// Start of the descriptors of a swizzled tile at a shared address, and what
/// lies `offset` bytes further: one addition for each of a row of products.
/// Rows of 64 elements, eight rows are 1024 bytes.  `panel` is the distance in
/// bytes between successive 64-element panels, used where the operand's
/// contiguous axis is not the axis summed over.  (In a cluster a shared address
/// may have upper bits set, which would fall on the distance of panels.)
__device__ __forceinline__ std::uint32_t tile_start(std::uint32_t address,
                                                    int panel = 16) {
  return ((address >> 4) & 0x3FFF) | static_cast<std::uint32_t>(panel >> 4)
                                         << 16;
}
__device__ __forceinline__ std::uint64_t tile_descriptor(std::uint32_t start,
                                                         int offset) {
  constexpr std::uint64_t upper = 1024 >> 4 | 1u << 30;
  return upper << 32 | (start + static_cast<std::uint32_t>(offset >> 4));
}

__device__ __forceinline__ void product_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void product_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
}
/// Keeps the compiler from moving uses of an accumulator across a wait.
template <int N>
__device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define CARVE_REGISTERS_32                   \
  "%0, %1, %2, %3, %4, %5, %6, %7"           \
  ", %8, %9, %10, %11, %12, %13, %14, %15"   \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define CARVE_REGISTERS_64                   \
  CARVE_REGISTERS_32                         \
  ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define CARVE_D8(d, i)                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), \
      "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define CARVE_PRODUCT_64(type)                                           \
  asm volatile(                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type        \
      " {" CARVE_REGISTERS_32                                            \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;"                      \
      "\n}\n"                                                            \
      : CARVE_D8(d, 0), CARVE_D8(d, 8), CARVE_D8(d, 16), CARVE_D8(d, 24) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),    \
        "n"(Across))
#define CARVE_PRODUCT_128(type)                                            \
  asm volatile(                                                            \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type         \
      " {" CARVE_REGISTERS_64                                              \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;"                        \
      "\n}\n"                                                              \
      : CARVE_D8(d, 0), CARVE_D8(d, 8), CARVE_D8(d, 16), CARVE_D8(d, 24),  \
        CARVE_D8(d, 32), CARVE_D8(d, 40), CARVE_D8(d, 48), CARVE_D8(d, 56) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),      \
        "n"(Across))

/// d = a b + (add ? d : 0): a from registers, b a tile whose contiguous axis
/// is the one summed over (or, `Across`, the other one).  The accumulator's
/// size chooses 64 or 128 columns.
template <class T, bool Across, int N>
__device__ __forceinline__ void product(float (&d)[N], const std::uint32_t* a,
                                        std::uint64_t b, int add) {
  static_assert(N == 32 || N == 64);
  constexpr bool half = std::is_same_v<T, __half>;
  if constexpr (half && N == 32)
    CARVE_PRODUCT_64("f16");
  else if constexpr (half)
    CARVE_PRODUCT_128("f16");
  else if constexpr (N == 32)
    CARVE_PRODUCT_64("bf16");
  else
    CARVE_PRODUCT_128("bf16");
}

#define CARVE_PRODUCT_SHARED_64(type)                                    \
  asm volatile(                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type        \
      " {" CARVE_REGISTERS_32 "}, %32, %33, p, 1, 1, %35, %36;\n}\n"     \
      : CARVE_D8(d, 0), CARVE_D8(d, 8), CARVE_D8(d, 16), CARVE_D8(d, 24) \
      : "l"(a), "l"(b), "r"(add), "n"(AcrossA), "n"(AcrossB))
#define CARVE_PRODUCT_SHARED_128(type)                                     \
  asm volatile(                                                            \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type         \
      " {" CARVE_REGISTERS_64 "}, %64, %65, p, 1, 1, %67, %68;\n}\n"       \
      : CARVE_D8(d, 0), CARVE_D8(d, 8), CARVE_D8(d, 16), CARVE_D8(d, 24),  \
        CARVE_D8(d, 32), CARVE_D8(d, 40), CARVE_D8(d, 48), CARVE_D8(d, 56) \
      : "l"(a), "l"(b), "r"(add), "n"(AcrossA), "n"(AcrossB))

/// d = a b + (add ? d : 0), 64 x 64 or 128, of two tiles: the contiguous axis
/// of either is the one summed over (or, `Across`, the other one).
template <class T, bool AcrossA = false, bool AcrossB = false, int N>
__device__ __forceinline__ void product(float (&d)[N], std::uint64_t a,
                                        std::uint64_t b, int add) {
  static_assert(N == 32 || N == 64);
  constexpr bool half = std::is_same_v<T, __half>;
  if constexpr (half && N == 32)
    CARVE_PRODUCT_SHARED_64("f16");
  else if constexpr (half)
    CARVE_PRODUCT_SHARED_128("f16");
  else if constexpr (N == 32)
    CARVE_PRODUCT_SHARED_64("bf16");
  else
    CARVE_PRODUCT_SHARED_128("bf16");
}
#undef CARVE_PRODUCT_SHARED_64
#undef CARVE_PRODUCT_SHARED_128
#undef CARVE_REGISTERS_32
#undef CARVE_REGISTERS_64
#undef CARVE_D8
#undef CARVE_PRODUCT_64
#undef CARVE_PRODUCT_128

/// d = a b^T over K columns of both: sets of K / 64 tiles.
template <class T, int K>
__device__ __forceinline__ void product_of_tiles(float (&d)[32],
                                                 std::uint32_t a,
                                                 std::uint32_t b) {
  const std::uint32_t left = tile_start(a), right = tile_start(b);
#pragma unroll
  for (int j = 0; j < K / 16; ++j) {
    const int at = (j >> 2) * tile::bytes + (j & 3) * 32;
    product<T>(d, tile_descriptor(left, at), tile_descriptor(right, at), j > 0);
  }
}
/// d = a b^T + (add ? d : 0) over K columns: a from registers, four words for
/// each 16 columns.
template <class T, int K>
__device__ __forceinline__ void product_with_tiles(float (&d)[32],
                                                   const std::uint32_t* a,
                                                   std::uint32_t b,
                                                   bool add = false) {
  const std::uint32_t right = tile_start(b);
#pragma unroll
  for (int j = 0; j < K / 16; ++j)
    product<T, false>(
        d, a + 4 * j,
        tile_descriptor(right, (j >> 2) * tile::bytes + (j & 3) * 32),
        add || j > 0);
}
/// d = a b + (add ? d : 0) over 64 rows of b, N / 32 tiles side by side.
template <class T, int N>
__device__ __forceinline__ void add_product_across(float (&d)[N],
                                                   const std::uint32_t* a,
                                                   std::uint32_t b,
                                                   bool add = true) {
  const std::uint32_t right = tile_start(b, tile::bytes);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    product<T, true>(d, a + 4 * j,
                     tile_descriptor(right, j * 16 * tile::row_bytes),
                     add || j > 0);
}
/// d = a b + (add ? d : 0) over 64 rows of b, N / 32 tiles side by side: a from
/// a tile, or, `Across`, its transpose.
template <class T, bool Across = false, int N>
__device__ __forceinline__ void product_of_rows(float (&d)[N], std::uint32_t a,
                                                std::uint32_t b, bool add) {
  const std::uint32_t left = tile_start(a);
  const std::uint32_t right = tile_start(b, tile::bytes);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    product<T, Across, true>(
        d, tile_descriptor(left, j * (Across ? 16 * tile::row_bytes : 32)),
        tile_descriptor(right, j * 16 * tile::row_bytes), add || j > 0);
}

}  // namespace carve::cuda::arch
