/// @file
/// What can a state hold, and what can a gate that looks at it do?  CAP-1..4.
#include <algorithm>
#include <sstream>

#include "carve/content_gate.hpp"
#include "carve/solver.hpp"
#include "identity.hpp"
#include "stability.hpp"

namespace carve::proofs {

namespace {

template <class T>
matrix<T> fresh_matrix(const tensors<T>& in, index_t rows, index_t columns) {
  matrix<T> m(rows, columns);
  for (index_t n = 0; n < m.size(); ++n) m.data()[n] = in.fresh();
  return m;
}

template <class T>
state_view<T> view(matrix<T>& m) {
  return {m.data(), m.cols(), 1};
}

/// The state after all tokens.
template <class T>
matrix<T> end_of(const head<T>& p) {
  matrix<T> S(p.keys, p.values);
  recurrent_forward(p, rows<T>{}, view(S));
  return S;
}

/// A space whose tensors a law fills itself: it needs the shape only.
space shapes_only(index_t tokens) {
  space from;
  from.tokens = tokens;
  for (auto& gates : from.gates) gates = {along::none};
  from.before = from.start = false;
  return from;
}

// CAP-1

enum class recall_fault {
  none,
  not_orthogonal,
  nothing_erased,
  decay,
  rewrites_neighbour,
};

/// K tokens with orthogonal keys of one squared length c2, values v and write
/// gate w, then key 0 again with another value and erase gate beta.  Law: the
/// state returns c2 w v for every key but the first, and for that
/// `c2 w (v' + (1 - beta c2) v)`.  Unit keys, w = beta = 1: exactly v and v'.
struct store_and_rewrite {
  recall_fault f = recall_fault::none;

