#include "program/locate.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "carve/compare.hpp"
#include "carve/error.hpp"

namespace carve::program {

namespace {

/// Beyond so many times the sound error a token is outside.
constexpr double outside_factor = 4;

/// The largest of the values within 8 tokens.
std::vector<double> smoothed(const error_map& m) {
  std::vector<double> y(m.error.size());
  for (index_t b = 0; b < m.B; ++b) {
    for (index_t h = 0; h < m.H; ++h) {
      for (index_t t = 0; t < m.T; ++t) {
        double most = 0;
        for (index_t s = std::max<index_t>(0, t - 8); s < std::min(m.T, t + 9);
             ++s) {
          most = std::max(most, m.at(b, s, h));
        }
        y[static_cast<std::size_t>((b * m.T + t) * m.H + h)] = most;
      }
    }
  }
  return y;
}

/// The factor between the two that leaves the least error, if it explains most
/// of it.
std::optional<double> factor_of(const std::vector<double>& x,
                                const std::vector<double_double>& exact) {
  double xy = 0, yy = 0, largest = 0;
  for (const double_double& e : exact) {
    largest = std::max(largest, std::fabs(static_cast<double>(e)));
  }
  if (largest == 0) return {};
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double y = static_cast<double>(exact[i]) / largest;
    if (!std::isfinite(x[i])) return {};
    xy += x[i] / largest * y, yy += y * y;
  }
  const double c = xy / yy;
  double before = 0, after = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double y = static_cast<double>(exact[i]) / largest;
    before += std::pow(x[i] / largest - y, 2);
    after += std::pow(x[i] / largest - c * y, 2);
  }
  // A twentieth of the error is left, or less.
  return after <= before / 400 ? std::optional(c) : std::nullopt;
}

/// The period of tokens, of which there are at least three.
std::optional<index_t> period_of(std::vector<index_t> t, index_t tokens) {
  std::sort(t.begin(), t.end());
  t.erase(std::unique(t.begin(), t.end()), t.end());
  if (t.size() < 3) return {};
  const index_t step = t[1] - t[0];
  if (step < 2) return {};
  for (std::size_t i = 1; i < t.size(); ++i) {
    if (t[i] - t[i - 1] != step) return {};
  }
  // It goes on to the ends.
  if (t.front() >= step || t.back() + step < tokens) return {};
  return step;
}

/// Row `r`, of which a token has n.
std::string row_text(index_t r, index_t n) {
  return n == 1 ? carve::text("token ", r)
                : carve::text("token ", r / n, " sub-step ", r % n);
}

/// Rows `first` to `last`, as tokens where they are whole ones.
std::string rows_text(index_t first, index_t last, index_t n) {
  if (first % n != 0 || last % n != n - 1) {
    return row_text(first, n) +
           (first == last ? "" : " to " + row_text(last, n));
  }
  first /= n, last /= n;
  return first == last ? carve::text("token ", first)
                       : carve::text("tokens ", first, " to ", last);
}

std::string period_text(index_t period, index_t phase, index_t n) {
  if (period == n) return carve::text("sub-step ", phase, " of every token");
  if (n == 1 || period % n != 0) {
    return carve::text("every ", period, n == 1 ? " tokens" : " sub-steps",
                       ", at ", phase, " modulo ", period);
  }
  return carve::text("every ", period / n, " tokens, at ", phase / n,
                     " modulo ", period / n, ", sub-step ", phase % n);
}

std::string number_text(double x) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%.3g", x);
  return buffer;
}

}  // namespace

