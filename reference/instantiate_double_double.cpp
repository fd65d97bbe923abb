/// @file
/// The solvers in double_double.
#include "carve/reference.hpp"

namespace carve {

CARVE_INSTANTIATE(, double_double)

}  // namespace carve
