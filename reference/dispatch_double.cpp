/// @file
/// The recurrence in double for each instruction set.
#include "targets.hpp"

namespace carve {

CARVE_DISPATCH(double)

}  // namespace carve
