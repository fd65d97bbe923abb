/// What does the ledger say?  The chapters tell its verdicts and some of its
/// numbers in their own words; here these are read from the committed pages,
/// and the build stops where a chapter tells another story.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "made.hpp"

namespace {

using namespace figures;
using cells = std::vector<std::string>;

/// The rows of all tables of a page whose first cell begins with `start`.
std::vector<cells> rows_of(const std::string& page, const std::string& start) {
  const std::string path = std::string(CARVE_LEDGER) + "/" + page;
  std::ifstream in(path);
  must(bool(in), "cannot read " + path);
  std::vector<cells> found;
  std::string line;
  while (std::getline(in, line)) {
    if (!line.starts_with("| " + start)) continue;
    cells row;
    std::size_t from = 2, to = 0;
    // A bar inside a cell is written `\|`.
    while ((to = line.find(" |", from)) != std::string::npos) {
      row.push_back(line.substr(from, to - from));
      from = to + 3;
    }
    found.push_back(row);
  }
  return found;
}

/// What the chapters say of claims.
enum class told { holds, refuted, measured, supported };
const std::map<std::string, told> chapters = {
    {"WY-1", told::holds},     {"WY-3", told::refuted},
    {"WY-4", told::holds},     {"WY-5", told::holds},
    {"WY-7", told::holds},     {"WY-8", told::holds},
    {"RED-1", told::holds},    {"RED-2", told::holds},
    {"RED-3", told::refuted},  {"RED-4", told::holds},
    {"RED-5", told::holds},    {"GRAD-1", told::holds},
    {"GRAD-2", told::holds},   {"STAB-1", told::holds},
    {"STAB-2", told::holds},   {"STAB-3", told::holds},
    {"STAB-4", told::holds},   {"STAB-5", told::holds},
    {"STAB-6", told::holds},   {"STAB-7", told::refuted},
    {"CAP-2", told::holds},    {"CAP-3", told::holds},
    {"CAP-4", told::holds},    {"EFF-1", told::measured},
    {"EFF-2", told::measured}, {"EFF-3", told::supported},
    {"NUM-1", told::measured}, {"WY-11", told::refuted}};

bool agrees(told said, const std::string& verdict) {
  switch (said) {
    case told::holds:
      return verdict.starts_with("proved");
    case told::refuted:
      return verdict == "refuted";
    case told::measured:
      return verdict == "measured";
    case told::supported:
      return verdict == "supported";
  }
  return false;
}

/// Every claim that a chapter names is in the list above.
void check_chapters() {
  const std::regex name("\\b(WY|RED|GRAD|SEG|STAB|CAP|EFF|NUM)-[0-9]+\\b");
  for (const auto& file : std::filesystem::directory_iterator(CARVE_BOOK)) {
    std::ifstream in(file.path());
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    for (std::sregex_iterator at(text.begin(), text.end(), name), end;
         at != end; ++at) {
      must(chapters.contains(at->str()),
           file.path().filename().string() + " tells of " + at->str());
    }
  }
}

/// The share in percent that stands in the last cell of the row of EFF-1 whose
/// first cell begins with `start`.
double share(const std::string& start) {
  const auto rows = rows_of("ledger/cost.md", start);
  must(rows.size() == 1 && rows[0].size() == 3, "EFF-1 has a row " + start);
  return std::stod(rows[0][2]);
}

}  // namespace

int main(int argc, char** argv) {
  const made to(argc, argv);
  std::map<std::string, std::string> verdicts;
  std::size_t refuted = 0, killed = 0, mutants = 0;
  int weakest = -1000;  // of the bounds 2^-n on a false identity's survival
  for (const char* const group :
       {"WY-", "RED-", "GRAD-", "SEG-", "STAB-", "CAP-", "EFF-", "NUM-"}) {
    for (const cells& row : rows_of("ledger.md", group)) {
      if (row.size() == 3) {
        verdicts[row[0]] = row[2];
        refuted += row[2] == "refuted";
        continue;
      }
      must(row.size() == 5, "the ledger's evidence has five columns");
      if (const auto at = row[3].find("2^-"); at != std::string::npos) {
        weakest = std::max(weakest, -std::stoi(row[3].substr(at + 3)));
      }
      killed += std::stoul(row[4]);
      mutants += std::stoul(row[4].substr(row[4].find('/') + 1));
    }
  }
  must(verdicts.size() > 40, "the ledger has its claims");
  for (const auto& [claim, said] : chapters) {
    must(verdicts.contains(claim) && agrees(said, verdicts[claim]),
         "of " + claim + " the ledger says: " + verdicts[claim]);
  }
  must(killed == mutants && weakest <= -100, "no mutant survives");
  check_chapters();
  to.value("claims.count", std::to_string(verdicts.size()));
  to.value("claims.refuted", std::to_string(refuted));
  to.value("claims.mutants", std::to_string(mutants));
  to.value("claims.weakest", std::to_string(weakest));
  const double published = share("the GDN-2 layer,"),
               fewer = share("all of it that runs before"),
               left = share("what is left,");
  must(published < 16 && std::round(fewer) == 19 && std::round(left) == 19,
       "19% are of another whole");
  to.value("claims.published", places(published, 1));
  to.value("claims.before_output", places(fewer, 1));
}
