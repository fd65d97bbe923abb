/// @file
/// Is a sound kernel let through, whatever it is free to do, and a wrong one
/// not?  On inputs of every regime, made here, with draws and chunk lengths
/// that the ensemble does not use.
#include "program/ensemble.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <string>

#include "catch.hpp"
#include "program/fixtures.hpp"
#include "program/report.hpp"
#include "program/verify.hpp"

using namespace carve;
using namespace carve::program;

namespace {

struct regime {
  std::string name;
  index_t T = 100, H = 2, HV = 2;
  double correlation = 0;       // of a key with the first one
  double decay_from, decay_to;  // of g, uniform
  double gate_from, gate_to;    // of beta, uniform
  bool corners = false;         // beta and g at their ends
};

const std::vector<regime> regimes{
    {"natural", 100, 2, 2, 0, -0.1, 0, 0.1, 0.9},
    {"hard", 100, 2, 2, 0.95, -1e-3, 0, 0.8, 1},
    {"samekey", 100, 2, 2, 1, -0.1, 0, 0.1, 0.9},
    {"mid", 100, 2, 2, 0, -3, -0.5, 0.1, 0.9},
    {"strong", 100, 2, 2, 0, -80, 0, 0.1, 0.9},
    {"strongall", 100, 2, 2, 0, -200, -100, 0.1, 0.9},
    {"gates01", 100, 2, 2, 0, -1, 0, 0, 1, true},
    {"T1", 1, 2, 2, 0, -0.1, 0, 0.1, 0.9},
    {"grouped", 100, 1, 3, 0, -0.1, 0, 0.1, 0.9},
    {"neg", 100, 2, 2, 0, -0.1, 0, 1, 2},
    {"hardneg", 100, 2, 2, 0.9, -1e-3, 0, 1, 2},
};

tensor<double> random_tensor(tensor_shape shape, double from, double to,
                             std::mt19937_64& random) {
  tensor<double> x(std::move(shape));
  std::uniform_real_distribution<double> u(from, to);
  for (double& e : x.data) e = static_cast<float>(u(random));
  return x;
}

/// A dump of the family gdn, in F32, without outputs yet.
dump inputs_of(const regime& r, std::uint64_t seed) {
  constexpr index_t K = 16, V = 16;
  std::mt19937_64 random(seed);
  dump d;
  problem<double>& p = d.in;
  p.family = family::gdn;
  p.in.q = random_tensor({1, r.T, r.H, K}, -0.5, 0.5, random);
  p.in.v = random_tensor({1, r.T, r.HV, V}, -1, 1, random);
  p.in.k = random_tensor({1, r.T, r.H, K}, -1, 1, random);
  p.in.g = random_tensor({1, r.T, r.HV}, r.decay_from, r.decay_to, random);
  p.in.beta = random_tensor({1, r.T, r.HV}, r.gate_from, r.gate_to, random);
  p.in.initial_state = random_tensor({1, r.HV, K, V}, -1, 1, random);
  if (r.corners) {
    for (double& e : p.in.beta.data) e = std::round(e);
    for (double& e : p.in.g.data) e = e > -0.5 ? 0 : e;
  }
  for (index_t row = 0; row < r.T * r.H; ++row) {
    double* const k = &p.in.k.data[static_cast<std::size_t>(row * K)];
    const double* const first =
        &p.in.k.data[static_cast<std::size_t>(row % r.H * K)];
    double square = 0;
    for (index_t i = 0; i < K && row >= r.H; ++i) {
      k[i] = r.correlation * first[i] * 2 + (1 - r.correlation) * k[i];
    }
    for (index_t i = 0; i < K; ++i) square += k[i] * k[i];
    for (index_t i = 0; i < K; ++i) {
      k[i] = static_cast<float>(k[i] / std::sqrt(square));
    }
  }
  d.cotangents.o = random_tensor({1, r.T, r.HV, V}, -1, 1, random);
  d.cotangents.final_state = random_tensor({1, r.HV, K, V}, -1, 1, random);
  d.dtype = safetensors::dtype::f32;
  d.size = check(p);
  return d;
}

/// The dump with these outputs and gradients, rounded to F32.
template <class T>
dump holding(dump d, const gradient_result<T>& r) {
  each_result(r, [&d](const std::string& name, const tensor<T>& x) {
    if (!x.present()) return;
    judged_tensor y{name, safetensors::dtype::f32, {}};
    y.values = convert<double>(x, [](const T& e) {
      return static_cast<double>(
          static_cast<float>(scalar_traits<T>::to_double(e)));
    });
    d.judged.push_back(std::move(y));
  });
  return d;
}

void require_sound(const std::string& what, const dump& d) {
  const verification v = verify(d);
  for (const verdict& t : v.tensors) {
    INFO(what << ", " << t.name << ": " << t.errors.ratio << ", "
              << t.errors.max_ratio);
    CHECK(t.pass());
  }
}

gradient_result<double> drawn_result(const dump& d, index_t chunk,
                                     std::uint32_t seed, exponential how) {
  way w;
  w.chunk = chunk, w.draw = seed, w.exp = how;
  return compute(d, w);
}

}  // namespace

