/// @file
/// The solvers in floating point.
#include "solvers.ipp"

CARVE_PROOFS_SOLVERS(float)
CARVE_PROOFS_SOLVERS(double)
CARVE_PROOFS_SOLVERS(carve::double_double)
