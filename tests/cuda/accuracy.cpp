// How far are the kernels from the exact recurrence, on easy inputs and on
// hard ones?
#include <cmath>
#include <cstdio>

#include "carve/compare.hpp"
#include "catch.hpp"
#include "tools.hpp"

using namespace carve::cuda;
using namespace carve::cuda::test;

namespace {

const family families[] = {family::delta, family::gdn,   family::kda,
                           family::gdn2,  family::carve, family::value_erase};
const draw draws[] = {draw::easy,          draw::hard,
                      draw::no_decay,      draw::strong_decay,
                      draw::fast_channels, draw::binary_gates};

double norm(const values& x) {
  double sum = 0;
  for (const double y : x) sum += y * y;
  return std::sqrt(sum);
}

/// What comes out of a call, with what it is held to.
struct judged {
  const char* name;
  const values *got, *exact, *replay;  ///< the last null where there is none
  format stored;
  double bound;  ///< of the relative RMS error, where there is no replay
  double units;  ///< of the replay's RMS error, where there is
};

/// The verdict of `carve verify` (carve/compare.hpp), with the replay's errors
/// as its unit.
void judge(const judged& x) {
  INFO(x.name);
  if (x.replay == nullptr) {
    CHECK(relative_rms(*x.got, *x.exact) <= x.bound);
    return;
  }
  const std::vector<carve::double_double> exact(x.exact->begin(),
                                                x.exact->end());
  const carve::tolerance usual;
  const carve::comparison c =
      carve::compare(exact, *x.got, *x.replay,
                     x.stored == format::fp32   ? carve::format::f32
                     : x.stored == format::bf16 ? carve::format::bf16
                                                : carve::format::f16,
                     {x.units, x.units / usual.rms * usual.largest});
  INFO("RMS error " << c.ratio << " units, largest " << c.max_ratio);
  CHECK(!c.fails());
}

/// One case: what is drawn, how it is run, and the bounds where no replay is.
struct accuracy_case {
  sizes s;
  draw d;
  path how;
  double bound_o, bound_gradient;
  int padding = 0;
  double units = carve::tolerance{}.rms;  ///< of the gradients
  bool backward = true;
};

/// What a case is held to.
struct expected {
  inputs in;
  results exact, replayed;
};

expected prepare(const accuracy_case& c) {
  expected x;
  x.in = make(c.s, c.d);
  x.in.padding = c.padding;
  if (!c.backward) x.in.d_o.clear();
  x.exact = reference(x.in);
  if (c.how == path::best && replay() != nullptr) x.replayed = replay()(x.in);
  return x;
}

void judge(const accuracy_case& c, const expected& x) {
  const sizes& s = c.s;
  const auto& [in, exact, replayed] = x;
  const results got = run(in, c.how, c.backward);
  INFO(name_of(s.fam) << " " << name_of(c.d) << " K=" << s.K << " V=" << s.V
                      << " T=" << s.T << " seed=" << s.seed
                      << (s.read_before ? " read before" : ""));
  std::vector<judged> all;
  const auto add = [&](const char* name, const values& result,
                       const values& expected, const values& replay,
                       format stored, double bound, double units) {
    all.push_back({name, &result, &expected, replay.empty() ? nullptr : &replay,
                   stored, bound, units});
  };
  const double usual = carve::tolerance{}.rms;
  add("o", got.o, exact.o, replayed.o, s.input, c.bound_o, usual);
  add("final_state", got.final_state, exact.final_state, replayed.final_state,
      format::fp32, c.bound_o, usual);
  if (c.backward) {
    const auto gradients = paired(got, exact), units = paired(replayed, exact);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      const named_values& g = gradients[i];
      const std::string name = g.name;
      // All of the cotangent d_final_state may have decayed: below fp32's
      // resolution of it there is nothing to judge.
      if (g.expected == &exact.d_initial_state &&
          relative_rms(*g.got, *g.expected) * norm(*g.expected) <=
              norm(in.d_final_state) * 0x1p-24)
        continue;
      const bool wide = name == "dg" || name.starts_with("d_");
      add(g.name, *g.got, *g.expected, *units[i].got,
          wide ? format::fp32 : s.input, c.bound_gradient, c.units);
    }
  }
  std::printf("%-11s %-12s %s K=%-3d V=%-3d T=%-4d", name_of(s.fam),
              name_of(c.d), c.how == path::best ? "best   " : "general", s.K,
              s.V, s.T);
  for (const judged& y : all)
    std::printf("  %s %.2e", y.name, relative_rms(*y.got, *y.exact));
  std::printf("\n");
  for (const judged& y : all) judge(y);
}

