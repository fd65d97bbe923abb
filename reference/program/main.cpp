/// @file
/// The program `carve`: its commands, their options and exit codes.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>

#include "carve/version.hpp"
#include "output.hpp"
#include "program/console.hpp"
#include "program/device.hpp"
#include "program/diagnose.hpp"
#include "program/dump.hpp"
#include "program/report.hpp"
#include "program/verify.hpp"

namespace carve::program {

namespace {

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

constexpr std::string_view how_to_write =
    "A dump from PyTorch, JAX or numpy, with tensors named q, k, v, g, beta, "
    "o, do, dq, ... as `carve families` lists them:\n"
    "  from safetensors.torch import save_file\n"
    "  save_file({\"q\": q, \"k\": k, \"v\": v, \"g\": g,\n"
    "             \"beta\": beta, \"o\": o}, \"x.safetensors\",\n"
    "            {\"family\": \"gdn\"})\n"
    "JAX writes with safetensors.flax and numpy with safetensors.numpy in the "
    "same way. The tensors are to be contiguous (x.contiguous(), "
    "np.ascontiguousarray(x)) and of any float dtype, as the kernel had them"
    ".";

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
void check_outputs(
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

struct verify_command : dump_options {
  std::vector<std::string> paths;
  std::string as, exp, json, junit, picture;
  kernel_facts facts;
  tolerance limit;
  std::optional<double> bitlike;
  bool on_device = false, strict = false;

  void declare(CLI::App& app) {
    CLI::App* const c =
        app.add_subcommand("verify", "judge a kernel's outputs and gradients");
    c->add_option("file", paths,
                  "the dumps, safetensors files; - is standard input")
        ->required()
        ->option_text("DUMP...");
    c->add_option("--profile", as,
                  "what the kernel is: tensor-core, tf32, fp32 or\n"
                  "ieee-recurrent (default: see below)")
        ->option_text("P");
    c->add_option("--chunk", facts.chunk,
                  "its chunk length (default: any from 16 to 128)")
        ->option_text("C")
        ->check(CLI::Range(1, 65536));
    c->add_option("--exp", exp,
                  "its e^x: rounded, exp2 (as exp2(x log2 e)) or\n"
                  "approx (ex2.approx) (default: any)")
        ->option_text("E");
    c->add_option("--seed", facts.seed, "of the draws of errors (default 1)")
        ->option_text("N")
        ->check(CLI::Range(1u, 1000000u));
    const auto positive = CLI::Validator(
        [](const std::string& s) {
          const double x = std::strtod(s.c_str(), nullptr);
          return x > 0 && std::isfinite(x) ? std::string()
                                           : "expected a positive number";
        },
        "");
    c->add_option("--threshold", limit.rms,
                  "RMS error allowed, in replay errors (default 1.5)")
        ->option_text("R")
        ->check(positive);
    c->add_option("--max-threshold", limit.largest,
                  "largest error allowed, in the replay's largest\n"
                  "(default 4)")
        ->option_text("R2")
        ->check(positive);
    c->add_option("--bitlike", bitlike,
                  "distance from the replay allowed as well, in replay\n"
                  "errors, e.g. 0.3")
        ->option_text("D")
        ->check(positive);
    c->add_flag("--strict", strict,
                "exit with 3 where the inputs leave something untested");
    c->add_option("--heatmap", picture,
                  "write an SVG of the errors of the worst tensor that\n"
                  "fails, over tokens and heads")
        ->option_text("FILE");
    c->add_flag("--cuda", on_device,
                "judge this library's CUDA kernels on the inputs\n"
                "in the file, not the outputs in it");
    c->add_option("--json", json,
                  "write the report as JSON; - is standard output, in place of "
                  "the table")
        ->option_text("FILE");
    c->add_option("--junit", junit, "write the report as JUnit XML")
        ->option_text("FILE");
    dump_options::declare(c);
    c->footer(
        std::string(settings_note) +
        "Each output in the file (o, final_state, dq, dk, ...) is compared\n"
        "with the exact result, computed in double-double. Its error is "
        "counted\n"
        "in units: the largest error of an ensemble of sound ways to compute "
        "it,\n"
        "in the number formats and with the freedoms that the profile grants.\n"
        "`dist` is the RMS distance from the first of them, the rounding "
        "replay,\n"
        "in its errors. Gradients need do or dfinal_state in the file.\n"
        "\n"
        "The profile follows from the dtype of q, k and v: BF16 and F16 imply\n"
        "tensor-core with operands of that format, F32 and F64 imply fp32. A\n"
        "kernel that hands F32 to tensor cores as TF32 is judged with\n"
        "--profile tf32, one that walks token by token with ieee-recurrent,\n"
        "which is also implied where no chunked form exists (value_erase,\n"
        "full_erase). What is known of a kernel narrows the unit: --profile,\n"
        "--chunk, --exp.\n"
        "\n"
        "Several dumps give one table with a row for each, and one report.\n"
        "\n"
        "Exit code: 0 all tensors pass, 1 a tensor fails, 2 unusable input\n"
        "(a tensor that fails in another dump weighs more), 3 none fails but\n"
        "of one nothing can be said: sound ways leave it no correct digit.\n"
        "A NaN or an infinity fails; so do zeros where the result has others.\n"
        "\n" +
        std::string(how_to_write));
  }

  int run() const {
    check_outputs(
        {{"--json", json}, {"--junit", junit}, {"--heatmap", picture}}, paths);
    if (!picture.empty() && paths.size() > 1) {
      throw error("--heatmap: shows one dump, got ", paths.size());
    }
    if (std::count(paths.begin(), paths.end(), "-") > 1) {
      throw error("standard input: given twice");
    }
    std::vector<judged_file> all;
    progress_line line;
    for (const std::string& path : paths) {
      std::string file;
      if (paths.size() > 1) {
        file = text(all.size() + 1, " of ", paths.size(), ", ",
                    safetensors::printable(
                        std::filesystem::path(path).filename().string(), 30),
                    ", ");
      }
      all.push_back(judge(path, file, line));
    }
    line.clear();
    if (json != "-" && junit != "-") print(all);
    std::ostringstream report;
    if (!json.empty()) {
      write_json(report, all);
      write_output(json, report.str());
    }
    report.str("");
    if (!junit.empty()) {
      write_junit(report, all);
      write_output(junit, report.str());
    }
    if (!picture.empty() && all[0].outcome) draw(*all[0].outcome);
    if (all.size() == 1 && !all[0].error.empty()) throw error(all[0].error);
    return exit_code_of(all);
  }

 private:
  judged_file judge(const std::string& path, const std::string& before,
                    progress_line& line) const {
    judged_file result{path, {}, {}};
    try {
      kernel_facts known = facts;
      if (!as.empty()) known.as = profile_named(as);
      if (!exp.empty()) known.exp = exponential_named(exp);
      result.outcome = with_file(path, [&](const safetensors::file& file) {
        dump d = read_dump(file, given);
        if (on_device) d.judged = run_on_device(d);
        const auto progress = [&](std::string_view what, index_t done,
                                  index_t total) {
          line.show(before + std::string(what), done, total);
        };
        const verify_settings how{
            known, limit, bitlike, {threads, progress}, strict};
        estimate(line, d, [&](const dump& first) { verify(first, how); });
        verification v = verify(d, how);
        v.file = path, v.notes = std::move(d.notes);
        if (!v.pass()) try_other_layout(file, d, how, v);
        return v;
      });
    } catch (const std::bad_alloc&) {
      result.error = safetensors::printable(path) + ": not enough memory";
    } catch (const error& e) {
      result.error = e.what();
    }
    return result;
  }

  /// [B,H,T,D] given as [B,T,H,D]: where both fit, say which is right.
  void try_other_layout(const safetensors::file& file, const dump& d,
                        const verify_settings& how, verification& v) const {
    if (d.layout_given || d.flat_heads || d.size.H != d.size.T) return;
    settings other = given;
    other["layout"] = "BHTD";
    try {
      if (verify(read_dump(file, other), how).pass()) {
        v.notes.push_back("read as [B,H,T,D] all pass: --layout BHTD");
      }
    } catch (const error&) {
      // It does not fit, so there is nothing to say.
    }
  }

  void draw(const verification& v) const {
    const verdict* worst = v.worst();
    if (worst) write_output(picture, heat_map(worst->map, worst->name));
  }

  static void print(const std::vector<judged_file>& all) {
    if (all.size() > 1) {
      write_summary(std::cout, all, wants_colour());
    } else if (all[0].outcome) {
      write_table(std::cout, *all[0].outcome, wants_colour());
    }
  }

  static int exit_code_of(const std::vector<judged_file>& all) {
    int code = passed;
    for (const judged_file& f : all) {
      if (!f.outcome) {
        code = unusable;
      } else if (f.outcome->result() == outcome::fail) {
        return failed;
      } else if (!f.outcome->pass() && code == passed) {
        code = not_judged;
      }
    }
    return code;
  }
};

struct reference_command : dump_options {
  std::string path, out, by = "dd", type = "f64";

  void declare(CLI::App& app) {
    CLI::App* const c = app.add_subcommand(
        "reference", "write the exact outputs and gradients");
    c->add_option("file", path,
                  "the dump, a safetensors file; - is standard input")
        ->required()
        ->option_text("DUMP");
    c->add_option("-o,--output", out,
                  "where to write them; - is standard output")
        ->required()
        ->option_text("OUT");
    c->add_option("--precision", by,
                  "double, dd (double-double, the default), or\n"
                  "50 or 100 decimal digits")
        ->option_text("P")
        ->check(CLI::IsMember({"double", "dd", "50", "100"}));
    c->add_option("--dtype", type, "of what is written: f64 (default) or f32")
        ->option_text("D")
        ->check(CLI::IsMember({"f64", "f32"}));
    dump_options::declare(c);
    c->footer(std::string(settings_note) +
              "OUT holds the inputs as they are, o and final_state, and the\n"
              "gradients of all inputs where the file has do or dfinal_state.\n"
              "Outputs in DUMP are not looked at.");
  }

  int run() const {
    check_outputs({{"--output", out}}, {path});
    progress_line line;
    with_file(path, [&](const safetensors::file& file) {
      const dump d = read_dump(file, given);
      const run_settings how{
          threads, [&line](std::string_view what, index_t done, index_t total) {
            line.show(what, done, total);
          }};
      estimate(line, d,
               [&](const dump& first) { exact_result(first, by, how); });
      const gradient_result<double_double> r = exact_result(d, by, how);
      save(file, d, r);
      return 0;
    });
    return passed;
  }

 private:
  void save(const safetensors::file& file, const dump& d,
            const gradient_result<double_double>& r) const {
    const auto dtype =
        type == "f32" ? safetensors::dtype::f32 : safetensors::dtype::f64;
    safetensors::writer w;
    for (const auto& [key, value] : file.metadata()) w.set_metadata(key, value);
    for (const auto& [key, value] : given) w.set_metadata(key, value);
    w.set_metadata("reference", text("carve ", version, ", ", by));
    for (const auto& [ours, name] : d.file_names) {
      const std::string_view role = role_of(ours);
      if (role != "input" && role != "cotangent") continue;
      const safetensors::tensor_info& i = file.info(name);
      w.add_bytes(name, i.dtype, i.shape, file.bytes(name));
    }
    const auto add = [&](const std::string& name,
                         const tensor<double_double>& x) {
      if (!x.present()) return;
      tensor<double> y = convert<double>(x, [&](double_double e) {
        return rounded(*safetensors::format_of(dtype), e);
      });
      y = in_file_layout(d, file, name, std::move(y));
      w.add(name, dtype, {y.shape.begin(), y.shape.end()}, y.data);
    };
    add("o", r.out.o);
    add("final_state", r.out.final_state);
    for (const auto& m : tensors<double_double>::members()) {
      add("d" + std::string(m.name), r.gradients.*m.at);
    }
    w.save(out);
  }
};

struct diagnose_command : dump_options {
  std::string path, json;

  void declare(CLI::App& app) {
    CLI::App* const c = app.add_subcommand(
        "diagnose", "say which mistake explains a dump that fails");
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
      if (json != "-") write_diagnosis(std::cout, found);
      if (!json.empty()) {
        std::ostringstream report;
        write_diagnosis_json(report, found);
        write_output(json, report.str());
      }
      return !found.wrong.empty() ? failed : v.pass() ? passed : not_judged;
    });
  }
};

int run(int count, char** arguments) {
  CLI::App app(
      "Is a gated delta-rule kernel right? Exact results, and the error that\n"
      "an ideal kernel in the same number formats would make.",
      "carve");
  app.set_version_flag("--version", "carve " + std::string(version));
  app.formatter(std::make_shared<help_formatter>());
  app.require_subcommand(1);
  verify_command verify;
  reference_command reference;
  diagnose_command diagnose;
  verify.declare(app);
  diagnose.declare(app);
  reference.declare(app);
  CLI::App* const list =
      app.add_subcommand("families", "print the members of the family");
  CLI::App* const show =
      app.add_subcommand("show", "print what a safetensors file holds");
  std::string shown;
  show->add_option("file", shown, "a safetensors file; - is standard input")
      ->required()
      ->option_text("DUMP");
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
  if (app.got_subcommand("verify")) return verify.run();
  if (app.got_subcommand("diagnose")) return diagnose.run();
  if (app.got_subcommand("reference")) return reference.run();
  if (list->parsed()) write_families(std::cout);
  if (show->parsed()) {
    write_content(std::cout, safetensors::file::open(shown));
  }
  return passed;
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
