/// @file
/// Is the way back right?  GRAD-1 to GRAD-4.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "directional.hpp"
#include "mutants.hpp"

namespace carve::proofs {

namespace {

const std::vector<along> any{along::none, along::head, along::channel};

space with_mask() {
  space from = space{}.gate(b, {along::none}).gate(e, any);
  from.mask = true;
  return from;
}

// GRAD-1

void add_mutants(settlement& s, const space& from,
                 std::initializer_list<std::pair<fault, const char*>> faults) {
  for (const auto& [f, what] : faults) {
    identity_mutant(s, what, from,
                    reverse_is_derivative{actor::naive_reverse, f});
  }
}

void reverse_walk(settlement& s) {
  const space key = space{}, value = space{}.gate(e, any), full = with_mask();
  identity(s, "key-axis erase", key, reverse_is_derivative{}, 1500, 800);
  identity(s, "value-axis erase", value, reverse_is_derivative{}, 1500, 800);
  identity(s, "full mask", full, reverse_is_derivative{}, 1500, 800);
  identity(s, "long heads", long_heads(value), reverse_is_derivative{}, 10, 50);
  identity(s, "wide heads", wide_heads(value), reverse_is_derivative{}, 10, 50);
  identity(s, "independent reverse walk", value,
           reverse_is_derivative{actor::naive_reverse}, 400, 200);
  identity(s, "independent reverse walk, full mask", full,
           reverse_is_derivative{actor::naive_reverse}, 400, 200);
  s.detail(
      "Inputs move along a direction with a free variable for each entry, "
      "decays along their logs, a (1 + z eps); the cotangents are free too. "
      "The two sides are <cotangent, derivative> and <gradient, direction>, "
      "so that equality means every entry of every gradient: q, k, v, both "
      "log decays, b, e, E, w and the start state.");
  add_mutants(
      s, value,
      {{fault::write_gate_missing, "write gate missing in dv"},
       {fault::erase_gate_constant, "value-axis erase gate taken as constant"},
       {fault::address_constant, "erase address taken as constant"},
       {fault::key_through_erase_missing, "dk without the erase address"},
       {fault::decay_of_erase_missing, "dg without the erase"},
       {fault::value_decay_missing_back, "value decay missing on the way back"},
       {fault::end_cotangent_missing, "cotangent of the final state dropped"},
       {fault::scale_missing_back, "scale of the read-out missing"},
       {fault::query_of_other_state, "dq from the state at the other side"}});
  add_mutants(s, full,
              {{fault::decay_of_erase_missing, "mask: dg without the erase"},
               {fault::address_constant, "mask taken as constant"}});
}

// GRAD-2

void chunked_back(settlement& s) {
  identity(s, "chunked, key-axis erase", {}, same_gradients{}, 1500, 800);
  const space value = space{}.gate(e, any), full = with_mask();
  identity(s, "column by column, value-axis erase", value,
           same_gradients{actor::columnwise}, 1500, 800);
  identity(s, "column by column, full mask", full,
           same_gradients{actor::columnwise}, 1500, 800);
  identity(s, "chunked, long heads", long_heads(), same_gradients{}, 10, 50);
  identity(s, "chunked, wide heads", wide_heads(), same_gradients{}, 10, 50);
  identity(s, "column by column, long heads", long_heads(value),
           same_gradients{actor::columnwise}, 10, 50);
  const space constant = space{}.gate(e, {along::head});
  identity(s, "chunked, one value gate per head", constant, same_gradients{},
           600, 400);
  for (const auto& [f, what] :
       {std::pair{fault::write_gate_missing, "write gate missing in dv"},
        std::pair{fault::decay_of_erase_missing, "dg without the erase"},
        std::pair{fault::key_through_erase_missing,
                  "dk without the erase address"},
        std::pair{fault::value_decay_missing_back,
                  "value decay missing on the way back"},
        std::pair{fault::query_of_other_state,
                  "dq from the state at the other side"}}) {
    identity_mutant(s, what, {},
                    same_gradients{actor::chunked, actor::naive_reverse, f});
  }
  identity_mutant(s, "value-axis erase gate taken as constant", value,
                  same_gradients{actor::columnwise, actor::naive_reverse,
                                 fault::erase_gate_constant});
}

// GRAD-3

enum class content_slip { none, path_cut, no_derivative, state_cotangent_lost };

/// The polynomial activation with its derivative forgotten.
template <class T>
struct flat_activation : polynomial_activation<T> {
  T derivative(const T&, const T&) const { return T(1); }
};

/// Law: backward through the content gate is the derivative, in the chunked
/// and in the recurrent form.
struct content_derivative {
  content_slip slip = content_slip::none;
  fault f = fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    tensor_values<T> z;
    const auto moved = with_direction(in, z);
    const T derivative =
        pulled_back(content_values(recurrent<dual<T>>(), moved), in);
    sides<T> both;
    if (slip == content_slip::none && f == fault::none) {
      both.add(derivative, paired(content_gradients(recurrent<T>(), in), z));
      both.add(derivative,
               paired(content_gradients(chunked<T>(in.shape.chunk), in), z));
      both.add(content_gradients(chunked<T>(in.shape.chunk), in),
               content_gradients(recurrent<T>(), in));
    } else {
      both.add(derivative, paired(wrong(in), z));
    }
    return both;
  }