  /// Rows of the product of two mirrors, each times its normal's squared
  /// length: orthogonal over any ring.
  template <class T>
  static matrix<T> orthogonal(const tensors<T>& in, index_t K, T& length) {
    matrix<T> all = matrix<T>::Identity(K, K);
    length = T(1);
    for (int n = 0; n < 2; ++n) {
      const matrix<T> normal = fresh_matrix(in, K, 1);
      T square(0);
      for (index_t i = 0; i < K; ++i) square += normal(i, 0) * normal(i, 0);
      matrix<T> mirror = matrix<T>::Identity(K, K) * square;
      mirror -= T(2) * matrix<T>(normal * normal.transpose());
      all = matrix<T>(all * mirror);
      length *= square * square;
    }
    return all;
  }

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const index_t K = in.shape.keys, V = in.shape.values;
    T c2(0);
    matrix<T> keys = orthogonal(in, K, c2);
    if (f == recall_fault::not_orthogonal) keys = fresh_matrix(in, K, K);
    const T gate = in.fresh(), beta = in.fresh();
    matrix<T> key(K + 1, K), value = fresh_matrix(in, K + 1, V);
    key.topRows(K) = keys;
    key.row(K) = keys.row(f == recall_fault::rewrites_neighbour ? K - 1 : 0);
    const matrix<T> erase = matrix<T>::Constant(K + 1, 1, beta);
    const matrix<T> decay = fresh_matrix(in, K + 1, 1);
    head<T> p;
    p.tokens = K + 1, p.keys = K, p.values = V;
    p.k = {key.data(), K, 1};
    p.v = {value.data(), V, 1};
    p.b = {erase.data(), 1, 0};
    p.w = {&gate, 0, 0};
    if (f == recall_fault::decay) p.a = {decay.data(), 1, 0};
    p.erases = f != recall_fault::nothing_erased;
    const matrix<T> S = end_of(p);
    const matrix<T> read = keys * S;
    sides<T> both;
    for (index_t i = 0; i < K; ++i) {
      for (index_t j = 0; j < V; ++j) {
        T expected = c2 * gate * value(i, j);
        if (i == 0) {
          expected = expected - beta * c2 * expected;
          expected += c2 * gate * value(K, j);
        }
        both.add(read(i, j), expected);
      }
    }
    return both;
  }
};

/// Unit keys and gates of one, in random order, some written again, read by
/// the head itself: every query returns the last value of its key.
bool recalls(generator& rng, std::ostream& show, const rational& beta) {
  const int K = integer(rng, 1, 4), V = integer(rng, 1, 3);
  const int writes = K + integer(rng, 0, 4), tokens = writes + K;
  matrix<rational> basis = matrix<rational>::Identity(K, K);
  for (int n = 0; n < 2; ++n) {
    const auto normal = random_key(rng, K);
    rational square = 0;
    for (const rational& x : normal) square += x * x;
    matrix<rational> mirror = matrix<rational>::Identity(K, K);
    for (int i = 0; i < K; ++i) {
      for (int j = 0; j < K; ++j) {
        mirror(i, j) -= 2 * normal[i] * normal[j] / square;
      }
    }
    basis = matrix<rational>(basis * mirror);
  }
  matrix<rational> key(tokens, K), value(tokens, V), last(K, V), o(tokens, V);
  const matrix<rational> query = basis.replicate(tokens / K + 1, 1);
  std::vector<rational> gate(tokens, beta);
  for (int t = 0; t < tokens; ++t) {
    const int i = t < K ? t : integer(rng, 0, K - 1);
    const bool writing = t < writes;
    for (int l = 0; l < K; ++l) {
      key(t, l) = writing ? basis(i, l) : rational(0);
    }
    for (int j = 0; j < V; ++j) {
      value(t, j) = integer(rng, -9, 9);
      if (writing) last(i, j) = value(t, j);
    }
  }
  head<rational> p;
  p.tokens = tokens, p.keys = K, p.values = V;
  p.q = {query.data(), K, 1};
  p.k = {key.data(), K, 1};
  p.v = {value.data(), V, 1};
  p.b = {gate.data(), 1, 0};
  recurrent_forward(p, rows<rational>{o.data(), V, 1}, state_view<rational>{});
  bool same = true;
  for (int t = writes; t < tokens; ++t) {
    for (int j = 0; j < V; ++j) same = same && o(t, j) == last(t % K, j);
  }
  show << "K = " << K << ", V = " << V << ", " << writes << " writes";
  return same;
}

void orthonormal_keys(settlement& s) {
  const space from = shapes_only(1);
  using law = store_and_rewrite;
  identity(s, "store K keys, write one again", from, law{}, 60, 20);
  identity_mutant(s, "keys that are not orthogonal", from,
                  law{recall_fault::not_orthogonal});
  identity_mutant(s, "nothing erased", from, law{recall_fault::nothing_erased});
  identity_mutant(s, "decay", from, law{recall_fault::decay});
  identity_mutant(s, "the neighbour's key written again", from,
                  law{recall_fault::rewrites_neighbour});
  s.holds(
      "every query returns the last value of its key (rationals)", 300,
      [](generator& rng, std::ostream& show) { return recalls(rng, show, 1); });
  s.mutant("erase gate 1/2", 1000, [](generator& rng, std::ostream& show) {
    return recalls(rng, show, fraction(1, 2));
  });
  s.argued(
      "Orthogonal keys do not see each other: S = sum_i k_i (w v_i)^T, and a "
      "second write with the gate beta leaves c^2 w (v' + (1 - beta c^2) v) "
      "under its own key, c^2 = |k|^2, and everything else untouched. With "
      "unit keys and beta = w = 1 recall is exact. No decay: a decay per head "
      "shrinks what is stored, one per channel mixes the keys.");
}

// CAP-2

enum class scalar_fault { none, first_channel, value_not_scaled };

/// Law: a write gate per value channel on values `beta v` does what one
/// number beta does on values `w * v`.
struct scalar_write {
  scalar_fault f = scalar_fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const index_t tokens = in.shape.tokens, V = in.shape.values;
    const matrix<T> beta = fresh_matrix(in, tokens, 1);
    matrix<T> gate = fresh_matrix(in, tokens, V), scaled(tokens, V),
              product(tokens, V);
    head<T> p = in.view(), one = p;
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t j = 0; j < V; ++j) {
        scaled(t, j) = beta(t, 0) * p.v(t, j);
        const T w_j = gate(t, f == scalar_fault::first_channel ? 0 : j);
        product(t, j) =
            f == scalar_fault::value_not_scaled ? p.v(t, j) : w_j * p.v(t, j);
      }
    }
    p.v = {scaled.data(), V, 1}, p.w = {gate.data(), V, 1};
    one.v = {product.data(), V, 1}, one.w = {beta.data(), 1, 0};
    sides<T> both;
    const auto run = [&](const head<T>& h) {
      matrix<T> o(tokens, V), S(h.keys, V);
      recurrent_forward(h, rows<T>{o.data(), V, 1}, view(S));
      std::vector<T> all(o.data(), o.data() + o.size());
      all.insert(all.end(), S.data(), S.data() + S.size());
      return all;
    };
    both.add(run(p), run(one));
    return both;
  }
};

