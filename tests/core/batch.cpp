// Does a batch treat its heads, sequences, layouts and activations as one
// would by hand?
#include "carve/batch.hpp"

#include <cmath>
#include <vector>

#include "carve/double_double.hpp"
#include "carve/dual.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"
#include "random_problem.hpp"

namespace {

using namespace carve::tests;
using carve::axis;
using carve::chunked_solver;
using carve::columnwise_solver;
using carve::double_double;
using carve::family;
using carve::index_t;
using carve::outputs;
using carve::problem;
using carve::recurrent_solver;
using carve::run_options;
using carve::tensor;
using carve::tensor_shape;
using carve::tensors;

template <class T>
double distance(const tensor<T>& x, const tensor<T>& y) {
  REQUIRE(x.shape == y.shape);
  double top = 0, bottom = 0;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double d =
        carve::scalar_traits<T>::to_double(T(x.data[i] - y.data[i]));
    const double r = carve::scalar_traits<T>::to_double(y.data[i]);
    top += d * d, bottom += r * r;
  }
  return bottom == 0 ? std::sqrt(top) : std::sqrt(top / bottom);
}

// Tokens [t0, t1) of T in the single batch entry.
template <class T>
tensor<T> cut(const tensor<T>& x, index_t tokens, index_t t0, index_t t1) {
  if (!x.present()) return x;
  tensor_shape shape = x.shape;
  shape[1] = (t1 - t0) * x.dim(1) / tokens;
  const std::size_t token = x.data.size() / static_cast<std::size_t>(tokens);
  return {shape, std::vector<T>(x.data.begin() + t0 * token,
                                x.data.begin() + t1 * token)};
}

template <class T>
problem<T> cut(problem<T> p, index_t t0, index_t t1) {
  const index_t tokens = p.in.q.dim(1);
  for (const auto& m : tensors<T>::members()) {
    if (m.role != carve::tensor_role::token) continue;
    p.in.*m.at = cut(p.in.*m.at, tokens, t0, t1);
  }
  p.cu_seqlens.clear();
  return p;
}

// The sum of gradients times directions, against the directional derivative.
template <class T>
void require_gradient(const problem<T>& p) {
  using dual = carve::dual<T>;
  const outputs<T> c = random_cotangents(p);
  const auto r = carve::backward(p, c);
  std::mt19937 random(9);
  std::normal_distribution<double> normal;
  problem<dual> q;
  q.family = p.family, q.cu_seqlens = p.cu_seqlens, q.read = p.read;
  q.state_v_first = p.state_v_first, q.act = p.act, q.window = p.window;
  q.erase_reads = p.erase_reads;
  const auto from = tensors<T>::members();
  const auto to = tensors<dual>::members();
  for (std::size_t m = 0; m < from.size(); ++m) {
    INFO(from[m].name);
    const tensor<T>& x = p.in.*from[m].at;
    if (!x.present()) continue;
    // One tensor at a time, so that a failure names it.
    problem<dual> moved = q;
    T expected(0);
    for (std::size_t n = 0; n < from.size(); ++n) {
      moved.in.*to[n].at = carve::convert<dual>(
          p.in.*from[n].at, [](const T& y) { return dual(y); });
    }
    for (std::size_t i = 0; i < x.data.size(); ++i) {
      const T direction = T(normal(random));
      (moved.in.*to[m].at).data[i].derivative = direction;
      expected += direction * (r.gradients.*from[m].at).data[i];
    }
    const outputs<dual> out = carve::forward(moved);
    T got(0);
    for (std::size_t i = 0; i < out.o.data.size(); ++i) {
      got += out.o.data[i].derivative * c.o.data[i];
    }
    for (std::size_t i = 0; i < out.final_state.data.size(); ++i) {
      got += out.final_state.data[i].derivative * c.final_state.data[i];
    }
    const double error =
        std::abs(carve::scalar_traits<T>::to_double(T(got - expected)));
    REQUIRE(error <=
            1e-28 * (1 + std::abs(carve::scalar_traits<T>::to_double(got))));
  }
}

}  // namespace

TEST_CASE("every family's gradients are its derivative") {
  for (const carve::family_info& f : carve::families) {
    INFO(f.name);
    require_gradient(random_problem<double_double>(f.id, {2, 7, 2, 4, 3, 2}));
  }
}

