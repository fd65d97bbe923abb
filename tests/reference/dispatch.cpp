/// @file
/// Do all instruction sets of this machine compute the same bits?
#include "carve/dispatch.hpp"

#include <cstring>
#include <random>
#include <vector>

#include "carve/multiprecision.hpp"
#include "carve/reference.hpp"
#include "catch.hpp"

using namespace carve;

namespace {

template <class T>
struct run {
  std::vector<T> o, S, dq, dk, dv, dg, db, dw, dS0;
};

// 45 columns fill no tile, 70 tokens no block of the backward walk.
constexpr index_t tokens = 70, keys = 13, values = 45;

template <class T>
run<T> on(instruction_set level, bool value_axis) {
  std::mt19937_64 bits(5);
  std::normal_distribution<double> normal;
  const auto some = [&](index_t n, auto f) {
    std::vector<T> x;
    for (index_t i = 0; i < n; ++i) x.push_back(T(f(normal(bits))) / T(3));
    return x;
  };
  const auto id = [](double x) { return x; };
  const auto gate = [](double x) { return 1 / (1 + x * x); };
  const auto q = some(tokens * keys, id), k = some(tokens * keys, id);
  const auto v = some(tokens * values, id), a = some(tokens * keys, gate);
  const auto b = some(tokens * keys, gate), w = some(tokens * values, gate);
  const auto e = some(tokens * values, gate), d = some(tokens * values, gate);
  const auto S0 = some(keys * values, id), dS = some(keys * values, id);
  const auto dout = some(tokens * values, id);
  head<T> p;
  p.tokens = tokens, p.keys = keys, p.values = values;
  p.q = {q.data(), keys, 1}, p.k = {k.data(), keys, 1};
  p.v = {v.data(), values, 1}, p.a = {a.data(), keys, 1};
  p.b = {b.data(), keys, 1}, p.w = {w.data(), values, 1};
  if (value_axis) p.e = {e.data(), values, 1}, p.d = {d.data(), values, 1};
  p.S0 = {S0.data(), values, 1};
  p.scale = T(1) / T(7);
  run<T> r;
  const auto zeros = [](index_t n) { return std::vector<T>(n, T(0)); };
  r.o = r.dv = r.dw = zeros(tokens * values);
  r.dq = r.dk = r.dg = r.db = zeros(tokens * keys);
  r.S = r.dS0 = zeros(keys * values);
  head_gradients<T> out;
  out.q = {r.dq.data(), keys, 1}, out.k = {r.dk.data(), keys, 1};
  out.v = {r.dv.data(), values, 1}, out.g = {r.dg.data(), keys, 1};
  out.b = {r.db.data(), keys, 1}, out.w = {r.dw.data(), values, 1};
  out.S0 = {r.dS0.data(), values, 1};
  recurrent_backward_on(level, p,
                        {{dout.data(), values, 1}, {dS.data(), values, 1}}, out,
                        {r.o.data(), values, 1}, {r.S.data(), values, 1});
  auto o = zeros(tokens * values), S = zeros(keys * values);
  recurrent_forward_on(level, p, {o.data(), values, 1}, {S.data(), values, 1});
  REQUIRE(o == r.o);
  REQUIRE(S == r.S);
  return r;
}

template <class T>
bool same_bits(const std::vector<T>& x, const std::vector<T>& y) {
  return x.size() == y.size() &&
         std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("every instruction set computes the same bits", "[dispatch]",
                   float, double, double_double) {
  using T = TestType;
  const bool value_axis = GENERATE(false, true);
  const auto widest = widest_instruction_set();
  const run<T> expected = on<T>(instruction_set::baseline, value_axis);
  REQUIRE(expected.o[0] != T(0));
  for (const auto level : {instruction_set::avx2, instruction_set::avx512}) {
    if (level > widest) continue;
    INFO(name_of(level));
    const run<T> r = on<T>(level, value_axis);
    REQUIRE(same_bits(r.o, expected.o));
    REQUIRE(same_bits(r.S, expected.S));
    REQUIRE(same_bits(r.dq, expected.dq));
    REQUIRE(same_bits(r.dk, expected.dk));
    REQUIRE(same_bits(r.dv, expected.dv));
    REQUIRE(same_bits(r.dg, expected.dg));
    REQUIRE(same_bits(r.db, expected.db));
    REQUIRE(same_bits(r.dw, expected.dw));
    REQUIRE(same_bits(r.dS0, expected.dS0));
  }
}

TEMPLATE_TEST_CASE("the reference solver is the recurrence", "[dispatch]",
                   float, double, double_double, real50) {
  using T = TestType;
  const std::vector<T> x{T(1) / T(3), T(2) / T(3), T(-1) / T(7)};
  head<T> p;
  p.tokens = 3, p.keys = p.values = 1;
  p.q = p.k = p.v = p.b = {x.data(), 1, 1};
  std::vector<T> o(3), expected(3);
  T S(0), S_expected(0);
  reference_solver{}.forward(p, rows<T>{o.data(), 1, 1}, state_view<T>{&S});
  recurrent_forward(p, rows<T>{expected.data(), 1, 1},
                    state_view<T>{&S_expected});
  REQUIRE(o == expected);
  REQUIRE(S == S_expected);
  REQUIRE(o[0] == x[0] * x[0] * x[0]);
}