/// The cases of one test, judged when it is through with them.
class accuracy_cases {
 public:
  void check(const sizes& s, draw d, path how, double bound_o,
             double bound_gradient, int padding = 0,
             double units = carve::tolerance{}.rms) {
    all_.push_back({s, d, how, bound_o, bound_gradient, padding, units});
  }
  /// Without gradients.
  void check_forward(const sizes& s, draw d) {
    all_.push_back({s, d, path::best, 0, 0});
    all_.back().backward = false;
  }
  void judge_all() const {
    std::vector<expected> ready(all_.size());
    prepare_and_judge(
        all_.size(), [&](std::size_t i) { ready[i] = prepare(all_[i]); },
        [&](std::size_t i) {
          judge(all_[i], ready[i]);
          ready[i] = {};
        });
  }

 private:
  std::vector<accuracy_case> all_;
};

}  // namespace

TEST_CASE("general kernels are really fp32 for fp32 inputs", "[accuracy]") {
  accuracy_cases cases;
  std::uint64_t seed = 1;
  for (const family f : families)
    for (const draw d : draws)
      for (const auto& [K, V] :
           {std::pair{64, 64}, {128, 128}, {96, 48}, {256, 128}}) {
        sizes s;
        s.fam = f;
        s.input = format::fp32;
        s.K = K;
        s.V = V;
        s.T = 150;
        s.H = 1;
        s.HV = 2;
        s.window = 40;
        s.read_before = seed % 2 == 0;
        s.start_state = seed % 3 != 0;
        s.seed = seed++;
        // tf32 would stand near 3e-4, fp32 sums of 256 terms below 1e-5.
        cases.check(s, d, path::general, 1e-5, 1e-5, 4 * (seed % 2));
      }
  cases.judge_all();
}

TEST_CASE("general kernels round 16-bit results once", "[accuracy]") {
  accuracy_cases cases;
  std::uint64_t seed = 200;
  for (const family f : families)
    for (const format input : {format::bf16, format::fp16}) {
      sizes s;
      s.fam = f;
      s.input = input;
      s.K = 128;
      s.V = 64;
      s.T = 150;
      s.H = 2;
      s.HV = 4;
      s.seed = seed++;
      // Half a unit in the last place is 2^-9 or 2^-12 at most.
      const double bound = input == format::bf16 ? 1.96e-3 : 2.5e-4;
      cases.check(s, draw::hard, path::general, bound, bound);
    }
  cases.judge_all();
}

TEST_CASE("windows longer than a segment and longer than the sequence",
          "[accuracy]") {
  accuracy_cases cases;
  for (const int window : {1, 7, 64, 150, 1000}) {
    sizes s;
    s.fam = family::carve;
    s.input = format::fp32;
    s.T = 330;
    s.window = window;
    s.seed = 400 + window;
    cases.check(s, draw::easy, path::general, 1e-5, 1e-5);
  }
  sizes s;
  s.fam = family::carve;
  s.input = format::fp32;
  s.cu = {0, 100, 100, 101, 330};
  s.T = 330;
  s.window = 70;
  s.H = 2;
  s.HV = 4;
  cases.check(s, draw::hard, path::general, 1e-5, 1e-5);
  cases.judge_all();
}

TEST_CASE("the fastest kernels stay near the exact result",
          "[accuracy][fast]") {
  accuracy_cases cases;
  std::uint64_t seed = 500;
  for (const family f : families)
    for (const draw d : draws)
      for (const auto& [K, V] :
           {std::pair{128, 128}, {64, 64}, {128, 64}, {64, 128}}) {
        sizes s;
        s.fam = f;
        s.input = seed % 4 == 3 ? format::fp16 : format::bf16;
        s.K = K;
        s.V = V;
        s.T = 333;
        s.H = 1;
        s.HV = 2;
        s.window = 64;
        s.start_state = seed % 2 == 0;
        s.read_before = seed % 5 == 4;
        s.seed = seed++;
        cases.check(s, d, path::best, 5e-3, 1e-2);
      }
  cases.judge_all();
}

TEST_CASE("the fastest kernels on packed sequences and grouped heads",
          "[accuracy][fast]") {
  accuracy_cases cases;
  for (const family f : families) {
    sizes s;
    s.fam = f;
    s.K = 128;
    s.V = 128;
    s.H = 2;
    s.HV = 4;
    s.cu = {0, 0, 1, 64, 200, 200, 333};
    s.T = 333;
    cases.check(s, draw::hard, path::best, 5e-3, 1e-2);
    // A few of one length, whose chunks are prepared in turn, and some more.
    s.cu.clear();
    s.T = 200;
    for (const int B : {3, 10}) {
      s.B = B;
      s.seed = B;
      cases.check(s, draw::hard, path::best, 5e-3, 1e-2);
    }
  }
  cases.judge_all();
}

