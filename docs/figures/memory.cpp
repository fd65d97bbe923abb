/// How do states remember, forget and grow?  The drawings of the chapters on
/// the delta rule, decay, the gates and stability.
#include <carve/family.hpp>
#include <carve/recurrence.hpp>

#include "sequence.hpp"
#include "svg.hpp"

namespace {

using namespace figures;

/// State after the tokens of `s`.
Matrix final_state(const sequence& s) {
  Matrix decay, S(s.k.cols(), s.v.cols());
  carve::definition_forward<double>(s.head(decay), carve::rows<double>{},
                                    {S.data(), S.cols(), 1});
  return S;
}

/// A sequence of tokens `[from, from + n)`.
sequence part(const sequence& s, index_t from, index_t n, const Matrix& S0) {
  const auto rows = [&](const Matrix& m) -> Matrix {
    return m.size() ? Matrix(m.middleRows(from, n)) : Matrix();
  };
  return {rows(s.q), rows(s.k), rows(s.v), rows(s.g), rows(s.b),
          rows(s.e), rows(s.w), S0,        s.erases};
}

/// Recall error against the number of stored pairs: adding against the delta
/// rule, independent keys and correlated ones.
void recall(const made& to) {
  const index_t K = 32, V = 32;
  std::mt19937_64 random(1);
  std::vector<curve> curves;
  std::vector<std::vector<std::string>> rows{
      {"pairs stored", "adding", "delta rule", "adding, correlated",
       "delta, correlated"}};
  const std::vector<index_t> counts{1, 2, 4, 8, 16, 24, 32, 48, 64};
  for (const index_t n : counts) rows.push_back({std::to_string(n)});
  for (const double rho : {0.0, 0.5}) {
    for (const bool erases : {false, true}) {
      curve c{std::string(erases ? "delta rule" : "adding") +
                  (rho > 0 ? ", correlated keys" : ""),
              {},
              {},
              erases ? 1 : 2,
              rho > 0,
              true};
      for (std::size_t i = 0; i < counts.size(); ++i) {
        double sum = 0;
        const int trials = 20;
        for (int trial = 0; trial < trials; ++trial) {
          sequence s;
          s.k = unit_keys(counts[i], K, rho, random);
          s.v = normal(counts[i], V, random);
          s.erases = erases;
          const Matrix found = s.k * final_state(s);
          sum += (found - s.v).squaredNorm() / s.v.squaredNorm();
        }
        c.x.push_back(static_cast<double>(counts[i]));
        c.y.push_back(std::sqrt(sum / trials));
        rows[i + 1].push_back(places(c.y.back(), 2));
      }
      curves.push_back(c);
    }
  }
  svg drawing(480, 380, "Relative error of recall against stored pairs");
  plot(drawing, 60, 34, 400, 230,
       {0, 64, false, {0, 16, 32, 48, 64}, "pairs stored (K = V = 32)"},
       {0, 4.5, false, {0, 1, 2, 3, 4}, "relative error of recall"}, curves);
  legend(drawing, 80, 325, {curves[0], curves[1]});
  legend(drawing, 230, 325, {curves[2], curves[3]});
  to.drawing("recall", drawing.str());
  to.value("recall.table", table(rows));
  const double adding = curves[2].y.back(), delta = curves[3].y.back();
  must(adding > 2 * delta, "with correlated keys adding is the worse by far");
  to.value("recall.adding", number(adding, 2));
}

/// What I - beta k k^T does to a circle of vectors.
void reflection(const made& to) {
  svg drawing(480, 210, "A vector under I - beta k k^T for five beta");
  const double pi = std::acos(-1.0), tilt = 65 * pi / 180;
  const double betas[] = {0, 0.5, 1, 1.5, 2};
  for (int n = 0; n < 5; ++n) {
    const double cx = 52 + 94 * n, cy = 92, r = 40, beta = betas[n];
    const double kx = std::cos(tilt), ky = std::sin(tilt);
    std::ostringstream circle, image;
    for (int i = 0; i <= 72; ++i) {
      const double x = std::cos(i * pi / 36), y = std::sin(i * pi / 36);
      const double along = kx * x + ky * y;
      circle << (i ? "L" : "M") << places(cx + r * x, 1) << ","
             << places(cy - r * y, 1);
      image << (i ? "L" : "M") << places(cx + r * (x - beta * along * kx), 1)
            << "," << places(cy - r * (y - beta * along * ky), 1);
    }
    drawing.path(circle.str(), "faint hair");
    drawing.path(image.str(), "s1");
    drawing.arrow(cx, cy, cx + 52 * kx, cy - 52 * ky, "faint thin");
    const double x = 0.95, y = 0.31, along = kx * x + ky * y;
    drawing.arrow(cx, cy, cx + r * (x - beta * along * kx),
                  cy - r * (y - beta * along * ky), "s2");
    if (n == 0) drawing.text(cx + 56 * kx, cy - 54 * ky, "k");
    drawing.text(cx, 165, "β = " + number(beta), "middle");
    drawing.text(cx, 183, number(1 - beta) + " along k", "middle",
                 "faint-label small");
  }
  to.drawing("reflection", drawing.str());
}

/// How much of a value is left n tokens later.
void half_life(const made& to) {
  std::vector<std::vector<std::string>> rows{{"log decay g", "decay exp(g)",
                                              "half-life, tokens", "1e-3 after",
                                              "2^-8 after"}};
  for (const double g : {-1e-3, -1e-2, -0.05, -0.1, -0.5, -1.0, -5.0}) {
    const auto after = [&](double left) {
      return places(std::ceil(std::log(left) / g - 1e-9), 0);
    };
    rows.push_back({number(g), places(std::exp(g), 4),
                    number(std::log(0.5) / g), after(1e-3), after(1.0 / 256)});
  }
  to.value("half_life.table", table(rows));
  to.value("half_life.base", number(1 / std::log(2.0)));
}

/// The family as a figure: rows are models, columns the three gates, each
/// drawn as the axis along which it varies.
void family_figure(const made& to) {
  const double row = 30, top = 44;
  const double height = top + row * static_cast<double>(carve::families.size());
  svg drawing(480, height + 46, "Which gate varies along which axis");
  const char* const heads[] = {"decay", "erase", "write"};
  for (int c = 0; c < 3; ++c) {
    drawing.text(232 + 92 * c, 24, heads[c], "middle", "label");
  }
  double y = top;
  for (const carve::family_info& f : carve::families) {
    drawing.line(6, y - 6, 474, y - 6, "faint hair");
    drawing.text(8, y + 12, std::string(f.title));
    const carve::axis axes[] = {f.decay, f.erase, f.write};
    for (int c = 0; c < 3; ++c) {
      // A state of 4 x 4 cells: shaded by the gate that meets it.
      const double x0 = 221 + 92 * c, cell = 5.5;
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
          const double x = x0 + cell * j, yy = y - 3 + cell * i;
          double shade = 0;
          switch (axes[c]) {
            case carve::axis::none:
              break;
            case carve::axis::head:
              shade = 0.55;
              break;
            case carve::axis::key:
              shade = 0.2 + 0.26 * i;
              break;
            case carve::axis::value:
              shade = 0.2 + 0.26 * j;
              break;
            case carve::axis::mask:
              shade = 0.2 + 0.2 * ((7 * i + 5 * j) % 5);
          }
          if (shade > 0) {
            drawing.rect(x, yy, cell, cell, "f" + std::to_string(c + 1),
                         std::min(1.0, shade));
          }
          drawing.rect(x, yy, cell, cell, "faint hair");
        }
      }
      const bool tied = f.tied && c > 0;
      if (axes[c] == carve::axis::none) {
        drawing.text(x0 + 30, y + 12,
                     c != 1       ? "1"
                     : f.erases() ? "given"
                                  : "none",
                     "start", "faint-label small");
      } else if (tied) {
        drawing.text(x0 + 30, y + 12, "β", "start", "small");
      }
    }
    y += row;
  }
  drawing.text(8, y + 14,
               "Rows of a square: key channels; columns: value"
               " channels.",
               "start", "faint-label small");
  drawing.text(8, y + 30,
               "One shade: one number a head. β: erase and write"
               " are one number.",
               "start", "faint-label small");
  to.drawing("family", drawing.str());
}

