#include "program/vectors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "carve/drawn.hpp"
#include "carve/parallel.hpp"
#include "output.hpp"
#include "program/diagnose.hpp"
#include "program/digest.hpp"

namespace carve::program {

namespace {

namespace st = safetensors;

/// The factors, in the order of regime_factors().
enum factor : std::size_t {
  of_family,
  of_decay,
  of_gates,
  of_keys,
  of_length,
  of_end,
  of_start,
  of_packing,
  of_heads,
  of_widths,
  of_front,
  of_values,
};

bool has_gates(const family_info& f) {
  return f.erase != axis::none || f.write != axis::none ||
         f.direction == erase_direction::given;
}

/// One value of a factor cannot stand beside one of another.
struct constraint {
  factor f;
  std::string_view value;  ///< empty: any
  factor g;
  std::string_view other;
  /// For which families; null: all. f or g is then of_family.
  bool (*families)(const family_info&) = nullptr;
};

bool lacks_decay(const family_info& f) { return f.decay == axis::none; }
bool lacks_gates(const family_info& f) { return !has_gates(f); }
bool reads_content(const family_info& f) { return f.content_gate; }

/// What no problem can be: the one place that says it.
constexpr constraint constraints[] = {
    // A family decays or does not, and has gates or none.
    {of_family, "", of_decay, "slow", lacks_decay},
    {of_family, "", of_decay, "natural", lacks_decay},
    {of_family, "", of_decay, "strong", lacks_decay},
    {of_family, "", of_decay, "-200", lacks_decay},
    {of_family, "", of_gates, "0", lacks_gates},
    {of_family, "", of_gates, "1", lacks_gates},
    {of_family, "", of_gates, "interior", lacks_gates},
    {of_family, "", of_gates, "doubled", lacks_gates},
    {of_family, "", of_gates, "absent", has_gates},
    // The content gate is a sigmoid and is not doubled.
    {of_family, "", of_gates, "doubled", reads_content},
    // One token is one token.
    {of_length, "1", of_end, "below"},
    {of_length, "1", of_end, "above"},
    // What erases takes nothing back exactly; and there must be a state to lose
    // in the middle, after the last chunk of 64 but one.
    {of_family, "", of_values, "cancelling", has_gates},
    {of_length, "1", of_values, "cancelling"},
    {of_length, "16", of_values, "cancelling"},
    {of_length, "32", of_values, "cancelling"},
    {of_length, "64", of_values, "cancelling"},
    // A bounded decay is at least its bound, -5, and never one.
    {of_decay, "none", of_front, "bounded"},
    {of_decay, "-200", of_front, "bounded"},
};

/// A source of integers: a function of a key and a counter and of nothing else.
class numbers {
 public:
  numbers(std::uint64_t seed, std::string_view vector, std::string_view tensor)
      : key_(seed * golden) {
    for (const std::string_view word :
         {vector, std::string_view("/"), tensor}) {
      for (const char c : word) {
        key_ = carve::detail::scrambled(key_ ^ static_cast<unsigned char>(c));
      }
    }
  }

  /// Uniform from zero to n - 1.
  std::int64_t below(std::int64_t n) {
    const std::uint64_t bits =
        carve::detail::scrambled(key_ + ++counter_ * golden) >> 32;
    return static_cast<std::int64_t>(bits * static_cast<std::uint64_t>(n) >>
                                     32);
  }
  /// Uniform in [low, high].
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + below(high - low + 1);
  }

