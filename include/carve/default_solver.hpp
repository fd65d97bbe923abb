/// @file
/// What solves a problem when nothing else is said?
#pragma once

#ifdef CARVE_REFERENCE
#include "carve/reference_solver.hpp"
#else
#include "carve/recurrent_solver.hpp"
#endif

namespace carve {

/// Token by token: compiled by whoever includes the headers, or, for a target
/// that links `carve::reference` and so defines CARVE_REFERENCE, taken from
/// that library.  The numbers are the same in every bit.
#ifdef CARVE_REFERENCE
using default_solver = reference_solver;
#else
using default_solver = recurrent_solver;
#endif

}  // namespace carve
