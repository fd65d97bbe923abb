/// @file
/// The program `carve`: its commands, their options and exit codes.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>

#include "carve/version.hpp"
#include "program/device.hpp"
#include "program/dump.hpp"
#include "program/report.hpp"
#include "program/verify.hpp"

namespace carve::program {

namespace {

enum exit_code { passed = 0, failed = 1, unusable = 2 };

/// One line on standard error, when that is a terminal and the work is long.
class progress_line {
 public:
  progress_line() = default;
  progress_line(const progress_line&) = delete;
  progress_line& operator=(const progress_line&) = delete;
  ~progress_line() { clear(); }

  void show(std::string_view what, index_t done, index_t total) {
    const auto elapsed = std::chrono::steady_clock::now() - start_;
    if (!terminal_ || elapsed < std::chrono::milliseconds(300)) return;
    std::cerr << "\r\033[K" << what << ": " << done << " of " << total
              << std::flush;
    shown_ = true;
  }
  void clear() {
    if (shown_) std::cerr << "\r\033[K" << std::flush;
    shown_ = false;
  }

 private:
  const bool terminal_ = ::isatty(STDERR_FILENO) != 0;
  const std::chrono::steady_clock::time_point start_ =
      std::chrono::steady_clock::now();
  bool shown_ = false;
};

bool wants_colour() {
  const char* const refused = std::getenv("NO_COLOR");
  const char* const term = std::getenv("TERM");
  return ::isatty(STDOUT_FILENO) != 0 && (!refused || *refused == '\0') &&
         term && std::string_view(term) != "dumb";
}

constexpr std::string_view settings_note =
    "A setting is read from the file's metadata, under its name with _ for -,\n"
    "unless it is given here.\n\n";

/// What the commands that read a dump have in common.
struct dump_options {
  std::string path;
  std::map<std::string, std::string> given;  // by metadata key
  unsigned threads = 0;

  void declare(CLI::App* command) {
    command->add_option("file", path, "the dump, a safetensors file")
        ->required()
        ->option_text("DUMP");
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
  auto with_file(F&& use) const {
    const safetensors::file file = safetensors::file::open(path);
    try {
      return use(file);
    } catch (const error& e) {
      throw error(safetensors::printable(path), ": ", e.what());
    }
  }
};

void write_file(const std::string& path, const std::string& content) {
  std::ofstream out(path, std::ios::binary);
  out << content << std::flush;
  if (!out) throw error(safetensors::printable(path), ": cannot be written");
}

struct verify_command : dump_options {
  std::string as, json, junit;
  tolerance limit;
  bool on_device = false;

  void declare(CLI::App& app) {
    CLI::App* const c =
        app.add_subcommand("verify", "judge a kernel's outputs and gradients");
    c->add_option("--profile", as,
                  "what is replayed: tensor-core, tf32, fp32 or\n"
                  "ieee-recurrent (default: see below)")
        ->option_text("P");
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
    c->add_flag("--cuda", on_device,
                "judge this library's CUDA kernels on the inputs\n"
                "in the file, not the outputs in it");
    c->add_option("--json", json, "write the report as JSON")
        ->option_text("FILE");
    c->add_option("--junit", junit, "write the report as JUnit XML")
        ->option_text("FILE");
    dump_options::declare(c);
    c->footer(
        std::string(settings_note) +
        "Each output in the file (o, final_state, dq, dk, ...) is compared\n"
        "with the exact result, computed in double-double, and its error with\n"
        "that of the rounding replay: the chunked algorithm in fp32, rounded\n"
        "where a tensor-core kernel rounds. The ratio of the two is about 1\n"
        "for a sound kernel. `dist` is the RMS distance from the replay, in\n"
        "replay errors. Gradients need do or dfinal_state in the file.\n"
        "\n"
        "The profile follows from the dtype of q, k and v: BF16 and F16 imply\n"
        "tensor-core with operands of that format, F32 and F64 imply fp32. A\n"
        "kernel that hands F32 to tensor cores as TF32 is judged with\n"
        "--profile tf32, one that walks token by token with ieee-recurrent,\n"
        "which is also implied where no chunked form exists (value_erase,\n"
        "full_erase).\n"
        "\n"
        "Exit code: 0 all tensors pass, 1 a tensor fails, 2 unusable input.\n"
        "A NaN or an infinity fails; so do zeros where the result has others.");
  }

  int run() const {
    const std::optional<profile> chosen =
        as.empty() ? std::nullopt : std::optional(profile_named(as));
    progress_line line;
    const auto progress = [&line](std::string_view what, index_t done,
                                  index_t total) {
      line.show(what, done, total);
    };
    verification v = with_file([&](const safetensors::file& file) {
      dump d = read_dump(file, given);
      if (on_device) d.judged = run_on_device(d);
      return verify(d, {chosen, limit, {threads, progress}});
    });
    line.clear();
    v.file = path;
    write_table(std::cout, v, wants_colour());
    std::cout.flush();
    std::ostringstream text;
    if (!json.empty()) {
      write_json(text, v);
      write_file(json, text.str());
    }
    text.str("");
    if (!junit.empty()) {
      write_junit(text, v);
      write_file(junit, text.str());
    }
    return v.pass() ? passed : failed;
  }
};

struct reference_command : dump_options {
  std::string out, by = "dd", type = "f64";

  void declare(CLI::App& app) {
    CLI::App* const c = app.add_subcommand(
        "reference", "write the exact outputs and gradients");
    c->add_option("-o,--output", out, "where to write them")
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
    progress_line line;
    with_file([&](const safetensors::file& file) {
      const dump d = read_dump(file, given);
      const gradient_result<double_double> r = exact_result(
          d, by,
          {threads, [&line](std::string_view what, index_t done,
                            index_t total) { line.show(what, done, total); }});
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
    for (const std::string& name : file.names()) {
      const std::string_view role = role_of(name);
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
      if (d.heads_first && has_tokens(name)) y = exchange_axes(y);
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

int run(int count, char** arguments) {
  CLI::App app(
      "Is a gated delta-rule kernel right? Exact results, and the error that\n"
      "an ideal kernel in the same number formats would make.",
      "carve");
  app.set_version_flag("--version", "carve " + std::string(version));
  app.get_formatter()->column_width(27);
  app.require_subcommand(1);
  verify_command verify;
  reference_command reference;
  verify.declare(app);
  reference.declare(app);
  CLI::App* const list =
      app.add_subcommand("families", "print the members of the family");
  CLI::App* const show =
      app.add_subcommand("show", "print what a safetensors file holds");
  std::string shown;
  show->add_option("file", shown, "a safetensors file")
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
    std::cerr << "carve: expected one of " << text(commands) << ", got \""
              << safetensors::printable(first) << "\"\nTry `carve --help`.\n";
    return unusable;
  }
  try {
    app.parse(count, arguments);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    const auto chosen = app.get_subcommands();
    const std::string command =
        "carve" + (chosen.empty() ? "" : " " + chosen.front()->get_name());
    std::cerr << command << ": " << e.what() << "\nTry `" << command
              << " --help`.\n";
    return unusable;
  }
  if (app.got_subcommand("verify")) return verify.run();
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
  try {
    return carve::program::run(count, arguments);
  } catch (const std::bad_alloc&) {
    std::cerr << "carve: not enough memory\n";
  } catch (const std::exception& e) {
    std::cerr << "carve: " << e.what() << '\n';
  }
  return carve::program::unusable;
}
