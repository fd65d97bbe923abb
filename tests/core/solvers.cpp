// Do the chunked and the column-by-column form equal the recurrence, forward
// and backward, over a field where nothing rounds?
#include <concepts>
#include <map>
#include <random>
#include <utility>

#include "carve/content_gate.hpp"
#include "carve/multiprecision.hpp"
#include "carve/prime_field.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"
#include "random_head.hpp"

namespace {

using namespace carve::tests;
using carve::chunked_solver;
using carve::columnwise_solver;
using carve::index_t;
using carve::readout;
using carve::recurrent_solver;
using field = carve::prime_61;

template <class X>
struct random_case {
  head_shape shape;
  erase along;
  given step;
  head_tensors<X> x;
  std::vector<X> dO, dS;
  std::mt19937_64 random{20261122};

  random_case(head_shape s, erase gate, given of_step = {})
      : shape(s), along(gate), step(of_step) {
    const auto draw = [this] {
      if constexpr (std::same_as<X, field>) return field::uniform(random);
      return X(static_cast<int>(random() % 7) - 3) / X(4);
    };
    x = fill<X>(s, gate, draw, step);
    for (index_t i = 0; i < s.T * s.V; ++i) dO.push_back(draw());
    for (index_t i = 0; i < s.K * s.V; ++i) dS.push_back(draw());
  }

  template <class Solver>
  walk_result<X> run(readout read, const Solver& solver) const {
    auto p = head_of(x, shape, read);
    p.erase_reads = step.erase_reads;
    return walk(p, shape, along, dO, dS, solver, step);
  }
};

using fixture = random_case<field>;

// An activation that any ring has.
struct square {
  template <class T>
  T value(const T& x) const {
    return x * x;
  }
  template <class T>
  T derivative(const T& x, const T&) const {
    return x + x;
  }
};

}  // namespace

TEST_CASE("the chunked form equals the recurrence for erase on the key axis") {
  const fixture f({37, 3, 4}, erase::key);
  for (const readout read : {readout::after, readout::before}) {
    const auto expected = f.run(read, recurrent_solver{});
    for (const index_t C : {1, 2, 5, 16, 17, 37, 64}) {
      CAPTURE(C);
      REQUIRE(f.run(read, chunked_solver<>{C, {}}) == expected);
    }
  }
}

TEST_CASE("the chunked form equals the recurrence when nothing is erased") {
  const fixture f({19, 2, 3}, erase::none);
  for (const readout read : {readout::after, readout::before}) {
    REQUIRE(f.run(read, chunked_solver<>{8, {}}) ==
            f.run(read, recurrent_solver{}));
  }
}

TEST_CASE("the column-by-column form equals the recurrence for every gate") {
  const erase along = GENERATE(erase::key, erase::value, erase::mask);
  const fixture f({23, 3, 4}, along);
  for (const readout read : {readout::after, readout::before}) {
    const auto expected = f.run(read, recurrent_solver{});
    for (const index_t C : {1, 4, 23, 32}) {
      CAPTURE(C);
      REQUIRE(f.run(read, columnwise_solver{C}) == expected);
    }
  }
}

TEMPLATE_TEST_CASE("the general step is the same in chunks and columns", "",
                   field, carve::rational) {
  using X = TestType;
  const auto [along, step, n] = GENERATE(from_range(every_step()));
  const readout read = GENERATE(readout::after, readout::before);
  const bool value_decay = GENERATE(true, false);
  const index_t T = std::same_as<X, field> ? 21 : 3;
  random_case<X> f({T, 3, 4, n}, along, step);
  if (!value_decay) f.x.d.clear();
  auto expected = f.run(read, carve::definition_solver{});
  if (!value_decay) expected.gradients.d = f.x.d;
  const bool wy = along == erase::key || along == erase::none;
  const bool refused = value_decay &&
                       step.erase_reads == carve::erase_order::before_decay &&
                       wy && along != erase::none;
  for (index_t C = 1; C <= T + 1; C += C < 4 ? 1 : 5) {
    CAPTURE(C, along, step.r, step.y, step.erase_reads, n, value_decay);
    auto got = f.run(read, columnwise_solver{C});
    if (!value_decay) got.gradients.d = f.x.d;
    REQUIRE(got == expected);
    if (!wy || refused) continue;
    got = f.run(read, chunked_solver<>{C, {}});
    if (!value_decay) got.gradients.d = f.x.d;
    REQUIRE(got == expected);
  }
  if (refused) {
    REQUIRE_THROWS_WITH(
        f.run(read, chunked_solver<>{4, {}}),
        "the WY form does not apply: the erase looks before a value-axis "
        "decay: each value column has a triangular system of its own");
  }
}

