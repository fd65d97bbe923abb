// Is the content gate a model of its window length alone, whatever solves it?
#include <random>

#include "carve/batch.hpp"
#include "carve/dual.hpp"
#include "carve/prime_field.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"
#include "random_head.hpp"
#include "random_problem.hpp"

namespace {

using namespace carve::tests;
using carve::family;
using carve::problem;

using carve::chunked_solver;
using carve::recurrent_solver;
using field = carve::prime_61;
using dual_field = carve::dual<field>;

// An activation over a ring whose derivative needs its argument.
struct quadratic {
  template <class T>
  T value(const T& x) const {
    return x * x + x + T(1);
  }
  template <class T>
  T derivative(const T& x, const T&) const {
    return x + x + T(1);
  }
};

}  // namespace

TEST_CASE("a content gate beside another erase gate is refused") {
  const head_shape s{2, 2, 2};
  std::mt19937_64 random(17);
  const auto draw = [&] { return field::uniform(random); };
  const std::vector<field> zeros(4, field(0));
  const carve::content_gate<field> gate{
      1, 2, {zeros.data(), 2, 1}, {zeros.data(), 2, 1}};
  const auto refused = [&](const carve::head<field>& p, const char* why) {
    REQUIRE_THROWS_WITH(carve::content_forward(
                            p, gate, recurrent_solver{}, carve::rows<field>{},
                            carve::state_view<field>{}, quadratic{}),
                        why);
  };
  const char* const other =
      "content gate: expected logits of a key-axis erase gate and no other "
      "erase gate";
  const auto x = fill<field>(s, erase::value, draw);
  auto p = head_of(x, s, carve::readout::after);
  refused(p, other);
  p.e = {};
  p.mask = {x.S0.data(), 0, s.V, 1};
  refused(p, other);
  p.mask = {};
  p.r = p.k;
  refused(p, "r: expected no erase gate b beside a given erase address");
  p.r = {};
  p.erases = false;
  refused(p, other);
}

TEST_CASE("a window may be longer than an int counts") {
  // Of one window only the first counts, so any length beyond T is the same.
  const head_shape s{3, 2, 2};
  std::mt19937_64 random(17);
  const auto draw = [&] { return field::uniform(random); };
  const auto x = fill<field>(s, erase::key, draw);
  const std::vector<field> some{draw(), draw(), draw(), draw()};
  const auto p = head_of(x, s, carve::readout::after);
  const auto run = [&](carve::index_t window) {
    const carve::content_gate<field> gate{
        window, 2, {some.data(), 2, 1}, {some.data(), 2, 1}};
    auto g = fill<field>(s, erase::key, [] { return field(0); });
    std::vector<field> up(4), down(4);
    const std::vector<field> dO(6, field(1));
    carve::content_backward(p, gate, recurrent_solver{},
                            {rows_of<const field>(dO, 2), {}},
                            gradients_of(g, s),
                            carve::content_gate_gradients<field>{
                                {up.data(), 2, 1}, {down.data(), 2, 1}},
                            {}, {}, quadratic{});
    return g;
  };
  const auto expected = run(3);
  REQUIRE(run(carve::index_t(1) << 32) == expected);
  REQUIRE(run((carve::index_t(1) << 31) + 1) == expected);
}

TEST_CASE("the length of a window is counted whole in any ring") {
  // 2^61 - 1 is the field's zero.
  REQUIRE(carve::detail::integer<field>((carve::index_t(1) << 61) - 1) ==
          field(0));
  REQUIRE(carve::detail::integer<double>((carve::index_t(1) << 40) + 3) ==
          1099511627779.0);
}