 private:
  static constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;
  std::uint64_t key_, counter_ = 0;
};

/// The largest integer whose square is at most x.
std::int64_t root(std::int64_t x) {
  std::int64_t y = 0;
  for (std::int64_t bit = std::int64_t{1} << 31; bit > 0; bit >>= 1) {
    if ((y + bit) * (y + bit) <= x) y += bit;
  }
  return y;
}

/// x / y to the nearest integer, halves away from zero; y > 0.
std::int64_t divided(std::int64_t x, std::int64_t y) {
  return x < 0 ? -((-x + y / 2) / y) : (x + y / 2) / y;
}

/// The nearest integer of eight significant bits.
std::int64_t of_8_bits(std::int64_t x) {
  std::int64_t step = 1;
  while (std::abs(x) > 256 * step) step *= 2;
  return divided(x, step) * step;
}

/// A vector in units of 1/256.
using integers = std::vector<std::int64_t>;

/// A vector in that direction, of length about one.
integers unit_length(integers x) {
  std::int64_t sum = 0;
  for (const std::int64_t e : x) sum += e * e;
  if (sum == 0) x[0] = sum = 1;
  const std::int64_t norm = root(sum * 65536);  // in units of 1/256
  for (std::int64_t& e : x) e = divided(e * 65536, norm);
  return x;
}

/// A direction near to uniform: sums of four have nearly a bell's shape.
integers direction(numbers& draw, index_t width) {
  integers x(static_cast<std::size_t>(width));
  for (std::int64_t& e : x) {
    e = 0;
    for (int i = 0; i < 4; ++i) e += draw.between(-128, 127);
  }
  return unit_length(std::move(x));
}

/// Keys or addresses, one after the other.
class key_sequence {
 public:
  key_sequence(std::string_view regime, index_t width, numbers& draw)
      : regime_(regime), width_(width), draw_(draw) {
    for (integers& x : few_) x = direction(draw_, width_);
    last_ = few_[0];
  }

  integers next() {
    const std::int64_t t = token_++;
    if (regime_ == "orthogonal") return orthogonal(t);
    if (regime_ == "repeated") return few_[static_cast<std::size_t>(t / 5 % 3)];
    integers x = direction(draw_, width_);
    if (regime_ == "correlated") {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += 3 * last_[i];
      last_ = x = unit_length(std::move(x));
    } else if (regime_ == "unnormalised") {
      // Of lengths 1/16, 1/4, 1/2, 1 and 3/2.
      constexpr std::int64_t sixteenths[] = {1, 4, 8, 16, 24};
      const std::int64_t length = sixteenths[draw_.below(5)];
      for (std::int64_t& e : x) e = of_8_bits(divided(e * length, 16));
    }
    return x;
  }

 private:
  /// Rows of Hadamard matrices of 4^m columns: exactly orthogonal, of length
  /// one, with elements of one bit; after `width` of them they come again.
  integers orthogonal(std::int64_t t) {
    std::int64_t n = 1, length = 1;
    while (width_ % (4 * n) == 0) n *= 4, length *= 2;
    integers x(static_cast<std::size_t>(width_));
    const std::int64_t block = t / n % (width_ / n), row = t % n;
    const std::int64_t sign = draw_.below(2) == 0 ? 1 : -1;
    for (std::int64_t i = 0; i < n; ++i) {
      const bool odd = std::popcount(static_cast<std::uint64_t>(row & i)) % 2;
      x[static_cast<std::size_t>(block * n + i)] =
          sign * (odd ? -256 : 256) / length;
    }
    return x;
  }

  std::string_view regime_;
  index_t width_;
  numbers& draw_;
  std::array<integers, 3> few_;
  integers last_;
  std::int64_t token_ = 0;
};

/// Makes the inputs of one vector.
class maker {
 public:
  maker(const vector_plan& plan, std::uint64_t seed)
      : plan_(plan), seed_(seed), f_(info(plan.family)) {}

  /// A file with inputs and cotangents.
  st::writer inputs() const {
    st::writer w;
    for (const auto& [key, value] : plan_.settings) w.set_metadata(key, value);
    for (const tensor_row& row : each_tensor<char>::members()) {
      if (!wanted(row)) continue;
      add(w, row, std::string(row.name));
    }
    for (const tensor_row& row : each_output<char>::members()) {
      add(w, row, "d" + std::string(row.name));
    }
    if (!plan_.cu_seqlens.empty()) {
      w.add_int64("cu_seqlens",
                  {static_cast<std::int64_t>(plan_.cu_seqlens.size())},
                  plan_.cu_seqlens);
    }
    return w;
  }

 private:
  const std::string& regime(factor f) const { return plan_.regime[f]; }
  bool set(const char* key) const { return plan_.settings.contains(key); }

  bool wanted(const tensor_row& row) const {
    if (row.name == "initial_state") return regime(of_start) == "given";
    if (row.name == "A_log" || row.name == "dt_bias") {
      return set("decay_activation");
    }
    return required(row, f_);
  }

