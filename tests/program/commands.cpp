/// @file
/// Does the program itself, run as a user would, print, write and exit as it
/// says?
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "carve/family.hpp"
#include "carve/version.hpp"
#include "catch.hpp"
#include "program/diagnose.hpp"
#include "program/fixtures.hpp"
#include "program/shell.hpp"

using fixtures::carve_with;
using fixtures::contains;
using fixtures::editable;
using fixtures::path_of;
using fixtures::result;
using fixtures::run_shell;
using fixtures::scratch;

namespace {

/// Runs it on a terminal of its own, which script(1) makes; standard error
/// comes there too.
result carve_on_terminal(const std::string& words, const std::string& before) {
  REQUIRE(std::system("script --version >/dev/null 2>&1") == 0);
  result r = run_shell("script -qec \"" + before + " '" CARVE_PROGRAM "' " +
                       words + "\" /dev/null </dev/null");
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

/// Writes a bundled dump whose outputs come of the first choice of a deviation.
void save_deviating(const std::string& name, const char* id,
                    const std::string& path) {
  const auto d = fixtures::read(name);
  const auto r =
      carve::program::deviating_result(d, {carve::program::suspects(id)[0]});
  REQUIRE(r);
  editable e = editable::of(carve::safetensors::file::open(path_of(name)));
  for (const auto& x : carve::program::with_outputs(d, *r).judged) {
    e.tensors.at(x.name).values = x.values.data;
  }
  e.writer().save(path);
}

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
  REQUIRE(contains(r.out, "operands of products rounded to BF16"));
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
    REQUIRE(t.at("unit_rel_rms") > 0);
    REQUIRE(t.at("ratio").get<double>() ==
            Approx(t.at("rel_rms").get<double>() /
                   t.at("unit_rel_rms").get<double>()));
    REQUIRE(t.at("replay_distance") >= 0);
    REQUIRE(t.at("max_ratio") > 0);
    REQUIRE(t.at("max_abs").get<double>() ==
            Approx(std::abs(t.at("actual_value").get<double>() -
                            t.at("reference_value").get<double>())));
  }
  REQUIRE(j.at("tensors")[0].at("name") == "o");
  REQUIRE(j.at("tensors")[0].at("dtype") == "BF16");
}

