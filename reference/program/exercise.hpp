/// @file
/// What do a dump's inputs leave untested, and what in them looks like a
/// mistake?  From the inputs alone.
#pragma once

#include <string>
#include <vector>

#include "program/dump.hpp"

namespace carve::program {

/// Each entry is a line for people.
struct input_notes {
  std::vector<std::string> untested;    ///< no kernel could fail in this
  std::vector<std::string> suspicious;  ///< probably not what was meant
};

/// Looks at the inputs of `d`, activations applied.
input_notes study_inputs(const dump& d);

}  // namespace carve::program
