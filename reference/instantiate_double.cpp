/// @file
/// The solvers in double.
#include "carve/reference.hpp"

namespace carve {

CARVE_INSTANTIATE(, double)

}  // namespace carve
