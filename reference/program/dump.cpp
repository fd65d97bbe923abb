#include "program/dump.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>

#include "carve/family_name.hpp"
#include "carve/stage.hpp"

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
  constexpr std::string_view replayed = "replayed.";
  const std::string_view stage =
      name.substr(name.starts_with(replayed) ? replayed.size() : 0);
  for (const stage_row& row : stage_table) {
    if (row.name == stage) return {"stage", {}};
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

  /// One of `choices`, by its place; brackets, commas, blanks and capitals are
  /// not looked at, so that [N,H,K,V] is NHKV and True is true.
  std::size_t choice(const std::string& key,
                     const std::vector<std::string>& choices,
                     std::size_t otherwise) const {
    const auto text = find(key);
    if (!text) return otherwise;
    const auto lower = [](std::string_view s) {
      std::string bare;
      for (const char c : s) {
        if (std::string_view("[], ").find(c) != std::string_view::npos)
          continue;
        bare += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      }
      return bare;
    };
    for (std::size_t i = 0; i < choices.size(); ++i) {
      if (lower(*text) == lower(choices[i])) return i;
    }
    throw error(key, ": expected one of ", choices, ", got \"",
                st::printable(*text), "\"");
  }

  template <class Number>
  std::optional<Number> number(const std::string& key) const {
    const auto text = find(key);
    if (!text || *text == "None" || *text == "none") return {};
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

  /// The words between the commas.
  std::vector<std::string> words(const std::string& key) const {
    std::vector<std::string> out;
    std::string rest = find(key).value_or("");
    std::erase(rest, ' ');
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find(','), rest.size());
      if (end > 0) out.push_back(rest.substr(0, end));
      rest.erase(0, end + 1);
    }
    return out;
  }

  gate_activation gate(const std::string& key) const {
    const auto text = find(key);
    try {
      return text && *text != "None"
                 ? gate_activation_named(st::printable(*text))
                 : gate_activation::none;
    } catch (const error& e) {
      throw error(key, ": ", e.what());
    }
  }

  decay_activation decay(const std::string& key) const {
    const auto text = find(key);
    try {
      return text && *text != "None"
                 ? decay_activation_named(st::printable(*text))
                 : decay_activation::none;
    } catch (const error& e) {
      throw error(key, ": ", e.what());
    }
  }

 private:
  const settings& file_;
  const settings& given_;
};

/// The number of channels of a token tensor that varies along `a`; 0: none.
index_t channels(axis a, const dimensions& n) {
  return a == axis::key ? n.K : a == axis::value ? n.V : 0;
}

/// From names and shapes in the file to those of the table.
class tensor_reader {
 public:
  tensor_reader(const st::file& file, const settings_reader& given, dump& d)
      : file_(file), d_(d), f_(info(d.in.family)) {
    find_names(given);
    find_layout(given);
  }

  bool contains(std::string_view name) const {
    return d_.file_names.contains(name);
  }
  const st::tensor_info& info_of(std::string_view name) const {
    return file_.info(d_.file_names.find(name)->second);
  }
  std::vector<std::int64_t> offsets(std::string_view name) const {
    return file_.as_int64(d_.file_names.find(name)->second);
  }

  /// The tensor as [B,T,H,D].
  tensor<double> read(std::string_view name) const {
    const st::tensor_info& info = info_of(name);
    const tensor_row row = described(name).row;
    if (!st::is_floating(info.dtype)) {
      throw error(name, ": expected a floating-point tensor, got ",
                  st::dtype_name(info.dtype));
    }
    if (info.elements == 0 || info.shape.empty()) {
      throw error(name, ": expected at least one element on at least one axis,",
                  " got ", st::shape_text(info.shape));
    }
    tensor<double> x(shape_in_axes(row, info.shape),
                     file_.as_double(d_.file_names.find(name)->second));
    if (!d_.heads_first || row.role != tensor_role::token) return x;
    if (x.rank() < 3) {
      throw error(name, ": expected [B,H,T] or [B,H,T,D], got ", x.shape);
    }
    return exchange_axes(x);
  }

 private:
  void note(const std::string& text) { d_.notes.push_back(text); }