 private:
  template <class T>
  static T paired(const std::vector<T>& gradient, const tensor_values<T>& z) {
    T sum(0);
    std::size_t at = 0;
    for (const auto& direction : z) {
      for (const T& x : direction) sum += x * gradient[at++];
    }
    return sum;
  }

  template <class T>
  std::vector<T> wrong(const tensors<T>& in) const {
    solver<T> one = recurrent<T>();
    const auto right = one.back;
    if (f != fault::none) one.back = make<T>(actor::naive_reverse, 1, f).back;
    if (slip == content_slip::no_derivative) {
      gradient_store<T> store(in.shape);
      content_backward(in.view(), gate_of(in), one, in.cotangents(),
                       store.views(), {store.state(down), store.state(up)},
                       rows<T>{}, state_view<T>{}, flat_activation<T>{});
      return store.all();
    }
    if (slip == content_slip::state_cotangent_lost) {
      one.back = [right](const head<T>& p, head_cotangents<T> to,
                         const head_gradients<T>& out, rows<T> o,
                         state_view<T> S) {
        to.S = {};
        right(p, to, out, o, S);
      };
    }
    if (slip == content_slip::path_cut) {
      // Outputs keep their own cotangent only, none from later gates.
      one.back = [right, &in](const head<T>& p, head_cotangents<T> to,
                              const head_gradients<T>& out, rows<T> o,
                              state_view<T> S) {
        const index_t t0 = (p.q.data - in.x[q].data()) / in.shape.keys;
        to.o = in.view(dout).from(t0);
        right(p, to, out, o, S);
      };
    }
    return content_gradients(one, in);
  }
};

void content_back(settlement& s) {
  space from = space{}.gate(b, {along::head, along::channel});
  from.content = true;
  from.tokens = 5;
  identity(s, "chunked and recurrent", from, content_derivative{}, 800, 600);
  s.detail(
      "Gradients of q, k, v, decays, logits, write gate, start state, W_down "
      "and W_up; the sigmoid is replaced by the activation x^3 + x with its "
      "derivative 3 x^2 + 1.");
  for (const auto& [slip, what] :
       {std::pair{content_slip::path_cut,
                  "gates taken as independent of earlier outputs"},
        std::pair{content_slip::no_derivative,
                  "derivative of the activation missing"},
        std::pair{content_slip::state_cotangent_lost,
                  "cotangent of the state lost between windows"}}) {
    identity_mutant(s, what, from, content_derivative{slip});
  }
  identity_mutant(
      s, "erase address taken as constant", from,
      content_derivative{content_slip::none, fault::address_constant});
  identity_mutant(
      s, "write gate missing in dv", from,
      content_derivative{content_slip::none, fault::write_gate_missing});
}

// GRAD-4

/// Which wrong gradient is tried.
enum class division { none, of_decay_by_decay, of_write_gate, factored };

template <class T>
bool gradients_are_finite(const std::vector<T>& x) {
  return std::all_of(x.begin(), x.end(),
                     [](const T& y) { return carve::isfinite(y); });
}

/// One head with gates of 0 and 1 among others and log decays from 0 to -200.
template <class T>
bool backward_is_finite(generator& rng, std::ostream& show,
                        division how = division::none) {
  layout shape;
  shape.tokens = integer(rng, 1, 64), shape.keys = integer(rng, 1, 8);
  shape.values = integer(rng, 1, 4), shape.chunk = integer(rng, 1, 64);
  shape.gates[0] = shape.gates[2] = shape.gates[4] = along::channel;
  if (rng() % 2 == 0) shape.gates[d - a] = along::channel;
  const bool value_erase = how == division::none && rng() % 3 == 0;
  if (value_erase) shape.gates[e - a] = along::channel;
  shape.has_start = true;
  shape.read = rng() % 2 == 0 ? readout::after : readout::before;
  const auto number = [&rng] { return T(uniform(rng, -1, 1)); };
  auto in = tensors<T>::filled(shape, number);
  in.scale = T(1);
  // Keys of norm at most one, some of them zero.
  const double norm = 1 / std::sqrt(static_cast<double>(shape.keys));
  for (T& x : in.x[k]) x = rng() % 8 == 0 ? T(0) : T(norm) * x;
  for (const tensor i : {b, e, w}) {
    const auto kind = rng() % 4;
    for (T& x : in.x[i]) {
      x = kind == 0   ? T(0)
          : kind == 1 ? T(1)
          : kind == 2 ? T(static_cast<int>(rng() % 2))
                      : T(uniform(rng, 0, 1));
    }
  }
  for (const tensor i : {a, d}) {
    const auto kind = rng() % 4;
    for (T& x : in.x[i]) {
      const double log = kind == 0   ? 0
                         : kind == 1 ? -200
                         : kind == 2 ? (rng() % 2 == 0 ? 0 : -200)
                                     : uniform(rng, -200, 0);
      x = carve::exp(T(log));
    }
  }
  show << "T = " << shape.tokens << ", K = " << shape.keys
       << ", V = " << shape.values << ", C = " << shape.chunk;
  if (how == division::none) {
    return gradients_are_finite(gradients(recurrent<T>(), in)) &&
           gradients_are_finite(gradients(columnwise<T>(shape.chunk), in)) &&
           (value_erase ||
            gradients_are_finite(gradients(chunked<T>(shape.chunk), in)));
  }
  gradient_store<T> store(shape);
  recurrent<T>().backward(in.view(), in.cotangents(), store.views());
  bool finite = true;
  const tensor gate = how == division::of_write_gate ? w : a;
  T cumulated(1);
  for (std::size_t n = 0; n < store.x[gate].size(); ++n) {
    T divisor = in.x[gate][n];
    if (how == division::factored && n % shape.keys == 0) {
      cumulated = cumulated * divisor;
      divisor = cumulated;
    }
    finite = finite && carve::isfinite(T(store.x[gate][n] / divisor));
  }
  return finite;
}

/// The same through the content gate, sigmoids saturated on either side.
template <class T>
bool content_backward_is_finite(generator& rng, std::ostream& show) {
  layout shape;
  shape.tokens = integer(rng, 1, 64), shape.keys = integer(rng, 1, 4);
  shape.values = integer(rng, 1, 4), shape.window = integer(rng, 1, 20);
  shape.chunk = integer(rng, 1, 20), shape.rank = 2;
  shape.gates[0] = shape.gates[2] = along::channel;
  shape.has_content = true;
  auto in =
      tensors<T>::filled(shape, [&rng] { return T(uniform(rng, -1, 1)); });
  in.scale = T(1);
  for (T& x : in.x[k]) x = T(0.5) * x;
  for (T& x : in.x[b]) x = T(uniform(rng, -1000, 1000));
  for (T& x : in.x[a]) x = carve::exp(T(rng() % 2 == 0 ? 0 : -200));
  show << "T = " << shape.tokens << ", window = " << shape.window;
  bool finite = true;
  for (const solver<T>& one : {recurrent<T>(), chunked<T>(shape.chunk)}) {
    gradient_store<T> store(shape);
    content_backward(in.view(), gate_of(in), one, in.cotangents(),
                     store.views(), {store.state(down), store.state(up)});
    finite = finite && gradients_are_finite(store.all());
  }
  return finite;
}

void no_nan(settlement& s) {
  s.holds_in_floating_point("float", 2000,
                            [](generator& rng, std::ostream& show) {
                              return backward_is_finite<float>(rng, show);
                            });
  s.holds_in_floating_point("double", 2000,
                            [](generator& rng, std::ostream& show) {
                              return backward_is_finite<double>(rng, show);
                            });
  s.holds_in_floating_point(
      "double-double", 200, [](generator& rng, std::ostream& show) {
        return backward_is_finite<double_double>(rng, show);
      });
  s.holds_in_floating_point("content gate, float", 500,
                            content_backward_is_finite<float>);
  s.holds_in_floating_point("content gate, double", 500,
                            content_backward_is_finite<double>);

  // A bound for all inputs at once: every intermediate result is a polynomial,
  // and none is larger than the sum of its coefficients where |inputs| <= 1.
  degree::peak() = 0;
  layout shape;
  shape.tokens = shape.chunk = 12, shape.keys = shape.values = 4;
  shape.gates = {along::channel, along::channel, along::channel, along::none,
                 along::channel};
  shape.has_start = true;
  const auto in =
      tensors<degree>::filled(shape, [] { return degree::variable(); });
  gradients(recurrent<degree>(), in);
  gradients(chunked<degree>(12), in);
  gradients(columnwise<degree>(5), in);
  const double peak = degree::peak();
  s.count(3);
  s.measured();
  s.require(peak < 120, "no intermediate result can overflow a float");
  std::ostringstream text;
  text << "The backward passes divide by nothing and take no logarithm, so a "
          "NaN could only come from an infinity. For inputs of magnitude at "
          "most 1, T = 12 and K = V = 4, no intermediate result of the "
          "recurrent, chunked or column-by-column backward exceeds 2^"
       << static_cast<int>(std::ceil(peak))
       << " (sums of coefficients, counted by running the code on the scalar "
          "that carries them), whatever the inputs: below 2^127 there is no "
          "infinity. Longer sequences (up to 64 tokens) were tried with keys "
          "of norm at most one; states that grow without bound (see STAB-2) "
          "must overflow some day.";
  s.detail(text.str());
  for (const auto& [how, what] :
       {std::pair{division::of_decay_by_decay,
                  "gradient of the decay as dg / a"},
        std::pair{division::of_write_gate, "gradient divided by a write gate"},
        std::pair{division::factored,
                  "gradient divided by the cumulated decay"}}) {
    s.mutant(what, 2000, [how = how](generator& rng, std::ostream& show) {
      return backward_is_finite<float>(rng, show, how);
    });
  }
}

}  // namespace