TEST_CASE("gradients through activations are derivatives") {
  auto p = random_problem<double_double>(family::gdn2, {1, 6, 2, 2, 3, 4});
  p.act.l2norm = true;
  p.act.b = carve::gate_activation::doubled_sigmoid;
  p.act.w = carve::gate_activation::sigmoid;
  p.in.A_log = tensor<double_double>({2}, {0.25, -0.5});
  p.in.dt_bias = tensor<double_double>({2, 3}, {0.5, 1, -1, 0.25, 2, -2});
  SECTION("softplus decay") {
    p.act.decay = carve::decay_activation::softplus;
    require_gradient(p);
  }
  SECTION("bounded decay") {
    p.act.decay = carve::decay_activation::bounded;
    require_gradient(p);
  }
  SECTION("per head, sigmoid beta") {
    p = random_problem<double_double>(family::gdn, {1, 6, 2, 2, 3, 4});
    p.act.decay = carve::decay_activation::softplus;
    p.act.beta = carve::gate_activation::doubled_sigmoid;
    p.in.dt_bias = tensor<double_double>({2}, {0.5, 1});
    require_gradient(p);
  }
}

TEST_CASE("activations have their published values") {
  carve::activations act;
  act.decay = carve::decay_activation::softplus;
  const tensor<double> x({1, 1, 1}, {0.3});
  const tensor<double> A({1}, {0.7}), bias({1}, {0.2});
  REQUIRE(carve::activate_decay(act, x, A, bias).data[0] ==
          Approx(-std::exp(0.7) * std::log1p(std::exp(0.5))));
  act.decay = carve::decay_activation::bounded;
  act.lower_bound = -4;
  REQUIRE(carve::activate_decay(act, x, A, bias).data[0] ==
          Approx(-4 / (1 + std::exp(-std::exp(0.7) * 0.5))));
  const tensor<double> y({2}, {3.0, 4.0});
  REQUIRE(carve::l2_normalise(y).data[1] == Approx(4 / std::sqrt(25 + 1e-6)));
}

TEST_CASE("a bias of the decay has its head and its channel") {
  carve::activations act;
  act.decay = carve::decay_activation::softplus;
  const tensor<double> x({1, 2, 2, 2}, {0, 0, 0, 0, 0, 0, 0, 0});
  const tensor<double> bias({2, 2}, {0.1, 0.2, 0.3, 0.4});
  const auto g = carve::activate_decay(act, x, tensor<double>{}, bias);
  for (std::size_t i = 0; i < 8; ++i) {
    REQUIRE(g.data[i] == Approx(-std::log1p(std::exp(bias.data[i % 4]))));
  }
}

TEST_CASE("a decay's rate is that of its head, its bound the one given") {
  carve::activations act;
  act.decay = carve::decay_activation::softplus;
  const carve::tensor<double> x({1, 1, 2}, {0.5, 0.5});
  const carve::tensor<double> A_log({2}, {0, std::log(3.0)});
  const auto g = carve::activate_decay(act, x, A_log, {}).data;
  REQUIRE(g[1] == Approx(3 * g[0]));
  act.decay = carve::decay_activation::bounded, act.lower_bound = -2;
  const double s = 1 / (1 + std::exp(-0.5));
  REQUIRE(carve::activate_decay(act, x, {}, {}).data[0] == Approx(-2 * s));
  const carve::tensor<double> dg({1, 1, 2}, {1, 0});
  REQUIRE(
      carve::activate_decay_back<double>(act, x, {}, {}, dg, nullptr, nullptr)
          .data[0] == Approx(-2 * s * (1 - s)));
}

TEST_CASE("sequences are packed in one batch entry") {
  auto p = random_problem<double>(family::gdn2, {2, 5, 1, 1, 3, 4});
  p.cu_seqlens = {0, 2, 5};
  REQUIRE_THROWS_WITH(carve::check(p),
                      Catch::Matchers::StartsWith("cu_seqlens: "));
}

