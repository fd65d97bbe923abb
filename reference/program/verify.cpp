#include "program/verify.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "carve/reference.hpp"

namespace carve::program {

namespace {

run_options options(const run_settings& run, std::string_view what) {
  run_options o{run.threads, {}};
  if (run.progress) {
    o.progress = [what, &run](index_t done, index_t total) {
      run.progress(what, done, total);
    };
  }
  return o;
}

template <class T>
double_double to_double_double(const T& x) {
  const double high = scalar_traits<T>::to_double(x);
  return {high, scalar_traits<T>::to_double(T(x - T(high)))};
}
double_double to_double_double(double x) { return x; }
double_double to_double_double(double_double x) { return x; }

template <class T>
gradient_result<double_double> solve(const dump& d, const run_options& run) {
  const reference_solver solver;
  const auto in = [](double x) { return scalar_traits<T>::from_double(x); };
  const auto out = [](const T& x) { return to_double_double(x); };
  const problem<T> p = convert_problem<T>(d.in, in);
  gradient_result<T> r;
  if (d.has_cotangents()) {
    r = backward(p, convert_outputs<T>(d.cotangents, in), solver, run);
  } else {
    r.out = forward(p, solver, run);
  }
  return {convert_outputs<double_double>(r.out, out),
          convert_tensors<double_double>(r.gradients, out)};
}

void expect_finite(std::string_view name, const tensor<double_double>& x) {
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    if (!carve::isfinite(x.data[i])) {
      throw error(name, ": the exact result is beyond the range of a double ",
                  "at ", detail::position(x.shape, i));
    }
  }
}

}  // namespace

gradient_result<double_double> exact_result(const dump& d, std::string_view by,
                                            const run_settings& run) {
  const run_options o = options(run, "exact results");
  gradient_result<double_double> r;
  if (by == "double") {
    r = solve<double>(d, o);
  } else if (by == "dd") {
    r = solve<double_double>(d, o);
#ifdef CARVE_WITH_DIGITS
  } else if (by == "50") {
    r = solve<real50>(d, o);
  } else if (by == "100") {
    r = solve<real100>(d, o);
#else
  } else if (by == "50" || by == "100") {
    throw error("precision: this program was built for verify alone, without ",
                by, " digits; `./x build` builds all of it");
#endif
  } else {
    throw error("precision: expected double, dd, 50 or 100, got \"", by, "\"");
  }
  expect_finite("o", r.out.o);
  expect_finite("final_state", r.out.final_state);
  for (const auto& m : tensors<double_double>::members()) {
    expect_finite("d" + std::string(m.name), r.gradients.*m.at);
  }
  return r;
}

outcome verification::result() const {
  const auto any = [this](auto is) {
    return std::any_of(tensors.begin(), tensors.end(), is);
  };
  if (any([](const verdict& v) { return v.fails(); })) return outcome::fail;
  if (any([](const verdict& v) { return !v.pass(); })) {
    return outcome::not_judged;
  }
  if (strict && !(inputs.untested.empty() && inputs.suspicious.empty())) {
    return outcome::not_judged;
  }
  return outcome::pass;
}

const verdict* verification::worst() const {
  const verdict* found = nullptr;
  for (const verdict& t : tensors) {
    if (!t.fails()) continue;
    if (!found || t.errors.ratio > found->errors.ratio) found = &t;
  }
  return found;
}

expectation expect(const dump& d, const kernel_facts& facts,
                   const run_settings& run) {
  expectation e;
  e.as = facts.as.value_or(implied_profile(d));
  const std::vector<way> ways = ways_of(d, facts);
  e.exact = exact_result(d, "dd", run);
  e.sound = run_ensemble(d, ways, e.exact, options(run, "sound ways"));
  return e;
}

verdict judge(const expectation& e, const judged_tensor& x,
              const tolerance& limit) {
  const format storage = *safetensors::format_of(x.dtype);
  const std::vector<double_double>& exact = result_named(e.exact, x.name).data;
  const auto unit =
      std::find_if(e.sound.units.begin(), e.sound.units.end(),
                   [&x](const tensor_unit& u) { return u.name == x.name; });
  if (unit == e.sound.units.end()) {
    throw error(x.name, ": not among the outputs whose unit is known");
  }
  verdict v;
  v.name = x.name, v.dtype = x.dtype, v.shape = x.values.shape;
  v.errors = compare(exact, x.values.data, unit->unit, storage, limit);
  v.errors.replay_distance = distance_from(
      stored_as(storage, result_named(e.sound.results[0], x.name).data), exact,
      x.values.data, storage);
  v.reference_value = static_cast<double>(exact[v.errors.worst]);
  v.actual_value = x.values.data[v.errors.worst];
  return v;
}

