/// @file
/// Do lanes hold what was put there, aligned and planar?
#include "carve/lanes.hpp"

#include "carve/prime_field.hpp"
#include "catch.hpp"
#include "samples.hpp"

using carve::double_double;
using carve::lanes;
using carve::lanes_view;

namespace {

template <class T>
void token(lanes_view<T> S, lanes_view<T> c, const T a, const T r, int n) {
  CARVE_IVDEP
  for (int j = 0; j < n; ++j) {
    S[j] = a * S[j];
    c[j] += r * S[j];
  }
}

}  // namespace

TEMPLATE_TEST_CASE("a loop over lanes computes what scalars compute", "[lanes]",
                   float, double, double_double, carve::prime_61) {
  using T = TestType;
  carve::samples::generator bits(12);
  // 37 leaves a tail after every vector width.
  const int n = 37;
  lanes<T> S(n), c(n);
  std::vector<T> S_plain, c_plain;
  for (int j = 0; j < n; ++j) {
    S_plain.push_back(carve::samples::any<T>(bits));
    c_plain.push_back(carve::samples::any<T>(bits));
    S[j] = S_plain.back();
    c[j] = c_plain.back();
  }
  const T a = carve::samples::any<T>(bits), r = carve::samples::any<T>(bits);
  token<T>(S.view(), c.view(), a, r, n);
  for (int j = 0; j < n; ++j) {
    S_plain[j] = a * S_plain[j];
    c_plain[j] = c_plain[j] + r * S_plain[j];
    REQUIRE(T(S[j]) == S_plain[j]);
    REQUIRE(T(c[j]) == c_plain[j]);
  }
}

TEMPLATE_TEST_CASE("lanes start as zeros and are filled", "[lanes]", double,
                   double_double, carve::prime_61) {
  using T = TestType;
  lanes<T> x(5);
  REQUIRE(x.size() == 5);
  for (int j = 0; j < 5; ++j) REQUIRE(T(x[j]) == T(0));
  const T third = T(1) / T(3);
  x.fill(third);
  for (int j = 0; j < 5; ++j) REQUIRE(T(x[j]) == third);
  const lanes<T> copy = x;
  x.fill(T(0));
  REQUIRE(T(copy[4]) == third);
  REQUIRE(lanes<T>().size() == 0);
}

TEMPLATE_TEST_CASE("a view points into its lanes", "[lanes]", double,
                   double_double) {
  using T = TestType;
  lanes<T> x(8);
  const lanes_view<T> tail = x.view().sub(5);
  tail[1] = T(7);
  REQUIRE(T(x[6]) == T(7));
  tail[1] += T(2);
  tail[1] -= T(1);
  tail[1] *= T(3);
  tail[1] /= T(4);
  REQUIRE(T(x[6]) == T(6));
  tail[0] = tail[1];
  REQUIRE(T(x[5]) == T(6));
  REQUIRE(T(tail[0] * tail[1] - tail[0]) == T(30));
  REQUIRE(T(-tail[0]) == T(-6));
  const lanes_view<const T> reader = tail;
  REQUIRE(T(reader[1]) == T(6));
  REQUIRE(T(reader.sub(1)[0]) == T(6));
}

TEST_CASE("lanes begin on a cache line", "[lanes]") {
  for (std::size_t n = 1; n < 20; ++n) {
    lanes<float> x(n);
    REQUIRE(reinterpret_cast<std::uintptr_t>(&x[0]) % 64 == 0);
  }
}
