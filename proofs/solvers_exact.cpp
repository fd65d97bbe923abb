/// @file
/// The solvers over the rationals and as polynomials.
#include "solvers.ipp"

CARVE_PROOFS_SOLVERS(carve::rational)
CARVE_PROOFS_FORWARD(carve::dual<carve::rational>)
