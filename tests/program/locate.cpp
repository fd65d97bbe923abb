/// @file
/// Is the place of a fault found, and what the inputs leave untested?
#include "program/locate.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "catch.hpp"
#include "program/exercise.hpp"
#include "program/fixtures.hpp"
#include "program/report.hpp"

using namespace carve;
using namespace carve::program;

namespace {

/// A tensor [1,T,2,8] of ones with sound errors of 1e-6, and damage.
struct subject {
  tensor_shape shape{1, 128, 2, 8};
  index_t rows = 1;  // a token
  std::vector<double_double> exact;
  std::vector<double> sound, actual;

  subject() {
    for (std::size_t i = 0; i < 128 * 16; ++i) {
      const double y = 1 + std::sin(static_cast<double>(i));
      exact.push_back(y);
      sound.push_back(y + 1e-6 * std::cos(3.0 * static_cast<double>(i)));
      actual.push_back(y + 1e-6 * std::cos(5.0 * static_cast<double>(i)));
    }
  }
  void damage(index_t t, index_t h, double by) {
    for (std::size_t j = 0; j < 8; ++j) {
      actual[static_cast<std::size_t>(t * 16 + h * 8) + j] += by;
    }
  }
  location find() const {
    return locate(map_errors(shape, rows, actual, exact),
                  map_errors(shape, rows, sound, exact), 0, actual, exact);
  }
  std::string text() const {
    return find().text(map_errors(shape, rows, actual, exact));
  }
};

}  // namespace

TEST_CASE("one head and its tokens are named, the rest is clean") {
  subject s;
  for (index_t t = 0; t < 64; ++t) s.damage(t, 1, 1e-4);
  REQUIRE(s.text() == "head 1, tokens 0 to 63; all else clean");
  REQUIRE_FALSE(s.find().everywhere);
}

TEST_CASE("a single token is found, and one that is not finite") {
  subject s;
  s.damage(77, 0, std::nan(""));
  REQUIRE(s.text() == "head 0, token 77; all else clean");
}

TEST_CASE("nothing is outside where errors are those of sound ways") {
  const subject s;
  REQUIRE(s.find().outside.empty());
  REQUIRE_FALSE(s.find().factor);
  REQUIRE(s.text() == "spread thinly: no token is outside by itself");
}

TEST_CASE("a period is found, and none where there is none") {
  subject s;
  for (index_t t = 15; t < 128; t += 16) s.damage(t, 0, 1e-3);
  REQUIRE(s.find().period == 16);
  REQUIRE(s.find().phase == 15);
  REQUIRE(s.text() ==
          "every 16 tokens, at 15 modulo 16; head 0, tokens 15 to 127 in part; "
          "all else clean");
  s.damage(20, 0, 1e-3);
  REQUIRE_FALSE(s.find().period);
}

TEST_CASE("rows of sub-steps are told as tokens and sub-steps") {
  subject one, whole, second, third, odd, last;
  one.rows = whole.rows = second.rows = third.rows = odd.rows = 2;
  one.damage(77, 0, 1e-3);
  REQUIRE(one.text() == "head 0, token 38 sub-step 1; all else clean");
  for (index_t t = 20; t < 22; ++t) whole.damage(t, 1, 1e-3);
  REQUIRE(whole.text() == "head 1, token 10; all else clean");
  for (index_t t = 20; t < 41; ++t) odd.damage(t, 1, 1e-3);
  REQUIRE(odd.text() ==
          "head 1, token 10 sub-step 0 to token 20 sub-step 0; all else clean");
  for (index_t t = 1; t < 128; t += 2) second.damage(t, 0, 1e-3);
  REQUIRE(second.text() ==
          "sub-step 1 of every token; head 0, token 0 sub-step 1 to token 63 "
          "sub-step 1 in part; all else clean");
  for (index_t t = 7; t < 128; t += 8) third.damage(t, 0, 1e-3);
  REQUIRE(third.text().starts_with(
      "every 4 tokens, at 3 modulo 4, sub-step 1; head 0, "));
  last.rows = 4;
  for (index_t t = 0; t < 128; ++t) last.damage(t, 0, 1e-3);
  REQUIRE(last.text() == "head 0, tokens 0 to 31; all else clean");
  const std::string svg =
      heat_map(map_errors(last.shape, 4, last.actual, last.exact), "dk");
  REQUIRE(svg.find("token 0 to 31;") != std::string::npos);
}

TEST_CASE("the gradient of a sub-step is told with its token") {
  fixtures::editable e = fixtures::editable::of(fixtures::st::file::open(
      fixtures::path_of("naive/gated_delta_product_2")));
  fixtures::editable::entry& dk = e.tensors.at("dk");
  const auto row = static_cast<std::size_t>(dk.shape[2] * dk.shape[3]);
  for (std::size_t i = 5 * row; i < 6 * row; ++i) dk.values[i] = std::nan("");
  const verification v = verify(e.read());
  const auto t = std::find_if(v.tensors.begin(), v.tensors.end(),
                              [](const verdict& x) { return x.name == "dk"; });
  REQUIRE(t != v.tensors.end());
  REQUIRE(t->where == "all heads, token 2 sub-step 1");
  std::ostringstream table;
  write_table(table, v, false);
  REQUIRE(table.str().find(" from t=2") != std::string::npos);
}