  void add(st::writer& w, const tensor_row& row,
           const std::string& name) const {
    const tensor_shape shape =
        shape_of(axes_of(row, f_, row.along(f_)), plan_.size);
    std::vector<double> x = values(row, name, shape);
    if (row.role == tensor_role::token) {
      if (regime(of_values) == "cancelling") take_back(name, x);
      spoil_padding(x);
    }
    w.add(name, st::dtype::f32, {shape.begin(), shape.end()}, x);
  }

  /// What stands after the last offset is nobody's: large numbers.
  void spoil_padding(std::vector<double>& x) const {
    if (plan_.cu_seqlens.empty()) return;
    const auto all = static_cast<std::int64_t>(x.size());
    const std::int64_t from = all / plan_.size.T * plan_.cu_seqlens.back();
    std::fill(x.begin() + from, x.end(), 64.0);
  }

  /// The second half of a sequence writes against the keys of the first what
  /// leaves of its values one bit in seven: a state that was rounded where it
  /// was large has too few left.
  void take_back(const std::string& name, std::vector<double>& x) const {
    if (name != "k" && name != "v") return;
    numbers draw(seed_, plan_.name, name + "/rest");
    std::vector<std::int64_t> offsets = plan_.cu_seqlens;
    if (offsets.empty()) offsets = {0, plan_.size.T};
    const std::size_t width =
        x.size() / static_cast<std::size_t>(plan_.size.B * plan_.size.T);
    for (std::size_t n = 0; n + 1 < offsets.size(); ++n) {
      const auto from = static_cast<std::size_t>(offsets[n]) * width;
      const auto half =
          static_cast<std::size_t>((offsets[n + 1] - offsets[n]) / 2) * width;
      for (std::size_t b = 0; b < x.size();
           b += static_cast<std::size_t>(plan_.size.T) * width) {
        for (std::size_t i = b + from; i < b + from + half; ++i) {
          x[i + half] =
              name == "k"
                  ? x[i]
                  : static_cast<double>(draw.between(-1, 1)) * 0x1p-6 - x[i];
        }
      }
    }
  }

  std::vector<double> values(const tensor_row& row, const std::string& name,
                             const tensor_shape& shape) const {
    numbers draw(seed_, plan_.name, name);
    const bool cotangent = name != row.name;
    if (name == "p" && f_.address == erase_address::gated_p) {
      return near_keys(shape, draw);
    }
    if (!cotangent && (name == "k" || name == "p" || name == "r")) {
      return keys(shape, draw, name == "k");
    }
    if (name == "y") return directions(shape, draw);
    if (name == "q") {
      return in_units(shape, [&] { return direction(draw, shape.back()); });
    }
    std::vector<double> x(element_count(shape));
    for (double& e : x) e = cotangent ? plain(draw) : one(name, draw);
    return x;
  }

  /// A number of v, of a state or of a cotangent: in [-2, 2].
  static double plain(numbers& draw) {
    return static_cast<double>(draw.between(-128, 128)) * 0x1p-6;
  }

  double one(const std::string& name, numbers& draw) const {
    if (name == "g") return set("decay_activation") ? logit(draw) : log(draw);
    if (name == "initial_state") {
      const double one = regime(of_values) == "cancelling" ? 0x1p-25 : 0x1p-19;
      return static_cast<double>(draw.between(-(1 << 20), 1 << 20)) * one;
    }
    if (name == "A_log") return rate(draw);
    // What kernels take in fp32 has bits that BF16 cuts off.
    if (name == "dt_bias") {
      return static_cast<double>(draw.between(-(1 << 19), 1 << 19)) * 0x1p-20;
    }
    if (name == "w_down" || name == "w_up") return plain(draw) * 0x1p-1;
    for (const char* gate : {"beta", "b", "w"}) {
      if (name != gate) continue;
      const bool logits = set((name + "_activation").c_str()) ||
                          (f_.content_gate && name == "b");
      return logits ? gate_logit(draw) : gate_value(draw);
    }
    for (const char* gate : {"e", "E", "w_last", "eta"}) {
      if (name == gate) return gate_value(draw);
    }
    return plain(draw);
  }

