#include "program/verify.hpp"

#include <algorithm>
#include <cmath>
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

profile implied_profile(const dump& d) {
  const axis erase = info(d.in.family).erase;
  if (erase == axis::value || erase == axis::mask) {
    return profile::ieee_recurrent;
  }
  return d.dtype == safetensors::dtype::bf16 ||
                 d.dtype == safetensors::dtype::f16
             ? profile::tensor_core
             : profile::fp32;
}

bool verification::pass() const {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const verdict& v) { return v.errors.pass(); });
}

expectation expect(const dump& d, std::optional<profile> as,
                   const run_settings& run) {
  expectation e;
  e.as = as.value_or(implied_profile(d));
  const format operand = *safetensors::format_of(d.dtype);
  if (e.as == profile::tensor_core && operand != format::bf16 &&
      operand != format::f16) {
    throw error("profile: tensor-core is for BF16 and F16 operands, q is ",
                safetensors::dtype_name(d.dtype),
                "; expected tf32, fp32 or ieee-recurrent");
  }
  // The replay comes first: it is the one that may refuse.
  const auto narrow = [](double x) { return static_cast<float>(x); };
  e.replayed = replay(convert_problem<float>(d.in, narrow),
                      convert_outputs<float>(d.cotangents, narrow), e.as,
                      operand, options(run, "rounding replay"));
  e.exact = exact_result(d, "dd", run);
  return e;
}

verdict judge(const expectation& e, const judged_tensor& x,
              const tolerance& limit) {
  const format storage = *safetensors::format_of(x.dtype);
  const std::vector<double_double>& exact = result_named(e.exact, x.name).data;
  std::vector<double> replayed;
  for (const float z : result_named(e.replayed, x.name).data) {
    replayed.push_back(round_to(storage, static_cast<double>(z)));
  }
  verdict v{x.name, x.dtype, x.values.shape,
            compare(exact, x.values.data, replayed, storage, limit)};
  v.reference_value = static_cast<double>(exact[v.errors.worst]);
  v.actual_value = x.values.data[v.errors.worst];
  return v;
}

verification verify(const dump& d, const verify_settings& how) {
  if (d.judged.empty()) {
    throw error(
        "no output to judge: expected o, final_state or a gradient beside "
        "the inputs");
  }
  const expectation e = expect(d, how.as, how.run);
  verification v;
  v.of = d.in.family, v.size = d.size, v.read = d.in.read, v.dtype = d.dtype;
  v.scale = d.in.scale.value_or(1 / std::sqrt(static_cast<double>(d.size.K)));
  v.packed = !d.in.cu_seqlens.empty(), v.as = e.as, v.limit = how.limit;
  for (const judged_tensor& x : d.judged) {
    v.tensors.push_back(judge(e, x, how.limit));
  }
  return v;
}

}  // namespace carve::program