TEST_CASE("sound ways that the ensemble does not hold pass in every regime") {
  std::uint64_t seed = 20261128;
  for (const regime& r : regimes) {
    const dump d = inputs_of(r, ++seed);
    const auto p = convert_problem<float>(
        d.in, [](double x) { return static_cast<float>(x); });
    const auto c = convert_outputs<float>(
        d.cotangents, [](double x) { return static_cast<float>(x); });
    for (const index_t chunk : {24, 48, 100}) {
      require_sound(
          text(r.name, ", chunks of ", chunk),
          holding(
              d, backward(p, c, chunked_solver<difference_policy>{chunk, {}})));
    }
    require_sound(
        r.name + ", decays multiplied",
        holding(d, backward(p, c, chunked_solver<exact_policy>{48, {}})));
    require_sound(r.name + ", column by column",
                  holding(d, backward(p, c, columnwise_solver{48})));
    for (const std::uint32_t draw : {1000001u, 1000002u, 1000003u}) {
      const auto how = static_cast<exponential>(draw % 3);
      require_sound(text(r.name, ", token by token, draw ", draw),
                    holding(d, drawn_result(d, 0, draw, how)));
      require_sound(text(r.name, ", chunks of 48, draw ", draw),
                    holding(d, drawn_result(d, 48, draw, how)));
    }
  }
}

TEST_CASE("a state kept in bf16 fails in every regime that keeps one") {
  std::uint64_t seed = 7;
  for (const regime& r : regimes) {
    if (r.T == 1 || r.name == "strongall") continue;
    dump d = inputs_of(r, ++seed);
    d.cotangents = {};
    // One token after the other, the state rounded in between.
    outputs<double> out{tensor<double>({1, r.T, r.HV, 16}), {}};
    problem<double> p = d.in;
    const auto token = [&](const tensor<double>& x, index_t t) {
      const std::size_t n = x.data.size() / static_cast<std::size_t>(r.T);
      tensor<double> y;
      y.shape = x.shape, y.shape[1] = 1;
      const auto from = x.data.begin() + static_cast<std::ptrdiff_t>(n) * t;
      y.data.assign(from, from + static_cast<std::ptrdiff_t>(n));
      return y;
    };
    for (index_t t = 0; t < r.T; ++t) {
      for (const auto& m : tensors<double>::members()) {
        if (m.name == "initial_state" || !(d.in.in.*m.at).present()) continue;
        p.in.*m.at = token(d.in.in.*m.at, t);
      }
      const outputs<double> step = forward(p);
      std::copy(step.o.data.begin(), step.o.data.end(),
                out.o.data.begin() + t * r.HV * 16);
      p.in.initial_state = step.final_state;
      round_all(format::bf16, std::span(p.in.initial_state.data));
    }
    out.final_state = p.in.initial_state;
    const verification v = verify(holding(d, gradient_result<double>{out, {}}));
    INFO(r.name);
    CHECK(v.result() == outcome::fail);
  }
}

