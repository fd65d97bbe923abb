// Are the kernels exact where no step of the recurrence rounds?  Small integer
// inputs, every family, compared bit for bit with the token loop in double.
#include <array>
#include <string>

#include "catch.hpp"
#include "tools.hpp"

using namespace carve::cuda;
using namespace carve::cuda::test;

namespace {

void require_same(const char* name, const values& got, const values& expected,
                  format f) {
  REQUIRE(got.size() == expected.size());
  std::size_t wrong = 0, first = 0, nonzero = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    nonzero += expected[i] != 0;
    if (got[i] == rounded(expected[i], f)) continue;
    if (wrong++ == 0) first = i;
  }
  INFO(name << ": " << wrong << " of " << got.size() << " differ, first at "
            << first);
  if (wrong != 0) {
    UNSCOPED_INFO("got " << got[first] << ", expected " << expected[first]);
  }
  REQUIRE(wrong == 0);
  // Zeros prove nothing; one token without a start state has little else.
  if (got.size() > 1024) CHECK(nonzero > 0);
}

/// One case and what is expected of it.
struct lattice_case {
  sizes s;
  path how;
  bool backward;
  inputs in = {};
  results exact = {};
};

void prepare(lattice_case& c) {
  c.in = make(c.s, draw::lattice);
  if (!c.backward) c.in.d_o.clear();
  c.exact = reference(c.in);
}

void judge(const lattice_case& c) {
  const auto& [s, how, backward, in, exact] = c;
  const bool fast = how == path::best;
  INFO(name_of(s.fam) << " K=" << s.K << " V=" << s.V << " T=" << s.T
                      << " H=" << s.H << " HV=" << s.HV << " seed=" << s.seed
                      << (s.read_before ? " read before" : "")
                      << (s.start_state ? " start state" : "") << " "
                      << kernel_name(in.shape, false, how));
  REQUIRE(exact.exact_sums);
  if (fast) REQUIRE(exact.exact_operands);
  const results got = run(in, how, backward);
  require_same("o", got.o, exact.o, s.input);
  require_same("final_state", got.final_state, exact.final_state, format::fp32);
  if (!backward) return;
  for (const named_values& x : paired(got, exact)) {
    const std::string name = x.name;
    const bool wide = name == "dg" || name.starts_with("d_");
    // Saturated gates pass nothing on: the content gate's own gradients are
    // zero here, and elsewhere compared by their error.
    if (name.starts_with("d_w_")) continue;
    if (s.fam == family::carve && name == "db") {
      REQUIRE(relative_rms(*x.got, *x.expected) == 0);
      continue;
    }
    require_same(x.name, *x.got, *x.expected, wide ? format::fp32 : s.input);
  }
}

/// The cases of one test, judged when it is through with them.
class lattice_cases {
 public:
  void check(const sizes& s, path how, bool backward = true) {
    all_.push_back({s, how, backward});
  }
  void judge_all() {
    prepare_and_judge(
        all_.size(), [&](std::size_t i) { prepare(all_[i]); },
        [&](std::size_t i) {
          judge(all_[i]);
          all_[i] = {};
        });
  }

 private:
  std::vector<lattice_case> all_;
};

const family families[] = {family::delta, family::gdn,   family::kda,
                           family::gdn2,  family::carve, family::value_erase};

}  // namespace

TEST_CASE("general kernels are exact on the integer lattice", "[lattice]") {
  lattice_cases cases;
  std::uint64_t seed = 1;
  for (const family f : families)
    for (const auto& [K, V] : {std::pair{64, 64},
                               {128, 128},
                               {32, 48},
                               {80, 16},
                               {128, 64},
                               {256, 32}})
      for (const bool read_before : {false, true}) {
        sizes s;
        s.fam = f;
        s.K = K;
        s.V = V;
        s.T = 90;
        s.HV = 2;
        s.window = 16;
        s.read_before = read_before;
        s.start_state = seed % 3 != 0;
        s.input =
            std::array{format::fp32, format::bf16, format::fp16}[seed % 3];
        s.seed = seed++;
        cases.check(s, path::general);
      }
  cases.judge_all();
}

