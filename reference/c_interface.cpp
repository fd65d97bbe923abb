/// @file
/// How does carve.h reach the library?  Tensors and settings become a file in
/// memory, which is read as any dump is; what is thrown becomes a status.
#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "c_status.hpp"
#include "carve/carve.h"
#include "carve/family_name.hpp"
#include "carve/version.hpp"
#include "output.hpp"
#include "program/dump.hpp"
#include "program/locate.hpp"
#include "program/relation.hpp"
#include "program/report.hpp"
#include "program/stages.hpp"
#include "program/verify.hpp"

struct carve_report {
  carve_verdict verdict;
  std::string table, json, heat_map;
};

namespace carve::program {

namespace {

namespace st = safetensors;
using json = nlohmann::ordered_json;

/// In the order of carve_dtype.
constexpr std::array dtypes{
    st::dtype::f64,     st::dtype::f32,     st::dtype::f16, st::dtype::bf16,
    st::dtype::f8_e4m3, st::dtype::f8_e5m2, st::dtype::i64, st::dtype::i32};
static_assert(dtypes[CARVE_I32] == st::dtype::i32);

/// Settings that a call takes beside those of a dump.
constexpr std::array call_table{
    setting{"threads", "N", "how many to use (default: all cores)"},
    setting{"precision", "P", "of forward and backward: double, dd, 50 or 100"},
    setting{"profile", "P",
            "of verify: tensor-core, tf32, fp32 or ieee-recurrent"},
    setting{"chunk", "C", "of verify and stages: the kernel's chunk length"},
    setting{"exp", "E", "of verify: its e^x: rounded, exp2 or approx"},
    setting{"seed", "N", "of verify: of the draws of errors"},
    setting{"threshold", "R", "of verify: RMS error allowed"},
    setting{"max_threshold", "R", "of verify: largest error allowed"},
    setting{"bitlike", "D", "of verify: distance from the replay allowed"},
    setting{"strict", "BOOL",
            "of verify: not judged where the inputs leave something untested"},
    setting{"diagnose", "BOOL",
            "of verify: look for the mistake that explains a failure (default: "
            "where that takes no more than about a minute of one core)"},
};

template <class Table>
bool knows(const Table& table, std::string_view key) {
  return std::any_of(table.begin(), table.end(),
                     [&](const setting& s) { return s.key == key; });
}

st::memory_tensor memory_of(const carve_tensor& t) {
  const std::string name = &given(t.name, "name of a tensor");
  if (static_cast<std::size_t>(t.dtype) >= dtypes.size()) {
    throw error(st::printable(name), ": expected a dtype of carve_dtype, got ",
                static_cast<int>(t.dtype));
  }
  st::memory_tensor m{name, dtypes[t.dtype], {}, {}, nullptr};
  if (t.rank > st::max_rank) {
    throw error(st::printable(name), ": expected at most ", st::max_rank,
                " axes, got ", t.rank);
  }
  if (t.rank > 0) {
    const std::int64_t* shape = &given(t.shape, "shape of a tensor");
    m.shape.assign(shape, shape + t.rank);
    if (t.strides) m.strides.assign(t.strides, t.strides + t.rank);
  }
  m.data = static_cast<const std::byte*>(t.data);
  return m;
}

/// Tensors and settings of a call.
class call {
 public:
  /// @param[in] outputs  whether outputs and gradients are looked at.
  call(const carve_tensor* tensors, std::size_t tensor_count,
       const carve_setting* pairs, std::size_t count, bool cotangents,
       bool outputs)
      : file_(st::file::of({}, {})) {
    for (std::size_t i = 0; i < count; ++i) {
      const carve_setting& s = (&given(pairs, "settings"))[i];
      const std::string key = &given(s.key, "key of a setting");
      const std::string value = &given(s.value, key.c_str());
      if (!knows(settings_table, key) && !knows(call_table, key)) {
        std::string known;
        for (const setting& k : settings_table) {
          known += std::string(k.key) + ", ";
        }
        for (const setting& k : call_table) known += std::string(k.key) + ", ";
        known.resize(known.size() - 2);
        throw error(st::printable(key), ": unknown setting; expected ", known);
      }
      if (!settings_.emplace(key, value).second) {
        throw error(key, ": is already among the settings");
      }
    }
    if (!settings_.contains("family")) {
      throw error("family: missing; expected one of ", names_of_families());
    }
    std::vector<st::memory_tensor> all;
    for (std::size_t i = 0; i < tensor_count; ++i) {
      all.push_back(memory_of((&given(tensors, "tensors"))[i]));
      const std::string_view role = role_of(all.back().name);
      if ((!cotangents && role == "cotangent") ||
          (!outputs && (role == "output" || role == "gradient"))) {
        all.pop_back();
      }
    }
    file_ = st::file::of(all, settings_);
    dump_ = read_dump(file_);
  }