TEST_CASE("one gradient that is not a number fails, whatever the unit") {
  dump d = inputs_of(regimes[0], 3);
  d = holding(d, exact_result(d, "dd"));
  REQUIRE(verify(d).pass());
  for (judged_tensor& x : d.judged) {
    dump broken = d;
    for (judged_tensor& y : broken.judged) {
      if (y.name == x.name) y.values.data.back() = std::nan("");
    }
    INFO(x.name);
    CHECK(verify(broken).result() == outcome::fail);
  }
}

TEST_CASE("facts narrow the ways, and contradictions are refused") {
  const dump d = fixtures::read("gdn_bf16");
  const auto ways = [&d](const kernel_facts& f) { return ways_of(d, f); };
  const auto narrow = ways({profile::tensor_core, 32, {}});
  REQUIRE(narrow.front().chunk == 32);
  for (const way& w : narrow) {
    REQUIRE(w.chunk == 32);
    REQUIRE(w.few_only);
    REQUIRE_FALSE(w.stored_state);
  }
  REQUIRE(ways({}).front().chunk == 64);
  // Roundings that only other kernels make are not granted to one that is
  // known, and not where they change nothing.
  const auto any = [](const std::vector<way>& all, const auto& is) {
    return std::any_of(all.begin(), all.end(), is);
  };
  const auto decayed = [](const way& w) { return w.rounding.decayed; };
  const auto scaled = [](const way& w) { return w.scaled; };
  REQUIRE(any(ways({}), decayed));
  REQUIRE_FALSE(any(ways({}), scaled));  // by an eighth
  REQUIRE_FALSE(any(narrow, decayed));
  dump other = d;
  other.in.scale = 0.3;
  REQUIRE(any(ways_of(other, {}), scaled));
  REQUIRE_FALSE(any(ways_of(other, {profile::tensor_core, 32, {}}), scaled));
  other.in.scale = 3e-3;
  REQUIRE_FALSE(any(ways_of(other, {}), scaled));
  REQUIRE_FALSE(any(ways_of(fixtures::read("kda_bf16"), {}), decayed));
  for (const way& w : ways({profile::fp32, {}, exponential::exp2})) {
    REQUIRE((w.draw == 0 || w.exp == exponential::exp2));
  }
  REQUIRE(fixtures::message([&] {
            ways({profile::ieee_recurrent, 64, {}});
          }) == "chunk: profile ieee-recurrent walks token by token");
  REQUIRE(fixtures::message([&] {
            ways({profile::tensor_core, {}, exponential::exp2});
          }).starts_with("exp: its error drowns"));
}

TEST_CASE("a q that is scaled first has the gradient of the one that is not") {
  dump d = fixtures::read("gdn_bf16");
  d.in.scale = 0.3;
  way plain{profile::tensor_core, 64, {format::bf16}}, scaled = plain;
  scaled.scaled = true;
  const auto x = compute(d, plain), y = compute(d, scaled);
  const auto near = [&](const std::vector<double>& a,
                        const std::vector<double>& b) {
    double apart = 0, size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      apart += std::pow(a[i] - b[i], 2), size += a[i] * a[i];
    }
    // By the roundings of bf16, and by these.
    CHECK(apart > 0);
    CHECK(std::sqrt(apart / size) < 0x1p-6);
  };
  near(x.out.o.data, y.out.o.data);
  near(x.gradients.q.data, y.gradients.q.data);
  near(x.gradients.initial_state.data, y.gradients.initial_state.data);
}

namespace {

/// RMS unit of a tensor when these are the ways.
double unit_of(const dump& d, const std::vector<way>& ways,
               std::string_view name) {
  const ensemble e = run_ensemble(d, ways, exact_result(d, "dd"), {});
  for (const tensor_unit& u : e.units) {
    if (u.name == name) return u.unit.rms;
  }
  FAIL("no unit of " << name);
  return 0;
}

}  // namespace