TEST_CASE("each of the two limits is that of its own error") {
  const std::string largest =
      carve_with("verify --max-threshold 0.01 " + quoted_dump).out;
  REQUIRE(contains(largest, "0.01 allowed"));
  REQUIRE(contains(largest, "times the largest of sound ways, 0.01 allowed"));
  REQUIRE(!contains(largest, "RMS error"));
  const std::string rms =
      carve_with("verify --threshold 0.01 " + quoted_dump).out;
  REQUIRE(contains(rms, "units, 0.01 allowed"));
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
  says("verfy x", "expected one of [verify,diagnose,reference,");
  says("verfy x", ",families,tensors,show], got \"verfy\"");
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

TEST_CASE("a failure is explained below the table and in the reports") {
  const scratch folder;
  const std::string file = folder / "wrong.safetensors";
  save_deviating("gdn_bf16", "read-before-update", file);
  const std::string text = "if the read-out is taken before the update";
  const std::string json = folder / "r.json", junit = folder / "r.xml";
  const std::string reports = "--json '" + json + "' --junit '" + junit + "' ";
  const result r = carve_with("verify " + reports + "'" + file + "' 2>&1");
  REQUIRE(r.exit == 1);
  REQUIRE(widest_line(r.out) <= 80);
  const std::size_t at = r.out.find("\n\n1. o");
  REQUIRE(at != std::string::npos);
  std::string below = r.out.substr(at);
  for (std::size_t i; (i = below.find("\n    ")) != below.npos;) {
    below.replace(i, 5, " ");
  }
  REQUIRE(contains(below, text));
  REQUIRE(contains(below, "(read-before-update)"));
  const auto j = nlohmann::json::parse(content(json));
  const auto& best = j.at("diagnosis").at(0);
  REQUIRE(best.at("id") == "read-before-update");
  REQUIRE(best.at("ratio").get<double>() < 1.5);
  REQUIRE(contains(best.at("text"), text));
  std::vector<std::string> failing;
  for (const auto& t : j.at("tensors")) {
    if (t.at("verdict") == "fail") failing.push_back(t.at("name"));
  }
  REQUIRE(best.at("tensors") == failing);
  REQUIRE(j.at("unexplained").empty());
  REQUIRE(contains(content(junit), text));

  SECTION("in the summary of several dumps in one sentence each") {
    const result both = carve_with("verify --json '" + json + "' " +
                                   quoted_dump + " '" + file + "'");
    REQUIRE(both.exit == 1);
    REQUIRE(contains(both.out, "(read-before-update)"));
    REQUIRE_FALSE(contains(both.out, "2. "));
    const auto all = nlohmann::json::parse(content(json)).at("dumps");
    REQUIRE_FALSE(all.at(0).contains("diagnosis"));
    REQUIRE(all.at(1).at("diagnosis").at(0).at("id") == "read-before-update");
  }
  SECTION("unless it is not wanted") {
    const result plain =
        carve_with("verify --no-diagnose " + reports + "'" + file + "' 2>&1");
    REQUIRE(plain.exit == 1);
    REQUIRE(r.out.starts_with(plain.out));
    REQUIRE(plain.out.size() < r.out.size());
    REQUIRE_FALSE(nlohmann::json::parse(content(json)).contains("diagnosis"));
    REQUIRE_FALSE(contains(content(junit), text));
  }
}

TEST_CASE("what nothing explains is said to be so, and where it is wrong") {
  const scratch folder;
  const std::string file = folder / "small.safetensors";
  fixtures::small().writer().save(file);
  for (const char* command : {"verify", "diagnose"}) {
    const result r = carve_with(command + (" '" + file) + "' 2>&1");
    CAPTURE(command, r.out);
    REQUIRE(r.exit == 1);
    REQUIRE(contains(r.out, "known mistakes that change something explains"));
    REQUIRE(contains(r.out, "all heads"));
  }
}

TEST_CASE("diagnose says what explains a dump, as text and as JSON") {
  const scratch folder;
  const std::string file = folder / "wrong.safetensors";
  save_deviating("gdn_bf16", "scale-missing", file);
  for (const std::size_t columns : {60u, 80u}) {
    const result r = carve_with("diagnose '" + file + "'",
                                "COLUMNS=" + std::to_string(columns));
    CAPTURE(r.out);
    REQUIRE(r.exit == 1);
    REQUIRE(r.out.starts_with("1. o"));
    REQUIRE(contains(r.out, "(scale-missing)"));
    REQUIRE(widest_line(r.out) <= columns);
    REQUIRE(widest_line(r.out) > columns - 20);
  }
  const result r = carve_with("diagnose --json - '" + file + "'");
  REQUIRE(r.exit == 1);
  const auto j = nlohmann::json::parse(r.out);
  REQUIRE(j.at("diagnosis").at(0).at("id") == "scale-missing");
  REQUIRE(j.at("wrong") == j.at("diagnosis").at(0).at("tensors"));
  REQUIRE(j.at("tried") > 20);
  const result piped =
      carve_with("diagnose --json - -", "cat '" + file + "' |");
  REQUIRE(piped.exit == 1);
  REQUIRE(piped.out == r.out);

  const result sound = carve_with("diagnose " + quoted_dump);
  REQUIRE(sound.exit == 0);
  REQUIRE(sound.out == "no tensor fails: there is nothing to explain\n");

  std::ofstream(folder / "text.safetensors") << "not one at all";
  REQUIRE(
      contains(complaint("diagnose '" + (folder / "text.safetensors") + "'"),
               "is this a safetensors file?"));
  REQUIRE(contains(complaint("diagnose '" + (folder / "none") + "'"), "none"));
  REQUIRE(contains(complaint("diagnose --json '" + file + "' '" + file + "'"),
                   "is the dump itself"));
  complaint("diagnose '" + file + "' '" + file + "'");
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

namespace {

/// A dump of gdn with gradients, its outputs exact: B 1, T 6, H heads of q and
/// k, HV of v and the gates, K 4, V 3.
editable exact_gdn(const scratch& folder, std::int64_t H, std::int64_t HV,
                   const std::string& settings = "", double lowest_g = -1) {
  using carve::safetensors::dtype;
  editable e;
  e.metadata = {{"family", "gdn"}};
  double phase = 0;
  const auto add = [&](const std::string& name,
                       const std::vector<std::int64_t>& shape, double low,
                       double high) {
    editable::entry x{dtype::f32, shape, {}};
    std::int64_t n = 1;
    for (const std::int64_t axis : shape) n *= axis;
    phase += 0.7;
    for (std::int64_t i = 0; i < n; ++i) {
      const double wave = std::sin(static_cast<double>(i + 1) * (1.3 + phase));
      x.values.push_back(low + (high - low) * (0.5 + 0.5 * wave));
    }
    e.tensors[name] = x;
  };
  const std::int64_t T = 6, heads = std::max(H, HV);
  add("q", {1, T, H, 4}, -1, 1), add("k", {1, T, H, 4}, -0.6, 0.6);
  add("v", {1, T, HV, 3}, -1, 1), add("g", {1, T, heads}, lowest_g, -0.01);
  add("beta", {1, T, heads}, 0.1, 0.9), add("do", {1, T, heads, 3}, -1, 1);
  add("initial_state", {1, heads, 4, 3}, -1, 1);
  const std::string in = folder / "exact_in", out = folder / "exact_out";
  e.writer().save(in);
  REQUIRE(carve_with("reference " + settings + " '" + in + "' -o '" + out +
                     "' --dtype f32")
              .exit == 0);
  return editable::of(carve::safetensors::file::open(out));
}

/// Everything of a token axis as another has it.
template <class Change>
void change_tokens(editable& e, Change&& change) {
  for (auto& [name, x] : e.tensors) {
    if (carve::program::has_tokens(name)) change(x.shape);
  }
}

/// The verdict's exit code and all that it says.
result verdict_of(const editable& e, const std::string& options = "") {
  const scratch folder;
  const std::string file = folder / "x.safetensors";
  e.writer().save(file);
  return carve_with("verify " + options + " '" + file + "' 2>&1");
}

/// Right as it is, and wrong with the largest number of any output changed.
void is_judged(const editable& e, const std::string& options = "") {
  const result right = verdict_of(e, options);
  CAPTURE(options, right.out);
  REQUIRE(right.exit == 0);
  for (const auto& [name, x] : e.tensors) {
    const std::string_view role = carve::program::role_of(name);
    if (role != "output" && role != "gradient") continue;
    editable damaged = e;
    auto& values = damaged.tensors[name].values;
    auto largest = std::max_element(
        values.begin(), values.end(),
        [](double a, double b) { return std::abs(a) < std::abs(b); });
    *largest *= 1.01;
    CAPTURE(name);
    REQUIRE(verdict_of(damaged, options).exit == 1);
  }
}

}  // namespace

TEST_CASE("tensors without a batch axis are one entry of a batch") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 2);
  change_tokens(e, [](auto& shape) { shape.erase(shape.begin()); });
  is_judged(e);
  REQUIRE(contains(verdict_of(e).out, "read as [T,H,K]"));
}

