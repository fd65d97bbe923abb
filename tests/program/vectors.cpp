/// @file
/// Do test vectors cover what they say, are they the same wherever they are
/// made, and does a score over them tell right from wrong?
#include "program/vectors.hpp"

#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "carve/reference.hpp"
#include "catch.hpp"
#include "output.hpp"
#include "program/diagnose.hpp"
#include "program/digest.hpp"
#include "program/fixtures.hpp"

using carve::error;
using carve::program::covering;
using carve::program::dump;
using carve::program::judged_tensor;
using carve::program::mark;
using carve::program::outcome;
using carve::program::vector_entry;
using carve::program::vector_plan;
namespace program = carve::program;
namespace st = carve::safetensors;

namespace {

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

/// The smoke suite, made once with one thread.
struct smoke_suite {
  fixtures::scratch folder;
  program::manifest manifest;
  smoke_suite() {
    program::vectors_settings how;
    how.run.threads = 1;
    manifest = program::write_suite(program::suite_named("smoke"), how,
                                    folder / "suite");
  }
  std::string path(const vector_entry& v) const {
    return folder / ("suite/" + v.file);
  }
  dump read(const vector_entry& v) const {
    return program::read_dump(st::file::open(path(v)));
  }
};
const smoke_suite& smoke() {
  static const smoke_suite suite;
  return suite;
}

/// Pairs of a factor and a value each.
using pairs = std::set<covering::tuple>;

pairs pairs_of(const std::vector<covering::row>& rows) {
  pairs all;
  for (const covering::row& r : rows) {
    for (std::size_t f = 0; f < r.size(); ++f) {
      for (std::size_t g = f + 1; g < r.size(); ++g) {
        all.insert({{f, r[f]}, {g, r[g]}});
      }
    }
  }
  return all;
}

/// Every row of so many values that `may` be.
template <class May>
std::vector<covering::row> all_rows(const std::vector<std::size_t>& sizes,
                                    const May& may) {
  std::vector<covering::row> rows;
  covering::row r(sizes.size(), 0);
  while (true) {
    if (may(r)) rows.push_back(r);
    std::size_t f = 0;
    while (f < r.size() && ++r[f] == sizes[f]) r[f++] = 0;
    if (f == r.size()) return rows;
  }
}

}  // namespace

TEST_CASE("a covering holds every admissible tuple and nothing forbidden") {
  const std::vector<std::size_t> sizes{4, 3, 2, 3, 2};
  // The last two rules together forbid what neither forbids alone: value 2 of
  // the second factor leaves none of the third.
  const auto together = [](std::size_t f, std::size_t v, std::size_t g,
                           std::size_t w) {
    if (f == 0 && g == 3) return v != 1 || w == 0;
    if (f == 1 && g == 2) return v != 2 || w == 1;
    if (f == 2 && g == 4) return v != 1 || w == 0;
    return !(f == 0 && g == 4 && v == 3 && w == 0);
  };
  const auto may = [&](const covering::row& r) {
    for (std::size_t f = 0; f < r.size(); ++f) {
      for (std::size_t g = f + 1; g < r.size(); ++g) {
        if (!together(f, r[f], g, r[g])) return false;
      }
    }
    return true;
  };
  const covering c(sizes, together);
  const std::vector<covering::row> everything = all_rows(sizes, may);
  const pairs admissible = pairs_of(everything);
  REQUIRE_FALSE(c.admissible({{1, 2}, {4, 1}}));
  REQUIRE(together(1, 2, 4, 1));
  for (const std::size_t strength : {2u, 3u}) {
    const std::vector<covering::row> rows = c.rows(strength);
    REQUIRE(rows.size() < everything.size());
    for (const covering::row& r : rows) REQUIRE(may(r));
    REQUIRE(pairs_of(rows) == admissible);
  }
  // Triples, one by one.
  const std::vector<covering::row> rows = c.rows(3);
  for (const covering::row& r : everything) {
    for (std::size_t f = 0; f < 5; ++f) {
      for (std::size_t g = f + 1; g < 5; ++g) {
        for (std::size_t h = g + 1; h < 5; ++h) {
          REQUIRE(std::any_of(rows.begin(), rows.end(), [&](const auto& x) {
            return x[f] == r[f] && x[g] == r[g] && x[h] == r[h];
          }));
        }
      }
    }
  }
}