TEST_CASE("the way back through the gate is its derivative, over a field") {
  // With two sub-steps a token too, erased along a direction of its own.
  const carve::index_t n = GENERATE(1, 2);
  const given step{false, n == 2, carve::erase_order::after_decay};
  const head_shape s{7, 2, 3, n};
  const carve::index_t window = 3, rank = 2;
  std::mt19937_64 random(17);
  const auto draw = [&] { return field::uniform(random); };
  const auto some = [&](carve::index_t count) {
    std::vector<field> x;
    for (carve::index_t i = 0; i < count; ++i) x.push_back(draw());
    return x;
  };
  const auto x = fill<field>(s, erase::key, draw, step);
  const auto down = some(rank * s.V), up = some(s.K * rank);
  const auto dO = some(s.T * s.V), dS = some(s.K * s.V);
  const carve::content_gate<field> gate{
      window, rank, {down.data(), s.V, 1}, {up.data(), rank, 1}};
  const auto p = head_of(x, s, carve::readout::after);
  const carve::head_cotangents<field> in{rows_of<const field>(dO, s.V),
                                         state_of<const field>(dS, s)};

  const auto back = [&](const auto& solver) {
    auto g = fill<field>(
        s, erase::key, [] { return field(0); }, step);
    std::vector<field> parameters(down.size() + up.size());
    carve::content_backward(p, gate, solver, in, gradients_of(g, s),
                            carve::content_gate_gradients<field>{
                                {parameters.data(), s.V, 1},
                                {parameters.data() + down.size(), rank, 1}},
                            {}, {}, quadratic{});
    return std::pair(g, parameters);
  };
  const auto [g, parameters] = back(recurrent_solver{});
  REQUIRE(back(chunked_solver<>{2, {}}) == std::pair(g, parameters));

  // Every input moves at once along a random direction.
  field expected(0);
  const auto lift = [&](const std::vector<field>& at,
                        const std::vector<field>& gradient, bool log) {
    std::vector<dual_field> moved;
    for (std::size_t i = 0; i < at.size(); ++i) {
      const field along = draw();
      moved.emplace_back(at[i]);
      moved.back().derivative = log ? at[i] * along : along;
      expected += gradient[i] * along;
    }
    return moved;
  };
  head_tensors<dual_field> y;
  y.q = lift(x.q, g.q, false), y.k = lift(x.k, g.k, false);
  y.v = lift(x.v, g.v, false), y.a = lift(x.a, g.a, true);
  y.d = lift(x.d, g.d, true), y.b = lift(x.b, g.b, false);
  y.w = lift(x.w, g.w, false), y.y = lift(x.y, g.y, false);
  y.S0 = lift(x.S0, g.S0, false);
  const auto split = parameters.begin() + static_cast<long>(down.size());
  const auto ddown = lift(down, {parameters.begin(), split}, false);
  const auto dup = lift(up, {split, parameters.end()}, false);
  std::vector<dual_field> o(dO.size()), S(dS.size());
  carve::content_forward(
      head_of(y, s, carve::readout::after),
      carve::content_gate<dual_field>{
          window, rank, {ddown.data(), s.V, 1}, {dup.data(), rank, 1}},
      recurrent_solver{}, rows_of<dual_field>(o, s.V),
      state_of<dual_field>(S, s), quadratic{});
  field got(0);
  for (std::size_t i = 0; i < o.size(); ++i) got += o[i].derivative * dO[i];
  for (std::size_t i = 0; i < S.size(); ++i) got += S[i].derivative * dS[i];
  REQUIRE(got == expected);
}

TEST_CASE("zero projections make carve gdn2 with a sigmoid gate, bit for bit") {
  auto p = random_problem<double>(family::carve, {1, 10, 2, 2, 3, 4});
  p.in.w_up = carve::tensor<double>(p.in.w_up.shape);
  problem<double> q = p;
  q.family = family::gdn2;
  q.act.b = carve::gate_activation::sigmoid;
  q.in.w_up = {}, q.in.w_down = {};
  REQUIRE(carve::forward(p).o.data == carve::forward(q).o.data);
}

TEST_CASE("the window length is part of the model") {
  auto p = random_problem<double>(family::carve, {1, 10, 1, 1, 3, 4});
  const auto three = carve::forward(p);
  p.window = 4;
  REQUIRE(carve::forward(p).o.data != three.o.data);
}

TEST_CASE("the gate of a window sees the mean output of the one before") {
  // One window of one token: b_1 = sigmoid(x_1 + W_up W_down o_0).
  auto p = random_problem<double>(family::carve, {1, 2, 1, 1, 1, 1});
  p.window = 1;
  p.in.q.data = {1, 1}, p.in.k.data = {1, 1}, p.in.v.data = {3, 5};
  p.in.g.data = {0, 0}, p.in.w.data = {1, 1}, p.in.b.data = {0, 0.5};
  p.in.w_down = {{1, 1, 1}, {2}}, p.in.w_up = {{1, 1, 1}, {0.25}};
  p.in.initial_state.data = {4};
  p.scale = 1;
  const double S1 = 4 + 3 - 0.5 * 4;
  const double b = 1 / (1 + std::exp(-(0.5 + 0.25 * 2 * S1)));
  const auto out = carve::forward(p);
  REQUIRE(out.o.data[0] == Approx(S1));
  REQUIRE(out.o.data[1] == Approx(S1 + 5 - b * S1));
}

TEST_CASE("a carve problem without a window is refused") {
  auto p = random_problem<double>(family::carve, {1, 2, 1, 1, 1, 1});
  p.window = 0;
  REQUIRE_THROWS_WITH(carve::forward(p),
                      "window: expected at least 1 token, got 0");
}