TEST_CASE("heads and channels on one axis are parted by their number") {
  const scratch folder;
  for (const auto& [H, HV] : {std::pair{2, 2}, {2, 4}, {4, 2}}) {
    editable e = exact_gdn(folder, H, HV);
    change_tokens(e, [](auto& shape) {
      if (shape.size() != 4) return;
      shape[2] *= shape[3];
      shape.pop_back();
    });
    is_judged(e, carve::text("--heads ", H, ",", HV));
    REQUIRE(contains(
        verdict_of(e, "--heads 3").out,
        carve::text("q: expected [B,T,H*D] with 3 heads, got [1,6,", 4 * H)));
  }
  REQUIRE(contains(complaint("verify --heads 2,x " + quoted_dump),
                   "heads: expected H or H,HV, got \"2,x\""));
}

TEST_CASE("trailing axes of one are left out") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 2);
  for (const char* name : {"g", "beta", "dg", "dbeta"}) {
    e.tensors[name].shape.push_back(1);
  }
  is_judged(e);
  for (const char* name : {"g", "q"}) e.tensors[name].shape.push_back(1);
  is_judged(e);
}

TEST_CASE("query heads may share the value heads") {
  const scratch folder;
  for (const char* order : {"grouped", "tiled"}) {
    const std::string option = std::string("--head-order ") + order;
    is_judged(exact_gdn(folder, 4, 2, option), option);
    is_judged(exact_gdn(folder, 2, 4, option), option);
    const char* const other = *order == 'g' ? "tiled" : "grouped";
    REQUIRE(verdict_of(exact_gdn(folder, 2, 4, option),
                       std::string("--head-order ") + other)
                .exit == 1);
  }
  // Repeated by hand they give the same, and the gradients add up.
  const editable shared = exact_gdn(folder, 4, 2);
  editable full = shared;
  const auto repeated = [&](const char* name) {
    editable::entry x = shared.tensors.at(name);
    const std::vector<double> from = x.values;
    x.values.clear();
    for (std::size_t t = 0; t < 6; ++t) {
      for (std::size_t h = 0; h < 4; ++h) {
        const auto at = from.begin() + static_cast<long>((t * 2 + h / 2) * 3);
        x.values.insert(x.values.end(), at, at + 3);
      }
    }
    x.shape[2] = 4;
    return x;
  };
  full.tensors["v"] = repeated("v");
  full.tensors.erase("dv");
  is_judged(full);
}