  void find_names(const settings_reader& given) {
    std::map<std::string, std::string> renamed;
    for (const std::string& pair : given.words("rename")) {
      const std::size_t at = pair.find('=');
      if (at == pair.npos || role_of(pair.substr(at + 1)) == "unknown") {
        throw error("rename: expected FROM=TO with TO one of ", known_tensors(),
                    ", got \"", st::printable(pair), "\"");
      }
      renamed[pair.substr(0, at)] = pair.substr(at + 1);
    }
    const std::vector<std::string> ignored = given.words("ignore");
    for (const std::string& name : file_.names()) {
      const std::string shown = st::printable(name);
      if (std::find(ignored.begin(), ignored.end(), name) != ignored.end()) {
        note(shown + " is left out");
        continue;
      }
      const auto other = renamed.find(name);
      const std::string ours = other == renamed.end() ? name : other->second;
      if (role_of(ours) == "unknown") {
        const st::dtype type = file_.info(name).dtype;
        if (!st::is_floating(type)) {
          note(text(shown, " (", st::dtype_name(type), ") is not looked at"));
          continue;
        }
        throw error(shown, ": unknown tensor; expected ", known_tensors(),
                    "; --ignore ", shown, " leaves it out, --rename ", shown,
                    "=NAME says what it is");
      }
      if (!d_.file_names.emplace(ours, name).second) {
        throw error(ours, ": both ", st::printable(d_.file_names[ours]),
                    " and ", shown, " are called so");
      }
    }
  }

  /// What q and v say of the order of axes.
  void find_layout(const settings_reader& given) {
    d_.layout_given = given.find("layout").has_value();
    if (!contains("q") || !contains("v")) return;  // check() will say
    tensor_shape q = shape_of_file("q"), v = shape_of_file("v");
    if (const auto counts = given.words("heads"); !counts.empty()) {
      index_t heads[2] = {};
      for (std::size_t i = 0; i < 2; ++i) {
        const std::string& word = counts[std::min(i, counts.size() - 1)];
        const auto [rest, failure] =
            std::from_chars(word.data(), word.data() + word.size(), heads[i]);
        if (failure != std::errc() || *rest != '\0' || heads[i] < 1 ||
            counts.size() > 2) {
          throw error("heads: expected H or H,HV, got \"",
                      st::printable(*given.find("heads")), "\"");
        }
      }
      for (const auto& [name, shape, count] :
           {std::tuple{"q", &q, heads[0]}, std::tuple{"v", &v, heads[1]}}) {
        if (shape->size() != 3 || shape->back() % count != 0) {
          throw error(name, ": expected [B,T,H*D] with ", count, " heads, got ",
                      *shape);
        }
      }
      d_.flat_heads = true;
      channels_.H = heads[0], channels_.HV = heads[1];
      channels_.K = q.back() / heads[0], channels_.V = v.back() / heads[1];
      return;
    }
    if (q.empty() || v.empty()) return;
    channels_.K = q.back(), channels_.V = v.back();
    d_.no_batch = q.size() == 3 && v.size() == 3;
    if (d_.no_batch) {
      note(text("q is ", q, ": read as [", d_.heads_first ? "H,T,K" : "T,H,K",
                "], one entry of a batch (--heads for [B,T,H*K])"));
    }
  }

  tensor_shape shape_of_file(std::string_view name) const {
    const auto& shape = info_of(name).shape;
    return {shape.begin(), shape.end()};
  }

  tensor_shape shape_in_axes(const tensor_row& row,
                             const std::vector<std::int64_t>& in_file) const {
    tensor_shape shape(in_file.begin(), in_file.end());
    const axis along = row.along(f_);
    const index_t D = channels(along, channels_);
    if (row.role == tensor_role::token) {
      if (d_.no_batch) shape.insert(shape.begin(), 1);
      // [B,T,H] of a gate for each head is no [B,T,H*D].
      if (d_.flat_heads && shape.size() == 3 && D > 0 &&
          shape.back() % D == 0 &&
          !(row.per_head &&
            (shape.back() == channels_.H || shape.back() == channels_.HV))) {
        shape.back() /= D;
        shape.push_back(D);
      }
    }
    const std::size_t most =
        axes_of(row, f_, along, d_.in.state_v_first).size();
    const auto is_extra = [&] {
      return shape.size() > 1 && shape.back() == 1 &&
             (shape.size() > most ||
              (row.per_head && shape.size() == most && D > 1));
    };
    while (row.role != tensor_role::state && is_extra()) shape.pop_back();
    return shape;
  }

