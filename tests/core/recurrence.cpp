// Is the definition the one that its comment says, is its way back the
// derivative, and is the tiled walk the same?
#include "carve/recurrence.hpp"

#include <concepts>
#include <cstring>
#include <random>

#include "carve/double_double.hpp"
#include "carve/dual.hpp"
#include "carve/multiprecision.hpp"
#include "carve/prime_field.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"
#include "random_head.hpp"

namespace {

using namespace carve::tests;
using carve::erase_order;
using carve::index_t;
using carve::rational;
using carve::readout;
using field = carve::prime_61;
using dual_field = carve::dual<field>;

template <class X>
std::vector<X> some(index_t n, auto&& draw) {
  std::vector<X> x;
  for (index_t i = 0; i < n; ++i) x.push_back(draw());
  return x;
}

template <class X>
bool same_bits(const std::vector<X>& x, const std::vector<X>& y) {
  return x.size() == y.size() &&
         std::memcmp(x.data(), y.data(), x.size() * sizeof(X)) == 0;
}

}  // namespace

TEST_CASE("two tokens by hand") {
  // K = V = 1: S1 = S0 a + k (w v - b k S0 a), and again.
  const head_shape s{2, 1, 1};
  const auto r = [](int p, int q) { return rational(p) / rational(q); };
  head_tensors<rational> x;
  x.q = {2, 1}, x.k = {1, 3}, x.v = {5, 7}, x.a = {r(1, 2), r(1, 3)};
  x.d = {1, 1}, x.b = {r(1, 4), r(1, 9)}, x.w = {1, 2}, x.S0 = {8};
  std::vector<rational> o(2), S(1);
  carve::definition_forward(head_of(x, s, readout::after),
                            rows_of<rational>(o, 1), state_of<rational>(S, s));
  // S~ = 4, u = 5 - 1 = 4, S1 = 8; S~ = 8/3, u = 14 - 8/9, S2 = 8/3 + 118/3
  REQUIRE(o[0] == rational(3 * 2 * 8));
  REQUIRE(S[0] == rational(42));
  REQUIRE(o[1] == rational(3 * 42));
}

TEMPLATE_TEST_CASE("the tiled walk is the definition where nothing rounds", "",
                   field, rational) {
  using X = TestType;
  const auto [along, step, n] = GENERATE(from_range(every_step()));
  const readout read = GENERATE(readout::after, readout::before);
  const head_shape s{std::same_as<X, field> ? 37 : 3, 3, 5, n};
  std::mt19937_64 random(7);
  const auto draw = [&] {
    if constexpr (std::same_as<X, field>) return field::uniform(random);
    return X(static_cast<int>(random() % 7) - 3) / X(4);
  };
  const auto x = fill<X>(s, along, draw, step);
  const auto dO = some<X>(s.T * s.V, draw), dS = some<X>(s.K * s.V, draw);
  auto p = head_of(x, s, read);
  p.erase_reads = step.erase_reads;
  REQUIRE(walk(p, s, along, dO, dS, carve::recurrent_solver{}, step) ==
          walk(p, s, along, dO, dS, carve::definition_solver{}, step));
}

TEMPLATE_TEST_CASE("the tiled walk is the definition in every bit", "", float,
                   double, carve::double_double) {
  using X = TestType;
  const auto [along, step, n] = GENERATE(from_range(every_step()));
  const readout read = GENERATE(readout::after, readout::before);
  // More columns than a tile holds; and so few that a sum over them has one
  // order only.
  const index_t V = GENERATE(70, 2);
  const head_shape s{37, 3, V, n};
  std::mt19937_64 bits(7);
  std::normal_distribution<double> normal;
  const auto draw = [&] { return X(normal(bits)) / X(3); };
  const auto x = fill<X>(s, along, draw, step);
  const auto dO = some<X>(s.T * V, draw), dS = some<X>(s.K * V, draw);
  auto p = head_of(x, s, read);
  p.erase_reads = step.erase_reads;
  const auto got = walk(p, s, along, dO, dS, carve::recurrent_solver{}, step);
  const auto expected =
      walk(p, s, along, dO, dS, carve::definition_solver{}, step);
  REQUIRE(same_bits(got.o, expected.o));
  REQUIRE(same_bits(got.S, expected.S));
  head_tensors<X>::for_each([&](auto m) {
    using T = head_tensors<X>;
    const bool over_columns = m == &T::q || m == &T::k || m == &T::a ||
                              m == &T::b || m == &T::r || m == &T::y;
    if (V > 2 && over_columns) return;
    REQUIRE(same_bits(got.gradients.*m, expected.gradients.*m));
  });
}