TEST_CASE("decays may be given as log2 or as themselves") {
  const scratch folder;
  const editable log = exact_gdn(folder, 2, 2);
  const std::vector<double> g = log.tensors.at("g").values;
  const auto as = [&](const char* domain, auto&& of_g, auto&& of_dg) {
    editable e = log;
    for (const char* name : {"o", "final_state", "dq", "dk", "dv", "dbeta",
                             "dinitial_state", "dg"}) {
      e.tensors[name].dtype = carve::safetensors::dtype::f64;
    }
    e.tensors["g"].dtype = carve::safetensors::dtype::f64;
    for (std::size_t i = 0; i < g.size(); ++i) {
      e.tensors["g"].values[i] = of_g(g[i]);
      e.tensors["dg"].values[i] = of_dg(g[i], log.tensors.at("dg").values[i]);
    }
    for (auto& [name, x] : e.tensors) x.dtype = carve::safetensors::dtype::f32;
    is_judged(e, std::string("--decay-domain ") + domain);
    REQUIRE(verdict_of(e).exit != 0);
  };
  as(
      "log2", [](double x) { return x / std::log(2.0); },
      [](double, double d) { return d * std::log(2.0); });
  as(
      "linear", [](double x) { return std::exp(x); },
      [](double x, double d) { return d / std::exp(x); });
}

TEST_CASE("a decay of zero empties the state") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 2);
  for (const char* name : {"o", "final_state", "dq", "dk", "dv", "dg", "dbeta",
                           "dinitial_state"}) {
    e.tensors.erase(name);
  }
  const auto with = [&](double g, const std::string& options) {
    editable in = e;
    for (std::size_t i : {4u, 5u}) in.tensors["g"].values[i] = g;
    if (contains(options, "linear")) {
      for (double& x : in.tensors["g"].values) {
        if (x != 0) x = std::exp(x);
      }
    }
    in.writer().save(folder / "in");
    const std::string out = folder / "out";
    REQUIRE(carve_with("reference " + options + " '" + (folder / "in") +
                       "' -o '" + out + "'")
                .exit == 0);
    return editable::of(carve::safetensors::file::open(out));
  };
  const editable zero = with(-HUGE_VAL, "");
  REQUIRE(contains(verdict_of(zero).out, "2 decays of zero"));
  // What was there before leaves no trace.
  editable other = zero;
  for (double& x : other.tensors["initial_state"].values) x = -3 * x + 1;
  other.writer().save(folder / "other");
  const std::string out = folder / "other_out";
  REQUIRE(carve_with("reference '" + (folder / "other") + "' -o '" + out + "'")
              .exit == 0);
  const editable same = editable::of(carve::safetensors::file::open(out));
  const auto &x = zero.tensors.at("o").values, &y = same.tensors.at("o").values;
  for (std::size_t i = 2 * 2 * 3; i < x.size(); ++i) REQUIRE(x[i] == y[i]);
  REQUIRE(x[0] != y[0]);
  // In any domain.
  editable linear = with(0, "--decay-domain linear");
  const result refused = verdict_of(linear);
  REQUIRE(refused.exit == 2);
  REQUIRE(contains(refused.out, "--ignore dg leaves it out"));
  linear.tensors.erase("dg");
  is_judged(linear);
  for (std::size_t i = 0; i < x.size(); ++i) {
    REQUIRE(linear.tensors.at("o").values[i] == Approx(x[i]).epsilon(1e-6));
  }
}

