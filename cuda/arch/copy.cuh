// How do data get from global to shared memory and back without a register:
// cp.async, the copy engine, and what orders them with ordinary accesses.
#pragma once

#include <cstdint>

namespace carve::cuda::arch {

// ---- by the threads (compute capability 8.0) ----

/// Copies 16 bytes to shared memory, or writes zeros where `valid` is false
/// (the source must be a legal address all the same).
__device__ __forceinline__ void copy_async_16(std::uint32_t to,
                                              const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
/// The same of eight bytes.
__device__ __forceinline__ void copy_async_8(std::uint32_t to, const void* from,
                                             bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(to),
               "l"(from), "r"(valid ? 8 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Waits until at most `Pending` of this thread's groups are under way.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// ---- by the copy engine (9.0) ----

/// One of the barrier's arrivals, once this thread's copies so far are done.
__device__ __forceinline__ void copy_async_arrive(std::uint32_t barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier)
      : "memory");
}
/// Brings bytes (a multiple of 16) that the barrier expects.
__device__ __forceinline__ void bulk_load(std::uint32_t to, const void* from,
                                          std::uint32_t bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];\n" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
/// From this block's shared memory to another's of the cluster.
__device__ __forceinline__ void bulk_send(std::uint32_t to, std::uint32_t from,
                                          std::uint32_t bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];\n" ::"r"(to),
      "r"(from), "r"(bytes), "r"(barrier)
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
/// Asks the L2 cache for what will be read.
__device__ __forceinline__ void bulk_prefetch(const void* from,
                                              std::uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(from),
               "r"(bytes)
               : "memory");
}
/// Until what is stored has been read, and until it is written.
__device__ __forceinline__ void bulk_store_read_wait() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}
__device__ __forceinline__ void bulk_store_wait() {
  asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory");
}

/// Makes ordinary stores to shared memory visible to the tensor cores and to
/// the copy engine; each writing thread calls it before the barrier.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
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
/// `Patient`: who waits long, for others who must not be disturbed, asks more
/// rarely.
template <bool Patient = false>
__device__ __forceinline__ void wait_flag(const int* flag) {
  int x = 0;
  do {
    if constexpr (Patient) __nanosleep(500);
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];\n"
                 : "=r"(x)
                 : "l"(flag)
                 : "memory");
  } while (x == 0);
}

}  // namespace carve::cuda::arch
