// Would kernels that are right, but not those of the replay, be let through?
// Stands in for them: the replay with other chunk lengths.
#include <iomanip>
#include <iostream>

#include "catch.hpp"
#include "fixtures.hpp"

namespace {

using namespace carve;
using namespace carve::program;

template <class To>
problem<To> narrow(const dump& d) {
  return convert_problem<To>(d.in, [](double x) { return static_cast<To>(x); });
}

}  // namespace

TEST_CASE("the replay with another chunk length passes") {
  const index_t chunk = GENERATE(8, 16, 32, 128);
  double least = 1e300, most = 0, largest = 0;
  for (const std::string& name : fixtures::bundled) {
    const dump d = fixtures::read(name);
    const expectation e = expect(d, {profile::tensor_core, 64, {}});
    const format operand = *safetensors::format_of(d.dtype);
    const auto other = backward(
        narrow<float>(d),
        convert_outputs<float>(d.cotangents,
                               [](double x) { return static_cast<float>(x); }),
        chunked_solver<operand_policy>{chunk, operand_policy(operand)});
    for (const judged_tensor& x : d.judged) {
      const format storage = *safetensors::format_of(x.dtype);
      judged_tensor y = x;
      const auto& values = result_named(other, x.name).data;
      for (std::size_t i = 0; i < values.size(); ++i) {
        y.values.data[i] = round_to(storage, static_cast<double>(values[i]));
      }
      const verdict v = judge(e, y);
      INFO(name << " " << x.name << ", chunks of " << chunk);
      CHECK(v.errors.pass());
      least = std::min(least, v.errors.ratio);
      most = std::max(most, v.errors.ratio);
      largest = std::max(largest, v.errors.max_ratio);
    }
  }
  std::cout << "chunks of " << std::setw(3) << chunk << std::fixed
            << std::setprecision(2) << ": RMS ratios " << least << " to "
            << most << ", largest-error ratios up to " << largest << '\n';
}

TEST_CASE("each rounding point is treated as the table of the manual says") {
  using enum carve::rounding_point;
  // Three values: as it was, as a number of bf16, as one cut to tf32.
  constexpr float whole = 0x1.01fffep0f, operand = 0x1.02p0f, cut = 0x1.01cp0f;
  const auto treated = [](carve::rounding_point at, bool per_channel,
                          bool decayed = false) {
    carve::matrix<float> m(1, 1);
    m(0, 0) = whole;
    operand_policy({format::bf16, false, 0, decayed}).round(at, per_channel, m);
    return m(0, 0);
  };
  for (const auto at :
       {T, P, r, wv, rg, W, Twv, S, U, dS, PtdO, dU, dW, M, MTt, SdS}) {
    CAPTURE(static_cast<int>(at));
    REQUIRE(treated(at, true) == operand);
    REQUIRE(treated(at, false) == operand);
  }
  for (const auto at : {qg, kg}) {
    REQUIRE(treated(at, true) == operand);
    REQUIRE(treated(at, false) == whole);
  }
  for (const auto at : {U_tail, dscore, dk_part}) {
    REQUIRE(treated(at, true) == whole);
    REQUIRE(treated(at, false) == operand);
  }
  REQUIRE(treated(score, true) == cut);
  REQUIRE(treated(score, false) == whole);
  REQUIRE(treated(inverse, true) == cut);
  REQUIRE(treated(inverse, false) == cut);
  REQUIRE(treated(qg_back, true) == whole);
  REQUIRE(treated(qg_back, false) == cut);
  // A decay per head that multiplies operands; one per channel does already.
  for (const auto at : {qg, kg, qg_back, U_tail, dscore, dk_part}) {
    CAPTURE(static_cast<int>(at));
    REQUIRE(treated(at, false, true) == operand);
    REQUIRE(treated(at, true, true) == treated(at, true));
  }
  REQUIRE(treated(inverse, false, true) == cut);
}

TEST_CASE("partial sums are numbers of the operand format") {
  // 1 + 2^-8 lies in the middle and goes to the even 1, twice.
  std::vector<float> x{1, 0x1p-8f, 0x1p-8f, 0};
  REQUIRE(
      operand_policy(format::bf16).sum(carve::rounding_point::SdS, true, x) ==
      1);
}

TEST_CASE("a draw is another at each rounding point") {
  const auto drawn = [](carve::rounding_point at) {
    carve::matrix<float> m(1, 1);
    m(0, 0) = 0x1.01fffep0f;
    operand_policy({format::bf16, false, 7}).round(at, true, m);
    return m(0, 0);
  };
  REQUIRE(drawn(carve::rounding_point::P) != drawn(carve::rounding_point::U));
}

TEST_CASE("the profiles tf32 and fp32 have operands of their own") {
  const carve::program::dump d = fixtures::read("gdn_bf16");
  const auto p = carve::program::convert_problem<float>(
      d.in, [](double x) { return static_cast<float>(x); });
  const auto o = [&](carve::profile as, format operand) {
    return carve::replay(p, {}, as, operand).out.o.data;
  };
  const auto by = [&](format operand) {
    return carve::forward(
               p, chunked_solver<operand_policy>{64, operand_policy(operand)})
        .o.data;
  };
  REQUIRE(o(carve::profile::tensor_core, format::bf16) == by(format::bf16));
  REQUIRE(o(carve::profile::tf32, format::bf16) == by(format::tf32));
  REQUIRE(o(carve::profile::fp32, format::bf16) == by(format::f32));
  REQUIRE(by(format::bf16) != by(format::tf32));
  REQUIRE(by(format::tf32) != by(format::f32));
}
