/// @file
/// The program `carve`: a row for each command.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <iostream>
#include <memory>
#include <tuple>

#include "carve/version.hpp"
#include "program/command/command.hpp"
#include "program/command/diagnose.hpp"
#include "program/command/look.hpp"
#include "program/command/reference.hpp"
#include "program/command/verify.hpp"
#include "program/console.hpp"
#ifdef CARVE_EVERY_COMMAND
#include "program/command/check.hpp"
#include "program/command/plan.hpp"
#include "program/command/relate.hpp"
#include "program/command/stages.hpp"
#include "program/command/vectors.hpp"
#endif

namespace carve::program {

namespace {

/// Help as wide as the terminal.
class help_formatter : public CLI::Formatter {
 public:
  std::string make_description(const CLI::App* app) const override {
    return wrapped(app->get_description(), width_) + "\n\n";
  }
  std::string make_footer(const CLI::App* app) const override {
    return wrapped(app->get_footer(), width_) + '\n';
  }
  std::string make_subcommand(const CLI::App* sub) const override {
    return two_columns(sub->get_name(), sub->get_description(), 14, width_);
  }
  std::string make_option(const CLI::Option* option,
                          bool positional) const override {
    return two_columns(
        make_option_name(option, positional) + make_option_opts(option),
        option->get_description(), 27, width_);
  }

 private:
  const std::size_t width_ = columns_of(STDOUT_FILENO);
};

#ifdef CARVE_EVERY_COMMAND
auto more_commands() {
  return std::tuple<relate_command, plan_command, stages_command,
                    vectors_command, check_command>();
}
#else
/// A command that no verdict needs, in a program built for verdicts alone.
struct command_left_out {
  const char* command;

  void declare(CLI::App& app) const {
    app.add_subcommand(command, "(not in this build)")->prefix_command();
  }

  int run() const {
    throw error(command,
                ": this program was built for verdicts alone; expected one "
                "built by `./x build`, or by CMake with "
                "-DCARVE_EVERY_COMMAND=ON");
  }
};

auto more_commands() {
  return std::array<command_left_out, 5>{
      {{"relate"}, {"plan"}, {"stages"}, {"vectors"}, {"check"}}};
}
#endif

int run(int count, char** arguments) {
  CLI::App app(
      "Is a gated delta-rule kernel right? Exact results, and the error that\n"
      "an ideal kernel in the same number formats would make.",
      "carve");
  app.set_version_flag("--version", "carve " + std::string(version));
  app.formatter(std::make_shared<help_formatter>());
  app.require_subcommand(1);
  auto all = std::tuple_cat(
      std::tuple<verify_command, diagnose_command, reference_command>(),
      more_commands(),
      std::tuple<families_command, tensors_command, show_command>());
  std::apply([&app](auto&... command) { (command.declare(app), ...); }, all);
  app.footer("`carve COMMAND --help` describes a command.");

  // CLI11 would only say that a command is missing.
  const std::string_view first = count > 1 ? arguments[1] : "-";
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands({})) {
    commands.push_back(command->get_name());
  }
  if (!first.starts_with('-') &&
      std::find(commands.begin(), commands.end(), first) == commands.end()) {
    throw error("expected one of ", commands, ", got \"",
                safetensors::printable(first), "\"\nTry `carve --help`.");
  }
  try {
    app.parse(count, arguments);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    const auto chosen = app.get_subcommands();
    const std::string command =
        "carve" + (chosen.empty() ? "" : " " + chosen.front()->get_name());
    std::cerr << fit_for_terminal(text(command, ": ", e.what())) << "\nTry `"
              << command << " --help`.\n";
    return unusable;
  }
  int code = passed;
  std::apply(
      [&](auto&... command) {
        const auto run = [&](auto& c) {
          if (app.got_subcommand(c.command)) code = c.run();
        };
        (run(command), ...);
      },
      all);
  return code;
}

}  // namespace

}  // namespace carve::program

int main(int count, char** arguments) {
  using namespace carve::program;
  // A file beyond the limit of its size is an error of write(2).
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    const int code = run(count, arguments);
    std::cout.flush();
    if (!std::cout) throw carve::error("standard output: cannot be written");
    return code;
  } catch (const std::bad_alloc&) {
    std::cerr << "carve: not enough memory\n";
  } catch (const std::exception& e) {
    std::cerr << fit_for_terminal(carve::text("carve: ", e.what())) << '\n';
  }
  return unusable;
}