  const st::file& file_;
  dump& d_;
  const family_info& f_;
  dimensions channels_;  // K and V, and H and HV where heads are flat
};

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
  const std::size_t norm = given.choice(
      "l2norm", {"false", "true", "mean", "max", "0", "1", "none", "inside"},
      0);
  p.act.l2norm = norm != 0 && norm != 4 && norm != 6;
  if (norm == 2) p.act.norm = l2_norm::mean;
  if (norm == 3) p.act.norm = l2_norm::maximum;
  p.act.l2_epsilon =
      given.number<double>("l2norm_eps").value_or(p.act.l2_epsilon);
  p.act.domain = static_cast<decay_domain>(
      given.choice("decay_domain", {"log", "log2", "linear"}, 0));
  p.tiled_heads = given.choice("head_order", {"grouped", "tiled"}, 0) == 1;
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
      axes_of(row, f, row.along(f), d.in.state_v_first);
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

index_t length_of(const dump& d, index_t n) {
  const auto& cu = d.in.cu_seqlens;
  if (cu.empty()) return d.size.T;
  const auto i = static_cast<std::size_t>(n);
  return cu[i + 1] - cu[i];
}

index_t rows_a_token(const dump& d, std::string_view name,
                     const tensor_shape& shape) {
  return has_tokens(name) ? shape[1] / d.size.T : 0;
}

