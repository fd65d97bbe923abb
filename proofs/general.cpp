/// @file
/// Is the general step (an erase address and a direction of its own, a look
/// before the decay, sub-steps) one function however it is computed, and which
/// models is it?  WY-10, RED-6, RED-7, RED-8.
#include <string>

#include "directional.hpp"
#include "mutants.hpp"

namespace carve::proofs {

namespace {

/// Heads of the general step; a gate on the key axis is part of the address.
space general(erase_order order, index_t substeps) {
  space from;
  from.gate(b, {along::none});
  from.address = from.direction = true;
  from.order = order;
  from.substeps = from.min_tokens = substeps;
  // A decay of the value axis has no place in a look before it.
  if (order == erase_order::before_decay) from.gate(d, {along::none});
  return from;
}

// WY-10

enum class misread { nothing, order, direction, address, substeps };

/// Law: the chunked form of one reading is the recurrence of another.
struct same_reading {
  misread f = misread::nothing;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    head<T> other = in.view();
    if (f == misread::order) {
      other.erase_reads = in.shape.order == erase_order::after_decay
                              ? erase_order::before_decay
                              : erase_order::after_decay;
    }
    if (f == misread::direction) other.y = {};
    if (f == misread::address) other.r = {};
    if (f == misread::substeps) other.substeps = 1;
    std::vector<T> right = values(recurrent<T>(), other);
    std::vector<T> left = values(chunked<T>(in.shape.chunk), in.view());
    if (f == misread::substeps) {
      // Compare final states: a token a sub-step decays too often.
      const std::size_t n = in.shape.keys * in.shape.values;
      left.erase(left.begin(), left.end() - n);
      right.erase(right.begin(), right.end() - n);
    }
    return {left, right};
  }
};

void general_step(settlement& s) {
  const auto after = erase_order::after_decay,
             before = erase_order::before_decay;
  const struct {
    const char* name;
    space from;
  } readings[] = {{"erase after the decay", general(after, 1)},
                  {"erase before the decay", general(before, 1)},
                  {"two sub-steps, erase after the decay", general(after, 2)},
                  {"three sub-steps, erase before it", general(before, 3)}};
  for (const auto& [name, from] : readings) {
    const std::string of = std::string(", ") + name;
    identity(s, "chunked = recurrent" + of, from, same_values{}, 400, 200);
    identity(s, "column by column = recurrent" + of, from,
             same_values{actor::columnwise}, 200, 100);
    identity(s, "chunked backward = recurrent backward" + of, from,
             same_gradients{}, 300, 150);
    identity(s, "backward = derivative" + of, from, reverse_is_derivative{},
             300, 150);
  }
  space only = general(after, 1);
  only.address = false;
  only.gate(b, {along::none, along::head, along::channel});
  identity(s, "chunked = recurrent, a direction alone", only, same_values{},
           300, 150);
  only.address = true, only.direction = false;
  only.gate(b, {along::none});
  identity(s, "chunked = recurrent, an address alone", only, same_values{}, 300,
           150);
  space decayed = general(after, 1);
  decayed.gate(a, {along::head, along::channel});
  identity_mutant(s, "erase on the other side of the decay", decayed,
                  same_reading{misread::order});
  identity_mutant(s, "taken away along the key", general(after, 1),
                  same_reading{misread::direction});
  identity_mutant(s, "looked up at the key", general(before, 1),
                  same_reading{misread::address});
  space two = general(after, 2);
  two.gate(a, {along::head, along::channel});
  identity_mutant(s, "a decay for every sub-step", two,
                  same_reading{misread::substeps});
  s.detail(
      "With y_t != k_t a token adds two rank-one terms. In a chunk S_t = G_t "
      "S_0 + sum (G_t/G_s k_s)(w_s v_s)^T - sum (G_t/G_s y_s) c_s^T, and the "
      "looked-up rows solve one unit triangular system: (I + A) C = R^ S_0 + B "
      "(w v), with A_ts = sum_i r_t (G_t/G_s) y_s and B the same with k_s: one "
      "inverse a chunk, as before.");
}

// RED-6

enum class model { comba, comba_before, dplr, rwkv7, product, eda, trapezoid };
enum class model_fault { none, sign, write_ungated };

/// The extra vectors of a model, and the library's head with its settings.
template <class T>
struct as_general {
  std::vector<T> r, y, k, v, w;
  head<T> p;