TEST_CASE("the definition's way back is its derivative by dual numbers") {
  const auto [along, step, n] = GENERATE(from_range(every_step()));
  const readout read = GENERATE(readout::after, readout::before);
  const head_shape s{9, 2, 3, n};
  std::mt19937_64 random(11);
  const auto draw = [&] { return field::uniform(random); };
  const auto x = fill<field>(s, along, draw, step);
  const auto direction = fill<field>(s, along, draw, step);
  std::vector<field> dO, dS;
  for (index_t i = 0; i < s.T * s.V; ++i) dO.push_back(draw());
  for (index_t i = 0; i < s.K * s.V; ++i) dS.push_back(draw());
  auto p = head_of(x, s, read);
  p.erase_reads = step.erase_reads;
  const auto r = walk(p, s, along, dO, dS, carve::definition_solver{}, step);

  field expected(0);
  head_tensors<dual_field> lifted;
  const auto take = [&](auto from, auto to, bool log) {
    const auto& at = x.*from;
    for (std::size_t i = 0; i < at.size(); ++i) {
      const field along_i = (direction.*from)[i];
      dual_field y(at[i]);
      // A decay's gradient is that of its natural log.
      y.derivative = log ? at[i] * along_i : along_i;
      (lifted.*to).push_back(y);
      expected += (r.gradients.*from)[i] * along_i;
    }
  };
  using F = head_tensors<field>;
  using D = head_tensors<dual_field>;
  take(&F::q, &D::q, false), take(&F::k, &D::k, false);
  take(&F::v, &D::v, false), take(&F::a, &D::a, true);
  take(&F::d, &D::d, true), take(&F::b, &D::b, false);
  take(&F::e, &D::e, false), take(&F::w, &D::w, false);
  take(&F::r, &D::r, false), take(&F::y, &D::y, false);
  take(&F::mask, &D::mask, false), take(&F::S0, &D::S0, false);

  std::vector<dual_field> o(static_cast<std::size_t>(s.T * s.V));
  std::vector<dual_field> S(static_cast<std::size_t>(s.K * s.V));
  auto moved = head_of(lifted, s, read);
  moved.erase_reads = step.erase_reads;
  carve::definition_forward(moved, rows_of<dual_field>(o, s.V),
                            state_of<dual_field>(S, s));
  field got(0);
  for (std::size_t i = 0; i < o.size(); ++i) got += o[i].derivative * dO[i];
  for (std::size_t i = 0; i < S.size(); ++i) got += S[i].derivative * dS[i];
  REQUIRE(got == expected);
}

TEST_CASE("a token of the general step by hand") {
  // K = 2, V = 1, two sub-steps that look up different states:
  // S~ = (2, 1) * (1/2, 1/3).
  const auto f = [](int p, int q) { return rational(p) / rational(q); };
  const head_shape s{1, 2, 1, 2};
  head_tensors<rational> x;
  x.S0 = {2, 1}, x.a = {f(1, 2), f(1, 3)}, x.q = {1, 10};
  x.k = {1, 2, 3, 4}, x.v = {5, 7}, x.w = {1, 1};
  x.r = {6, 3, 1, 0}, x.y = {1, 0, 0, 2};
  const auto end = [&](erase_order order) {
    auto p = head_of(x, s, readout::after);
    p.erase_reads = order;
    std::vector<rational> o(1), S(2);
    carve::definition_forward(p, rows_of<rational>(o, 1),
                              state_of<rational>(S, s));
    REQUIRE(o[0] == 3 * (S[0] + 10 * S[1]));
    return S;
  };
  // c = 6 + 1, then S = (1 + 5 - 7, 1/3 + 10); c = -1, then
  // S = (-1 + 21, 31/3 + 28 + 2).
  REQUIRE(end(erase_order::after_decay) ==
          std::vector<rational>{20, f(31, 3) + rational(30)});
  // c = 12 + 3, then S = (1 + 5 - 15, 31/3); c = -9, then
  // S = (-9 + 21, 31/3 + 28 + 18).
  REQUIRE(end(erase_order::before_decay) ==
          std::vector<rational>{12, f(31, 3) + rational(46)});
}

TEST_CASE("choices that do not fit together are refused") {
  const head_shape s{2, 2, 2};
  std::mt19937_64 random(5);
  const auto x = fill<field>(
      s, erase::key, [&] { return field::uniform(random); }, {true, true});
  const auto refused = [&](auto change, const std::string& why) {
    auto p = head_of(x, s, readout::after);
    change(p);
    REQUIRE_THROWS_WITH(carve::definition_forward(p, carve::rows<field>{}, {}),
                        why);
    REQUIRE_THROWS_WITH(carve::recurrent_forward(p, carve::rows<field>{}, {}),
                        why);
    REQUIRE_THROWS_WITH(carve::chunked_forward(p, 2, carve::rows<field>{}, {}),
                        why);
    REQUIRE_THROWS_WITH(
        carve::columnwise_forward(p, 2, carve::rows<field>{}, {}), why);
  };
  refused([](auto& p) { p.substeps = 0; },
          "substeps: expected at least 1 a token, got 0");
  refused([](auto& p) { p.b = p.r; },
          "r: expected no erase gate b beside a given erase address");
  refused(
      [](auto& p) {
        p.mask = {p.r.data, 0, 0, 0};
      },
      "r: expected no erase gate E beside a given erase address");
  refused([](auto& p) { p.erases = false; },
          "r: expected to be absent, as nothing erases");
  refused([](auto& p) { p.r = {}, p.erases = false; },
          "y: expected to be absent, as nothing erases");
}

TEST_CASE("a sequence of no tokens leaves the state as it was") {
  const head_shape s{0, 2, 3};
  std::mt19937_64 random(5);
  const auto x =
      fill<field>(s, erase::key, [&] { return field::uniform(random); });
  auto p = head_of(x, s, readout::after);
  std::vector<field> S(6);
  carve::definition_forward(p, carve::rows<field>{}, state_of<field>(S, s));
  REQUIRE(S == x.S0);
  std::fill(S.begin(), S.end(), field(0));
  carve::recurrent_forward(p, carve::rows<field>{}, state_of<field>(S, s));
  REQUIRE(S == x.S0);
}
