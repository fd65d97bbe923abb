/// How long do the kernels take?  The committed output of cuda/rivals.py,
/// drawn and as a table: this library's kernels, other people's on the same
/// card, and the time of moving each input and output once.  And that of
/// carve-cuda-bench, for the kernels that nobody else has.
#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include "svg.hpp"

namespace {

using namespace figures;

/// Nanoseconds per token and value head, by who; "carve" and "floor" among
/// them.
struct row {
  std::string family, direction, shape;
  std::map<std::string, double> ns;

  double ours() const { return ns.at("carve"); }
  double floor() const { return ns.at("floor"); }
};

struct results {
  std::vector<std::string> notes;  // of each file: card, date, versions
  std::vector<row> rows;
};

void read(results& all, const std::string& path) {
  std::ifstream in(path);
  must(bool(in), "cannot read " + path);
  std::string line, notes;
  while (std::getline(in, line)) {
    if (line.starts_with("# ")) {
      notes += (notes.empty() ? "" : "; ") + line.substr(2);
      continue;
    }
    std::istringstream words(line);
    row r;
    std::string who;
    double ns = 0;
    words >> r.family >> r.direction >> r.shape >> who >> ns;
    must(bool(words) && ns > 0, path + ": " + line);
    const auto same = [&](const row& x) {
      return x.family == r.family && x.direction == r.direction &&
             x.shape == r.shape;
    };
    auto at = std::find_if(all.rows.begin(), all.rows.end(), same);
    if (at == all.rows.end()) at = all.rows.insert(at, r);
    at->ns[who] = ns;
  }
  must(!notes.empty() && !all.rows.empty(), path + " has no results");
  all.notes.push_back(notes);
  for (const row& r : all.rows) {
    must(r.ns.contains("carve") && r.ns.contains("floor"),
         path + ": no time of this library for " + r.family);
  }
}

const std::map<std::string, std::string> titles = {
    {"delta", "DeltaNet"}, {"gdn", "GDN"},     {"kda", "KDA"},
    {"gdn2", "GDN-2"},     {"carve", "CARVE"}, {"value_erase", "value-axis"},
};

std::string name_of(const row& r) {
  return titles.at(r.family) + ", " + r.direction;
}

/// The fastest of the others, or an end.
std::map<std::string, double>::const_iterator rival_of(const row& r) {
  auto best = r.ns.end();
  for (auto i = r.ns.begin(); i != r.ns.end(); ++i) {
    if (i->first == "carve" || i->first == "floor") continue;
    if (best == r.ns.end() || i->second < best->second) best = i;
  }
  return best;
}

/// A row for each family, direction and shape: times, ratio to the floor, and
/// to the fastest other.
std::string table(const results& all) {
  std::vector<std::string> others;
  for (const row& r : all.rows) {
    for (const auto& [who, ns] : r.ns) {
      if (who != "carve" && who != "floor" &&
          std::find(others.begin(), others.end(), who) == others.end()) {
        others.push_back(who);
      }
    }
  }
  std::ostringstream out;
  out << "| kernel | shape | carve | of the bytes |";
  for (const std::string& who : others) out << ' ' << who << " |";
  out << " carve of the fastest other |\n|---|---|--:|--:|";
  for (std::size_t i = 0; i <= others.size(); ++i) out << "--:|";
  out << '\n';
  for (const row& r : all.rows) {
    out << "| " << name_of(r) << " | " << r.shape << " | "
        << digits_of(r.ours()) << " | " << digits_of(r.ours() / r.floor())
        << " |";
    for (const std::string& who : others) {
      out << ' ' << (r.ns.contains(who) ? digits_of(r.ns.at(who)) : "") << " |";
    }
    const auto rival = rival_of(r);
    const double ratio = rival == r.ns.end() ? 0 : r.ours() / rival->second;
    out << ' ';
    if (ratio > 1) out << "**";
    if (ratio > 0) out << digits_of(ratio);
    if (ratio > 1) out << "**";
    out << " |\n";
  }
  return out.str();
}

/// In how many rows another kernel is faster, and by how much at most.
std::string lost(const results& all) {
  std::size_t compared = 0, slower = 0;
  double most = 0;
  std::string where;
  for (const row& r : all.rows) {
    const auto rival = rival_of(r);
    if (rival == r.ns.end()) continue;
    ++compared;
    const double ratio = r.ours() / rival->second;
    if (ratio > 1) ++slower;
    if (ratio > most) {
      most = ratio;
      where = name_of(r) + ", " + r.shape + ", against " + rival->first;
    }
  }
  must(compared > 0, "nothing to compare with");
  std::ostringstream out;
  out << "In " << slower << " of " << compared
      << " rows another kernel is faster; the largest ratio is " << number(most)
      << " (" << where << ").";
  return out.str();
}

/// Bars on a logarithmic axis of nanoseconds, of all rows of one shape.
void draw(const made& to, const std::string& name, const std::string& title,
          const std::string& shape, const results& all) {
  std::vector<row> rows;
  for (const row& r : all.rows) {
    if (r.shape == shape) rows.push_back(r);
  }
  must(!rows.empty(), "no results for " + shape);
  const double left = 158, width = 300, high = 40;
  const double height = 44 + high * static_cast<double>(rows.size());
  svg drawing(480, height + 84, title);
  const scale x{0.2, 50, true, {0.25, 0.5, 1, 2, 4, 8, 16, 32}, ""};
  const auto px = [&](double v) { return left + width * x.at(v); };
  drawing.text(8, 18, title);
  for (const double v : x.ticks) {
    drawing.line(px(v), 30, px(v), height, "faint hair");
    drawing.text(px(v), height + 16, number(v), "middle", "faint-label small");
  }
  double y = 40;
  for (const row& r : rows) {
    drawing.text(8, y + 18, name_of(r));
    drawing.rect(px(0.2), y, px(r.ours()) - px(0.2), 13, "f1");
    drawing.text(px(r.ours()) + 5, y + 11, number(r.ours()), "start", "small");
    if (const auto rival = rival_of(r); rival != r.ns.end()) {
      const double ns = rival->second;
      drawing.rect(px(0.2), y + 15, px(ns) - px(0.2), 13, "f6", 0.6);
      drawing.text(px(ns) + 5, y + 26, number(ns) + " " + rival->first, "start",
                   "small");
    }
    drawing.line(px(r.floor()), y - 4, px(r.floor()), y + 31, "s2");
    y += high;
  }
  drawing.text(left, height + 34, "ns per token and value head (logarithmic)",
               "start", "faint-label small");
  drawing.rect(8, height + 48, 16, 11, "f1");
  drawing.text(30, height + 58, "carve");
  drawing.rect(100, height + 48, 16, 11, "f6", 0.6);
  drawing.text(122, height + 58, "fastest other");
  drawing.line(230, height + 46, 230, height + 60, "s2");
  drawing.text(238, height + 58, "moving the bytes once");
  to.drawing(name, drawing.str());
}

/// Nanoseconds per token and value head of a forward kernel of this library at
/// a shape, from the output of carve-cuda-bench.
double benched(const std::string& family, const std::string& shape) {
  std::ifstream in(CARVE_BENCHED);
  must(bool(in), std::string("cannot read ") + CARVE_BENCHED);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string name, direction, at, kernel, unit;
    double milliseconds = 0, ns = 0;
    words >> name >> direction >> at >> kernel >> milliseconds >> unit >> ns;
    if (words && name == family && direction == "forward" && at == shape) {
      return ns;
    }
  }
  must(false, family + " at " + shape + " was not timed");
  return 0;
}

