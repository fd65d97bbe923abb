#include "program/diagnose.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <span>
#include <utility>

#include "carve/deviation.hpp"

namespace carve::program {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// How many of the best are tried in pairs, and how many are told.
constexpr std::size_t paired = 6, told = 5;

/// The error of a judged tensor that is one, at the right result.
struct unit {
  double rms = 0, largest = 0;
  double size = 0;          // RMS of the right result
  double largest_size = 0;  // its largest number
};

double largest_of(const std::vector<double>& x) {
  double most = 0;
  for (const double e : x) most = std::max(most, std::fabs(e));
  return most;
}

unit unit_of(const verdict& t, const std::vector<double>& right) {
  const double half = unit_roundoff(*safetensors::format_of(t.dtype)) / 2;
  unit u{t.errors.unit.rms, t.errors.unit.largest, root_mean_square(right),
         largest_of(right)};
  u.rms = std::max(u.rms, half * u.size);
  u.largest = std::max(u.largest, half * u.largest_size);
  return u;
}

/// The distance of a tensor from what a computation gives, in units: what the
/// verdict would be if that were right. A larger result has larger errors.
double distance(const std::vector<double>& x, const std::vector<double>& y,
                const unit& u, const tolerance& limit) {
  std::vector<double> apart(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    apart[i] = x[i] - y[i];
    if (!std::isfinite(apart[i])) return infinity;
  }
  const auto over = [](double a, double b) {
    return a == 0 ? 0 : b > 0 ? a / b : infinity;
  };
  const double grown =
      u.size > 0 ? std::max(1.0, root_mean_square(y) / u.size) : 1.0;
  const double most =
      u.largest_size > 0 ? std::max(1.0, largest_of(y) / u.largest_size) : 1.0;
  return std::max(
      over(root_mean_square(apart), u.rms * grown),
      over(largest_of(apart), u.largest * most) * limit.rms / limit.largest);
}

std::string where_of(const verdict& x) {
  if (!x.where.empty()) return x.where;
  return text("most at ", detail::position(x.shape, x.errors.worst), ", ",
              x.actual_value, " for ", x.reference_value);
}

/// A file under a set of suspects.
struct trial {
  std::vector<suspect> together;
  std::vector<double> ratios;  // by judged tensor
  double cost = 0;
};

class inquiry {
 public:
  inquiry(const dump& d, const verification& v, const run_settings& run)
      : d_(d), v_(v), run_(run) {
    const auto right = deviating_result(d, {}, run);
    if (!right) return;
    for (std::size_t t = 0; t < d.judged.size(); ++t) {
      right_.push_back(result_named(*right, d.judged[t].name).data);
      units_.push_back(unit_of(v.tensors[t], right_[t]));
      as_right_.push_back(
          distance(d.judged[t].values.data, right_[t], units_[t], v.limit));
    }
  }

  diagnosis run() {
    diagnosis found;
    for (const verdict& t : v_.tensors) {
      if (t.fails()) found.wrong.push_back(t.name);
    }
    if (found.wrong.empty() || units_.empty()) return found;
    std::vector<std::vector<suspect>> all;
    for (const suspect& s : suspects()) all.push_back({s});
    try_each(all, "known mistakes");
    found.tried = trials_.size();
    sort();
    const std::size_t few = std::min(paired, trials_.size());
    if (few > 0 && !explains_all(trials_[0])) {
      std::vector<std::vector<suspect>> pairs;
      for (std::size_t i = 0; i < few; ++i) {
        for (std::size_t j = i + 1; j < few; ++j) {
          suspect a = trials_[i].together[0], b = trials_[j].together[0];
          if (b.row < a.row) std::swap(a, b);
          if (a.row != b.row) pairs.push_back({a, b});
        }
      }
      try_each(pairs, "pairs of mistakes");
      sort();
    }
    std::size_t different = 0;
    for (const trial& t : trials_) {
      if (different == told) break;
      const std::size_t before = found.found.size();
      tell(t, found);
      if (found.found.size() > before && !found.found.back().same) ++different;
    }
    for (std::size_t t = 0; t < units_.size(); ++t) {
      if (!wrong(t)) continue;
      const verdict& x = v_.tensors[t];
      const bool explained =
          !found.found.empty() &&
          std::count(found.found[0].tensors.begin(),
                     found.found[0].tensors.end(), x.name) > 0;
      if (!explained) found.left.push_back({x.name, where_of(x)});
    }
    return found;
  }