TEST_CASE("the worst tensor is the one that fails by most") {
  const verification v = verify(fixtures::small().read());
  const verdict* const worst = v.worst();
  REQUIRE(worst != nullptr);
  std::size_t better = 0;
  for (const verdict& t : v.tensors) {
    REQUIRE_FALSE(t.errors.ratio > worst->errors.ratio);
    better += t.fails() && t.errors.ratio < worst->errors.ratio ? 1 : 0;
  }
  REQUIRE(better > 0);
}

TEST_CASE("what has gaps or stops is no period") {
  subject gaps, stops;
  for (index_t t = 15; t < 128; t += 16) {
    if (t != 63) gaps.damage(t, 0, 1e-3);
    if (t < 64) stops.damage(t, 0, 1e-3);
  }
  REQUIRE_FALSE(gaps.find().outside.empty());
  REQUIRE_FALSE(gaps.find().period);
  REQUIRE_FALSE(stops.find().outside.empty());
  REQUIRE_FALSE(stops.find().period);
}

TEST_CASE("a factor explains an error of which it leaves a twentieth") {
  subject s;
  for (std::size_t i = 0; i < s.actual.size(); ++i) {
    // Off by a tenth, and half of that again in another shape.
    s.actual[i] = 1.1 * static_cast<double>(s.exact[i]) +
                  0.05 * std::cos(7.0 * static_cast<double>(i));
  }
  REQUIRE_FALSE(s.find().factor);
}

TEST_CASE("a factor that explains the error is found, and no other") {
  subject s;
  for (double& x : s.actual) x *= 5.66;
  REQUIRE(s.find().factor.has_value());
  REQUIRE(std::abs(*s.find().factor - 5.66) < 1e-3);
  REQUIRE(s.text().starts_with("it is 5.66 times the exact result"));
  subject shifted;
  for (double& x : shifted.actual) x += 1;
  REQUIRE_FALSE(shifted.find().factor);
}

TEST_CASE("growth along the sequence is told") {
  subject s;
  for (index_t t = 0; t < 128; ++t) {
    s.damage(t, 0, 1e-6 * std::exp(0.1 * static_cast<double>(t)));
  }
  REQUIRE(s.find().growth.has_value());
  REQUIRE(*s.find().growth > 1e3);
}

TEST_CASE("states are located by sequence and head") {
  const tensor_shape shape{2, 3, 4, 4};
  std::vector<double_double> exact(96, 1.0);
  std::vector<double> sound(96, 1 + 1e-7), actual = sound;
  for (std::size_t i = 64; i < 80; ++i) actual[i] = 2;  // sequence 1, head 1
  const error_map m = map_errors(shape, 0, actual, exact);
  const location l =
      locate(m, map_errors(shape, 0, sound, exact), 0, actual, exact);
  REQUIRE(l.outside.size() == 1);
  REQUIRE(l.text(m) == "entry 1 head 1; all else clean");
}

TEST_CASE("a heat map has a cell for every token and head") {
  subject s;
  s.damage(3, 1, std::nan(""));
  const std::string svg =
      heat_map(map_errors(s.shape, 1, s.actual, s.exact), "a<b");
  std::size_t cells = 0;
  for (std::size_t i = 0; (i = svg.find("<rect", i)) != std::string::npos;
       ++i) {
    ++cells;
  }
  REQUIRE(cells == 256);
  REQUIRE(svg.find("a&lt;b") != std::string::npos);
  REQUIRE(svg.find("fill=\"#000\"") != std::string::npos);
  REQUIRE(svg.ends_with("</svg>\n"));
}

namespace {

bool mentions(const std::vector<std::string>& list, const std::string& part) {
  return std::any_of(list.begin(), list.end(), [&](const std::string& s) {
    return s.find(part) != std::string::npos;
  });
}

}  // namespace

TEST_CASE("what the inputs leave untested is listed") {
  const input_notes plain = study_inputs(fixtures::read("gdn_no_decay_bf16"));
  REQUIRE(mentions(plain.untested, "no decay at all"));
  REQUIRE(mentions(plain.untested, "K = V"));
  REQUIRE(mentions(plain.untested, "multiple of 64"));
  REQUIRE(plain.suspicious.empty());
  const input_notes strong =
      study_inputs(fixtures::read("kda_strong_decay_bf16"));
  REQUIRE_FALSE(mentions(strong.untested, "decay"));
  const input_notes small = study_inputs(fixtures::small().read());
  REQUIRE_FALSE(mentions(small.untested, "K = V"));
  REQUIRE_FALSE(mentions(small.untested, "multiple of 64"));
  REQUIRE(mentions(small.untested, "from chunk to chunk"));
}

TEST_CASE("inputs that look like a mistake are named") {
  fixtures::editable e = fixtures::small();
  for (double& x : e.tensors["g"].values) x = 0.9;
  for (double& x : e.tensors["b"].values) x = -3;
  for (double& x : e.tensors["k"].values) x *= 10;
  const input_notes n = study_inputs(e.read({{"decay_domain", "log"}}));
  REQUIRE(mentions(n.suspicious, "decays, not logs? --decay-domain linear"));
  REQUIRE(mentions(n.suspicious, "--b-activation sigmoid"));
  REQUIRE(mentions(n.suspicious, "--l2norm true"));
}
