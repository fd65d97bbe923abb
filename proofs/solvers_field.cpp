/// @file
/// The solvers over the two prime fields.
#include "solvers.ipp"

CARVE_PROOFS_SOLVERS(carve::prime_61)
CARVE_PROOFS_FORWARD(carve::dual<carve::prime_61>)
CARVE_PROOFS_SOLVERS(carve::prime_61_31)
CARVE_PROOFS_FORWARD(carve::dual<carve::prime_61_31>)