  const dump& problem() const { return dump_; }
  const st::file& file() const { return file_; }

  std::string text(const std::string& key, std::string_view otherwise) const {
    const auto found = settings_.find(key);
    return found == settings_.end() ? std::string(otherwise) : found->second;
  }

  /// A positive number, where it is given.
  template <class Number>
  std::optional<Number> find(const std::string& key, Number most) const {
    const auto found = settings_.find(key);
    if (found == settings_.end()) return {};
    const std::string& s = found->second;
    Number x{};
    const auto [rest, failure] =
        std::from_chars(s.data(), s.data() + s.size(), x);
    if (failure != std::errc() || rest != s.data() + s.size() ||
        !(x > 0 && x <= most)) {
      throw error(key, ": expected a positive number up to ", most, ", got \"",
                  st::printable(s), "\"");
    }
    return x;
  }

  template <class Number>
  Number number(const std::string& key, Number otherwise, Number most) const {
    return find(key, most).value_or(otherwise);
  }

  bool choice(const std::string& key) const {
    const std::string s = text(key, "false");
    if (s == "true" || s == "false") return s == "true";
    throw error(key, ": expected true or false, got \"", st::printable(s),
                "\"");
  }

  run_settings run() const { return {number("threads", 0u, 4096u), {}}; }

  /// An output or a gradient in the layout of the inputs.
  tensor<double> laid_out(const std::string& name, tensor<double> x) const {
    return in_file_layout(dump_, file_, name, std::move(x));
  }

  /// Its shape there.
  tensor_shape shape_of_result(const std::string& name) const {
    for (const auto& m : outputs<double>::members()) {
      if (m.name != name) continue;
      const family_info& f = info(dump_.in.family);
      const auto axes = axes_of(m, f, m.along(f), dump_.in.state_v_first);
      return laid_out(name, tensor<double>(shape_of(axes, dump_.size))).shape;
    }
    for (const auto& m : carve::tensors<double>::members()) {
      if ("d" + std::string(m.name) != name) continue;
      if (!(dump_.in.in.*m.at).present()) {
        throw error(name, ": the gradient of ", m.name, ", which is not given");
      }
      return laid_out(name, dump_.in.in.*m.at).shape;
    }
    throw error(st::printable(name),
                ": expected o, final_state or d before an input's name");
  }

 private:
  static std::vector<std::string_view> names_of_families() {
    std::vector<std::string_view> names;
    for (const family_info& f : families) names.push_back(f.name);
    return names;
  }

