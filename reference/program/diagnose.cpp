#include "program/diagnose.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include "carve/deviation.hpp"

namespace carve::program {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// How many of the best are tried together with all others, and how many are
/// told.
constexpr std::size_t paired = 6, told = 5;

/// By how much a second mistake must bring the file nearer: the sum over the
/// tensors of the logs of the ratios.
constexpr double of_a_second = 3;

/// How far the errors of tokens may be from what a deviation makes them, in
/// logs and in the mean, to be of a size.
constexpr double spread = 0.7;

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

/// The most that a tensor of that type holds.
double most_of(safetensors::dtype t) {
  switch (*safetensors::format_of(t)) {
    case format::f16:
      return 65504;
    case format::f64:
      return std::numeric_limits<double>::max();
    default:
      return std::numeric_limits<float>::max();
  }
}

/// The distance of a tensor from what a computation gives, in units: what the
/// verdict would be if that were right. A larger result has larger errors, and
/// what is no number in both is equal.
/// @param[in] most  what is larger is infinite
double distance(const std::vector<double>& x, const std::vector<double>& y,
                const unit& u, const tolerance& limit, double most) {
  std::vector<double> apart, of;
  std::size_t both = 0, one = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const bool here = std::isfinite(x[i]), there = std::fabs(y[i]) <= most;
    if (here && there) {
      apart.push_back(x[i] - y[i]), of.push_back(y[i]);
    } else {
      // Near the most that it holds a kernel may come out at either side.
      const double other = std::fabs(here ? x[i] : y[i]);
      ++(here == there || other > most / 16 ? both : one);
    }
  }
  if (one > both / 100) return infinity;
  if (apart.empty() && both > 0) return 1;  // nothing to be nearer by
  const auto over = [](double a, double b) {
    return a == 0 ? 0 : b > 0 ? a / b : infinity;
  };
  const double grown =
      u.size > 0 ? std::max(1.0, root_mean_square(of) / u.size) : 1.0;
  const double largest =
      u.largest_size > 0 ? std::max(1.0, largest_of(of) / u.largest_size) : 1.0;
  return std::max(
      over(root_mean_square(apart), u.rms * grown),
      over(largest_of(apart), u.largest * largest) * limit.rms / limit.largest);
}

/// RMS of the differences at each token, of a tensor [B,T,...].
std::vector<double> over_tokens(const tensor_shape& shape,
                                const std::vector<double>& x,
                                const std::vector<double>& y) {
  const auto n = static_cast<std::size_t>(shape[0] * shape[1]);
  const std::size_t each = x.size() / n;
  std::vector<double> rms(n);
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t i = t * each; i < (t + 1) * each; ++i) {
      rms[t] += (x[i] - y[i]) * (x[i] - y[i]);
    }
    rms[t] = std::sqrt(rms[t] / static_cast<double>(each));
  }
  return rms;
}

/// Correlation of two lists; 0 where one of them is constant.
double correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const auto n = static_cast<double>(x.size());
  double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) mx += x[i] / n, my += y[i] / n;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mx) * (x[i] - mx), yy += (y[i] - my) * (y[i] - my);
    xy += (x[i] - mx) * (y[i] - my);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
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
  bool slight = false;  // nothing differs from what is right by a unit
  likeness by;
  /// By judged tensor, where that is what is looked at: the error in errors of
  /// such size, and how far it lies where those of the computation do.
  std::vector<double> sizes, shapes;
};

