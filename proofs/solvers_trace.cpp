/// @file
/// The solvers over the scalar that carries dependencies.
#include "solvers.ipp"
#include "trace.hpp"

CARVE_PROOFS_SOLVERS(carve::proofs::trace)
