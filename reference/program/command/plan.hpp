/// @file
/// `carve plan`: the inputs that put a relation to the test, from one dump.
#pragma once

#include <filesystem>
#include <iostream>

#include "program/command/command.hpp"
#include "program/command/relate.hpp"

namespace carve::program {

struct plan_command : dump_options {
  static constexpr const char* command = "plan";
  std::string name, path, folder;

  void declare(CLI::App& app) {
    CLI::App* const c = app.add_subcommand(
        command, "write the inputs that put a relation to the test");
    c->add_option("relation", name, "one of those below")
        ->required()
        ->option_text("NAME");
    c->add_option("file", path,
                  "the dump, a safetensors file; - is standard input")
        ->required()
        ->option_text("DUMP");
    c->add_option("-o,--output", folder, "the folder to write them in")
        ->required()
        ->option_text("DIR");
    dump_options::declare(c);
    c->footer(std::string(settings_note) + relations_text() +
              "\n"
              "A dump of one sequence is made several where the relation\n"
              "needs several. Run the kernel on the inputs in each file, in\n"
              "the order in which they are printed, and add what it returns\n"
              "to the file (o, final_state and, where there is do, dq, dk,\n"
              "...); the last line printed is the command to run then. No\n"
              "file that exists is written over.");
  }

  int run() const {
    const relation& r = relation_named(name);
    const std::filesystem::path to(folder);
    with_file(path, [&](const safetensors::file& file) {
      const plan p = r.planned(read_dump(file, given));
      std::error_code code;
      std::filesystem::create_directories(to, code);
      std::vector<std::string> names;
      for (const planned_run& run : p) {
        names.push_back((to / (run.name + ".safetensors")).string());
        if (std::filesystem::exists(names.back(), code)) {
          throw error(safetensors::printable(names.back()),
                      ": exists, and may hold what a kernel returned");
        }
        check_output(names.back());
      }
      std::cout << r.name << ": " << r.sentence << '\n';
      std::string words;
      for (std::size_t i = 0; i < p.size(); ++i) {
        written(p[i], file, given).save(names[i]);
        std::cout << "  " << safetensors::printable(names[i]) << "\n      "
                  << wrapped(p[i].what, 80, 6) << '\n';
        words += " '" + safetensors::printable(names[i]) + "'";
      }
      std::cout << "Run the kernel on each in this order, add what it returns "
                   "to the file, then:\n  carve relate "
                << r.name << words << '\n';
      return 0;
    });
    return passed;
  }
};

}  // namespace carve::program
