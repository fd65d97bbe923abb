/// @file
/// Does the program itself, run as a user would, print, write and exit as it
/// says?
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "carve/family.hpp"
#include "carve/version.hpp"
#include "catch.hpp"
#include "program/fixtures.hpp"

using fixtures::editable;
using fixtures::path_of;
using fixtures::scratch;

namespace {

struct result {
  int exit = -1;
  std::string out;  // standard output, and standard error where redirected
};

/// Runs `carve` with these words of a shell.
result carve_with(const std::string& words, const std::string& prefix = "") {
  result r;
  std::FILE* const pipe =
      ::popen((prefix + " '" CARVE_PROGRAM "' " + words).c_str(), "r");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    r.out.append(buffer, n);
  }
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) r.exit = WEXITSTATUS(status);
  return r;
}

/// What it says on standard error, with exit code 2.
std::string complaint(const std::string& words) {
  const result r = carve_with(words + " 2>&1 >/dev/null");
  CAPTURE(words, r.out);
  REQUIRE(r.exit == 2);
  return r.out;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

std::size_t widest_line(const std::string& text) {
  std::istringstream in(text);
  std::size_t width = 0;
  for (std::string line; std::getline(in, line);) {
    width = std::max(width, line.size());
  }
  return width;
}

const std::string quoted_dump = "'" + path_of("gdn2_bf16") + "'";

}  // namespace

TEST_CASE("verify exits 0 when all pass, and prints a row for each tensor") {
  const result r = carve_with("verify " + quoted_dump + " 2>&1");
  REQUIRE(r.exit == 0);
  std::istringstream lines(r.out);
  std::string line;
  std::size_t rows = 0;
  while (std::getline(lines, line)) rows += line.ends_with("  pass") ? 1 : 0;
  REQUIRE(rows == 9);
  REQUIRE(contains(r.out, "Gated DeltaNet-2 (gdn2)"));
  REQUIRE(contains(r.out, "tensor-core with operands in BF16"));
  REQUIRE(r.out.find("\033") == std::string::npos);
  REQUIRE(r.out.find('\r') == std::string::npos);
  REQUIRE(widest_line(r.out) <= 80);
}

TEST_CASE("verify exits 1 when a tensor fails, and says which and why") {
  const scratch folder;
  editable e =
      editable::of(carve::safetensors::file::open(path_of("gdn2_bf16")));
  e.tensors["dk"].values[24575] += 1;  // the last element
  e.tensors["o"].values[(17 * 2 + 1) * 64 + 5] = std::nan("");
  e.writer().save(folder / "damaged.safetensors");
  const std::string file = folder / "damaged.safetensors";
  const result r = carve_with("verify '" + file + "' 2>&1");
  REQUIRE(r.exit == 1);
  REQUIRE(contains(r.out, "FAIL  dk: "));
  REQUIRE(contains(r.out, "[0,191,1,63]"));
  REQUIRE(contains(r.out,
                   "FAIL  o: 1 of 24576 elements are not finite, the first "
                   "at [0,17,1,5]"));
  REQUIRE(contains(r.out, "1 from t=17"));
  REQUIRE(widest_line(r.out) <= 80);
}

TEST_CASE("thresholds can be set, within reason") {
  REQUIRE(carve_with("verify --threshold 0.5 " + quoted_dump).exit == 1);
  REQUIRE(carve_with("verify --max-threshold 0.5 " + quoted_dump).exit == 1);
  REQUIRE(complaint("verify --threshold 0 x")
              .find("--threshold: expected a positive number") !=
          std::string::npos);
  REQUIRE(complaint("verify --max-threshold inf x")
              .find("--max-threshold: expected a positive number") !=
          std::string::npos);
}

TEST_CASE("a wrong setting on the command line fails verification") {
  for (const char* wrong :
       {"--scale 1", "--read-out before", "--state-layout NHVK"}) {
    CAPTURE(wrong);
    REQUIRE(
        carve_with("verify " + std::string(wrong) + " " + quoted_dump).exit ==
        1);
  }
  REQUIRE(carve_with("verify --scale 0.125 --family gdn2 --profile tensor-core "
                     "--threads 1 --layout '[B,T,H,D]' " +
                     quoted_dump)
              .exit == 0);
}

