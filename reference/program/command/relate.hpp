/// @file
/// `carve relate`: do dumps agree where a relation says that they must?
#pragma once

#include <iostream>
#include <sstream>

#include "program/command/command.hpp"
#include "program/relation.hpp"

namespace carve::program {

/// The relations, a line or two each.
inline std::string relations_text() {
  std::string s;
  for (const relation& r : relations()) {
    s += text("  ", r.name, std::string(10 - r.name.size(), ' '), r.sentence,
              "\n            dumps: ", r.files, "\n");
  }
  return s;
}

struct relate_command : dump_options {
  static constexpr const char* command = "relate";
  std::string name, json;
  std::vector<std::string> paths;
  bool bits = false;

  void declare(CLI::App& app) {
    CLI::App* const c =
        app.add_subcommand(command, "say whether dumps agree where they must");
    c->add_option("relation", name, "one of those below")
        ->required()
        ->option_text("NAME");
    c->add_option("file", paths, "the dumps A, B, ...")
        ->required()
        ->option_text("A B...");
    c->add_flag("--bits", bits, "only the same bits will do");
    c->add_option("--json", json,
                  "write the outcome as JSON; - is standard output, in place "
                  "of the text")
        ->option_text("FILE");
    dump_options::declare(c);
    c->footer(std::string(settings_note) + relations_text() +
              "\n"
              "Which tokens, sequences and heads correspond is found from the\n"
              "inputs; where inputs differ that should be equal, it is said\n"
              "in which. Numbers that must be equal are compared bit for bit;\n"
              "where bits differ the difference is counted in the units of\n"
              "verify, with its tolerances: 1.5 for the RMS and 4 for the\n"
              "largest. `carve plan` writes the inputs of such a test.\n"
              "\n"
              "Exit code: 0 it holds, bit for bit or within the unit (--bits:\n"
              "bit for bit), 1 it does not, 2 unusable input, 3 bits differ\n"
              "and sound ways leave no correct digit to judge by.");
  }

  int run() const {
    check_outputs({{"--json", json}}, paths);
    const relation& r = relation_named(name);
    std::vector<related_dump> dumps;
    for (const std::string& path : paths) {
      dumps.push_back(with_file(path, [&](const safetensors::file& file) {
        return read_related(file, given);
      }));
      dumps.back().path = path;
    }
    progress_line line;
    const relation_outcome found = relate(
        r, dumps, {},
        {threads, [&line](std::string_view what, index_t done, index_t total) {
           line.show(what, done, total);
         }});
    line.clear();
    if (json != "-") write_relation(std::cout, found);
    if (!json.empty()) {
      std::ostringstream report;
      write_relation_json(report, found);
      write_output(json, report.str());
    }
    const agreement::kind is = found.is();
    if (is == agreement::kind::same_bits) return passed;
    if (bits || is == agreement::kind::apart) return failed;
    return is == agreement::kind::within_unit ? passed : not_judged;
  }
};

}  // namespace carve::program
