/// @file
/// The parts of the claims about the chunked form, in their order.
#pragma once

#include "law.hpp"

namespace carve::proofs {

void register_wy_criterion(ledger& all);  ///< WY-3 and WY-4
void register_wy_mask(ledger& all);       ///< WY-6
void register_wy_numeric(ledger& all);    ///< WY-8 and WY-9

}  // namespace carve::proofs
