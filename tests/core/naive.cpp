// Does the general step agree with flash-linear-attention's naive functions,
// forward and backward? See tests/dumps/naive/fla_naive.py.
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "carve/error.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"
#include "program/dump.hpp"
#include "program/verify.hpp"
#include "safetensors.hpp"

namespace {

using carve::erase_order;
using carve::head;
using carve::index_t;
using carve::rows;
using numbers = std::vector<double>;

struct dump {
  carve::safetensors::file file;
  index_t T, H, K, V, n;
  std::map<std::string, numbers> gradients, results;
};

dump read(const std::string& name) {
  auto file = carve::safetensors::file::open(std::string(CARVE_DUMPS) +
                                             "/naive/" + name + ".safetensors");
  const auto& q = file.info("q").shape;
  const auto& v = file.info("v").shape;
  return {file, q[1], q[2], q[3], v[3], v[1] / q[1], {}, {}};
}

// Head h of a tensor [1,T,H,W] or [1,T,H].
template <class X>
rows<X> view(X* data, const std::vector<std::int64_t>& shape, index_t h) {
  const index_t width = shape.size() == 4 ? shape[3] : 1;
  return {data + h * width, shape[2] * width, width == 1 ? 0 : 1};
}

// What each tensor of a dump is in a head; what is made of others is given.
struct reading {
  erase_order order = erase_order::after_decay;
  const char* b = nullptr;  // erase gate
  const char* w = nullptr;  // write gate
  const char* r = nullptr;  // erase address
  const char* y = nullptr;  // erase direction
};

// Relative errors in RMS of everything that a dump holds.
template <class Solver>
std::map<std::string, double> errors(dump d, const reading& as,
                                     std::map<std::string, numbers> made,
                                     const Solver& solver) {
  const auto shape = [&](const std::string& name) {
    return d.file.contains(name) ? d.file.info(name).shape
                                 : d.file.info("k").shape;
  };
  std::map<std::string, numbers> in = std::move(made), out;
  for (const auto& name : d.file.names()) in[name] = d.file.as_double(name);
  numbers a;
  for (const double g : in.at("g")) a.push_back(std::exp(g));
  for (const auto& [name, x] : in) out[name] = numbers(x.size(), 0.0);
  const index_t size = d.K * d.V;
  for (index_t h = 0; h < d.H; ++h) {
    const auto of = [&](const char* name) {
      return name ? view<const double>(in.at(name).data(), shape(name), h)
                  : rows<const double>{};
    };
    const auto to = [&](const char* name) {
      return name ? view<double>(out.at(name).data(), shape(name), h)
                  : rows<double>{};
    };
    head<double> p;
    p.tokens = d.T, p.keys = d.K, p.values = d.V, p.substeps = d.n;
    p.q = of("q"), p.k = of("k"), p.v = of("v");
    p.a = view<const double>(a.data(), shape("g"), h);
    p.b = of(as.b), p.w = of(as.w), p.r = of(as.r), p.y = of(as.y);
    p.erase_reads = as.order;
    p.S0 = {in.at("initial_state").data() + h * size, d.V, 1};
    p.scale = 1 / std::sqrt(static_cast<double>(d.K));
    carve::head_gradients<double> g;
    g.q = to("q"), g.k = to("k"), g.v = to("v"), g.g = to("g");
    g.b = to(as.b), g.w = to(as.w), g.r = to(as.r), g.y = to(as.y);
    g.S0 = {out.at("initial_state").data() + h * size, d.V, 1};
    solver.backward(p,
                    {of("do"), {in.at("dfinal_state").data() + h * size, d.V}},
                    g, to("o"),
                    carve::state_view<double>{
                        out.at("final_state").data() + h * size, d.V});
  }
  // Back through what was made of several tensors.
  if (out.contains("beta*p")) {
    for (std::size_t i = 0; i < out.at("p").size(); ++i) {
      const double x = out.at("beta*p")[i];
      out.at("p")[i] = x * in.at("beta")[i / d.K];
      out.at("beta")[i / d.K] += x * in.at("p")[i];
    }
  }
  if (out.contains("r*b")) {
    for (std::size_t i = 0; i < out.at("r").size(); ++i) {
      const double x = out.at("r*b")[i];
      out.at("r")[i] += x * in.at("b")[i];
      out.at("b")[i] = x * in.at("r")[i];
    }
  }
  std::map<std::string, double> worst;
  const auto compare = [&](const std::string& name, const numbers& got,
                           const numbers& expected) {
    double error = 0, whole = 0;
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      error += (got[i] - expected[i]) * (got[i] - expected[i]);
      whole += expected[i] * expected[i];
    }
    REQUIRE(whole > 0);
    worst[name] = std::sqrt(error / whole);
  };
  for (const char* name : {"o", "final_state"}) {
    compare(name, out.at(name), in.at(name));
  }
  for (const auto& name : d.file.names()) {
    if (name[0] != 'd' || name == "do" || name == "dfinal_state") continue;
    compare(name, out.at(name.substr(1)), in.at(name));
  }
  return worst;
}

