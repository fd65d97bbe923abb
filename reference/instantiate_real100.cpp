/// @file
/// The solvers in real100.
#include "carve/reference.hpp"

namespace carve {

CARVE_INSTANTIATE(, real100)

}  // namespace carve
