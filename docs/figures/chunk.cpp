/// What does a chunk look like?  Masks, data flow and the order of work of the
/// chunked form and of the content gate, and the same coupling matrices for
/// real keys.
#include <carve/triangular.hpp>

#include "sequence.hpp"
#include "svg.hpp"

namespace {

using namespace figures;

/// L, T and P of sixteen tokens.
void matrices(const made& to) {
  const index_t C = 16, K = 16;
  std::mt19937_64 random(4);
  const Matrix k = unit_keys(C, K, 0.35, random);
  const Matrix q = unit_keys(C, K, 0.35, random);
  Matrix L = k * k.transpose(), P = q * k.transpose();
  for (index_t t = 0; t < C; ++t) {
    for (index_t s = 0; s < C; ++s) {
      const double ratio = std::exp(-0.12 * static_cast<double>(t - s));
      L(t, s) *= s < t ? ratio : 0;
      P(t, s) *= s <= t ? ratio : 0;
    }
  }
  const Matrix T = carve::inverse_by_substitution(L);
  svg drawing(480, 200, "The matrices L, T and P of a chunk of 16 tokens");
  const struct {
    const char *name, *below;
    const Matrix& m;
  } shown[] = {{"L", "s < t: how token t's", L},
               {"T", "unit lower triangular", T},
               {"P", "s ≤ t: what the query", P}};
  const char* const second[] = {"address meets key s", "the inverse of I + L",
                                "of t reads of token s"};
  for (int n = 0; n < 3; ++n) {
    const double x = 8 + 160 * n;
    drawing.text(x, 20, shown[n].name);
    heat_map(drawing, x, 28, 8, shown[n].m, 0.8);
    drawing.text(x, 174, shown[n].below, "start", "faint-label small");
    drawing.text(x, 189, second[n], "start", "faint-label small");
  }
  to.drawing("matrices", drawing.str());
}

/// Boxes of one chunk and what each needs: left what is known before the state,
/// right what has to wait for it.
void dataflow(const made& to) {
  svg drawing(480, 420,
              "What a chunk computes before and after its state is"
              " known");
  drawing.rect(4, 26, 226, 360, "wash");
  drawing.text(14, 20, "all chunks at once", "start", "faint-label");
  drawing.text(262, 20, "one chunk after the other", "start", "faint-label");
  const auto box = [&](double x, double y, const std::string& head,
                       const std::string& under) {
    drawing.rect(x, y, 190, 44, "box");
    drawing.text(x + 95, y + 18, head, "middle");
    drawing.text(x + 95, y + 35, under, "middle", "faint-label small");
  };
  box(22, 44, "G", "cumulated log decay, C×K");
  box(22, 112, "L, P", "couplings and scores, C×C");
  box(22, 180, "T = (I + L)⁻¹", "C×C, triangular");
  box(22, 248, "T(w∗v)", "C×V");
  box(22, 316, "W = T(r∗G)", "C×K");
  for (const double y : {88.0, 156.0, 224.0, 292.0}) {
    drawing.arrow(117, y, 117, y + 23);
  }
  box(262, 44, "S", "state, K×V");
  box(262, 180, "U = T(w∗v) − W S", "what is really written");
  box(262, 248, "O = (q∗G) S + P U", "outputs, C×V");
  box(262, 316, "S ← G S + (k∗G_C/G)ᵀ U", "the next chunk's state");
  drawing.arrow(357, 88, 357, 179);
  drawing.arrow(357, 224, 357, 247);
  drawing.arrow(212, 262, 261, 210);
  drawing.arrow(212, 330, 261, 220);
  drawing.path("M452,338 L470,338 L470,66 L453,66", "s1 dash");
  drawing.arrow(460, 66, 453, 66, "s1");
  drawing.arrow(357, 292, 357, 315);
  drawing.text(14, 406, "Every box is a product of matrices but T.", "start",
               "faint-label small");
  to.drawing("dataflow", drawing.str());
}

/// Four chunks over time: with gates from tokens, and with gates from content.
void schedule(const made& to) {
  svg drawing(480, 230, "Order of work with token gates and content gates");
  const auto lane = [&](double y, const std::string& name) {
    drawing.text(6, y, name, "start", "label");
  };
  const auto bar = [&](double x, double y, double w, const std::string& style,
                       const std::string& label) {
    drawing.rect(x, y, w, 20, style, 0.85);
    drawing.text(x + w / 2, y + 14, label, "middle", "small");
  };
  lane(18, "gates from tokens: T of all chunks first, then the walk");
  for (int c = 0; c < 4; ++c) {
    drawing.rect(6, 28 + 12 * c, 90, 10, "f1", 0.85);
  }
  drawing.text(51, 90, "4 × T", "middle", "faint-label small");
  for (int c = 0; c < 4; ++c) {
    bar(104 + 44 * c, 38, 40, "f3", "S" + std::to_string(c + 1));
  }
  lane(122, "gates from content: each window waits for the mean of the last");
  double x = 6;
  for (int c = 0; c < 4; ++c) {
    bar(x, 134, 66, "f1", "T" + std::to_string(c + 1));
    bar(x + 68, 134, 38, "f3", "S" + std::to_string(c + 1));
    if (c < 3) {
      drawing.path("M" + number(x + 96) + ",156 q 10,22 24,2", "s2");
      drawing.arrow(x + 116, 162, x + 121, 156, "s2");
      drawing.text(x + 100, 188, "m" + std::to_string(c + 1), "middle",
                   "small");
    }
    x += 118;
  }
  drawing.text(6, 216,
               "time runs to the right; blue: form and invert I + L;"
               " green: products with the state",
               "start", "faint-label small");
  to.drawing("schedule", drawing.str());
}

}  // namespace

int main(int argc, char** argv) {
  const figures::made to(argc, argv);
  matrices(to);
  dataflow(to);
  schedule(to);
}