namespace {

/// Decays of zero become 2^-115: what is left of a state is then below the last
/// digit of a double-double beside what is written, and its log is still a
/// number that a kernel's sums of logs can hold.
/// @throws carve::error  where the gradient of such a decay is to be judged: a
///                       replay that finds it from the log's cannot.
void replace_zero_decays(dump& d, const tensor_reader& from) {
  if (d.in.act.decay != decay_activation::none) return;
  constexpr double least = -115;
  const double ln2 = std::log(2.0);
  for (const auto& [x, name] :
       {std::pair{&d.in.in.g, "g"}, std::pair{&d.in.in.gd, "gd"}}) {
    const bool linear = d.in.act.domain == decay_domain::linear;
    std::size_t zeros = 0;
    for (double& e : x->data) {
      if (linear ? e != 0 : e != -HUGE_VAL) continue;
      ++zeros;
      e = linear                                  ? std::exp2(least)
          : d.in.act.domain == decay_domain::log2 ? least
                                                  : least * ln2;
    }
    if (zeros > 0 && linear && from.contains("d" + std::string(name))) {
      throw error("d", name, ": the gradient of decays themselves cannot be ",
                  "judged where they are zero, as ", zeros, " of ", name,
                  " are; --ignore d", name, " leaves it out");
    }
    if (zeros > 0) {
      d.notes.push_back(
          text(name, ": ", zeros, " decays of zero are read as 2^-115"));
    }
  }
}

/// Are the logs decays?
void look_at_decays(dump& d, bool domain_given) {
  const std::vector<double>& g = d.in.in.g.data;
  if (domain_given || d.in.act.decay != decay_activation::none || g.empty()) {
    return;
  }
  const auto [least, largest] = std::minmax_element(g.begin(), g.end());
  if (!(*largest > 0)) return;
  if (*least >= 0 && *largest <= 1) {
    throw error("g: expected natural logs of decays, at most 0, got numbers ",
                "from ", *least, " to ", *largest, "; if they are the decays ",
                "themselves: --decay-domain linear (if not: --decay-domain ",
                "log)");
  }
  d.notes.push_back(text("g is up to ", *largest,
                         ": as natural logs these are decays above 1"));
}

/// Rows a token of a tensor: its sub-steps where they are given.
index_t rows_a_token(const dump& d, const tensor<double>& x) {
  const index_t tokens = d.in.in.q.rank() > 1 ? d.in.in.q.dim(1) : 0;
  return tokens > 0 ? std::max<index_t>(x.dim(1) / tokens, 1) : 1;
}

/// Zeros, or decays of one, after the last offset, where a token is nobody's.
/// @returns how many numbers there were others.
std::size_t clear_tail(const dump& d, std::string_view name,
                       tensor<double>& x) {
  const std::vector<std::int64_t>& cu = d.in.cu_seqlens;
  if (cu.empty() || !has_tokens(name) || x.rank() < 2 || x.dim(0) != 1) {
    return 0;
  }
  const index_t each = rows_a_token(d, x);
  if (cu.back() < 0 || cu.back() >= x.dim(1) / each) return 0;
  const std::int64_t end = cu.back() * each;
  const std::size_t from = x.data.size() / static_cast<std::size_t>(x.dim(1)) *
                           static_cast<std::size_t>(end);
  const bool decays = name == "g" || name == "gd";
  const double nothing =
      decays && d.in.act.domain == decay_domain::linear ? 1 : 0;
  std::size_t others = 0;
  for (std::size_t i = from; i < x.data.size(); ++i) {
    if (x.data[i] != 0) ++others;
    x.data[i] = nothing;
  }
  return others;
}

/// What the sizes leave open.
void look_at_sizes(dump& d, const settings_reader& given) {
  const dimensions& n = d.size;
  const auto note = [&](const auto&... parts) {
    d.notes.push_back(text(parts...));
  };
  if (!d.in.cu_seqlens.empty() && d.in.cu_seqlens.back() < n.T) {
    note("the last offset is ", d.in.cu_seqlens.back(), " of T = ", n.T,
         ": the tokens after it are padding, o there is not looked at, ",
         "gradients must be zero");
  }
  const index_t fewer = std::min(n.H, n.VH);
  if (fewer < n.HV && !given.find("head_order")) {
    note("head i reads ", n.H < n.VH ? "query and key" : "value", " head i / ",
         n.HV / fewer, " (--head-order tiled: i % ", fewer, ")");
  }
  if (n.VH < n.HV) {
    note("q has ", n.H, " heads and v ", n.VH, ": there are ", n.HV, " states");
  }
  if (d.layout_given) return;
  if (n.T == n.HV && n.H == n.HV && n.T > 1) {
    note("T = H = ", n.T, ": [B,H,T,D] would fit too; read as [B,T,H,D] ",
         "(--layout BHTD)");
  } else if (n.T < n.H) {
    note("T = ", n.T, " tokens and ", n.H, " heads: is it [B,H,T,D]? ",
         "(--layout BHTD)");
  }
}

}  // namespace

dump first_tokens(const dump& d, index_t tokens) {
  dump first = d;
  const auto cut = [&](std::string_view name, tensor<double>& x) {
    if (!x.present() || !has_tokens(name) || d.size.T <= tokens) return;
    const index_t rows = tokens * rows_a_token(d, x);
    tensor<double> y = x;
    y.shape[1] = rows;
    y.data.clear();
    const std::size_t all = x.data.size() / static_cast<std::size_t>(x.dim(0));
    const std::size_t some = all / static_cast<std::size_t>(x.dim(1)) *
                             static_cast<std::size_t>(rows);
    for (std::size_t from = 0; from < x.data.size(); from += all) {
      const auto at = x.data.begin() + static_cast<std::ptrdiff_t>(from);
      y.data.insert(y.data.end(), at, at + static_cast<std::ptrdiff_t>(some));
    }
    x = std::move(y);
  };
  for (const auto& m : tensors<double>::members()) {
    cut(m.name, first.in.in.*m.at);
  }
  cut("do", first.cotangents.o);
  for (judged_tensor& x : first.judged) cut(x.name, x.values);
  for (std::int64_t& c : first.in.cu_seqlens) c = std::min(c, tokens);
  first.size.T = std::min(first.size.T, tokens);
  return first;
}

