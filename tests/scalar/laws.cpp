/// @file
/// Do the light scalars obey the laws?
#include "laws.hpp"

#include "carve/counting.hpp"
#include "carve/double_double.hpp"
#include "carve/dual.hpp"
#include "carve/prime_field.hpp"

using carve::counting;
using carve::double_double;
using carve::dual;
using carve::prime_61;
using carve::prime_61_31;

// In units of 2^-105: 3u^2, 5u^2 and 15u^2 with u = 2^-53.
template <>
struct carve::laws::rounding<double_double> {
  static constexpr double add = 1.5, multiply = 2.5, divide = 7.5;
};
template <class T>
struct carve::laws::rounding<counting<T>> : carve::laws::rounding<T> {};

TEMPLATE_TEST_CASE("rounding scalars obey their laws", "[scalar][laws]", float,
                   double, long double, double_double, counting<double>,
                   counting<double_double>, dual<double>, dual<double_double>) {
  STATIC_REQUIRE_FALSE(carve::scalar_traits<TestType>::exact);
  carve::laws::all<TestType>();
}

TEMPLATE_TEST_CASE("prime fields obey every axiom", "[scalar][laws]", prime_61,
                   prime_61_31, carve::prime_field<(1ULL << 63) - 25>,
                   counting<prime_61>) {
  STATIC_REQUIRE(carve::scalar_traits<TestType>::exact);
  carve::laws::all<TestType>();
}

TEST_CASE("the field of five elements obeys every axiom", "[scalar][laws]") {
  using T = carve::prime_field<5>;
  for (int i = 0; i < 5; ++i) {
    for (int j = 0; j < 5; ++j) {
      for (int k = 0; k < 5; ++k) {
        carve::laws::exact_for_all(T(i), T(j));
        carve::laws::ring_exactly(T(i), T(j), T(k));
        if (k != 0) carve::laws::field_exactly(T(i), T(j), T(k));
      }
    }
  }
}

TEST_CASE("dual numbers over a prime field form a ring", "[scalar][laws]") {
  carve::laws::all<dual<prime_61>>();
  const dual<prime_61> eps(0, 1);
  REQUIRE(eps * eps == dual<prime_61>(0));
  REQUIRE_FALSE(eps == dual<prime_61>(0));
}
