/// @file
/// The solvers in float.
#include "carve/reference.hpp"

namespace carve {

CARVE_INSTANTIATE(, float)

}  // namespace carve
