/// @file
/// Is the arithmetic modulo a prime right, and is the prime one?
#include "carve/prime_field.hpp"

#include <sstream>

#include "catch.hpp"
#include "samples.hpp"

using carve::prime_61;
using carve::prime_61_31;

TEST_CASE("primality is decided rightly", "[prime_field]") {
  const auto slow = [](std::uint64_t n) {
    for (std::uint64_t d = 2; d * d <= n; ++d) {
      if (n % d == 0) return false;
    }
    return n > 1;
  };
  for (std::uint64_t n = 0; n < 20000; ++n) {
    REQUIRE(carve::detail::is_prime(n) == slow(n));
  }
  // Composite, yet they pass Fermat's test or Miller's for small bases.
  for (const std::uint64_t n : {3215031751ULL, 3825123056546413051ULL,
                                (1ULL << 61) - 3, (1ULL << 61) - 33}) {
    REQUIRE_FALSE(carve::detail::is_prime(n));
  }
}

TEST_CASE("products agree with 128-bit division", "[prime_field]") {
  const std::uint64_t p = prime_61::modulus;
  std::vector<std::uint64_t> values = {0,     1,     2,         p - 1,
                                       p - 2, p / 2, 1ULL << 60};
  carve::samples::generator bits(3);
  for (int i = 0; i < 60; ++i) values.push_back(bits() % p);
  for (const auto a : values) {
    for (const auto b : values) {
      const prime_61 product = prime_61(a) * prime_61(b);
      REQUIRE(product.value() == carve::detail::multiply_mod(a, b, p));
      REQUIRE((prime_61(a) + prime_61(b)).value() == (a + b) % p);
      REQUIRE((prime_61(a) - prime_61(b)).value() == (a + p - b) % p);
    }
  }
}

TEMPLATE_TEST_CASE("inverses", "[prime_field]", prime_61, prime_61_31) {
  carve::samples::generator bits(4);
  for (int i = 0; i < 200; ++i) {
    const auto a = carve::samples::invertible<TestType>(bits);
    REQUIRE(a * a.inverse() == TestType(1));
    REQUIRE(a.power(TestType::modulus - 1) == TestType(1));
  }
  REQUIRE_THROWS_AS(TestType(1) / TestType(0), carve::error);
  REQUIRE_THROWS_WITH(
      TestType(0).inverse(),
      "division by zero modulo " + std::to_string(TestType::modulus));
}

TEST_CASE("integers are reduced", "[prime_field]") {
  REQUIRE(prime_61(-1).value() == prime_61::modulus - 1);
  REQUIRE(prime_61(prime_61::modulus) == prime_61(0));
  REQUIRE(prime_61(~0ULL).value() == ~0ULL % prime_61::modulus);
  REQUIRE(prime_61(INT64_MIN) + prime_61(INT64_MAX) == prime_61(-1));
}

TEST_CASE("a double is the residue of its fraction", "[prime_field]") {
  using traits = carve::scalar_traits<prime_61>;
  REQUIRE(traits::from_double(0.5) + traits::from_double(0.5) == prime_61(1));
  REQUIRE(traits::from_double(-0.375) * prime_61(8) == prime_61(-3));
  REQUIRE(traits::from_double(0x1p61) == prime_61(1));
  REQUIRE(traits::from_double(-0.0) == prime_61(0));
  const double x = 0x1.23456789abcdep-1000;
  REQUIRE(traits::from_double(x) * prime_61(2).power(1052) ==
          prime_61(0x123456789abcdeLL));
  REQUIRE_THROWS_AS(traits::from_double(NAN), carve::error);
  REQUIRE_THROWS_AS(traits::from_double(INFINITY), carve::error);
}

TEST_CASE("uniform elements reach every residue equally", "[prime_field]") {
  using small = carve::prime_field<7>;
  carve::samples::generator bits(5);
  int seen[7] = {};
  for (int i = 0; i < 70000; ++i) ++seen[small::uniform(bits).value()];
  // Standard deviation 93; six of them.
  for (const int n : seen) REQUIRE(std::abs(n - 10000) <= 560);
  REQUIRE(prime_61::uniform(~0ULL).value() == 7);
}

TEST_CASE("residues are printed", "[prime_field]") {
  std::ostringstream out;
  out << prime_61(-2);
  REQUIRE(out.str() == "2305843009213693949");
}
