// How do the warps of a block, or the blocks of a cluster, wait for each other
// and for copies: mbarriers, rings of stages, named barriers.
#pragma once

#include <cstdint>

namespace carve::cuda::arch {

constexpr int group = 128;  // threads of a warpgroup

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
/// One arrival for the warp, once all its lanes have come here: what they read
/// before may then be overwritten.
__device__ __forceinline__ void barrier_arrive_warp(std::uint32_t barrier,
                                                    int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(barrier);
}
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier,
                                               std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier),
      "r"(bytes)
      : "memory");
}
/// Until the phase is over.  `Cluster`: other blocks of it arrive there too.
template <bool Cluster = false>
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier,
                                             std::uint32_t phase) {
#define CARVE_BARRIER_WAIT(scope)          \
  asm volatile(                            \
      "{\n"                                \
      ".reg .pred done;\n"                 \
      "again:\n"                           \
      "mbarrier.try_wait.parity" scope     \
      ".shared::cta.b64 done, [%0], %1;\n" \
      "@done bra out;\n"                   \
      "bra again;\n"                       \
      "out:\n"                             \
      "}\n" ::"r"(barrier),                \
      "r"(phase)                           \
      : "memory")
  if constexpr (Cluster)
    CARVE_BARRIER_WAIT(".acquire.cluster");
  else
    CARVE_BARRIER_WAIT("");
#undef CARVE_BARRIER_WAIT
}

/// Whether the phase is over, without waiting for it.
template <bool Cluster = false>
__device__ __forceinline__ bool barrier_test(std::uint32_t barrier,
                                             std::uint32_t phase) {
  std::uint32_t done;
#define CARVE_BARRIER_TEST(scope)          \
  asm volatile(                            \
      "{\n"                                \
      ".reg .pred done;\n"                 \
      "mbarrier.test_wait.parity" scope    \
      ".shared::cta.b64 done, [%1], %2;\n" \
      "selp.u32 %0, 1, 0, done;\n"         \
      "}\n"                                \
      : "=r"(done)                         \
      : "r"(barrier), "r"(phase)           \
      : "memory")
  if constexpr (Cluster)
    CARVE_BARRIER_TEST(".acquire.cluster");
  else
    CARVE_BARRIER_TEST("");
#undef CARVE_BARRIER_TEST
  return done != 0;
}

/// Where a ring of `Stages` stages stands.  Barriers of a stage change their
/// phase once a round; who waits for stages to be full begins with phase 0, who
/// waits for them to be empty with 1.
template <int Stages>
struct ring {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// ---- named barriers ----

/// The named barriers of a block, 1 to 15; 0 is __syncthreads'.  Numbers that
/// stand twice are of kernels, or of blocks of one, that do not meet.
namespace named {
enum : int {
  // Forward: a warpgroup that prepares (of several in a block of their own,
  // from here on; of two beside walkers, the second), one that walks.
  prepare = 1,
  walk = 2,  // and 3
  prepare_second = 4,
  // With a content gate, among the warpgroups that gate: the keys of a chunk
  // have their gate; of the first of them, that makes T, and of the one that
  // leads, alone; with the leader: the shifts of the logits are there.
  gated = 4,
  inverting = 5,
  leading = 11,
  moved = 12,
  // Between them and the walkers, who wake sooner so than by an mbarrier: of a
  // stage (so two each), its erase keys have their gate and L is made; T is
  // there; z is there; and the sums of the window's outputs are known.  (The
  // walkers are at most a chunk behind, so what a stage has may be told of
  // two.)
  coupled = 6,
  inverted = 8,
  known = 10,
  solved = 13,
  // Backward: the two warps of a slice of 16 channels, of four.
  slice = 1,
  // Backward of a full grid: the warpgroup that makes what needs no cotangent
  // of the state, the one that makes the rest, and, at the start, the former
  // and those that walk.
  queries = 1,
  keys = 4,
  peaks = 5,
};
}  // namespace named

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

// ---- clusters ----

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
/// An arrival at a barrier of any block of the cluster, by its address there.
/// (Of what the thread has read before, not written: a release to the cluster
/// would wait for its stores to global memory too.)
__device__ __forceinline__ void barrier_arrive_there(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(barrier)
               : "memory");
}
__device__ __forceinline__ void barrier_expect_there(std::uint32_t barrier,
                                                     std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], "
      "%1;\n" ::"r"(barrier),
      "r"(bytes)
      : "memory");
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

// ---- kernels, one after the other ----

/// The next kernel, launched as `after_trigger`, may start its blocks where
/// there is room, once all of this one's have said so.
__device__ __forceinline__ void next_kernel_may_start() {
  asm volatile("griddepcontrol.launch_dependents;");
}
/// Until the kernel before is through and what it wrote is there.
__device__ __forceinline__ void await_kernel_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// ---- registers, which warpgroups of a block exchange ----

template <int Registers>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}

}  // namespace carve::cuda::arch
