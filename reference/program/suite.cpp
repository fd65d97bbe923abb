#include "program/suite.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "carve/family_name.hpp"
#include "carve/version.hpp"
#include "program/console.hpp"
#include "program/digest.hpp"
#include "program/json.hpp"
#include "program/report.hpp"
#include "program/text_table.hpp"

namespace carve::program {

namespace {

namespace st = safetensors;
using json = nlohmann::ordered_json;

constexpr std::string_view format_of_manifest = "carve-vectors";
constexpr int manifest_version = 1;

/// The domain of each gate and decay of a vector, in words.
json domains(const vector_entry& v) {
  json all = json::object();
  const auto setting = [&v](const std::string& key, const char* otherwise) {
    const auto at = v.settings.find(key);
    return at == v.settings.end() ? std::string(otherwise) : at->second;
  };
  for (const vector_input& in : v.inputs) {
    const std::string& n = in.name;
    if (n == "g") all[n] = setting("decay_activation", "log");
    const bool content = info(v.family).content_gate && n == "b";
    if (n == "beta" || n == "b" || n == "w") {
      all[n] = content ? "content_logit" : setting(n + "_activation", "gate");
    }
    if (n == "e" || n == "E" || n == "eta" || n == "w_last") all[n] = "gate";
  }
  return all;
}

json object_of(const manifest& m, const vector_entry& v) {
  json regime = json::object(), inputs = json::object();
  json outputs = json::object();
  for (std::size_t i = 0; i < m.factors.size(); ++i) {
    regime[m.factors[i].first] = v.regime[i];
  }
  for (const vector_input& x : v.inputs) {
    inputs[x.name] = {{"dtype", st::dtype_name(x.dtype)},
                      {"shape", x.shape},
                      {"exact_in", x.exact_in}};
  }
  for (const vector_output& x : v.outputs) {
    json units = json::object();
    for (const auto& [key, by_storage] : x.units) {
      for (const auto& [storage, u] : by_storage) {
        units[key][storage] = {u.rms, u.largest};
      }
    }
    outputs[x.name] = {{"shape", x.shape},
                       {"rms", x.rms},
                       {"largest", x.largest},
                       {"units", units}};
  }
  const bool before = v.erase_reads == erase_order::before_decay;
  return {{"name", v.name},
          {"file", v.file},
          {"bytes", v.bytes},
          {"sha256", v.sha256},
          {"family", info(v.family).name},
          {"regime", regime},
          {"size",
           {{"B", v.size.B},
            {"T", v.size.T},
            {"H", v.size.H},
            {"HV", v.size.HV},
            {"K", v.size.K},
            {"V", v.size.V},
            {"N", v.size.N},
            {"substeps", v.size.substeps}}},
          {"scale", v.scale},
          {"domains", domains(v)},
          {"decay", "before_update"},
          {"erase_reads", before ? "before_decay" : "after_decay"},
          {"read_out", "after_update"},
          {"layout", "BTHD"},
          {"state_layout", "NHKV"},
          {"head_order", "grouped"},
          {"settings", v.settings},
          {"inputs", inputs},
          {"outputs", outputs}};
}

/// A member of an object.
/// @throws carve::error  naming it, where there is none or one of another kind.
template <class T>
T member(const json& object, const std::string& key) {
  const auto at = object.find(key);
  if (at == object.end()) throw error(key, ": missing");
  try {
    return at->get<T>();
  } catch (const json::exception&) {
    throw error(
        key, ": expected another kind of value, got ",
        st::printable(at->dump(-1, ' ', true, json::error_handler_t::replace)));
  }
}

vector_entry entry_of(const json& x, const manifest& m) {
  vector_entry v;
  v.name = member<std::string>(x, "name");
  v.file = member<std::string>(x, "file");
  if (v.name.find('/') != v.name.npos || v.file != v.name + ".safetensors") {
    throw error("file: expected the name with .safetensors after it, got \"",
                st::printable(v.file), "\"");
  }
  try {
    v.bytes = member<std::uint64_t>(x, "bytes");
    v.sha256 = member<std::string>(x, "sha256");
    v.family = family_named(member<std::string>(x, "family"));
    const json regime = member<json>(x, "regime");
    for (const auto& [factor, values] : m.factors) {
      v.regime.push_back(member<std::string>(regime, factor));
      if (std::find(values.begin(), values.end(), v.regime.back()) ==
          values.end()) {
        throw error("regime: ", factor, ": expected one of ", values,
                    ", got \"", st::printable(v.regime.back()), "\"");
      }
    }
    const json size = member<json>(x, "size");
    for (const auto& [key, n] :
         {std::pair{"B", &v.size.B}, std::pair{"T", &v.size.T},
          std::pair{"H", &v.size.H}, std::pair{"HV", &v.size.HV},
          std::pair{"K", &v.size.K}, std::pair{"V", &v.size.V},
          std::pair{"N", &v.size.N}, std::pair{"substeps", &v.size.substeps}}) {
      *n = member<index_t>(size, key);
    }
    v.scale = member<double>(x, "scale");
    if (member<std::string>(x, "erase_reads") == "before_decay") {
      v.erase_reads = erase_order::before_decay;
    }
    v.settings = member<settings>(x, "settings");
    const json inputs = member<json>(x, "inputs");
    for (const auto& [name, in] : inputs.items()) {
      const auto dtype = st::dtype_named(member<std::string>(in, "dtype"));
      if (!dtype) throw error("dtype: expected one of safetensors");
      v.inputs.push_back({name, *dtype, member<tensor_shape>(in, "shape"),
                          member<std::vector<std::string>>(in, "exact_in")});
    }
    const json outputs = member<json>(x, "outputs");
    for (const auto& [name, out] : outputs.items()) {
      vector_output o{name,
                      member<tensor_shape>(out, "shape"),
                      member<double>(out, "rms"),
                      member<double>(out, "largest"),
                      {}};
      const json by_key = member<json>(out, "units");
      for (const auto& [key, units] : by_key.items()) {
        for (const auto& [storage, unit] : units.items()) {
          const auto two = member<std::array<double, 2>>(units, storage);
          if (!(two[0] >= 0 && two[1] >= 0)) {
            throw error("units: expected numbers from zero on");
          }
          o.units[key][storage] = {two[0], two[1]};
        }
      }
      v.outputs.push_back(std::move(o));
    }
  } catch (const error& e) {
    throw error(st::printable(v.name), ": ", e.what());
  }
  return v;
}

std::vector<std::byte> bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> text{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw error(st::printable(path.string()), ": cannot be read");
  std::vector<std::byte> bytes(text.size());
  std::transform(text.begin(), text.end(), bytes.begin(),
                 [](char c) { return static_cast<std::byte>(c); });
  return bytes;
}

const vector_output* output_named(const vector_entry& v,
                                  std::string_view name) {
  for (const vector_output& o : v.outputs) {
    if (o.name == name) return &o;
  }
  return nullptr;
}

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& w : words) all += (all.empty() ? "" : ", ") + w;
  return all;
}

