/// @file
/// Runs the fuzzer's function on the files of the folders named as arguments,
/// for compilers that have no fuzzer of their own.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size);

int main(int argc, char** argv) {
  int files = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& item : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream stream(item.path(), std::ios::binary);
      if (!stream) return std::perror(item.path().c_str()), 1;
      const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
      // The name first, so that a crash says which file it was.
      std::printf("%s\n", item.path().c_str());
      std::fflush(stdout);
      LLVMFuzzerTestOneInput(
          reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
      ++files;
    }
  }
  std::printf("%d files\n", files);
  return files > 0 ? 0 : 1;
}