class inquiry {
 public:
  inquiry(const dump& d, const verification& v, const run_settings& run,
          known_results* known)
      : d_(d), v_(v), run_(run), known_(known) {
    const known_result right = made(d, {}, run);
    if (!*right) return;
    for (std::size_t t = 0; t < d.judged.size(); ++t) {
      right_.push_back(result_named(**right, d.judged[t].name).data);
      units_.push_back(unit_of(v.tensors[t], right_[t]));
      most_.push_back(most_of(d.judged[t].dtype));
      some_finite_.push_back(std::any_of(
          d.judged[t].values.data.begin(), d.judged[t].values.data.end(),
          [](double x) { return std::isfinite(x); }));
      as_right_.push_back(distance(d.judged[t].values.data, right_[t],
                                   units_[t], v.limit, most_[t]));
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
    if (!trials_.empty() && !explains_all(trials_[0])) {
      // One of the best few, with the best choice of every other row.
      std::vector<suspect> best;
      for (const trial& t : trials_) {
        const suspect& s = t.together[0];
        if (std::none_of(best.begin(), best.end(), [&](const suspect& other) {
              return other.row == s.row;
            })) {
          best.push_back(s);
        }
      }
      std::vector<std::vector<suspect>> pairs;
      for (std::size_t i = 0; i < std::min(paired, best.size()); ++i) {
        for (std::size_t j = i + 1; j < best.size(); ++j) {
          const bool turned = best[j].row < best[i].row;
          pairs.push_back({best[turned ? j : i], best[turned ? i : j]});
        }
      }
      try_each(pairs, "pairs of mistakes");
      sort();
    }
    std::size_t different = 0;
    if (std::none_of(trials_.begin(), trials_.end(),
                     [&](const trial& t) { return explains_some(t); })) {
      look_less_closely();
      std::erase_if(trials_, [&](const trial& t) { return !explains_all(t); });
    }
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
  using known_result =
      std::shared_ptr<const std::optional<gradient_result<double>>>;

  known_result made(const dump& d, const std::vector<suspect>& together,
                    const run_settings& run) const {
    if (known_) return known_->of(d, together);
    return std::make_shared<const std::optional<gradient_result<double>>>(
        deviating_result(d, together, run));
  }

  bool wrong(std::size_t t) const { return v_.tensors[t].fails(); }

  bool matches(const trial& x, std::size_t t) const {
    if (x.by == likeness::size) {
      return wrong(t) && x.ratios[t] <= matching_ratio &&
             x.ratios[t] >= 1 / matching_ratio;
    }
    if (x.by == likeness::shape) {
      return wrong(t) && (!has_tokens(d_.judged[t].name) ||
                          x.ratios[t] >= matching_correlation);
    }
    if (!some_finite_[t] && !leaves_right(x)) return false;
    return wrong(t) && ((x.ratios[t] <= matching_ratio &&
                         x.ratios[t] <= 0.7 * as_right_[t]) ||
                        (x.ratios[t] <= 2 * matching_ratio &&
                         x.ratios[t] <= as_right_[t] / 10));
  }
  /// Whether what passes would pass. Much makes a tensor of which nothing is
  /// finite.
  bool leaves_right(const trial& x) const {
    for (std::size_t t = 0; t < x.ratios.size(); ++t) {
      if (!wrong(t) && !(x.ratios[t] <= 2 * matching_ratio)) return false;
    }
    return true;
  }
  bool explains_all(const trial& x) const {
    for (std::size_t t = 0; t < x.ratios.size(); ++t) {
      if (wrong(t) && !matches(x, t)) return false;
    }
    return true;
  }

  /// The error in errors that come of y's own and of a sound kernel's; 0 where
  /// they are spread otherwise over the tokens.
  double size_of(std::size_t t, const std::vector<double>& y) const {
    const judged_tensor& x = d_.judged[t];
    const auto rms = [&](const std::vector<double>& z) {
      std::vector<double> apart(z);
      for (std::size_t i = 0; i < z.size(); ++i) apart[i] -= right_[t][i];
      return root_mean_square(apart);
    };
    const double size = rms(x.values.data) / std::hypot(rms(y), units_[t].rms);
    if (!has_tokens(x.name) || x.values.dim(1) < 16) return size;
    const tensor_shape& shape = x.values.shape;
    const std::vector<double> zero(right_[t].size(), 0.0);
    const auto actual = over_tokens(shape, x.values.data, right_[t]);
    const auto made = over_tokens(shape, y, right_[t]);
    const auto right = over_tokens(shape, right_[t], zero);
    const double relative =
        units_[t].size > 0 ? units_[t].rms / units_[t].size : 0;
    double apart = 0;
    for (std::size_t i = 0; i < made.size(); ++i) {
      const double expected = std::hypot(made[i], relative * right[i]);
      if (actual[i] == 0 && expected == 0) continue;
      apart += std::fabs(std::log(std::clamp(
          expected > 0 ? actual[i] / expected : infinity, 1e-6, 1e6)));
    }
    return apart > spread * static_cast<double>(made.size()) ? 0 : size;
  }

  /// How far the error lies where y's does: the correlation of their logs over
  /// the tokens; 0 where the file is wrong and y is right.
  double shape_of(std::size_t t, const std::vector<double>& y) const {
    const judged_tensor& x = d_.judged[t];
    if (!has_tokens(x.name) || x.values.dim(1) < 16) return 0;
    std::vector<double> actual =
        over_tokens(x.values.shape, x.values.data, right_[t]);
    std::vector<double> made = over_tokens(x.values.shape, y, right_[t]);
    const double u = std::max(units_[t].rms, 1e-300);
    for (std::size_t i = 0; i < made.size(); ++i) {
      if (!std::isfinite(actual[i]) || !std::isfinite(made[i])) return 0;
      if (actual[i] > 3 * u && made[i] < u) return 0;
      actual[i] = std::log(std::max(actual[i], u / 100));
      made[i] = std::log(std::max(made[i], u / 100));
    }
    return correlation(actual, made);
  }

  /// Where no numbers match: is the error as large as a deviation makes it, or
  /// does it lie where one makes it?
  void look_less_closely() {
    const auto judged_by = [&](trial x, likeness by) {
      x.by = by, x.cost = 0;
      for (std::size_t t = 0; t < x.ratios.size(); ++t) {
        if (by == likeness::size) {
          x.ratios[t] = x.sizes[t];
          x.cost += std::fabs(std::log(std::clamp(x.sizes[t], 1e-3, 1e3)));
        } else {
          x.ratios[t] = x.shapes[t];
          if (wrong(t) && has_tokens(d_.judged[t].name)) x.cost -= x.shapes[t];
        }
      }
      return x;
    };
    std::vector<trial> others;
    trials_.insert(trials_.end(), slight_.begin(), slight_.end());
    for (const trial& x : trials_) {
      if (!x.sizes.empty()) others.push_back(judged_by(x, likeness::size));
    }
    for (const trial& x : trials_) {
      if (!x.shapes.empty()) others.push_back(judged_by(x, likeness::shape));
    }
    trials_ = std::move(others);
    sort();
    // What says how large the errors are says more than where they lie.
    std::stable_sort(
        trials_.begin(), trials_.end(),
        [&](const trial& a, const trial& b) { return a.by < b.by; });
  }

  bool explains_some(const trial& x) const {
    for (std::size_t t = 0; t < x.ratios.size(); ++t) {
      if (matches(x, t)) return true;
    }
    return false;
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
      if (x) (x->slight ? slight_ : trials_).push_back(std::move(*x));
    }
  }

  /// Nothing where it cannot be made or changes nothing.
  std::optional<trial> try_together(
      const std::vector<suspect>& together) const {
    const known_result r = made(d_, together, {1, {}});
    if (!*r) return {};
    trial x{together, {}, 0, false, likeness::numbers, {}, {}};
    bool changes = false;
    for (std::size_t t = 0; t < d_.judged.size(); ++t) {
      const std::vector<double>& y = result_named(**r, d_.judged[t].name).data;
      changes = changes ||
                !(distance(y, right_[t], units_[t], v_.limit, most_[t]) < 1);
      const double ratio =
          distance(d_.judged[t].values.data, y, units_[t], v_.limit, most_[t]);
      const likeness alike =
          together.size() > 1 ? likeness::numbers : together[0].row->alike;
      if (alike == likeness::size) x.sizes.push_back(size_of(t, y));
      if (alike == likeness::shape) x.shapes.push_back(shape_of(t, y));
      x.ratios.push_back(ratio);
      // A kernel may be right in one pass and wrong in the other.
      const double most = wrong(t) ? 1e6 : 10;
      x.cost += std::log(std::clamp(ratio, 0.01, most));
    }
    // Of two that fit alike, the simpler one.
    x.cost += of_a_second * static_cast<double>(together.size() - 1);
    if (together.size() > 1 && is_one_alone(x)) return {};
    x.slight = !changes;
    if (changes || !x.sizes.empty()) return x;
    return {};
  }

  /// Whether one of a pair gives what both give.
  bool is_one_alone(const trial& x) const {
    return std::any_of(trials_.begin(), trials_.end(), [&](const trial& alone) {
      if (alone.together.size() > 1) return false;
      const suspect& s = alone.together[0];
      if (std::none_of(x.together.begin(), x.together.end(),
                       [&](const suspect& of) {
                         return of.row == s.row && of.choice == s.choice;
                       })) {
        return false;
      }
      for (std::size_t t = 0; t < x.ratios.size(); ++t) {
        const double a = x.ratios[t], b = alone.ratios[t];
        if (a != b && !(std::fabs(a - b) < 0.01 * b)) return false;
      }
      return true;
    });
  }

  void sort() {
    std::stable_sort(
        trials_.begin(), trials_.end(),
        [](const trial& a, const trial& b) { return a.cost < b.cost; });
  }

  void tell(const trial& x, diagnosis& found) {
    explanation e{name_of(x.together), {}, 0, "", x.by};
    for (std::size_t t = 0; t < x.ratios.size(); ++t) {
      if (!matches(x, t)) continue;
      e.tensors.push_back(d_.judged[t].name);
      if (x.by == likeness::shape) {
        if (!has_tokens(e.tensors.back())) continue;
        e.ratio = e.ratio == 0 ? x.ratios[t] : std::min(e.ratio, x.ratios[t]);
      } else {
        e.ratio = std::max(e.ratio, x.ratios[t]);
      }
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
    const bool one = e.tensors.size() == 1;
    if (x.by == likeness::numbers) {
      e.text += one ? " matches, ratio " : " match, ratio ";
    } else if (x.by == likeness::size) {
      e.text += one ? " is as wrong, ratio " : " are as wrong, ratio ";
    } else {
      e.text += one ? " is wrong in the same tokens, correlation "
                    : " are wrong in the same tokens, correlation ";
    }
    e.text += std::string(ratio) + ", if ";
    for (std::size_t i = 0; i < x.together.size(); ++i) {
      if (i > 0) e.text += ", and ";
      e.text += sentence_of(x.together[i]);
    }
    if (found.found.empty()) {
      best_ = made(d_, x.together, {1, {}});
    } else if (same_as_best(x)) {
      e.same = true;
      e.text += "; these inputs cannot tell it from the first";
    }
    found.found.push_back(std::move(e));
  }

  /// Whether no tensor differs by as much as the roundings of a sound kernel.
  bool same_as_best(const trial& x) const {
    const known_result r = made(d_, x.together, {1, {}});
    for (std::size_t t = 0; t < units_.size() && *r && *best_; ++t) {
      const std::string& name = d_.judged[t].name;
      const std::vector<double>& y = result_named(**r, name).data;
      const std::vector<double>& z = result_named(**best_, name).data;
      if (!(distance(y, z, units_[t], v_.limit, most_[t]) < 0.5)) return false;
    }
    return true;
  }

  const dump& d_;
  const verification& v_;
  const run_settings& run_;
  std::vector<std::vector<double>> right_;
  std::vector<unit> units_;
  std::vector<double> as_right_;
  std::vector<char> some_finite_;  // of the file's numbers
  std::vector<double> most_;       // that the type of each tensor holds
  std::vector<trial> trials_, slight_;
  known_results* known_;
  known_result best_;  // of what was told first
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

std::string_view name_of(likeness by) {
  constexpr std::string_view names[] = {"numbers", "size", "shape"};
  return names[static_cast<int>(by)];
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
  computation c{d.in, d.cotangents, {}, {}, {}};
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

std::shared_ptr<const std::optional<gradient_result<double>>> known_results::of(
    const dump& d, const std::vector<suspect>& together) {
  std::vector<std::pair<const deviation*, const deviation_choice*>> key;
  for (const suspect& s : together) {
    key.emplace_back(s.row, s.choice);
  }
  {
    const std::lock_guard lock(mutex_);
    if (const auto at = known_.find(key); at != known_.end()) return at->second;
  }
  auto made = std::make_shared<const std::optional<gradient_result<double>>>(
      deviating_result(d, together, {1, {}}));
  const std::lock_guard lock(mutex_);
  return known_.emplace(std::move(key), std::move(made)).first->second;
}

diagnosis diagnose(const dump& d, const verification& v,
                   const run_settings& run, known_results* known) {
  return inquiry(d, v, run, known).run();
}

}  // namespace carve::program