/// An output of which sound ways leave no digit weighs nothing: that is the
/// suite's doing and not the port's.
mark mark_of(const scored_vector& v, bool partial) {
  if (std::any_of(v.tensors.begin(), v.tensors.end(),
                  [](const verdict& t) { return t.fails(); })) {
    return mark::fail;
  }
  return v.absent.empty() || partial ? mark::pass : mark::incomplete;
}

}  // namespace

std::string unit_key(profile as, st::dtype inputs) {
  std::string key(name(as));
  if (as == profile::tensor_core) key += "/" + std::string(dtype_name(inputs));
  return key;
}

std::string manifest_text(const manifest& m) {
  json factors = json::array();
  for (const auto& [name, values] : m.factors) {
    factors.push_back({{"name", name}, {"values", values}});
  }
  const json head{{"format", format_of_manifest},
                  {"version", manifest_version},
                  {"reference", text("carve ", version, ", double-double")},
                  {"suite", m.suite},
                  {"seed", m.seed},
                  {"strength", m.strength},
                  {"factors", factors}};
  // A line for each vector: short, and a difference shows where it is.
  std::string all = head.dump();
  all.back() = ',';
  all += "\n\"vectors\":[";
  for (std::size_t i = 0; i < m.vectors.size(); ++i) {
    all += (i == 0 ? "\n" : ",\n") + object_of(m, m.vectors[i]).dump();
  }
  return all + "\n]}\n";
}

manifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / manifest_name;
  const std::vector<std::byte> bytes = bytes_of(path);
  manifest m;
  try {
    const json all =
        json::parse(reinterpret_cast<const char*>(bytes.data()),
                    reinterpret_cast<const char*>(bytes.data()) + bytes.size(),
                    nullptr, false);
    if (!all.is_object()) throw error("expected an object of JSON");
    const auto form = member<std::string>(all, "format");
    if (form != format_of_manifest) {
      throw error("format: expected ", format_of_manifest, ", got \"",
                  st::printable(form), "\"");
    }
    if (const int v = member<int>(all, "version"); v != manifest_version) {
      throw error("version: expected ", manifest_version, ", got ", v);
    }
    m.suite = member<std::string>(all, "suite");
    m.seed = member<std::uint64_t>(all, "seed");
    m.strength = member<std::size_t>(all, "strength");
    for (const json& f : member<std::vector<json>>(all, "factors")) {
      m.factors.emplace_back(member<std::string>(f, "name"),
                             member<std::vector<std::string>>(f, "values"));
    }
    for (const json& v : member<std::vector<json>>(all, "vectors")) {
      m.vectors.push_back(entry_of(v, m));
    }
  } catch (const error& e) {
    throw error(st::printable(path.string()), ": ", e.what());
  }
  return m;
}

selection selection_of(const std::vector<std::string>& words,
                       const regime_matrix& factors) {
  selection s;
  for (const std::string& word : words) {
    const std::size_t at = word.find('=');
    const std::string factor = word.substr(0, at);
    std::vector<std::string> names;
    const std::vector<std::string>* values = nullptr;
    for (const auto& f : factors) {
      names.push_back(f.first);
      if (f.first == factor) values = &f.second;
    }
    if (!values || at == word.npos) {
      throw error("expected FACTOR=VALUE with a factor among ", names,
                  ", got \"", st::printable(word), "\"");
    }
    std::string rest = word.substr(at + 1);
    // K=V is a value, so a value ends with a comma alone.
    while (true) {
      const std::size_t end = std::min(rest.find(','), rest.size());
      const std::string value = rest.substr(0, end);
      if (std::find(values->begin(), values->end(), value) == values->end()) {
        throw error(factor, ": expected one of ", *values, ", got \"",
                    st::printable(value), "\"");
      }
      s[factor].push_back(value);
      if (end == rest.size()) break;
      rest.erase(0, end + 1);
    }
  }
  return s;
}

bool selected(const selection& s, const std::vector<std::string>& regime,
              const regime_matrix& factors) {
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const auto at = s.find(factors[i].first);
    if (at == s.end()) continue;
    const std::vector<std::string>& any = at->second;
    if (std::find(any.begin(), any.end(), regime[i]) == any.end()) return false;
  }
  return true;
}

std::size_t score::count(mark state) const {
  return static_cast<std::size_t>(std::count_if(
      vectors.begin(), vectors.end(),
      [state](const scored_vector& v) { return v.state == state; }));
}

outcome score::result() const {
  if (count(mark::fail) > 0) return outcome::fail;
  const std::size_t open = count(mark::incomplete) + count(mark::unusable) +
                           (partial ? 0 : count(mark::not_run));
  return open > 0 ? outcome::not_judged : outcome::pass;
}

verdict judge_output(const vector_entry& of, const std::vector<double>& exact,
                     const judged_tensor& x, const std::string& key,
                     const tolerance& limit) {
  const vector_output* const output = output_named(of, x.name);
  if (!output) throw error(x.name, ": not an output of ", of.name);
  const auto by_storage = output->units.find(key);
  if (by_storage == output->units.end()) {
    std::vector<std::string> known;
    for (const auto& [name, units] : output->units) known.push_back(name);
    throw error(x.name, ": the manifest has units of ", known, ", not of ",
                key);
  }
  // Nothing is computed in F64: its unit is that of F32.
  const std::string storage(
      st::dtype_name(x.dtype == st::dtype::f64 ? st::dtype::f32 : x.dtype));
  const auto unit = by_storage->second.find(storage);
  if (unit == by_storage->second.end()) {
    throw error(x.name, ": the manifest has no unit of ", key, " for ",
                storage);
  }
  const std::vector<double_double> y(exact.begin(), exact.end());
  verdict v;
  v.name = x.name, v.dtype = x.dtype, v.shape = x.values.shape;
  v.errors =
      compare(y, x.values.data, unit->second, *st::format_of(x.dtype), limit);
  v.reference_value = exact[v.errors.worst];
  v.actual_value = x.values.data[v.errors.worst];
  return v;
}

