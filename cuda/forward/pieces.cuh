// How is a sequence cut into pieces, each walked by a block of its own?
#pragma once

#include <algorithm>

#include "carve/cuda.hpp"
#include "chunk/decay.cuh"
#include "common.cuh"

namespace carve::cuda::forward_chunks {

/// `pieces` of a sequence, of as many chunks each (the last ones fewer, or
/// none).  A head of a sequence whose number in `in_order` is not zero is not
/// cut after all: the block of its first piece walks all of it.
struct cut {
  int pieces = 1;
  const int* in_order = nullptr;
};

__device__ __forceinline__ sequence_span piece_of(const sequence_span& all,
                                                  int piece, int pieces) {
  constexpr int chunk = chunks::chunk;
  const std::int64_t chunks = (all.length + chunk - 1) / chunk;
  const std::int64_t tokens = (chunks + pieces - 1) / pieces * chunk;
  const std::int64_t first = min(piece * tokens, all.length);
  return {all.batch, all.first + first, min(tokens, all.length - first)};
}

/// The forward of a full grid, a block for each piece, in forward.cu.
/// `initial_state`: of each piece, [N,pieces,HV,K,V].
status forward_pieces(const problem&, const outputs&, const cut&,
                      CUstream_st* stream);

}  // namespace carve::cuda::forward_chunks
