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
    for (const suspect& s : suspects()) try_together({s});
    found.tried = trials_.size();
    sort();
    const std::size_t few = std::min(paired, trials_.size());
    if (few > 0 && !explains_all(trials_[0])) {
      const std::vector<trial> best(
          trials_.begin(), trials_.begin() + static_cast<std::ptrdiff_t>(few));
      for (std::size_t i = 0; i < few; ++i) {
        for (std::size_t j = i + 1; j < few; ++j) {
          suspect a = best[i].together[0], b = best[j].together[0];
          if (b.row < a.row) std::swap(a, b);
          if (a.row != b.row) try_together({a, b});
        }
      }
      sort();
    }
    for (const trial& t : trials_) {
      if (found.found.size() < told) tell(t, found);
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
    return wrong(t) && (x.ratios[t] <= matching_ratio ||
                        (x.ratios[t] <= 2 * matching_ratio &&
                         x.ratios[t] <= as_right_[t] / 10));
  }
  bool explains_all(const trial& x) const {
    for (std::size_t t = 0; t < x.ratios.size(); ++t) {
      if (wrong(t) && !matches(x, t)) return false;
    }
    return true;
  }

  void try_together(const std::vector<suspect>& together) {
    const auto r = deviating_result(d_, together, run_);
    if (!r) return;
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
    if (changes) trials_.push_back(std::move(x));
  }

  void sort() {
    std::stable_sort(
        trials_.begin(), trials_.end(),
        [](const trial& a, const trial& b) { return a.cost < b.cost; });
  }

  void tell(const trial& x, diagnosis& found) const {
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
    found.found.push_back(std::move(e));
  }

  const dump& d_;
  const verification& v_;
  const run_settings& run_;
  std::vector<std::vector<double>> right_;
  std::vector<unit> units_;
  std::vector<double> as_right_;
  std::vector<trial> trials_;
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
  computation c{d.in, d.cotangents, {}, {}};
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

diagnosis diagnose(const dump& d, const verification& v,
                   const run_settings& run) {
  return inquiry(d, v, run).run();
}

}  // namespace carve::program
