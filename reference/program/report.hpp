/// @file
/// How are verifications told: tables for people, JSON and JUnit for machines;
/// and the two other tables that the program prints.
#pragma once

#include <cstddef>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "program/diagnose.hpp"
#include "program/verify.hpp"

namespace carve::program {

/// A ratio, in at most seven characters.
std::string ratio_text(double x);

/// "pass", "FAIL" or "not judged".
std::string verdict_text(const verdict& t);

/// Why a tensor does not pass its comparison, in words; "" where it does.
std::string reason(const verdict& v, const tolerance& limit);

/// An attribute of XML, in quotes and in ASCII.
std::string xml_quoted(const std::string& s);

/// The table, at most 80 columns wide for tensors of any usual size.
/// @param[in] colour  escape sequences around verdicts; nothing else differs.
void write_table(std::ostream& out, const verification& v, bool colour);

/// A dump of a run: what came of it, or why nothing did.
struct judged_file {
  std::string path;
  std::optional<verification> outcome;
  std::string error;                  ///< empty where there is an outcome
  std::optional<diagnosis> why = {};  ///< of one that fails, where it was made
};

/// A row for each dump, then a line for each that fails or cannot be used; at
/// most 80 columns but for those lines.
void write_summary(std::ostream& out, const std::vector<judged_file>& all,
                   bool colour);

/// One object, of several dumps with an array of theirs; numbers that are not
/// finite are null.
void write_json(std::ostream& out, const std::vector<judged_file>& all);

/// One suite for each dump with one test case for each tensor; a dump that
/// cannot be used is an error.
void write_junit(std::ostream& out, const std::vector<judged_file>& all);

/// What explains a dump, in sentences.
/// @param[in] width   columns of a line, but for names that are longer.
/// @param[in] places  where what is not explained is wrong, as well.
void write_diagnosis(std::ostream& out, const diagnosis& found,
                     std::size_t width, bool places);

/// The same as one object: `diagnosis` is an array, the best first.
void write_diagnosis_json(std::ostream& out, const diagnosis& found);

/// The family's table.
void write_families(std::ostream& out);

/// The table of tensors, in lines of at most `width` columns.
void write_tensors(std::ostream& out, std::size_t width);

/// Metadata and tensors of a file, whether carve knows them or not.
void write_content(std::ostream& out, const safetensors::file& file);

}  // namespace carve::program