TEST_CASE("decays in the place of their logs are told") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 2);
  for (double& x : e.tensors["g"].values) x = std::exp(x);
  const result r = verdict_of(e);
  REQUIRE(r.exit == 2);
  REQUIRE(contains(r.out, "g: expected natural logs of decays"));
  REQUIRE(contains(r.out, "--decay-domain linear"));
  REQUIRE(verdict_of(e, "--decay-domain log").exit == 1);
  e.tensors["g"].values[0] = 1.5;
  REQUIRE(contains(verdict_of(e).out, "decays above 1"));
}

TEST_CASE("tokens after the last offset are padding") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 2);
  for (const char* name : {"initial_state", "final_state", "dinitial_state"}) {
    auto& x = e.tensors[name];
    x.shape[0] = 2;
    const auto once = x.values;
    x.values.insert(x.values.end(), once.begin(), once.end());
  }
  e.tensors["cu_seqlens"] = {carve::safetensors::dtype::i32, {3}, {0, 3, 5}};
  e.writer().save(folder / "in");
  const std::string out = folder / "out";
  REQUIRE(carve_with("reference '" + (folder / "in") + "' -o '" + out +
                     "' --dtype f32")
              .exit == 0);
  const editable padded = editable::of(carve::safetensors::file::open(out));
  is_judged(padded);
  for (const char* name : {"o", "dq", "dk", "dv", "dg", "dbeta"}) {
    const auto& x = padded.tensors.at(name).values;
    for (std::size_t i = x.size() / 6 * 5; i < x.size(); ++i) {
      REQUIRE(x[i] == 0);
    }
  }
  // Anything may stand there but in a gradient.
  for (const char* name : {"q", "k", "v", "g", "beta", "do", "o"}) {
    CAPTURE(name);
    editable odd = padded;
    odd.tensors[name].values.back() = std::nan("");
    REQUIRE(verdict_of(odd).exit == 0);
  }
  for (const char* name : {"dq", "dk", "dv", "dg", "dbeta"}) {
    CAPTURE(name);
    editable odd = padded;
    odd.tensors[name].values.back() = 0.5;
    const result r = verdict_of(odd);
    REQUIRE(r.exit == 1);
    REQUIRE(contains(r.out, "numbers after the last offset are not zero"));
  }
}

TEST_CASE("the L2 norms of other libraries have names") {
  const scratch folder;
  for (const char* norm :
       {"--l2norm True", "--l2norm mean --l2norm-eps 0.01",
        "--l2norm max --l2norm-eps 1.5", "--l2norm max --l2norm-eps 0.01",
        "--l2norm inside --l2norm-eps 0.3"}) {
    CAPTURE(norm);
    const editable e = exact_gdn(folder, 2, 2, norm);
    is_judged(e, norm);
    REQUIRE(verdict_of(e, "--l2norm false").exit == 1);
    REQUIRE(verdict_of(e, "--l2norm true --l2norm-eps 0.07").exit == 1);
  }
}

TEST_CASE("tensors have other names, or no business in a dump") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 2);
  e.tensors["h0"] = e.tensors["initial_state"];
  e.tensors["dh0"] = e.tensors["dinitial_state"];
  e.tensors.erase("initial_state");
  e.tensors.erase("dinitial_state");
  const std::string rename = "--rename h0=initial_state,dh0=dinitial_state";
  REQUIRE(contains(verdict_of(e).out, "--ignore dh0 leaves it out"));
  is_judged(e, rename);
  e.tensors["aux"] = e.tensors["q"];
  REQUIRE(verdict_of(e, rename).exit == 2);
  is_judged(e, rename + " --ignore aux,more");
  // A name of ours twice, or one that is not ours.
  REQUIRE(contains(verdict_of(e, "--ignore dh0 --rename h0=q,aux=aux2").out,
                   "rename: expected FROM=TO"));
  REQUIRE(contains(verdict_of(e, "--ignore dh0 --rename h0=q,aux=g").out,
                   "are called so"));
  // A mask that nobody asked for.
  editable masked = exact_gdn(folder, 2, 2);
  carve::safetensors::writer w = masked.writer();
  const std::vector<std::byte> ones(6, std::byte{1});
  w.add_bytes("attention_mask", carve::safetensors::dtype::boolean, {1, 6},
              ones);
  w.add_bytes("flags", carve::safetensors::dtype::u8, {6}, ones);
  w.save(folder / "masked");
  const result r = carve_with("verify '" + (folder / "masked") + "'");
  REQUIRE(r.exit == 0);
  REQUIRE(contains(r.out, "attention_mask (BOOL) is not looked at"));
}