/// One state under the same erase strength along either axis.
void two_axes(const made& to) {
  const index_t K = 8, V = 8;
  std::mt19937_64 random(3);
  sequence s;
  s.S0 = normal(K, V, random);
  s.k = unit_keys(1, K, 0, random);
  s.v = Matrix::Zero(1, V);
  const Matrix half = (Matrix(1, 8) << 1, 1, 1, 1, 0, 0, 0, 0).finished();
  sequence key = s, value = s, all = s;
  key.b = half;
  value.e = half;
  const Matrix start = s.S0;
  svg drawing(480, 330, "One state and what three erase gates take from it");
  const struct {
    const char* name;
    Matrix taken;
  } shown[] = {{"the state", start},
               {"taken, gate 1", start - final_state(all)},
               {"taken, key axis", start - final_state(key)},
               {"taken, value axis", start - final_state(value)}};
  const double most = start.cwiseAbs().maxCoeff();
  for (int n = 0; n < 4; ++n) {
    const double x = 40 + 220 * (n % 2), y = 30 + 150 * (n / 2);
    drawing.text(x, y - 8, shown[n].name);
    heat_map(drawing, x, y, 14, shown[n].taken, n ? most / 2 : most);
  }
  drawing.text(28, 86, "key", "end", "faint-label small");
  drawing.text(96, 156, "value", "middle", "faint-label small");
  to.drawing("two_axes", drawing.str());
  // What the value axis leaves alone is untouched to the last bit.
  must((shown[3].taken.rightCols(4).array() == 0).all(),
       "value channels with gate 0 keep everything");
  must((shown[2].taken.array() != 0).all(),
       "a key-axis gate changes every element that the key touches");
}