TEST_CASE("a unit is that of stored numbers, a final state's that of both") {
  dump d = fixtures::read("gdn_bf16");
  std::vector<way> ways = ways_of(d, {profile::tensor_core, 64, {}});
  const double narrow = unit_of(d, ways, "final_state");
  for (way& w : ways) w.stored_state = true;
  CHECK(unit_of(d, ways, "final_state") > narrow);
  const double stored = unit_of(d, ways, "o");
  for (judged_tensor& x : d.judged) x.dtype = safetensors::dtype::f32;
  CHECK(unit_of(d, ways, "o") < stored);
}

TEST_CASE("few numbers have each the largest error of all ways") {
  const dump d = fixtures::small().read();
  const std::vector<way> ways = ways_of(d, {});
  double most = 0;
  for (const way& w : ways) {
    most = std::max(most, unit_of(d, {w}, "final_state"));
  }
  CHECK(unit_of(d, ways, "final_state") > most);
}

TEST_CASE("a decay beyond all others leaves the unit of what follows it") {
  dump d = inputs_of(regimes[0], 5);
  for (std::size_t i = 20; i < 22; ++i) d.in.in.g.data[i] = -1e30;
  d.cotangents = {};
  d = holding(d, exact_result(d, "dd"));
  CHECK(unit_of(d, ways_of(d, {}), "o") < 1e-5);
}

TEST_CASE("what a verdict says beside its tensors") {
  dump d = inputs_of(regimes[0], 9);
  d = holding(d, exact_result(d, "dd"));
  verification v = verify(d);
  CHECK(v.pass());
  CHECK_FALSE(v.packed);
  REQUIRE_FALSE(v.inputs.untested.empty());
  verify_settings how;
  how.strict = true;
  CHECK(verify(d, how).result() == outcome::not_judged);
  d.in.cu_seqlens = {0, d.size.T};
  CHECK(verify(d).packed);
  // Exact means more digits than a double has.
  const auto& o = expect(d).exact.out.o.data;
  CHECK(std::any_of(o.begin(), o.end(),
                    [](const double_double& x) { return x.lo != 0; }));
}

TEST_CASE("an exact state beyond a double is an error, not infinite") {
  fixtures::editable e = fixtures::small(fixtures::st::dtype::f64);
  e.metadata["read_out"] = "before";
  e.tensors.erase("do"), e.tensors.erase("dq");
  const auto fill = [&](const char* name, double first, double last) {
    std::vector<double>& x = e.tensors[name].values;
    const auto end = x.end() - static_cast<std::ptrdiff_t>(x.size() / 5);
    std::fill(x.begin(), end, first);
    std::fill(end, x.end(), last);
  };
  // The last token writes as much again as the state held.
  fill("q", 1e-10, 1e-10), fill("k", 0, 1), fill("v", 0, 1.5e308);
  fill("g", 0, 0), fill("b", 0, 0), fill("w", 1, 1);
  e.tensors["initial_state"] = e.tensors["final_state"];
  for (double& x : e.tensors["initial_state"].values) x = 1.5e308;
  CHECK(fixtures::message([&] {
          exact_result(e.read(), "dd");
        }).starts_with("final_state: the exact result is beyond the range"));
}

TEST_CASE("another seed draws other errors") {
  const dump d = fixtures::small().read();
  kernel_facts other;
  other.seed = 2;
  const auto x = ways_of(d, {}), y = ways_of(d, other);
  REQUIRE(x.size() == y.size());
  REQUIRE(x.back().draw != 0);
  CHECK(x.back().draw != y.back().draw);
}

