/// @file
/// The benchmark program: Google Benchmark's table, then the ratios.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "carve/dispatch.hpp"
#include "measured.hpp"

namespace carve::bench {

void register_element();
void register_whole();

namespace {

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

void print_ratio(const char* text, const std::string& above,
                 const std::string& below) {
  const auto& m = measured();
  if (!m.contains(above) || !m.contains(below)) return;
  std::printf("%-54s %8.1f\n", text, m.at(above) / m.at(below));
}

void print_ratios() {
  const std::string size =
      "/4096/" +
      std::to_string(std::max(1u, std::thread::hardware_concurrency()));
  std::printf("\n%-54s %8s\n", "ratio", "");
  print_ratio("whole problem, double-double / double, wall",
              "double-double" + size, "double" + size);
  print_ratio("whole problem, double-double / double, CPU time",
              "double-double" + size + "/cpu", "double" + size + "/cpu");
  print_ratio("element, double-double / double", "element/double-double",
              "element/double");
  print_ratio("element, float128 / double-double", "element/float128",
              "element/double-double");
}

}  // namespace

}  // namespace carve::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  std::fprintf(
      stderr, "%s, %u cores, instruction set %s\n",
      carve::bench::cpu_model().c_str(), std::thread::hardware_concurrency(),
      std::string(carve::name_of(carve::widest_instruction_set())).c_str());
  carve::bench::register_element();
  carve::bench::register_whole();
  benchmark::RunSpecifiedBenchmarks();
  carve::bench::print_ratios();
  benchmark::Shutdown();
}
