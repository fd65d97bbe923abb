/// @file
/// The parts of the claims about structure.
#pragma once

#include "law.hpp"

namespace carve::proofs {

void register_segments(ledger& all);   ///< SEG-1
void register_packed(ledger& all);     ///< SEG-2
void register_causality(ledger& all);  ///< SEG-3
void register_batches(ledger& all);    ///< SEG-4 to SEG-6

}  // namespace carve::proofs