TEST_CASE(
    "the chunked form takes a value gate that is constant where coupled") {
  fixture f({12, 3, 4}, erase::value);
  const index_t C = 4;
  for (index_t t = 0; t < f.shape.T; ++t) {
    if (t % C == 0) continue;  // the first token of a chunk is coupled to none
    for (index_t j = 1; j < f.shape.V; ++j) {
      f.x.e[t * f.shape.V + j] = f.x.e[t * f.shape.V];
    }
  }
  REQUIRE(f.run(readout::after, chunked_solver<>{C, {}}) ==
          f.run(readout::after, recurrent_solver{}));
}

TEST_CASE("a mask with equal columns is a key-axis gate") {
  fixture f({9, 3, 4}, erase::mask);
  for (std::size_t i = 0; i < f.x.mask.size(); ++i) {
    f.x.mask[i] = f.x.mask[i / 4 * 4];
  }
  const auto p = head_of(f.x, f.shape, readout::after);
  std::vector<field> o1(9 * 4), o2 = o1;
  carve::recurrent_forward(p, rows_of<field>(o1, 4), {});
  carve::chunked_forward(p, 4, rows_of<field>(o2, 4), {});
  REQUIRE(o1 == o2);
}

TEST_CASE("a gate that varies over value channels is refused with its token") {
  const fixture f({6, 2, 3}, erase::value);
  const auto p = head_of(f.x, f.shape, readout::after);
  const carve::wy_verdict verdict = carve::wy_applies(p, 4);
  REQUIRE_FALSE(verdict.applies);
  REQUIRE(verdict.token == 1);
  REQUIRE_THROWS_AS(carve::chunked_forward(p, 4, carve::rows<field>{}, {}),
                    carve::error);
  REQUIRE(carve::wy_applies(p, 1).applies);
}

TEST_CASE("the WY form compares every column of a value gate") {
  // Columns 0 and 1 agree, column 2 does not.
  fixture f({6, 2, 3}, erase::value);
  for (index_t t = 0; t < 6; ++t) f.x.e[t * 3 + 1] = f.x.e[t * 3];
  const auto p = head_of(f.x, f.shape, readout::after);
  REQUIRE_FALSE(carve::wy_applies(p, 3));
  fixture g({6, 2, 3}, erase::mask);
  for (index_t i = 0; i < 12; ++i) g.x.mask[i * 3 + 1] = g.x.mask[i * 3];
  REQUIRE_FALSE(carve::wy_applies(head_of(g.x, g.shape, readout::after), 3));
}

TEST_CASE("a mask decides whether a token is coupled to another") {
  // The keys meet in channel 0 alone, which the second token's mask spares.
  fixture f({2, 2, 3}, erase::value);
  f.x.k = {field(1), field(0), field(1), field(1)};
  f.x.b.clear();
  f.x.mask.assign(12, field(1));
  for (index_t j = 0; j < 3; ++j) f.x.mask[6 + j] = field(0);
  const auto p = head_of(f.x, f.shape, readout::after);
  REQUIRE(carve::wy_applies(p, 2));
  f.x.mask.assign(12, field(1));
  REQUIRE_FALSE(carve::wy_applies(p, 2));
}

TEST_CASE("coupling goes by the erase's own address, direction and decay") {
  using carve::erase_order;
  // The second token looks along channel 1.
  random_case<field> f({2, 2, 3}, erase::value, {true, true});
  f.x.d.clear();
  f.x.k.assign(4, field(1));
  f.x.r = {field(0), field(1), field(0), field(1)};
  f.x.y = {field(1), field(0), field(1), field(0)};
  auto p = head_of(f.x, f.shape, readout::after);
  REQUIRE(carve::wy_applies(p, 2));
  REQUIRE(f.run(readout::after, chunked_solver<>{2, {}}).S ==
          f.run(readout::after, recurrent_solver{}).S);
  p.y = {};
  REQUIRE_FALSE(carve::wy_applies(p, 2));
  // Its decay forgets channel 1, but not before a look that precedes it.
  f.x.a = {field(1), field(1), field(1), field(0)};
  REQUIRE(carve::wy_applies(p, 2));
  p.erase_reads = erase_order::before_decay;
  REQUIRE_FALSE(carve::wy_applies(p, 2));
}

TEST_CASE("the WY form refuses to give a mask's gradient") {
  fixture f({3, 2, 2}, erase::mask);
  for (std::size_t i = 0; i < f.x.mask.size(); ++i) {
    f.x.mask[i] = f.x.mask[i / 2 * 2];
  }
  REQUIRE_THROWS_WITH(f.run(readout::after, chunked_solver<>{2, {}}),
                      "the WY form gives no gradient of a full mask; use the "
                      "column-by-column form");
}

