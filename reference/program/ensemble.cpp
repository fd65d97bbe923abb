#include "program/ensemble.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "carve/reference.hpp"

namespace carve::program {

namespace {

constexpr index_t chunk_lengths[] = {64, 16, 32, 128};

bool low(format f) { return f == format::bf16 || f == format::f16; }

format operand_of(const dump& d) { return *safetensors::format_of(d.dtype); }

bool has_activations(const dump& d) {
  const activations& a = d.in.act;
  return a.l2norm || a.beta != gate_activation::none ||
         a.b != gate_activation::none || a.w != gate_activation::none;
}

double scale_of(const dump& d) {
  return d.in.scale.value_or(1 / std::sqrt(static_cast<double>(d.size.K)));
}

/// Where some kernels round and the replay does not; one way has all of them.
struct more_roundings {
  bool decayed = false, scaled = false, stored = false;

  more_roundings(const dump& d, profile as, const kernel_facts& facts) {
    const bool low_operands = as == profile::tensor_core;
    if ((low_operands || as == profile::tf32) && !facts.chunk) {
      decayed = d.in.in.g.present() && d.in.in.g.rank() == 3;
    }
    // A power of two changes no digit, and scales beyond these are no kernel's
    // to multiply into 16 bits.
    int exponent = 0;
    const double scale = scale_of(d);
    scaled = low_operands && !facts.chunk && scale >= 0x1p-8 && scale <= 1 &&
             std::frexp(scale, &exponent) != 0.5;
    stored = low_operands && has_activations(d);
  }
  bool any() const { return decayed || scaled || stored; }
};

/// As many draws as a small dump needs, fewer for a large one, whose tensors
/// have many errors each.
/// @param[in] cost  of a draw, relative to a plain way.
std::uint32_t draws_for(const dump& d, double cost) {
  const double work =
      static_cast<double>(d.size.B) * static_cast<double>(d.size.T) *
      static_cast<double>(d.size.HV) * static_cast<double>(d.size.K) *
      static_cast<double>(d.size.V);
  return static_cast<std::uint32_t>(std::clamp(3e8 / (work * cost), 3.0, 24.0));
}

bool few_numbered(const judged_tensor& x) {
  return x.values.data.size() <= few_numbers;
}

/// Whether the roundings of operands leave the tensor so few independent errors
/// that they have to be drawn: few numbers, or the gradient of a decay per
/// head, in which all tokens of a chunk share the error of its end.
bool few_errors(const judged_tensor& x) {
  return few_numbered(x) || (x.name == "dg" && x.values.rank() <= 3);
}

void round_tensor(format f, tensor<float>& x) {
  round_all(f, std::span(x.data));
}

template <class T>
gradient_result<double> widened(const gradient_result<T>& r) {
  const auto to = [](const T& x) { return scalar_traits<T>::to_double(x); };
  return {convert_outputs<double>(r.out, to),
          convert_tensors<double>(r.gradients, to)};
}

/// A dump whose decays are not so strong that cumulated logs have no
/// difference: e^-1000 is zero to every way, and so is 2^-1000.
dump with_finite_decays(dump d) {
  const bool linear = d.in.act.domain == decay_domain::linear;
  const double least = linear ? smallest_normal(format::f32) : -1000.0;
  if (d.in.act.decay != decay_activation::none) return d;
  for (tensor<double>* x : {&d.in.in.g, &d.in.in.gd}) {
    for (double& e : x->data) e = std::max(e, least);
  }
  return d;
}

/// The L2 norm in arithmetic of the format, operation by operation, and its way
/// back as automatic differentiation makes it, from a stored gradient.
class low_norm {
 public:
  low_norm(format f, const activations& act) : f_(f), act_(act) {}

  tensor<float> forward(tensor<float> x) const {
    const auto n = static_cast<std::size_t>(x.dim(-1));
    for (std::size_t i = 0; i < x.data.size(); i += n) {
      const float r = inverse_of(&x.data[i], n);
      for (std::size_t j = i; j < i + n; ++j) x.data[j] = low(x.data[j] * r);
    }
    return x;
  }

  tensor<float> back(const tensor<float>& x, tensor<float> dy) const {
    const auto n = static_cast<std::size_t>(x.dim(-1));
    for (std::size_t i = 0; i < x.data.size(); i += n) {
      const float r = inverse_of(&x.data[i], n);
      const bool constant =
          detail::l2_denominator_of(act_, &x.data[i], n).constant;
      float dot = 0;
      for (std::size_t j = i; j < i + n; ++j) {
        dy.data[j] = low(dy.data[j]);
        dot += low(dy.data[j] * x.data[j]);
      }
      const float square = constant ? 0 : low(low(dot) * -0.5f * r * r * r);
      for (std::size_t j = i; j < i + n; ++j) {
        dy.data[j] = low(dy.data[j] * r) + low(2 * x.data[j] * square);
      }
    }
    return dy;
  }