scored_vector judge_vector(const vector_entry& of, const st::file& file,
                           const st::file& results, const check_settings& how) {
  dump d = read_dump(file);
  std::vector<std::string> outputs;
  for (const vector_output& o : of.outputs) outputs.push_back(o.name);
  for (const std::string& name : results.names()) {
    if (!file.contains(name)) {
      throw error(st::printable(name), ": expected outputs among ", outputs);
    }
  }
  scored_vector v;
  v.of = &of;
  std::vector<judged_tensor> found;
  for (judged_tensor& exact : d.judged) {
    if (!results.contains(exact.name)) {
      v.absent.push_back(exact.name);
      continue;
    }
    const st::tensor_info& i = results.info(exact.name);
    const auto& shape = file.info(exact.name).shape;
    if (i.shape != shape) {
      throw error(exact.name, ": expected ", st::shape_text(shape), ", got ",
                  st::shape_text(i.shape));
    }
    if (!st::format_of(i.dtype)) {
      throw error(exact.name, ": expected F64, F32, F16 or BF16, got ",
                  st::dtype_name(i.dtype));
    }
    judged_tensor x{
        exact.name, i.dtype,
        tensor<double>(exact.values.shape, results.as_double(exact.name))};
    // Nobody looks at an output beyond the last offset.
    if (x.name == "o" && !d.in.cu_seqlens.empty()) {
      const auto from = static_cast<std::ptrdiff_t>(x.values.data.size()) /
                        d.size.T * d.in.cu_seqlens.back();
      std::fill(x.values.data.begin() + from, x.values.data.end(), 0.0);
    }
    found.push_back(std::move(x));
  }
  if (found.empty()) throw error("expected one or more of ", outputs);
  // The first is o where there is one.
  const st::dtype stored = found.front().dtype;
  d.dtype =
      how.inputs.value_or(stored == st::dtype::f64 ? st::dtype::f32 : stored);
  const profile as = how.as.value_or(implied_profile(d));
  if (as == profile::tensor_core && d.dtype == st::dtype::f32) {
    throw error("profile: tensor-core is for inputs of BF16 or F16, got F32");
  }
  v.unit = unit_key(as, d.dtype);
  for (const judged_tensor& x : found) {
    const auto exact =
        std::find_if(d.judged.begin(), d.judged.end(),
                     [&x](const judged_tensor& y) { return y.name == x.name; });
    v.tensors.push_back(
        judge_output(of, exact->values.data, x, v.unit, how.limit));
  }
  v.state = mark_of(v, how.partial);
  return v;
}

score check_suite(const manifest& m, const std::filesystem::path& folder,
                  const std::filesystem::path& results,
                  const check_settings& how) {
  std::error_code code;
  if (!std::filesystem::is_directory(results, code)) {
    throw error(st::printable(results.string()), ": expected a folder");
  }
  score s{&m, how.limit, how.partial, {}};
  for (const vector_entry& v : m.vectors) {
    if (!selected(how.only, v.regime, m.factors)) continue;
    const std::filesystem::path path = folder / v.file;
    const std::vector<std::byte> bytes = bytes_of(path);
    const std::string digest = sha256(bytes);
    if (digest != v.sha256) {
      throw error(st::printable(path.string()), ": expected the digest ",
                  v.sha256, " of the manifest, got ", digest);
    }
    scored_vector x;
    x.of = &v;
    if (std::filesystem::exists(results / v.file, code)) {
      try {
        x = judge_vector(v, st::file::parse(bytes),
                         st::file::open(results / v.file), how);
      } catch (const error& e) {
        x.state = mark::unusable, x.error = e.what();
      }
    }
    s.vectors.push_back(std::move(x));
  }
  if (s.vectors.empty()) throw error("no vector of the suite is selected");
  if (s.count(mark::not_run) == s.vectors.size()) {
    throw error(st::printable(results.string()),
                ": expected files named as the vectors are, like ",
                s.vectors.front().of->file, ", found none");
  }
  return s;
}

