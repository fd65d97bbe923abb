/// @file
/// Do the counterexamples to refuted claims still refute them?  Numbers small
/// enough to check by hand; docs/ledger.md tells the claims.
#include <cmath>
#include <limits>
#include <vector>

#include "carve/content_gate.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"

namespace {

using carve::head;
using carve::index_t;

/// A head over numbers in row-major order; scale 1, zero start state.
struct example {
  index_t tokens, keys, values;
  std::vector<double> q, k, v;

  head<double> view() const {
    head<double> p;
    p.tokens = tokens, p.keys = keys, p.values = values;
    p.q = {q.data(), keys, 1};
    p.k = {k.data(), keys, 1};
    p.v = {v.data(), values, 1};
    return p;
  }
};

template <class Solver>
std::vector<double> outputs(const head<double>& p, const Solver& solver) {
  std::vector<double> o(p.tokens * p.values);
  solver.forward(p, {o.data(), p.values, 1}, {});
  return o;
}

}  // namespace

TEST_CASE("WY-3: a gate that varies along V, alone in its chunk") {
  const example x{1, 1, 2, {1}, {1}, {1, 1}};
  const std::vector<double> e{0, 1}, S0{1, 1};
  head<double> p = x.view();
  p.e = {e.data(), 2, 1};
  p.S0 = {S0.data(), 2, 1};
  REQUIRE(carve::wy_applies(p, 1).applies);
  // u = v - e * S0 = (1, 0), so S = (2, 1).
  const std::vector<double> expected{2, 1};
  CHECK(outputs(p, carve::chunked_solver<>{1}) == expected);
  CHECK(outputs(p, carve::recurrent_solver{}) == expected);
}

TEST_CASE("WY-3: a gate that varies along V at a chunk's first token") {
  const example x{2, 1, 2, {1, 1}, {1, 1}, {1, 1, 2, 2}};
  const std::vector<double> first{0, 1, 1, 1}, second{1, 1, 0, 1};
  head<double> p = x.view();
  p.e = {first.data(), 2, 1};
  REQUIRE(carve::wy_applies(p, 2).applies);
  const std::vector<double> expected{1, 1, 2, 2};
  CHECK(outputs(p, carve::chunked_solver<>{2}) == expected);
  CHECK(outputs(p, carve::recurrent_solver{}) == expected);

  // At the second token, which is coupled to the first, it does break it.
  p.e = {second.data(), 2, 1};
  CHECK(carve::wy_applies(p, 2).token == 1);
  CHECK_THROWS_AS(outputs(p, carve::chunked_solver<>{2}), carve::error);
  const std::vector<double> varied{1, 1, 3, 2};
  CHECK(outputs(p, carve::columnwise_solver{2}) == varied);
  CHECK(outputs(p, carve::recurrent_solver{}) == varied);
}

TEST_CASE("WY-3: a gate that varies along V with orthogonal keys") {
  const example x{2, 2, 2, {1, 1, 1, 1}, {1, 0, 0, 1}, {1, 1, 1, 1}};
  const std::vector<double> e{1, 1, 0, 1};
  head<double> p = x.view();
  p.e = {e.data(), 2, 1};
  REQUIRE(carve::wy_applies(p, 2).applies);
  CHECK(outputs(p, carve::chunked_solver<>{2}) ==
        outputs(p, carve::recurrent_solver{}));
}

TEST_CASE("WY-6: mask columns that differ where no earlier key sees it") {
  // L_21 of column j is E_2[0,j] * 1 * 1 + E_2[1,j] * 1 * 0 = 1 for both.
  const example x{2, 2, 2, {1, 0, 1, 0}, {1, 0, 1, 1}, {1, 2, 3, 4}};
  const std::vector<double> E{1, 1, 1, 1, 1, 1, 0, 1}, b{1, 1, 1, 0};
  head<double> masked = x.view(), gated = x.view();
  masked.mask = {E.data(), 4, 2, 1};
  gated.b = {b.data(), 2, 1};
  // From a zero start state the key gate (1, 0) does all that the mask does.
  const std::vector<double> expected{1, 2, 3, 4};
  CHECK(outputs(masked, carve::recurrent_solver{}) == expected);
  CHECK(outputs(masked, carve::columnwise_solver{2}) == expected);
  CHECK(outputs(gated, carve::chunked_solver<>{2}) == expected);
}

TEST_CASE("RED-2: doubling b alone is not doubling beta") {
  const example x{1, 1, 1, {1}, {1}, {1}};
  const std::vector<double> half{0.5}, one{1};
  head<double> gdn2 = x.view(), kda = x.view();
  gdn2.b = {one.data(), 1, 1}, gdn2.w = {half.data(), 1, 1};
  kda.b = kda.w = {one.data(), 1, 1};
  CHECK(outputs(gdn2, carve::recurrent_solver{}) == std::vector{0.5});
  CHECK(outputs(kda, carve::recurrent_solver{}) == std::vector{1.0});
}

TEST_CASE("RED-3: no scalar write gate does what a value-wise one does") {
  const example x{1, 1, 2, {1}, {1}, {1, 1}};
  const std::vector<double> logits{0}, b{0.5}, w{0, 1}, down{1, 1}, up{0};
  head<double> gdn2 = x.view();
  gdn2.b = {b.data(), 1, 1};
  gdn2.w = {w.data(), 2, 1};
  CHECK(outputs(gdn2, carve::recurrent_solver{}) ==
        (std::vector<double>{0, 1}));
  for (const double scalar : {0.0, 0.25, 1.0}) {
    head<double> p = x.view();
    p.b = {logits.data(), 1, 1};
    p.w = {&scalar, 1, 0};
    const carve::content_gate<double> gate{
        1, 1, {down.data(), 2, 1}, {up.data(), 1, 1}};
    std::vector<double> o(2);
    carve::content_forward(p, gate, carve::recurrent_solver{},
                           carve::rows<double>{o.data(), 2, 1},
                           carve::state_view<double>{});
    CHECK(o == (std::vector<double>{scalar, scalar}));
  }
}

TEST_CASE("SEG-3: a later infinity reaches earlier outputs of its chunk") {
  const example x{2,      1,      1,
                  {1, 1}, {1, 1}, {1, std::numeric_limits<double>::infinity()}};
  CHECK(outputs(x.view(), carve::recurrent_solver{})[0] == 1);
  CHECK(outputs(x.view(), carve::chunked_solver<>{1})[0] == 1);
  CHECK(std::isnan(outputs(x.view(), carve::chunked_solver<>{2})[0]));
}
