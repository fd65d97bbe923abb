// Does a call keep its word: the same bits in two runs and alone or in a
// batch, empty sequences passed through, wrong problems refused with a text?
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <string>

#include "catch.hpp"
#include "tools.hpp"

using namespace carve::cuda;
using namespace carve::cuda::test;

namespace {

const family families[] = {family::delta, family::gdn,   family::kda,
                           family::gdn2,  family::carve, family::value_erase};

/// Tokens [from, to) of a tensor of `width` elements a token.
values part(const values& x, std::size_t width, std::size_t from,
            std::size_t to) {
  if (x.empty()) return {};
  return {x.begin() + from * width, x.begin() + to * width};
}

std::size_t width(const values& x, const problem& p) {
  return x.size() / (std::size_t(p.B) * p.T);
}

/// Sequence n of a packed or batched problem, on its own.
inputs alone(const inputs& in, int n) {
  const problem& p = in.shape;
  const std::size_t from = in.cu.empty() ? std::size_t(n) * p.T : in.cu[n];
  const std::size_t to = in.cu.empty() ? from + p.T : in.cu[n + 1];
  inputs one = in;
  one.cu.clear();
  one.shape.B = one.shape.N = 1;
  one.shape.T = static_cast<int>(to - from);
  for (values inputs::*x :
       {&inputs::q, &inputs::k, &inputs::v, &inputs::g, &inputs::beta,
        &inputs::b, &inputs::e, &inputs::w, &inputs::d_o})
    one.*x = part(in.*x, width(in.*x, p), from, to);
  const std::size_t state = std::size_t(p.HV) * p.K * p.V;
  one.initial_state = part(in.initial_state, state, n, n + 1);
  one.d_final_state = part(in.d_final_state, state, n, n + 1);
  return one;
}

void require_same_bits(const char* name, const values& a, const values& b) {
  INFO(name);
  REQUIRE(a.size() == b.size());
  REQUIRE((a.empty() ||
           std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0));
}

/// Sequences 0, step, 2 step .. are run alone as well.
void check_repeatable(const sizes& s, path how, int step = 1) {
  INFO(name_of(s.fam));
  const inputs in = make(s, draw::hard);
  const problem& p = in.shape;
  const results first = run(in, how), second = run(in, how);
  require_same_bits("o", first.o, second.o);
  require_same_bits("final_state", first.final_state, second.final_state);
  for (const named_values& x : paired(first, second))
    require_same_bits(x.name, *x.got, *x.expected);

  for (int n = 0; n < p.N; n += step) {
    const inputs one = alone(in, n);
    if (one.shape.T == 0) continue;
    const results single = run(one, how);
    const std::size_t from = in.cu.empty() ? std::size_t(n) * p.T : in.cu[n];
    const std::size_t to = from + one.shape.T;
    const std::size_t state = std::size_t(p.HV) * p.K * p.V;
    INFO("sequence " << n);
    require_same_bits("o", single.o,
                      part(first.o, width(first.o, p), from, to));
    require_same_bits("final_state", single.final_state,
                      part(first.final_state, state, n, n + 1));
    for (const named_values& x : paired(first, single)) {
      const std::string name = x.name;
      if (name.starts_with("d_w_")) continue;  // summed over the sequences
      require_same_bits(x.name, *x.expected,
                        name == "d_initial_state"
                            ? part(*x.got, state, n, n + 1)
                            : part(*x.got, width(*x.got, p), from, to));
    }
  }
}

}  // namespace

TEST_CASE("the same bits in two runs, alone and in a batch", "[contract]") {
  for (const path how : {path::general, path::best})
    for (const family f : families) {
      sizes s;
      s.fam = f;
      s.K = 64;
      s.V = 128;
      s.B = 3;
      s.T = 150;
      s.H = 1;
      s.HV = 2;
      s.seed = 11;
      check_repeatable(s, how);
      s.B = 1;
      s.cu = {0, 70, 70, 71, 150};
      check_repeatable(s, how);
    }
}

// A batch that fills half of the device or all takes other kernels than one
// sequence does.
TEST_CASE("the same bits alone and among many", "[contract][fast]") {
  for (const family f : families)
    for (const int B : {20, 33}) {
      sizes s;
      s.fam = f;
      s.K = s.V = 128;
      s.B = B;
      s.T = 130;
      s.HV = 2;
      s.seed = 12;
      check_repeatable(s, path::best, 16);
    }
}

