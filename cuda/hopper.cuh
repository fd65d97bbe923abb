// Hopper's own instructions as functions: asynchronous copies, mbarriers,
// named barriers, ldmatrix/stmatrix, mma.sync and warpgroup products (wgmma).
//
// Tiles of 16-bit elements lie in shared memory as rows of 128 bytes whose
// eight 16-byte pieces are permuted by the row number (the "128-byte swizzle"
// of the tensor cores), each tile on a 1024-byte boundary.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace carve::cuda::hopper {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// Byte offset of 16-byte piece `piece` of row `row` in a swizzled tile.
__device__ __forceinline__ std::uint32_t swizzled(int row, int piece) {
  return row * 128 + ((piece ^ (row & 7)) << 4);
}

// ---- ordinary accesses to shared memory ----

__device__ __forceinline__ uint4 read16(std::uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ void write16(std::uint32_t address, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}
__device__ __forceinline__ float read4(std::uint32_t address) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ void write4(std::uint32_t address, float x) {
  asm volatile("st.shared.f32 [%0], %1;\n" ::"r"(address), "f"(x) : "memory");
}
__device__ __forceinline__ std::uint32_t read_word(std::uint32_t address) {
  std::uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ void write_word(std::uint32_t address,
                                           std::uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ uint2 read8(std::uint32_t address) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];\n"
               : "=r"(x.x), "=r"(x.y)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ void write8(std::uint32_t address, std::uint32_t x,
                                       std::uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};\n" ::"r"(address), "r"(x),
               "r"(y)
               : "memory");
}

// ---- asynchronous copies ----

/// Copies 16 bytes to shared memory, or writes zeros where `valid` is false
/// (the source must be a legal address all the same).
__device__ __forceinline__ void copy_async_16(std::uint32_t to,
                                              const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// One of the barrier's arrivals, once this thread's copies so far are done.
__device__ __forceinline__ void copy_async_arrive(std::uint32_t barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier)
      : "memory");
}
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

/// Makes ordinary stores to shared memory visible to the tensor cores and to
/// the copy engine; each writing thread calls it before the barrier.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ void bulk_load(std::uint32_t to, const void* from,
                                          std::uint32_t bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];\n" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void bulk_store(void* to, std::uint32_t from,
                                           std::uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
      "cp.async.bulk.commit_group;\n" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void bulk_store_wait() {
  asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory");
}

/// Orders ordinary accesses to global memory and those of the copy engine.
__device__ __forceinline__ void fence_async_global() {
  asm volatile("fence.proxy.async.global;\n" ::: "memory");
}
/// A flag in global memory, raised once what it stands for is written.
__device__ __forceinline__ void raise_flag(int* flag) {
  __threadfence();
  asm volatile("st.release.gpu.global.b32 [%0], 1;\n" ::"l"(flag) : "memory");
}
__device__ __forceinline__ void wait_flag(const int* flag) {
  int x;
  do {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];\n"
                 : "=r"(x)
                 : "l"(flag)
                 : "memory");
  } while (x == 0);
}

// ---- barriers ----

__device__ __forceinline__ void barrier_init(std::uint32_t barrier,
                                             std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier)
               : "memory");
}
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier,
                                               std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier,
                                             std::uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra out;\n"
      "bra again;\n"
      "out:\n"
      "}\n" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

/// All threads of the blocks of a cluster.
__device__ __forceinline__ void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.aligned;\n"
      "barrier.cluster.wait.aligned;\n" ::
          : "memory");
}
/// What `address` is in the cluster's block `rank`.
__device__ __forceinline__ std::uint32_t cluster_address(std::uint32_t address,
                                                         int rank) {
  std::uint32_t y;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n"
               : "=r"(y)
               : "r"(address), "r"(rank));
  return y;
}
/// Writes to a block of the cluster, four of the bytes that its barrier
/// expects.
__device__ __forceinline__ void store_async(std::uint32_t to, float x,
                                            std::uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 "
      "[%0], %1, [%2];\n" ::"r"(to),
      "f"(x), "r"(barrier)
      : "memory");
}

/// Whether the phase is over, without waiting for it.
__device__ __forceinline__ bool barrier_test(std::uint32_t barrier,
                                             std::uint32_t phase) {
  std::uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(phase)
      : "memory");
  return done != 0;
}

/// Named barrier among `Threads` threads of the block.
template <int Threads>
__device__ __forceinline__ void sync_group(int id) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "n"(Threads) : "memory");
}

/// Counts there without waiting.
template <int Threads>
__device__ __forceinline__ void arrive_group(int id) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "n"(Threads) : "memory");
}

template <int Registers>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}

