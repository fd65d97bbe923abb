/// How is a drawing written?  Lines, text, curves over axes and heat maps as
/// SVG whose colours are variables of the page, so that one drawing serves
/// light and dark; opened alone it follows the system.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "made.hpp"

namespace figures {

/// `<`, `>` and `&` as SVG wants them.
inline std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

/// A drawing; lengths are pixels at its full size.
class svg {
 public:
  /// @param what  a sentence for those who cannot see it.
  svg(double width, double height, const std::string& what)
      : width_(width), height_(height), what_(what) {}

  double width() const { return width_; }
  double height() const { return height_; }

  /// `style` is a list of classes of the style sheet below.
  void line(double x1, double y1, double x2, double y2,
            const std::string& style) {
    body_ << "<line x1='" << x1 << "' y1='" << y1 << "' x2='" << x2 << "' y2='"
          << y2 << "' class='" << style << "'/>\n";
  }
  void arrow(double x1, double y1, double x2, double y2,
             const std::string& style = "ink thin") {
    line(x1, y1, x2, y2, style);
    const double along = std::atan2(y2 - y1, x2 - x1);
    std::ostringstream d;
    for (const double turn : {2.75, -2.75}) {
      d << (turn > 0 ? "M" : "L") << x2 + 8 * std::cos(along + turn) << ","
        << y2 + 8 * std::sin(along + turn);
      if (turn > 0) d << "L" << x2 << "," << y2;
    }
    path(d.str(), style);
  }
  void rect(double x, double y, double w, double h, const std::string& style,
            double opacity = 1) {
    body_ << "<rect x='" << x << "' y='" << y << "' width='" << w
          << "' height='" << h << "' class='" << style << "'";
    if (opacity < 1) body_ << " fill-opacity='" << opacity << "'";
    body_ << "/>\n";
  }
  void circle(double x, double y, double r, const std::string& style) {
    body_ << "<circle cx='" << x << "' cy='" << y << "' r='" << r << "' class='"
          << style << "'/>\n";
  }
  void path(const std::string& d, const std::string& style) {
    body_ << "<path d='" << d << "' class='" << style << "'/>\n";
  }
  /// `anchor`: start, middle or end.
  void text(double x, double y, const std::string& s,
            const std::string& anchor = "start",
            const std::string& style = "label") {
    body_ << "<text x='" << x << "' y='" << y << "' text-anchor='" << anchor
          << "' class='" << style << "'>" << escaped(s) << "</text>\n";
  }
  void text_up(double x, double y, const std::string& s) {
    body_ << "<text transform='translate(" << x << "," << y
          << ") rotate(-90)' text-anchor='middle' class='faint-label'>"
          << escaped(s) << "</text>\n";
  }

  std::string str() const {
    std::ostringstream out;
    out << "<svg xmlns='http://www.w3.org/2000/svg' class='carve-figure' "
           "role='img' viewBox='0 0 "
        << width_ << " " << height_ << "' style='max-width:" << width_ * 1.2
        << "px'>\n<title>" << escaped(what_) << "</title>\n<style>"
        << style_sheet() << "</style>\n"
        << body_.str() << "</svg>\n";
    return out.str();
  }

  /// Without the style sheet, which stands once before several such drawings.
  std::string bare() const {
    std::ostringstream out;
    out << "<svg xmlns='http://www.w3.org/2000/svg' class='carve-figure' "
           "role='img' viewBox='0 0 "
        << width_ << " " << height_ << "'>\n<title>" << escaped(what_)
        << "</title>\n"
        << body_.str() << "</svg>\n";
    return out.str();
  }

  /// Classes s1 to s6 are the colours of curves, f1 to f6 the same as fills.
  static std::string style_sheet() {
    const char* const light[] = {"#1c5d99", "#b3541e", "#2e7d4f",
                                 "#8e3b8c", "#7a6a00", "#4a5568"};
    const char* const dark[] = {"#7db8f0", "#f0a070", "#7fd0a0",
                                "#dc98da", "#d8c860", "#a8b2c2"};
    std::string page =
        ".carve-figure{--cv-ink:#1f2933;--cv-faint:#66727f;"
        "--cv-wash:#eef1f4;";
    std::string alone =
        "--cv-ink:#e4e8ec;--cv-faint:#9aa5b1;"
        "--cv-wash:#2b3138;";
    std::string rules;
    for (int i = 0; i < 6; ++i) {
      const std::string n = std::to_string(i + 1);
      page += "--cv-" + n + ":" + light[i] + ";";
      alone += "--cv-" + n + ":" + dark[i] + ";";
      rules += ".carve-figure .s" + n + "{stroke:var(--cv-" + n +
               ");fill:none;stroke-width:2}.carve-figure .f" + n +
               "{fill:var(--cv-" + n + ");stroke:none}.carve-figure .t" + n +
               "{fill:var(--cv-" + n + ")}";
    }
    return page + "}html.dark-mode .carve-figure{" + alone +
           "}@media (prefers-color-scheme:dark){svg.carve-figure:root{" +
           alone + "}}" + rules +
           ".carve-figure text{font:13px sans-serif;fill:var(--cv-ink)}"
           ".carve-figure .faint-label{fill:var(--cv-faint)}"
           ".carve-figure .small{font-size:11px}"
           ".carve-figure .mono{font-family:monospace}"
           ".carve-figure .ink{stroke:var(--cv-ink);fill:none}"
           ".carve-figure .faint{stroke:var(--cv-faint);fill:none}"
           ".carve-figure .thin{stroke-width:1.2}"
           ".carve-figure .hair{stroke-width:.5}"
           ".carve-figure .dash{stroke-dasharray:5 4}"
           ".carve-figure .wash{fill:var(--cv-wash);stroke:none}"
           ".carve-figure .box{fill:var(--cv-wash);stroke:var(--cv-faint)}";
  }

