/// @file
/// How is a verification told: a table for people, JSON and JUnit for machines;
/// and the two other tables that the program prints.
#pragma once

#include <ostream>
#include <string>

#include "program/verify.hpp"

namespace carve::program {

/// The table, at most 80 columns wide for tensors of any usual size.
/// @param[in] colour  escape sequences around verdicts; nothing else differs.
void write_table(std::ostream& out, const verification& v, bool colour);

/// One object; numbers that are not finite are null.
void write_json(std::ostream& out, const verification& v);

/// One test case for each tensor.
void write_junit(std::ostream& out, const verification& v);

/// The family's table.
void write_families(std::ostream& out);

/// Metadata and tensors of a file, whether carve knows them or not.
void write_content(std::ostream& out, const safetensors::file& file);

}  // namespace carve::program
