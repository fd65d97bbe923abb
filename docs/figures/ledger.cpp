/// What do the ledger's counterexamples look like?  Each is small enough to
/// check by hand; the numbers drawn are computed here from its definition.
#include <Eigen/Dense>
#include <cmath>
#include <string>
#include <vector>

#include "svg.hpp"

namespace {

using namespace figures;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr double cell = 44;

/// A matrix with its name above and its numbers inside.
void named(svg& to, double x, double y, const std::string& name,
           const MatrixXd& m) {
  to.text(x, y - 8, name);
  heat_map(to, x, y, cell, m, 2, true);
}

/// L of tokens with keys k and erase addresses r, a row each, without decay.
MatrixXd coupling(const MatrixXd& r, const MatrixXd& k) {
  MatrixXd L = MatrixXd::Zero(k.rows(), k.rows());
  for (Eigen::Index t = 0; t < k.rows(); ++t) {
    for (Eigen::Index s = 0; s < t; ++s) L(t, s) = r.row(t).dot(k.row(s));
  }
  return L;
}

MatrixXd inverse_of(const MatrixXd& L) {
  return (MatrixXd::Identity(L.rows(), L.cols()) + L).inverse();
}

/// WY-3: a value gate that varies along V at a chunk's first token.
void first_token(const made& to) {
  const MatrixXd e = (MatrixXd(2, 2) << 0, 1, 1, 1).finished();
  const MatrixXd k = MatrixXd::Ones(2, 1), L = coupling(k, k);
  const MatrixXd L0 = e.col(0).asDiagonal() * L, L1 = e.col(1).asDiagonal() * L;
  must(L0 == L1 && L0 == L, "the first token's gate enters no system");
  must(inverse_of(L0) == inverse_of(L1), "one inverse serves both columns");
  svg drawing(480, 320, "WY-3: one inverse although a gate varies along V");
  named(drawing, 20, 40, "gates e", e);
  drawing.text(20, 148, "token 1 varies along V", "start", "faint-label");
  drawing.text(20, 166, "(rows are tokens)", "start", "faint-label");
  named(drawing, 190, 40, "column 1: diag(e) L", L0);
  named(drawing, 190, 190, "column 2: diag(e) L", L1);
  drawing.arrow(290, 84, 350, 84);
  drawing.arrow(290, 234, 350, 234);
  named(drawing, 360, 40, "T", inverse_of(L0));
  named(drawing, 360, 190, "the same T", inverse_of(L1));
  drawing.text(20, 304, "Row 1 of L is empty: nothing comes before it.");
  to.drawing("ledger.wy_3", drawing.str());
}

/// WY-6: the columns of a mask differ, and their couplings do not.
void free_part(const made& to) {
  const MatrixXd E = (MatrixXd(2, 2) << 1, 1, 0, 1).finished();
  const MatrixXd k = (MatrixXd(2, 2) << 1, 0, 1, 1).finished();
  std::vector<MatrixXd> L;
  for (Eigen::Index j = 0; j < 2; ++j) {
    MatrixXd r = k;
    r.row(1).array() *= E.col(j).transpose().array();
    L.push_back(coupling(r, k));
  }
  must(E.col(0) != E.col(1), "the columns differ");
  must(L[0] == L[1], "the couplings agree");
  svg drawing(480, 320, "WY-6: columns that differ where no key looks");
  named(drawing, 20, 40, "mask of token 2", E);
  drawing.text(20, 148, "rows: key channels", "start", "faint-label");
  named(drawing, 20, 200, "keys (a row each)", k);
  named(drawing, 240, 40, "column 1: L", L[0]);
  named(drawing, 240, 200, "column 2: the same L", L[1]);
  drawing.text(20, 308, "Key 1 has nothing in channel 2.", "start", "label");
  to.drawing("ledger.wy_6", drawing.str());
}

/// RED-8: a mask does what no erase vector does.
void mask_and_vector(const made& to) {
  const MatrixXd start = MatrixXd::Ones(1, 2);
  const auto erased = [&](const MatrixXd& mask) -> MatrixXd {
    return start - (mask.array() * start.array()).matrix();
  };
  const MatrixXd mask = (MatrixXd(1, 2) << 1, 0).finished();
  const MatrixXd by_mask = erased(mask);
  must(by_mask(0, 0) == 0 && by_mask(0, 1) == 1, "the mask leaves (0, 1)");
  svg drawing(480, 210, "RED-8: one token erases with a mask, or a vector");
  named(drawing, 20, 70, "state before", start);
  drawing.arrow(130, 80, 230, 50);
  drawing.arrow(130, 104, 230, 134);
  named(drawing, 240, 30, "after the mask (1, 0)", by_mask);
  const MatrixXd by_vector = erased(MatrixXd::Constant(1, 2, 0.5));
  must(by_vector(0, 0) == by_vector(0, 1), "a vector leaves columns alike");
  named(drawing, 240, 126, "after the vector b = 1/2", by_vector);
  drawing.text(20, 200, "With K = 1 a vector erases alike in all columns.");
  to.drawing("ledger.red_8", drawing.str());
}

/// RED-3: what a scalar write gate can read, and a value-wise one does.
void write_gates(const made& to) {
  svg drawing(480, 330, "RED-3: outputs that write gates reach");
  const scale axis{0, 1.2, false, {0, 0.5, 1}, ""};
  scale x = axis, y = axis;
  x.title = "output, channel 1", y.title = "output, channel 2";
  const curve line{"scalar gate w in [0, 1]: (w, w)", {0, 1}, {0, 1}, 1, false};
  plot(drawing, 64, 34, 270, 200, x, y, {line});
  drawing.circle(64, 34 + 200 * (1 - axis.at(1)), 5, "f2");
  drawing.text(74, 34 + 200 * (1 - axis.at(1)) + 4, "value-wise gate (0, 1)");
  legend(drawing, 64, 306, {line});
  to.drawing("ledger.red_3", drawing.str());
}

/// STAB-7: two unit keys in turn, gates 0 and 1: the state grows, and so does
/// the gradient of the start state.
void both_ways(const made& to) {
  const auto step = [](int t) -> MatrixXd {
    const VectorXd k = t % 2 ? (VectorXd(2) << 0.8, 0.6).finished()
                             : (VectorXd(2) << 0.6, 0.8).finished();
    VectorXd r = VectorXd::Zero(2);
    r[t % 2] = k[t % 2];
    return MatrixXd::Identity(2, 2) - k * r.transpose();
  };
  const int T = 120;
  curve state{"state, from token 1 on", {0}, {1}, 1, false};
  curve gradient{"gradient, from the last token back", {0}, {1}, 2, true};
  VectorXd S = (VectorXd(2) << 1, -1).finished(), dS = S;
  const double start = S.norm();
  for (int t = 0; t < T; ++t) {
    S = step(t) * S;
    dS = step(T - 1 - t).transpose() * dS;
    state.x.push_back(t + 1), state.y.push_back(S.norm() / start);
    gradient.x.push_back(t + 1), gradient.y.push_back(dS.norm() / start);
  }
  must(state.y.back() > 1e3 && gradient.y.back() > 1e3,
       "both grow more than a thousandfold in 120 tokens");
  svg drawing(480, 360, "STAB-7: growth of a state and of a gradient");
  plot(drawing, 64, 34, 390, 230,
       {0, 120, false, {0, 30, 60, 90, 120}, "tokens walked"},
       {0.1, 1e4, true, {0.1, 1, 10, 100, 1e3, 1e4}, "length, from 1"},
       {state, gradient});
  legend(drawing, 84, 326, {state, gradient});
  to.drawing("ledger.stab_7", drawing.str());
}

/// WY-11: what is left of a state, against the decay since.
void restarts(const made& to) {
  const double decay = 0.75;
  const int T = static_cast<int>(std::ceil(-20 / std::log2(decay)));
  std::vector<curve> curves;
  const auto follow = [&](const std::string& name, double factor, int colour,
                          bool dashed) {
    curve c{name, {}, {}, colour, dashed};
    for (int t = 0; t <= T; ++t) {
      c.x.push_back(t), c.y.push_back(std::pow(std::fabs(factor), t));
    }
    curves.push_back(c);
    return c.y.back();
  };
  const double since = follow("the decay since", decay, 6, true);
  const double half = follow("left, β|k|² = 1/2", decay * 0.5, 3, false);
  const double most = follow("left, β|k|² = 9/4", decay * 1.25, 2, false);
  const double three = follow("left, β|k|² = 3", decay * 2, 4, false);
  must(since <= std::exp2(-20) && half < since, "the bound holds for beta 1/2");
  must(most > 0.04 && three > 1e8, "and fails from 9/4 on");
  svg drawing(480, 400, "WY-11: what a restart from zero leaves out");
  plot(drawing, 64, 34, 390, 230,
       {0, 50, false, {0, 10, 20, 30, 40, 49}, "tokens, each with decay 3/4"},
       {1e-12, 1e10, true, {1e-12, 1e-6, 1, 1e6}, "size, from 1"}, curves);
  legend(drawing, 84, 326, curves);
  to.drawing("ledger.wy_11", drawing.str());
}

}  // namespace

int main(int argc, char** argv) {
  const made to(argc, argv);
  first_token(to);
  free_part(to);
  mask_and_vector(to);
  write_gates(to);
  both_ways(to);
  restarts(to);
}