void scalar_gate(settlement& s) {
  const space from = space{}.gate(w, {along::none});
  identity(s, "a scalar write gate reaches what a value-wise one reaches", from,
           scalar_write{}, 100, 40);
  space wide = from;
  wide.min_values = 2;
  identity_mutant(s, "the first channel's gate for all", wide,
                  scalar_write{scalar_fault::first_channel});
  identity_mutant(s, "values left as they were", from,
                  scalar_write{scalar_fault::value_not_scaled});
  s.holds(
      "K orthonormal keys recalled under a scalar write gate (rationals)", 100,
      [](generator& rng, std::ostream& show) { return recalls(rng, show, 1); });
  s.argued(
      "The state sees w * v only. Whatever values and value-wise gates (w, v) "
      "leave in the state, a scalar gate beta other than zero leaves with the "
      "values w * v / beta; so the sets of reachable states are the same, and "
      "the K keys of CAP-1 too. This is a statement about the recurrence: a "
      "layer that makes v by a linear map of its input cannot make w * v by "
      "one, so as a function of the input something is given up. The row is "
      "nearly vacuous: it says RED-4 again, that w and v act through w * v.");
}

// CAP-3

enum class dependence_fault { none, one_sign, one_key_less };

/// Law: for K + 1 keys, with c_i the signed minors of the keys,
/// `sum_i c_i k_i = 0`, hence `sum_i c_i S^T k_i = 0` for every state S.
struct dependent_recall {
  dependence_fault f = dependence_fault::none;

  template <class T>
  static std::vector<T> minors(const matrix<T>& keys) {
    const index_t K = keys.cols();
    std::vector<T> c;
    for (index_t i = 0; i <= K; ++i) {
      matrix<T> rest(K, K);
      for (index_t m = 0; m < K; ++m) rest.row(m) = keys.row(m < i ? m : m + 1);
      const T x = determinant(rest);
      c.push_back(i % 2 == 0 ? x : T(-x));
    }
    return c;
  }

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const index_t K = in.shape.keys, V = in.shape.values;
    const matrix<T> keys = fresh_matrix(in, K + 1, K);
    std::vector<T> c = minors(keys);
    if (f == dependence_fault::one_sign) c[0] = -c[0];
    if (f == dependence_fault::one_key_less) c[0] = T(0);
    // The state of an arbitrary history, gates and decays included.
    const matrix<T> S = end_of(in.view());
    const matrix<T> read = keys * S;
    sides<T> both;
    for (index_t i = 0; i < K; ++i) {
      T sum(0);
      for (index_t n = 0; n <= K; ++n) sum += c[n] * keys(n, i);
      both.add(sum, T(0));
    }
    for (index_t j = 0; j < V; ++j) {
      T sum(0);
      for (index_t n = 0; n <= K; ++n) sum += c[n] * read(n, j);
      both.add(sum, T(0));
    }
    return both;
  }
};

enum class too_many { generic, values_follow_keys, keys_fit };

/// K + 1 unit keys stored one after the other with gates of one, and read
/// back: an answer is wrong, and the errors are as large as they must be.
bool forgets_one(too_many kind, generator& rng, std::ostream& show) {
  const int K = integer(rng, 1, 4), V = integer(rng, 1, 3);
  const int keys = kind == too_many::keys_fit ? K : K + 1;
  matrix<rational> key(keys, K), value(keys, V);
  // A basis, and one key more.
  for (int t = 0; t < keys; ++t) {
    const auto extra = random_unit(rng, K);
    for (int i = 0; i < K; ++i) {
      key(t, i) = t == K ? extra[i] : rational(t == i ? 1 : 0);
    }
    for (int j = 0; j < V; ++j) value(t, j) = integer(rng, 1, 1000000);
  }
  if (kind == too_many::values_follow_keys) {
    const auto map = random_state(rng, K, V);
    value = key * map;
  }
  const auto c = keys == K + 1 ? dependent_recall::minors(key)
                               : std::vector<rational>(keys, rational(1));
  head<rational> p;
  p.tokens = keys, p.keys = K, p.values = V;
  p.k = {key.data(), K, 1};
  p.v = {value.data(), V, 1};
  const matrix<rational> read = key * end_of(p);
  show << "K = " << K << ", V = " << V;
  bool bounded = true;
  for (int j = 0; j < V; ++j) {
    rational sum = 0, error = 0, square = 0;
    for (int t = 0; t < keys; ++t) {
      const rational miss = value(t, j) - read(t, j);
      sum += c[t] * value(t, j);
      error += miss * miss;
      square += c[t] * c[t];
    }
    // Generic: no column of the values obeys the dependence of the keys.
    if (kind == too_many::generic && sum == 0) return true;
    bounded = bounded && error * square >= sum * sum;
  }
  return read != value && bounded;
}

