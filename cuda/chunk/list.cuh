// Where does a chunk stand among all chunks of a head, sequence after sequence?
#pragma once

#include <cstdint>

#include "chunk/decay.cuh"
#include "common.cuh"

namespace carve::cuda::chunks {

/// Index of the first chunk of sequence `n` among a head's.
__device__ __forceinline__ int first_slot(const problem& p, int n) {
  if (p.cu_seqlens == nullptr) return n * ((p.T + chunk - 1) / chunk);
  // Rounding each length up costs at most one chunk a sequence.
  return static_cast<int>(p.cu_seqlens[n] / chunk) + n;
}

/// Slots that a head's chunks need; the host does not know the lengths.
inline std::int64_t slots_of(const problem& p) {
  if (p.cu_seqlens == nullptr)
    return static_cast<std::int64_t>(p.N) * ((p.T + chunk - 1) / chunk);
  return p.T / chunk + p.N + 1;
}

/// The chunk that is i-th in turn: of sequences of one length the first chunk
/// of each, then the second; of packed ones as they lie.
struct chunk_turn {
  int sequence, chunk;
};
__device__ __forceinline__ chunk_turn find_turn(const problem& p, int i) {
  if (p.cu_seqlens == nullptr) return {i % p.N, i / p.N};
  int low = 0, high = p.N;  // the last sequence that starts at or before it
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (first_slot(p, middle) <= i)
      low = middle;
    else
      high = middle;
  }
  return {low, i - first_slot(p, low)};
}

}  // namespace carve::cuda::chunks
