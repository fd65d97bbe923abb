/// @file
/// Does the program itself, run as a user would, print, write and exit as it
/// says?
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
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

/// Runs it on a terminal of its own, which script(1) makes; standard error
/// comes there too.
result carve_on_terminal(const std::string& words, const std::string& before) {
  REQUIRE(std::system("script --version >/dev/null 2>&1") == 0);
  result r;
  std::FILE* const pipe =
      ::popen(("script -qec \"" + before + " '" CARVE_PROGRAM "' " + words +
               "\" /dev/null </dev/null")
                  .c_str(),
              "r");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    r.out.append(buffer, n);
  }
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) r.exit = WEXITSTATUS(status);
  std::erase(r.out, '\r');
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
  REQUIRE(complaint("verify --json /does/not/exist/r " + quoted_dump) ==
          "carve: /does/not/exist/r: cannot be written: No such file or "
          "directory\n");
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
  says("verify", "is required");
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

TEST_CASE("several dumps give one table, one report and the worst code") {
  const scratch folder;
  editable bad = fixtures::small();
  bad.writer().save(folder / "bad.safetensors");
  std::ofstream(folder / "text.safetensors") << "not one at all";
  const std::string good = quoted_dump + " '" + path_of("delta_bf16") + "' ";
  const std::string json = folder / "r.json", junit = folder / "r.xml";
  const std::string reports = "--json '" + json + "' --junit '" + junit + "' ";
  {
    const result r = carve_with("verify " + reports + good);
    REQUIRE(r.exit == 0);
    REQUIRE(contains(r.out, "gdn2_bf16.safetensors"));
    REQUIRE(contains(r.out, "2 dumps: 2 pass, 0 fail, 0 unusable\n"));
    REQUIRE(widest_line(r.out) <= 80);
    const auto j = nlohmann::json::parse(content(json));
    REQUIRE(j.at("verdict") == "pass");
    REQUIRE(j.at("dumps").size() == 2);
    REQUIRE(j.at("dumps")[1].at("family") == "delta");
    REQUIRE(j.at("dumps")[1].at("tensors")[0].at("pass") == true);
  }
  {
    const result r = carve_with("verify " + reports + good + "'" +
                                (folder / "text.safetensors") + "'");
    REQUIRE(r.exit == 2);
    REQUIRE(contains(r.out, "3 dumps: 2 pass, 0 fail, 1 unusable\n"));
    REQUIRE(contains(r.out, "is this a safetensors file?"));
    const auto j = nlohmann::json::parse(content(json));
    REQUIRE(j.at("verdict") == "unusable");
    REQUIRE(j.at("dumps")[2].at("verdict") == "unusable");
    REQUIRE(contains(j.at("dumps")[2].at("error"), "safetensors file?"));
    REQUIRE(contains(content(junit), "errors=\"1\""));
    REQUIRE(contains(content(junit), "<error message=\""));
  }
  {
    const result r = carve_with("verify " + reports + good + "'" +
                                (folder / "text.safetensors") + "' '" +
                                (folder / "bad.safetensors") + "'");
    REQUIRE(r.exit == 1);
    REQUIRE(contains(r.out, "FAIL  bad.safetensors: o: RMS error "));
    REQUIRE(nlohmann::json::parse(content(json)).at("verdict") == "fail");
  }
}

TEST_CASE("a pipe is a dump") {
  const std::string in = "cat " + quoted_dump + " | ";
  const result file = carve_with("verify " + quoted_dump);
  for (const char* name : {"-", "/dev/stdin"}) {
    CAPTURE(name);
    const result r = carve_with("verify " + std::string(name), in);
    REQUIRE(r.exit == 0);
    REQUIRE(r.out.substr(r.out.find(": ")) ==
            file.out.substr(file.out.find(": ")));
  }
  REQUIRE(carve_with("show -", in).exit == 0);
  REQUIRE(carve_with("reference - -o - | '" CARVE_PROGRAM "' show -", in).out ==
          carve_with("reference " + quoted_dump +
                     " -o - | '" CARVE_PROGRAM "' show -")
              .out);
  REQUIRE(complaint("verify - -") == "carve: standard input: given twice\n");
  const result cut = carve_with("verify - 2>&1 >/dev/null",
                                "head -c 20000 " + quoted_dump + " | ");
  REQUIRE(cut.exit == 2);
  REQUIRE(contains(cut.out, "carve: standard input: expected "));
}

