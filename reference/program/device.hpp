/// @file
/// What do this library's own CUDA kernels make of a dump's inputs?
#pragma once

#include <vector>

#include "program/dump.hpp"

namespace carve::program {

/// Outputs of the CUDA kernels on the inputs of `d` and, where it has
/// cotangents, all gradients; in the formats in which the kernels store them.
/// @throws carve::error  in a build without CUDA, without a device, and for a
///                       problem that the kernels do not take.
std::vector<judged_tensor> run_on_device(const dump& d);

}  // namespace carve::program