  /// The natural log of a decay.
  double log(numbers& draw) const {
    const std::string& decay = regime(of_decay);
    const bool quarter = draw.below(4) == 0;
    if (decay == "none") return 0;
    // 24 bits: a port that cuts them is one that is wrong.
    if (decay == "natural") {
      return -static_cast<double>(draw.between(1, (1 << 24) - 1)) * 0x1p-22;
    }
    if (decay == "strong") {
      return -static_cast<double>(draw.between(32, 255)) * 0x1p-3;
    }
    if (decay == "-200" && quarter) return -200;
    return -static_cast<double>(draw.between(0, 31)) * 0x1p-10;
  }

  /// What an activation makes such a log of.
  ///@{
  bool bounded() const { return regime(of_front) == "bounded"; }
  double logit(numbers& draw) const {
    const std::string& decay = regime(of_decay);
    const bool quarter = draw.below(4) == 0;
    std::int64_t low = -64, high = 64;  // in units of 1/32
    if (decay == "-200") low = high = quarter ? 320 : -128;
    if (decay == "strong") low = -32, high = 96;
    if (bounded()) {
      if (decay == "slow") low = -224, high = -160;
      if (decay == "natural") low = -96, high = 32;
      if (decay == "strong") low = 32, high = 128;
    } else if (decay == "natural" && quarter) {
      low = 96, high = 384;  // where a softplus is cut short
    }
    return static_cast<double>(draw.between(low, high)) * 0x1p-5;
  }
  double rate(numbers& draw) const {
    const std::string& decay = regime(of_decay);
    std::int64_t middle = 0;  // in units of 1/16
    if (!bounded()) {
      if (decay == "slow") middle = -64;
      if (decay == "natural") middle = -48;
      if (decay == "strong") middle = 36;
      if (decay == "-200") middle = 48;
    }
    constexpr std::int64_t unit = 1 << 14;
    return static_cast<double>(middle * unit +
                               draw.between(-4 * unit, 4 * unit)) *
           0x1p-18;
  }
  ///@}

  /// A gate, or in its place the logit of one; where the regime is 0 or 1 half
  /// of them are so, and the rest between.
  ///@{
  double gate_value(numbers& draw) const {
    const std::string& gates = regime(of_gates);
    const bool half = draw.below(2) == 0;
    const double inside = static_cast<double>(draw.between(1, 255)) * 0x1p-8;
    if (gates == "0" && half) return 0;
    if (gates == "1" && half) return 1;
    return gates == "doubled" ? 2 * inside : inside;
  }
  double gate_logit(numbers& draw) const {
    const std::string& gates = regime(of_gates);
    const bool half = draw.below(2) == 0;
    const double inside = static_cast<double>(draw.between(-96, 96)) * 0x1p-5;
    if (gates == "0" && half) return -24;
    if (gates == "1" && half) return 24;
    return inside;
  }
  ///@}

  /// Vectors along the last axis, whose numbers are units of 1/256.
  template <class Next>
  static std::vector<double> in_units(const tensor_shape& shape,
                                      const Next& next) {
    std::vector<double> x;
    while (x.size() < static_cast<std::size_t>(element_count(shape))) {
      for (const std::int64_t e : next()) {
        x.push_back(static_cast<double>(e) * 0x1p-8);
      }
    }
    return x;
  }

  /// [B,T,heads,K]: a sequence of keys for each head.
  std::vector<double> keys(const tensor_shape& shape, numbers& draw,
                           bool shortened = false) const {
    const auto rows = static_cast<std::size_t>(shape[2]);
    std::vector<key_sequence> heads;
    for (std::size_t h = 0; h < rows; ++h) {
      heads.emplace_back(regime(of_keys), shape[3], draw);
    }
    std::size_t row = 0;
    std::vector<double> x =
        in_units(shape, [&] { return heads[row++ % rows].next(); });
    if (shortened && regime(of_keys) == "unnormalised" && set("l2norm")) {
      // To be normalised where the epsilon of the norm shows: length 2^-8.
      const auto width = static_cast<std::size_t>(shape.back());
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (i / width % 4 == 3) x[i] *= 0x1p-8;
      }
    }
    return x;
  }

