/// @file
/// `carve verify`: is what a kernel wrote right?
#pragma once

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <sstream>

#include "program/command/command.hpp"
#include "program/device.hpp"
#include "program/report.hpp"

namespace carve::program {

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

struct verify_command : dump_options {
  static constexpr const char* command = "verify";
  std::vector<std::string> paths;
  std::string as, exp, json, junit, picture;
  kernel_facts facts;
  tolerance limit;
  std::optional<double> bitlike;
  bool on_device = false, strict = false, no_diagnose = false;

  void declare(CLI::App& app) {
    CLI::App* const c =
        app.add_subcommand(command, "judge a kernel's outputs and gradients");
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
    c->add_flag("--no-diagnose", no_diagnose,
                "do not look for the mistake that explains a failure");
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
        "What fails is held against known mistakes, as diagnose does, unless\n"
        "that takes more than about a minute of one core.\n"
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
    judged_file result{path, {}, {}, {}};
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
        if (!no_diagnose && v.result() == outcome::fail) {
          if (const double s = seconds_to_diagnose(d); s <= unasked_seconds) {
            line.expect(0);  // what was expected was the verdict
            result.why = diagnose(d, v, how.run);
          } else {
            v.notes.push_back(
                text("`carve diagnose` says which mistake "
                     "explains this, in about ",
                     std::llround(s / 60), " min of one core"));
          }
        }
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
      if (all[0].why) {
        std::cout << '\n';
        write_diagnosis(std::cout, *all[0].why, columns_of(1), false);
      }
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

}  // namespace carve::program