TEST_CASE("a decay is the same in each of its domains, and so its gradient") {
  auto p = random_problem<double>(family::gdn2, {1, 5, 1, 1, 3, 4});
  p.in.gd = carve::tensor<double>({1, 5, 1, 4});
  for (std::size_t i = 0; i < p.in.gd.data.size(); ++i) {
    p.in.gd.data[i] = -0.05 * static_cast<double>(i % 7);
  }
  const carve::outputs<double> cotangents{p.in.v, {}};
  const auto by_log = carve::backward(p, cotangents);
  for (const auto domain :
       {carve::decay_domain::log2, carve::decay_domain::linear}) {
    auto other = p;
    other.act.domain = domain;
    const bool linear = domain == carve::decay_domain::linear;
    for (auto* x : {&other.in.g, &other.in.gd}) {
      for (double& e : x->data) e = linear ? std::exp(e) : e / std::log(2.0);
    }
    const auto r = carve::backward(other, cotangents);
    for (std::size_t i = 0; i < r.out.o.data.size(); ++i) {
      REQUIRE(r.out.o.data[i] == Approx(by_log.out.o.data[i]));
    }
    const auto expect = [&](const auto& d, const auto& of_log, const auto& a) {
      for (std::size_t i = 0; i < d.data.size(); ++i) {
        const double e = of_log.data[i];
        REQUIRE(d.data[i] ==
                Approx(linear ? e / a.data[i] : e * std::log(2.0)));
      }
    };
    expect(r.gradients.g, by_log.gradients.g, other.in.g);
    expect(r.gradients.gd, by_log.gradients.gd, other.in.gd);
  }
}

TEST_CASE("q and k are divided by the norm that is asked for") {
  const carve::tensor<double> x({1, 2}, {3, 4}), dy({1, 2}, {1, 0});
  carve::activations act;
  act.norm = carve::l2_norm::mean, act.l2_epsilon = 12;
  // sqrt(2 (25 / 2 + 12)) = 7
  REQUIRE(carve::l2_normalise(x, act).data[0] == Approx(3 / 7.));
  REQUIRE(carve::l2_normalise_back(x, dy, act).data[1] ==
          Approx(-3 * 4 / (7 * 49.)));
  act.norm = carve::l2_norm::maximum;  // 5 is less than 12
  REQUIRE(carve::l2_normalise(x, act).data[1] == Approx(4 / 12.));
  REQUIRE(carve::l2_normalise_back(x, dy, act).data[0] == Approx(1 / 12.));
  REQUIRE(carve::l2_normalise_back(x, dy, act).data[1] == 0);
  act.l2_epsilon = 1;
  REQUIRE(carve::l2_normalise(x, act).data[0] == Approx(3 / 5.));
}

TEST_CASE("without a scale it is one over the root of the key channels") {
  auto p = random_problem<double>(family::gdn2, {1, 5, 1, 1, 4, 9});
  const outputs<double> out = carve::forward(p);
  p.scale = 0.5;
  REQUIRE(out.o.data == carve::forward(p).o.data);
}

TEST_CASE("every log decay is made a decay, however many there are") {
  // 4900 of each: one block of the exponential, and a ragged one.
  auto p = random_problem<double>(family::gla, {1, 700, 1, 1, 7, 7});
  p.in.gd = p.in.g;
  const outputs<double> out = carve::forward(p);
  for (tensor<double>* x : {&p.in.g, &p.in.gd}) {
    for (double& e : x->data) e = carve::exp(e);
  }
  p.linear_decay = true;
  REQUIRE(out.o.data == carve::forward(p).o.data);
}

TEST_CASE("a cotangent of another shape is refused") {
  const auto p = random_problem<double>(family::gdn2, {1, 5, 1, 1, 3, 4});
  const outputs<double> c = random_cotangents(p);
  REQUIRE_THROWS_WITH(
      carve::backward(p, {c.o, tensor<double>({1, 1, 4, 3})}),
      "dfinal_state: expected [1,1,3,4] like final_state, got [1,1,4,3]");
  REQUIRE_THROWS_WITH(
      carve::backward(p, {tensor<double>({1, 5, 1, 3}), c.final_state}),
      "do: expected [1,5,1,4] like o, got [1,5,1,3]");
}

