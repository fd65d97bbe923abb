/// @file
/// How long does one element of the state take, forward and backward, in each
/// scalar?  One head, one thread.
#include <benchmark/benchmark.h>

#include <cmath>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "carve/reference.hpp"
#include "measured.hpp"

#ifdef CARVE_BENCH_FLOAT128
#include <boost/multiprecision/float128.hpp>

using float128 =
    boost::multiprecision::number<boost::multiprecision::float128_backend,
                                  boost::multiprecision::et_off>;

template <>
struct carve::scalar_traits<float128> {
  static constexpr bool exact = false;
  static constexpr bool is_field = true;
  static constexpr bool is_ordered = true;
  static constexpr bool is_real = false;
  static constexpr std::string_view name = "float128";
  static constexpr int digits = 33;
};
#endif

namespace carve::bench {

namespace {

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class T>
void element(benchmark::State& state) {
  const index_t tokens = state.range(0), width = 128;
  std::mt19937_64 bits(4);
  std::normal_distribution<double> normal;
  const auto some = [&](auto f) {
    std::vector<T> x(tokens * width);
    for (T& e : x) e = T(f(normal(bits)));
    return x;
  };
  const auto unit = [](double x) { return x / 11; };
  const auto gate = [](double x) { return 1 / (1 + std::exp(x)); };
  const auto q = some(unit), k = some(unit), v = some(unit), a = some(gate);
  const auto b = some(gate), w = some(gate), dout = some(unit);
  std::vector<T> o(q.size(), T(0)), dq = o, dk = o, dv = o, dg = o, db = o,
                                    dw = o;
  head<T> p;
  p.tokens = tokens, p.keys = p.values = width;
  p.q = {q.data(), width}, p.k = {k.data(), width}, p.v = {v.data(), width};
  p.a = {a.data(), width}, p.b = {b.data(), width}, p.w = {w.data(), width};
  p.scale = T(1) / T(11);
  head_gradients<T> out;
  out.q = {dq.data(), width}, out.k = {dk.data(), width};
  out.v = {dv.data(), width}, out.g = {dg.data(), width};
  out.b = {db.data(), width}, out.w = {dw.data(), width};
  head_cotangents<T> in;
  in.o = {dout.data(), width};
  const double elements = static_cast<double>(tokens * width * width);
  double least = INFINITY;
  for (auto _ : state) {
    const double start = thread_seconds();
    reference_solver{}.backward(p, in, out, rows<T>{o.data(), width});
    benchmark::DoNotOptimize(o.data());
    const double ns = 1e9 * (thread_seconds() - start) / elements;
    least = std::min(least, ns);
  }
  note(std::string("element/") + std::string(scalar_traits<T>::name), least);
  state.counters["ns_per_element"] = least;
}

}  // namespace

void register_element() {
  const auto add = [](const char* name, auto* f, index_t tokens) {
    benchmark::RegisterBenchmark(name, f)
        ->Arg(tokens)
        ->ArgName("tokens")
        ->Iterations(5)
        ->Unit(benchmark::kMillisecond);
  };
  add("element/float", &element<float>, 512);
  add("element/double", &element<double>, 512);
  add("element/double_double", &element<double_double>, 128);
#ifdef CARVE_BENCH_FLOAT128
  add("element/float128", &element<float128>, 32);
#endif
}

}  // namespace carve::bench
