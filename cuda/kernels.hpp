/// @file
/// Which kernels exist, and how the dispatcher asks each of them whether it
/// takes a problem, how much workspace it wants, and to run.
#pragma once

#include <cstddef>

#include "carve/cuda.hpp"

namespace carve::cuda {

// Chunked forward on Hopper's tensor cores (forward/forward.cu).
bool forward_hopper_supports(const problem&);
status forward_hopper_workspace(const problem&, std::size_t* bytes);
status forward_hopper(const problem&, const outputs&, void* workspace,
                      std::size_t bytes, CUstream_st* stream);

// The same of sequences cut into pieces (forward/scan.cu).
bool forward_scan_supports(const problem&);
status forward_scan_workspace(const problem&, std::size_t* bytes);
status forward_scan(const problem&, const outputs&, void* workspace,
                    std::size_t bytes, CUstream_st* stream);

// Chunked backward on Hopper's tensor cores (backward/backward.cu).
bool backward_hopper_supports(const problem&);
status backward_hopper_workspace(const problem&, std::size_t* bytes);
status backward_hopper(const problem&, const gradients&, void* workspace,
                       std::size_t bytes, CUstream_st* stream);

// The same of one decay a head where sequences and heads fill the device
// (backward/full_grid.cu): whether it can take such a problem, and whether this
// one fills this device as well.
bool backward_full_grid_shapes(const problem&);
bool backward_full_grid_supports(const problem&);
status backward_full_grid_workspace(const problem&, std::size_t* bytes);
status backward_full_grid(const problem&, const gradients&, void* workspace,
                          std::size_t bytes, CUstream_st* stream);

// Token by token, delta steps of every shape (plain/forward.cu,
// plain/backward.cu).
status forward_general_workspace(const problem&, std::size_t* bytes);
status forward_general(const problem&, const outputs&, void* workspace,
                       std::size_t bytes, CUstream_st* stream);
status backward_general_workspace(const problem&, std::size_t* bytes);
status backward_general(const problem&, const gradients&, void* workspace,
                        std::size_t bytes, CUstream_st* stream);

// Token by token, every step of the table but the content gate
// (plain/steps.cu).
status forward_steps_workspace(const problem&, std::size_t* bytes);
status forward_steps(const problem&, const outputs&, void* workspace,
                     std::size_t bytes, CUstream_st* stream);
status backward_steps_workspace(const problem&, std::size_t* bytes);
status backward_steps(const problem&, const gradients&, void* workspace,
                      std::size_t bytes, CUstream_st* stream);

// Chunked, one triangular solve for each value column (columnwise/forward.cu).
bool forward_columnwise_supports(const problem&);
status forward_columnwise_workspace(const problem&, std::size_t* bytes);
status forward_columnwise(const problem&, const outputs&, void* workspace,
                          std::size_t bytes, CUstream_st* stream);

// One token (decode/decode.cu).
status decode_step(const problem&, const tensor& o, float* state,
                   CUstream_st* stream);

}  // namespace carve::cuda