TEST_CASE("comba, dplr and rwkv7 are the steps of their papers") {
  // Two tokens of one head with K = V = 1, by hand.
  const auto scalar = [](family f, double g, double v) {
    auto p = random_problem<double>(f, {1, 1, 1, 1, 1, 1});
    p.scale = 1;
    p.in.q.data = {1}, p.in.k.data = {0.5}, p.in.v.data = {v};
    p.in.g.data = {std::log(g)}, p.in.initial_state.data = {4};
    return p;
  };
  auto comba = scalar(family::comba, 0.25, 3);
  comba.in.p.data = {2}, comba.in.beta.data = {0.125};
  // S = a S0 + k beta (v - p X), X = S0 or a S0.
  REQUIRE(carve::forward(comba).o.data[0] ==
          Approx(1 + 0.5 * 0.125 * (3 - 2 * 4)));
  comba.erase_reads = carve::erase_order::after_decay;
  REQUIRE(carve::forward(comba).o.data[0] ==
          Approx(1 + 0.5 * 0.125 * (3 - 2 * 1)));
  auto dplr = scalar(family::dplr, 0.25, 3);
  dplr.in.r.data = {2}, dplr.in.y.data = {-0.75};
  REQUIRE(carve::forward(dplr).o.data[0] == Approx(1 + 0.5 * 3 + 0.75 * 2 * 4));
  auto rwkv = scalar(family::rwkv7, 0.25, 3);
  rwkv.in.r.data = {0.6}, rwkv.in.b.data = {0.9};
  REQUIRE(carve::forward(rwkv).o.data[0] ==
          Approx(1 + 0.5 * 3 - 0.6 * 0.9 * 0.6 * 4));
}

TEST_CASE("gated_delta_product, eda and mamba3 are the steps of their papers") {
  // K = V = 1, by hand; S0 = 4.
  const auto scalar = [](family f, index_t tokens) {
    auto p = random_problem<double>(f, {1, tokens, 1, 1, 1, 1});
    p.scale = 1;
    for (double& q : p.in.q.data) q = 1;
    p.in.initial_state.data = {4};
    return p;
  };
  const auto delta = [](double S, double k, double v, double beta) {
    return S + beta * k * (v - k * S);
  };
  auto product = scalar(family::gated_delta_product, 1);
  product.in.k.data = {0.5, -2}, product.in.v.data = {3, 5};
  product.in.beta.data = {0.25, 0.125}, product.in.g.data = {std::log(0.5)};
  // One decay, then two steps of the delta rule.
  REQUIRE(carve::forward(product).o.data[0] ==
          Approx(delta(delta(2, 0.5, 3, 0.25), -2, 5, 0.125)));
  auto eda = scalar(family::eda, 1);
  eda.in.p.data = {-1.5}, eda.in.eta.data = {0.75};
  eda.in.k.data = {0.5}, eda.in.v.data = {3}, eda.in.beta.data = {0.25};
  eda.in.g.data = {std::log(0.5)};
  REQUIRE(carve::forward(eda).o.data[0] ==
          Approx(delta(2 - 0.75 * 1.5 * 1.5 * 2, 0.5, 3, 0.25)));
  auto mamba = scalar(family::mamba3, 2);
  mamba.in.k.data = {0.5, -2}, mamba.in.v.data = {3, 5};
  mamba.in.w_last.data = {7, 0.125}, mamba.in.w.data = {0.75, 0.25};
  mamba.in.g.data = {std::log(0.5), std::log(0.25)};
  const double first = 2 + 0.75 * 0.5 * 3;
  const outputs<double> out = carve::forward(mamba);
  REQUIRE(out.o.data[0] == Approx(first));
  REQUIRE(out.o.data[1] ==
          Approx(0.25 * first + 0.125 * 0.5 * 3 - 0.25 * 2 * 5));
}