TEST_CASE("--json - is standard output and nothing else is on it") {
  const result r = carve_with("verify --json - " + quoted_dump);
  REQUIRE(r.exit == 0);
  REQUIRE(nlohmann::json::parse(r.out).at("verdict") == "pass");
  REQUIRE(carve_with("verify --junit - " + quoted_dump)
              .out.ends_with("</testsuites>\n"));
}

TEST_CASE("outputs are checked before the work and written whole") {
  const scratch folder;
  const std::string file = folder / "r";
  REQUIRE(complaint("verify --json '" + file + "' --junit '" + file + "' " +
                    quoted_dump) ==
          "carve: --junit: " + file + " is also what --json writes\n");
  REQUIRE(contains(complaint("verify --json - --junit - " + quoted_dump),
                   "--junit: - is also what --json writes"));
  REQUIRE(contains(complaint("verify --json '" + file + "' --junit '" +
                             (folder / ".") + "/r' " + quoted_dump),
                   "is also what --json writes"));
  const std::string copy = folder / "x.safetensors";
  std::filesystem::copy_file(path_of("gdn2_bf16"), copy);
  std::filesystem::create_symlink(copy, folder / "link");
  for (const std::string& path : {copy, folder / "link"}) {
    REQUIRE(contains(complaint("verify --json '" + path + "' '" + copy + "'"),
                     "is the dump itself"));
    REQUIRE(contains(complaint("reference '" + copy + "' -o '" + path + "'"),
                     "is the dump itself"));
  }
  REQUIRE(content(copy) == content(path_of("gdn2_bf16")));
  std::filesystem::create_directory(folder / "d");
  REQUIRE(contains(
      complaint("verify --json '" + (folder / "d") + "' " + quoted_dump),
      "/d: cannot be written: Is a directory"));
  // Refused before the dump is looked at.
  REQUIRE(contains(complaint("verify --json /does/not/exist/r /not/there"),
                   "/does/not/exist/r: cannot be written"));
  REQUIRE(contains(complaint("verify --json /dev/full " + quoted_dump),
                   "/dev/full: cannot be written: No space left on device"));
  const result full = carve_with("verify " + quoted_dump + " 2>&1 >/dev/full");
  REQUIRE(full.exit == 2);
  REQUIRE(full.out == "carve: standard output: cannot be written\n");
  REQUIRE(contains(
      carve_with("verify --json - " + quoted_dump + " 2>&1 >/dev/full").out,
      "standard output: cannot be written: No space left"));
  // A limit on the size of files is a disk that is full half way.
  std::ofstream(file) << "old";
  const result limited = carve_with(
      "verify --json '" + file + "' " + quoted_dump + " 2>&1 >/dev/null",
      "ulimit -f 1; ");
  REQUIRE(limited.exit == 2);
  REQUIRE(contains(limited.out, "/r: cannot be written: File too large"));
  REQUIRE(content(file) == "old");
  std::size_t left = 0;
  for (const auto& item : std::filesystem::directory_iterator(folder / "")) {
    CAPTURE(item.path());
    left += item.path().string().find(".tmp") == std::string::npos ? 0 : 1;
  }
  REQUIRE(left == 0);
}

TEST_CASE("nothing from a file reaches the terminal as a control") {
  const scratch folder;
  const std::string evil =
      "\033[2J\x07\xc2\x9b"
      "31m";
  const auto harmless = [](const std::string& text) {
    CAPTURE(text);
    REQUIRE(text.find('\033') == std::string::npos);
    REQUIRE(text.find('\x07') == std::string::npos);
    REQUIRE(text.find("\xc2\x9b") == std::string::npos);
  };
  const auto try_all = [&](const editable& e, const char* name) {
    CAPTURE(name);
    const std::string file = folder / "x" + evil + ".safetensors";
    e.writer().save(file);
    for (const char* command :
         {"verify", "show", "verify --json -", "verify --junit -"}) {
      harmless(carve_with(command + (" '" + file + "' 2>&1")).out);
    }
    harmless(carve_with("verify '" + file + "' " + quoted_dump + " 2>&1").out);
  };
  try_all(fixtures::small(), "path");
  editable e = fixtures::small();
  e.tensors[evil] = e.tensors["q"];
  try_all(e, "tensor");
  for (const char* key : {"family", "scale", "layout", "read_out", "l2norm",
                          "decay_activation", "b_activation"}) {
    e = fixtures::small();
    e.metadata[key] = evil;
    try_all(e, key);
  }
  e = fixtures::small();
  e.metadata[evil] = evil;
  try_all(e, "metadata");
  std::ofstream(folder / "json")
      << std::string("\x09\0\0\0\0\0\0\0", 8) << "{\"" + evil;
  harmless(complaint("verify '" + (folder / "json") + "'"));
  harmless(complaint("verify '" + (folder / "not here " + evil) + "'"));
  harmless(complaint("'" + evil + "'"));
  harmless(complaint("verify --threads '" + evil + "' x"));
}

