/// @file
/// `carve reference`: the exact outputs and gradients of a dump's inputs.
#pragma once

#include <iostream>

#include "program/command/command.hpp"

namespace carve::program {

struct reference_command : dump_options {
  static constexpr const char* command = "reference";
  std::string path, out, by = "dd", type = "f64";

  void declare(CLI::App& app) {
    CLI::App* const c =
        app.add_subcommand(command, "write the exact outputs and gradients");
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

}  // namespace carve::program
