#include "program/dump.hpp"

#include <charconv>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

namespace carve::program {

namespace {

namespace st = safetensors;

std::string known_tensors() {
  std::string names;
  for (const auto& m : tensors<double>::members()) {
    names += std::string(m.name) + ", ";
  }
  return names +
         "cu_seqlens, o, final_state, do, dfinal_state or d with an "
         "input's name";
}

/// The input of which `name` is the gradient; empty when it is none.
std::string_view gradient_of(std::string_view name) {
  for (const auto& m : tensors<double>::members()) {
    if (name.size() > 1 && name[0] == 'd' && name.substr(1) == m.name) {
      return m.name;
    }
  }
  return {};
}

/// A setting as the caller or the file gives it.
class settings_reader {
 public:
  settings_reader(const st::file& file, const settings& given)
      : file_(file.metadata()), given_(given) {}

  std::optional<std::string> find(const std::string& key) const {
    for (const settings* from : {&given_, &file_}) {
      if (const auto it = from->find(key); it != from->end()) return it->second;
    }
    return {};
  }

  /// One of `choices`, by its place; brackets, commas and blanks are not
  /// looked at, so that [N,H,K,V] is NHKV.
  std::size_t choice(const std::string& key,
                     const std::vector<std::string>& choices,
                     std::size_t otherwise) const {
    const auto text = find(key);
    if (!text) return otherwise;
    std::string bare;
    for (const char c : *text) {
      if (std::string_view("[], ").find(c) == std::string_view::npos) bare += c;
    }
    for (std::size_t i = 0; i < choices.size(); ++i) {
      if (bare == choices[i]) return i;
    }
    throw error(key, ": expected one of ", choices, ", got \"",
                st::printable(*text), "\"");
  }

  template <class Number>
  std::optional<Number> number(const std::string& key) const {
    const auto text = find(key);
    if (!text) return {};
    Number x{};
    const char* const end = text->data() + text->size();
    const auto [rest, failure] = std::from_chars(text->data(), end, x);
    if (failure != std::errc() || rest != end ||
        !std::isfinite(static_cast<double>(x))) {
      throw error(key, ": expected ",
                  std::is_integral_v<Number> ? "an integer" : "a finite number",
                  ", got \"", st::printable(*text), "\"");
    }
    return x;
  }

  gate_activation gate(const std::string& key) const {
    const auto text = find(key);
    try {
      return text ? gate_activation_named(*text) : gate_activation::none;
    } catch (const error& e) {
      throw error(key, ": ", e.what());
    }
  }

  decay_activation decay(const std::string& key) const {
    const auto text = find(key);
    try {
      return text ? decay_activation_named(*text) : decay_activation::none;
    } catch (const error& e) {
      throw error(key, ": ", e.what());
    }
  }

