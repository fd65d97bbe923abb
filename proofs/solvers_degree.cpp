/// @file
/// The solvers over the scalar that carries degrees.
#include "solvers.ipp"

CARVE_PROOFS_SOLVERS(carve::proofs::degree)
CARVE_PROOFS_FORWARD(carve::dual<carve::proofs::degree>)
