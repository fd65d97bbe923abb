/// @file
/// The recurrence in float for each instruction set.
#include "targets.hpp"

namespace carve {

CARVE_DISPATCH(float)

}  // namespace carve
