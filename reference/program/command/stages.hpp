/// @file
/// `carve stages`: what a chunked kernel has inside, written and judged.
#pragma once

#include <iostream>
#include <optional>
#include <sstream>

#include "program/command/command.hpp"
#include "program/stages.hpp"

namespace carve::program {

struct stages_command : dump_options {
  static constexpr const char* command = "stages";
  std::string path, out, json;
  std::optional<index_t> chunk;

  void declare(CLI::App& app) {
    CLI::App* const c = app.add_subcommand(
        command, "write or judge what a chunked kernel has inside");
    c->add_option("file", path,
                  "the dump, a safetensors file; - is standard input")
        ->required()
        ->option_text("DUMP");
    c->add_option("-o,--output", out,
                  "write the stages; - is standard output, in place of the "
                  "text")
        ->option_text("OUT");
    c->add_option("--json", json,
                  "write the verdicts as JSON; - is standard output, in place "
                  "of the text")
        ->option_text("FILE");
    c->add_option("--chunk", chunk,
                  "chunk length (default: that of the stages in the file, its "
                  "metadata's, 64)")
        ->option_text("C")
        ->check(CLI::Range(1, 65536));
    dump_options::declare(c);
    std::string stages;
    for (const stage_row& row : stage_table) {
      stages += text("  ", row.name, std::string(4 - row.name.size(), ' '), "[",
                     row.axes, "]  ", row.meaning, "\n");
    }
    c->footer(
        std::string(settings_note) +
        "The stages of a chunk, in the order of computing:\n\n" + stages +
        "\n"
        "A stage by t is a tensor [B,T,HV,..] of which column s is that\n"
        "of the chunk; a state is [B,chunks,HV,K,V]. OUT holds each in\n"
        "F64, exactly, and with the roundings of a kernel in F32 under\n"
        "replayed. and its name. Those that DUMP holds are judged in\n"
        "units of sound ways with that chunk length, and the first that\n"
        "is wrong is named. Columns that the causal mask leaves out and\n"
        "those beyond a ragged tail are written as zeros and not judged.\n"
        "\n"
        "Exit code: 0 all pass or none is there, 1 one is wrong, 2\n"
        "unusable input, 3 none is wrong and not all could be judged.");
  }

  int run() const {
    check_outputs({{"--output", out}, {"--json", json}}, {path});
    progress_line line;
    return with_file(path, [&](const safetensors::file& file) {
      const dump d = read_dump(file, given);
      const index_t C = chunk ? *chunk : chunk_of(d, file).value_or(64);
      const std::vector<staged_tensor> all = stages_of(
          d, C,
          {threads, [&line](std::string_view what, index_t done,
                            index_t total) { line.show(what, done, total); }});
      const stage_verdicts v = judge_stages(d, file, C, all);
      line.clear();
      if (v.stages.empty() && out.empty()) {
        throw error(
            "no stage to judge: expected one of those that `carve "
            "stages --help` lists; -o OUT writes them");
      }
      if (!out.empty()) stages_file(d, file, given, C, all).save(out);
      if (!v.stages.empty() && out != "-" && json != "-") {
        write_stages(std::cout, v);
      }
      if (!json.empty()) {
        std::ostringstream report;
        write_stages_json(report, v);
        write_output(json, report.str());
      }
      const outcome is = v.result();
      return is == outcome::pass   ? passed
             : is == outcome::fail ? failed
                                   : not_judged;
    });
  }
};

}  // namespace carve::program