TEST_CASE("the JSON report has all that the table has") {
  const scratch folder;
  const std::string file = folder / "report.json";
  REQUIRE(carve_with("verify --json '" + file + "' " + quoted_dump).exit == 0);
  const auto j = nlohmann::json::parse(content(file));
  REQUIRE(j.at("verdict") == "pass");
  REQUIRE(j.at("family") == "gdn2");
  REQUIRE(j.at("profile") == "tensor-core");
  REQUIRE(j.at("threshold") == 1.5);
  REQUIRE(j.at("max_threshold") == 4);
  REQUIRE(j.at("reference").at("scalar") == "double-double");
  REQUIRE(j.at("reference").at("digits") == 31);
  REQUIRE(j.at("tensors").size() == 9);
  for (const auto& t : j.at("tensors")) {
    CAPTURE(t.dump());
    const auto shape = t.at("shape").get<std::vector<std::int64_t>>();
    const auto at = t.at("worst_index").get<std::vector<std::int64_t>>();
    REQUIRE(at.size() == shape.size());
    for (std::size_t i = 0; i < at.size(); ++i) {
      REQUIRE(at[i] >= 0);
      REQUIRE(at[i] < shape[i]);
    }
    REQUIRE(t.at("pass") == true);
    REQUIRE(t.at("nonfinite") == 0);
    REQUIRE(t.at("rel_rms") > 0);
    REQUIRE(t.at("replay_rel_rms") > 0);
    REQUIRE(t.at("ratio").get<double>() ==
            Approx(t.at("rel_rms").get<double>() /
                   t.at("replay_rel_rms").get<double>()));
    REQUIRE(t.at("replay_distance") >= 0);
    REQUIRE(t.at("max_ratio") > 0);
    REQUIRE(t.at("max_abs").get<double>() ==
            Approx(std::abs(t.at("actual_value").get<double>() -
                            t.at("reference_value").get<double>())));
  }
  REQUIRE(j.at("tensors")[0].at("name") == "o");
  REQUIRE(j.at("tensors")[0].at("dtype") == "BF16");
}

