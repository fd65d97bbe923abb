/// @file
/// Are operations and dependency chains counted rightly?
#include "carve/counting.hpp"

#include <thread>

#include "catch.hpp"

using number = carve::counting<double>;
using carve::operation_counts;

TEST_CASE("each kind of operation is counted once", "[counting]") {
  operation_counts::reset();
  const number a = 3, b = 4;
  number c = a + b - a * b / a;
  c = -c;
  c = carve::sqrt(carve::exp(carve::abs(c)));
  REQUIRE(operation_counts::read() == operation_counts{2, 1, 1, 2});
  c += a;
  c *= a;
  REQUIRE(operation_counts::read() == operation_counts{3, 2, 1, 2});
  operation_counts::reset();
  REQUIRE(operation_counts::read() == operation_counts{});
}

TEST_CASE("depth is the longest chain", "[counting]") {
  number serial = 0;
  for (int i = 1; i <= 16; ++i) serial += number(i);
  REQUIRE(serial.depth == 16);

  std::vector<number> tree;
  for (int i = 1; i <= 16; ++i) tree.push_back(i);
  for (std::size_t n = 16; n > 1; n /= 2) {
    for (std::size_t i = 0; i < n / 2; ++i) {
      tree[i] = tree[2 * i] + tree[2 * i + 1];
    }
  }
  REQUIRE(tree[0] == serial);
  REQUIRE(tree[0].depth == 4);
  REQUIRE((tree[0] * serial).depth == 17);
  REQUIRE((-serial).depth == 16);
  REQUIRE(carve::exp(tree[0]).depth == 5);
}

TEST_CASE("the value is the plain scalar's, bit for bit", "[counting]") {
  const number x = 0.1, y = 0.3;
  REQUIRE(((x + y) * x / y - x).value == (0.1 + 0.3) * 0.1 / 0.3 - 0.1);
  REQUIRE(carve::sigmoid(x).value == carve::sigmoid(0.1));
}

TEST_CASE("threads count apart", "[counting]") {
  operation_counts::reset();
  operation_counts other;
  std::thread([&other] {
    const number a = 2;
    (void)(a * a);
    other = operation_counts::read();
  }).join();
  REQUIRE(other.multiplications == 1);
  REQUIRE(operation_counts::read() == operation_counts{});
}