// Sequences and heads that fill the device have a backward of their own, so one
// alone may have other bits; in whatever company on a full grid it has the
// same.
TEST_CASE("the same bits in any company on a full grid", "[contract][fast]") {
  int multiprocessors = 0, major = 0;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  for (const family f : {family::delta, family::gdn}) {
    INFO(name_of(f));
    sizes s;
    s.fam = f;
    s.K = s.V = 128;
    s.B = (multiprocessors + 1) / 2;
    s.T = 130;
    s.H = s.HV = 2;
    s.seed = 13;
    const inputs in = make(s, draw::hard);
    problem p = in.shape;
    alignas(16) static float memory[4];
    for (tensor* t : {&p.q, &p.k, &p.v, &p.g, &p.beta}) t->data = memory;
    CHECK(std::string(kernel_name(p, true)) ==
          (major == 9 ? "backward_full_grid" : "backward_general"));
    p.B = p.N = 1;
    CHECK(std::string(kernel_name(p, true)) ==
          (major == 9 ? "backward_hopper" : "backward_general"));

    // The sequences in reverse, then packed in reverse.
    const int N = in.shape.N;
    inputs turned = in;
    const std::size_t state = std::size_t(s.HV) * s.K * s.V;
    const auto turn = [&](const values& x, std::size_t size) {
      values y;
      for (int n = N - 1; n >= 0 && !x.empty(); --n)
        y.insert(y.end(), x.begin() + n * size, x.begin() + (n + 1) * size);
      return y;
    };
    for (values inputs::*x : {&inputs::q, &inputs::k, &inputs::v, &inputs::g,
                              &inputs::beta, &inputs::d_o})
      turned.*x = turn(in.*x, (in.*x).size() / N);
    turned.initial_state = turn(in.initial_state, state);
    turned.d_final_state = turn(in.d_final_state, state);
    inputs packed = turned;
    for (int n = 0; n <= N; ++n) packed.cu.push_back(std::int64_t(n) * s.T);
    packed.shape.B = 1;
    packed.shape.T = N * s.T;

    const results first = run(in, path::best), second = run(in, path::best);
    const results back = run(turned, path::best),
                  flat = run(packed, path::best);
    for (const named_values& x : paired(first, second))
      require_same_bits(x.name, *x.got, *x.expected);
    for (const results* other : {&back, &flat})
      for (const named_values& x : paired(first, *other))
        require_same_bits(x.name, turn(*x.got, x.got->size() / N), *x.expected);
  }
}

// One sequence, many, and packed ones: three kernels.
TEST_CASE(
    "the means that the forward keeps are those of its outputs, and the "
    "backward takes them",
    "[contract][fast]") {
  for (const path how : {path::general, path::best})
    for (const int B : {1, 33, 0}) {
      sizes s;
      s.fam = family::carve;
      s.K = s.V = 128;
      s.B = std::max(B, 1);
      s.T = 300;
      s.HV = 2;
      s.window = 128;
      if (B == 0) s.cu = {0, 0, 128, 300};
      inputs in = make(s, draw::easy);
      const results plain = run(in, how);
      in.keep_means = true;
      const results kept = run(in, how);
      require_same_bits("o", plain.o, kept.o);
      for (const named_values& x : paired(plain, kept))
        require_same_bits(x.name, *x.got, *x.expected);
      const problem& p = in.shape;
      inputs forward_alone = in;
      forward_alone.d_o.clear();
      const values o = reference(forward_alone).o;
      values got, expected;
      for (int n = 0; n < p.N; ++n) {
        const std::int64_t first =
            in.cu.empty() ? std::int64_t(n) * p.T : in.cu[n];
        const std::int64_t length =
            in.cu.empty() ? p.T : in.cu[n + 1] - in.cu[n];
        for (std::int64_t c = 1; c * p.window < length; ++c)
          for (int j = 0; j < p.HV * p.V; ++j) {
            double sum = 0;
            for (int t = 0; t < p.window; ++t)
              sum += o[(first + (c - 1) * p.window + t) * p.HV * p.V + j];
            expected.push_back(sum / p.window);
            got.push_back(
                kept.window_means[(first / p.window + n + c) * p.HV * p.V + j]);
          }
      }
      REQUIRE(relative_rms(got, expected) < 3e-3);
    }
}

/// Long enough for its forward to be cut into pieces.
sizes long_sequence(family f) {
  sizes s;
  s.fam = f;
  s.K = s.V = 128;
  s.T = 4700;
  s.HV = 2;
  s.seed = 13;
  return s;
}