tensor<double> in_file_layout(const dump& d, const st::file& file,
                              std::string_view name, tensor<double> x) {
  const auto [role, row] = described(name);
  if (row.role == tensor_role::token && d.heads_first) x = exchange_axes(x);
  if (role == "gradient") {
    const auto& shape = file.info(d.file_names.find(row.name)->second).shape;
    x.shape.assign(shape.begin(), shape.end());
  } else if (row.role == tensor_role::token) {
    if (d.flat_heads) x.shape = {x.dim(0), x.dim(1), x.dim(2) * x.dim(3)};
    if (d.no_batch) x.shape.erase(x.shape.begin());
  }
  return x;
}

dump read_dump(const st::file& file, const settings& given_settings) {
  dump d;
  const settings_reader given(file, given_settings);
  d.in = read_settings(given, &d.heads_first);
  const tensor_reader from(file, given, d);
  if (from.contains("cu_seqlens")) {
    const st::tensor_info& info = from.info_of("cu_seqlens");
    if (info.shape.size() != 1) {
      throw error("cu_seqlens: expected one axis of N+1 offsets, got ",
                  st::shape_text(info.shape));
    }
    if (st::is_floating(info.dtype)) {
      throw error("cu_seqlens: expected I32 or I64, got ",
                  st::dtype_name(info.dtype));
    }
    d.in.cu_seqlens = from.offsets("cu_seqlens");
    if (d.in.cu_seqlens.empty()) {
      throw error("cu_seqlens: expected at least two offsets, got none");
    }
  }
  for (const auto& m : tensors<double>::members()) {
    if (!from.contains(m.name)) continue;
    d.in.in.*m.at = from.read(m.name);
    clear_tail(d, m.name, d.in.in.*m.at);
  }
  replace_zero_decays(d, from);
  look_at_decays(d, given.find("decay_domain").has_value());
  d.size = check(d.in);
  look_at_sizes(d, given);
  // Sizes from a hostile file must not overflow when they are multiplied.
  const dimensions& n = d.size;
  if (static_cast<double>(n.N) * static_cast<double>(n.HV) *
          static_cast<double>(n.K) * static_cast<double>(n.V) >
      1e12) {
    throw error("states of ", n.N, " sequences, ", n.HV, " heads, K ", n.K,
                " and V ", n.V, " are too large");
  }
  d.dtype = from.info_of("q").dtype;
  if (!st::format_of(d.dtype)) {
    throw error("q: expected F64, F32, F16 or BF16, got ",
                st::dtype_name(d.dtype));
  }
  for (const char* name : {"k", "v"}) {
    if (from.info_of(name).dtype != d.dtype) {
      throw error(name, ": expected ", st::dtype_name(d.dtype), " like q, got ",
                  st::dtype_name(from.info_of(name).dtype));
    }
  }

  for (const auto& m : outputs<double>::members()) {
    const std::string name = "d" + std::string(m.name);
    if (!from.contains(name)) continue;
    tensor<double> x = from.read(name);
    check_shape(d, name, x);
    clear_tail(d, name, x);
    for (std::size_t i = 0; i < x.data.size(); ++i) {
      if (!std::isfinite(x.data[i])) {
        throw error(name, ": expected finite numbers, got a NaN or an ",
                    "infinity at ", detail::position(x.shape, i));
      }
    }
    d.cotangents.*m.at = std::move(x);
  }

  const auto judge = [&](const std::string& name) {
    if (!from.contains(name)) return;
    if (role_of(name) == "gradient" && !d.has_cotangents()) {
      throw error(name, ": a gradient needs the cotangent it came from: the ",
                  "file holds neither do nor dfinal_state");
    }
    judged_tensor x{name, from.info_of(name).dtype, from.read(name)};
    if (!st::format_of(x.dtype)) {
      throw error(name, ": expected F64, F32, F16 or BF16, got ",
                  st::dtype_name(x.dtype));
    }
    check_shape(d, name, x.values);
    tensor<double> cleared = x.values;
    const std::size_t others = clear_tail(d, name, cleared);
    if (name == "o") x.values = std::move(cleared);
    if (name != "o" && others > 0) {
      d.notes.push_back(text(name, ": ", others, " numbers after the last ",
                             "offset are not zero"));
    }
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