  settings settings_;
  st::file file_;
  dump dump_;
};

/// Where a result goes, looked at before the work.
class destination {
 public:
  destination(const carve_tensor& t, const call& c) : to_(memory_of(t)) {
    const tensor_shape expected = c.shape_of_result(to_.name);
    if (tensor_shape(to_.shape.begin(), to_.shape.end()) != expected) {
      throw error(to_.name, ": expected ", expected, ", got ",
                  st::shape_text(to_.shape));
    }
    if (!st::format_of(to_.dtype)) {
      throw error(to_.name, ": expected F64, F32, F16 or BF16, got ",
                  st::dtype_name(to_.dtype));
    }
    if (!to_.strides.empty() && to_.strides.size() != to_.shape.size()) {
      throw error(to_.name, ": expected as many strides as axes");
    }
    for (std::size_t a = 0; a < to_.strides.size(); ++a) {
      if (to_.strides[a] == 0 && to_.shape[a] > 1) {
        throw error(to_.name, ": expected an element for each result, got a ",
                    "stride of 0 along axis ", a);
      }
    }
    data_ = static_cast<std::byte*>(&given(static_cast<std::byte*>(t.data),
                                           ("data of " + to_.name).c_str()));
  }

  const std::string& name() const { return to_.name; }

  /// The result as it is to be stored.
  void take(const call& c, const tensor<double_double>& x) {
    const format f = *st::format_of(to_.dtype);
    const tensor<double> y = c.laid_out(
        to_.name,
        convert<double>(x, [f](double_double e) { return rounded(f, e); }));
    bytes_ = st::encoded(to_.name, to_.dtype, y.data);
    at_.resize(to_.shape.size());
    steps_ = to_.steps();
  }

  /// Stores it; cannot fail.
  void write() noexcept {
    const std::size_t item = st::item_size(to_.dtype);
    for (std::size_t from = 0; from < bytes_.size(); from += item) {
      std::int64_t offset = 0;
      for (std::size_t a = 0; a < at_.size(); ++a) offset += at_[a] * steps_[a];
      std::memcpy(data_ + offset * static_cast<std::int64_t>(item),
                  &bytes_[from], item);
      for (std::size_t a = at_.size(); a-- > 0 && ++at_[a] == to_.shape[a];) {
        at_[a] = 0;
      }
    }
  }

 private:
  st::memory_tensor to_;
  std::byte* data_ = nullptr;
  std::vector<std::byte> bytes_;
  std::vector<std::int64_t> at_, steps_;
};

void solve(const call& c, const carve_tensor* results,
           std::size_t result_count) {
  std::vector<destination> to;
  for (std::size_t i = 0; i < result_count; ++i) {
    to.emplace_back((&given(results, "results"))[i], c);
    if (role_of(to.back().name()) == "gradient" &&
        !c.problem().has_cotangents()) {
      throw error(to.back().name(), ": a gradient needs the cotangent it ",
                  "comes from: neither do nor dfinal_state is given");
    }
  }
  const gradient_result<double_double> r =
      exact_result(c.problem(), c.text("precision", "dd"), c.run());
  for (destination& d : to) d.take(c, result_named(r, d.name()));
  for (destination& d : to) d.write();
}

json tables() {
  json all{{"version", version},
           {"families", json::array()},
           {"outputs", json::array()},
           {"settings", json::array()}};
  const auto row_of = [](const tensor_row& row, const family_info& f) {
    json axes = json::array();
    for (const std::string_view a : axes_of(row, f, row.along(f))) {
      axes.push_back(a);
    }
    return json{{"name", row.name},
                {"axes", axes},
                {"meaning", row.meaning},
                {"required", required(row, f)}};
  };
  for (const family_info& f : families) {
    json one{{"name", f.name},
             {"title", f.title},
             {"aliases", f.aliases},
             {"tensors", json::array()}};
    for (const tensor_row& row : carve::tensors<double>::members()) {
      if (row.along(f) == axis::none) continue;
      one["tensors"].push_back(row_of(row, f));
    }
    all["families"].push_back(std::move(one));
  }
  for (const tensor_row& row : outputs<double>::members()) {
    json one = row_of(row, families[0]);
    one.erase("required");
    all["outputs"].push_back(std::move(one));
  }
  const auto add = [&all](const auto& table, bool in_dump) {
    for (const setting& s : table) {
      all["settings"].push_back(
          {{"key", s.key}, {"help", s.help}, {"in_dump", in_dump}});
    }
  };
  add(settings_table, true);
  add(call_table, false);
  return all;
}

}  // namespace

}  // namespace carve::program