TEST_CASE("the suites hold every admissible pair of regimes") {
  const program::regime_matrix factors = program::regime_factors();
  std::vector<std::size_t> sizes;
  for (const auto& [name, values] : factors) sizes.push_back(values.size());
  // What a problem cannot be, said once more and in other words. The factors
  // not spoken of are free; one value of each will do to find the rows.
  const std::set<std::string> spoken_of{"family", "decay", "gates", "length",
                                        "end",    "front", "values"};
  std::vector<std::size_t> few = sizes;
  for (std::size_t f = 0; f < factors.size(); ++f) {
    if (!spoken_of.contains(factors[f].first)) few[f] = 1;
  }
  const auto may = [&](const covering::row& r) {
    std::map<std::string, std::string> is;
    for (std::size_t f = 0; f < r.size(); ++f) {
      is[factors[f].first] = factors[f].second[r[f]];
    }
    const std::set<std::string> never_decay{"linear", "delta"};
    const std::set<std::string> ungated{"linear", "mamba2", "gla"};
    return (is["decay"] == "none" || !never_decay.contains(is["family"])) &&
           (is["gates"] == "absent") == ungated.contains(is["family"]) &&
           !(is["family"] == "carve" && is["gates"] == "doubled") &&
           !(is["length"] == "1" && is["end"] != "at") &&
           !(is["values"] == "cancelling" &&
             (is["length"] != "128" || !ungated.contains(is["family"]))) &&
           !(is["front"] == "bounded" &&
             (is["decay"] == "none" || is["decay"] == "-200"));
  };
  pairs admissible = pairs_of(all_rows(few, may));
  // A free factor's other values stand beside whatever its first one does.
  const pairs known = admissible;
  for (std::size_t f = 0; f < factors.size(); ++f) {
    for (std::size_t v = 1; v < sizes[f] && few[f] == 1; ++v) {
      for (covering::tuple t : known) {
        for (auto& [factor, value] : t) {
          if (factor == f) value = v;
        }
        admissible.insert(t);
      }
      for (covering::tuple t : pairs(admissible)) {
        for (auto& [factor, value] : t) {
          if (factor == f) value = v;
        }
        admissible.insert(t);
      }
    }
  }
  for (const program::suite_row& suite : program::suites) {
    std::vector<covering::row> rows;
    for (const vector_plan& p : program::plan_of(suite)) {
      covering::row r;
      for (std::size_t f = 0; f < factors.size(); ++f) {
        const auto& values = factors[f].second;
        r.push_back(static_cast<std::size_t>(
            std::find(values.begin(), values.end(), p.regime[f]) -
            values.begin()));
      }
      REQUIRE(may(r));
      rows.push_back(std::move(r));
    }
    CAPTURE(suite.name, rows.size());
    REQUIRE(pairs_of(rows) == admissible);
    // Each family with every pair: that is what triples are for.
    if (suite.strength < 3) continue;
    for (std::size_t family = 0; family < sizes[0]; ++family) {
      std::vector<covering::row> own, all = all_rows(few, may);
      for (const covering::row& r : rows) {
        if (r[0] == family) own.push_back(r);
      }
      std::erase_if(all, [&](const auto& r) { return r[0] != family; });
      const pairs held = pairs_of(own);
      for (const covering::tuple& t : pairs_of(all)) REQUIRE(held.contains(t));
    }
  }
}

