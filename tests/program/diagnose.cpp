/// @file
/// Does a diagnosis name the deviation that made a dump?
#include "program/diagnose.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "carve/family_name.hpp"
#include "catch.hpp"
#include "program/fixtures.hpp"

using namespace carve::program;

namespace {

/// A small sound dump, made here: with everything that a row may deviate in.
struct made {
  const char* family;
  carve::index_t B, T, H, HV, K, V;
  std::vector<std::int64_t> cu_seqlens = {};
  bool activations = false;
  double decay = 0.3;  ///< the largest
};

carve::tensor<double> wave(const carve::tensor_shape& shape, double low,
                           double high, double step) {
  carve::tensor<double> x(shape);
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double at = std::sin(static_cast<double>(i * i % 9973 + 1) * step);
    x.data[i] = low + (high - low) * (0.5 + 0.5 * at);
    x.data[i] = carve::round_to<carve::format::bf16>(x.data[i]);
  }
  return x;
}

/// The dump with the exact outputs, in F32.
dump sound(const made& m) {
  dump d;
  d.in.family = carve::family_named(m.family);
  d.dtype = carve::safetensors::dtype::f32;
  auto& x = d.in.in;
  x.q = wave({m.B, m.T, m.H, m.K}, -1, 1, 1.1);
  x.k = wave({m.B, m.T, m.H, m.K}, -0.5, 0.5, 1.3);
  x.v = wave({m.B, m.T, m.HV, m.V}, -1, 1, 1.7);
  const auto& f = carve::info(d.in.family);
  const auto gate = [&](carve::axis a) {
    carve::tensor_shape s{m.B, m.T, m.HV};
    if (a == carve::axis::key) s.push_back(m.K);
    if (a == carve::axis::value) s.push_back(m.V);
    return s;
  };
  if (f.decay != carve::axis::none) x.g = wave(gate(f.decay), -m.decay, 0, 0.7);
  if (f.tied) {
    x.beta = wave({m.B, m.T, m.HV}, 0.1, 0.9, 0.9);
  } else {
    x.b = wave(gate(f.erase), 0.1, 0.9, 0.8);
    x.w = wave(gate(f.write), 0.1, 0.9, 0.6);
  }
  d.in.cu_seqlens = m.cu_seqlens;
  const auto N = m.cu_seqlens.empty()
                     ? m.B
                     : static_cast<carve::index_t>(m.cu_seqlens.size()) - 1;
  x.initial_state = wave({N, m.HV, m.K, m.V}, -0.5, 0.5, 1.9);
  if (m.activations) {
    d.in.act.decay = carve::decay_activation::softplus;
    d.in.act.beta = carve::gate_activation::sigmoid;
    d.in.act.l2norm = true;
    d.in.act.l2_epsilon = 1e-3;
    x.A_log = wave({m.HV}, -1, 0, 0.3);
    carve::tensor_shape bias{m.HV};
    if (f.decay == carve::axis::key) bias.push_back(m.K);
    x.dt_bias = wave(bias, -1, 1, 0.4);
  }
  d.cotangents.o = wave({m.B, m.T, m.HV, m.V}, -1, 1, 2.1);
  d.cotangents.final_state = wave({N, m.HV, m.K, m.V}, -1, 1, 2.3);
  d.size = carve::check(d.in);
  const auto r = exact_result(d, "dd");
  each_result(r, [&](const std::string& name, const auto& y) {
    if (!y.present()) return;
    judged_tensor j{name, carve::safetensors::dtype::f32, {}};
    j.values.shape = y.shape;
    for (const auto& e : y.data) {
      j.values.data.push_back(carve::rounded(carve::format::f32, e));
    }
    d.judged.push_back(j);
  });
  return d;
}

/// What verify says of a dump with other outputs than the one that `e` is of.
verification judged(const dump& d, const expectation& e) {
  verification v;
  for (const judged_tensor& x : d.judged) v.tensors.push_back(judge(e, x));
  return v;
}

/// Applies every choice of every row to the dump and demands that it be named.
/// @returns the rows that changed something.
std::set<std::string> every_row_is_named(const dump& d, const std::string& of) {
  const expectation e = expect(d);
  std::set<std::string> seen;
  for (const suspect& s : suspects()) {
    const auto r = deviating_result(d, {s});
    if (!r) continue;
    const dump wrong = with_outputs(d, *r);
    const verification v = judged(wrong, e);
    if (v.result() != outcome::fail) continue;
    const diagnosis found = diagnose(wrong, v);
    CAPTURE(of, name_of({s}), sentence_of(s));
    for (const explanation& x : found.found) UNSCOPED_INFO(x.text);
    CHECK_FALSE(found.found.empty());
    if (found.found.empty()) continue;
    CHECK(found.found[0].id == name_of({s}));
    seen.insert(name_of({s}));
  }
  return seen;
}

}  // namespace

