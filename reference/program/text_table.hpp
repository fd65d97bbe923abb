/// @file
/// How do rows of cells become columns of text?
#pragma once

#include <algorithm>
#include <cstddef>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace carve::program {

/// Columns as wide as their widest cell, two blanks between; the first is
/// left-aligned and so are those in `left`.
class text_table {
 public:
  explicit text_table(std::vector<std::size_t> left) : left_(std::move(left)) {}

  void add(std::vector<std::string> cells) {
    width_.resize(std::max(width_.size(), cells.size()));
    for (std::size_t i = 0; i < cells.size(); ++i) {
      width_[i] = std::max(width_[i], cells[i].size());
    }
    rows_.push_back(std::move(cells));
  }

  /// @param[in] around  text before and after the last cell of a row.
  template <class Around>
  void write(std::ostream& out, Around&& around) const {
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const std::vector<std::string>& row = rows_[r];
      std::string line, blanks;
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::string fill(width_[i] - row[i].size(), ' ');
        const bool left =
            std::find(left_.begin(), left_.end(), i) != left_.end();
        const std::string cell =
            i + 1 == row.size() ? around(r, row[i]) : row[i];
        line += blanks + (left ? "" : fill) + cell;
        blanks = (left ? fill : "") + "  ";
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out << line << '\n';
    }
  }
  void write(std::ostream& out) const {
    write(out, [](std::size_t, const std::string& cell) { return cell; });
  }

 private:
  std::vector<std::size_t> left_;
  std::vector<std::size_t> width_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace carve::program