namespace {

constexpr std::pair<mark, std::string_view> mark_names[] = {
    {mark::pass, "pass"},
    {mark::fail, "fail"},
    {mark::incomplete, "incomplete"},
    {mark::unusable, "unusable"},
    {mark::not_run, "not run"}};

std::string_view name_of(mark state) {
  for (const auto& [m, name] : mark_names) {
    if (m == state) return name;
  }
  return "";
}

std::string_view name_of(outcome result) {
  return result == outcome::pass   ? "pass"
         : result == outcome::fail ? "fail"
                                   : "not judged";
}

/// How many vectors with each value of a factor came to what.
std::vector<std::pair<std::string, std::map<mark, std::size_t>>> by_value(
    const score& s, std::size_t factor) {
  std::vector<std::pair<std::string, std::map<mark, std::size_t>>> rows;
  for (const std::string& value : s.suite->factors[factor].second) {
    std::map<mark, std::size_t> counts;
    for (const scored_vector& v : s.vectors) {
      if (v.of->regime[factor] == value) ++counts[v.state];
    }
    if (!counts.empty()) rows.emplace_back(value, std::move(counts));
  }
  return rows;
}

/// The factors of which some values, and no others, make vectors fail.
std::vector<std::string> what_fails(const score& s) {
  std::vector<std::string> found;
  for (std::size_t f = 0; f < s.suite->factors.size(); ++f) {
    std::vector<std::string> failing;
    bool others = false, mixed = false;
    for (auto& [value, counts] : by_value(s, f)) {
      const std::size_t fails = counts[mark::fail], passes = counts[mark::pass];
      if (fails > 0) failing.push_back(value);
      mixed = mixed || (fails > 0 && passes > 0);
      others = others || (fails == 0 && passes > 0);
    }
    if (!failing.empty() && others && !mixed) {
      found.push_back(s.suite->factors[f].first + " " + joined(failing));
    }
  }
  return found;
}

/// The tensor of a vector that is furthest from passing.
const verdict& worst_of(const scored_vector& v) {
  const auto badness = [](const verdict& t) {
    return std::pair(t.fails()  ? 2
                     : t.pass() ? 0
                                : 1,
                     std::isfinite(t.errors.ratio) ? t.errors.ratio : HUGE_VAL);
  };
  return *std::max_element(v.tensors.begin(), v.tensors.end(),
                           [&](const verdict& x, const verdict& y) {
                             return badness(x) < badness(y);
                           });
}

/// Why a vector does not pass.
std::string reason_of(const scored_vector& v, const tolerance& limit) {
  if (v.state == mark::unusable) return v.error;
  if (v.state != mark::fail)
    return "no " + joined(v.absent) + " in the results";
  const verdict& worst = worst_of(v);
  return worst.name + ": " + reason(worst, limit);
}

}  // namespace

void write_score(std::ostream& out, const score& s, bool colour) {
  const std::string green = colour ? "\033[32m" : "";
  const std::string red = colour ? "\033[1;31m" : "";
  const std::string plain = colour ? "\033[0m" : "";
  std::set<std::string> units;
  for (const scored_vector& v : s.vectors) {
    if (!v.unit.empty()) units.insert(v.unit);
  }
  out << "suite " << s.suite->suite << ", seed " << s.suite->seed
      << "; units of " << joined({units.begin(), units.end()}) << "\n\n";
  text_table table({0, 1});
  std::vector<std::string> head{"regime", ""};
  for (const auto& [state, name] : mark_names) head.emplace_back(name);
  table.add(head);
  for (std::size_t f = 0; f < s.suite->factors.size(); ++f) {
    std::string name = s.suite->factors[f].first;
    for (auto& [value, counts] : by_value(s, f)) {
      std::vector<std::string> row{std::exchange(name, ""), value};
      for (const auto& [state, word] : mark_names) {
        row.push_back(counts[state] == 0 ? "" : text(counts[state]));
      }
      table.add(std::move(row));
    }
  }
  table.write(out);
  out << '\n';
  for (const scored_vector& v : s.vectors) {
    if (v.state == mark::pass || v.state == mark::not_run) continue;
    const bool bad = v.state != mark::incomplete;
    out << (bad ? red : "") << name_of(v.state) << (bad ? plain : "") << "  "
        << v.of->name << ": " << fit_for_terminal(reason_of(v, s.limit))
        << '\n';
  }
  std::vector<std::string> open;
  for (const scored_vector& v : s.vectors) {
    for (const verdict& t : v.tensors) {
      if (!t.pass() && !t.fails()) open.push_back(v.of->name + " " + t.name);
    }
  }
  if (!open.empty()) {
    out << wrapped("in this profile sound ways leave no digit of " +
                       joined(open) + ", which do not count",
                   80, 2)
        << '\n';
  }
  for (const std::string& values : what_fails(s)) {
    out << wrapped("all vectors with " + values + " fail, and no others", 80, 2)
        << '\n';
  }
  std::vector<std::string> totals;
  for (const auto& [state, name] : mark_names) {
    totals.push_back(text(s.count(state), " ", name));
  }
  const outcome result = s.result();
  out << (result == outcome::pass   ? green
          : result == outcome::fail ? red
                                    : "")
      << name_of(result) << (result == outcome::not_judged ? "" : plain) << "  "
      << s.vectors.size() << " vectors: " << joined(totals) << '\n';
}