TEST_CASE("a message is never longer than a screen") {
  const scratch folder;
  const auto short_enough = [](const std::string& text) {
    CAPTURE(text.size(), text.substr(0, 200));
    REQUIRE(text.size() <= 24 * 80);
    REQUIRE(std::count(text.begin(), text.end(), '\n') <= 24);
  };
  editable e = fixtures::small();
  e.tensors["cu_seqlens"] = {
      carve::safetensors::dtype::i64, {20000}, std::vector<double>(20000, 3)};
  e.writer().save(folder / "a");
  short_enough(complaint("verify '" + (folder / "a") + "'"));
  e = fixtures::small();
  e.tensors[std::string(5000, 'n')] = e.tensors["q"];
  e.writer().save(folder / "b");
  short_enough(complaint("verify '" + (folder / "b") + "'"));
  e = fixtures::small();
  e.metadata["family"] = std::string(100'000, '\n');
  e.writer().save(folder / "c");
  short_enough(complaint("verify '" + (folder / "c") + "'"));
  short_enough(complaint("verify '" + std::string(60'000, 'y') + "'"));
  short_enough(complaint("verify --family '" + std::string(60'000, 'y') + "' " +
                         quoted_dump));
  short_enough(complaint("'" + std::string(60'000, 'y') + "'"));
}

TEST_CASE("a file in another format gets the lines that convert it") {
  const scratch folder;
  const std::string file = folder / "dump.npz";
  std::ofstream(file, std::ios::binary) << "PK\3\4"
                                        << "q.npy and so on";
  const std::string said = complaint("verify '" + file + "'");
  REQUIRE(contains(said, "a NumPy archive"));
  REQUIRE(contains(said, "np.load(\"" + file + "\")"));
  REQUIRE(contains(said, "/dump.safetensors\""));
}

TEST_CASE("TF32 is spoken of only when the error has its size") {
  const scratch folder;
  const std::string exact = folder / "exact.safetensors";
  const std::string in = folder / "in.safetensors";
  fixtures::small().writer().save(in);
  REQUIRE(carve_with("reference '" + in + "' -o '" + exact + "'").exit == 0);
  const auto said = [&](double error) {
    editable e = editable::of(carve::safetensors::file::open(exact));
    for (std::size_t i = 0; i < e.tensors["o"].values.size(); ++i) {
      e.tensors["o"].values[i] *= 1 + (i % 2 == 0 ? error : -error);
    }
    const std::string file = folder / "x.safetensors";
    e.writer().save(file);
    const result r = carve_with("verify '" + file + "'");
    CAPTURE(r.out);
    REQUIRE(r.exit == 1);
    return contains(r.out, "--profile tf32");
  };
  REQUIRE(said(0x1p-11));
  REQUIRE_FALSE(said(0.1));
  REQUIRE_FALSE(said(0x1p-17));
}

TEST_CASE("help and version are there and fit the columns there are") {
  for (const char* words : {"--help", "verify --help", "reference --help",
                            "families --help", "show --help"}) {
    for (const std::size_t columns : {60u, 80u, 100u}) {
      CAPTURE(words, columns);
      const std::string variable = "COLUMNS=" + std::to_string(columns);
      const result r = carve_with(words, variable);
      REQUIRE(r.exit == 0);
      REQUIRE(contains(r.out, "Usage: carve"));
      REQUIRE(widest_line(r.out) <= columns);
      // A terminal's own width counts more than the variable.
      const result on_terminal = carve_on_terminal(
          words, "stty cols " + std::to_string(columns) + "; COLUMNS=41");
      REQUIRE(on_terminal.out == r.out);
    }
    REQUIRE(widest_line(carve_with(words, "COLUMNS=").out) <= 80);
    // Lines are filled, not only cut short.
    REQUIRE(widest_line(carve_with(words, "COLUMNS=100").out) >=
            widest_line(carve_with(words, "COLUMNS=60").out));
  }
  REQUIRE(widest_line(carve_with("verify --help", "COLUMNS=100").out) > 80);
  const result r = carve_with("--version");
  REQUIRE(r.exit == 0);
  REQUIRE(r.out == "carve " + std::string(carve::version) + "\n");
}

TEST_CASE("colour is for terminals, and not for all of them") {
  const auto on_terminal = [](const std::string& environment) {
    return carve_on_terminal("verify " + path_of("gdn2_bf16"), environment).out;
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
