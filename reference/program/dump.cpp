#include "program/dump.hpp"

#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "carve/family_name.hpp"

namespace carve::program {

namespace {

namespace st = safetensors;

/// What the tables say of a tensor in a file.
struct file_tensor {
  std::string_view role = "unknown";  // as role_of gives it
  tensor_row row = {};                // of the tensor, or what it belongs to
};

file_tensor described(std::string_view name) {
  const bool derived = name.starts_with('d');
  const std::string_view rest = name.substr(derived ? 1 : 0);
  file_tensor found;
  for (const tensor_row& row : tensors<double>::members()) {
    if (row.name == name) return {"input", row};
    if (derived && row.name == rest) found = {"gradient", row};
  }
  for (const tensor_row& row : outputs<double>::members()) {
    if (row.name == name) return {"output", row};
    if (derived && row.name == rest) found = {"cotangent", row};
  }
  return found;
}

std::string known_tensors() {
  std::string names;
  const auto add = [&](std::string_view before, const auto& rows) {
    for (const tensor_row& row : rows) {
      names += std::string(before) + std::string(row.name) + ", ";
    }
  };
  add("", tensors<double>::members());
  names += "cu_seqlens, ";
  add("", outputs<double>::members());
  add("d", outputs<double>::members());
  names.resize(names.size() - 2);
  return names + " or d with an input's name";
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
      return text ? gate_activation_named(st::printable(*text))
                  : gate_activation::none;
    } catch (const error& e) {
      throw error(key, ": ", e.what());
    }
  }

  decay_activation decay(const std::string& key) const {
    const auto text = find(key);
    try {
      return text ? decay_activation_named(st::printable(*text))
                  : decay_activation::none;
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
  if (given.find("erase_order")) {
    p.erase_reads = given.choice("erase_order", {"before", "after"}, 0) == 0
                        ? erase_order::before_decay
                        : erase_order::after_decay;
  }
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

/// @throws carve::error  unless an output, its cotangent or a gradient has the
///                       shape that it must have.
void check_shape(const dump& d, std::string_view name,
                 const tensor<double>& x) {
  const auto [role, row] = described(name);
  const family_info& f = info(d.in.family);
  std::vector<std::string_view> axes =
      axes_of(row, row.along(f), d.in.state_v_first);
  tensor_shape expected = shape_of(axes, d.size), got = x.shape;
  if (role == "gradient") {
    for (const auto& m : tensors<double>::members()) {
      if (m.name == row.name) expected = (d.in.in.*m.at).shape;
    }
    if (expected.empty()) {
      throw error(name, ": the gradient of ", row.name,
                  ", which the file does not hold");
    }
  }
  if (expected == got) return;
  // The user's own order of axes is the one to speak of.
  if (d.heads_first && row.role == tensor_role::token) {
    std::swap(axes[1], axes[2]);
    std::swap(expected[1], expected[2]), std::swap(got[1], got[2]);
  }
  throw error(name, ": expected ", expected,
              role == "gradient" ? " like " + std::string(row.name)
                                 : " (" + text(axes) + ")",
              ", got ", got);
}

}  // namespace

std::string_view role_of(std::string_view name) {
  return name == "cu_seqlens" ? "input" : described(name).role;
}

bool has_tokens(std::string_view name) {
  const auto [role, row] = described(name);
  return role != "unknown" && row.role == tensor_role::token;
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

  for (const auto& m : outputs<double>::members()) {
    const std::string name = "d" + std::string(m.name);
    if (!file.contains(name)) continue;
    tensor<double> x = read_tensor(file, name, d.heads_first);
    check_shape(d, name, x);
    for (std::size_t i = 0; i < x.data.size(); ++i) {
      if (!std::isfinite(x.data[i])) {
        throw error(name, ": expected finite numbers, got a NaN or an ",
                    "infinity at ", detail::position(x.shape, i));
      }
    }
    d.cotangents.*m.at = std::move(x);
  }

  const auto judge = [&](const std::string& name) {
    if (!file.contains(name)) return;
    if (role_of(name) == "gradient" && !d.has_cotangents()) {
      throw error(name, ": a gradient needs the cotangent it came from: the ",
                  "file holds neither do nor dfinal_state");
    }
    judged_tensor x{name, file.info(name).dtype,
                    read_tensor(file, name, d.heads_first)};
    check_shape(d, name, x.values);
    d.judged.push_back(std::move(x));
  };
  for (const tensor_row& row : outputs<double>::members()) {
    judge(std::string(row.name));
  }
  for (const tensor_row& row : tensors<double>::members()) {
    judge("d" + std::string(row.name));
  }
  return d;
}

}  // namespace carve::program