error_map map_errors(const tensor_shape& shape, index_t rows,
                     const std::vector<double>& values,
                     const std::vector<double_double>& exact) {
  error_map m;
  m.B = 1, m.T = 1, m.H = 1;
  index_t inner = static_cast<index_t>(values.size());
  if (rows > 0 && shape.size() >= 3) {
    m.B = shape[0], m.T = shape[1], m.H = shape[2], m.substeps = rows;
  } else if (rows == 0 && shape.size() == 4) {
    m.B = shape[0], m.H = shape[1];
  } else if (rows == 0 && !shape.empty()) {
    m.H = shape[0];
  }
  inner /= std::max<index_t>(1, m.B * m.T * m.H);
  m.error.resize(static_cast<std::size_t>(m.B * m.T * m.H));
  std::vector<double> part(static_cast<std::size_t>(inner));
  for (std::size_t i = 0; i < m.error.size(); ++i) {
    bool finite = true;
    for (std::size_t j = 0; j < part.size(); ++j) {
      const std::size_t at = i * part.size() + j;
      part[j] = static_cast<double>(double_double(values[at]) - exact[at]);
      finite = finite && std::isfinite(part[j]);
    }
    m.error[i] = finite ? root_mean_square(part)
                        : std::numeric_limits<double>::infinity();
  }
  return m;
}

location locate(const error_map& actual, const error_map& sound, double floor,
                const std::vector<double>& values,
                const std::vector<double_double>& exact) {
  location l;
  const std::vector<double> allowed = smoothed(sound);
  std::vector<index_t> tokens;
  index_t clean_heads = 0;
  double start = 0, end = 0;
  for (index_t b = 0; b < actual.B; ++b) {
    for (index_t h = 0; h < actual.H; ++h) {
      bool clean = true, open = false;
      for (index_t t = 0; t < actual.T; ++t) {
        const double unit =
            std::max(floor, allowed[static_cast<std::size_t>(
                                (b * actual.T + t) * actual.H + h)]);
        const double ratio = unit > 0 ? actual.at(b, t, h) / unit
                             : actual.at(b, t, h) == 0
                                 ? 0
                                 : std::numeric_limits<double>::infinity();
        if (t < actual.T / 4) start = std::max(start, ratio);
        if (t >= actual.T - actual.T / 4) end = std::max(end, ratio);
        if (!(ratio > outside_factor)) {
          open = false;
          continue;
        }
        clean = false;
        tokens.push_back(t);
        if (open) {
          l.outside.back().last = t;
        } else {
          l.outside.push_back({b, h, t, t});
        }
        open = true;
      }
      clean_heads += clean ? 1 : 0;
    }
  }
  l.everywhere = clean_heads == 0;
  l.period = period_of(tokens, actual.T);
  if (l.period) l.phase = *std::min_element(tokens.begin(), tokens.end());
  l.factor = factor_of(values, exact);
  if (start > 0 && std::isfinite(start) && std::isfinite(end) &&
      end > 10 * start && !tokens.empty()) {
    l.growth = end / start;
  }
  return l;
}

std::string location::text(const error_map& of) const {
  std::string s;
  const auto part = [&s](const std::string& p) {
    s += (s.empty() ? "" : "; ") + p;
  };
  if (factor) part("it is " + number_text(*factor) + " times the exact result");
  if (outside.empty()) {
    if (s.empty()) s = "spread thinly: no token is outside by itself";
    return s;
  }
  if (period) part(period_text(*period, phase, of.substeps));
  // The hull of each head: first and last token outside.
  struct hull {
    index_t b, h, first, last, count;
  };
  std::vector<hull> hulls;
  for (const wrong_tokens& w : outside) {
    const index_t n = w.last - w.first + 1;
    if (!hulls.empty() && hulls.back().b == w.b && hulls.back().h == w.h) {
      hulls.back().last = w.last, hulls.back().count += n;
    } else {
      hulls.push_back({w.b, w.h, w.first, w.last, n});
    }
  }
  const auto range = [&of](const hull& x) {
    if (of.T == 1) return std::string();
    return ", " + rows_text(x.first, x.last, of.substeps) +
           (x.count < x.last - x.first + 1 ? " in part" : "");
  };
  const bool alike =
      std::all_of(hulls.begin(), hulls.end(), [&](const hull& x) {
        return x.first == hulls[0].first && x.last == hulls[0].last;
      });
  const auto name = [&of](const hull& x) {
    return (of.B > 1 ? carve::text("entry ", x.b, " ") : std::string()) +
           carve::text("head ", x.h);
  };
  if (everywhere) {
    hull all = hulls[0];
    for (const hull& x : hulls) {
      all.first = std::min(all.first, x.first);
      all.last = std::max(all.last, x.last);
      all.count = std::min(all.count, x.count);
    }
    part((of.B * of.H == 1 ? std::string("the only head")
                           : std::string("all heads")) +
         range(all));
  } else if (alike && hulls.size() > 1 && of.B == 1) {
    std::string heads = "heads";
    for (std::size_t i = 0; i < hulls.size() && i < 8; ++i) {
      heads += carve::text(i == 0 ? " " : ", ", hulls[i].h);
    }
    part(heads + (hulls.size() > 8 ? ", ..." : "") + range(hulls[0]) +
         "; all else clean");
  } else {
    std::string list;
    for (std::size_t i = 0; i < hulls.size() && i < 4; ++i) {
      list += (i == 0 ? "" : "; ") + name(hulls[i]) + range(hulls[i]);
    }
    part(list +
         (hulls.size() > 4
              ? carve::text("; and ", hulls.size() - 4, " more heads")
              : std::string()) +
         "; all else clean");
  }
  if (growth) part("grows along T by " + number_text(*growth));
  return s;
}

