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