void one_key_too_many(settlement& s) {
  const space from;
  identity(s, "K + 1 keys and their recalls are linearly dependent", from,
           dependent_recall{}, 60, 40);
  identity_mutant(s, "one minor with the wrong sign", from,
                  dependent_recall{dependence_fault::one_sign});
  identity_mutant(s, "one key left out of the dependence", from,
                  dependent_recall{dependence_fault::one_key_less});
  const auto law = [](too_many kind) {
    return [kind](generator& rng, std::ostream& show) {
      return forgets_one(kind, rng, show);
    };
  };
  s.holds("one of K + 1 recalls is wrong (rationals)", 400,
          law(too_many::generic));
  s.mutant("one of K recalls is wrong", 400, law(too_many::keys_fit));
  s.mutant("one of K + 1 recalls is wrong for all values", 400,
           law(too_many::values_follow_keys));
  s.argued(
      "Proof. K + 1 vectors of K channels are dependent: sum c_i k_i = 0 with "
      "c not zero (the signed minors, or, where those vanish, a dependence "
      "among fewer keys). If S^T k_i = v_i for all i, then sum c_i v_i = 0: "
      "one linear condition per value channel that generic values break (all "
      "values outside a hyperplane). It holds for every K x V state, by "
      "whatever rule it was written, so no gate changes it. The squared recall "
      "errors sum to at least |sum c_i v_i|^2 / |c|^2. That generic values "
      "break the condition is a fact of linear algebra alone: it says nothing "
      "of gates or of how the state is written.");
}

// CAP-4

/// `1/2 + x / (2 (1 + |x|))`, increasing from 0 to 1, rational.
struct rational_gate {
  rational value(const rational& x) const {
    return fraction(1, 2) + x / (2 * (1 + abs(x)));
  }
};

enum class looks_at { content, token };

/// The state after a first token that writes v and a second one that is the
/// same for every history; content window of one token.
struct two_histories {
  index_t K = 1, V = 1;
  std::vector<rational> key, query, logits;  ///< [2,K]
  std::vector<rational> down, up;            ///< rank 1: [1,V], [K,1]
  std::vector<rational> last_value;          ///< what token 2 writes [V]

  matrix<rational> end(const std::vector<rational>& first_value,
                       looks_at what) const {
    std::vector<rational> value = first_value;
    append(value, last_value);
    head<rational> p;
    p.tokens = 2, p.keys = K, p.values = V;
    p.q = {query.data(), K, 1}, p.k = {key.data(), K, 1};
    p.v = {value.data(), V, 1}, p.b = {logits.data(), K, 1};
    const std::vector<rational> closed(up.size(), rational(0));
    content_gate<rational> gate{1, 1, {}, {}};
    gate.w_down = {down.data(), V, 1};
    gate.w_up = {what == looks_at::content ? up.data() : closed.data(), 1, 1};
    matrix<rational> S(K, V);
    content_forward(p, gate, recurrent_solver{}, rows<rational>{}, view(S),
                    rational_gate{});
    return S;
  }
};

/// With a gate that sees the token only, the second token acts on the state as
/// one affine map, the same for every history: the history half-way between
/// two others ends half-way.
bool ends_half_way(looks_at what, generator& rng, std::ostream& show) {
  two_histories h;
  h.K = integer(rng, 1, 3), h.V = integer(rng, 1, 3);
  const int K = static_cast<int>(h.K), V = static_cast<int>(h.V);
  h.key = random_unit(rng, K);
  append(h.key, random_unit(rng, K));
  h.query = random_fractions(rng, 2 * K, -2, 2);
  h.logits = random_fractions(rng, 2 * K, -2, 2);
  h.down = random_fractions(rng, V, -2, 2);
  h.up = random_fractions(rng, K, -2, 2);
  h.last_value = random_fractions(rng, V, -2, 2);
  const auto x = random_fractions(rng, V, -2, 2),
             y = random_fractions(rng, V, -2, 2);
  std::vector<rational> middle(V);
  for (int j = 0; j < V; ++j) middle[j] = (x[j] + y[j]) / 2;
  show << "K = " << K << ", V = " << V;
  return h.end(x, what) + h.end(y, what) == 2 * h.end(middle, what);
}