 private:
  bool wrong(std::size_t t) const { return v_.tensors[t].fails(); }

  bool matches(const trial& x, std::size_t t) const {
    return wrong(t) && ((x.ratios[t] <= matching_ratio &&
                         x.ratios[t] <= 0.7 * as_right_[t]) ||
                        (x.ratios[t] <= 2 * matching_ratio &&
                         x.ratios[t] <= as_right_[t] / 10));
  }
  bool explains_all(const trial& x) const {
    for (std::size_t t = 0; t < x.ratios.size(); ++t) {
      if (wrong(t) && !matches(x, t)) return false;
    }
    return true;
  }

  /// One on each thread: a dump may have fewer heads than there are threads.
  void try_each(const std::vector<std::vector<suspect>>& all,
                std::string_view what) {
    std::vector<std::optional<trial>> tried(all.size());
    const run_options each{run_.threads, [&](index_t done, index_t total) {
                             if (run_.progress) {
                               run_.progress(what, done, total);
                             }
                           }};
    parallel_for(static_cast<index_t>(all.size()), each, [&](index_t i) {
      const auto at = static_cast<std::size_t>(i);
      tried[at] = try_together(all[at]);
    });
    for (std::optional<trial>& x : tried) {
      if (x) trials_.push_back(std::move(*x));
    }
  }

  /// Nothing where it cannot be made or changes nothing.
  std::optional<trial> try_together(
      const std::vector<suspect>& together) const {
    const auto r = deviating_result(d_, together, {1, {}});
    if (!r) return {};
    trial x{together, {}, 0};
    bool changes = false;
    for (std::size_t t = 0; t < d_.judged.size(); ++t) {
      const std::vector<double>& y = result_named(*r, d_.judged[t].name).data;
      changes = changes || !(distance(y, right_[t], units_[t], v_.limit) < 1);
      const double ratio =
          distance(d_.judged[t].values.data, y, units_[t], v_.limit);
      x.ratios.push_back(ratio);
      // A kernel may be right in one pass and wrong in the other.
      const double most = wrong(t) ? 1e6 : 10;
      x.cost += std::log(std::clamp(ratio, 0.01, most));
    }
    // Of two that fit alike, the simpler one.
    x.cost += 0.5 * static_cast<double>(together.size() - 1);
    if (!changes) return {};
    return x;
  }

  void sort() {
    std::stable_sort(
        trials_.begin(), trials_.end(),
        [](const trial& a, const trial& b) { return a.cost < b.cost; });
  }

  void tell(const trial& x, diagnosis& found) {
    explanation e{name_of(x.together), {}, 0, ""};
    for (std::size_t t = 0; t < x.ratios.size(); ++t) {
      if (!matches(x, t)) continue;
      e.tensors.push_back(d_.judged[t].name);
      e.ratio = std::max(e.ratio, x.ratios[t]);
    }
    if (e.tensors.empty()) return;
    for (const explanation& other : found.found) {
      if (other.id == e.id) return;  // with a choice that fits better
    }
    for (const std::string& name : e.tensors) {
      if (!e.text.empty()) e.text += name == e.tensors.back() ? " and " : ", ";
      e.text += name;
    }
    char ratio[32];
    std::snprintf(ratio, sizeof ratio, "%.2g", e.ratio);
    e.text += e.tensors.size() == 1 ? " matches" : " match";
    e.text += std::string(", ratio ") + ratio + ", if ";
    for (std::size_t i = 0; i < x.together.size(); ++i) {
      if (i > 0) e.text += ", and ";
      e.text += sentence_of(x.together[i]);
    }
    if (found.found.empty()) {
      best_ = deviating_result(d_, x.together, {1, {}});
    } else if (same_as_best(x)) {
      e.same = true;
      e.text += "; these inputs cannot tell it from the first";
    }
    found.found.push_back(std::move(e));
  }

