// The names under which the chunked backward knows arch/.
#pragma once

#include "arch/barrier.cuh"
#include "arch/copy.cuh"
#include "arch/matrix.cuh"
#include "arch/number.cuh"
#include "arch/product.cuh"
#include "arch/shared.cuh"

namespace carve::cuda {
namespace hopper = arch;
}