  as_general(model m, const tensors<T>& in) : p(in.view()) {
    const index_t K = p.keys, V = p.values, steps = p.steps();
    const rows<const T> key = in.view(tensor::k), value = in.view(tensor::v);
    const rows<const T> beta = in.view(b), given = in.view(address),
                        other = in.view(direction), eta = in.view(tensor::w);
    p.b = {}, p.r = {}, p.y = {};
    const auto rows_of = [](std::vector<T>& x, index_t width) {
      return rows<const T>{x.data(), width, 1};
    };
    const auto address_is = [&](auto&& f) {
      for (index_t t = 0; t < steps; ++t) {
        for (index_t i = 0; i < K; ++i) r.push_back(f(t, i));
      }
      p.r = rows_of(r, K);
    };
    const auto direction_is = [&](auto&& f) {
      for (index_t t = 0; t < steps; ++t) {
        for (index_t i = 0; i < K; ++i) y.push_back(f(t, i));
      }
      p.y = rows_of(y, K);
    };
    switch (m) {
      case model::comba:
      case model::comba_before:
        address_is([&](auto t, auto i) { return beta(t, 0) * given(t, i); });
        p.w = beta;
        if (m == model::comba_before) {
          p.erase_reads = erase_order::before_decay;
        }
        break;
      case model::dplr:
        p.r = given;
        direction_is([&](auto t, auto i) { return -other(t, i); });
        p.w = {};
        p.erase_reads = erase_order::before_decay;
        break;
      case model::rwkv7:
        p.r = given;
        direction_is([&](auto t, auto i) { return given(t, i) * other(t, i); });
        p.w = {};
        p.erase_reads = erase_order::before_decay;
        break;
      case model::product:
        p.b = p.w = beta;
        break;
      case model::eda:
        // Two rows a token: erase along p, nothing written; then delta.
        for (index_t t = 0; t < p.tokens; ++t) {
          for (index_t i = 0; i < K; ++i) r.push_back(eta(t, 0) * given(t, i));
          for (index_t i = 0; i < K; ++i) r.push_back(beta(t, 0) * key(t, i));
          for (index_t i = 0; i < K; ++i) k.push_back(given(t, i));
          for (index_t i = 0; i < K; ++i) k.push_back(key(t, i));
          for (index_t j = 0; j < V; ++j) v.push_back(T(0));
          for (index_t j = 0; j < V; ++j) v.push_back(value(t, j));
          w.push_back(T(0)), w.push_back(beta(t, 0));
        }
        p.r = rows_of(r, K), p.k = rows_of(k, K), p.v = rows_of(v, V);
        p.w = {w.data(), 1, 0};
        p.substeps = 2;
        break;
      case model::trapezoid:
        // The last token's key and value, then this one's.
        for (index_t t = 0; t < p.tokens; ++t) {
          for (const index_t at : {t - 1, t}) {
            for (index_t i = 0; i < K; ++i) {
              k.push_back(at < 0 ? T(0) : T(key(at, i)));
            }
            for (index_t j = 0; j < V; ++j) {
              v.push_back(at < 0 ? T(0) : T(value(at, j)));
            }
          }
          w.push_back(beta(t, 0)), w.push_back(eta(t, 0));
        }
        p.k = rows_of(k, K), p.v = rows_of(v, V), p.w = {w.data(), 1, 0};
        p.substeps = 2;
        p.erases = false;
        break;
    }
  }
};

/// The models as their papers write them, a matrix at a time.
template <class T>
std::vector<T> textbook(model m, const tensors<T>& in, model_fault f) {
  const head<T> shape = in.view();
  const index_t K = shape.keys, V = shape.values, n = in.shape.substeps;
  const rows<const T> key = in.view(k), value = in.view(v), query = in.view(q);
  const rows<const T> decay = in.view(a), beta = in.view(b);
  const rows<const T> given = in.view(address), other = in.view(direction);
  const rows<const T> eta = in.view(w);
  matrix<T> S = matrix<T>::Constant(K, V, T(0));
  if (const auto S0 = in.state(start)) {
    for (index_t i = 0; i < K; ++i) {
      for (index_t j = 0; j < V; ++j) S(i, j) = S0(i, j);
    }
  }
  const auto outer = [](const rows<const T>& x, index_t s,
                        const rows<const T>& z, index_t t, index_t rows,
                        index_t columns) {
    matrix<T> product(rows, columns);
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < columns; ++j) product(i, j) = x(s, i) * z(t, j);
    }
    return product;
  };
  const matrix<T> one = matrix<T>::Identity(K, K);
  std::vector<T> result;
  for (index_t t = 0; t < shape.tokens; ++t) {
    matrix<T> A = one;
    for (index_t i = 0; i < K && decay; ++i) A(i, i) = decay(t, i);
    const matrix<T> old = S;
    switch (m) {
      case model::comba:
        S = matrix<T>((one - T(beta(t, 0)) * outer(key, t, given, t, K, K)) *
                      A * S);
        break;
      case model::comba_before:
        S = matrix<T>((A - T(beta(t, 0)) * outer(key, t, given, t, K, K)) * S);
        break;
      case model::dplr:
        S = matrix<T>((A + outer(other, t, given, t, K, K)) * S);
        break;
      case model::rwkv7: {
        matrix<T> erase = outer(given, t, given, t, K, K);
        for (index_t i = 0; i < K; ++i) {
          for (index_t l = 0; l < K; ++l) erase(i, l) *= other(t, i);
        }
        if (f == model_fault::sign) erase = -erase;
        S = matrix<T>((A - erase) * S);
        break;
      }
      case model::product:
        S = matrix<T>(A * S);
        for (index_t s = n * t; s < n * (t + 1); ++s) {
          S = matrix<T>((one - T(beta(s, 0)) * outer(key, s, key, s, K, K)) *
                        S);
          S += T(beta(s, 0)) * outer(key, s, value, s, K, V);
        }
        break;
      case model::eda:
        S = matrix<T>((one - T(eta(t, 0)) * outer(given, t, given, t, K, K)) *
                      A * S);
        S = matrix<T>((one - T(beta(t, 0)) * outer(key, t, key, t, K, K)) * S);
        break;
      case model::trapezoid:
        S = matrix<T>(A * S);
        if (t > 0) {
          S += T(beta(t, 0)) * outer(key, t - 1, value, t - 1, K, V);
        }
        S += T(eta(t, 0)) * outer(key, t, value, t, K, V);
        break;
    }
    if (m != model::product && m != model::trapezoid) {
      const bool gated =
          m == model::comba || m == model::comba_before || m == model::eda;
      const T factor =
          gated && f != model_fault::write_ungated ? T(beta(t, 0)) : T(1);
      S += factor * outer(key, t, value, t, K, V);
    }
    for (index_t j = 0; j < V; ++j) {
      T o(0);
      for (index_t i = 0; i < K; ++i) {
        o += (in.shape.read == readout::before ? old(i, j) : S(i, j)) *
             T(query(t, i));
      }
      result.push_back(in.scale * o);
    }
  }
  for (index_t i = 0; i < K; ++i) {
    for (index_t j = 0; j < V; ++j) result.push_back(S(i, j));
  }
  return result;
}