 private:
  float low(float x) const {
    return static_cast<float>(rounded(f_, static_cast<double>(x)));
  }
  /// The rounded root of the rounded sum of rounded squares.
  float inverse_of(const float* x, std::size_t n) const {
    const float norm = detail::l2_denominator_of(act_, x, n).norm;
    return low(1 / std::sqrt(low(norm * norm)));
  }

  format f_;
  const activations& act_;
};

/// Forward alone where there are no cotangents.
template <class T, class Solver>
gradient_result<T> solve(const problem<T>& p, const outputs<T>& cotangents,
                         const Solver& solver, const run_options& run) {
  if (cotangents.o.present() || cotangents.final_state.present()) {
    return backward(p, cotangents, solver, run);
  }
  return {forward(p, solver, run), {}};
}

template <class Solver>
gradient_result<double> solve_drawn(const dump& d, const way& w,
                                    const Solver& solver,
                                    const run_options& run) {
  const auto in = [&](double x) { return drawn(x, w.draw, w.exp); };
  return widened(solve(convert_problem<drawn>(d.in, in),
                       convert_outputs<drawn>(d.cotangents, in), solver, run));
}

template <class Solver>
gradient_result<double> solve_plain(const dump& d, const way& w,
                                    const Solver& solver,
                                    const run_options& run) {
  const auto in = [](double x) { return static_cast<float>(x); };
  problem<float> p = convert_problem<float>(d.in, in);
  const problem<float> given = w.stored ? p : problem<float>();
  const outputs<float> cotangents = convert_outputs<float>(d.cotangents, in);
  if (w.stored) p = with_stored_activations(std::move(p), w.rounding.operand);
  const auto scale = static_cast<float>(scale_of(d));
  if (w.scaled) {
    for (float& x : p.in.q.data) x *= scale;
    round_tensor(w.rounding.operand, p.in.q);
    p.scale = 1;
  }
  gradient_result<float> r = solve(p, cotangents, solver, run);
  if (!d.has_cotangents()) return widened(r);
  if (w.scaled) {
    round_tensor(w.rounding.operand, r.gradients.q);
    for (float& x : r.gradients.q.data) x *= scale;
  }
  // The gates' parameters take no part in what is stored.
  if (w.stored) {
    const activations& act = given.act;
    tensors<float>& to = r.gradients;
    if (act.l2norm) {
      const low_norm norm(w.rounding.operand, act);
      to.q = norm.back(given.in.q, std::move(to.q));
      to.k = norm.back(given.in.k, std::move(to.k));
    }
    to.beta = activate_back(act.beta, given.in.beta, std::move(to.beta));
    to.b = activate_back(act.b, given.in.b, std::move(to.b));
    to.w = activate_back(act.w, given.in.w, std::move(to.w));
  }
  return widened(r);
}

void require_applicable(const dump& d, profile as, const kernel_facts& facts) {
  const format operand = operand_of(d);
  if (as == profile::tensor_core && !low(operand)) {
    throw error("profile: tensor-core is for BF16 and F16 operands, q is ",
                safetensors::dtype_name(d.dtype),
                "; expected tf32, fp32 or ieee-recurrent");
  }
  if (as == profile::ieee_recurrent && facts.chunk) {
    throw error("chunk: profile ieee-recurrent walks token by token");
  }
  if ((as == profile::tensor_core || as == profile::tf32) && facts.exp) {
    throw error("exp: its error drowns in the roundings of profile ", name(as),
                "; expected profile fp32 or ieee-recurrent");
  }
}

}  // namespace

problem<float> with_stored_activations(problem<float> p, format f) {
  activations& act = p.act;
  if (act.l2norm) {
    for (tensor<float>* x : {&p.in.q, &p.in.k}) {
      *x = low_norm(f, act).forward(std::move(*x));
    }
    act.l2norm = false;
  }
  const auto gate = [f](gate_activation& how, tensor<float>& x) {
    if (how == gate_activation::none) return;
    x = activate(how, std::move(x));
    round_tensor(f, x);
    how = gate_activation::none;
  };
  gate(act.beta, p.in.beta);
  gate(act.b, p.in.b);
  gate(act.w, p.in.w);
  return p;
}

profile implied_profile(const dump& d) {
  const axis erase = info(d.in.family).erase;
  if (erase == axis::value || erase == axis::mask) {
    return profile::ieee_recurrent;
  }
  return low(operand_of(d)) ? profile::tensor_core : profile::fp32;
}

std::vector<way> ways_of(const dump& d, const kernel_facts& facts) {
  const profile as = facts.as.value_or(implied_profile(d));
  require_applicable(d, as, facts);
  const format operand = as == profile::tensor_core ? operand_of(d)
                         : as == profile::tf32      ? format::tf32
                                                    : format::f32;
  std::vector<index_t> chunks(std::begin(chunk_lengths),
                              std::end(chunk_lengths));
  if (facts.chunk) chunks = {*facts.chunk};
  // A chunk longer than the sequence is that of the whole sequence.
  while (!facts.chunk && chunks.size() > 2 && chunks.back() >= 2 * d.size.T &&
         chunks.back() > 64) {
    chunks.pop_back();
  }
  std::vector<way> ways;
  const auto add = [&ways](way w) { ways.push_back(w); };
  const std::uint32_t seed = facts.seed * 64;
  if (as == profile::tensor_core || as == profile::tf32) {
    for (const index_t c : chunks) add({as, c, {operand, false, 0}});
    if (as == profile::tf32) {
      for (const index_t c : chunks) add({as, c, {operand, true, 0}});
    }
    if (const more_roundings more(d, as, facts); more.any()) {
      for (const index_t c : chunks) {
        way w{as, c, {operand, false, 0, more.decayed}};
        w.stored = more.stored, w.scaled = more.scaled;
        add(w);
      }
    }
    const bool needed = std::any_of(
        d.judged.begin(), d.judged.end(), [&facts](const judged_tensor& x) {
          return facts.chunk ? few_numbered(x) : few_errors(x);
        });
    const std::uint32_t draws = needed ? draws_for(d, 4) : 0;
    for (std::uint32_t i = 0; i < draws; ++i) {
      add({as, chunks[i % chunks.size()], {operand, false, seed + i}});
    }
    for (way& w : ways) {
      w.stored_state = as == profile::tensor_core && !facts.chunk;
      w.few_only = facts.chunk.has_value();
    }
    return ways;
  }
  const bool recurrent = as == profile::ieee_recurrent || !facts.chunk;
  std::vector<index_t> forms;
  if (as == profile::fp32) {
    for (const index_t c : chunks) add({as, c, {}});
    if (recurrent) forms = {0, 64, 0, 128};
    if (facts.chunk) forms = chunks;
  } else {
    forms = {0};
  }
  if (recurrent) add({as, 0, {}});
  if (as == profile::ieee_recurrent) add({as, 64, {}, true});
  const std::uint32_t draws = draws_for(d, 40);
  for (std::uint32_t i = 0; i < draws; ++i) {
    // All pairs of a form and an exponential within six draws.
    const std::size_t form =
        forms.size() < 4 ? i % forms.size() : i % 2 + i / 6 % 2 * 2;
    way w{as, forms[form], {}};
    w.draw = seed + i;
    w.exp = facts.exp.value_or(static_cast<exponential>(i % 3));
    add(w);
  }
  return ways;
}

std::string words_of(const way& w) {
  std::string s = w.chunk == 0 ? "token by token"
                  : w.columns  ? text("column by column in chunks of ", w.chunk)
                               : text("chunks of ", w.chunk);
  if (w.rounding.operand != format::f32) {
    std::string f(format_name(w.rounding.operand));
    std::transform(f.begin(), f.end(), f.begin(), ::toupper);
    s += (w.rounding.cut ? ", operands cut to " : ", operands rounded to ") + f;
  } else {
    s += " in fp32";
  }
  if (w.rounding.decayed) s += " after the decay";
  if (w.scaled) s += w.rounding.decayed ? " and scale" : " after the scale";
  if (w.stored) s += ", activations too";
  if (w.draw != 0) {
    if (w.exp == exponential::exp2) s += ", exp2(x log2 e)";
    if (w.exp == exponential::approximate) s += ", ex2.approx";
  }
  if (!w.plain()) s += ", a draw of its errors";
  return s;
}

std::vector<std::string> freedoms_of(const dump& d, const kernel_facts& facts) {
  const profile as = facts.as.value_or(implied_profile(d));
  std::vector<std::string> list;
  const std::string input(safetensors::dtype_name(d.dtype));
  const std::string chunks = facts.chunk
                                 ? text("chunks of ", *facts.chunk)
                                 : std::string("chunks of 16 to 128 tokens");
  switch (as) {
    case profile::tensor_core:
      list = {chunks, "operands of products rounded to " + input};
      break;
    case profile::tf32:
      list = {chunks, "operands of products rounded or cut to TF32"};
      break;
    case profile::fp32:
      list = {facts.chunk ? chunks : chunks + " or token by token",
              "all arithmetic in fp32, sums in any order"};
      break;
    case profile::ieee_recurrent:
      list = {"token by token or column by column",
              "all arithmetic in fp32, sums in any order"};
      break;
  }
  const more_roundings more(d, as, facts);
  if (more.decayed) list.push_back("operands rounded before a decay or after");
  if (as == profile::fp32 || as == profile::ieee_recurrent) {
    list.push_back(
        !facts.exp ? "exp correctly rounded, as exp2(x log2 e) or "
                     "by a GPU's ex2.approx"
        : *facts.exp == exponential::rounded ? "exp correctly rounded"
        : *facts.exp == exponential::exp2    ? "exp as exp2(x log2 e)"
                                             : "exp by a GPU's ex2.approx");
  }
  if (more.scaled) list.push_back("q rounded before its scale or after");
  if (more.stored) {
    list.push_back("normalised q and k and gates made in " + input + " or not");
  }
  if (as == profile::tensor_core && !facts.chunk) {
    list.push_back("final state stored in " + input + " or not");
  }
  return list;
}

gradient_result<double> compute(const dump& d, const way& w,
                                const run_options& run) {
  if (w.draw != 0) {
    if (w.chunk == 0) return solve_drawn(d, w, recurrent_solver{}, run);
    return solve_drawn(d, w, chunked_solver<accumulating_policy>{w.chunk, {}},
                       run);
  }
  if (w.chunk == 0) return solve_plain(d, w, reference_solver{}, run);
  if (w.columns) return solve_plain(d, w, columnwise_solver{w.chunk}, run);
  return solve_plain(
      d, w, chunked_solver<operand_policy>{w.chunk, operand_policy(w.rounding)},
      run);
}

std::vector<double> stored_as(format storage,
                              const std::vector<double>& values) {
  std::vector<double> y = values;
  round_all(storage, std::span(y));
  return y;
}

namespace {

/// The errors of one way in one tensor.
struct way_error {
  error_unit whole;
  std::vector<double> each;  // for tensors of few numbers
};

way_error error_of(const std::vector<double>& values,
                   const std::vector<double_double>& exact, bool small) {
  const tensor_error e = measure(values, exact);
  way_error w{{e.rms, e.largest}, {}};
  for (std::size_t i = 0; small && i < exact.size(); ++i) {
    const double x = std::fabs(static_cast<double>(values[i] - exact[i]));
    w.each.push_back(std::isfinite(x) ? x : 0);
  }
  return w;
}

}  // namespace

ensemble run_ensemble(const dump& given, const std::vector<way>& ways,
                      const gradient_result<double_double>& exact,
                      const run_options& run) {
  const dump d = with_finite_decays(given);
  ensemble e{ways, {}, std::vector<gradient_result<double>>(ways.size())};
  std::vector<std::vector<way_error>> errors(ways.size());
  // The longest first, so that no thread is left with it at the end.
  const auto last = static_cast<index_t>(ways.size()) - 1;
  parallel_for(last + 1, run, [&](index_t task) {
    const auto i = static_cast<std::size_t>(last - task);
    const way& w = ways[i];
    gradient_result<double> r = compute(d, w, {1, {}});
    for (const judged_tensor& x : d.judged) {
      const auto& y = result_named(exact, x.name).data;
      const auto& z = result_named(r, x.name).data;
      const format storage = *safetensors::format_of(x.dtype);
      const bool small = y.size() <= few_numbers;
      // A draw's values stand for numbers that have been rounded to fp32.
      way_error best = error_of(
          w.draw != 0 && storage == format::f32 ? z : stored_as(storage, z), y,
          small);
      if (w.rounding.draw != 0 && !(w.few_only ? small : few_errors(x))) {
        best = {};
      }
      if (w.stored_state && x.name == "final_state" && storage == format::f32) {
        const way_error narrow =
            error_of(stored_as(w.rounding.operand, z), y, small);
        if (narrow.whole.rms > best.whole.rms) best = narrow;
      }
      errors[i].push_back(std::move(best));
    }
    if (w.plain()) e.results[i] = std::move(r);
  });
  for (std::size_t t = 0; t < d.judged.size(); ++t) {
    tensor_unit u{d.judged[t].name, {}, 0};
    std::vector<double> each(d.judged[t].values.data.size());
    const bool small = each.size() <= few_numbers;
    for (std::size_t i = 0; i < ways.size(); ++i) {
      const way_error& x = errors[i][t];
      if (x.whole.rms > u.unit.rms) u.unit.rms = x.whole.rms, u.largest_way = i;
      u.unit.largest = std::max(u.unit.largest, x.whole.largest);
      for (std::size_t j = 0; j < x.each.size(); ++j) {
        each[j] = std::max(each[j], x.each[j]);
      }
    }
    if (small) u.unit.rms = root_mean_square(each);
    e.units.push_back(std::move(u));
  }
  return e;
}

}  // namespace carve::program