// More sequences than multiprocessors, so that the kernels for a full device
// run.
TEST_CASE("the fastest kernels on many sequences", "[accuracy][fast]") {
  accuracy_cases cases;
  std::uint64_t seed = 700;
  for (const family f : families)
    for (const draw d : {draw::hard, draw::fast_channels})
      for (const auto& [K, V] : {std::pair{128, 128}, {64, 128}, {128, 64}}) {
        if (d != draw::hard && K + V < 256) continue;
        sizes s;
        s.fam = f;
        s.input = seed % 4 == 3 ? format::fp16 : format::bf16;
        s.K = K;
        s.V = V;
        s.B = 33;
        s.T = 70;
        s.HV = 2;
        s.window = 64;
        s.start_state = seed % 2 == 0;
        s.seed = seed++;
        cases.check(s, d, path::best, 5e-3, 1e-2);
      }
  cases.judge_all();
}

// One decay a head, as many sequences and heads as fill the device: a backward
// of its own.
TEST_CASE("the fastest backward of a full grid", "[accuracy][fast]") {
  accuracy_cases cases;
  std::uint64_t seed = 1100;
  const auto check = [&](sizes s, draw d, double rate = 0) {
    s.K = s.V = 128;
    s.start_state = seed % 3 != 0;
    s.rate = rate;
    s.seed = seed++;
    cases.check(s, d, path::best, 5e-3, 1e-2);
  };
  for (const family f : {family::delta, family::gdn})
    for (const format input : {format::bf16, format::fp16}) {
      sizes s;
      s.fam = f;
      s.input = input;
      s.B = 33;
      s.T = 140;
      s.H = s.HV = 2;
      for (const draw d : draws) check(s, d);
      if (f == family::gdn)
        for (const double rate : {-1.0, -3.0, -20.0})
          check(s, draw::steady, rate);
      // Lengths of 0 to 260, in no order.
      s.B = 1;
      s.cu = {0};
      for (int n = 0; n < 66; ++n)
        s.cu.push_back(s.cu.back() + (n % 5 == 3 ? 0 : n * 37 % 131 * 2));
      s.T = static_cast<int>(s.cu.back());
      s.H = s.HV = 1;
      check(s, draw::hard);
    }
  cases.judge_all();
}

// Long enough to be cut into pieces on a Hopper GPU; the last piece and the
// last chunk are shorter.
TEST_CASE("the fastest kernels on few heads and long sequences",
          "[accuracy][fast]") {
  accuracy_cases cases;
  std::uint64_t seed = 800;
  for (const family f : {family::delta, family::gdn, family::kda, family::gdn2})
    for (const draw d :
         {draw::easy, draw::hard, draw::strong_decay, draw::fast_channels}) {
      sizes s;
      s.fam = f;
      s.input = seed % 4 == 3 ? format::fp16 : format::bf16;
      s.K = s.V = 128;
      s.T = 4700;
      s.start_state = seed % 2 == 0;
      s.seed = seed++;
      cases.check_forward(s, d);
      if (d != draw::hard) continue;
      // Packed, of several lengths; heads that share a key.
      s.cu = {0, 3000, 9400};
      s.T = 9400;
      s.HV = 2;
      cases.check_forward(s, d);
    }
  cases.judge_all();
}

TEST_CASE("the fastest content gate at any rank and window",
          "[accuracy][fast]") {
  accuracy_cases cases;
  std::uint64_t seed = 900;
  for (const int rank : {4, 16, 20, 100})
    for (const int window : {64, 192})
      for (const int B : {1, 67}) {
        sizes s;
        s.fam = family::carve;
        s.K = seed % 3 == 0 ? 64 : 128;
        s.V = seed % 5 == 0 ? 64 : 128;
        s.B = B;
        s.T = B == 1 ? 700 : 260;
        s.rank = rank;
        s.window = window;
        s.seed = seed++;
        cases.check(s, draw::easy, path::best, 5e-3, 1e-2);
      }
  cases.judge_all();
}

// What carve/cuda.hpp says of gradients that stand further off.
TEST_CASE("the fastest backward where it is known to be less near",
          "[accuracy][fast]") {
  accuracy_cases cases;
  std::uint64_t seed = 1000;
  const auto check = [&](family f, format input, draw d, double rate,
                         double units, int K = 128) {
    sizes s;
    s.fam = f;
    s.input = input;
    s.K = K;
    s.V = 128;
    s.T = 333;
    s.HV = 2;
    s.rate = rate;
    s.seed = seed++;
    cases.check(s, d, path::best, 5e-3, 1e-2, 0, units);
  };
  for (const double rate : {-7.0, -10.0})
    check(family::gdn, format::fp16, draw::steady, rate, 3);
  for (const double rate : {-3.0, -4.0})
    check(family::gdn2, format::bf16, draw::steady, rate, 2);
  for (const family f : {family::gdn, family::kda, family::gdn2}) {
    check(f, format::fp16, draw::uniform, -50, f == family::kda ? 3.5 : 3);
    check(f, format::fp16, draw::no_decay, 0, 2);
  }
  check(family::gdn, format::fp16, draw::no_decay, 0, 2, 64);
  cases.judge_all();
}
