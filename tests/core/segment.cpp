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
  const erase along = GENERATE(erase::key, erase::value, erase::mask);
  const head_shape s{7, 3, 4};
  std::mt19937_64 random(3);
  const auto x = fill<field>(s, along, [&] { return field::uniform(random); });
  const auto p = head_of(x, s, readout::after);
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