numbers product(const dump& d, const char* wide, const char* other) {
  numbers x = d.file.as_double(wide);
  const numbers y = d.file.as_double(other);
  const std::size_t share = x.size() / y.size();
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= y[i / share];
  return x;
}

// The naive functions compute in fp32, in an order of their own.
constexpr double fp32_error = 5e-6;

template <class Solver>
void agrees(const std::string& name, const reading& as,
            const std::map<std::string, numbers>& made, const Solver& solver) {
  const auto all = errors(read(name), as, made, solver);
  REQUIRE(all.size() >= 8);
  for (const auto& [tensor, error] : all) {
    CAPTURE(name, tensor, error);
    REQUIRE(error <= fp32_error);
  }
}

void every_solver_agrees(const std::string& name, const reading& as,
                         const std::map<std::string, numbers>& made = {}) {
  agrees(name, as, made, carve::definition_solver{});
  agrees(name, as, made, carve::recurrent_solver{});
  agrees(name, as, made, carve::chunked_solver<>{16, {}});
  agrees(name, as, made, carve::columnwise_solver{7});
}

}  // namespace

TEST_CASE(
    "comba: the chunked function looks before the decay, the recurrent "
    "one after it") {
  const reading before{erase_order::before_decay, nullptr, "beta", "beta*p"};
  const reading after{erase_order::after_decay, nullptr, "beta", "beta*p"};
  for (const std::string name : {"comba_chunk", "comba_recurrent"}) {
    const dump d = read(name);
    const std::map<std::string, numbers> made{
        {"beta*p", product(d, "p", "beta")}};
    const bool chunk = name == "comba_chunk";
    every_solver_agrees(name, chunk ? before : after, made);
    const auto wrong =
        errors(d, chunk ? after : before, made, carve::recurrent_solver{});
    REQUIRE(wrong.at("o") > 1e-3);
    REQUIRE(wrong.at("dp") > 1e-3);
  }
}

TEST_CASE("dplr: address and direction given, a look before the decay") {
  every_solver_agrees("dplr",
                      {erase_order::before_decay, nullptr, nullptr, "r", "y"});
}

TEST_CASE("rwkv7: the direction is the gated address") {
  const dump d = read("rwkv7");
  every_solver_agrees("rwkv7",
                      {erase_order::before_decay, nullptr, nullptr, "r", "r*b"},
                      {{"r*b", product(d, "r", "b")}});
}

TEST_CASE("gated delta product: two and three sub-steps a token") {
  for (const std::string n : {"2", "3"}) {
    every_solver_agrees("gated_delta_product_" + n,
                        {erase_order::after_decay, "beta", "beta"});
  }
}

TEST_CASE("a file of a naive function is judged by its family's name") {
  const auto verdict_of = [](const std::string& name,
                             const carve::program::settings& given = {}) {
    const dump d = read(name);
    const auto v =
        carve::program::verify(carve::program::read_dump(d.file, given), {});
    // o, final_state and a gradient of each input.
    REQUIRE(v.tensors.size() == d.file.names().size() / 2);
    return v;
  };
  for (const std::string name :
       {"comba_chunk", "dplr", "rwkv7", "gated_delta_product_2",
        "gated_delta_product_3"}) {
    INFO(name);
    for (const auto& x : verdict_of(name).tensors) {
      INFO(x.name << " " << x.errors.ratio);
      REQUIRE(x.errors.pass());
    }
  }
  const std::string order = "erase_order";
  REQUIRE(verdict_of("comba_recurrent", {{order, "after"}}).pass());
  REQUIRE_FALSE(verdict_of("comba_recurrent").pass());
  REQUIRE_FALSE(verdict_of("comba_chunk", {{order, "after"}}).pass());
}
