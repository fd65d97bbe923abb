/// @file
/// Runs a fuzzer's function without a fuzzer: on the files of the folders named
/// as arguments, and on N random inputs for the argument `--random=N`, whose
/// seed is `--seed=S` (default 1).
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size);

namespace {

/// A run that stops says by the last of these which input it was; input i of a
/// seed does not depend on how many there are.
void run_random(std::uint64_t count, std::uint64_t seed) {
  std::vector<std::uint8_t> input;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (i % 100'000 == 0) {
      std::printf("seed %llu, input %llu\n",
                  static_cast<unsigned long long>(seed),
                  static_cast<unsigned long long>(i));
      std::fflush(stdout);
    }
    std::seed_seq sequence{seed, i};
    std::minstd_rand random(sequence);
    input.resize(4 + random() % 60);
    for (std::uint8_t& byte : input) {
      byte = static_cast<std::uint8_t>(random() >> 8);
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t inputs = 0, seed = 1, random = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("--random=")) {
      random = std::stoull(argument.substr(9));
      continue;
    }
    if (argument.starts_with("--seed=")) {
      seed = std::stoull(argument.substr(7));
      continue;
    }
    for (const auto& item : std::filesystem::directory_iterator(argument)) {
      std::ifstream stream(item.path(), std::ios::binary);
      if (!stream) return std::perror(item.path().c_str()), 1;
      const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
      // The name first, so that a crash says which file it was.
      std::printf("%s\n", item.path().c_str());
      std::fflush(stdout);
      LLVMFuzzerTestOneInput(
          reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
      ++inputs;
    }
  }
  run_random(random, seed);
  inputs += random;
  std::printf("%llu inputs\n", static_cast<unsigned long long>(inputs));
  return inputs > 0 ? 0 : 1;
}