/// Law: the general step with the settings of a model is that model, token by
/// token and chunked.
struct is_model {
  model m;
  model_fault f = model_fault::none;
  model other = m;  ///< whose textbook; a mutant where it is not m

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const as_general<T> x(m, in);
    const std::vector<T> right = textbook(other, in, f);
    sides<T> both{values(recurrent<T>(), x.p), right};
    both.add(values(chunked<T>(in.shape.chunk), x.p), right);
    return both;
  }
};

space space_of(model m) {
  space from;
  from.gate(d, {along::none}).gate(w, {along::none});
  from.gate(b, {along::head});
  switch (m) {
    case model::comba:
    case model::comba_before:
      from.gate(a, {along::head});
      from.address = true;
      break;
    case model::dplr:
    case model::rwkv7:
      from.gate(a, {along::channel});
      from.address = from.direction = true;
      break;
    case model::product:
      from.gate(a, {along::head});
      from.substeps = from.min_tokens = 3;
      break;
    case model::eda:
      from.gate(a, {along::channel}).gate(w, {along::head});
      from.address = true;
      break;
    case model::trapezoid:
      from.gate(a, {along::head}).gate(w, {along::head});
      break;
  }
  return from;
}

void models(settlement& s) {
  constexpr std::pair<model, const char*> all[] = {
      {model::comba, "Comba, erase after the decay"},
      {model::comba_before, "Comba, erase before the decay"},
      {model::dplr, "DPLR"},
      {model::rwkv7, "RWKV-7"},
      {model::product, "Gated DeltaProduct"},
      {model::eda, "EDA"},
      {model::trapezoid, "Mamba-3"}};
  for (const auto& [m, name] : all) {
    identity(s, name, space_of(m), is_model{m}, 300, 200);
  }
  identity_mutant(s, "Comba that writes without beta", space_of(model::comba),
                  is_model{model::comba, model_fault::write_ungated});
  identity_mutant(s, "RWKV-7 that adds what it should erase",
                  space_of(model::rwkv7),
                  is_model{model::rwkv7, model_fault::sign});
  identity_mutant(s, "EDA that writes without beta", space_of(model::eda),
                  is_model{model::eda, model_fault::write_ungated});
  identity_mutant(
      s, "one reading of Comba for the other", space_of(model::comba),
      is_model{model::comba, model_fault::none, model::comba_before});
  s.detail(
      "Each model is written out with its own matrices (FLA's naive "
      "references and the papers), independently of the library. Values over "
      "every commutative ring are values over dual numbers too, so the "
      "derivatives agree; that the library's backward is the derivative of the "
      "general step is WY-10.");
}