TEST_CASE("what is made of two tensors reads the head that each one has") {
  // Value head i of four reads head i / 2 of two, or i % 2 if tiled.
  for (const family f : {family::comba, family::rwkv7, family::eda}) {
    for (const bool tiled : {false, true}) {
      INFO(carve::info(f).name << (tiled ? ", tiled" : ""));
      auto p = random_problem<double>(f, {1, 5, 2, 4, 3, 2});
      p.tiled_heads = tiled;
      const auto halve = [](tensor<double>& x) {
        if (!x.present()) return;
        tensor_shape shape = x.shape;
        shape[2] = 2;
        x = {shape, {x.data.begin(), x.data.begin() + x.data.size() / 2}};
      };
      const auto repeat = [&](const tensor<double>& x) {
        if (!x.present() || x.dim(2) != 2) return x;
        tensor<double> y = x;
        y.shape[2] = 4;
        y = tensor<double>(y.shape);
        const std::size_t row = y.rank() == 4 ? 3 : 1;
        for (std::size_t i = 0; i < y.data.size(); ++i) {
          const std::size_t token = i / (4 * row), head = i / row % 4;
          const std::size_t from = tiled ? head % 2 : head / 2;
          y.data[i] = x.data[(token * 2 + from) * row + i % row];
        }
        return y;
      };
      using member = tensor<double> tensors<double>::*;
      for (const member at :
           {&tensors<double>::p, &tensors<double>::eta, &tensors<double>::r}) {
        halve(p.in.*at);
      }
      auto wide = p;
      for (const member at :
           {&tensors<double>::q, &tensors<double>::k, &tensors<double>::p,
            &tensors<double>::eta, &tensors<double>::r}) {
        wide.in.*at = repeat(p.in.*at);
      }
      const outputs<double> c = random_cotangents(p);
      const auto narrow = carve::backward(p, c), all = carve::backward(wide, c);
      REQUIRE(narrow.out.o.data == all.out.o.data);
      for (const member at :
           {&tensors<double>::k, &tensors<double>::p, &tensors<double>::r,
            &tensors<double>::eta, &tensors<double>::beta}) {
        const tensor<double>& x = narrow.gradients.*at;
        const tensor<double>& y = all.gradients.*at;
        tensor<double> sum(x.shape);
        if (!x.present() || x.shape == y.shape) continue;
        const std::size_t row = x.rank() == 4 ? 3 : 1;
        for (std::size_t i = 0; i < y.data.size(); ++i) {
          const std::size_t token = i / (4 * row), head = i / row % 4;
          const std::size_t to = tiled ? head % 2 : head / 2;
          sum.data[(token * 2 + to) * row + i % row] += y.data[i];
        }
        REQUIRE(distance(x, sum) <= 1e-14);
      }
    }
  }
}

TEST_CASE("packed sequences equal separate ones, empty ones included") {
  for (const carve::family_info& f : carve::families) {
    INFO(f.name);
    auto p = random_problem<double>(f.id, {1, 11, 2, 4, 3, 2});
    p.cu_seqlens = {0, 4, 4, 11};
    const tensor<double> states = [] {
      auto three = random_problem<double>(family::gdn2, {3, 1, 2, 4, 3, 2}, 5);
      return three.in.initial_state;
    }();
    p.in.initial_state = states;
    const outputs<double> c = random_cotangents(p);
    const auto all = carve::backward(p, c);
    const std::size_t one = states.data.size() / 3;
    for (std::size_t n = 0; n < 3; ++n) {
      const auto state = [&](const tensor<double>& x) {
        return tensor<double>({1, 4, 3, 2}, {x.data.begin() + n * one,
                                             x.data.begin() + (n + 1) * one});
      };
      const index_t t0 = p.cu_seqlens[n], t1 = p.cu_seqlens[n + 1];
      auto alone = cut(p, t0, t1);
      alone.in.initial_state = state(states);
      const auto r =
          carve::backward(alone, {cut(c.o, 11, t0, t1), state(c.final_state)});
      REQUIRE(r.out.o.data == cut(all.out.o, 11, t0, t1).data);
      REQUIRE(r.out.final_state.data == state(all.out.final_state).data);
      for (const auto& m : tensors<double>::members()) {
        if (m.role != carve::tensor_role::token) continue;
        INFO(m.name);
        REQUIRE((r.gradients.*m.at).data ==
                cut(all.gradients.*m.at, 11, t0, t1).data);
      }
      REQUIRE(r.gradients.initial_state.data ==
              state(all.gradients.initial_state).data);
      if (t0 == t1) REQUIRE(r.out.final_state.data == state(states).data);
    }
  }
}

TEST_CASE("value heads of a group share their query and key head") {
  const auto p = random_problem<double>(family::kda, {2, 5, 2, 6, 3, 4});
  auto wide = p;
  // Repeat each query and key head three times in a row.
  for (tensor<double> tensors<double>::*at :
       {&tensors<double>::q, &tensors<double>::k}) {
    const tensor<double>& x = p.in.*at;
    tensor<double> y({2, 5, 6, 3});
    for (std::size_t i = 0; i < y.data.size(); ++i) {
      const std::size_t token = i / 18, head = i / 3 % 6;
      y.data[i] = x.data[(token * 2 + head / 3) * 3 + i % 3];
    }
    wide.in.*at = y;
  }
  const outputs<double> c = random_cotangents(p);
  const auto grouped = carve::backward(p, c),
             repeated = carve::backward(wide, c);
  REQUIRE(grouped.out.o.data == repeated.out.o.data);
  REQUIRE(grouped.gradients.v.data == repeated.gradients.v.data);
  tensor<double> sum({2, 5, 2, 3});
  for (std::size_t i = 0; i < repeated.gradients.k.data.size(); ++i) {
    const std::size_t token = i / 18, head = i / 3 % 6;
    sum.data[(token * 2 + head / 3) * 3 + i % 3] +=
        repeated.gradients.k.data[i];
  }
  REQUIRE(distance(grouped.gradients.k, sum) <= 1e-15);
}

