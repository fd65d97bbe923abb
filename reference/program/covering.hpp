/// @file
/// Which few rows of a matrix of factors hold every admissible pair, or
/// triple, of their values?
///
/// Greedy and deterministic: a row begins with the first tuple that no row
/// holds yet; each further factor takes the value that adds the most such
/// tuples, of equals the one that was taken least. A value is taken only if
/// the row can still be completed, so a tuple is left out if and only if the
/// rule forbids every row that holds it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <set>
#include <utility>
#include <vector>

namespace carve::program {

/// Factors, how many values each has, and which values go together.
class covering {
 public:
  /// A value for each factor.
  using row = std::vector<std::size_t>;
  /// Some factors with a value each, in the order of the factors.
  using tuple = std::vector<std::pair<std::size_t, std::size_t>>;
  /// Whether value v of factor f may stand beside value w of factor g > f.
  using rule = std::function<bool(std::size_t f, std::size_t v, std::size_t g,
                                  std::size_t w)>;

  covering(std::vector<std::size_t> values, rule together)
      : values_(std::move(values)), together_(std::move(together)) {}

  /// Whether some complete row holds the tuple.
  bool admissible(const tuple& t) const {
    row r(values_.size(), open);
    for (const auto& [factor, value] : t) {
      if (!fits(r, factor, value)) return false;
      r[factor] = value;
    }
    return completable(r, 0);
  }

  /// Rows that hold every admissible tuple of `strength` factors.
  std::vector<row> rows(std::size_t strength) const {
    std::set<tuple> missing;
    tuple t;
    collect(strength, 0, t, missing);
    std::vector<std::vector<std::size_t>> taken;
    for (const std::size_t n : values_) taken.emplace_back(n, 0);
    std::vector<row> all;
    while (!missing.empty()) {
      row r(values_.size(), open);
      for (const auto& [factor, value] : *missing.begin()) r[factor] = value;
      for (std::size_t f = 0; f < r.size(); ++f) {
        if (r[f] == open) r[f] = best(r, f, strength, missing, taken[f]);
      }
      each_tuple(r, strength, 0, t, [&](const tuple& x) { missing.erase(x); });
      for (std::size_t f = 0; f < r.size(); ++f) ++taken[f][r[f]];
      all.push_back(std::move(r));
    }
    return all;
  }

 private:
  static constexpr std::size_t open = static_cast<std::size_t>(-1);

  /// Whether the rule lets `value` of `factor` stand in what there is of `r`.
  bool fits(const row& r, std::size_t factor, std::size_t value) const {
    for (std::size_t f = 0; f < r.size(); ++f) {
      if (f == factor || r[f] == open) continue;
      if (f < factor ? !together_(f, r[f], factor, value)
                     : !together_(factor, value, f, r[f])) {
        return false;
      }
    }
    return true;
  }

  bool completable(row& r, std::size_t from) const {
    while (from < r.size() && r[from] != open) ++from;
    if (from == r.size()) return true;
    for (std::size_t v = 0; v < values_[from]; ++v) {
      if (!fits(r, from, v)) continue;
      r[from] = v;
      const bool done = completable(r, from + 1);
      r[from] = open;
      if (done) return true;
    }
    return false;
  }

  /// The admissible tuples of so many factors from `first` on.
  void collect(std::size_t strength, std::size_t first, tuple& t,
               std::set<tuple>& to) const {
    if (t.size() == strength) {
      if (admissible(t)) to.insert(t);
      return;
    }
    for (std::size_t f = first; f < values_.size(); ++f) {
      for (std::size_t v = 0; v < values_[f]; ++v) {
        t.emplace_back(f, v);
        collect(strength, f + 1, t, to);
        t.pop_back();
      }
    }
  }

  /// Visits the tuples of what there is of a row.
  template <class Visit>
  static void each_tuple(const row& r, std::size_t strength, std::size_t first,
                         tuple& t, const Visit& visit) {
    if (t.size() == strength) return visit(t);
    for (std::size_t f = first; f < r.size(); ++f) {
      if (r[f] == open) continue;
      t.emplace_back(f, r[f]);
      each_tuple(r, strength, f + 1, t, visit);
      t.pop_back();
    }
  }

  std::size_t best(row& r, std::size_t factor, std::size_t strength,
                   const std::set<tuple>& missing,
                   const std::vector<std::size_t>& taken) const {
    std::size_t found = open, most = 0;
    for (std::size_t v = 0; v < values_[factor]; ++v) {
      if (!fits(r, factor, v)) continue;
      r[factor] = v;
      const bool possible = completable(r, 0);
      std::size_t added = 0;
      tuple t;
      if (possible) {
        each_tuple(r, strength, 0, t,
                   [&](const tuple& x) { added += missing.count(x); });
      }
      r[factor] = open;
      if (!possible) continue;
      if (found == open || added > most ||
          (added == most && taken[v] < taken[found])) {
        found = v, most = added;
      }
    }
    return found;
  }

  std::vector<std::size_t> values_;
  rule together_;
};

}  // namespace carve::program