// RED-7

/// Law: an address that looks after the decay is the decayed address that
/// looks before it.
struct moved_address {
  bool undecayed = false;  ///< mutant

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    head<T> after = in.view(), before = after;
    std::vector<T> r;
    for (index_t t = 0; t < after.steps(); ++t) {
      for (index_t i = 0; i < after.keys; ++i) {
        r.push_back(undecayed ? T(after.r(t, i))
                              : after.a(t, i) * after.r(t, i));
      }
    }
    before.r = {r.data(), after.keys, 1};
    before.erase_reads = erase_order::before_decay;
    return {values(recurrent<T>(), after), values(recurrent<T>(), before)};
  }
};

void two_readings(settlement& s) {
  // One token: S_0 = 1, decay 1/2, p = k = q = beta = 1, v = 0, scale 1.
  const auto end = [](erase_order order) {
    const rational one = 1, half = rational(1) / 2, zero = 0;
    head<rational> p;
    p.tokens = p.keys = p.values = 1;
    p.q = p.k = p.r = p.w = {&one, 1, 1};
    p.v = {&zero, 1, 1};
    p.a = {&half, 1, 1};
    p.S0 = {&one, 1, 1};
    p.erase_reads = order;
    return values(recurrent<rational>(), p).back();
  };
  const rational after = end(erase_order::after_decay),
                 before = end(erase_order::before_decay);
  s.count(2);
  s.require(after == 0 && before == rational(-1) / 2, "the witness");
  s.witness(
      "To check by hand: one token, K = V = 1, S_0 = 1, decay 1/2, p = k = "
      "beta = 1, v = 0. After the decay 1/2 is found and taken away: S = 0. "
      "Before it 1 is found: S = 1/2 - 1 = -1/2.");
  space decayed = general(erase_order::after_decay, 1);
  decayed.gate(a, {along::head, along::channel}).gate(d, {along::none});
  decayed.direction = false;
  identity(s, "after the decay with r = before it with a * r", decayed,
           moved_address{}, 300, 200);
  identity_mutant(s, "the same address on both sides", decayed,
                  moved_address{true});
  s.detail(
      "So either reading can be written in the other, with the address a * r, "
      "and a port that takes one for the other is wrong by the decay: not at "
      "all where nothing decays. FLA's kernels of Comba and its naive chunked "
      "reference read before the decay, its naive recurrent one after it "
      "(fla-core 0.6.0).");
}

