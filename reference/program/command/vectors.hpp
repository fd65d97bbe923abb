/// @file
/// `carve vectors`: test vectors that travel.
#pragma once

#include <iostream>

#include "program/command/command.hpp"
#include "program/vectors.hpp"

namespace carve::program {

struct vectors_command {
  static constexpr const char* command = "vectors";
  std::string suite = "smoke", folder;
  std::vector<std::string> profiles, only;
  std::uint64_t seed = 1;
  unsigned threads = 0;
  bool power = false;

  void declare(CLI::App& app) {
    CLI::App* const c = app.add_subcommand(
        command, "write test vectors with exact outputs, for a port");
    std::vector<std::string> names;
    for (const suite_row& s : suites) names.emplace_back(s.name);
    c->add_option("--suite", suite, "smoke (default), standard or full")
        ->option_text("S")
        ->check(CLI::IsMember(names));
    c->add_option("-o,--output", folder, "the folder to write them to")
        ->option_text("DIR");
    c->add_option("--seed", seed, "of the inputs (default 1)")
        ->option_text("N")
        ->check(CLI::Range(0u, 1000000u));
    c->add_option("--profile", profiles,
                  "whose units the manifest is to hold; several with\n"
                  "commas (default: all). A family without a chunked\n"
                  "form is judged as ieee-recurrent in any")
        ->option_text("P")
        ->delimiter(',');
    c->add_option("--only", only,
                  "a suite of those regimes alone, whose pairs are\n"
                  "covered anew, e.g. family=gdn,kda; several times")
        ->option_text("F=V[,V]");
    c->add_flag("--power", power,
                "write no vectors; print, in Markdown, by how many of\n"
                "them each deviation of the catalogue is caught");
    c->add_option("--threads", threads,
                  "how many to use (default: as many as the machine has)")
        ->option_text("N")
        ->check(CLI::Range(1u, 4096u));
    std::string text =
        "A vector is a safetensors file with the inputs of a problem and its\n"
        "exact outputs and gradients. manifest.json tells of each its regime,\n"
        "conventions, SHA-256 and units. `carve check` scores a port.\n"
        "\n"
        "Regimes, of which a suite holds every admissible pair (full: triple):"
        "\n";
    for (const auto& [factor, values] : regime_factors()) {
      std::string line;
      for (const std::string& v : values) line += (line.empty() ? "" : " ") + v;
      text += "  " + factor + ": " + (factor == "family" ? "all" : line) + '\n';
    }
    text += "\nThe suites:\n";
    for (const suite_row& s : suites) {
      text += "  " + std::string(s.name) + ": " + std::string(s.meaning) + '\n';
    }
    c->footer(text);
  }

  int run() const {
    progress_line line;
    vectors_settings how;
    how.seed = seed;
    for (const std::string& p : profiles) {
      how.profiles.push_back(profile_named(p));
    }
    how.only = selection_of(only, regime_factors());
    how.run = {threads,
               [&line](std::string_view what, index_t done, index_t total) {
                 line.show(what, done, total);
               }};
    if (power) {
      const auto rows = power_of(suite_named(suite), how);
      line.clear();
      write_power(std::cout, rows);
      return passed;
    }
    if (folder.empty()) throw error("--output: expected a folder to write to");
    const manifest m = write_suite(suite_named(suite), how, folder);
    line.clear();
    std::uint64_t bytes = 0;
    for (const vector_entry& v : m.vectors) bytes += v.bytes;
    std::cout << m.vectors.size() << " vectors, " << bytes << " bytes, in "
              << safetensors::printable(folder) << '\n';
    return passed;
  }
};

}  // namespace carve::program
