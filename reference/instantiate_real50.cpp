/// @file
/// The solvers in real50.
#include "carve/reference.hpp"

namespace carve {

CARVE_INSTANTIATE(, real50)

}  // namespace carve