  /// Erase addresses that are written along the keys, as models make them: an
  /// address that has nothing to do with its key lets a state grow.
  std::vector<double> near_keys(const tensor_shape& shape,
                                numbers& draw) const {
    numbers of_keys_themselves(seed_, plan_.name, "k");
    tensor_shape of_k = shape;
    of_k[2] = plan_.size.H;
    const std::vector<double> k = keys(of_k, of_keys_themselves);
    const auto group = static_cast<std::size_t>(plan_.size.HV / plan_.size.H);
    const auto width = static_cast<std::size_t>(shape.back());
    std::size_t row = 0;
    return in_units(shape, [&] {
      integers x = direction(draw, shape.back());
      for (std::size_t i = 0; i < width; ++i) {
        const auto key =
            static_cast<std::int64_t>(k[row / group * width + i] * 0x1p8);
        x[i] = of_8_bits(divided(3 * key + x[i], 4));
      }
      ++row;
      return x;
    });
  }

  /// Erase directions of a family that is given them: its addresses r, each
  /// times a gate.
  std::vector<double> directions(const tensor_shape& shape,
                                 numbers& draw) const {
    numbers of_addresses(seed_, plan_.name, "r");
    std::vector<double> x = keys(shape, of_addresses);
    const auto width = static_cast<std::size_t>(shape.back());
    double gate = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (i % width == 0) gate = gate_value(draw);
      const double units = x[i] * gate * 0x1p16;
      x[i] = static_cast<double>(of_8_bits(static_cast<std::int64_t>(units))) *
             0x1p-16;
    }
    return x;
  }

  const vector_plan& plan_;
  std::uint64_t seed_;
  const family_info& f_;
};

/// A family without a chunked form is judged token by token, whatever the
/// profile: as `verify` implies.
profile judged_as(profile as, family f) {
  const axis erase = info(f).erase;
  return erase == axis::value || erase == axis::mask ? profile::ieee_recurrent
                                                     : as;
}

/// Formats of the operands in a profile.
std::vector<st::dtype> inputs_of(profile as) {
  if (as == profile::tensor_core) return {st::dtype::bf16, st::dtype::f16};
  return {st::dtype::f32};
}
/// Formats in which outputs of a port with such operands are stored.
std::vector<st::dtype> storages_of(profile as, st::dtype inputs) {
  if (as == profile::tensor_core) return {inputs, st::dtype::f32};
  return {st::dtype::f32, st::dtype::bf16, st::dtype::f16};
}

/// To three digits: the machine's functions decide no more of it.
double three_digits(double x) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%.2e", x);
  return std::strtod(buffer, nullptr);
}

/// What the file of a vector holds, its outputs as exact results.
gradient_result<double_double> results_of(const dump& d) {
  gradient_result<double_double> r;
  for (const judged_tensor& x : d.judged) {
    each_result(r, [&x](std::string_view name, tensor<double_double>& y) {
      if (name != x.name) return;
      y = convert<double_double>(x.values,
                                 [](double e) { return double_double(e); });
    });
  }
  return r;
}

void measure_units(const dump& d, profile as, vector_entry& v) {
  const gradient_result<double_double> exact = results_of(d);
  for (const st::dtype inputs : inputs_of(as)) {
    dump port = d;
    port.dtype = inputs;
    port.judged.clear();
    for (const judged_tensor& x : d.judged) {
      for (const st::dtype storage : storages_of(as, inputs)) {
        const format f = *st::format_of(storage);
        const bool holds = std::all_of(
            x.values.data.begin(), x.values.data.end(),
            [f](double e) { return std::isfinite(round_to(f, e)); });
        if (holds) port.judged.push_back({x.name, storage, x.values});
      }
    }
    kernel_facts facts;
    facts.as = as;
    const ensemble sound =
        run_ensemble(port, ways_of(port, facts), exact, {1, {}});
    for (std::size_t i = 0; i < port.judged.size(); ++i) {
      const judged_tensor& x = port.judged[i];
      const auto of = std::find_if(
          v.outputs.begin(), v.outputs.end(),
          [&x](const vector_output& o) { return o.name == x.name; });
      const error_unit& u = sound.units[i].unit;
      of->units[unit_key(as, inputs)][std::string(st::dtype_name(x.dtype))] = {
          three_digits(u.rms), three_digits(u.largest)};
    }
  }
}

}  // namespace

const suite_row& suite_named(std::string_view name) {
  std::vector<std::string_view> names;
  for (const suite_row& s : suites) {
    if (s.name == name) return s;
    names.push_back(s.name);
  }
  throw error("suite: expected one of ", names, ", got \"", st::printable(name),
              "\"");
}

