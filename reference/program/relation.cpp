#include "program/relation.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "program/console.hpp"
#include "program/json.hpp"
#include "program/locate.hpp"

namespace carve::program {

namespace {

namespace st = safetensors;

/// Numbers of a tensor of the measured dump beside those that they must equal.
struct gathered {
  std::vector<double> here, there;
  std::vector<std::size_t> at;  // in the measured tensor
  tensor<double> other;         // the measured tensor with the others' numbers
  std::optional<std::tuple<index_t, index_t, index_t>> first;
  std::size_t differing = 0;

  /// Adds a run of numbers.
  void add(const tensor<double>& x, std::size_t i, const tensor<double>& y,
           std::size_t j, std::size_t width,
           const std::tuple<index_t, index_t, index_t>& place) {
    bool differs = false;
    for (std::size_t c = 0; c < width; ++c) {
      here.push_back(x.data[i + c]), there.push_back(y.data[j + c]);
      at.push_back(i + c);
      other.data[i + c] = y.data[j + c];
      if (same_bits(here.back(), there.back())) continue;
      ++differing;
      differs = true;
    }
    if (differs && (!first || place < *first)) first = place;
  }

  static bool same_bits(double x, double y) {
    return std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y);
  }
};

/// Whether a relation with those places speaks of a judged tensor.
struct claim {
  bool output = false, state = false, parameter = false;
  tensor_row row;
};

claim claim_of(std::string_view name) {
  for (const auto& m : outputs<double>::members()) {
    if (m.name == name) {
      return {true, m.role == tensor_role::state, false, m};
    }
  }
  for (const auto& m : tensors<double>::members()) {
    if (name.substr(1) != m.name) continue;
    return {false, m.role == tensor_role::state,
            m.role == tensor_role::parameter, m};
  }
  throw error(name, ": not the name of an output");
}

class comparer {
 public:
  comparer(dumps_ref all, const kernel_facts& facts, const run_settings& run)
      : all_(all), facts_(facts), run_(run), units_(all.size()) {}

  void compare_all(const correspondence& c, relation_outcome& out) {
    const dump& a = all_[c.measured].d;
    std::string left;
    std::vector<std::pair<const judged_tensor*, gathered>> found;
    for (const judged_tensor& x : a.judged) {
      gathered g = gather(c, x);
      if (g.at.empty()) {
        left += (left.empty() ? "" : ", ") + x.name;
      } else {
        found.emplace_back(&x, std::move(g));
      }
    }
    const bool equal =
        std::all_of(found.begin(), found.end(),
                    [](const auto& f) { return f.second.differing == 0; });
    if (!equal && !units_[c.measured]) {
      units_[c.measured] = expect(a, facts_, run_);
    }
    for (const auto& [x, g] : found) {
      out.tensors.push_back(judge(c.measured, *x, g));
    }
    for (const std::string& note : c.notes) out.notes.push_back(note);
    if (!left.empty()) {
      out.notes.push_back(
          text("not compared of ", letter(c.measured), ": ", left));
    }
  }

 private:
  gathered gather(const correspondence& c, const judged_tensor& x) const {
    gathered g;
    g.other = x.values;
    const dump& a = all_[c.measured].d;
    const claim is = claim_of(x.name);
    if (!is.output && !(is.parameter ? c.complete : c.gradients)) return g;
    bool first = true;
    for (const stretch& s : c.stretches) {
      if (is.state && !(is.output ? s.end : s.start)) continue;
      // Sums over the sequences are compared once.
      if (is.parameter && !std::exchange(first, false)) break;
      const dump& b = all_[s.there.dump].d;
      const judged_tensor* y = nullptr;
      for (const judged_tensor& z : b.judged) {
        if (z.name == x.name) y = &z;
      }
      if (!y) return {};
      if (y->dtype != x.dtype) {
        throw error(x.name, ": expected ", st::dtype_name(x.dtype), " in ",
                    letter(s.there.dump), " as in ", letter(c.measured),
                    ", got ", st::dtype_name(y->dtype));
      }
      const std::size_t width = width_of(is.row, x.values);
      if (width != width_of(is.row, y->values)) {
        throw error(x.name, ": expected the same channels, got ",
                    x.values.shape, " and ", y->values.shape);
      }
      const index_t n = is.parameter ? -1 : s.here.sequence;
      each_run(a, b, s, {is.row, x.values, y->values}, !is.output,
               [&](std::size_t i, std::size_t j, index_t token, index_t head,
                   index_t) {
                 g.add(x.values, i, y->values, j, width,
                       {n, token < 0 ? token : s.here.first + token, head});
               });
    }
    return g;
  }

