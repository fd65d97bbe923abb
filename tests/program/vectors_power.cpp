/// @file
/// Is every deviation of the catalogue caught by a vector of the smoke suite?
/// By the one that the table in docs/vectors.md names.
#include <fstream>
#include <map>
#include <sstream>

#include "catch.hpp"
#include "program/diagnose.hpp"
#include "program/fixtures.hpp"
#include "program/vectors.hpp"

namespace program = carve::program;
namespace st = carve::safetensors;

namespace {

/// A vector of smoke with the units by which a port in F32 is judged.
struct made {
  program::vector_entry entry;
  program::dump content;
};
made make(const program::vector_plan& plan) {
  const std::vector<std::byte> file = program::make_vector(plan, 1);
  const program::dump d = program::read_dump(st::file::parse(file));
  const carve::profile as[] = {program::implied_profile(d)};
  return {program::describe(plan, file, as), d};
}

bool caught(const made& v, const program::suspect& s) {
  const auto wrong = program::deviating_result(v.content, {s}, {1, {}});
  return wrong &&
         program::beyond_bounds(v.entry, v.content, *wrong, st::dtype::f32) > 1;
}

/// Deviation and sentence, and the vector named for a port in F32.
std::map<std::pair<std::string, std::string>, std::string> table() {
  std::ifstream page(CARVE_SOURCE "/docs/vectors.md");
  REQUIRE(page.good());
  std::map<std::pair<std::string, std::string>, std::string> rows;
  for (std::string line; std::getline(page, line);) {
    if (!line.starts_with("| `")) continue;
    std::vector<std::string> cells;
    std::istringstream in(line.substr(1));
    for (std::string cell; std::getline(in, cell, '|');) {
      const auto first = cell.find_first_not_of(" `");
      const auto last = cell.find_last_not_of(" `");
      cells.push_back(
          first == cell.npos ? "" : cell.substr(first, last - first + 1));
    }
    REQUIRE(cells.size() >= 6);
    rows[{cells[0], cells[1]}] = cells[3];
  }
  return rows;
}

}  // namespace

TEST_CASE("every deviation is caught by the vector that the page names") {
  std::map<std::string, program::vector_plan> plans;
  for (const auto& p : program::plan_of(program::suite_named("smoke"))) {
    plans[p.name] = p;
  }
  std::map<std::string, made> known;
  const auto vector_named = [&](const std::string& name) -> const made& {
    const auto plan = plans.find(name);
    REQUIRE(plan != plans.end());
    if (!known.contains(name)) known.emplace(name, make(plan->second));
    return known.at(name);
  };
  auto rows = table();
  REQUIRE(rows.size() > 50);
  for (const program::suspect& s : program::suspects()) {
    const std::string id = program::name_of({s});
    const std::string sentence = program::sentence_of(s);
    CAPTURE(id, sentence);
    const auto row = rows.extract({id, sentence});
    // e^-20 is less than the last bit of a float.
    if (sentence == "softplus(x) is x wherever x is above 20") {
      REQUIRE((!row || row.mapped().empty()));
      continue;
    }
    if (row) {
      REQUIRE(caught(vector_named(row.mapped()), s));
      continue;
    }
    // Younger than the page.
    WARN("docs/vectors.md lacks " << id
                                  << ": `carve vectors --power` has its table");
    bool found = false;
    for (auto p = plans.begin(); p != plans.end() && !found; ++p) {
      found = caught(vector_named(p->first), s);
    }
    REQUIRE(found);
  }
  // What is no longer in the catalogue is no longer on the page.
  for (const auto& [row, vector] : rows) {
    CAPTURE(row.first, row.second);
    REQUIRE(rows.empty());
  }
}
