/// @file
/// May every scalar stand in a matrix?
#include <Eigen/Core>

#include "carve/counting.hpp"
#include "carve/double_double.hpp"
#include "carve/dual.hpp"
#include "carve/prime_field.hpp"
#include "catch.hpp"
#include "samples.hpp"

TEMPLATE_TEST_CASE("products and unit triangular solves", "[eigen]",
                   carve::double_double, carve::prime_61,
                   carve::counting<double>, carve::dual<carve::prime_61>) {
  using T = TestType;
  using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  // Small integers: every scalar computes with them exactly.
  carve::samples::generator bits(13);
  const auto random = [&bits](int rows, int columns) {
    matrix m(rows, columns);
    for (auto& x : m.reshaped()) x = T(static_cast<int>(bits() % 7) - 3);
    return m;
  };
  const matrix A = random(9, 9), B = random(9, 5), C = random(9, 5);
  REQUIRE(A * (B + C) == A * B + A * C);
  REQUIRE((A * B).transpose() == B.transpose() * A.transpose());
  const auto L = A.template triangularView<Eigen::UnitLower>();
  const matrix product = L * B;
  REQUIRE(L.solve(product) == B);
  REQUIRE(matrix::Identity(9, 9) * A == A);
  REQUIRE(A.sum() == (matrix::Ones(1, 9) * A * matrix::Ones(9, 1))(0, 0));
}