void content_sees_more(settlement& s) {
  two_histories h;
  h.key = h.query = {1, 1};
  h.logits = {0, 0};
  h.down = h.up = {1};
  h.last_value = {0};
  const auto run = [&](int value, looks_at what) {
    return h.end({rational(value)}, what)(0, 0);
  };
  s.require(run(1, looks_at::content) == fraction(1, 4) &&
                run(-1, looks_at::content) == fraction(-3, 4),
            "the content gate leaves 1/4 and -3/4");
  s.require(run(1, looks_at::token) == fraction(1, 2) &&
                run(-1, looks_at::token) == fraction(-1, 2),
            "a gate of 1/2 leaves 1/2 and -1/2");
  // Whatever number a gate takes from token 2, the two ends are opposite.
  s.holds("a token-only gate leaves opposite states", 100,
          [&](generator& rng, std::ostream& show) {
            two_histories other = h;
            other.logits[1] = random_fraction(rng, -50, 50);
            show << "logit " << other.logits[1];
            return other.end({rational(1)}, looks_at::token) ==
                   -other.end({rational(-1)}, looks_at::token);
          });
  s.mutant("a content gate leaves opposite states", 100,
           [&](generator&, std::ostream&) {
             return run(1, looks_at::content) == -run(-1, looks_at::content);
           });
  s.holds("under a token-only gate the middle history ends in the middle", 300,
          [](generator& rng, std::ostream& show) {
            return ends_half_way(looks_at::token, rng, show);
          });
  s.mutant("under a content gate the middle history ends in the middle", 300,
           [](generator& rng, std::ostream& show) {
             return ends_half_way(looks_at::content, rng, show);
           });
  s.argued(
      "Example, to check by hand: K = V = 1, content window of one token, "
      "W_down = W_up = 1, activation f(x) = 1/2 + x / (2 (1 + |x|)). Token 1: "
      "q = k = 1, v = 1 in one history and -1 in the other, so o_1 = S_1 = 1 "
      "or -1. Token 2, the same in both: q = k = 1, v = 0, logit 0, so the "
      "gate is f(1) = 3/4 or f(-1) = 1/4 and the state 1 - 3/4 = 1/4 or -1 + "
      "1/4 = -3/4. A gate b that sees token 2 only leaves 1 - b and -(1 - b): "
      "opposite numbers, which 1/4 and -3/4 are not. Any activation with f(1) "
      "other than f(-1) does it, the sigmoid included.\n\n"
      "In general a token-only gate makes of every token one affine map of "
      "the state, the same for all histories; a content gate does not.");
}

}  // namespace

void register_memory(ledger& all) {
  all.add({.id = "CAP-1",
           .statement = "K orthonormal keys are stored and recalled exactly; a "
                        "rewrite of one key leaves the others untouched.",
           .source = "arXiv 2606.27229 (memory capacity), arXiv 2406.06484",
           .method = "polynomial identity for orthogonal keys of any length; "
                     "whole histories over the rationals",
           .settle = orthonormal_keys});
  all.add({.id = "CAP-2",
           .statement = "A scalar write gate costs no capacity.",
           .source = "arXiv 2606.27229 (value efficiency)",
           .method = "polynomial identity of outputs and final state",
           .settle = scalar_gate});
  all.add({.id = "CAP-3",
           .statement = "K + 1 keys cannot all be recalled for generic values.",
           .source = "this library",
           .method = "linear dependence as a polynomial identity; whole "
                     "histories over the rationals",
           .settle = one_key_too_many});
  all.add({.id = "CAP-4",
           .statement = "There are two histories with the same next token and "
                        "different memories on which a content gate erases "
                        "differently, and no token-only gate can.",
           .source = "arXiv 2606.27229 (expressivity separation)",
           .method = "exact example; the property of token-only gates that it "
                     "breaks, over the rationals",
           .settle = content_sees_more});
}

}  // namespace carve::proofs