TEST_CASE("SHA-256 is that of FIPS 180-4") {
  const auto digest = [](const std::string& s) {
    return program::sha256(std::as_bytes(std::span(s)));
  };
  // The examples of the standard's authors, and a million letters.
  REQUIRE(digest("abc") ==
          "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  REQUIRE(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  REQUIRE(digest(std::string(1000000, 'a')) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("a vector is the same in every bit wherever it is made") {
  // A digest that changes is another suite: it must be meant.
  std::string all;
  for (const vector_entry& v : smoke().manifest.vectors) all += v.sha256;
  REQUIRE(program::sha256(std::as_bytes(std::span(all))) ==
          "9bebf94a3ec1f01a19a353661c204cd6d31f57ba1330db99cf63393ea1881e8c");
  for (const vector_entry& v : smoke().manifest.vectors) {
    const std::string bytes = content(smoke().path(v));
    REQUIRE(program::sha256(std::as_bytes(std::span(bytes))) == v.sha256);
    REQUIRE(bytes.size() == v.bytes);
  }
  // Two threads, and fewer units.
  const fixtures::scratch folder;
  program::vectors_settings how;
  how.run.threads = 2, how.profiles = {carve::profile::ieee_recurrent};
  const program::manifest again = program::write_suite(
      program::suite_named("smoke"), how, folder / "again");
  REQUIRE(again.vectors.size() == smoke().manifest.vectors.size());
  for (const vector_entry& v : again.vectors) {
    REQUIRE(content(folder / ("again/" + v.file)) == content(smoke().path(v)));
  }
  // Another seed, other numbers.
  const vector_plan plan =
      program::plan_of(program::suite_named("smoke")).front();
  REQUIRE(program::make_vector(plan, 2) != program::make_vector(plan, 1));
}

TEST_CASE("a suite of some regimes covers their pairs anew") {
  const program::selection only{{"family", {"gdn"}}, {"front", {"bare"}}};
  const auto plans = program::plan_of(program::suite_named("smoke"), only);
  std::set<std::pair<std::string, std::string>> decay_and_keys;
  for (const vector_plan& p : plans) {
    REQUIRE(program::selected(only, p.regime, program::regime_factors()));
    decay_and_keys.insert({p.regime[1], p.regime[3]});
  }
  REQUIRE(decay_and_keys.size() == 25);
  REQUIRE(plans.size() < 50);
  REQUIRE(fixtures::message([] {
            program::plan_of(program::suite_named("smoke"),
                             {{"family", {"delta"}}, {"decay", {"slow"}}});
          }) == "no problem has the regimes that are selected");
}

TEST_CASE("no set of vector instructions changes a bit of a vector") {
  using carve::instruction_set;
  std::size_t compared = 0;
  const auto in = [](double x) { return carve::double_double(x); };
  for (const vector_entry& v : smoke().manifest.vectors) {
    const dump d = smoke().read(v);
    const auto p = program::convert_problem<carve::double_double>(d.in, in);
    const auto cotangents =
        program::convert_outputs<carve::double_double>(d.cotangents, in);
    for (const auto level : {instruction_set::baseline, instruction_set::avx2,
                             instruction_set::avx512}) {
      if (level > carve::widest_instruction_set()) continue;
      carve::reference_solver solver;
      solver.level = level;
      const auto r = carve::backward(p, cotangents, solver, {2, {}});
      for (const judged_tensor& x : d.judged) {
        const auto& y = program::result_named(r, x.name).data;
        for (std::size_t i = 0; i < y.size(); ++i) {
          CAPTURE(v.name, x.name, i, carve::name_of(level));
          REQUIRE(y[i].hi == x.values.data[i]);
        }
        compared += y.size();
      }
    }
  }
  REQUIRE(compared > 100000);
}

TEST_CASE("smoke is small, and each of its numbers is one of few bits") {
  std::uintmax_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(
           smoke().folder / std::string("suite"))) {
    bytes += entry.file_size();
  }
  REQUIRE(bytes < 5000000);
  for (const vector_entry& v : smoke().manifest.vectors) {
    for (const program::vector_input& in : v.inputs) {
      if (in.name == "cu_seqlens") continue;
      CAPTURE(v.name, in.name);
      REQUIRE(in.exact_in.front() == "F32");
      // What kernels take in fp32 may have 24 bits.
      const std::set<std::string> wide{"g", "A_log", "dt_bias",
                                       "initial_state"};
      if (!wide.contains(in.name)) REQUIRE(in.exact_in.size() == 3);
    }
  }
}

