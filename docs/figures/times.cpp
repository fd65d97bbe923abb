/// How long do the kernels take?  The results in cuda/NOTES.md, drawn: this
/// library's kernels, the Triton library's, and the time of moving each input
/// and output once.
#include <fstream>
#include <map>
#include <optional>

#include "svg.hpp"

namespace {

using namespace figures;

std::vector<std::string> cells(const std::string& line) {
  std::vector<std::string> out;
  std::size_t at = line.find('|');
  while (at != std::string::npos) {
    const std::size_t next = line.find('|', at + 1);
    if (next == std::string::npos) break;
    std::string cell = line.substr(at + 1, next - at - 1);
    const auto first = cell.find_first_not_of(' ');
    const auto last = cell.find_last_not_of(' ');
    out.push_back(
        first == std::string::npos ? "" : cell.substr(first, last - first + 1));
    at = next;
  }
  return out;
}

struct row {
  std::string name;
  double ours = 0, floor = 0;
  std::optional<double> rival;
};

/// The rows of the table whose head names `shape`.
std::vector<row> rows_of(const std::string& file, const std::string& shape) {
  std::ifstream in(file);
  must(bool(in), "cannot read " + file);
  std::string line;
  constexpr std::size_t none = ~std::size_t{0};
  std::size_t column = none, rival = none;
  std::vector<row> rows;
  while (std::getline(in, line)) {
    if (line.empty() || line[0] != '|') {
      if (!rows.empty()) return rows;
      column = none;
      continue;
    }
    const std::vector<std::string> c = cells(line);
    if (column == none) {
      for (std::size_t i = 0; i < c.size(); ++i) {
        if (c[i] == shape) column = i, rival = none;
        if (column != none && rival == none && c[i] == "FLA") rival = i;
      }
      if (rival == none) column = none;
      continue;
    }
    // 0.431 (1.77): a time and its ratio to the bytes' time.
    double ours = 0, ratio = 0, other = 0;
    if (column >= c.size() ||
        std::sscanf(c[column].c_str(), "%lf (%lf)", &ours, &ratio) != 2) {
      continue;
    }
    row r{c[0], ours, ours / ratio, {}};
    if (rival < c.size() && std::sscanf(c[rival].c_str(), "%lf", &other) == 1) {
      r.rival = other;
    }
    rows.push_back(r);
  }
  must(!rows.empty(),
       file + " has no table with the columns \"" + shape + "\" and \"FLA\"");
  return rows;
}

/// Bars on a logarithmic axis of nanoseconds.
void draw(const made& to, const std::string& name, const std::string& title,
          const std::vector<row>& rows) {
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
    const std::size_t comma = r.name.find(',');
    drawing.text(8, y + 18, r.name.substr(0, comma));
    drawing.rect(px(0.2), y, px(r.ours) - px(0.2), 13, "f1");
    drawing.text(px(r.ours) + 5, y + 11, number(r.ours), "start", "small");
    if (r.rival) {
      drawing.rect(px(0.2), y + 15, px(*r.rival) - px(0.2), 13, "f6", 0.6);
      drawing.text(px(*r.rival) + 5, y + 26, number(*r.rival), "start",
                   "small");
    }
    drawing.line(px(r.floor), y - 4, px(r.floor), y + 31, "s2");
    y += high;
  }
  drawing.text(left, height + 34, "ns per token and value head (logarithmic)",
               "start", "faint-label small");
  drawing.rect(8, height + 48, 16, 11, "f1");
  drawing.text(30, height + 58, "carve");
  drawing.rect(100, height + 48, 16, 11, "f6", 0.6);
  drawing.text(122, height + 58, "FLA (Triton)");
  drawing.line(230, height + 46, 230, height + 60, "s2");
  drawing.text(238, height + 58, "moving the bytes once");
  to.drawing(name, drawing.str());
}

}  // namespace

int main(int argc, char** argv) {
  const made to(argc, argv);
  const std::string notes = CARVE_NOTES;
  draw(to, "times_full", "batch 8, 4096 tokens, 16 heads",
       rows_of(notes, "8x4096, H16"));
  draw(to, "times_few", "batch 1, 8192 tokens, 16 heads",
       rows_of(notes, "1x8192, H16"));
}