namespace {

/// Finds the plain way that is nearest to each tensor, and to all of them.
void find_nearest(const dump& d, const expectation& e, verification& v) {
  std::vector<double> sums(e.sound.ways.size());
  for (std::size_t t = 0; t < d.judged.size(); ++t) {
    const judged_tensor& x = d.judged[t];
    const format storage = *safetensors::format_of(x.dtype);
    verdict& of = v.tensors[t];
    const double unit = of.errors.ratio > 0 && std::isfinite(of.errors.ratio)
                            ? of.errors.actual.rms / of.errors.ratio
                            : 1;
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < e.sound.ways.size(); ++i) {
      if (!e.sound.ways[i].plain()) continue;
      std::vector<double> apart =
          stored_as(storage, result_named(e.sound.results[i], x.name).data);
      for (std::size_t j = 0; j < apart.size(); ++j) {
        apart[j] -= x.values.data[j];
        if (!std::isfinite(apart[j])) apart[j] = 0;
      }
      const double distance = root_mean_square(apart) / unit;
      sums[i] += std::min(distance, 10.0);
      if (distance >= least) continue;
      least = distance;
      of.nearest = words_of(e.sound.ways[i]);
      of.nearest_distance = distance;
    }
  }
  std::size_t best = 0;
  for (std::size_t i = 1; i < sums.size(); ++i) {
    if (e.sound.ways[i].plain() && sums[i] < sums[best]) best = i;
  }
  v.nearest = words_of(e.sound.ways[best]);
}

/// The narrower reading of outputs in F32 of a kernel with 16-bit inputs.
void read_as_fp32(const dump& d, const expectation& e,
                  const verify_settings& how, verification& v) {
  if (how.facts.as || e.as != profile::tensor_core) return;
  dump narrow = d;
  std::erase_if(narrow.judged, [](const judged_tensor& x) {
    return x.dtype != safetensors::dtype::f32;
  });
  if (narrow.judged.empty()) return;
  kernel_facts facts = how.facts;
  facts.as = profile::fp32;
  std::vector<way> ways = ways_of(narrow, facts);
  std::erase_if(ways, [](const way& w) { return !w.plain(); });
  expectation as_fp32;
  as_fp32.exact = e.exact;
  as_fp32.sound =
      run_ensemble(narrow, ways, e.exact, options(how.run, "narrower reading"));
  for (const judged_tensor& x : narrow.judged) {
    const double ratio = judge(as_fp32, x, how.limit).errors.ratio;
    for (verdict& t : v.tensors) {
      if (t.name == x.name) t.fp32_ratio = ratio;
    }
  }
}

}  // namespace

namespace {

/// Says where a failing tensor is wrong.
void find_where(const dump& d, const expectation& e, const judged_tensor& x,
                verdict& v) {
  const std::vector<double_double>& exact = result_named(e.exact, x.name).data;
  const format storage = *safetensors::format_of(x.dtype);
  const index_t rows = rows_a_token(d, x.name, x.values.shape);
  v.map = map_errors(x.values.shape, rows, x.values.data, exact);
  error_map sound = v.map;
  std::fill(sound.error.begin(), sound.error.end(), 0.0);
  for (std::size_t i = 0; i < e.sound.ways.size(); ++i) {
    if (!e.sound.ways[i].plain()) continue;
    const error_map m = map_errors(
        x.values.shape, rows,
        stored_as(storage, result_named(e.sound.results[i], x.name).data),
        exact);
    for (std::size_t j = 0; j < m.error.size(); ++j) {
      if (std::isfinite(m.error[j])) {
        sound.error[j] = std::max(sound.error[j], m.error[j]);
      }
    }
  }
  v.where =
      locate(v.map, sound, negligible_error(storage), x.values.data, exact)
          .text(v.map);
}

}  // namespace

verification verify(const dump& d, const verify_settings& how) {
  if (d.judged.empty()) {
    throw error(
        "no output to judge: expected o, final_state or a gradient beside "
        "the inputs");
  }
  const expectation e = expect(d, how.facts, how.run);
  verification v;
  v.of = d.in.family, v.size = d.size, v.read = d.in.read, v.dtype = d.dtype;
  v.scale = d.in.scale.value_or(1 / std::sqrt(static_cast<double>(d.size.K)));
  v.packed = !d.in.cu_seqlens.empty(), v.as = e.as, v.limit = how.limit;
  v.freedoms = freedoms_of(d, how.facts), v.ways = e.sound.ways.size();
  v.replay = words_of(e.sound.ways.front()), v.bitlike = how.bitlike;
  for (const judged_tensor& x : d.judged) {
    verdict t = judge(e, x, how.limit);
    t.too_far = how.bitlike && !(t.errors.replay_distance <= *how.bitlike);
    if (t.fails()) find_where(d, e, x, t);
    v.tensors.push_back(std::move(t));
  }
  v.inputs = study_inputs(d), v.strict = how.strict;
  find_nearest(d, e, v);
  read_as_fp32(d, e, how, v);
  return v;
}

}  // namespace carve::program