TEST_CASE("all outputs of smoke can be judged, but for a few long sums") {
  std::size_t units = 0;
  std::set<std::string> open;
  for (const vector_entry& v : smoke().manifest.vectors) {
    const bool chunked = v.family != carve::family::value_erase &&
                         v.family != carve::family::full_erase;
    for (const program::vector_output& o : v.outputs) {
      CAPTURE(v.name, o.name);
      REQUIRE(o.units.size() == (chunked ? 5u : 1u));
      for (const auto& [key, by_storage] : o.units) {
        REQUIRE(by_storage.size() == (key.starts_with("tensor-core") ? 2 : 3));
        for (const auto& [storage, unit] : by_storage) {
          ++units;
          if (unit.rms <= o.rms / 10 || o.largest < 1e-30) continue;
          // One number a head, in which errors of all tokens are summed, and
          // only where operands are rounded.
          CAPTURE(key, storage, unit.rms, o.rms);
          REQUIRE((o.name == "dA_log" || o.name == "ddt_bias"));
          REQUIRE((key.starts_with("tensor-core") || key == "tf32"));
          open.insert(v.name + " " + o.name);
        }
      }
    }
  }
  REQUIRE(units > 5000);
  REQUIRE(open.size() <= 6);
}

namespace {

/// The results of a port that computes in the way `w` and stores in `storage`.
st::file results_of(const dump& d, const program::way& w, st::dtype storage,
                    std::vector<std::vector<std::byte>>& kept) {
  const auto r = program::compute(d, w, {1, {}});
  st::writer out;
  for (const judged_tensor& x : d.judged) {
    const auto& y = program::result_named(r, x.name);
    out.add(x.name, storage, {y.shape.begin(), y.shape.end()}, y.data);
  }
  kept.push_back(out.serialize());
  return st::file::parse(kept.back());
}

}  // namespace

TEST_CASE("sound ports pass, those whose errors were not seen too") {
  std::vector<std::vector<std::byte>> kept;
  for (const vector_entry& v : smoke().manifest.vectors) {
    const dump d = smoke().read(v);
    const auto passes = [&](const program::way& w, st::dtype storage,
                            std::optional<carve::profile> as) {
      program::check_settings how;
      how.as = as;
      const program::scored_vector s =
          program::judge_vector(v, st::file::open(smoke().path(v)),
                                results_of(d, w, storage, kept), how);
      for (const auto& t : s.tensors) {
        CAPTURE(v.name, t.name, program::words_of(w), t.errors.ratio,
                t.errors.max_ratio);
        REQUIRE_FALSE(t.fails());
      }
      REQUIRE(s.state == mark::pass);
    };
    // Draws of errors that the units have not seen.
    program::way drawn{carve::profile::ieee_recurrent, 0, {}};
    drawn.draw = 7777, drawn.exp = carve::exponential::approximate;
    passes(drawn, st::dtype::f32, {});
    if (v.family == carve::family::value_erase ||
        v.family == carve::family::full_erase) {
      continue;
    }
    // A chunk length that is none of the ensemble's.
    passes({carve::profile::fp32, 48, {}}, st::dtype::f32, {});
    passes({carve::profile::tensor_core, 48, {carve::format::bf16, false, 0}},
           st::dtype::bf16, {});
  }
}

