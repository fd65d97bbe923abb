/// @file
/// The solvers in long double.
#include "carve/reference.hpp"

namespace carve {

CARVE_INSTANTIATE(, long double)

}  // namespace carve
