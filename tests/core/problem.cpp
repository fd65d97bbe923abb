// Does every unusable problem say what is wrong with it?
#include "carve/problem.hpp"

#include <limits>

#include "carve/family_name.hpp"
#include "catch.hpp"
#include "random_problem.hpp"

namespace {

using namespace carve::tests;
using carve::check;
using carve::family;
using carve::tensor;

auto gdn2() { return random_problem<double>(family::gdn2, {1, 8, 2, 4, 4, 3}); }

}  // namespace

TEST_CASE("sizes are read off the tensors") {
  const carve::dimensions n = check(gdn2());
  REQUIRE(n.T == 8);
  REQUIRE(n.HV == 4);
  REQUIRE(n.N == 1);
}

TEST_CASE("a missing tensor is named with what the family needs") {
  auto p = gdn2();
  p.in.b = {};
  REQUIRE_THROWS_WITH(check(p), "b: missing; family gdn2 needs [q,k,v,g,b,w]");
}

TEST_CASE("a tensor of another family is refused") {
  auto p = gdn2();
  p.in.beta = tensor<double>({1, 8, 4});
  REQUIRE_THROWS_WITH(
      check(p), "beta: not a tensor of family gdn2, which takes [q,k,v,g,b,w]");
}

TEST_CASE("a wrong shape is named with the one expected") {
  auto p = gdn2();
  SECTION("k") {
    p.in.k = tensor<double>({1, 8, 2, 5});
    REQUIRE_THROWS_WITH(check(p),
                        "k: expected [1,8,2,4] like q, got [1,8,2,5]");
  }
  SECTION("v") {
    p.in.v = tensor<double>({1, 8, 3, 3});
    REQUIRE_THROWS_WITH(
        check(p),
        "v: expected [1,8,HV,V] with HV a multiple of 2, got [1,8,3,3]");
  }
  SECTION("g") {
    p.in.g = tensor<double>({1, 8, 4, 3});
    REQUIRE_THROWS_WITH(check(p),
                        "g: expected [1,8,4,4] or [1,8,2,4] or [1,8,4] or "
                        "[1,8,2], got [1,8,4,3]");
  }
  SECTION("initial_state") {
    p.in.initial_state = tensor<double>({1, 4, 3, 4});
    REQUIRE_THROWS_WITH(check(p),
                        "initial_state: expected [1,4,4,3] ([N,HV,K,V]), got "
                        "[1,4,3,4]");
  }
}

TEST_CASE("a gate along an axis that the family has not is refused") {
  for (const family f : {family::mamba2, family::gdn}) {
    auto p = random_problem<double>(f, {1, 8, 2, 2, 4, 3});
    p.in.g = tensor<double>({1, 8, 2, 4});
    REQUIRE_THROWS_WITH(check(p), "g: expected [1,8,2], got [1,8,2,4]");
  }
  auto p = random_problem<double>(family::carve, {1, 8, 2, 2, 4, 3});
  p.in.w = tensor<double>({1, 8, 2, 3});
  REQUIRE_THROWS_WITH(check(p), "w: expected [1,8,2], got [1,8,2,3]");
}

TEST_CASE("a bias per channel needs a decay per channel") {
  auto p = random_problem<double>(family::kda, {1, 8, 2, 2, 4, 3});
  p.act.decay = carve::decay_activation::softplus;
  p.in.dt_bias = tensor<double>({2, 4});
  REQUIRE_NOTHROW(check(p));
  p.in.g = tensor<double>({1, 8, 2});
  REQUIRE_THROWS_WITH(
      check(p), "dt_bias: expected [2] like g, which is [1,8,2], got [2,4]");
}

TEST_CASE("the sub-steps of a token are as many as v has") {
  auto p =
      random_problem<double>(family::gated_delta_product, {1, 8, 2, 2, 4, 3});
  REQUIRE(check(p).substeps == 2);
  p.in.k = tensor<double>({1, 8, 2, 4});
  REQUIRE_THROWS_WITH(check(p),
                      "k: expected [1,16,2,4] ([B,Tn,H,K]), got [1,8,2,4]");
  p.in.v = tensor<double>({1, 15, 2, 3});
  REQUIRE_THROWS_WITH(check(p),
                      "v: expected [1,8 n,HV,V] with HV a multiple of 2, got "
                      "[1,15,2,3]");
  auto q = random_problem<double>(family::gdn, {1, 8, 2, 2, 4, 3});
  q.in.v = tensor<double>({1, 16, 2, 3});
  REQUIRE_THROWS_WITH(check(q),
                      "v: expected [1,8,HV,V] with HV a multiple of 2, got "
                      "[1,16,2,3]");
}

TEST_CASE("cu_seqlens that are no offsets are refused") {
  auto p = gdn2();
  p.in.initial_state = {};
  p.cu_seqlens = {0, 5, 3, 8};
  REQUIRE_THROWS_WITH(check(p),
                      "cu_seqlens: expected offsets that never decrease, got "
                      "5 then 3 at entry 2");
  p.cu_seqlens = {1, 8};
  REQUIRE_THROWS_WITH(check(p),
                      "cu_seqlens: expected at least two offsets, the first "
                      "0, got [1,8]");
  p.cu_seqlens = {0, 9};
  REQUIRE_THROWS_WITH(
      check(p),
      "cu_seqlens: expected the last offset to be at most T = 8, got 9");
}

