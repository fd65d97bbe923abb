/// @file
/// Do the counterexamples and witnesses about stability, memory and cost still
/// say what docs/ledger.md says of them?  Numbers to check by hand, exact over
/// the rationals.
#include <vector>

#include "carve/content_gate.hpp"
#include "carve/multiprecision.hpp"
#include "carve/segment.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"

namespace {

using carve::head;
using carve::index_t;
using carve::matrix;
using carve::rational;
using numbers = std::vector<rational>;

rational fraction(int p, int q) { return rational(p) / rational(q); }

/// Tokens that write nothing.
struct silent {
  index_t keys;
  numbers k, b, a;

  head<rational> view() const {
    head<rational> p;
    p.tokens = static_cast<index_t>(k.size()) / keys;
    p.keys = keys, p.values = 1;
    p.k = {k.data(), keys, 1};
    p.b = {b.data(), keys, 1};
    if (!a.empty()) p.a = {a.data(), keys, 1};
    return p;
  }
  /// The matrix that takes the start state to the end state.
  matrix<rational> map() const { return carve::segment_of(view()).A[0]; }
};

rational squared_length(const numbers& x) {
  rational sum = 0;
  for (const rational& y : x) sum += y * y;
  return sum;
}

/// Two tokens in turn, keys (3/5,4/5) and (4/5,3/5), gates (1,0) and (0,1).
silent in_turn(int periods) {
  silent h{2, {}, {}, {}};
  const numbers keys{fraction(3, 5), fraction(4, 5), fraction(4, 5),
                     fraction(3, 5)};
  const numbers gates{1, 0, 0, 1};
  for (int n = 0; n < periods; ++n) {
    h.k.insert(h.k.end(), keys.begin(), keys.end());
    h.b.insert(h.b.end(), gates.begin(), gates.end());
  }
  return h;
}

}  // namespace

TEST_CASE("STAB-1: a step that stretches by 2/sqrt(3)") {
  // k = (1,1,1)/sqrt(3) is not rational; k (b*k)^T is, and a key (1,1,1) with
  // the gate (1/3,0,0) makes the same step.
  const silent h{3, {1, 1, 1}, {fraction(1, 3), 0, 0}, {}};
  const matrix<rational> M = h.map();
  matrix<rational> x(3, 1), image(3, 1);
  x << 1, -1, -1;
  image << fraction(2, 3), fraction(-4, 3), fraction(-4, 3);
  REQUIRE(M * x == image);
  // From squared length 3 to 4.
  const matrix<rational> square = M.transpose() * M * x;
  REQUIRE(square == x * fraction(4, 3));
}

TEST_CASE("STAB-2, STAB-7: two steps in turn make a state grow for ever") {
  const matrix<rational> P = in_turn(1).map();
  const rational trace = P(0, 0) + P(1, 1);
  const rational determinant = P(0, 0) * P(1, 1) - P(0, 1) * P(1, 0);
  REQUIRE(trace == fraction(944, 625));
  REQUIRE(determinant == fraction(256, 625));
  // x^2 - trace x + determinant is negative at 1: an eigenvalue above 1.
  REQUIRE(1 - trace + determinant == fraction(-63, 625));
}

TEST_CASE("STAB-7: the gradient of the start state grows as well") {
  const silent h = in_turn(60);
  const numbers dS{1, -1};
  numbers start(2, rational(0));
  carve::head_gradients<rational> out;
  out.S0 = {start.data(), 1, 1};
  carve::recurrent_backward(h.view(), {{}, {dS.data(), 1, 1}}, out);
  REQUIRE(squared_length(start) > 1000000);
}

TEST_CASE("STAB-3: a channel that is never erased has no common bound") {
  // k = (c, sigma), b = (1,0): (1,0) tends to (0, -sigma/c).
  const rational c = fraction(5, 13), sigma = fraction(12, 13);
  silent h{2, {}, {}, {}};
  rational power = 1;
  for (int t = 0; t < 20; ++t) {
    h.k.insert(h.k.end(), {c, sigma});
    h.b.insert(h.b.end(), {rational(1), rational(0)});
    power *= sigma * sigma;
  }
  const matrix<rational> M = h.map();
  REQUIRE(M(0, 0) == power);
  REQUIRE(M(1, 0) == fraction(-12, 5) * (1 - power));
}

TEST_CASE("STAB-4: 7/8 a token is not decay enough, 84/97 is") {
  const numbers gate{fraction(1, 3), 0, 0};
  const auto stretched = [&](const rational& decay) {
    const silent h{3, {1, 1, 1}, gate, {decay, decay, decay}};
    matrix<rational> x(3, 1);
    x << 1, -1, -1;
    const matrix<rational> y = h.map() * x;
    return squared_length({y(0, 0), y(1, 0), y(2, 0)});
  };
  REQUIRE(stretched(fraction(7, 8)) == 4 * fraction(49, 64));
  REQUIRE(stretched(fraction(7, 8)) > 3);
  REQUIRE(stretched(fraction(84, 97)) <= 3);
}

TEST_CASE("CAP-4: a content gate leaves what no token-only gate leaves") {
  struct gate {
    rational value(const rational& x) const {
      return fraction(1, 2) + x / (2 * (1 + abs(x)));
    }
  };
  const auto end = [](int first, int up_weight) {
    const numbers one{1, 1}, v{first, 0}, x{0, 0}, down{1}, up{up_weight};
    head<rational> p;
    p.tokens = 2, p.keys = 1, p.values = 1;
    p.q = p.k = {one.data(), 1, 1};
    p.v = {v.data(), 1, 1};
    p.b = {x.data(), 1, 1};
    rational S = 0;
    carve::content_gate<rational> content;
    content.window = content.rank = 1;
    content.w_down = {down.data(), 1, 1};
    content.w_up = {up.data(), 1, 1};
    carve::content_forward(p, content, carve::recurrent_solver{},
                           carve::rows<rational>{},
                           carve::state_view<rational>{&S, 1, 1}, gate{});
    return S;
  };
  REQUIRE(end(1, 1) == fraction(1, 4));
  REQUIRE(end(-1, 1) == fraction(-3, 4));
  // Without a look at the content the two ends are opposite numbers.
  REQUIRE(end(1, 0) == fraction(1, 2));
  REQUIRE(end(-1, 0) == fraction(-1, 2));
}