std::string heat_map(const error_map& m, const std::string& title) {
  // At most 256 columns; each shows the largest error of its tokens.
  const index_t step = (m.T + 255) / 256, columns = (m.T + step - 1) / step;
  const index_t rows = m.B * m.H;
  std::vector<double> cell(static_cast<std::size_t>(rows * columns));
  double least = std::numeric_limits<double>::infinity(), most = -least;
  for (index_t r = 0; r < rows; ++r) {
    for (index_t c = 0; c < columns; ++c) {
      double x = 0;
      for (index_t t = c * step; t < std::min(m.T, (c + 1) * step); ++t) {
        x = std::max(x, m.at(r / m.H, t, r % m.H));
      }
      const double y = std::log10(x);
      cell[static_cast<std::size_t>(r * columns + c)] = y;
      if (std::isfinite(y))
        least = std::min(least, y), most = std::max(most, y);
    }
  }
  const index_t width = 4, height = 12;
  std::string escaped;
  for (const char c : title) {
    escaped += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
  }
  std::string s = carve::text(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"",
      columns * width + 80, "\" height=\"", rows * height + 50,
      "\" font-family=\"sans-serif\" font-size=\"10\">\n<text x=\"70\" "
      "y=\"14\">",
      escaped, "</text>\n");
  for (index_t r = 0; r < rows; ++r) {
    s += carve::text("<text x=\"4\" y=\"", 30 + r * height, "\">",
                     m.B > 1 ? carve::text("b", r / m.H, " ") : std::string(),
                     "head ", r % m.H, "</text>\n");
    for (index_t c = 0; c < columns; ++c) {
      const double y = cell[static_cast<std::size_t>(r * columns + c)];
      const double f = !std::isfinite(y) ? 0
                       : most > least    ? (y - least) / (most - least)
                                         : 1;
      // White to red; black is not finite; zero is white.
      const int other = static_cast<int>(255 * (1 - f));
      const std::string colour =
          y == std::numeric_limits<double>::infinity() || std::isnan(y)
              ? std::string("#000")
              : carve::text("rgb(255,", other, ",", other, ")");
      s += carve::text("<rect x=\"", 70 + c * width, "\" y=\"", 21 + r * height,
                       "\" width=\"", width, "\" height=\"", height,
                       "\" fill=\"", colour, "\"/>\n");
    }
  }
  return s + carve::text("<text x=\"70\" y=\"", rows * height + 40,
                         "\">token 0 to ", m.T / m.substeps - 1,
                         "; RMS error 1e",
                         std::isfinite(least) ? number_text(least) : "-inf",
                         " (white) to 1e",
                         std::isfinite(most) ? number_text(most) : "-inf",
                         " (red), not finite (black)</text>\n</svg>\n");
}

}  // namespace carve::program
