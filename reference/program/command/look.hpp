/// @file
/// `carve families`, `carve tensors` and `carve show`: what the library knows,
/// what a file has.
#pragma once

#include <unistd.h>

#include <iostream>

#include "program/command/command.hpp"
#include "program/report.hpp"

namespace carve::program {

struct families_command {
  static constexpr const char* command = "families";

  void declare(CLI::App& app) {
    app.add_subcommand(command, "print the members of the family");
  }

  int run() const {
    write_families(std::cout);
    return passed;
  }
};

struct tensors_command {
  static constexpr const char* command = "tensors";

  void declare(CLI::App& app) {
    app.add_subcommand(command, "print the tensors, their axes and families");
  }

  int run() const {
    write_tensors(std::cout, columns_of(STDOUT_FILENO));
    return passed;
  }
};

struct show_command {
  static constexpr const char* command = "show";
  std::string path;

  void declare(CLI::App& app) {
    app.add_subcommand(command, "print what a safetensors file holds")
        ->add_option("file", path, "a safetensors file; - is standard input")
        ->required()
        ->option_text("DUMP");
  }

  int run() const {
    write_content(std::cout, safetensors::file::open(path));
    return passed;
  }
};

}  // namespace carve::program