void write_score_json(std::ostream& out, const score& s) {
  json counts = json::object(), regime = json::object(),
       vectors = json::array();
  for (const auto& [state, name] : mark_names) counts[name] = s.count(state);
  for (std::size_t f = 0; f < s.suite->factors.size(); ++f) {
    for (auto& [value, of_value] : by_value(s, f)) {
      json& row = regime[s.suite->factors[f].first][value];
      for (const auto& [state, name] : mark_names) row[name] = of_value[state];
    }
  }
  for (const scored_vector& v : s.vectors) {
    json row{{"name", v.of->name}, {"verdict", name_of(v.state)}};
    if (v.state != mark::pass && v.state != mark::not_run) {
      row["reason"] = reason_of(v, s.limit);
    }
    if (!v.unit.empty()) row["unit"] = v.unit;
    json tensors = json::array();
    for (const verdict& t : v.tensors) {
      json x{{"name", t.name},
             {"dtype", st::dtype_name(t.dtype)},
             {"rel_rms", json_number(t.errors.rel_rms)},
             {"unit_rel_rms", json_number(t.errors.unit_rel_rms)},
             {"ratio", json_number(t.errors.ratio)},
             {"max_ratio", json_number(t.errors.max_ratio)},
             {"verdict", t.fails()  ? "fail"
                         : t.pass() ? "pass"
                                    : "not judged"}};
      if (!t.pass()) x["reason"] = reason(t, s.limit);
      tensors.push_back(std::move(x));
    }
    row["tensors"] = std::move(tensors);
    row["absent"] = v.absent;
    vectors.push_back(std::move(row));
  }
  const json all{{"verdict", name_of(s.result())},
                 {"suite", s.suite->suite},
                 {"seed", s.suite->seed},
                 {"threshold", s.limit.rms},
                 {"max_threshold", s.limit.largest},
                 {"counts", counts},
                 {"failing", what_fails(s)},
                 {"regime", regime},
                 {"vectors", vectors}};
  out << json_text(all) << '\n';
}

void write_score_junit(std::ostream& out, const score& s) {
  out << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n";
  for (const scored_vector& v : s.vectors) {
    const std::string suite = xml_quoted("carve." + v.of->name);
    std::string cases;
    std::size_t failures = 0, errors = 0, skipped = 0, tests = 0;
    const auto add = [&](const std::string& name, const char* element,
                         const std::string& message) {
      ++tests;
      cases += "    <testcase classname=" + suite + " name=" + xml_quoted(name);
      cases += element == nullptr ? "/>\n"
                                  : ">\n      <" + std::string(element) +
                                        " message=" + xml_quoted(message) +
                                        "/>\n    </testcase>\n";
    };
    if (v.state == mark::unusable) add("file", "error", v.error), ++errors;
    for (const verdict& t : v.tensors) {
      const bool fails = t.fails();
      (fails ? failures : skipped) += t.pass() ? 0 : 1;
      add(t.name,
          t.pass() ? nullptr
          : fails  ? "failure"
                   : "skipped",
          reason(t, s.limit));
    }
    if (v.state == mark::not_run) {
      for (const vector_output& o : v.of->outputs) {
        add(o.name, "skipped", "not run"), ++skipped;
      }
    }
    for (const std::string& name : v.absent) {
      add(name, "skipped", "not in the results"), ++skipped;
    }
    out << "  <testsuite name=" << suite << " tests=\"" << tests
        << "\" failures=\"" << failures << "\" errors=\"" << errors
        << "\" skipped=\"" << skipped << "\">\n"
        << cases << "  </testsuite>\n";
  }
  out << "</testsuites>\n";
}

}  // namespace carve::program