TEST_CASE("a score says which regimes fail") {
  const fixtures::scratch folder;
  const std::string results = folder / "results";
  std::filesystem::create_directory(results);
  const program::manifest& m = smoke().manifest;
  const std::string suite = smoke().folder / "suite";
  const auto write = [&](const vector_entry& v, double factor,
                         const std::set<std::string>& without = {}) {
    const dump d = smoke().read(v);
    st::writer w;
    for (const judged_tensor& x : d.judged) {
      if (without.contains(x.name)) continue;
      std::vector<double> y = x.values.data;
      if (x.name == "o") {
        for (double& e : y) e *= factor;
      }
      w.add(x.name, st::dtype::f32,
            {x.values.shape.begin(), x.values.shape.end()}, y);
    }
    w.save(results + "/" + v.file);
  };
  program::check_settings how;
  REQUIRE(fixtures::message([&] {
            program::check_suite(m, suite, results, how);
          }).find("found none") != std::string::npos);
  for (const vector_entry& v : m.vectors) write(v, 1);
  REQUIRE(program::check_suite(m, suite, results, how).result() ==
          outcome::pass);

  const vector_entry& first = m.vectors.front();
  std::filesystem::remove(results + "/" + first.file);
  REQUIRE(program::check_suite(m, suite, results, how).result() ==
          outcome::not_judged);
  how.partial = true;
  REQUIRE(program::check_suite(m, suite, results, how).result() ==
          outcome::pass);
  write(first, 1, {"dq"});
  REQUIRE(program::check_suite(m, suite, results, how).result() ==
          outcome::pass);
  how.partial = false;
  program::score s = program::check_suite(m, suite, results, how);
  REQUIRE(s.result() == outcome::not_judged);
  REQUIRE(s.vectors.front().absent == std::vector<std::string>{"dq"});

  for (const vector_entry& v : m.vectors) {
    write(v, v.regime[1] == "strong" ? 1.001 : 1);
  }
  s = program::check_suite(m, suite, results, how);
  REQUIRE(s.result() == outcome::fail);
  std::ostringstream table, json, junit;
  program::write_score(table, s, false);
  program::write_score_json(json, s);
  program::write_score_junit(junit, s);
  REQUIRE(
      table.str().find("all vectors with decay strong fail, and no others") !=
      std::string::npos);
  const auto j = nlohmann::json::parse(json.str());
  REQUIRE(j["verdict"] == "fail");
  REQUIRE(j["regime"]["decay"]["strong"]["pass"] == 0);
  REQUIRE(j["regime"]["decay"]["slow"]["fail"] == 0);
  REQUIRE(j["failing"] == nlohmann::json{"decay strong"});
  const std::size_t failures = j["counts"]["fail"];
  std::size_t counted = 0;
  for (std::size_t at = 0;
       (at = junit.str().find("<failure", at)) != std::string::npos; ++at) {
    ++counted;
  }
  REQUIRE(counted == failures);
  how.only = {{"decay", {"slow", "natural"}}};
  s = program::check_suite(m, suite, results, how);
  REQUIRE(s.result() == outcome::pass);
  REQUIRE(s.vectors.size() < m.vectors.size());
}

