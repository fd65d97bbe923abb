/// @file
/// `carve check`: a port, scored over a suite of vectors.
#pragma once

#include <iostream>
#include <sstream>

#include "program/command/command.hpp"
#include "program/suite.hpp"

namespace carve::program {

struct check_command {
  static constexpr const char* command = "check";
  std::string folder, results, as, inputs, json, junit;
  std::vector<std::string> only;
  tolerance limit;
  bool partial = false;

  void declare(CLI::App& app) {
    CLI::App* const c =
        app.add_subcommand(command, "score a port over a suite of vectors");
    c->add_option("suite", folder, "the folder that `carve vectors` wrote")
        ->required()
        ->option_text("DIR");
    c->add_option("results", results,
                  "a folder with a safetensors file for each vector, under its "
                  "name, with the port's outputs")
        ->required()
        ->option_text("RESULTS");
    c->add_option("--profile", as,
                  "what the port is: tensor-core, tf32, fp32 or\n"
                  "ieee-recurrent (default: as `carve verify`)")
        ->option_text("P");
    c->add_option("--inputs", inputs,
                  "the format in which it took q, k and v: F32, BF16 or\n"
                  "F16 (default: that of its outputs)")
        ->option_text("D")
        ->check(CLI::IsMember({"F32", "BF16", "F16"}));
    c->add_option("--only", only,
                  "the vectors with that value of the regime, e.g.\n"
                  "family=gdn,kda; several times")
        ->option_text("F=V[,V]");
    c->add_flag("--partial", partial,
                "vectors and outputs that were not run do not count");
    c->add_option("--threshold", limit.rms,
                  "RMS error allowed, in units (default 1.5)")
        ->option_text("R")
        ->check(CLI::PositiveNumber);
    c->add_option("--max-threshold", limit.largest,
                  "largest error allowed, in the unit's largest (default 4)")
        ->option_text("R2")
        ->check(CLI::PositiveNumber);
    c->add_option("--json", json,
                  "write the score as JSON; - is standard output, in place of "
                  "the table")
        ->option_text("FILE");
    c->add_option("--junit", junit, "write the score as JUnit XML")
        ->option_text("FILE");
    c->footer(
        "The units stand in the suite's manifest; the table tells for each\n"
        "value of the regime how many vectors pass.\n"
        "\n"
        "Exit code: 0 all vectors pass, 1 one fails, 2 unusable input (a\n"
        "vector that fails weighs more), 3 none fails but, without --partial,\n"
        "one was not run, or not all of its outputs.");
  }

  int run() const {
    check_outputs({{"--json", json}, {"--junit", junit}}, {});
    check_settings how;
    if (!as.empty()) how.as = profile_named(as);
    if (!inputs.empty()) how.inputs = safetensors::dtype_named(inputs);
    how.limit = limit, how.partial = partial;
    const manifest m = read_manifest(folder);
    how.only = selection_of(only, m.factors);
    const score s = check_suite(m, folder, results, how);
    if (json != "-" && junit != "-") write_score(std::cout, s, wants_colour());
    std::ostringstream report;
    if (!json.empty()) {
      write_score_json(report, s);
      write_output(json, report.str());
    }
    report.str("");
    if (!junit.empty()) {
      write_score_junit(report, s);
      write_output(junit, report.str());
    }
    if (s.result() == outcome::fail) return failed;
    if (s.count(mark::unusable) > 0) return unusable;
    return s.result() == outcome::pass ? passed : not_judged;
  }
};

}  // namespace carve::program