TEST_CASE("a state in 8 bits is read as it stands") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 2);
  for (double& x : e.tensors["initial_state"].values) x = x > 0 ? 0.5 : -0.25;
  for (const char* name : {"o", "final_state", "dq", "dk", "dv", "dg", "dbeta",
                           "dinitial_state"}) {
    e.tensors.erase(name);
  }
  for (const auto& [type, half] :
       {std::pair{carve::safetensors::dtype::f8_e4m3, 0x30},
        std::pair{carve::safetensors::dtype::f8_e5m2, 0x38}}) {
    carve::safetensors::writer w;
    w.set_metadata("family", "gdn");
    for (const auto& [name, x] : e.tensors) {
      if (name != "initial_state") w.add(name, x.dtype, x.shape, x.values);
    }
    std::vector<std::byte> words;
    for (const double x : e.tensors["initial_state"].values) {
      // -1/4 has an exponent less and a sign.
      const int less = type == carve::safetensors::dtype::f8_e4m3 ? 8 : 4;
      words.push_back(
          static_cast<std::byte>(x > 0 ? half : 0x80 | (half - less)));
    }
    w.add_bytes("initial_state", type, {1, 2, 4, 3}, words);
    w.save(folder / "narrow");
    e.writer().save(folder / "wide");
    for (const char* name : {"narrow", "wide"}) {
      REQUIRE(carve_with("reference '" + (folder / name) + "' -o '" +
                         (folder / (std::string(name) + "_out")) + "'")
                  .exit == 0);
    }
    const auto file = carve::safetensors::file::open(folder / "narrow_out");
    REQUIRE(file.info("initial_state").dtype == type);
    REQUIRE(file.as_double("o") ==
            carve::safetensors::file::open(folder / "wide_out").as_double("o"));
    REQUIRE(carve_with("verify '" + (folder / "narrow_out") + "'").exit == 0);
  }
}

TEST_CASE("heads before tokens are not taken for tokens in silence") {
  const scratch folder;
  // T 6 and H 6: both orders fit.
  editable e = exact_gdn(folder, 6, 6);
  REQUIRE(contains(verdict_of(e).out, "--layout BHTD"));
  REQUIRE_FALSE(contains(verdict_of(e, "--layout BTHD").out, "note: T = H"));
  e.writer().save(folder / "in");
  editable swapped = e;
  for (auto& [name, x] : swapped.tensors) {
    if (!carve::program::has_tokens(name)) continue;
    x.values =
        carve::program::exchange_axes(
            carve::tensor<double>({x.shape.begin(), x.shape.end()}, x.values))
            .data;
  }
  const result r = verdict_of(swapped);
  REQUIRE(r.exit == 1);
  REQUIRE(contains(r.out, "read as [B,H,T,D] all pass: --layout BHTD"));
  // More heads than tokens: odd enough to say.
  editable few = exact_gdn(folder, 8, 8);
  REQUIRE(contains(verdict_of(few).out, "6 tokens and 8 heads"));
}

TEST_CASE("the reports say what was guessed") {
  const scratch folder;
  editable e = exact_gdn(folder, 2, 4);
  e.writer().save(folder / "in");
  const auto j = nlohmann::json::parse(
      carve_with("verify --json - '" + (folder / "in") + "'").out);
  REQUIRE(j.at("notes").size() == 1);
  REQUIRE(contains(j.at("notes")[0], "--head-order tiled"));
}

namespace {

/// The number whose gradients a dump holds: its outputs weighed by do.
double weighed(const editable& e, const std::string& options) {
  const scratch folder;
  e.writer().save(folder / "in");
  const std::string out = folder / "out";
  REQUIRE(carve_with("reference " + options + " '" + (folder / "in") +
                     "' -o '" + out + "'")
              .exit == 0);
  const auto file = carve::safetensors::file::open(out);
  const auto o = file.as_double("o"), d = file.as_double("do");
  double sum = 0;
  for (std::size_t i = 0; i < o.size(); ++i) sum += o[i] * d[i];
  return sum;
}

/// Are the gradients of some elements what differences of outputs give?
void is_the_derivative(editable e, const std::string& options) {
  for (auto& [name, x] : e.tensors) x.dtype = carve::safetensors::dtype::f64;
  for (const char* name : {"q", "k", "v", "g", "beta", "initial_state"}) {
    for (const std::size_t i : {std::size_t{1}, std::size_t{9}}) {
      const double step = 1e-5;
      editable up = e, down = e;
      up.tensors[name].values[i] += step;
      down.tensors[name].values[i] -= step;
      const double slope =
          (weighed(up, options) - weighed(down, options)) / (2 * step);
      CAPTURE(options, name, i, slope);
      REQUIRE(e.tensors.at("d" + std::string(name)).values[i] ==
              Approx(slope).epsilon(1e-5).margin(1e-6));
    }
  }
}

}  // namespace

