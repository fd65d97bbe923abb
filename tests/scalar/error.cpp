/// @file
/// Do errors say what they were told?
#include "carve/error.hpp"

#include <array>
#include <vector>

#include "catch.hpp"

TEST_CASE("an error writes its parts, shapes in brackets", "[error]") {
  const std::vector<int> expected = {2, 192, 2, 64};
  const std::array<long, 1> got = {7};
  const carve::error e("k: expected ", expected, " like ", std::string("q"),
                       ", got ", got, '!');
  REQUIRE(std::string(e.what()) == "k: expected [2,192,2,64] like q, got [7]!");
  REQUIRE(carve::text(std::vector<int>{}) == "[]");
}

TEST_CASE("an error is copied as an error", "[error]") {
  carve::error first("first");
  carve::error second(first);
  REQUIRE(std::string(second.what()) == "first");
}