  agreement judge(std::size_t here, const judged_tensor& x,
                  const gathered& g) const {
    agreement a;
    a.tensor = x.name, a.here = here;
    a.compared = g.at.size(), a.differing = g.differing;
    if (g.differing == 0) return a;
    const auto [n, token, head] = *g.first;
    a.first = place_text(n, token, head);
    const format storage = *st::format_of(x.dtype);
    // NaNs that are the same in both stand for no difference.
    std::vector<double_double> expected;
    std::vector<double> actual;
    bool finite = true;
    for (std::size_t i = 0; i < g.at.size(); ++i) {
      if (!std::isfinite(g.here[i]) || !std::isfinite(g.there[i])) {
        finite = finite && gathered::same_bits(g.here[i], g.there[i]);
        continue;
      }
      expected.push_back(g.here[i]), actual.push_back(g.there[i]);
    }
    const auto& units = units_[here]->sound.units;
    const auto unit =
        std::find_if(units.begin(), units.end(),
                     [&x](const tensor_unit& u) { return u.name == x.name; });
    const comparison c =
        compare(expected, actual, unit->unit, storage, tolerance{});
    a.ratio = finite ? c.ratio : HUGE_VAL;
    a.largest_ratio = finite ? c.max_ratio : HUGE_VAL;
    a.is = !finite || c.fails() ? agreement::kind::apart
           : c.pass()           ? agreement::kind::within_unit
                                : agreement::kind::undecided;
    const bool beyond = a.is == agreement::kind::apart;
    a.where = place_words(all_[here].d, x, g, beyond ? unit->unit.rms : 0,
                          beyond ? negligible_error(storage) : 0);
    return a;
  }

  /// Where the difference is more than `unit` allows, or `floor`.
  std::string place_words(const dump& d, const judged_tensor& x,
                          const gathered& g, double unit, double floor) const {
    std::vector<double> other = g.other.data;
    std::vector<double_double> expected;
    for (std::size_t i = 0; i < other.size(); ++i) {
      double e = x.values.data[i];
      if (gathered::same_bits(e, other[i]) || !std::isfinite(e)) {
        // What is the same is no difference, even a NaN.
        const bool same = gathered::same_bits(e, other[i]);
        e = std::isfinite(e) ? e : 0;
        other[i] = same ? e : HUGE_VAL;
      }
      expected.push_back(e);
    }
    const error_map map =
        map_errors(x.values.shape, rows_a_token(d, x.name, x.values.shape),
                   other, expected);
    error_map sound = map;
    std::fill(sound.error.begin(), sound.error.end(), unit);
    location l = locate(map, sound, floor, other, expected);
    const auto factor = std::exchange(l.factor, std::nullopt);
    const std::string words = l.text(map);
    return factor ? text("a factor of ", *factor, " between them; ", words)
                  : words;
  }

  dumps_ref all_;
  const kernel_facts& facts_;
  const run_settings& run_;
  std::vector<std::optional<expectation>> units_;
};

/// Rows of a pool that no sequence had are as they were.
void compare_pool(const related_dump& f, std::size_t number,
                  relation_outcome& out) {
  const tensor<double>& after = f.pool->after;
  if (!after.present() || !f.pool->before.present() ||
      after.shape != f.pool->before.shape) {
    out.notes.push_back(text("rows of the pool that no sequence had are not ",
                             "compared: ", letter(number), " does not hold ",
                             "the pool before and after"));
    return;
  }
  agreement a;
  a.tensor = "other rows", a.here = number;
  const auto rows = static_cast<std::size_t>(after.dim(0));
  const std::size_t width = after.data.size() / rows;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto& used = f.pool->used;
    if (std::find(used.begin(), used.end(), static_cast<index_t>(r)) !=
        used.end()) {
      continue;
    }
    for (std::size_t i = r * width; i < (r + 1) * width; ++i) {
      ++a.compared;
      if (gathered::same_bits(after.data[i], f.pool->before.data[i])) continue;
      if (a.differing++ == 0) a.first = text("row ", r, " of the pool");
    }
  }
  if (a.differing > 0) a.is = agreement::kind::apart;
  if (a.compared > 0) out.tensors.push_back(std::move(a));
}

