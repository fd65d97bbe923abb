// Do the three inverses of a unit triangular matrix agree where nothing
// rounds?
#include "carve/triangular.hpp"

#include <random>

#include "carve/prime_field.hpp"
#include "catch.hpp"

namespace {

using carve::index_t;
using carve::matrix;
using field = carve::prime_61;

}  // namespace

TEST_CASE("substitution, blocks and doubling give the inverse") {
  std::mt19937_64 random(1);
  for (const index_t C : {1, 2, 5, 16, 33}) {
    CAPTURE(C);
    matrix<field> L = matrix<field>::Constant(C, C, field(0));
    for (index_t t = 0; t < C; ++t) {
      for (index_t s = 0; s < t; ++s) L(t, s) = field::uniform(random);
    }
    const matrix<field> one = matrix<field>::Identity(C, C);
    const matrix<field> inverse = carve::inverse_by_substitution(L);
    REQUIRE(matrix<field>((one + L) * inverse) == one);
    REQUIRE(carve::inverse_by_doubling(L) == inverse);
    for (const index_t block : {1, 3, 16}) {
      CAPTURE(block);
      REQUIRE(carve::inverse_by_blocks(L, block) == inverse);
    }
  }
}