TEST_CASE("what the dtypes imply") {
  REQUIRE(implied_profile(fixtures::read("gdn_bf16")) == profile::tensor_core);
  REQUIRE(implied_profile(fixtures::small().read()) == profile::fp32);
  dump d = fixtures::small().read();
  d.in.family = family::full_erase;
  REQUIRE(implied_profile(d) == profile::ieee_recurrent);
  d.in.family = family::value_erase;
  REQUIRE(implied_profile(d) == profile::ieee_recurrent);
}

TEST_CASE("an exact gradient beyond a double is an error, not infinite") {
  fixtures::editable e = fixtures::small(fixtures::st::dtype::f64);
  for (double& x : e.tensors["do"].values) x = 1e308;
  for (double& x : e.tensors["v"].values) x = 1e10;
  REQUIRE(fixtures::message([&] {
            exact_result(e.read(), "dd");
          }).find("beyond the range of a double") != std::string::npos);
}

TEST_CASE("the exact result in double is that of doubles") {
  const dump d = fixtures::read("gdn_bf16");
  const auto by_double = exact_result(d, "double");
  const auto by_dd = exact_result(d, "dd");
  double most = 0;
  for (std::size_t i = 0; i < by_dd.out.o.data.size(); ++i) {
    REQUIRE(by_double.out.o.data[i].lo == 0);
    most = std::max(most, std::fabs(static_cast<double>(
                              by_double.out.o.data[i] - by_dd.out.o.data[i])));
  }
  REQUIRE(most > 0);
  REQUIRE(most < 1e-12);
}

TEST_CASE("a drawn float errs as rounding does, and only where it would") {
  const auto in = [](double x, std::uint32_t seed) {
    return drawn(x, seed, exponential::rounded);
  };
  // Exact: powers of two, zeros, sums that are floats.
  REQUIRE((in(0.3f, 1) * in(4, 1)).value() == 4.0 * 0.3f);
  REQUIRE((in(0.3f, 1) + in(0, 1)).value() == 0.3f);
  REQUIRE((in(1.5, 1) + in(2.25, 1)).value() == 3.75);
  double sum = 0, square = 0;
  const int n = 20000;
  for (int i = 0; i < n; ++i) {
    const double x = static_cast<float>(1 + i * 0x1p-16), y = 0.7f;
    const double e = ((in(x, 5) * in(y, 5)).value() - x * y) /
                     detail::half_spacing(format::f32, x * y);
    REQUIRE(std::fabs(e) <= 1);
    sum += e, square += e * e;
  }
  // Uniform in [-1,1]: mean 0 +- 0.004, mean square 1/3.
  REQUIRE(std::fabs(sum / n) < 0.02);
  REQUIRE(std::fabs(square / n - 1.0 / 3) < 0.02);
  // The same seed gives the same error, another another.
  REQUIRE((in(0.3f, 1) * in(0.7f, 1)).value() ==
          (in(0.3f, 1) * in(0.7f, 1)).value());
  REQUIRE((in(0.3f, 1) * in(0.7f, 1)).value() !=
          (in(0.3f, 2) * in(0.7f, 2)).value());
  REQUIRE((in(1e-30, 1) * in(1e-30, 1)).value() == 0);
}

TEST_CASE("a GPU's exp has the error that was measured") {
  double sum = 0, square = 0;
  int n = 0;
  for (std::uint32_t seed = 0; seed < 16; ++seed) {
    for (int i = 1; i <= 2000; ++i, ++n) {
      const double x = -static_cast<float>(i) * 0x1p-18;
      const double e =
          (exp(drawn(x, seed, exponential::approximate)).value() / std::exp(x) -
           1) *
          0x1p24;
      sum += e, square += e * e;
    }
  }
  REQUIRE(std::fabs(sum / n + 0.38) < 0.05);
  REQUIRE(std::fabs(std::sqrt(square / n) - 0.64) < 0.05);
}