const std::vector<relation> table{
    {"repeat", "the same inputs give the same outputs in every run",
     "runs on the same inputs", 0, false, places_in_order, plan_repeat},
    {"causal", "outputs before token t depend on nothing from t on",
     "two runs, inputs equal before some token", 2, false, places_causal,
     plan_causal},
    {"split", "pieces, the state handed on, give what the whole gives",
     "the whole, then its pieces in order", 0, true, places_split, plan_split},
    {"decode", "a prefill, then single tokens, give what one pass gives",
     "one pass, the prefill, then a dump for each token", 0, true,
     places_decode, plan_decode},
    {"alone", "a sequence or a head gives alone what it gives among others",
     "a batch or a pack, then parts of it", 0, false, places_alone, plan_alone},
    {"pack", "sequences give packed what they give padded",
     "the packed and the padded, in any order", 2, false, places_pack,
     plan_pack},
    {"permute", "outputs follow sequences and heads to other places",
     "a run, then others with its sequences or heads permuted", 0, false,
     places_permute, plan_permute},
    {"rollback", "rejected drafts leave the state as it was before them",
     "the accepted tokens alone, then the run with drafts", 2, false,
     places_rollback, plan_rollback},
    {"pool", "states in a pool of rows give what states in order give",
     "states in order and in a pool, in any order", 2, false, places_pool,
     plan_pool},
};

}  // namespace

const std::vector<relation>& relations() { return table; }

const relation& relation_named(std::string_view name) {
  std::vector<std::string_view> names;
  for (const relation& r : table) {
    if (r.name == name) return r;
    names.push_back(r.name);
  }
  throw error("relation: expected one of ", names, ", got \"",
              st::printable(name), "\"");
}

agreement::kind relation_outcome::is() const {
  agreement::kind worst = agreement::kind::same_bits;
  for (const agreement& a : tensors) worst = std::max(worst, a.is);
  return worst;
}

relation_outcome relate(const relation& r,
                        const std::vector<related_dump>& dumps,
                        const kernel_facts& facts, const run_settings& run) {
  if (dumps.size() < 2 || (r.most > 0 && dumps.size() > r.most)) {
    throw error(r.name, ": expected ", r.files, ", got ", dumps.size(),
                dumps.size() == 1 ? " dump" : " dumps");
  }
  const family_info& f = info(dumps[0].d.in.family);
  if (r.hands_states_on && (f.content_gate || f.steps == substeps::trapezoid)) {
    throw error("family: expected one whose state holds all of the past, got ",
                f.name,
                f.content_gate ? ", whose gate reads earlier outputs"
                               : ", which writes the last token too");
  }
  for (std::size_t i = 1; i < dumps.size(); ++i) {
    expect_same_settings(dumps[0], dumps[i], letter(i));
  }
  const std::vector<correspondence> all = r.places(dumps);
  for (const correspondence& c : all) {
    for (const stretch& s : c.stretches) {
      expect_same_inputs(dumps, s, c.gradients);
    }
  }
  relation_outcome out{r.name, r.sentence, {}, {}, {}};
  for (const related_dump& d : dumps) out.paths.push_back(d.path);
  comparer compare(dumps, facts, run);
  for (const correspondence& c : all) compare.compare_all(c, out);
  if (out.tensors.empty()) {
    throw error("outputs: expected o, final_state or gradients in all dumps, ",
                "got none that could be compared");
  }
  for (std::size_t i = 0; i < dumps.size() && r.name == "pool"; ++i) {
    if (dumps[i].pool) compare_pool(dumps[i], i, out);
  }
  return out;
}