// ---- warp-level matrices ----

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4],
                                              std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(
    std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(address)
      : "memory");
}
__device__ __forceinline__ void store_matrices(std::uint32_t address,
                                               std::uint32_t r0,
                                               std::uint32_t r1,
                                               std::uint32_t r2,
                                               std::uint32_t r3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(
          address),
      "r"(r0), "r"(r1), "r"(r2), "r"(r3)
      : "memory");
}
__device__ __forceinline__ void store_matrices_transposed(std::uint32_t address,
                                                          std::uint32_t r0,
                                                          std::uint32_t r1,
                                                          std::uint32_t r2,
                                                          std::uint32_t r3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], "
      "{%1,%2,%3,%4};\n" ::"r"(address),
      "r"(r0), "r"(r1), "r"(r2), "r"(r3)
      : "memory");
}

/// The transpose of an 8 x 8 matrix of 16-bit elements, two of a row a lane.
__device__ __forceinline__ std::uint32_t transpose_matrix(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n"
               : "=r"(y)
               : "r"(x));
  return y;
}

/// d += a b, m16n8k16.
template <class T>
__device__ __forceinline__ void mma_16(float (&d)[4],
                                       const std::uint32_t (&a)[4],
                                       std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// ---- warpgroup products ----

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

/// Keeps the compiler from making what depends on x ahead of this point, as it
/// does with all that does not change in a loop, and spilling it.
__device__ __forceinline__ void forget(int& x) { asm volatile("" : "+r"(x)); }
__device__ __forceinline__ void forget(std::int64_t& x) {
  asm volatile("" : "+l"(x));
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
#define CARVE_PRODUCT_64(type, trans)                                         \
  asm volatile(                                                               \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                            \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type             \
      " {" CARVE_REGISTERS_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, " trans \
      ";\n}\n"                                                                \
      : CARVE_D8(d, 0), CARVE_D8(d, 8), CARVE_D8(d, 16), CARVE_D8(d, 24)      \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define CARVE_PRODUCT_128(type, trans)                                        \
  asm volatile(                                                               \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                            \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type            \
      " {" CARVE_REGISTERS_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, " trans \
      ";\n}\n"                                                                \
      : CARVE_D8(d, 0), CARVE_D8(d, 8), CARVE_D8(d, 16), CARVE_D8(d, 24),     \
        CARVE_D8(d, 32), CARVE_D8(d, 40), CARVE_D8(d, 48), CARVE_D8(d, 56)    \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

/// d = a b + (add ? d : 0): a from registers, b a tile whose contiguous axis
/// is the one summed over (or, `Across`, the other one).  The accumulator's
/// size chooses 64 or 128 columns.
template <class Operand, bool Across, int N>
__device__ __forceinline__ void product(float (&d)[N], const std::uint32_t* a,
                                        std::uint64_t b, int add) {
  static_assert(N == 32 || N == 64);
  constexpr bool half = std::is_same_v<Operand, __half>;
  if constexpr (N == 32) {
    if constexpr (half && Across)
      CARVE_PRODUCT_64("f16", "1");
    else if constexpr (half)
      CARVE_PRODUCT_64("f16", "0");
    else
      CARVE_PRODUCT_64("bf16", "0");
  } else {
    if constexpr (half && Across)
      CARVE_PRODUCT_128("f16", "1");
    else if constexpr (half)
      CARVE_PRODUCT_128("f16", "0");
    else
      CARVE_PRODUCT_128("bf16", "0");
  }
}

#define CARVE_PRODUCT_SHARED(type)                                       \
  asm volatile(                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type        \
      " {" CARVE_REGISTERS_32 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"         \
      : CARVE_D8(d, 0), CARVE_D8(d, 8), CARVE_D8(d, 16), CARVE_D8(d, 24) \
      : "l"(a), "l"(b), "r"(add))

/// d = a b^T + (add ? d : 0), 64 x 64: both tiles' contiguous axis is the one
/// summed over.
template <class Operand>
__device__ __forceinline__ void product_of_tiles(float (&d)[32],
                                                 std::uint64_t a,
                                                 std::uint64_t b, int add) {
  if constexpr (std::is_same_v<Operand, __half>)
    CARVE_PRODUCT_SHARED("f16");
  else
    CARVE_PRODUCT_SHARED("bf16");
}
#undef CARVE_PRODUCT_SHARED
#undef CARVE_REGISTERS_32
#undef CARVE_REGISTERS_64
#undef CARVE_D8
#undef CARVE_PRODUCT_64
#undef CARVE_PRODUCT_128

// ---- conversions ----

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// The larger of the two; NaN where one is NaN.
__device__ __forceinline__ float max_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

/// The smaller of the two; NaN where one is NaN.
__device__ __forceinline__ float min_nan(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// Two fp32 values rounded to a pair of 16-bit ones, `lo` in the lower half.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float lo, float hi) {
  std::uint32_t r;
  if constexpr (std::is_same_v<T, __half>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
template <class T>
__device__ __forceinline__ float2 unpack(std::uint32_t x) {
  if constexpr (std::is_same_v<T, __half>)
    return __half22float2(*reinterpret_cast<__half2*>(&x));
  else
    return make_float2(__uint_as_float(x << 16),
                       __uint_as_float(x & 0xFFFF0000u));
}

}  // namespace carve::cuda::hopper