namespace program = carve::program;

const char* carve_version(void) { return carve::version.data(); }

const char* carve_last_error(void) { return program::last_error().c_str(); }

const char* carve_tables(void) {
  const char* text = nullptr;
  program::guarded([&text] {
    static const std::string once = program::tables().dump(1);
    text = once.c_str();
  });
  return text;
}

carve_status carve_result_shape(const carve_tensor* tensors,
                                size_t tensor_count,
                                const carve_setting* settings,
                                size_t setting_count, const char* name,
                                int64_t* shape, size_t* rank) {
  return program::guarded([&] {
    const program::call c(tensors, tensor_count, settings, setting_count, true,
                          false);
    const carve::tensor_shape found =
        c.shape_of_result(&program::given(name, "name"));
    std::copy(found.begin(), found.end(), &program::given(shape, "shape"));
    program::given(rank, "rank") = found.size();
  });
}

carve_status carve_forward(const carve_tensor* tensors, size_t tensor_count,
                           const carve_setting* settings, size_t setting_count,
                           const carve_tensor* results, size_t result_count) {
  return program::guarded([&] {
    const program::call c(tensors, tensor_count, settings, setting_count, false,
                          false);
    program::solve(c, results, result_count);
  });
}

carve_status carve_backward(const carve_tensor* tensors, size_t tensor_count,
                            const carve_setting* settings, size_t setting_count,
                            const carve_tensor* results, size_t result_count) {
  return program::guarded([&] {
    const program::call c(tensors, tensor_count, settings, setting_count, true,
                          false);
    if (!c.problem().has_cotangents()) {
      throw carve::error("do: expected do or dfinal_state, got neither");
    }
    program::solve(c, results, result_count);
  });
}

carve_status carve_save(const carve_tensor* tensors, size_t tensor_count,
                        const carve_setting* settings, size_t setting_count,
                        const char* path) {
  return program::guarded([&] {
    carve::safetensors::writer w;
    for (size_t i = 0; i < setting_count; ++i) {
      const carve_setting& s = (&program::given(settings, "settings"))[i];
      const std::string key = &program::given(s.key, "key of a setting");
      w.set_metadata(key, &program::given(s.value, key.c_str()));
    }
    std::vector<carve::safetensors::memory_tensor> all;
    for (size_t i = 0; i < tensor_count; ++i) {
      all.push_back(
          program::memory_of((&program::given(tensors, "tensors"))[i]));
    }
    const auto file = carve::safetensors::file::of(all, {});
    for (const auto& t : all) {
      w.add_bytes(t.name, t.dtype, t.shape, file.bytes(t.name));
    }
    w.save(&program::given(path, "path"));
  });
}

carve_status carve_verify(const carve_tensor* tensors, size_t tensor_count,
                          const carve_setting* settings, size_t setting_count,
                          carve_report** report) {
  return program::guarded([&] {
    program::given(report, "report") = nullptr;
    const program::call c(tensors, tensor_count, settings, setting_count, true,
                          true);
    constexpr double most = 1e300;
    program::verify_settings how;
    if (const std::string as = c.text("profile", ""); !as.empty()) {
      how.facts.as = carve::profile_named(as);
    }
    if (const std::string exp = c.text("exp", ""); !exp.empty()) {
      how.facts.exp = carve::exponential_named(exp);
    }
    how.facts.chunk = c.find("chunk", carve::index_t{65536});
    how.facts.seed = c.number("seed", how.facts.seed, 1000000u);
    how.bitlike = c.find("bitlike", most);
    how.strict = c.choice("strict");
    how.limit.rms = c.number("threshold", how.limit.rms, most);
    how.limit.largest = c.number("max_threshold", how.limit.largest, most);
    how.run = c.run();
    program::verification v = program::verify(c.problem(), how);
    v.file = c.text("family", ""), v.notes = c.problem().notes;
    std::ostringstream table, json;
    program::judged_file judged{v.file, {}, {}, {}};
    const bool asked = c.choice("diagnose");
    if (v.result() == program::outcome::fail &&
        (asked || (c.text("diagnose", "").empty() &&
                   program::seconds_to_diagnose(c.problem()) <=
                       program::unasked_seconds))) {
      judged.why = program::diagnose(c.problem(), v, how.run);
    }
    program::write_table(table, v, false);
    if (judged.why) {
      table << '\n';
      program::write_diagnosis(table, *judged.why, 80, false);
    }
    judged.outcome = v;
    program::write_json(json, {judged});
    const program::verdict* const worst = v.worst();
    *report = new carve_report{
        v.result() == program::outcome::pass   ? CARVE_PASS
        : v.result() == program::outcome::fail ? CARVE_FAIL
                                               : CARVE_NOT_JUDGED,
        table.str(), json.str(),
        worst ? program::heat_map(worst->map, worst->name) : ""};
  });
}