/// The kernel of a forward, its tensors where they would be.
std::string forward_kernel(const inputs& in) {
  alignas(16) static float x[4];
  problem p = in.shape;
  for (tensor* t : {&p.q, &p.k, &p.v, &p.g, &p.beta, &p.b, &p.w}) t->data = x;
  return kernel_name(p, false);
}

TEST_CASE("a long sequence is cut into pieces, and gives the same bits twice",
          "[contract][fast]") {
  for (const family f :
       {family::delta, family::gdn, family::kda, family::gdn2}) {
    INFO(name_of(f));
    sizes s = long_sequence(f);
    const inputs in = make(s, draw::hard);
    s.T = 130;
    if (forward_kernel(make(s, draw::hard)) == "forward_hopper")
      CHECK(forward_kernel(in) == "forward_scan");
    else
      WARN("not a Hopper GPU: nothing is cut");
    const results first = run(in, path::best, false);
    const results second = run(in, path::best, false);
    require_same_bits("o", first.o, second.o);
    require_same_bits("final_state", first.final_state, second.final_state);
  }
}

// Thirty times the same key, of squared norm 2.2: what is not written there
// grows by 1.2 a token, and so does the transfer matrix of that piece, whatever
// state the piece begins with.  (Without decay: else the matrices are zero.)
TEST_CASE("a head that amplifies is walked in order", "[contract][fast]") {
  inputs in = make(long_sequence(family::gdn), draw::no_decay);
  const problem& p = in.shape;
  for (int t = 3000; t < 3030; ++t) {
    for (int i = 0; i < p.K; ++i)
      in.k[t * p.K + i] = i == 0 ? rounded(std::sqrt(2.2), p.input) : 0;
    in.beta[t * p.HV] = 1;
    in.beta[t * p.HV + 1] = 0.5;
  }
  in.d_o.clear();
  // Among nine sequences none is cut.
  inputs many = in;
  many.shape.B = many.shape.N = 9;
  for (values inputs::*x : {&inputs::q, &inputs::k, &inputs::v, &inputs::g,
                            &inputs::beta, &inputs::initial_state}) {
    const values one = in.*x;
    for (int n = 1; n < 9; ++n)
      (many.*x).insert((many.*x).end(), one.begin(), one.end());
  }
  const results got = run(in, path::best, false);
  const results whole = run(many, path::best, false);
  const auto of_head = [&](const values& o, int head) {
    values y;
    for (std::int64_t t = 0; t < p.T; ++t) {
      const auto from = o.begin() + (t * p.HV + head) * p.V;
      y.insert(y.end(), from, from + p.V);
    }
    return y;
  };
  require_same_bits("o", of_head(got.o, 0), of_head(whole.o, 0));
  if (forward_kernel(in) != "forward_scan") return;
  const bool cut = of_head(got.o, 1) != of_head(whole.o, 1);
  CHECK(cut);
  const values exact = reference(in).o;
  for (int head = 0; head < 2; ++head) {
    const double error =
        relative_rms(of_head(got.o, head), of_head(exact, head));
    const double in_order =
        relative_rms(of_head(whole.o, head), of_head(exact, head));
    INFO("head " << head << ": " << error << ", in order " << in_order);
    CHECK(error <= 1.1 * in_order);
    CHECK(in_order < 2e-2);
  }
}

TEST_CASE("an empty sequence leaves its state as it was", "[contract]") {
  for (const path how : {path::general, path::best})
    for (const family f : families)
      for (const bool start : {true, false}) {
        sizes s;
        s.fam = f;
        s.K = s.V = 64;
        s.cu = {0, 0, 50, 50};
        s.T = 50;
        s.start_state = start;
        const inputs in = make(s, draw::easy);
        const results got = run(in, how);
        const std::size_t state = 64 * 64;
        for (const int n : {0, 2}) {
          require_same_bits(
              "final_state", part(got.final_state, state, n, n + 1),
              start ? part(in.initial_state, state, n, n + 1) : values(state));
          require_same_bits(
              "d_initial_state", part(got.d_initial_state, state, n, n + 1),
              start ? part(in.d_final_state, state, n, n + 1) : values(state));
        }
      }
}