TEST_CASE("gradients in other conventions are derivatives of the outputs") {
  const scratch folder;
  for (const char* options :
       {"--l2norm true", "--l2norm mean --l2norm-eps 0.01",
        "--l2norm max --l2norm-eps 1.2", "--l2norm max --l2norm-eps 0.01"}) {
    is_the_derivative(exact_gdn(folder, 2, 2, options), options);
  }
  for (const char* options : {"--head-order grouped", "--head-order tiled"}) {
    is_the_derivative(exact_gdn(folder, 4, 2, options), options);
  }
  editable linear = exact_gdn(folder, 2, 2);
  for (std::size_t i = 0; i < linear.tensors["g"].values.size(); ++i) {
    double& g = linear.tensors["g"].values[i];
    g = std::exp(g);
    linear.tensors["dg"].values[i] /= g;
  }
  is_the_derivative(linear, "--decay-domain linear");
}

TEST_CASE("norms and tiled heads are what they are called") {
  const scratch folder;
  const auto normalised = [](editable e, auto&& norm) {
    for (const char* name : {"q", "k"}) {
      auto& x = e.tensors[name].values;
      for (std::size_t i = 0; i < x.size(); i += 4) {
        double s = 0;
        for (std::size_t j = i; j < i + 4; ++j) s += x[j] * x[j];
        for (std::size_t j = i; j < i + 4; ++j) x[j] /= norm(s);
      }
    }
    for (const char* name : {"dq", "dk"}) e.tensors.erase(name);
    e.metadata = {{"family", "gdn"}};
    for (auto& [name, x] : e.tensors) x.dtype = carve::safetensors::dtype::f32;
    return e;
  };
  const auto is_norm = [&](const std::string& options, auto&& norm) {
    CAPTURE(options);
    const result r =
        verdict_of(normalised(exact_gdn(folder, 2, 2, options), norm));
    CAPTURE(r.out);
    REQUIRE(r.exit == 0);
  };
  is_norm("--l2norm true --l2norm-eps 0.2",
          [](double s) { return std::sqrt(s + 0.2); });
  is_norm("--l2norm mean --l2norm-eps 0.2",
          [](double s) { return std::sqrt(4 * (s / 4 + 0.2)); });
  is_norm("--l2norm max --l2norm-eps 1.1",
          [](double s) { return std::max(std::sqrt(s), 1.1); });

  editable tiled = exact_gdn(folder, 2, 4, "--head-order tiled");
  for (const char* name : {"q", "k"}) {
    auto& x = tiled.tensors[name];
    std::vector<double> all;
    for (std::size_t t = 0; t < 6; ++t) {
      for (std::size_t h = 0; h < 4; ++h) {
        const auto at =
            x.values.begin() + static_cast<long>((t * 2 + h % 2) * 4);
        all.insert(all.end(), at, at + 4);
      }
    }
    x.values = all, x.shape[2] = 4;
    tiled.tensors.erase("d" + std::string(name));
  }
  tiled.metadata = {{"family", "gdn"}};
  const result r = verdict_of(tiled);
  CAPTURE(r.out);
  REQUIRE(r.exit == 0);
}

