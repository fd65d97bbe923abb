/// @file
/// `carve diagnose`: which mistake explains a dump that fails?
#pragma once

#include <iostream>
#include <sstream>

#include "program/command/command.hpp"
#include "program/diagnose.hpp"
#include "program/report.hpp"

namespace carve::program {

struct diagnose_command : dump_options {
  static constexpr const char* command = "diagnose";
  std::string path, json;

  void declare(CLI::App& app) {
    CLI::App* const c = app.add_subcommand(
        command, "say which mistake explains a dump that fails");
    c->add_option("file", path,
                  "the dump, a safetensors file; - is standard input")
        ->required()
        ->option_text("DUMP");
    c->add_option("--json", json,
                  "write the diagnosis as JSON; - is standard output, in place "
                  "of the text")
        ->option_text("FILE");
    dump_options::declare(c);
    c->footer(std::string(settings_note) +
              "The dump is verified. Where tensors fail, the outputs and\n"
              "gradients of its inputs are computed under each of a list of\n"
              "mistakes, alone and in pairs, and those that give the numbers\n"
              "in the file are told, best first. The ratio is the error\n"
              "against such a result in the units of verify.\n"
              "\n"
              "Exit code: 0 all tensors pass, 1 a tensor fails, 2 unusable\n"
              "input, 3 nothing fails and not all could be judged.");
  }

  int run() const {
    check_outputs({{"--json", json}}, {path});
    progress_line line;
    return with_file(path, [&](const safetensors::file& file) {
      const dump d = read_dump(file, given);
      const run_settings how{
          threads, [&line](std::string_view what, index_t done, index_t total) {
            line.show(what, done, total);
          }};
      verify_settings as_implied;
      as_implied.run = how;
      const verification v = verify(d, as_implied);
      const diagnosis found = diagnose(d, v, how);
      line.clear();
      if (json != "-") write_diagnosis(std::cout, found, columns_of(1), true);
      if (!json.empty()) {
        std::ostringstream report;
        write_diagnosis_json(report, found);
        write_output(json, report.str());
      }
      return !found.wrong.empty() ? failed : v.pass() ? passed : not_judged;
    });
  }
};

}  // namespace carve::program
