// Do the three inverses of a unit triangular matrix agree where nothing
// rounds?
#include "carve/triangular.hpp"

#include <random>
#include <vector>

#include "carve/prime_field.hpp"
#include "catch.hpp"

namespace {

using carve::index_t;
using carve::matrix;
using field = carve::prime_61;

}  // namespace

TEST_CASE("what stands on and above the diagonal of L is not read") {
  std::mt19937_64 random(1);
  matrix<field> L(9, 9), lower = matrix<field>::Constant(9, 9, field(0));
  for (index_t t = 0; t < 9; ++t) {
    for (index_t s = 0; s < 9; ++s) {
      L(t, s) = field::uniform(random);
      if (s < t) lower(t, s) = L(t, s);
    }
  }
  const matrix<field> inverse = carve::inverse_by_substitution(lower);
  REQUIRE(carve::inverse_by_substitution(L) == inverse);
  REQUIRE(carve::inverse_by_doubling(L) == inverse);
  REQUIRE(carve::inverse_by_blocks(L, 4) == inverse);
}

TEST_CASE("doubling rounds every factor of its products") {
  // Of 6 rows: L; then L^2 and I - L; then L^4 and the product of the two.
  matrix<field> L = matrix<field>::Constant(6, 6, field(0));
  for (index_t t = 1; t < 6; ++t) L(t, t - 1) = field(1);
  const matrix<field> one = matrix<field>::Identity(6, 6);
  const matrix<field> L2 = L * L, L4 = L2 * L2;
  std::vector<matrix<field>> seen;
  carve::inverse_by_doubling(L, [&](matrix<field>& m) { seen.push_back(m); });
  const matrix<field> half = one - L;
  const matrix<field> next = half * (one + L2);
  REQUIRE(seen == std::vector<matrix<field>>{L, L2, half, L4, next});
}

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
