/// What do the pages take from these programs?  Values and drawings, each a
/// file in the folder that is the program's argument: the text that stands
/// where a page says `{{name}}`, and name.svg.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace figures {

/// A sentence of a page that is not so stops the build.
inline void must(bool holds, const std::string& what) {
  if (holds) return;
  std::cerr << "a page says what is not so: " << what << '\n';
  std::exit(1);
}

/// The folder of values and drawings.
class made {
 public:
  made(int argc, char** argv) {
    must(argc == 2, "usage: " + std::string(argv[0]) + " FOLDER");
    folder_ = argv[1];
    std::filesystem::create_directories(folder_);
  }
  void value(const std::string& name, const std::string& text) const {
    write(name + ".txt", text);
  }
  void drawing(const std::string& name, const std::string& svg) const {
    write(name + ".svg", svg);
  }

 private:
  void write(const std::string& name, const std::string& text) const {
    std::ofstream out(folder_ / name);
    out << text;
    out.close();
    must(bool(out), "cannot write " + (folder_ / name).string());
  }
  std::filesystem::path folder_;
};

/// `x` with `digits` significant digits, as a page prints it.
inline std::string number(double x, int digits = 3) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*g", digits, x);
  return text;
}

/// The same, zeros at its end included, so that columns of a table agree.
inline std::string digits_of(double x, int digits = 3) {
  char text[64];
  std::snprintf(text, sizeof text, "%#.*g", digits, x);
  std::string out = text;
  if (out.ends_with('.')) out.pop_back();
  return out;
}

/// `x` with `places` digits behind the point.
inline std::string places(double x, int count) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", count, x);
  return text;
}

/// `x` as mantissa and exponent, `3.5e-03`.
inline std::string scientific(double x, int digits = 2) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*e", digits - 1, x);
  return text;
}

/// An exact number as TeX: an integer or a fraction.
template <class T>
requires(!std::is_base_of_v<Eigen::EigenBase<T>, T>) std::string
    tex(const T& x) {
  std::ostringstream out;
  out << x;
  const std::string text = out.str();
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) return text;
  const bool negative = text[0] == '-';
  return (negative ? "-" : "") + std::string("\\tfrac{") +
         text.substr(negative, slash - negative) + "}{" +
         text.substr(slash + 1) + "}";
}

/// A matrix as TeX.
template <class Derived>
std::string tex(const Eigen::MatrixBase<Derived>& m) {
  std::string text = "\\begin{pmatrix}";
  for (Eigen::Index i = 0; i < m.rows(); ++i) {
    if (i) text += "\\\\";
    for (Eigen::Index j = 0; j < m.cols(); ++j) {
      if (j) text += "&";
      text += tex(m(i, j));
    }
  }
  return text + "\\end{pmatrix}";
}

/// Rows of a Markdown table, the first its head; all columns but the first
/// are numbers.
inline std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::string text;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (const std::string& cell : rows[r]) text += "| " + cell + " ";
    text += "|\n";
    if (r > 0) continue;
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      text += c ? "|--:" : "|---";
    }
    text += "|\n";
  }
  return text;
}

}  // namespace figures