// RED-8

/// Law: a full mask whose columns are all b is GDN-2's key-axis gate b.
struct mask_of_columns {
  bool own_columns = false;  ///< mutant: columns that differ

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    tensors<T> masked = in;
    masked.shape.gates[b - a] = along::none;
    masked.shape.has_mask = true;
    masked.x[b].clear();
    for (const T& x : in.x[b]) {
      for (index_t j = 0; j < in.shape.values; ++j) {
        masked.x[mask].push_back(own_columns && j > 0 ? in.fresh() : x);
      }
    }
    return {values(recurrent<T>(), masked), values(recurrent<T>(), in)};
  }
};

void published_gates(settlement& s) {
  space from;
  from.gate(a, {along::channel}).gate(b, {along::channel});
  from.gate(d, {along::none}).gate(w, {along::channel});
  from.min_values = 2;
  s.counterexample(
      "GDN-2 as published (arXiv 2605.22791, equation 10, and the layers of "
      "flash-linear-attention, cuDNN-frontend and FlashInfer) projects its "
      "input to an erase vector b of K numbers and a write vector w of V "
      "numbers a head, not to K x V masks. To check by hand that it makes a "
      "difference: K = 1, V = 2, k = 1, S_0 = (1, 1), nothing written. The "
      "mask (1, 0) leaves (0, 1); the vector b leaves (1 - b, 1 - b).");
  s.corrected(
      "The masks are GDN-2 where every column of the erase mask is the same b "
      "(checked here), and every row of the write mask the same w.");
  identity(s, "mask with equal columns = key-axis gate", from,
           mask_of_columns{}, 300, 200);
  identity_mutant(s, "mask whose columns differ", from, mask_of_columns{true});
}

}  // namespace

void register_general_step(ledger& all) {
  all.add({.id = "WY-10",
           .statement = "The general step (erase address r and direction y "
                        "given, n sub-steps a token, erase before or after "
                        "the decay): chunked = recurrent, forward and "
                        "backward, exactly.",
           .source = "arXiv 2506.02475, 2503.14456, 2502.10297, 2606.26560",
           .method = "polynomial identities of values and gradients; "
                     "gradients against dual numbers",
           .settle = general_step});
  all.add({.id = "RED-6",
           .statement = "Comba, DPLR, RWKV-7, Gated DeltaProduct, EDA and "
                        "Mamba-3 are the general step with their settings.",
           .source = "arXiv 2506.02475, 2503.14456, 2502.10297, 2606.26560; "
                     "fla-core 0.6.0",
           .method = "polynomial identities against each model's own "
                     "recurrence",
           .settle = models});
  all.add({.id = "RED-7",
           .statement = "The two readings of Comba, erase before or after the "
                        "decay, differ.",
           .source = "fla-core 0.6.0 (kernels against the naive recurrence)",
           .method = "exact witness; the bridge as a polynomial identity",
           .settle = two_readings});
  all.add({.id = "RED-8",
           .statement = "GDN-2's gates are full d_v x d_k masks.",
           .source = "abstract of arXiv 2606.27229",
           .method = "the published layers; polynomial identity for masks "
                     "with equal columns",
           .settle = published_gates});
}

}  // namespace carve::proofs