TEST_CASE("general kernels are exact for grouped heads and packed sequences",
          "[lattice]") {
  lattice_cases cases;
  for (const family f : families) {
    sizes s;
    s.fam = f;
    s.H = 2;
    s.HV = 6;
    s.K = 48;
    s.V = 32;
    s.cu = {0, 0, 1, 66, 66, 130, 130};
    s.T = 130;
    s.window = 8;
    s.input = format::fp32;
    cases.check(s, path::general);
    s.cu.clear();
    s.B = 3;
    s.T = 37;
    cases.check(s, path::general);
  }
  cases.judge_all();
}

TEST_CASE("the fastest forward is exact on the integer lattice",
          "[lattice][fast]") {
  lattice_cases cases;
  std::uint64_t seed = 100;
  for (const family f : families)
    for (const format input : {format::bf16, format::fp16})
      for (const auto& [K, V] :
           {std::pair{64, 64}, {128, 128}, {64, 128}, {128, 64}})
        for (const int T : {1, 64, 100, 129})
          for (const bool read_before : {false, true}) {
            sizes s;
            s.fam = f;
            s.input = input;
            s.K = K;
            s.V = V;
            s.T = T;
            s.HV = 2;
            s.window = 64;
            s.read_before = read_before;
            s.start_state = T == 1 || seed % 2 == 0;
            s.seed = seed++;
            cases.check(s, path::best, false);
          }
  cases.judge_all();
}

TEST_CASE("the fastest forward is exact on many sequences", "[lattice][fast]") {
  lattice_cases cases;
  std::uint64_t seed = 200;
  for (const family f : families)
    for (const format input : {format::bf16, format::fp16})
      for (const auto& [K, V] : {std::pair{128, 128}, {64, 64}}) {
        sizes s;
        s.fam = f;
        s.input = input;
        s.K = K;
        s.V = V;
        s.B = 33;
        s.T = 129;
        s.HV = 2;
        s.window = 64;
        s.start_state = seed % 2 == 0;
        s.seed = seed++;
        cases.check(s, path::best, false);
      }
  cases.judge_all();
}

TEST_CASE("the fastest backward is exact on the integer lattice",
          "[lattice][fast]") {
  lattice_cases cases;
  std::uint64_t seed = 300;
  for (const family f : families)
    for (const format input : {format::bf16, format::fp16})
      for (const auto& [K, V] : {std::pair{64, 64}, {128, 128}})
        for (const int T : {64, 100}) {
          sizes s;
          s.fam = f;
          s.input = input;
          s.K = K;
          s.V = V;
          s.T = T;
          s.HV = 2;
          s.window = 64;
          s.seed = seed++;
          cases.check(s, path::best);
        }
  cases.judge_all();
}

TEST_CASE("decode is exact on the integer lattice", "[lattice][decode]") {
  std::uint64_t seed = 500;
  for (const family f : families)
    for (const auto& [K, V] : {std::pair{64, 64},
                               {128, 128},
                               {32, 48},
                               {80, 16},
                               {256, 256},
                               {16, 192}})
      for (const bool read_before : {false, true}) {
        sizes s;
        s.fam = f;
        s.K = K;
        s.V = V;
        s.T = 1;
        s.B = 3;
        s.H = 2;
        s.HV = 4;
        s.read_before = read_before;
        s.input =
            std::array{format::fp32, format::bf16, format::fp16}[seed % 3];
        s.seed = seed++;
        inputs in = make(s, draw::lattice);
        if (f == family::carve)  // decode takes the finished gate
          for (double& x : in.b) x = x > 0 ? 400 : -400;
        const results exact = reference(in);
        if (f == family::carve)
          for (double& x : in.b) x = x > 0 ? 1 : 0;
        const results got = run_decode(in);
        INFO(name_of(f) << " K=" << K << " V=" << V);
        REQUIRE(exact.exact_sums);
        require_same("o", got.o, exact.o, s.input);
        require_same("state", got.final_state, exact.final_state, format::fp32);
      }
}