TEST_CASE("the kernel is chosen by shape and format", "[contract]") {
  sizes s;
  s.fam = family::gdn2;
  s.K = s.V = 48;
  inputs in = make(s, draw::easy);
  float x[4] = {};
  problem p = in.shape;
  for (tensor* t : {&p.q, &p.k, &p.v, &p.g, &p.b, &p.w}) t->data = x;
  CHECK(std::string(kernel_name(p, false)) == "forward_general");
  CHECK(std::string(kernel_name(p, true)) == "backward_general");
  p.K = 40;
  CHECK(std::string(kernel_name(p, false)) == "none");
}

TEST_CASE("a wrong problem is refused with a text", "[contract]") {
  alignas(256) static float memory[64];
  problem good;
  good.family = family::gdn2;
  good.B = good.N = 1;
  good.T = 4;
  good.H = good.HV = 1;
  good.K = good.V = 64;
  good.scale = 1;
  for (tensor* t : {&good.q, &good.k, &good.v, &good.g, &good.b, &good.w})
    *t = {memory, 256, 64, 64};
  std::size_t bytes = 0;
  REQUIRE(forward_workspace(good, &bytes, path::general));

  auto text = [&](auto&& change) {
    problem p = good;
    change(p);
    const status s = forward_workspace(p, &bytes);
    CHECK(s.code != 0);
    CHECK(backward_workspace(p, &bytes).code == s.code);
    return std::string(s.text);
  };
  CHECK(text([](problem& p) { p.K = 24; }) ==
        "K must be a multiple of 16 from 16 to 256");
  CHECK(text([](problem& p) { p.V = 272; }) ==
        "V must be a multiple of 16 from 16 to 256");
  CHECK(text([](problem& p) { p.q.data = nullptr; }) == "q: null pointer");
  CHECK(text([](problem& p) { p.w.data = nullptr; }) == "w: null pointer");
  CHECK(text([](problem& p) { p.g.data = nullptr; }) == "g: null pointer");
  CHECK(text([](problem& p) {
          p.k.data = reinterpret_cast<char*>(memory) + 1;
        }) == "k: pointer not aligned to its element");
  CHECK(text([](problem& p) { p.H = 2; }) == "HV must be a multiple of H");
  CHECK(text([](problem& p) { p.N = 2; }) ==
        "N must equal B when cu_seqlens is null");
  CHECK(text([](problem& p) {
          p.B = 2;
          p.cu_seqlens = reinterpret_cast<std::int64_t*>(memory);
        }) == "B must be 1 when cu_seqlens is given");
  CHECK(text([](problem& p) { p.B = 0; }) ==
        "B, H and HV must be at least 1 and T at least 0");
  CHECK(text([](problem& p) { p.family = static_cast<family>(17); }) ==
        "family: not one of the known families");
  CHECK(text([](problem& p) { p.input = static_cast<format>(9); }) ==
        "format: expected fp32, bf16 or fp16");
  CHECK(text([](problem& p) { p.family = family::kda; }) ==
        "beta: null pointer");
  CHECK(text([](problem& p) { p.family = family::carve; }) ==
        "window must be at least 1");
  CHECK(text([](problem& p) {
          p.family = family::carve;
          p.window = 64;
        }) == "rank must be from 1 to 256");
  CHECK(text([](problem& p) {
          p.family = family::carve;
          p.window = 64;
          p.rank = 1;
        }) == "w_down: null pointer");

  outputs out;
  CHECK(std::string(forward(good, out, nullptr, 0, nullptr).text) ==
        "o: null pointer");
  out.o = {memory, 256, 32, 64};
  CHECK(std::string(forward(good, out, nullptr, 0, nullptr).text) ==
        "o: stride smaller than the row it has to step over");
  gradients g;
  CHECK(
      std::string(backward(good, g, nullptr, 0, nullptr, path::general).text) ==
      "d_o: null pointer");
  g.d_o = {memory, 256, 64, 64};
  CHECK(
      std::string(backward(good, g, nullptr, 0, nullptr, path::general).text) ==
      "workspace smaller than the size asked for");
  g.dbeta = {memory, 4, 1, 1};
  CHECK(
      std::string(backward(good, g, nullptr, 0, nullptr, path::general).text) ==
      "dbeta: this family has no beta");
  CHECK(std::string(decode(good, out.o, memory, nullptr).text) ==
        "T must be 1 for decode");
  problem one = good;
  one.T = 1;
  CHECK(std::string(decode(one, out.o, nullptr, nullptr).text) ==
        "state: null pointer");
  REQUIRE(cudaGetLastError() == cudaSuccess);
}