  /// Whether no tensor differs by as much as the roundings of a sound kernel.
  bool same_as_best(const trial& x) const {
    const auto r = deviating_result(d_, x.together, {1, {}});
    for (std::size_t t = 0; t < units_.size() && r && best_; ++t) {
      const std::string& name = d_.judged[t].name;
      const std::vector<double>& y = result_named(*r, name).data;
      const std::vector<double>& z = result_named(*best_, name).data;
      if (!(distance(y, z, units_[t], v_.limit) < 0.5)) return false;
    }
    return true;
  }

  const dump& d_;
  const verification& v_;
  const run_settings& run_;
  std::vector<std::vector<double>> right_;
  std::vector<unit> units_;
  std::vector<double> as_right_;
  std::vector<trial> trials_;
  std::optional<gradient_result<double>> best_;  // of what was told first
};

}  // namespace

std::vector<suspect> suspects() {
  std::vector<suspect> all;
  for (const deviation& row : deviations()) {
    for (const deviation_choice& c : row.choices) all.push_back({&row, &c});
  }
  return all;
}

std::vector<suspect> suspects(std::string_view id) {
  std::vector<suspect> all = suspects();
  std::erase_if(all, [&](const suspect& s) { return s.row->id != id; });
  if (all.empty()) throw error("\"", id, "\": not the name of a deviation");
  return all;
}

std::string name_of(const std::vector<suspect>& together) {
  std::string name;
  for (const suspect& s : together) {
    name += (name.empty() ? "" : " + ") + std::string(s.row->id);
  }
  return name;
}

std::string sentence_of(const suspect& s) { return s.row->sentence(*s.choice); }

bool may_touch(const std::vector<suspect>& together, std::string_view tensor) {
  return std::any_of(together.begin(), together.end(), [&](const suspect& s) {
    return s.row->may_touch(tensor);
  });
}

std::optional<gradient_result<double>> deviating_result(
    const dump& d, const std::vector<suspect>& together,
    const run_settings& run) {
  computation c{d.in, d.cotangents, {}, nullptr, {}};
  for (const suspect& s : together) {
    if (!s.row->apply(c, *s.choice)) return {};
  }
  try {
    gradient_result<double> r = c.result({run.threads, {}});
    // What the problem holds and the result lacks has a gradient of zero.
    for (const auto& m : tensors<double>::members()) {
      tensor<double>& x = r.gradients.*m.at;
      if (x.present() || !(d.in.in.*m.at).present()) continue;
      x = tensor<double>((d.in.in.*m.at).shape);
    }
    return r;
  } catch (const error&) {
    return {};
  }
}

dump with_outputs(dump d, const gradient_result<double>& r) {
  for (judged_tensor& x : d.judged) {
    const format storage = *safetensors::format_of(x.dtype);
    x.values.data = result_named(r, x.name).data;
    round_all(storage, std::span(x.values.data));
  }
  return d;
}

double seconds_to_diagnose(const dump& d) {
  // Measured on one core with heads of 64 and of 128 channels.
  constexpr double for_each = 8e-9;
  const dimensions& n = d.size;
  double numbers = 1;
  for (const index_t axis : {n.B, n.T, n.HV, n.K, n.V}) {
    numbers *= static_cast<double>(axis);
  }
  return for_each * numbers * static_cast<double>(suspects().size());
}

diagnosis diagnose(const dump& d, const verification& v,
                   const run_settings& run) {
  return inquiry(d, v, run).run();
}

}  // namespace carve::program