namespace {

std::string_view words(agreement::kind is) {
  switch (is) {
    case agreement::kind::same_bits:
      return "same bits";
    case agreement::kind::within_unit:
      return "within the unit";
    case agreement::kind::undecided:
      return "undecided";
    case agreement::kind::apart:
      return "apart";
  }
  return "";
}

std::string two_digits(const std::optional<double>& x) {
  if (!x) return "";
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer),
                *x < 999.995 || !std::isfinite(*x) ? "%.2f" : "%.1e", *x);
  return buffer;
}

}  // namespace

void write_relation(std::ostream& out, const relation_outcome& r) {
  out << r.name << ": " << r.sentence << '\n';
  for (std::size_t i = 0; i < r.paths.size(); ++i) {
    out << "  " << letter(i) << "  " << st::printable(r.paths[i]) << '\n';
  }
  for (const std::string& note : r.notes) {
    out << "  note: " << wrapped(note, 80, 8) << '\n';
  }
  char line[160];
  const auto row = [&](const char* tensor, const char* of, const char* compared,
                       const char* differ, const char* ratio,
                       const char* largest, std::string_view verdict) {
    std::snprintf(line, sizeof(line), "%-15s %2s %10s %10s %8s %8s  %s", tensor,
                  of, compared, differ, ratio, largest,
                  std::string(verdict).c_str());
    out << line << '\n';
  };
  out << '\n';
  row("", "", "numbers", "with other", "RMS", "largest", "");
  row("tensor", "of", "compared", "bits", "units", "units", "verdict");
  for (const agreement& a : r.tensors) {
    row(a.tensor.c_str(), letter(a.here).c_str(),
        std::to_string(a.compared).c_str(), std::to_string(a.differing).c_str(),
        two_digits(a.ratio).c_str(), two_digits(a.largest_ratio).c_str(),
        words(a.is));
  }
  out << '\n';
  for (const agreement& a : r.tensors) {
    if (a.is == agreement::kind::same_bits) continue;
    std::string all = a.tensor + ": first at " + a.first;
    if (!a.where.empty()) {
      all += (a.is == agreement::kind::apart ? "; beyond the unit: "
                                             : "; other bits: ") +
             a.where;
    }
    out << wrapped(all, 80, 2) << '\n';
  }
  switch (r.is()) {
    case agreement::kind::same_bits:
      out << "holds, bit for bit and so within the unit\n";
      return;
    case agreement::kind::within_unit:
      out << "holds within the unit, not bit for bit\n";
      return;
    case agreement::kind::undecided:
      out << "undecided: not bit for bit, and sound ways leave no digit to "
             "judge by\n";
      return;
    case agreement::kind::apart:
      out << "does not hold: neither bit for bit nor within the unit\n";
  }
}

void write_relation_json(std::ostream& out, const relation_outcome& r) {
  using json = nlohmann::ordered_json;
  const auto number = [](const std::optional<double>& x) {
    return x && std::isfinite(*x) ? json(*x) : json(nullptr);
  };
  const agreement::kind is = r.is();
  json all{{"relation", r.name},
           {"sentence", r.sentence},
           {"holds", is == agreement::kind::undecided
                         ? json(nullptr)
                         : json(is < agreement::kind::undecided)},
           {"bit_for_bit", is == agreement::kind::same_bits},
           {"within_the_unit", is <= agreement::kind::within_unit},
           {"verdict", words(is)},
           {"files", json::array()},
           {"notes", r.notes},
           {"tensors", json::array()}};
  for (const std::string& path : r.paths) {
    all["files"].push_back(st::printable(path));
  }
  for (const agreement& a : r.tensors) {
    json row{{"name", a.tensor},         {"of", letter(a.here)},
             {"compared", a.compared},   {"differing", a.differing},
             {"ratio", number(a.ratio)}, {"max_ratio", number(a.largest_ratio)},
             {"verdict", words(a.is)}};
    if (!a.first.empty()) row["first"] = a.first;
    if (!a.where.empty()) row["where"] = a.where;
    all["tensors"].push_back(std::move(row));
  }
  out << json_text(all) << '\n';
}

}  // namespace carve::program