 private:
  double width_, height_;
  std::string what_;
  std::ostringstream body_;
};

/// One curve.
struct curve {
  std::string name;
  std::vector<double> x, y;
  int colour = 1;  ///< 1 to 6
  bool dashed = false;
  bool marks = false;  ///< a dot at every point
};

/// An axis of a plot.
struct scale {
  double from = 0, to = 1;
  bool log = false;
  std::vector<double> ticks;
  std::string title;

  /// Where `v` lies between 0 and 1.
  double at(double v) const {
    return log ? (std::log(v) - std::log(from)) /
                     (std::log(to) - std::log(from))
               : (v - from) / (to - from);
  }
};

/// A tick's number: powers of ten by their exponent, others as they are.
inline std::string tick_text(const scale& s, double v) {
  if (s.log && v > 0) {
    const double e = std::log10(v);
    if (std::fabs(e - std::round(e)) < 1e-9 && (v >= 1e4 || v <= 1e-3)) {
      return "1e" + std::to_string(static_cast<int>(std::round(e)));
    }
  }
  return number(v, 4);
}

/// Curves over two axes.  Points outside the axes, or not finite, are left
/// out, and with them the line to their neighbours.
inline void plot(svg& to, double left, double top, double width, double height,
                 const scale& x, const scale& y,
                 const std::vector<curve>& curves) {
  const auto px = [&](double v) { return left + width * x.at(v); };
  const auto py = [&](double v) { return top + height * (1 - y.at(v)); };
  for (const double v : y.ticks) {
    to.line(left, py(v), left + width, py(v), "faint hair");
    to.text(left - 6, py(v) + 4, tick_text(y, v), "end", "faint-label");
  }
  for (const double v : x.ticks) {
    to.line(px(v), top + height, px(v), top + height + 4, "faint thin");
    to.text(px(v), top + height + 18, tick_text(x, v), "middle", "faint-label");
  }
  to.line(left, top + height, left + width, top + height, "ink thin");
  to.text(left + width / 2, top + height + 38, x.title, "middle",
          "faint-label");
  to.text(left - 40, top - 10, y.title, "start", "faint-label");
  for (const curve& c : curves) {
    const std::string stroke =
        "s" + std::to_string(c.colour) + (c.dashed ? " dash" : "");
    std::ostringstream d;
    bool pen = false;
    for (std::size_t i = 0; i < c.x.size(); ++i) {
      const double u = x.at(c.x[i]), v = y.at(c.y[i]);
      if (!(u >= -1e-9 && u <= 1 + 1e-9 && v >= -1e-9 && v <= 1 + 1e-9)) {
        pen = false;
        continue;
      }
      d << (pen ? "L" : "M") << places(px(c.x[i]), 1) << ","
        << places(py(c.y[i]), 1);
      pen = true;
      if (c.marks) {
        to.circle(px(c.x[i]), py(c.y[i]), 3, "f" + std::to_string(c.colour));
      }
    }
    to.path(d.str(), stroke);
  }
}

/// The curves' names, in rows below one another from (x, y) on.
inline void legend(svg& to, double x, double y,
                   const std::vector<curve>& curves) {
  for (const curve& c : curves) {
    to.line(x, y - 4, x + 22, y - 4,
            "s" + std::to_string(c.colour) + (c.dashed ? " dash" : ""));
    to.text(x + 28, y, c.name);
    y += 18;
  }
}

/// A matrix as coloured cells: f1 above zero, f2 below, paler towards zero.
/// @param most  the value of full colour; 0: the largest of the matrix.
inline void heat_map(svg& to, double x, double y, double cell,
                     const Eigen::MatrixXd& m, double most = 0,
                     bool numbers = false) {
  if (most == 0) most = m.size() ? m.cwiseAbs().maxCoeff() : 1;
  if (!(most > 0)) most = 1;
  to.rect(x, y, cell * m.cols(), cell * m.rows(), "wash");
  for (Eigen::Index i = 0; i < m.rows(); ++i) {
    for (Eigen::Index j = 0; j < m.cols(); ++j) {
      const double v = m(i, j), strength = std::min(1.0, std::fabs(v) / most);
      const double cx = x + cell * j, cy = y + cell * i;
      if (!std::isfinite(v)) {
        to.line(cx, cy, cx + cell, cy + cell, "ink thin");
        to.line(cx, cy + cell, cx + cell, cy, "ink thin");
      } else if (strength > 0.004) {
        to.rect(cx, cy, cell, cell, v > 0 ? "f1" : "f2",
                std::round(strength * 100) / 100);
      }
      if (numbers) {
        to.text(cx + cell / 2, cy + cell / 2 + 4, number(v, 3), "middle",
                "small");
      }
    }
  }
  to.rect(x, y, cell * m.cols(), cell * m.rows(), "faint hair");
}

}  // namespace figures
