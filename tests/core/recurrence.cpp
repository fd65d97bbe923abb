// Is the recurrence the one that its comment says, and is the reverse walk its
// derivative?
#include "carve/recurrence.hpp"

#include <random>

#include "carve/dual.hpp"
#include "carve/multiprecision.hpp"
#include "carve/prime_field.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"
#include "random_head.hpp"

namespace {

using namespace carve::tests;
using carve::index_t;
using carve::rational;
using carve::readout;
using field = carve::prime_61;
using dual_field = carve::dual<field>;

// The equations once more, from plain loops over whole matrices.
template <class X>
walk_result<X> by_hand(const head_tensors<X>& x, const head_shape& s,
                       readout read) {
  std::vector<X> S = x.S0;
  walk_result<X> r;
  const auto output = [&](index_t t) {
    for (index_t j = 0; j < s.V; ++j) {
      X sum(0);
      for (index_t i = 0; i < s.K; ++i)
        sum += S[i * s.V + j] * x.q[t * s.K + i];
      r.o.push_back(X(3) * sum);
    }
  };
  for (index_t t = 0; t < s.T; ++t) {
    if (read == readout::before) output(t);
    std::vector<X> u;
    for (index_t j = 0; j < s.V; ++j) {
      X erased(0);
      for (index_t i = 0; i < s.K; ++i) {
        X& state = S[i * s.V + j];
        state = x.a[t * s.K + i] * state * x.d[t * s.V + j];
        X gate(1);
        if (!x.b.empty()) gate = gate * x.b[t * s.K + i];
        if (!x.e.empty()) gate = gate * x.e[t * s.V + j];
        if (!x.mask.empty()) gate = gate * x.mask[(t * s.K + i) * s.V + j];
        erased += gate * x.k[t * s.K + i] * state;
      }
      u.push_back(x.w[t * s.V + j] * x.v[t * s.V + j] - erased);
    }
    for (index_t i = 0; i < s.K; ++i) {
      for (index_t j = 0; j < s.V; ++j) {
        S[i * s.V + j] += x.k[t * s.K + i] * u[j];
      }
    }
    if (read == readout::after) output(t);
  }
  r.S = S;
  return r;
}

}  // namespace

TEST_CASE("two tokens by hand") {
  // K = V = 1: S1 = S0 a + k (w v - b k S0 a), and again.
  const head_shape s{2, 1, 1};
  const auto r = [](int p, int q) { return rational(p) / rational(q); };
  head_tensors<rational> x;
  x.q = {2, 1}, x.k = {1, 3}, x.v = {5, 7}, x.a = {r(1, 2), r(1, 3)};
  x.d = {1, 1}, x.b = {r(1, 4), r(1, 9)}, x.w = {1, 2}, x.S0 = {8};
  std::vector<rational> o(2), S(1);
  carve::recurrent_forward(head_of(x, s, readout::after),
                           rows_of<rational>(o, 1), state_of<rational>(S, s));
  // S~ = 4, u = 5 - 1 = 4, S1 = 8; S~ = 8/3, u = 14 - 8/9, S2 = 8/3 + 118/3
  REQUIRE(o[0] == rational(3 * 2 * 8));
  REQUIRE(S[0] == rational(42));
  REQUIRE(o[1] == rational(3 * 42));
}

TEST_CASE("the recurrence is its equations, for every gate and read-out") {
  const erase along = GENERATE(erase::key, erase::value, erase::mask);
  const readout read = GENERATE(readout::after, readout::before);
  // More value columns than one slice holds.
  const head_shape s{5, 3, 70};
  std::mt19937_64 random(7);
  const auto x = fill<field>(s, along, [&] { return field::uniform(random); });
  walk_result<field> got;
  got.o.resize(5 * 70), got.S.resize(3 * 70);
  carve::recurrent_forward(head_of(x, s, read), rows_of<field>(got.o, s.V),
                           state_of<field>(got.S, s));
  const auto expected = by_hand(x, s, read);
  REQUIRE(got.o == expected.o);
  REQUIRE(got.S == expected.S);
}

TEST_CASE("the reverse walk is the derivative by dual numbers") {
  const erase along =
      GENERATE(erase::key, erase::value, erase::mask, erase::none);
  const readout read = GENERATE(readout::after, readout::before);
  const head_shape s{37, 2, 3};  // past one stored state of the reverse walk
  std::mt19937_64 random(11);
  const auto draw = [&] { return field::uniform(random); };
  const auto x = fill<field>(s, along, draw);
  const auto direction = fill<field>(s, along, draw);
  std::vector<field> dO, dS;
  for (index_t i = 0; i < s.T * s.V; ++i) dO.push_back(draw());
  for (index_t i = 0; i < s.K * s.V; ++i) dS.push_back(draw());
  const auto r =
      walk(head_of(x, s, read), s, along, dO, dS, carve::recurrent_solver{});

  field expected(0);
  head_tensors<dual_field> lifted;
  const auto take = [&](auto from, auto to, bool log) {
    const auto& at = x.*from;
    for (std::size_t i = 0; i < at.size(); ++i) {
      const field along_i = (direction.*from)[i];
      dual_field y(at[i]);
      // A decay's gradient is that of its natural log.
      y.derivative = log ? at[i] * along_i : along_i;
      (lifted.*to).push_back(y);
      expected += (r.gradients.*from)[i] * along_i;
    }
  };
  using F = head_tensors<field>;
  using D = head_tensors<dual_field>;
  take(&F::q, &D::q, false), take(&F::k, &D::k, false);
  take(&F::v, &D::v, false), take(&F::a, &D::a, true);
  take(&F::d, &D::d, true), take(&F::b, &D::b, false);
  take(&F::e, &D::e, false), take(&F::w, &D::w, false);
  take(&F::mask, &D::mask, false), take(&F::S0, &D::S0, false);

  std::vector<dual_field> o(static_cast<std::size_t>(s.T * s.V));
  std::vector<dual_field> S(static_cast<std::size_t>(s.K * s.V));
  carve::recurrent_forward(head_of(lifted, s, read),
                           rows_of<dual_field>(o, s.V),
                           state_of<dual_field>(S, s));
  field got(0);
  for (std::size_t i = 0; i < o.size(); ++i) got += o[i].derivative * dO[i];
  for (std::size_t i = 0; i < S.size(); ++i) got += S[i].derivative * dS[i];
  REQUIRE(got == expected);
}

TEST_CASE("a sequence of no tokens leaves the state as it was") {
  const head_shape s{0, 2, 3};
  std::mt19937_64 random(5);
  const auto x =
      fill<field>(s, erase::key, [&] { return field::uniform(random); });
  auto p = head_of(x, s, readout::after);
  std::vector<field> S(6);
  carve::recurrent_forward(p, carve::rows<field>{}, state_of<field>(S, s));
  REQUIRE(S == x.S0);
}