regime_matrix regime_factors() {
  std::vector<std::string> names;
  for (const family_info& f : families) names.emplace_back(f.name);
  return {
      {"family", names},
      {"decay", {"none", "slow", "natural", "strong", "-200"}},
      {"gates", {"absent", "0", "1", "interior", "doubled"}},
      {"keys",
       {"independent", "correlated", "orthogonal", "repeated", "unnormalised"}},
      {"length", {"1", "16", "32", "64", "128"}},
      {"end", {"below", "at", "above"}},
      {"start", {"none", "given"}},
      {"packing", {"dense", "packed", "padded"}},
      {"heads", {"1", "2", "4"}},
      {"widths", {"K=V", "K<V", "K>V"}},
      {"front", {"bare", "logits", "bounded"}},
      {"values", {"ordinary", "cancelling"}}};
}

covering regime_covering(const selection& only) {
  const regime_matrix factors = regime_factors();
  std::vector<std::size_t> sizes;
  std::vector<std::vector<bool>> wanted;
  for (const auto& [name, values] : factors) {
    sizes.push_back(values.size());
    const auto at = only.find(name);
    wanted.emplace_back();
    for (const std::string& v : values) {
      wanted.back().push_back(at == only.end() ||
                              std::find(at->second.begin(), at->second.end(),
                                        v) != at->second.end());
    }
  }
  return {sizes, [factors, wanted](std::size_t f, std::size_t v, std::size_t g,
                                   std::size_t w) {
            const auto forbids = [&](const constraint& c) {
              return c.f == f && c.g == g &&
                     (c.value.empty() || c.value == factors[f].second[v]) &&
                     c.other == factors[g].second[w] &&
                     (!c.families || c.families(families[v]));
            };
            return wanted[f][v] && wanted[g][w] &&
                   std::none_of(std::begin(constraints), std::end(constraints),
                                forbids);
          }};
}

std::vector<vector_plan> plan_of(const suite_row& suite,
                                 const selection& only) {
  const auto factors = regime_factors();
  std::vector<vector_plan> all;
  std::map<std::string, int> of_each;
  std::vector<covering::row> rows = regime_covering(only).rows(suite.strength);
  std::stable_sort(rows.begin(), rows.end(), [](const auto& x, const auto& y) {
    return x[of_family] < y[of_family];
  });
  for (const covering::row& row : rows) {
    vector_plan p;
    for (std::size_t f = 0; f < row.size(); ++f) {
      p.regime.push_back(factors[f].second[row[f]]);
    }
    p.family = families[row[of_family]].id;
    const family_info& family = info(p.family);
    char number[16];
    std::snprintf(number, sizeof(number), "-%02d", ++of_each[p.regime[0]]);
    p.name = p.regime[0] + number;

    const index_t L =
        std::stoi(p.regime[of_length]) + (p.regime[of_end] == "below"   ? -1
                                          : p.regime[of_end] == "above" ? 1
                                                                        : 0);
    // Files are to be small: long sequences are few.
    const bool few = L > 17;
    dimensions& n = p.size;
    n.B = n.N = 1, n.T = L;
    if (p.regime[of_packing] == "packed") {
      const index_t first = std::max<index_t>(1, L / 8);
      p.cu_seqlens = {0, first, first, first + L};
      n.T = first + L, n.N = 3;
    } else if (p.regime[of_packing] == "padded") {
      p.cu_seqlens = {0, 1, 1 + L};
      n.T = 1 + L + 3, n.N = 2;
    } else if (!few) {
      n.B = n.N = 2;
    }
    const index_t group = std::stoi(p.regime[of_heads]);
    n.H = few || group == 4 ? 1 : 2;
    n.HV = n.VH = n.H * group;
    // A mask has as many numbers a token as the state.
    const index_t part =
        (few ? suite.part : 1) * (family.erase == axis::mask ? 2 : 1);
    n.K = (p.regime[of_widths] == "K>V" ? suite.wide : suite.narrow) / part;
    n.V = (p.regime[of_widths] == "K<V" ? suite.wide : suite.narrow) / part;
    n.rho = 2;
    n.substeps = family.steps == substeps::given ? 2 : 1;

    p.settings["family"] = std::string(family.name);
    if (family.content_gate) p.settings["window"] = "16";
    if (p.regime[of_front] != "bare") {
      const bool decays = family.decay != axis::none;
      const bool doubled = p.regime[of_gates] == "doubled";
      p.settings["l2norm"] = "true";
      if (decays && p.regime[of_decay] != "none") {
        p.settings["decay_activation"] =
            p.regime[of_front] == "bounded" ? "bounded" : "softplus";
      }
      const auto gate = [&](const tensor_row& t, const char* how) {
        if (required(t, family)) {
          p.settings[std::string(t.name) + "_activation"] = how;
        }
      };
      for (const tensor_row& t : each_tensor<char>::members()) {
        const bool erases = t.name == "beta" || t.name == "b";
        if (erases && !family.content_gate) {
          gate(t, doubled ? "doubled_sigmoid" : "sigmoid");
        }
        if (t.name == "w") gate(t, "sigmoid");
      }
    }
    all.push_back(std::move(p));
  }
  if (all.empty()) throw error("no problem has the regimes that are selected");
  return all;
}

