/// @file
/// What the commands of the program share: exit codes, the options of those
/// that read a dump, the check of the paths they write.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "output.hpp"
#include "program/console.hpp"
#include "program/dump.hpp"
#include "program/verify.hpp"
#include "safetensors.hpp"

namespace carve::program {

enum exit_code { passed = 0, failed = 1, unusable = 2, not_judged = 3 };

/// Tells the line how long `work`, which takes a time proportional to the
/// tokens, will take with all of them, from how long it takes with a few.
template <class Work>
void estimate(progress_line& line, const dump& d, const Work& work) {
  constexpr index_t few = 64;
  if (!line.wanted() || d.size.T < 32 * few) return;
  const auto start = std::chrono::steady_clock::now();
  work(first_tokens(d, few));
  const std::chrono::duration<double> spent =
      std::chrono::steady_clock::now() - start;
  line.expect(spent.count() * static_cast<double>(d.size.T) / few);
}

constexpr std::string_view settings_note =
    "A setting is read from the file's metadata, under its name with _ for -,\n"
    "unless it is given here.\n\n";

/// What the commands that read a dump have in common.
struct dump_options {
  std::map<std::string, std::string> given;  // by metadata key
  unsigned threads = 0;

  void declare(CLI::App* command) {
    command
        ->add_option("--threads", threads,
                     "how many to use (default: as many as the machine has)")
        ->option_text("N")
        ->check(CLI::Range(1u, 4096u));
    for (const setting& s : settings_table) {
      std::string option = "--" + std::string(s.key);
      std::replace(option.begin() + 2, option.end(), '_', '-');
      command
          ->add_option_function<std::string>(
              option,
              [this, key = std::string(s.key)](const std::string& value) {
                given[key] = value;
              },
              std::string(s.help))
          ->option_text(std::string(s.value))
          ->group("Settings");
    }
  }

  /// Errors name the file.
  template <class F>
  auto with_file(const std::string& path, F&& use) const {
    const safetensors::file file = safetensors::file::open(path);
    try {
      return use(file);
    } catch (const error& e) {
      throw error(path == "-" ? "standard input" : safetensors::printable(path),
                  ": ", e.what());
    }
  }
};

/// Before the work: may each path be written, once, and not over an input?
/// @param[in] outputs  option and path; an empty path is none.
inline void check_outputs(
    const std::vector<std::pair<std::string_view, std::string>>& outputs,
    const std::vector<std::string>& inputs) {
  const auto same = [](const std::string& x, const std::string& y) {
    std::error_code code;
    return x == y || (x != "-" && y != "-" &&
                      (std::filesystem::equivalent(x, y, code) ||
                       std::filesystem::absolute(x).lexically_normal() ==
                           std::filesystem::absolute(y).lexically_normal()));
  };
  for (auto i = outputs.begin(); i != outputs.end(); ++i) {
    if (i->second.empty()) continue;
    for (auto j = outputs.begin(); j != i; ++j) {
      if (!j->second.empty() && same(i->second, j->second)) {
        throw error(i->first, ": ", safetensors::printable(i->second),
                    " is also what ", j->first, " writes");
      }
    }
    for (const std::string& input : inputs) {
      if (input != "-" && same(i->second, input)) {
        throw error(i->first, ": ", safetensors::printable(i->second),
                    " is the dump itself");
      }
    }
    check_output(i->second);
  }
}

}  // namespace carve::program
