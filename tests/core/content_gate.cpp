// Is the content gate a model of its window length alone, whatever solves it?
#include "carve/batch.hpp"
#include "carve/double_double.hpp"
#include "catch.hpp"
#include "random_problem.hpp"

namespace {

using namespace carve::tests;
using carve::family;
using carve::problem;

}  // namespace

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