TEST_CASE("a read-out before the update is that of the token before") {
  auto p = random_problem<double>(family::gdn2, {1, 5, 1, 1, 3, 4});
  for (std::size_t i = 3; i < p.in.q.data.size(); ++i) {
    p.in.q.data[i] = p.in.q.data[i - 3];
  }
  const auto after = carve::forward(p).o.data;
  p.read = carve::readout::before;
  const auto before = carve::forward(p).o.data;
  REQUIRE(std::vector<double>(before.begin() + 4, before.end()) ==
          std::vector<double>(after.begin(), after.end() - 4));
}

TEST_CASE("states may lie with the value axis first") {
  const auto p = random_problem<double>(family::gdn2, {2, 5, 1, 1, 3, 4});
  const outputs<double> c = random_cotangents(p);
  const auto turn = [](const tensor<double>& x) {
    tensor<double> y({x.dim(0), x.dim(1), x.dim(3), x.dim(2)});
    const index_t K = x.dim(2), V = x.dim(3);
    for (index_t i = 0; i < static_cast<index_t>(x.data.size()); ++i) {
      const index_t state = i / (K * V), k = i / V % K, v = i % V;
      y.data[state * K * V + v * K + k] = x.data[i];
    }
    return y;
  };
  auto q = p;
  q.state_v_first = true;
  q.in.initial_state = turn(p.in.initial_state);
  const auto r = carve::backward(p, c);
  const auto s = carve::backward(q, {c.o, turn(c.final_state)});
  REQUIRE(s.out.o.data == r.out.o.data);
  REQUIRE(s.out.final_state.data == turn(r.out.final_state).data);
  REQUIRE(s.gradients.initial_state.data ==
          turn(r.gradients.initial_state).data);
}

TEST_CASE("the number of threads changes no bit") {
  const auto p = random_problem<double>(family::gdn2, {2, 9, 2, 4, 5, 6});
  const outputs<double> c = random_cotangents(p);
  const auto one =
      carve::backward(p, c, recurrent_solver{}, run_options{1, {}});
  const auto four =
      carve::backward(p, c, recurrent_solver{}, run_options{4, {}});
  REQUIRE(one.out.o.data == four.out.o.data);
  REQUIRE(one.gradients.q.data == four.gradients.q.data);
}

TEST_CASE("progress counts every task once") {
  const auto p = random_problem<double>(family::gdn2, {3, 4, 2, 2, 2, 2});
  index_t last = 0, total = 0;
  run_options run;
  run.threads = 2;
  run.progress = [&](index_t done, index_t all) {
    REQUIRE(done == last + 1);
    last = done, total = all;
  };
  carve::forward(p, recurrent_solver{}, run);
  REQUIRE(last == 6);
  REQUIRE(total == 6);
}

TEST_CASE("solvers agree on batches of every family they apply to") {
  for (const carve::family_info& f : carve::families) {
    INFO(f.name);
    const auto p = random_problem<double_double>(f.id, {1, 21, 1, 2, 3, 4});
    const auto c = random_cotangents(p);
    const auto expected = carve::backward(p, c);
    const auto compare = [&](const auto& got) {
      REQUIRE(distance(got.out.o, expected.out.o) <= 1e-29);
      for (const auto& m : tensors<double_double>::members()) {
        INFO(m.name);
        if ((p.in.*m.at).present()) {
          REQUIRE(distance(got.gradients.*m.at, expected.gradients.*m.at) <=
                  1e-28);
        }
      }
    };
    compare(carve::backward(p, c, columnwise_solver{8}));
    if (f.erase == axis::value || f.erase == axis::mask) {
      REQUIRE_THROWS_AS(carve::forward(p, chunked_solver<>{8, {}}),
                        carve::error);
    } else {
      compare(carve::backward(p, c, chunked_solver<>{8, {}}));
    }
  }
}
