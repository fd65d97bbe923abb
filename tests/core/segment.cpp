// Do segment maps reproduce the recurrence and compose?
#include "carve/segment.hpp"

#include <random>

#include "carve/prime_field.hpp"
#include "catch.hpp"
#include "random_head.hpp"

namespace {

using namespace carve::tests;
using carve::matrix;
using carve::readout;
using field = carve::prime_61;

}  // namespace

TEST_CASE("a sequence split anywhere has the map of its parts composed") {
  const auto [along, step, n] = GENERATE(from_range(every_step()));
  const bool value_decay = GENERATE(true, false);
  const head_shape s{5, 3, 4, n};
  std::mt19937_64 random(3);
  auto x = fill<field>(
      s, along, [&] { return field::uniform(random); }, step);
  if (!value_decay) x.d.clear();
  auto p = head_of(x, s, readout::after);
  p.erase_reads = step.erase_reads;
  matrix<field> start(s.K, s.V), end(s.K, s.V);
  for (carve::index_t i = 0; i < s.K * s.V; ++i) start.data()[i] = x.S0[i];
  carve::recurrent_forward(p, carve::rows<field>{},
                           carve::state_view<field>{end.data(), s.V, 1});
  REQUIRE(carve::segment_of(p)(start) == end);
  for (carve::index_t cut = 0; cut <= s.T; ++cut) {
    const auto first = carve::segment_of(p.segment(0, cut, {}));
    const auto second = carve::segment_of(p.segment(cut, s.T - cut, {}));
    REQUIRE(carve::compose(second, first)(start) == end);
  }
}

TEST_CASE("a map shared by the columns composes with one map a column") {
  const head_shape s{6, 3, 4};
  std::mt19937_64 random(3);
  auto x = fill<field>(s, erase::value, [&] { return field::uniform(random); });
  auto p = head_of(x, s, readout::after);
  const auto own = carve::segment_of(p.segment(0, 3, {}));
  p.e = {};
  const auto shared = carve::segment_of(p.segment(3, 3, {}));
  REQUIRE(own.A.size() == 4);
  REQUIRE(shared.A.size() == 1);
  matrix<field> start(s.K, s.V);
  for (carve::index_t i = 0; i < s.K * s.V; ++i) start.data()[i] = x.S0[i];
  REQUIRE(carve::compose(shared, own)(start) == shared(own(start)));
  REQUIRE(carve::compose(own, shared)(start) == own(shared(start)));
}
