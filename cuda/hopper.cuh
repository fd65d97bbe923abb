// The names under which backward_walk.cuh knows arch/.
#pragma once

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/shared.cuh"

namespace carve::cuda {
namespace hopper = arch;
}