void register_gradients(ledger& all) {
  all.add({.id = "GRAD-1",
           .statement = "The reverse walk is the derivative of the "
                        "recurrence, exactly, for every input, every gate "
                        "placement, both read-outs, with and without start "
                        "state.",
           .source = "this library",
           .method = "polynomial identity against dual numbers along a free "
                     "direction",
           .settle = reverse_walk});
  all.add({.id = "GRAD-2",
           .statement = "The chunked backward equals the recurrent backward, "
                        "exactly.",
           .source = "arXiv 2406.06484, arXiv 2510.26692",
           .method = "polynomial identity of all gradients",
           .settle = chunked_back});
  all.add({.id = "GRAD-3",
           .statement = "The backward through CARVE's content gate is the "
                        "derivative, chunked and recurrent alike.",
           .source = "arXiv 2606.27229",
           .method = "polynomial identity against dual numbers, with a "
                     "polynomial activation",
           .settle = content_back});
  all.add({.id = "GRAD-4",
           .statement = "No gradient has a NaN at gates of 0 and 1 and at log "
                        "decays from 0 to -200.",
           .source = "this library",
           .method = "all gradients of random heads looked at in float, "
                     "double and double-double; a bound on every intermediate "
                     "result; `carve-proofs GRAD-4`",
           .settle = no_nan});
}

}  // namespace carve::proofs