TEST_CASE("unusable results and suites say what is wrong with them") {
  const vector_entry& v = smoke().manifest.vectors.front();
  const st::file file = st::file::open(smoke().path(v));
  const auto judged = [&](const st::writer& w,
                          const program::check_settings& how = {}) {
    const std::vector<std::byte> bytes = w.serialize();
    return fixtures::message(
        [&] { program::judge_vector(v, file, st::file::parse(bytes), how); });
  };
  st::writer other;
  other.add("oo", st::dtype::f32, {1}, std::vector<double>{1});
  REQUIRE(judged(other).starts_with("oo: expected outputs among [o,"));
  st::writer shape;
  shape.add("o", st::dtype::f32, {1}, std::vector<double>{1});
  REQUIRE(judged(shape).starts_with("o: expected ["));
  const st::writer nothing;
  REQUIRE(judged(nothing).starts_with("expected one or more of [o,"));
  st::writer whole;
  whole.add("o", st::dtype::f32, file.info("o").shape, file.as_double("o"));
  REQUIRE(judged(whole).empty());
  program::check_settings how;
  how.as = carve::profile::tensor_core;
  REQUIRE(judged(whole, how) ==
          "profile: tensor-core is for inputs of BF16 or F16, got F32");
  how.inputs = st::dtype::bf16;
  REQUIRE(judged(whole, how).empty());
  // Inputs beside the outputs are not looked at.
  whole.add("q", st::dtype::f32, {1}, std::vector<double>{1});
  REQUIRE(judged(whole).empty());

  const fixtures::scratch folder;
  const std::string copy = folder / "copy";
  std::filesystem::copy(smoke().folder / "suite", copy);
  std::string text = content(copy + "/manifest.json");
  const auto complaint = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    carve::write_output(copy + "/manifest.json", changed);
    return fixtures::message([&] { program::read_manifest(copy); });
  };
  REQUIRE(complaint("carve-vectors", "else").find("format: expected carve-v") !=
          std::string::npos);
  REQUIRE(complaint("\"seed\":1,", "").find("seed: missing") !=
          std::string::npos);
  REQUIRE(complaint("\"decay\":\"none\"", "\"decay\":\"some\"")
              .find("decay: expected one of") != std::string::npos);
  REQUIRE(complaint(v.file, "../" + v.file).find("file: expected the name") !=
          std::string::npos);
  REQUIRE(complaint("{", "[").find("expected an object") != std::string::npos);
  carve::write_output(copy + "/manifest.json", text);
  const program::manifest m = program::read_manifest(copy);
  REQUIRE(program::manifest_text(m) == text);
  // A vector that was changed is none of the suite's.
  std::string bytes = content(copy + "/" + v.file);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  carve::write_output(copy + "/" + v.file, bytes);
  REQUIRE(fixtures::message([&] {
            program::check_suite(m, copy, copy, {});
          }).find("expected the digest") != std::string::npos);

  REQUIRE(fixtures::message([] {
            program::selection_of({"decay=fast"}, program::regime_factors());
          }).starts_with("decay: expected one of"));
  REQUIRE(fixtures::message([] {
            program::selection_of({"speed=1"}, program::regime_factors());
          }).starts_with("expected FACTOR=VALUE"));
  REQUIRE(program::selection_of({"widths=K=V,K<V"}, program::regime_factors())
              .at("widths") == std::vector<std::string>{"K=V", "K<V"});
  // No folder with other files is written over.
  const std::string full = folder / "full";
  std::filesystem::create_directory(full);
  carve::write_output(full + "/x", "x");
  REQUIRE(fixtures::message([&] {
            program::write_suite(program::suite_named("smoke"),
                                 {1, {}, {{"family", {"gdn"}}}, {}}, full);
          }).find("expected an empty folder") != std::string::npos);
}

#ifdef CARVE_PROGRAM
namespace {

/// The exit code of the program with these words of a shell.
int exit_code(const std::string& words) {
  const int status = std::system(
      ("'" CARVE_PROGRAM "' " + words + " >/dev/null 2>&1").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST_CASE("the program writes a suite and scores over it") {
  const fixtures::scratch folder;
  const std::string suite = folder / "suite";
  const std::string only = " --only family=delta,kda";
  REQUIRE(exit_code("vectors" + only + " --profile fp32 -o " + suite) == 0);
  // The vectors themselves are the results of a port that is exact.
  const std::string check = "check " + suite + " ";
  REQUIRE(exit_code(check + suite) == 0);
  // Those of another seed are wrong, those of one family alone are not all.
  REQUIRE(exit_code("vectors --seed 2" + only + " --profile fp32 -o " +
                    (folder / "other")) == 0);
  REQUIRE(exit_code(check + (folder / "other")) == 1);
  std::filesystem::create_directory(folder / "kda");
  for (const auto& entry : std::filesystem::directory_iterator(suite)) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with("kda")) continue;
    std::filesystem::copy(entry.path(), folder / ("kda/" + file));
  }
  REQUIRE(exit_code(check + (folder / "kda")) == 3);
  REQUIRE(exit_code(check + (folder / "kda") + " --partial") == 0);
  REQUIRE(exit_code(check + (folder / "kda") + " --only family=kda") == 0);
  REQUIRE(exit_code(check + (folder / "absent")) == 2);
  // A unit that the manifest lacks.
  REQUIRE(exit_code(check + suite + " --profile ieee-recurrent") == 2);
  REQUIRE(exit_code("vectors") == 2);
}
#endif