carve_status carve_relate(const char* relation, const carve_dump* dumps,
                          size_t dump_count, carve_report** report) {
  return program::guarded([&] {
    program::given(report, "report") = nullptr;
    const program::relation& r =
        program::relation_named(&program::given(relation, "relation"));
    std::vector<program::related_dump> all;
    program::run_settings run;
    for (size_t i = 0; i < dump_count; ++i) {
      const carve_dump& x = (&program::given(dumps, "dumps"))[i];
      const program::call c(x.tensors, x.tensor_count, x.settings,
                            x.setting_count, true, true);
      if (i == 0) run = c.run();
      all.push_back(program::read_related(c.file()));
      all.back().path = &program::given(x.name, "name of a dump");
    }
    const program::relation_outcome found = program::relate(r, all, {}, run);
    std::ostringstream table, json;
    program::write_relation(table, found);
    program::write_relation_json(json, found);
    using kind = program::agreement::kind;
    const kind is = found.is();
    *report = new carve_report{is == kind::apart       ? CARVE_FAIL
                               : is == kind::undecided ? CARVE_NOT_JUDGED
                                                       : CARVE_PASS,
                               table.str(), json.str(), ""};
  });
}

carve_status carve_stages(const carve_tensor* tensors, size_t tensor_count,
                          const carve_setting* settings, size_t setting_count,
                          const char* path, carve_report** report) {
  return program::guarded([&] {
    program::given(report, "report") = nullptr;
    const program::call c(tensors, tensor_count, settings, setting_count, true,
                          true);
    const program::dump& d = c.problem();
    const carve::index_t C =
        c.find("chunk", carve::index_t{65536})
            .value_or(program::chunk_of(d, c.file()).value_or(64));
    const auto all = program::stages_of(d, C, c.run());
    const auto v = program::judge_stages(d, c.file(), C, all);
    if (v.stages.empty() && !path) {
      throw carve::error("no stage to judge, and no path to write them to");
    }
    if (path) program::stages_file(d, c.file(), {}, C, all).save(path);
    std::ostringstream table, json;
    program::write_stages(table, v);
    program::write_stages_json(json, v);
    const program::outcome is = v.result();
    *report =
        new carve_report{is == program::outcome::pass   ? CARVE_PASS
                         : is == program::outcome::fail ? CARVE_FAIL
                                                        : CARVE_NOT_JUDGED,
                         table.str(), json.str(), ""};
  });
}

carve_verdict carve_report_verdict(const carve_report* report) {
  return report ? report->verdict : CARVE_NOT_JUDGED;
}

const char* carve_report_table(const carve_report* report) {
  return report ? report->table.c_str() : "";
}

const char* carve_report_json(const carve_report* report) {
  return report ? report->json.c_str() : "";
}

const char* carve_report_heat_map(const carve_report* report) {
  return report ? report->heat_map.c_str() : "";
}

void carve_report_free(carve_report* report) { delete report; }