TEST_CASE("under a mask states may be stored [V,K]") {
  const fixture f({7, 3, 4}, erase::mask);
  const auto expected = f.run(readout::after, recurrent_solver{});
  const auto turned = [&](const std::vector<field>& S) {
    std::vector<field> x(12);
    for (index_t i = 0; i < 3; ++i) {
      for (index_t j = 0; j < 4; ++j) x[j * 3 + i] = S[i * 4 + j];
    }
    return x;
  };
  const auto S0 = turned(f.x.S0), dS = turned(f.dS);
  auto p = head_of(f.x, f.shape, readout::after);
  p.S0 = {S0.data(), 1, 3};
  auto g = fill<field>(f.shape, f.along, [] { return field(0); });
  std::vector<field> o(7 * 4), S(12), forward_S(12);
  auto to = gradients_of(g, f.shape);
  to.S0 = {g.S0.data(), 1, 3};
  const columnwise_solver solver{3};
  solver.backward(p, {rows_of<const field>(f.dO, 4), {dS.data(), 1, 3}}, to,
                  rows_of<field>(o, 4),
                  carve::state_view<field>{S.data(), 1, 3});
  REQUIRE(o == expected.o);
  REQUIRE(S == turned(expected.S));
  REQUIRE(g.S0 == turned(expected.gradients.S0));
  g.S0 = expected.gradients.S0;
  REQUIRE(g == expected.gradients);
  solver.forward(p, rows_of<field>(o, 4),
                 carve::state_view<field>{forward_S.data(), 1, 3});
  REQUIRE(forward_S == S);
}

namespace {

// Notes what is rounded where; changes nothing.
struct noting_policy : carve::exact_policy {
  std::vector<std::pair<carve::rounding_point, carve::matrix<field>>>* seen;
  void round(carve::rounding_point at, bool, carve::matrix<field>& m) const {
    seen->push_back({at, m});
  }
};

// Lists what is rounded.
struct listing_policy : carve::exact_policy {
  std::vector<carve::rounding_point>* seen;
  bool per_channel;
  template <class M>
  void round(carve::rounding_point at, bool of_channels, M&) const {
    REQUIRE(of_channels == per_channel);
    seen->push_back(at);
  }
  template <class X>
  X sum(carve::rounding_point at, bool of_channels, std::vector<X>& x) const {
    REQUIRE(of_channels == per_channel);
    // Once for all, or once a channel.
    if (seen->back() != at) seen->push_back(at);
    X total(0);
    for (const X& e : x) total += e;
    return total;
  }
};

}  // namespace

TEST_CASE("every part of a key's gradient is rounded before they are added") {
  // One chunk: dk is the sum of the first and the last matrix noted.
  const fixture f({5, 3, 4}, erase::key);
  std::vector<std::pair<carve::rounding_point, carve::matrix<field>>> seen;
  const auto r =
      f.run(readout::after, chunked_solver<noting_policy>{5, {{}, &seen}});
  std::vector<carve::matrix<field>> parts;
  for (const auto& [at, m] : seen) {
    if (at == carve::rounding_point::dk_part) parts.push_back(m);
  }
  REQUIRE(parts.size() == 3);
  const carve::matrix<field> dk = parts[0] + parts[2];
  REQUIRE(std::vector<field>(dk.data(), dk.data() + dk.size()) ==
          r.gradients.k);
  REQUIRE_FALSE(parts[0] == parts[2]);
}

TEST_CASE("what lies apart is rounded like what lies along the key") {
  using carve::rounding_point;
  const auto points = [](const given& step) {
    const random_case<field> f({5, 3, 4}, erase::key, step);
    std::vector<std::pair<rounding_point, carve::matrix<field>>> seen;
    f.run(readout::after, chunked_solver<noting_policy>{5, {{}, &seen}});
    std::map<rounding_point, int> count;
    for (const auto& [at, m] : seen) ++count[at];
    return count;
  };
  auto expected = points({});
  REQUIRE(points({true, false}).at(rounding_point::r) ==
          expected.at(rounding_point::r));
  const auto apart = points({true, true});
  // There and once more on the way back: scores of queries and addresses with
  // k, the tail keys, the right-hand side; back: the cotangent of the writes.
  expected[rounding_point::P] += 4;
  expected[rounding_point::kg] += 2;
  expected[rounding_point::wv] += 2;
  expected[rounding_point::PtdO] += 1;
  expected[rounding_point::dU] += 1;
  for (const auto& [at, n] : expected) {
    if (at == rounding_point::dk_part) continue;
    CAPTURE(static_cast<int>(at));
    REQUIRE(apart.at(at) == n);
  }
}