std::vector<std::byte> make_vector(const vector_plan& plan,
                                   std::uint64_t seed) {
  st::writer w = maker(plan, seed).inputs();
  const std::vector<std::byte> bare = w.serialize();
  const dump d = read_dump(st::file::parse(bare));
  const gradient_result<double_double> exact = exact_result(d, "dd", {1, {}});
  each_result(
      exact, [&w](const std::string& name, const tensor<double_double>& x) {
        if (!x.present()) return;
        const tensor<double> y = convert<double>(
            x, [](double_double e) { return rounded(format::f64, e); });
        w.add(name, st::dtype::f64, {y.shape.begin(), y.shape.end()}, y.data);
      });
  return w.serialize();
}

vector_entry describe(const vector_plan& plan, std::span<const std::byte> file,
                      std::span<const profile> profiles) {
  const st::file content = st::file::parse(file);
  const dump d = read_dump(content);
  vector_entry v;
  v.name = plan.name, v.file = plan.name + ".safetensors";
  v.sha256 = sha256(file), v.bytes = file.size();
  v.family = plan.family, v.regime = plan.regime, v.size = d.size;
  v.scale = 1 / std::sqrt(static_cast<double>(d.size.K));
  v.erase_reads = info(plan.family).erase_reads;
  v.settings = plan.settings;
  for (const std::string& name : content.names()) {
    const std::string_view role = role_of(name);
    const st::tensor_info& i = content.info(name);
    if (role != "input" && role != "cotangent") continue;
    vector_input in{name, i.dtype, {i.shape.begin(), i.shape.end()}, {}};
    if (st::is_floating(i.dtype)) {
      const std::vector<double> x = content.as_double(name);
      for (const st::dtype t :
           {st::dtype::f32, st::dtype::bf16, st::dtype::f16}) {
        const format f = *st::format_of(t);
        if (std::all_of(x.begin(), x.end(),
                        [f](double e) { return round_to(f, e) == e; })) {
          in.exact_in.emplace_back(st::dtype_name(t));
        }
      }
    }
    v.inputs.push_back(std::move(in));
  }
  for (const judged_tensor& x : d.judged) {
    double largest = 0;
    for (const double e : x.values.data) {
      largest = std::max(largest, std::fabs(e));
    }
    v.outputs.push_back({x.name,
                         x.values.shape,
                         three_digits(root_mean_square(x.values.data)),
                         three_digits(largest),
                         {}});
  }
  std::set<profile> known;
  for (const profile p : profiles) {
    const profile as = judged_as(p, plan.family);
    if (known.insert(as).second) measure_units(d, as, v);
  }
  return v;
}

namespace {

constexpr profile all_profiles[] = {profile::tensor_core, profile::tf32,
                                    profile::fp32, profile::ieee_recurrent};

/// A folder that is not there, is empty, or holds a suite.
void expect_suite_folder(const std::filesystem::path& folder) {
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  if (!std::filesystem::is_directory(folder, code)) {
    throw error(st::printable(folder.string()), ": cannot be made a folder");
  }
  if (!std::filesystem::is_empty(folder, code) &&
      !std::filesystem::exists(folder / manifest_name, code)) {
    throw error(st::printable(folder.string()),
                ": expected an empty folder or one with a suite, got one with "
                "other files");
  }
}

/// Calls `visit(i, plan, file, entry)` for each vector, from several threads.
template <class Visit>
void each_vector(const std::vector<vector_plan>& plans,
                 const vectors_settings& how, std::span<const profile> profiles,
                 const Visit& visit) {
  run_options run{how.run.threads, {}};
  if (how.run.progress) {
    run.progress = [&how](index_t done, index_t total) {
      how.run.progress("vectors", done, total);
    };
  }
  parallel_for(static_cast<index_t>(plans.size()), run, [&](index_t task) {
    const auto i = static_cast<std::size_t>(task);
    const std::vector<std::byte> file = make_vector(plans[i], how.seed);
    visit(i, plans[i], file, describe(plans[i], file, profiles));
  });
}

}  // namespace