TEST_CASE("the replay's roundings are those of its table") {
  matrix<float> m(1, 1);
  const float x = std::bit_cast<float>(0x3fffffffu);
  const auto rounded = [&](const operand_rounding& how, rounding_point at,
                           bool per_channel) {
    m(0, 0) = x;
    operand_policy(how).round(at, per_channel, m);
    return std::bit_cast<std::uint32_t>(m(0, 0));
  };
  const operand_rounding bf16{format::bf16, false, 0};
  // Thirteen bits are cut, not one more and not one less.
  REQUIRE(rounded(bf16, rounding_point::inverse, true) == 0x3fffe000u);
  REQUIRE(rounded({format::tf32, true, 0}, rounding_point::T, true) ==
          0x3fffe000u);
  REQUIRE(rounded({format::tf32, false, 0}, rounding_point::T, true) ==
          0x40000000u);
  REQUIRE(rounded(bf16, rounding_point::T, true) == 0x40000000u);
  // dscore is an operand with a decay per head alone.
  REQUIRE(rounded(bf16, rounding_point::dscore, false) == 0x40000000u);
  REQUIRE(rounded(bf16, rounding_point::dscore, true) == 0x3fffffffu);
  REQUIRE(rounded({format::f32, false, 0}, rounding_point::T, true) ==
          0x3fffffffu);
}

TEST_CASE("a replay has chunks of 64 unless told otherwise") {
  const dump d = fixtures::read("gdn_bf16");
  const auto p = convert_problem<float>(
      d.in, [](double x) { return static_cast<float>(x); });
  const auto c = convert_outputs<float>(
      d.cotangents, [](double x) { return static_cast<float>(x); });
  const auto by = [&](index_t chunk) {
    return backward(p, c,
                    chunked_solver<operand_policy>{
                        chunk, operand_policy(format::bf16)})
        .out.o.data;
  };
  const auto o = replay(p, c, profile::tensor_core, format::bf16).out.o.data;
  REQUIRE(o == by(64));
  REQUIRE(o != by(32));
  REQUIRE(replay(p, c, profile::tensor_core, format::bf16, {}, 32).out.o.data ==
          by(32));
}

TEST_CASE("a parameter in bf16 hides below the noise, and not from bitlike") {
  regime r = regimes.front();
  r.T = 192, r.decay_from = -2, r.decay_to = 2;  // x of softplus
  dump d = inputs_of(r, 12);
  problem<double>& p = d.in;
  const auto in_bf16 = [](tensor<double>& x) {
    for (double& e : x.data) e = rounded(format::bf16, e);
  };
  for (auto* x : {&p.in.q, &p.in.k, &p.in.v, &d.cotangents.o}) in_bf16(*x);
  p.act.decay = decay_activation::softplus;
  p.in.A_log = {{2}, {-1.3711, -1.2207}};
  p.in.dt_bias = {{2}, {0.1, -0.1}};
  d.dtype = safetensors::dtype::bf16;
  d.size = check(p);
  const kernel_facts facts{profile::tensor_core, 64, {}};
  const auto judged = [&](const dump& computed) {
    dump x = holding(d, compute(computed, ways_of(d, facts)[0]));
    for (judged_tensor& y : x.judged) {
      if (y.name == "A_log" || y.name == "final_state") continue;
      y.dtype = safetensors::dtype::bf16;
      in_bf16(y.values);
    }
    verify_settings how;
    how.facts = facts, how.bitlike = 0.3;
    return verify(x, how);
  };
  const verification right = judged(d);
  dump spoilt = d;
  in_bf16(spoilt.in.in.A_log);
  const verification wrong = judged(spoilt);
  CHECK(right.pass());
  CHECK(wrong.result() == outcome::fail);
  for (const verification* v : {&right, &wrong}) {
    const verdict& o = v->tensors.front();
    REQUIRE(o.name == "o");
    INFO(o.errors.ratio << ", distance " << o.errors.replay_distance);
    CHECK(o.errors.pass());  // the ratio alone does not tell them apart
    CHECK(o.too_far == (v == &wrong));
  }
  std::ostringstream report;
  write_json(report, {{"x", wrong, ""}});
  CHECK(report.str().find("\"bitlike\": 0.3") != std::string::npos);
}