TEST_CASE("reports of a failure are valid and say so") {
  const scratch folder;
  editable e = fixtures::small();
  e.tensors["o"].values[0] = std::nan("");
  e.writer().save(folder / "a<b>&.safetensors");
  const std::string dump = "'" + (folder / "a<b>&.safetensors") + "'";
  const std::string json = folder / "r.json", junit = folder / "r.xml";
  const result r = carve_with("verify " + dump + " --json '" + json +
                              "' --junit '" + junit + "'");
  REQUIRE(r.exit == 1);
  REQUIRE(contains(r.out, "--profile tf32"));
  const auto j = nlohmann::json::parse(content(json));
  REQUIRE(j.at("verdict") == "fail");
  const auto& o = j.at("tensors")[0];
  REQUIRE(o.at("pass") == false);
  REQUIRE(o.at("nonfinite") == 1);
  REQUIRE(o.at("ratio").is_null());
  REQUIRE(o.at("actual_value").is_null());
  REQUIRE(o.at("first_nonfinite") == std::vector<int>{0, 0, 0, 0});
  const std::string xml = content(junit);
  REQUIRE(xml.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"));
  REQUIRE(xml.find("name=\"carve.a&lt;b&gt;&amp;\" tests=\"3\" "
                   "failures=\"3\"") != std::string::npos);
  REQUIRE(xml.find("name=\"final_state\">\n      <failure message=\"") !=
          std::string::npos);
}

TEST_CASE("unusable files exit 2 with a message that names them") {
  const scratch folder;
  REQUIRE(complaint("verify /does/not/exist") ==
          "carve: /does/not/exist: cannot open: No such file or directory\n");
  std::ofstream(folder / "text") << "not a safetensors file at all";
  REQUIRE(contains(complaint("verify '" + (folder / "text") + "'"),
                   "is this a safetensors file?"));
  editable e = fixtures::small();
  e.tensors["k"].values[0] = std::nan("");
  const std::string file = folder / "nan.safetensors";
  e.writer().save(file);
  REQUIRE(complaint("verify '" + file + "'") ==
          "carve: " + file +
              ": k: expected finite numbers, got a NaN or an infinity at "
              "[0,0,0,0]\n");
  REQUIRE(contains(complaint("verify --json /does/not/exist/r " + quoted_dump),
                   "/does/not/exist/r: cannot be written"));
  REQUIRE(
      contains(complaint("reference " + quoted_dump + " -o /does/not/exist/r"),
               "/does/not/exist"));
}

TEST_CASE("unusable arguments exit 2 with a message and where to read on") {
  const auto says = [](const std::string& words, const std::string& expected) {
    CAPTURE(words);
    REQUIRE(contains(complaint(words), expected));
    REQUIRE(contains(complaint(words), "--help"));
  };
  says("", "A subcommand is required");
  says("verfy x",
       "expected one of [verify,reference,families,show], got "
       "\"verfy\"");
  says("verify", "file is required");
  says("verify --treshold 2 x", "--treshold");
  says("verify --threads 0 x", "--threads");
  says("verify --threshold x y", "--threshold");
  says("reference x", "--output is required");
  says("reference x -o y --precision 30", "--precision");
  says("reference x -o y --dtype bf16", "--dtype");
  REQUIRE(complaint("verify --profile fp8 x") ==
          "carve: profile: expected one of "
          "[tensor-core,tf32,fp32,ieee-recurrent], got \"fp8\"\n");
}

TEST_CASE("help and version are there and fit 80 columns") {
  for (const char* words : {"--help", "verify --help", "reference --help",
                            "families --help", "show --help"}) {
    CAPTURE(words);
    const result r = carve_with(words);
    REQUIRE(r.exit == 0);
    REQUIRE(contains(r.out, "Usage: carve"));
    REQUIRE(widest_line(r.out) <= 80);
  }
  const result r = carve_with("--version");
  REQUIRE(r.exit == 0);
  REQUIRE(r.out == "carve " + std::string(carve::version) + "\n");
}

TEST_CASE("colour is for terminals, and not for all of them") {
  // script(1) gives the program a terminal.
  REQUIRE(std::system("script --version >/dev/null 2>&1") == 0);
  const auto on_terminal = [](const std::string& environment) {
    const std::string command =
        environment + " '" CARVE_PROGRAM "' verify " + path_of("gdn2_bf16");
    result r;
    std::FILE* const pipe = ::popen(
        ("script -qec \"" + command + "\" /dev/null </dev/null").c_str(), "r");
    REQUIRE(pipe != nullptr);
    char buffer[4096];
    for (std::size_t n;
         (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
      r.out.append(buffer, n);
    }
    ::pclose(pipe);
    std::erase(r.out, '\r');
    return r.out;
  };
  std::string coloured = on_terminal("NO_COLOR= TERM=xterm");
  REQUIRE(contains(coloured, "\033[32mpass\033[0m"));
  for (const std::string code : {"\033[32m", "\033[0m"}) {
    for (std::size_t i; (i = coloured.find(code)) != std::string::npos;) {
      coloured.erase(i, code.size());
    }
  }
  const std::string piped = carve_with("verify " + quoted_dump).out;
  // A progress line may stand before the table, erased.
  REQUIRE(coloured.ends_with(piped));
  REQUIRE(on_terminal("NO_COLOR=1 TERM=xterm").ends_with(piped));
  REQUIRE(on_terminal("NO_COLOR=1 TERM=xterm").find("\033[32m") ==
          std::string::npos);
}

TEST_CASE("what reference writes is what verify expects") {
  const scratch folder;
  for (const char* precision : {"double", "dd", "50"}) {
    for (const char* dtype : {"f64", "f32"}) {
      CAPTURE(precision, dtype);
      const std::string in = folder / "in.safetensors";
      const std::string out = folder / "out.safetensors";
      fixtures::small().writer().save(in);
      REQUIRE(carve_with("reference '" + in + "' -o '" + out +
                         "' --precision " + precision + " --dtype " + dtype)
                  .exit == 0);
      const auto file = carve::safetensors::file::open(out);
      for (const char* name :
           {"o", "final_state", "dq", "dk", "dv", "dg", "db", "dw"}) {
        REQUIRE(file.info(name).dtype ==
                (std::string(dtype) == "f32" ? carve::safetensors::dtype::f32
                                             : carve::safetensors::dtype::f64));
      }
      REQUIRE(file.as_double("q") ==
              carve::safetensors::file::open(in).as_double("q"));
      const result r = carve_with(
          "verify --threshold 0.9 --max-threshold 0.9 '" + out + "'");
      CAPTURE(r.out);
      REQUIRE(r.exit == 0);
    }
  }
}

TEST_CASE("reference keeps a file's settings and its order of axes") {
  const scratch folder;
  const std::string in = folder / "in.safetensors";
  const std::string out = folder / "out.safetensors";
  editable e = fixtures::small();
  for (auto& [name, x] : e.tensors) {
    if (name != "final_state") std::swap(x.shape[1], x.shape[2]);
  }
  e.writer().save(in);
  REQUIRE(carve_with("reference '" + in + "' -o '" + out +
                     "' --layout BHTD --scale 0.3 --read-out before")
              .exit == 0);
  const auto file = carve::safetensors::file::open(out);
  REQUIRE(file.metadata().at("scale") == "0.3");
  REQUIRE(file.info("o").shape == std::vector<std::int64_t>{1, 2, 5, 4});
  REQUIRE(carve_with("verify '" + out + "'").exit == 0);
  REQUIRE(carve_with("verify --scale 0.31 '" + out + "'").exit == 1);
}

TEST_CASE("without cotangents reference writes no gradients") {
  const scratch folder;
  editable e = fixtures::small();
  e.tensors.erase("do");
  e.tensors.erase("dq");
  e.writer().save(folder / "in.safetensors");
  const std::string out = folder / "out.safetensors";
  REQUIRE(carve_with("reference '" + (folder / "in.safetensors") + "' -o '" +
                     out + "'")
              .exit == 0);
  const auto file = carve::safetensors::file::open(out);
  REQUIRE(file.contains("o"));
  REQUIRE_FALSE(file.contains("dq"));
  REQUIRE(carve_with("verify '" + out + "'").exit == 0);
}

TEST_CASE("families lists them all") {
  const result r = carve_with("families");
  REQUIRE(r.exit == 0);
  REQUIRE(widest_line(r.out) <= 80);
  for (const carve::family_info& f : carve::families) {
    REQUIRE(contains(r.out, "\n" + std::string(f.name) + " "));
  }
}

TEST_CASE("show prints metadata and tensors") {
  const result r = carve_with("show " + quoted_dump);
  REQUIRE(r.exit == 0);
  REQUIRE(widest_line(r.out) <= 80);
  REQUIRE(contains(r.out, "NVIDIA H200"));
  REQUIRE(contains(r.out, "[1,192,2,64]"));
  REQUIRE(contains(r.out, "cotangent"));
  REQUIRE(contains(complaint("show /does/not/exist"), "cannot open"));
}

TEST_CASE("--cuda judges the kernels, or says why it cannot") {
  const result r = carve_with("verify --cuda " + quoted_dump + " 2>&1");
  CAPTURE(r.out);
  // Which of the two it is depends on the build and the machine.
  const bool refused =
      r.exit == 2 &&
      (contains(r.out, "--cuda: no CUDA device") ||
       contains(r.out, "--cuda: this program was built without"));
  const bool judged =
      r.exit == 0 && contains(r.out, "all 9 tensors are within");
  REQUIRE((refused || judged));
}
