/// @file
/// Which claims about cost rest on samples and clocks?
#pragma once

#include "law.hpp"

namespace carve::proofs {

void register_measured_cost(ledger& all);  // EFF-3 and 4, cost_measured.cpp

}  // namespace carve::proofs