manifest write_suite(const suite_row& suite, const vectors_settings& how,
                     const std::filesystem::path& folder) {
  const std::vector<vector_plan> plans = plan_of(suite, how.only);
  expect_suite_folder(folder);
  manifest m;
  m.suite = std::string(suite.name), m.seed = how.seed;
  m.strength = suite.strength, m.factors = regime_factors();
  m.vectors.resize(plans.size());
  const std::span<const profile> profiles =
      how.profiles.empty() ? std::span<const profile>(all_profiles)
                           : std::span<const profile>(how.profiles);
  each_vector(plans, how, profiles,
              [&](std::size_t i, const vector_plan&,
                  const std::vector<std::byte>& file, vector_entry entry) {
                write_output(folder / entry.file, {std::span(file)});
                m.vectors[i] = std::move(entry);
              });
  write_output(folder / manifest_name, manifest_text(m));
  return m;
}

void catches::add(double beyond, const std::string& name) {
  ++tried;
  if (!(beyond > 1)) return;
  ++caught;
  // Whatever the order in which threads come.
  if (beyond < excess || (beyond == excess && name > vector)) return;
  excess = beyond, vector = name;
}

double beyond_bounds(const vector_entry& v, const dump& d,
                     const gradient_result<double>& outputs, st::dtype port) {
  dump as_port = d;
  as_port.dtype = port;
  const std::string key = unit_key(implied_profile(as_port), port);
  const tolerance limit;
  double worst = 0;
  for (const judged_tensor& exact : d.judged) {
    judged_tensor x{exact.name, port, exact.values};
    x.values.data =
        stored_as(*st::format_of(port), result_named(outputs, exact.name).data);
    const verdict t = judge_output(v, exact.values.data, x, key, limit);
    if (!t.fails()) continue;
    worst = std::max({worst, t.errors.ratio / limit.rms,
                      t.errors.max_ratio / limit.largest});
  }
  return worst;
}

std::vector<power_row> power_of(const suite_row& suite,
                                const vectors_settings& how) {
  const std::vector<suspect> all = suspects();
  std::vector<power_row> power;
  for (const suspect& s : all) {
    power.push_back({name_of({s}), sentence_of(s), {}, {}});
  }
  std::mutex mutex;
  each_vector(
      plan_of(suite, how.only), how, all_profiles,
      [&](std::size_t, const vector_plan&, const std::vector<std::byte>& file,
          const vector_entry& v) {
        const dump d = read_dump(st::file::parse(file));
        for (std::size_t i = 0; i < all.size(); ++i) {
          const auto wrong = deviating_result(d, {all[i]}, {1, {}});
          if (!wrong) continue;
          const double f32 = beyond_bounds(v, d, *wrong, st::dtype::f32);
          const double bf16 = beyond_bounds(v, d, *wrong, st::dtype::bf16);
          const std::lock_guard lock(mutex);
          power[i].f32.add(f32, v.name);
          power[i].bf16.add(bf16, v.name);
        }
      });
  return power;
}

void write_power(std::ostream& out, const std::vector<power_row>& rows) {
  out << "| deviation | the port is wrong in that | F32 | most | BF16 | most "
         "|\n|---|---|---|---|---|---|\n";
  const auto cells = [&out](const catches& c) {
    out << " | " << c.caught << " of " << c.tried << " | "
        << (c.vector.empty() ? "" : "`" + c.vector + "`");
  };
  for (const power_row& r : rows) {
    out << "| `" << r.id << "` | " << r.sentence;
    cells(r.f32);
    cells(r.bf16);
    out << " |\n";
  }
}

}  // namespace carve::program