 private:
  const settings& file_;
  const settings& given_;
};

tensor<double> read_tensor(const st::file& file, std::string_view name,
                           bool heads_first) {
  const st::tensor_info& info = file.info(name);
  if (!st::format_of(info.dtype)) {
    throw error(name, ": expected a floating-point tensor, got ",
                st::dtype_name(info.dtype));
  }
  if (info.elements == 0 || info.shape.empty()) {
    throw error(name, ": expected at least one element on at least one axis, ",
                "got ", st::shape_text(info.shape));
  }
  tensor<double> x({info.shape.begin(), info.shape.end()},
                   file.as_double(name));
  if (!heads_first || !has_tokens(name)) return x;
  if (x.rank() < 3) {
    throw error(name, ": expected [B,H,T] or [B,H,T,D], got ", x.shape);
  }
  return exchange_axes(x);
}

problem<double> read_settings(const settings_reader& given, bool* heads_first) {
  problem<double> p;
  const auto family = given.find("family");
  if (!family) {
    throw error("family: not in the file's metadata; name it by --family");
  }
  p.family = family_named(st::printable(*family));
  p.scale = given.number<double>("scale");
  p.read = given.choice("read_out", {"after", "before"}, 0) == 0
               ? readout::after
               : readout::before;
  *heads_first = given.choice("layout", {"BTHD", "BHTD"}, 0) == 1;
  p.state_v_first =
      given.choice("state_layout", {"NHKV", "NHVKV", "NHVK", "NHVVK"}, 0) >= 2;
  p.window = given.number<std::int64_t>("window").value_or(0);
  p.act.l2norm = given.choice("l2norm", {"false", "true"}, 0) == 1;
  p.act.decay = given.decay("decay_activation");
  p.act.lower_bound =
      given.number<double>("lower_bound").value_or(p.act.lower_bound);
  p.act.beta = given.gate("beta_activation");
  p.act.b = given.gate("b_activation");
  p.act.w = given.gate("w_activation");
  return p;
}

/// Shape that an output must have, and what it is like.
std::pair<tensor_shape, std::string> expected_shape(const dump& d,
                                                    std::string_view name) {
  const dimensions& n = d.size;
  if (name == "o" || name == "do") {
    return {{n.B, n.T, n.HV, n.V}, " ([B,T,HV,V])"};
  }
  if (name == "final_state" || name == "dfinal_state") {
    if (d.in.state_v_first) return {{n.N, n.HV, n.V, n.K}, " ([N,HV,V,K])"};
    return {{n.N, n.HV, n.K, n.V}, " ([N,HV,K,V])"};
  }
  for (const auto& m : tensors<double>::members()) {
    if (m.name != gradient_of(name)) continue;
    const tensor<double>& x = d.in.in.*m.at;
    if (!x.present()) {
      throw error(name, ": the gradient of ", m.name,
                  ", which the file does not hold");
    }
    return {x.shape, " like " + std::string(m.name)};
  }
  throw error(name, ": not the name of an output");
}

void check_shape(const dump& d, std::string_view name,
                 const tensor<double>& x) {
  auto [shape, like] = expected_shape(d, name);
  tensor_shape got = x.shape;
  if (shape == got) return;
  // The user's own order of axes is the one to speak of.
  if (d.heads_first && has_tokens(name)) {
    std::swap(shape[1], shape[2]), std::swap(got[1], got[2]);
    if (like.front() == ' ' && like[1] == '(') like = " ([B,HV,T,V])";
  }
  throw error(name, ": expected ", shape, like, ", got ", got);
}

}  // namespace

std::string_view role_of(std::string_view name) {
  if (name == "cu_seqlens") return "input";
  for (const auto& m : tensors<double>::members()) {
    if (m.name == name) return "input";
  }
  if (name == "o" || name == "final_state") return "output";
  if (name == "do" || name == "dfinal_state") return "cotangent";
  return gradient_of(name).empty() ? "unknown" : "gradient";
}

bool has_tokens(std::string_view name) {
  const std::string_view without =
      role_of(name) == "gradient" ? name.substr(1) : name;
  static const std::set<std::string_view> no_tokens{
      "initial_state", "final_state", "dfinal_state", "w_down",
      "w_up",          "A_log",       "dt_bias",      "cu_seqlens"};
  return !no_tokens.contains(without);
}

dump read_dump(const st::file& file, const settings& given) {
  dump d;
  d.in = read_settings(settings_reader(file, given), &d.heads_first);
  for (const std::string& name : file.names()) {
    if (role_of(name) == "unknown") {
      throw error(st::printable(name), ": unknown tensor; expected ",
                  known_tensors());
    }
  }
  for (const auto& m : tensors<double>::members()) {
    if (file.contains(m.name)) {
      d.in.in.*m.at = read_tensor(file, m.name, d.heads_first);
    }
  }
  if (file.contains("cu_seqlens")) {
    const st::tensor_info& info = file.info("cu_seqlens");
    if (info.shape.size() != 1) {
      throw error("cu_seqlens: expected one axis of N+1 offsets, got ",
                  st::shape_text(info.shape));
    }
    if (st::format_of(info.dtype)) {
      throw error("cu_seqlens: expected I32 or I64, got ",
                  st::dtype_name(info.dtype));
    }
    d.in.cu_seqlens = file.as_int64("cu_seqlens");
    if (d.in.cu_seqlens.empty()) {
      throw error("cu_seqlens: expected at least two offsets, got none");
    }
  }
  d.size = check(d.in);
  // Sizes from a hostile file must not overflow when they are multiplied.
  const dimensions& n = d.size;
  if (static_cast<double>(n.N) * static_cast<double>(n.HV) *
          static_cast<double>(n.K) * static_cast<double>(n.V) >
      1e12) {
    throw error("states of ", n.N, " sequences, ", n.HV, " heads, K ", n.K,
                " and V ", n.V, " are too large");
  }
  d.dtype = file.info("q").dtype;
  for (const char* name : {"k", "v"}) {
    if (file.info(name).dtype != d.dtype) {
      throw error(name, ": expected ", st::dtype_name(d.dtype), " like q, got ",
                  st::dtype_name(file.info(name).dtype));
    }
  }

  const auto cotangent = [&](const char* name) {
    if (!file.contains(name)) return tensor<double>{};
    tensor<double> x = read_tensor(file, name, d.heads_first);
    check_shape(d, name, x);
    for (std::size_t i = 0; i < x.data.size(); ++i) {
      if (!std::isfinite(x.data[i])) {
        throw error(name, ": expected finite numbers, got a NaN or an ",
                    "infinity at ", detail::position(x.shape, i));
      }
    }
    return x;
  };
  d.cotangents = {cotangent("do"), cotangent("dfinal_state")};

  std::vector<std::string> names{"o", "final_state"};
  for (const auto& m : tensors<double>::members()) {
    names.push_back("d" + std::string(m.name));
  }
  for (const std::string& name : names) {
    if (!file.contains(name)) continue;
    if (role_of(name) == "gradient" && !d.has_cotangents()) {
      throw error(name, ": a gradient needs the cotangent it came from: the ",
                  "file holds neither do nor dfinal_state");
    }
    judged_tensor x{name, file.info(name).dtype,
                    read_tensor(file, name, d.heads_first)};
    check_shape(d, name, x.values);
    d.judged.push_back(std::move(x));
  }
  return d;
}

}  // namespace carve::program