TEST_CASE("one long head says how long it will take") {
  const scratch folder;
  editable e;
  e.metadata = {{"family", "delta"}};
  const std::int64_t T = 16384;
  for (const char* name : {"q", "k", "v", "o"}) {
    e.tensors[name] = {carve::safetensors::dtype::f32,
                       {1, T, 1, 32},
                       std::vector<double>(static_cast<std::size_t>(T) * 32)};
    for (std::size_t i = 0; i < e.tensors[name].values.size(); ++i) {
      e.tensors[name].values[i] = 0.1 * std::sin(static_cast<double>(i));
    }
  }
  e.tensors["do"] = e.tensors["o"], e.tensors["dq"] = e.tensors["o"];
  e.tensors["beta"] = {carve::safetensors::dtype::f32,
                       {1, T, 1},
                       std::vector<double>(static_cast<std::size_t>(T), 0.5)};
  const std::string file = folder / "long.safetensors";
  e.writer().save(file);
  const result r = carve_on_terminal("verify " + file, "NO_COLOR=1");
  REQUIRE(contains(r.out, "s left"));
  REQUIRE(contains(r.out, "long.safetensors: DeltaNet"));
  // Not where nobody waits for it.
  REQUIRE_FALSE(contains(carve_with("verify " + file + " 2>&1").out, " left"));
}

TEST_CASE("help and version are there and fit the columns there are") {
  for (const char* words :
       {"--help", "verify --help", "diagnose --help", "reference --help",
        "families --help", "tensors --help", "show --help"}) {
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

TEST_CASE(
    "a program of verdicts alone has the commands, and says of one that it "
    "lacks how to get it") {
  // "  name   what it does" for each command.
  const auto commands = [](const std::string& help) {
    std::istringstream in(help.substr(help.find("Subcommands:\n") + 13));
    std::map<std::string, std::string> found;
    for (std::string line; std::getline(in, line);) {
      std::istringstream words(line);
      std::string name;
      if (line.starts_with("  ") && line[2] != ' ' && words >> name) {
        found[name] = line;
      }
    }
    return found;
  };
  const auto alone = [](const std::string& words) {
    return run_shell("'" CARVE_VERDICTS_ALONE "' " + words + " 2>&1");
  };
  const auto all = commands(carve_with("--help").out);
  const auto few = commands(alone("--help").out);
  REQUIRE(few.size() == all.size());
  std::size_t left_out = 0;
  for (const auto& [name, line] : few) {
    REQUIRE(all.contains(name));
    if (!contains(line, "not in this build")) continue;
    ++left_out;
    for (const char* const words : {"", " x.safetensors --no-such-option"}) {
      const result r = alone(name + words);
      INFO(r.out);
      CHECK(r.exit == 2);
      CHECK(r.out.starts_with("carve: " + name + ": "));
      CHECK(contains(r.out, "./x build"));
      CHECK(std::count(r.out.begin(), r.out.end(), '\n') == 1);
    }
  }
  CHECK(left_out == 5);
  CHECK(alone("verify " + quoted_dump).exit == 0);
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

TEST_CASE("families tells how each of them erases") {
  const std::string out = carve_with("families").out;
  REQUIRE(
      contains(out, "\ngdn                  b * k    k          after   1\n"));
  REQUIRE(
      contains(out, "\nrwkv7                r        b * r      before  1\n"));
}

TEST_CASE("tensors lists them all, at any width") {
  for (const std::size_t columns : {60u, 80u, 100u}) {
    const result r =
        carve_with("tensors", "COLUMNS=" + std::to_string(columns));
    REQUIRE(r.exit == 0);
    REQUIRE(widest_line(r.out) <= columns);
    for (const carve::tensor_row& row : carve::each_tensor<char>::members()) {
      REQUIRE(contains("\n" + r.out, "\n  " + std::string(row.name) + " "));
    }
  }
  const std::string out = carve_with("tensors", "COLUMNS=80").out;
  REQUIRE(contains(out, "\n  E              [B,T,HV,K,V], token: "));
  REQUIRE(contains(out, "of full_erase\n"));
  REQUIRE(contains(out, "\n  final_state    [N,HV,K,V], output: "));
  // The manual shows the same.
  REQUIRE(contains(content(CARVE_TENSORS_PAGE), "\n" + out));
}

TEST_CASE("show counts what is no number and leaves it out") {
  const scratch folder;
  editable e = fixtures::small();
  e.tensors["o"].values[0] = std::nan("");
  e.tensors["o"].values[1] = HUGE_VAL;
  const std::string file = folder / "nan.safetensors";
  e.writer().save(file);
  const std::string out = carve_with("show '" + file + "'").out;
  REQUIRE(contains(out, "2 elements are NaN or infinite"));
  REQUIRE(!contains(out, "nan "));
  REQUIRE(!contains(out, "inf "));
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