TEST_CASE("one value channel or orthogonal keys keep the WY form") {
  const fixture one({6, 2, 1}, erase::value);
  REQUIRE(carve::wy_applies(head_of(one.x, one.shape, readout::after), 6));
  fixture f({2, 2, 3}, erase::value);
  f.x.k = {field(1), field(0), field(0), field(1)};
  f.x.b.assign(4, field(1));
  REQUIRE(carve::wy_applies(head_of(f.x, f.shape, readout::after), 2));
}

TEST_CASE("a chunk length below one is refused") {
  const fixture f({2, 2, 2}, erase::key);
  const auto p = head_of(f.x, f.shape, readout::after);
  REQUIRE_THROWS_WITH(carve::chunked_forward(p, 0, carve::rows<field>{}, {}),
                      "chunk: expected a length of at least 1, got 0");
}

TEST_CASE("every matrix is rounded once, and in the kernels' order") {
  // Of one chunk with two blocks of scores: a decay per channel has factors to
  // round, one per head has none.
  using enum carve::rounding_point;
  const auto points = [](bool per_channel) {
    const fixture f({20, 2, 2}, erase::key);
    auto p = head_of(f.x, f.shape, readout::after);
    if (!per_channel) p.a.channel = 0;
    std::vector<carve::rounding_point> seen;
    const chunked_solver<listing_policy> solver{20, {{}, &seen, per_channel}};
    walk(p, f.shape, f.along, f.dO, f.dS, solver, f.step);
    return seen;
  };
  const auto repeated = [](carve::rounding_point at, std::size_t n) {
    return std::vector<carve::rounding_point>(n, at);
  };
  for (const bool per_channel : {false, true}) {
    CAPTURE(per_channel);
    const std::size_t factors = per_channel ? 2 : 0;
    std::vector<carve::rounding_point> expected;
    const auto then = [&](const std::vector<carve::rounding_point>& more) {
      expected.insert(expected.end(), more.begin(), more.end());
    };
    const auto there = [&] {
      then(repeated(score, factors));  // L
      then(repeated(inverse, 4));      // the one block below the diagonal
      then({T});
      then(repeated(score, factors));  // P
      then({P, r, wv, rg, qg, kg, S, Twv, W});
      if (!per_channel) then({U_tail});
      then({U});
    };
    there(), there();  // the start states, then the chunk itself
    then({dS, PtdO, dU, qg_back, dW, M, MTt});
    // dP, then dL: two products of two factors each, or the whole.
    then(repeated(per_channel ? score : dscore, per_channel ? 4 : 1));
    then(repeated(per_channel ? score : dscore, per_channel ? 4 : 1));
    then({SdS});
    then(repeated(dk_part, 3));
    if (points(per_channel) != expected) {
      for (const auto at : points(per_channel)) {
        UNSCOPED_INFO(static_cast<int>(at));
      }
      CHECK(points(per_channel) == expected);
    }
  }
}

TEST_CASE("gradients are added to what is there") {
  const fixture f({5, 2, 3}, erase::key);
  const auto twice = [&f](const auto& backward) {
    auto g = fill<field>(f.shape, f.along, [] { return field(0); });
    const carve::head_cotangents<field> in{
        rows_of<const field>(f.dO, 3), state_of<const field>(f.dS, f.shape)};
    const auto p = head_of(f.x, f.shape, readout::after);
    backward(p, in, gradients_of(g, f.shape));
    const auto once = g;
    backward(p, in, gradients_of(g, f.shape));
    for (std::size_t i = 0; i < g.S0.size(); ++i) {
      REQUIRE(g.S0[i] == once.S0[i] + once.S0[i]);
    }
    for (std::size_t i = 0; i < g.k.size(); ++i) {
      REQUIRE(g.k[i] == once.k[i] + once.k[i]);
    }
  };
  const auto by = [&twice](const auto& solver) {
    twice([&solver](const auto& p, const auto& in, const auto& to) {
      solver.backward(p, in, to);
    });
  };
  by(carve::definition_solver{});
  by(recurrent_solver{});
  by(chunked_solver<>{2});
  by(columnwise_solver{2});
  const std::vector<field> down{1, 2, 3}, up{4, 5};
  const carve::content_gate<field> gate{
      2, 1, {down.data(), 3, 1}, {up.data(), 1, 1}};
  twice([&gate](const auto& p, const auto& in, const auto& to) {
    carve::content_backward(p, gate, recurrent_solver{}, in, to, {}, {}, {},
                            square{});
  });
}