TEST_CASE("a NaN in an input is refused with its place") {
  auto p = gdn2();
  p.in.k.data[4 * 2 + 3] = std::numeric_limits<double>::quiet_NaN();
  REQUIRE_THROWS_WITH(check(p),
                      "k: expected finite numbers, got a NaN or an infinity "
                      "at [0,1,0,3]");
}

TEST_CASE("an unknown name lists the known ones") {
  REQUIRE_THROWS_WITH(
      carve::family_named("gdn3"),
      "family: expected one of linear, mamba2, gla, delta, gdn, kda, gdn2, "
      "value_erase, full_erase, carve, comba, dplr, rwkv7, "
      "gated_delta_product, eda, mamba3, got \"gdn3\"; did you mean gdn or "
      "gdn2?");
}

TEST_CASE("a family goes by its name, its title and its aliases") {
  for (const carve::family_info& f : carve::families) {
    REQUIRE(carve::family_named(f.name) == f.id);
    REQUIRE(carve::family_named(f.title) == f.id);
  }
  REQUIRE(carve::family_named("GDN") == family::gdn);
  REQUIRE(carve::family_named("DeltaNet") == family::delta);
  REQUIRE(carve::family_named("gated_delta_net") == family::gdn);
  REQUIRE(carve::family_named("gated-deltanet") == family::gdn);
  REQUIRE(carve::family_named("Gated DeltaNet 2") == family::gdn2);
}

TEST_CASE("no two families share a name, a title or an alias") {
  std::vector<std::string> names;
  for (const carve::family_info& f : carve::families) {
    std::vector<std::string> own{carve::detail::plain_name(f.name)};
    const auto add = [&](std::string_view word) {
      const std::string name = carve::detail::plain_name(word);
      if (std::find(own.begin(), own.end(), name) == own.end()) {
        own.push_back(name);
      }
    };
    add(f.title);
    carve::detail::each_word(f.aliases, add);
    names.insert(names.end(), own.begin(), own.end());
  }
  std::sort(names.begin(), names.end());
  REQUIRE(std::adjacent_find(names.begin(), names.end()) == names.end());
}

TEST_CASE("only a name that is nearly right is guessed at") {
  const auto guess = [](std::string_view name) {
    try {
      carve::family_named(name);
    } catch (const carve::error& e) {
      const std::string text = e.what();
      const std::size_t at = text.find("; ");
      return at == text.npos ? "" : text.substr(at);
    }
    return std::string("known");
  };
  REQUIRE(guess("detla") == "; did you mean delta?");
  REQUIRE(guess("gated_deltant") == "; did you mean gdn?");
  REQUIRE(guess("softmax").empty());
  REQUIRE(guess("").empty());
  REQUIRE(guess(std::string(1000000, 'g')).empty());
}

TEST_CASE("activations that do not fit their tensors are refused") {
  using Catch::Matchers::StartsWith;
  const auto kda = [] {
    return random_problem<double>(family::kda, {1, 4, 2, 4, 3, 2});
  };
  auto p = kda();
  p.in.A_log = tensor<double>({4});
  REQUIRE_THROWS_WITH(check(p), StartsWith("A_log: expected a decay activ"));
  p.act.decay = carve::decay_activation::softplus;
  REQUIRE_NOTHROW(check(p));
  p.act.domain = carve::decay_domain::log2;
  REQUIRE_THROWS_WITH(check(p), StartsWith("decay domain: "));
  p.act.domain = carve::decay_domain::log;
  p.in.g = tensor<double>({1, 4, 2, 3});
  REQUIRE_THROWS_WITH(check(p), StartsWith("g: expected logits of 4 value"));
  p = kda();
  p.act.domain = carve::decay_domain::linear;
  p.in.g.data[7] = 0;
  REQUIRE_THROWS_WITH(check(p), StartsWith("g: expected decays above zero"));
  p = kda();
  p.act.l2norm = true, p.act.l2_epsilon = -1;
  REQUIRE_THROWS_WITH(check(p), StartsWith("l2 epsilon: "));
  auto c = random_problem<double>(family::carve, {1, 4, 1, 1, 3, 2});
  c.act.b = carve::gate_activation::sigmoid;
  REQUIRE_THROWS_WITH(check(c), StartsWith("b: the carve family"));
  c.act.b = carve::gate_activation::none, c.window = 0;
  REQUIRE_THROWS_WITH(check(c), StartsWith("window: "));
}

TEST_CASE("there are as many states as there are heads of q or v") {
  auto p = random_problem<double>(family::gdn, {1, 4, 4, 4, 3, 2});
  p.in.v = tensor<double>({1, 4, 2, 2});
  const carve::dimensions n = check(p);
  REQUIRE(n.HV == 4);
  REQUIRE(n.VH == 2);
}