/// Growth of a state under adversarial and under random gates.
void growth(const made& to) {
  const index_t T = 120;
  const auto alternating = [&](index_t K) {
    sequence s;
    s.k = Matrix::Zero(T, K), s.v = Matrix::Zero(T, 1);
    s.b = Matrix::Zero(T, K);
    for (index_t t = 0; t < T; ++t) {
      if (K == 2) {
        s.k.row(t) << (t % 2 ? 0.8 : 0.6), (t % 2 ? 0.6 : 0.8);
        s.b(t, t % 2) = 1;
      } else {
        // Rows of three keys, gates in rotation; from the ledger, STAB-2.
        const double keys[3][3] = {
            {569, -501, 652}, {-652, -569, 501}, {-501, 652, 569}};
        const int gate[3] = {1, 2, 0};
        for (int i = 0; i < 3; ++i) s.k(t, i) = keys[t % 3][i];
        s.k.row(t).normalize();
        s.b(t, gate[t % 3]) = 1;
      }
    }
    return s;
  };
  std::mt19937_64 random(5);
  std::vector<curve> curves;
  const auto follow = [&](const std::string& name, const sequence& whole,
                          int colour, bool dashed) {
    curve c{name, {}, {}, colour, dashed};
    Matrix S = whole.S0;
    const double start = S.norm();
    for (index_t t = 0; t <= T; ++t) {
      c.x.push_back(static_cast<double>(t));
      c.y.push_back(S.norm() / start);
      if (t < T) S = final_state(part(whole, t, 1, S));
    }
    curves.push_back(c);
    return c.y.back();
  };
  sequence two = alternating(2), three = alternating(3);
  two.S0 = (Matrix(2, 1) << 1, -1).finished();
  // The direction that grows: follow it for a while first.
  three.S0 = (Matrix(3, 1) << 1, -1, 0.5).finished();
  three.S0 = final_state(three);
  const double grown3 = follow("key axis, 3 keys in turn", three, 2, false);
  const double grown2 = follow("key axis, 2 keys in turn", two, 1, false);
  sequence decayed = three;
  decayed.g = Matrix::Constant(T, 1, std::log(std::sqrt(0.75)));
  const double held = follow("the same 3, decay √3/2", decayed, 2, true);
  sequence value = three;
  value.b = Matrix();
  value.e = Matrix::Constant(T, 1, 1.0);
  follow("value axis, same keys", value, 3, false);
  sequence drawn;
  drawn.k = unit_keys(T, 3, 0, random), drawn.v = Matrix::Zero(T, 1);
  drawn.b = uniform(T, 3, 0, 1, random);
  drawn.S0 = normal(3, 1, random);
  follow("key axis, random", drawn, 4, true);
  must(grown2 > 1e3 && grown3 > 1e6, "adversarial gates let the state grow");
  must(held <= 1, "a decay of sqrt(3)/2 holds it");
  svg drawing(480, 430, "Norm of a state under key-axis and value-axis erase");
  plot(drawing, 64, 34, 396, 250,
       {0, 120, false, {0, 30, 60, 90, 120}, "tokens"},
       {1e-8, 1e8, true, {1e-8, 1e-4, 1, 1e4, 1e8}, "norm, from 1"}, curves);
  legend(drawing, 84, 345, curves);
  to.drawing("growth", drawing.str());
  to.value("growth.two", places(grown2 / 1e3, 1) + " thousand");
  to.value("growth.three", places(grown3 / 1e6, 0) + " million");
  to.value("growth.tokens", std::to_string(T));
}

}  // namespace

int main(int argc, char** argv) {
  const figures::made to(argc, argv);
  recall(to);
  reflection(to);
  half_life(to);
  family_figure(to);
  two_axes(to);
  growth(to);
}
