/// @file
/// The recurrence in double_double for each instruction set.
#include "targets.hpp"

namespace carve {

CARVE_DISPATCH(double_double)

}  // namespace carve