/// How many times as long as Gated DeltaNet-2, which has the same gates but for
/// the axis or the source of one.
void against_gdn2(const made& to) {
  for (const char* const family : {"value_erase", "carve"}) {
    const auto ratio = [&](const std::string& shape) {
      return benched(family, shape) / benched("gdn2", shape);
    };
    const double many = ratio("8x4096x16x128"), few = ratio("1x8192x16x128");
    must(many > 1 && few > 1.5 * many, "the walk costs more where heads lack");
    const std::string name = std::string("times.") + family;
    to.value(name + ".many", number(many, 2));
    to.value(name + ".few", number(few, 2));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const made to(argc, argv);
  results all;
  for (const char* const file : {"/h200_gdn.txt", "/h200.txt"}) {
    read(all, std::string(CARVE_RESULTS) + file);
  }
  draw(to, "times_full", "batch 8, 4096 tokens, 16 heads", "8x4096x16x128",
       all);
  draw(to, "times_few", "batch 1, 8192 tokens, 16 heads", "1x8192x16x128", all);
  to.value("times.table", table(all));
  to.value("times.long", digits_of(benched("gdn", "1x65536x16x128")));
  to.value("times.lost", lost(all));
  against_gdn2(to);
  std::string notes;
  for (const std::string& line : all.notes) notes += "- " + line + "\n";
  to.value("times.notes", notes);
}
