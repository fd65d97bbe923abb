/// @file
/// What counts elements?
#pragma once

#include <cstddef>

namespace carve {

/// Sizes, positions and strides; signed, so that a step back is a number too.
using index_t = std::ptrdiff_t;

}  // namespace carve