TEST_CASE("a sound dump has no diagnosis") {
  for (const char* name : {"gdn_bf16", "kda_bf16"}) {
    const dump d = fixtures::read(name);
    const diagnosis found = diagnose(d, verify(d));
    REQUIRE(found.found.empty());
    REQUIRE(found.wrong.empty());
  }
}

TEST_CASE("without a deviation the computation is the exact one") {
  const dump d = sound({"gdn2", 1, 20, 2, 2, 6, 6});
  const auto exact = exact_result(d, "dd");
  const auto r = deviating_result(d, {});
  REQUIRE(r);
  each_result(*r, [&](const std::string& name, const auto& x) {
    const auto& y = result_named(exact, name);
    REQUIRE(x.data.size() == y.data.size());
    for (std::size_t i = 0; i < x.data.size(); ++i) {
      REQUIRE(std::fabs(x.data[i] - static_cast<double>(y.data[i])) < 1e-12);
    }
  });
}

TEST_CASE("a deviation leaves alone what its row does not name") {
  for (const made& m :
       {made{"gdn2", 2, 70, 1, 2, 6, 6}, made{"gdn", 2, 70, 2, 2, 6, 6}}) {
    const dump d = sound(m);
    const auto right = deviating_result(d, {});
    for (const suspect& s : suspects()) {
      const auto r = deviating_result(d, {s});
      if (!r) continue;
      each_result(*r, [&](const std::string& name, const auto& x) {
        if (may_touch({s}, name)) return;
        const auto& y = result_named(*right, name);
        CAPTURE(name_of({s}), name);
        REQUIRE(x.data.size() == y.data.size());
        for (std::size_t i = 0; i < x.data.size(); ++i) {
          REQUIRE(std::fabs(x.data[i] - y.data[i]) < 1e-10);
        }
      });
    }
  }
}

TEST_CASE("every deviation of a small dump is named first") {
  std::set<std::string> seen;
  const auto add = [&](const made& m, const std::string& of) {
    seen.merge(every_row_is_named(sound(m), of));
  };
  add({"gdn2", 1, 150, 2, 4, 8, 8, {0, 70, 150}}, "packed gdn2");
  add({"gdn", 2, 40, 2, 2, 8, 8, {}, true}, "gdn with activations");
  add({"kda", 1, 40, 2, 2, 8, 8, {}, true}, "kda with activations");
  add({"gdn", 1, 150, 2, 2, 8, 8, {}, false, 3}, "gdn with strong decays");
  std::set<std::string> unseen;
  for (const suspect& s : suspects()) {
    if (!seen.contains(name_of({s}))) unseen.insert(name_of({s}));
  }
  for (const std::string& id : unseen) UNSCOPED_INFO(id);
  REQUIRE(unseen.empty());
}

TEST_CASE("a bundled dump's deviations are named first") {
  const dump d = fixtures::read("gdn_bf16");
  const expectation e = expect(d);
  for (const char* id :
       {"read-before-update", "scale-missing", "decay-exp2", "decay-ignored",
        "erase-before-decay", "decay-after-write", "beta-on-write-only",
        "initial-state-ignored", "state-transposed", "chunk-reset",
        "grad-no-final-state", "grad-chunk-local"}) {
    const suspect s = suspects(id)[0];
    const auto r = deviating_result(d, {s});
    CAPTURE(id);
    REQUIRE(r);
    const dump wrong = with_outputs(d, *r);
    const verification v = judged(wrong, e);
    REQUIRE(v.result() == outcome::fail);
    const diagnosis found = diagnose(wrong, v);
    for (const explanation& x : found.found) UNSCOPED_INFO(x.text);
    REQUIRE_FALSE(found.found.empty());
    REQUIRE(found.found[0].id == id);
    REQUIRE(found.found[0].ratio < 1);
    REQUIRE(found.found[0].text.find(sentence_of(s)) != std::string::npos);
    REQUIRE(found.left.empty());
  }
}

TEST_CASE("what no deviation explains is explained by none") {
  dump d = fixtures::read("gdn_bf16");
  for (judged_tensor& x : d.judged) {
    if (x.name != "o") continue;
    for (std::size_t i = 0; i < x.values.data.size(); i += 3) {
      x.values.data[i] *= -1;
    }
  }
  const diagnosis found = diagnose(d, verify(d));
  REQUIRE(found.found.empty());
  REQUIRE(found.wrong == std::vector<std::string>{"o"});
  REQUIRE(found.left.size() == 1);
  REQUIRE_FALSE(found.left[0].where.empty());
  REQUIRE(found.tried > 12);
}

TEST_CASE("an unknown deviation is an error that names it") {
  REQUIRE(fixtures::message([] {
            suspects("no-such-thing");
          }).find("no-such-thing") != std::string::npos);
}
