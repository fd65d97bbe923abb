/// @file
/// How long do forward and backward of a whole problem take, and how much
/// memory?
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <random>
#include <thread>

#include "carve/reference.hpp"
#include "measured.hpp"

namespace carve::bench {

namespace {

constexpr index_t heads = 16, width = 128;

double cpu_seconds() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) +
           1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(u.ru_utime) + seconds(u.ru_stime);
}

double peak_mib() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return static_cast<double>(u.ru_maxrss) / 1024;
}

/// A problem of GDN-2 with every gate, B = 1, H = 16, K = V = 128.
template <class T>
struct sample {
  problem<T> p;
  outputs<T> cotangents;

  explicit sample(index_t tokens) {
    std::mt19937_64 bits(3);
    std::normal_distribution<double> normal;
    const auto fill = [&](tensor<T>& x, auto f) {
      x = tensor<T>({1, tokens, heads, width});
      for (T& e : x.data) e = T(f(normal(bits)));
    };
    const auto unit = [](double x) { return x / std::sqrt(double(width)); };
    const auto gate = [](double x) { return 1 / (1 + std::exp(x)); };
    const auto same = [](double x) { return x; };
    p.family = family::gdn2;
    fill(p.in.q, unit);
    fill(p.in.k, unit);
    fill(p.in.v, same);
    fill(p.in.g, [](double x) { return -0.2 * std::fabs(x); });
    fill(p.in.b, gate);
    fill(p.in.w, gate);
    fill(cotangents.o, same);
  }
};

template <class T>
void whole(benchmark::State& state) {
  const index_t tokens = state.range(0);
  const unsigned threads = static_cast<unsigned>(state.range(1));
  const sample<T> x(tokens);
  const std::string name = std::string(scalar_traits<T>::name) + "/" +
                           std::to_string(tokens) + "/" +
                           std::to_string(threads);
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    const double cpu = cpu_seconds();
    auto r = backward(x.p, x.cotangents, reference_solver{}, {threads, {}});
    benchmark::DoNotOptimize(r.out.o.data.data());
    const std::chrono::duration<double> wall =
        std::chrono::steady_clock::now() - start;
    note(name, wall.count());
    note(name + "/cpu", cpu_seconds() - cpu);
  }
  // Inputs and do; the linear decay, since nothing else is activated; o, final
  // state and the gradients.
  const double elements =
      static_cast<double>(tokens * heads * width) * (7 + 1 + 7) +
      static_cast<double>(heads * width * width);
  // Per thread: a state every 32 tokens, and those of the 32 in between.
  const double states = static_cast<double>(threads * width) *
                        (static_cast<double>(tokens / 32 + 1) * width +
                         33. * detail::tile_columns<T>);
  constexpr double mib = sizeof(T) / 1048576.;
  state.counters["tensors_MiB"] = elements * mib;
  state.counters["states_MiB"] = states * mib;
  state.counters["peak_MiB"] = peak_mib();
}

}  // namespace

/// double before double_double: the peak of a process only grows.
void register_whole() {
  const auto add = [](const char* name, auto* f, index_t tokens,
                      unsigned threads) {
    benchmark::RegisterBenchmark(name, f)
        ->Args({tokens, threads})
        ->ArgNames({"tokens", "threads"})
        ->Iterations(1)
        ->MeasureProcessCPUTime()
        ->UseRealTime()
        ->Unit(benchmark::kSecond);
  };
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  add("whole/double", &whole<double>, 256, cores);
  add("whole/double", &whole<double>, 4096, cores);
  add("whole/double_double", &whole<double_double>, 4096, cores);
}

}  // namespace carve::bench
