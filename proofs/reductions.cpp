/// @file
/// Which members of the family are special cases of which?  RED-1 to RED-5.
#include <bit>
#include <cmath>
#include <sstream>
#include <type_traits>

#include "carve/family.hpp"
#include "carve/triangular.hpp"
#include "directional.hpp"
#include "mutants.hpp"

namespace carve::proofs {

namespace {

/// How a textbook formula may be misread.
enum class slip { none, decay_after_erase, write_without_gate, read_before };

/// The recurrences as their papers write them, transition matrix and all.  The
/// scalar gate beta is in `b`, decay in `a`, GDN-2's write gate in `w`.
///
///     linear attention, Mamba-2, GLA   S = A S + k v^T
///     DeltaNet                         S = (I - beta k k^T) S + beta k v^T
///     GDN                              S = alpha (I - beta k k^T) S + ...
///     KDA                              S = (I - beta k k^T) diag(a) S + ...
template <class T>
std::vector<T> textbook(family f, const tensors<T>& in, slip s = slip::none) {
  const index_t K = in.shape.keys, V = in.shape.values;
  const rows<const T> decay = in.view(a), beta = in.view(b);
  const rows<const T> query = in.view(q), key = in.view(k), value = in.view(v);
  matrix<T> S = matrix<T>::Constant(K, V, T(0));
  for (index_t i = 0; i < K && in.shape.has_start; ++i) {
    for (index_t j = 0; j < V; ++j) S(i, j) = in.x[start][i * V + j];
  }
  std::vector<T> result;
  const bool erases = info(f).erase != axis::none;
  for (index_t t = 0; t < in.shape.tokens; ++t) {
    matrix<T> A = matrix<T>::Identity(K, K);
    matrix<T> erase = matrix<T>::Identity(K, K);
    for (index_t i = 0; i < K; ++i) {
      if (decay) A(i, i) = decay(t, i);
      for (index_t m = 0; m < K && erases; ++m) {
        erase(i, m) -= T(beta(t, 0)) * T(key(t, i)) * T(key(t, m));
      }
    }
    const matrix<T> old = S;
    const matrix<T> step = s == slip::decay_after_erase ? A * erase : erase * A;
    S = matrix<T>(step * S);
    for (index_t i = 0; i < K; ++i) {
      for (index_t j = 0; j < V; ++j) {
        T written = T(key(t, i)) * T(value(t, j));
        if (erases && s != slip::write_without_gate) {
          written = T(beta(t, 0)) * written;
        }
        S(i, j) += written;
      }
    }
    for (index_t j = 0; j < V; ++j) {
      T o(0);
      const bool before = in.shape.read == readout::before;
      for (index_t i = 0; i < K; ++i) {
        o += (before != (s == slip::read_before) ? old(i, j) : S(i, j)) *
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

/// The library's one recurrence with gates placed and tied as the family asks.
template <class T>
head<T> member(family f, const tensors<T>& in) {
  head<T> p = in.view();
  p.w = info(f).tied ? p.b : rows<const T>{};
  p.erases = info(f).erase != axis::none;
  return p;
}

/// Law: the library's recurrence so tied is the family's own.
struct is_member {
  family f;
  bool gradient = false;
  slip s = slip::none;
  bool write_share_lost = false;  ///< mutant: tied gradient without w's share

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const head<T> p = member(f, in);
    if (!gradient) {
      sides<T> both{values(recurrent<T>(), p), textbook(f, in, s)};
      both.add(values(chunked<T>(in.shape.chunk), p), textbook(f, in, s));
      return both;
    }
    gradient_store<T> store(in.shape);
    head_gradients<T> to = store.views();
    to.w = info(f).tied && !write_share_lost ? to.b : rows<T>{};
    recurrent<T>().backward(p, in.cotangents(), to);
    tensor_values<T> z;
    const auto moved = with_direction(in, z);
    sides<T> both;
    both.add(pulled_back(textbook(f, moved, s), in), pairing(store.x, z));
    return both;
  }
};

space space_of(family f) {
  const family_info& row = info(f);
  const auto one = [](axis x) {
    return std::vector{x == axis::none   ? along::none
                       : x == axis::head ? along::head
                                         : along::channel};
  };
  space from;
  from.gate(a, one(row.decay)).gate(d, {along::none}).gate(w, {along::none});
  from.gate(b, {row.tied ? along::head : along::none});
  return from;
}

/// Law: the larger member with the smaller one's gates is the smaller one.
struct reduces {
  bool last_gate_free = false;  ///< mutant: one entry of the gate left alone

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    // GDN-2 whose gates b and w hold beta in every channel, against the tie.
    tensors<T> wide = in;
    const index_t N = in.shape.tokens, K = in.shape.keys, V = in.shape.values;
    wide.shape.gates[b - a] = wide.shape.gates[w - a] = along::channel;
    wide.x[b].assign(N * K, T(0)), wide.x[w].assign(N * V, T(0));
    for (index_t t = 0; t < N; ++t) {
      for (index_t i = 0; i < K; ++i) wide.x[b][t * K + i] = in.x[b][t];
      for (index_t j = 0; j < V; ++j) wide.x[w][t * V + j] = in.x[b][t];
    }
    if (last_gate_free) wide.x[b].back() = in.fresh();
    const head<T> tied = member(family::kda, in);
    sides<T> both{values(recurrent<T>(), wide), values(recurrent<T>(), tied)};
    gradient_store<T> large(wide.shape), small(in.shape);
    head_gradients<T> to = small.views();
    to.w = to.b;
    recurrent<T>().backward(wide.view(), in.cotangents(), large.views());
    recurrent<T>().backward(tied, in.cotangents(), to);
    std::vector<T> sum(N, T(0));
    for (index_t t = 0; t < N; ++t) {
      for (index_t i = 0; i < K; ++i) sum[t] += large.x[b][t * K + i];
      for (index_t j = 0; j < V; ++j) sum[t] += large.x[w][t * V + j];
    }
    both.add(sum, small.x[b]);
    for (const tensor i : {q, k, v, a, start}) both.add(large.x[i], small.x[i]);
    return both;
  }
};

void family_tree(settlement& s) {
  for (const family f : {family::kda, family::gdn, family::delta, family::gla,
                         family::mamba2, family::linear}) {
    const std::string title(info(f).title);
    identity(s, title + ", values", space_of(f), is_member{f}, 600, 400);
    identity(s, title + ", gradients", space_of(f), is_member{f, true}, 600,
             400);
  }
  identity(s, "GDN-2 with b = w = beta is KDA, values and gradients",
           space_of(family::kda), reduces{}, 600, 400);
  s.detail(
      "Each family's own recurrence is written out with its transition "
      "matrix, independently of the library; its derivative is taken by dual "
      "numbers. The library's side is its one recurrence with gates tied by "
      "pointing them at the same memory, so that the gradient of a tied gate "
      "is the sum of its shares.");
  const auto slipped = [&](family f, bool gradient, slip x, const char* what) {
    identity_mutant(s, what, space_of(f), is_member{f, gradient, x});
  };
  slipped(family::kda, false, slip::decay_after_erase,
          "KDA with decay after erase");
  slipped(family::kda, true, slip::decay_after_erase,
          "gradients of KDA with decay after erase");
  slipped(family::gdn, false, slip::write_without_gate,
          "GDN that writes without beta");
  slipped(family::delta, true, slip::write_without_gate,
          "gradients of DeltaNet that writes without beta");
  slipped(family::gla, false, slip::read_before, "GLA read at the other side");
  identity_mutant(s, "gradient of beta without its share from the write",
                  space_of(family::kda),
                  is_member{family::kda, true, slip::none, true});
  identity_mutant(s, "one entry of b not tied", space_of(family::kda),
                  reduces{true});
}

// RED-2

/// A problem with erase gate `erase * beta` and write gate `write * beta`.
template <class T>
std::vector<T> scaled_gates(const tensors<T>& in, int erase, int write,
                            bool from_zero = false) {
  tensors<T> x = in;
  x.shape.gates[w - a] = along::head;
  x.x[w] = in.x[b];
  for (T& y : x.x[b]) y = T(erase) * y;
  for (T& y : x.x[w]) y = T(write) * y;
  head<T> p = x.view();
  if (from_zero) p.S0 = {};
  return values(recurrent<T>(), p);
}

/// Law: KDA with beta doubled minus GDN-2 with b doubled is what GDN-2 makes
/// of a zero start state.
struct difference_of_doublings {
  int erase = 2, write = 1;  ///< of GDN-2
  bool from_zero = true;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    sides<T> both{scaled_gates(in, 2, 2), scaled_gates(in, erase, write)};
    const auto rest = scaled_gates(in, erase, write, from_zero);
    for (std::size_t n = 0; n < rest.size(); ++n) both.right[n] += rest[n];
    return both;
  }
};

void negative_eigenvalues(settlement& s) {
  const space from = space_of(family::kda);
  identity(s, "difference of the two doublings", from,
           difference_of_doublings{}, 600, 400);
  find_witness(s, "GDN-2 with 2b and w = beta equals KDA with 2 beta", 500,
               from, [](const instance& x) {
                 const auto in = tensors<rational>::of(x);
                 return scaled_gates(in, 2, 1) == scaled_gates(in, 2, 2);
               });
  s.witness(
      "To check by hand: one token, K = V = 1, k = v = q = 1, beta = 1/2, "
      "zero start state. GDN-2 doubles b alone and writes beta v = 1/2; KDA "
      "doubles beta and writes 1.");
  const auto witness = [](int erase, int write) {
    instance x;
    x.gates[b - a] = along::head;
    x.x[q] = x.x[k] = x.x[v] = {{1, 1}};
    x.x[b] = {{1, 2}};
    x.x[dout] = x.x[dstate] = {{0, 1}};
    return scaled_gates(tensors<rational>::of(x), erase, write).front();
  };
  const auto differs = [&](int erase, int write) {
    return witness(erase, write) != witness(2, 2);
  };
  s.require(witness(2, 1) == rational(1) / 2 && differs(2, 1), "the witness");
  s.corrected(
      "With the same inputs the two differ by exactly the response of GDN-2 "
      "from a zero start state: they agree if and only if nothing that GDN-2 "
      "writes is ever read. From a zero start state KDA's outputs are twice "
      "GDN-2's.");
  s.mutant("GDN-2 that doubles w too", !differs(2, 2));
  identity_mutant(s, "nothing doubled in GDN-2", from,
                  difference_of_doublings{1, 1});
  identity_mutant(s, "w doubled instead of b", from,
                  difference_of_doublings{1, 2});
  identity_mutant(s, "response from the start state instead of from zero", from,
                  difference_of_doublings{2, 1, false});
}

// RED-3

template <class T>
bool same_bits(const std::vector<T>& x, const std::vector<T>& y) {
  using bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  if (x.size() != y.size()) return false;
  for (std::size_t n = 0; n < x.size(); ++n) {
    if (std::bit_cast<bits>(x[n]) != std::bit_cast<bits>(y[n])) return false;
  }
  return true;
}

enum class initial { right, up_not_zero, plain_sigmoid, state_dropped };

/// `1 / (1 + exp(-x))` without care for the sign of x.
struct plain_sigmoid {
  template <class T>
  T value(const T& x) const {
    return T(1) / (T(1) + std::exp(-x));
  }
  template <class T>
  T derivative(const T&, const T& y) const {
    return y * (T(1) - y);
  }
};

template <class T>
bool starts_identical(generator& rng, std::ostream& show, bool in_chunks,
                      initial how = initial::right) {
  layout shape;
  shape.tokens = integer(rng, 1, 40), shape.keys = integer(rng, 1, 9);
  shape.values = integer(rng, 1, 9), shape.chunk = integer(rng, 1, 8);
  shape.window = shape.chunk * integer(rng, 1, 3);
  shape.rank = integer(rng, 1, 3);
  shape.gates = {along::channel, along::none, along::channel, along::none,
                 along::head};
  shape.has_start = rng() % 2 == 0;
  shape.has_content = true;
  shape.read = rng() % 2 == 0 ? readout::after : readout::before;
  auto in = tensors<T>::filled(
      shape, [&rng] { return static_cast<T>(uniform(rng, -1, 1)); });
  for (T& x : in.x[a]) x = std::fabs(x);
  for (T& x : in.x[b]) x *= 40;  // logits
  for (T& x : in.x[up]) {
    x = how == initial::up_not_zero ? T(1e-3) * x : T(0);
  }
  show << "T = " << shape.tokens << ", K = " << shape.keys
       << ", V = " << shape.values << ", window = " << shape.window;
  solver<T> s = in_chunks ? chunked<T>(shape.chunk) : recurrent<T>();
  const solver<T> whole = s;
  if (how == initial::state_dropped) {
    s.run = [whole](head<T> p, rows<T> o, state_view<T> S) {
      p.S0 = {};
      whole.forward(p, o, S);
    };
  }
  const index_t N = shape.tokens, V = shape.values;
  std::vector<T> content((N + shape.keys) * V, T(0));
  const rows<T> o{content.data(), V, 1};
  const state_view<T> S{content.data() + N * V, V, 1};
  if (how == initial::plain_sigmoid) {
    content_forward(in.view(), gate_of(in), s, o, S, plain_sigmoid{});
  } else {
    content_forward(in.view(), gate_of(in), s, o, S);
  }
  for (T& x : in.x[b]) x = carve::sigmoid(x);
  return same_bits(content, values(whole, in));
}

void initialisation(settlement& s) {
  for (const bool in_chunks : {false, true}) {
    const std::string form = in_chunks ? "chunked" : "token by token";
    s.holds_in_floating_point(
        "float, " + form, 1000, [=](generator& rng, std::ostream& show) {
          return starts_identical<float>(rng, show, in_chunks);
        });
    s.holds_in_floating_point(
        "double, " + form, 1000, [=](generator& rng, std::ostream& show) {
          return starts_identical<double>(rng, show, in_chunks);
        });
  }
  space from;
  from.gate(d, {along::none}).gate(w, {along::channel});
  from.gate(b, {along::channel});
  refute(s, "A scalar write gate does what GDN-2's value-wise one does", 500,
         from, [](const instance& x) {
           const auto in = tensors<rational>::of(x);
           auto one = in;
           one.shape.gates[w - a] = along::head;
           one.x[w].clear();
           for (index_t t = 0; t < x.tokens; ++t) {
             one.x[w].push_back(in.x[w][t * x.values]);
           }
           return values(recurrent<rational>(), in) ==
                  values(recurrent<rational>(), one);
         });
  s.counterexample(
      "To check by hand: one token, K = 1, V = 2, k = q = 1, v = (1, 1), zero "
      "start state, scale 1. GDN-2 with w = (0, 1) reads (0, 1); CARVE with "
      "any scalar gate w reads (w, w).");
  s.corrected(
      "At initialisation (W_up = 0) CARVE equals, bit for bit in float and "
      "double, GDN-2 with b = sigmoid(x) and one write gate per head: token "
      "by token for every content window, and chunked when the window is a "
      "multiple of the chunk length, so that both forms cut at the same "
      "tokens. Against GDN-2 with a value-wise write gate it holds only where "
      "that gate is constant along V. It also needs a finite mean: with an "
      "infinite one the zero of W_up gives a NaN.");
  for (const auto& [how, what] :
       {std::pair{initial::up_not_zero, "W_up of size 1e-3 instead of zero"},
        std::pair{initial::plain_sigmoid,
                  "sigmoid by 1 / (1 + exp(-x)) for every x"},
        std::pair{initial::state_dropped, "state dropped between windows"}}) {
    s.mutant(what, 1000, [how = how](generator& rng, std::ostream& show) {
      return starts_identical<double>(rng, show, false, how);
    });
  }
}

// RED-4

/// Law: the problem with (w, v) is the problem with (1, w * v), and its
/// gradients follow from that by the product rule.
struct only_the_product {
  bool gradient = false;
  fault f = fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    tensors<T> product = in;
    product.shape.gates[w - a] = along::none;
    product.x[w].clear();
    const index_t V = in.shape.values;
    const rows<const T> gate = in.view(w);
    for (index_t n = 0; n < in.shape.size(v); ++n) {
      product.x[v][n] *= T(gate(n / V, n % V));
    }
    if (!gradient) {
      const actor who =
          f == fault::none ? actor::recurrent : actor::naive_recurrent;
      const auto one = make<T>(who, in.shape.chunk, f);
      return {values(one, in), values(one, product)};
    }
    const actor who =
        f == fault::none ? actor::recurrent : actor::naive_reverse;
    gradient_store<T> left(in.shape), right(product.shape);
    make<T>(who, 1, f).backward(in.view(), in.cotangents(), left.views());
    recurrent<T>().backward(product.view(), in.cotangents(), right.views());
    gradient_store<T> expected(in.shape);
    for (index_t n = 0; n < in.shape.size(v); ++n) {
      const index_t t = n / V, j = n % V;
      const T du = right.x[v][n];
      expected.view(v)(t, j) += du * T(gate(t, j));
      expected.view(w)(t, j) += du * in.x[v][n];
    }
    sides<T> both;
    for (const tensor i : {v, w}) both.add(left.x[i], expected.x[i]);
    for (const tensor i : {q, k, a, d, b, start}) {
      both.add(left.x[i], right.x[i]);
    }
    return both;
  }
};

void write_gate(settlement& s) {
  const space from = space{}.gate(w, {along::head, along::channel});
  identity(s, "values", from, only_the_product{}, 600, 400);
  identity(s, "gradients", from, only_the_product{true}, 600, 400);
  s.detail(
      "So a value-wise write gate can be folded into the value projection: "
      "dw = du * v and dv = du * w, du being the gradient of w * v.");
  identity_mutant(s, "write gate on what is erased too", from,
                  only_the_product{false, fault::write_gate_on_all});
  identity_mutant(s, "write gate missing in dv", from,
                  only_the_product{true, fault::write_gate_missing});
}

// RED-5

enum class dplr_fault { none, decay_forgotten, decay_on_the_left, sign };

/// Diagonal plus low rank, which reads the state before it decays:
/// `S_t = (diag(a) + left right^T) S_{t-1} + k (w * v)^T`.
template <class T>
std::vector<T> diagonal_plus_low_rank(const tensors<T>& in, dplr_fault f) {
  const head<T> p = in.view();
  std::vector<T> result;
  std::vector<std::vector<T>> S(p.values, std::vector<T>(p.keys, T(0)));
  for (index_t i = 0; i < p.keys && p.S0; ++i) {
    for (index_t j = 0; j < p.values; ++j) S[j][i] = p.S0(i, j);
  }
  for (index_t t = 0; t < p.tokens; ++t) {
    for (index_t j = 0; j < p.values; ++j) {
      const std::vector<T> old = S[j];
      T read(0);
      for (index_t i = 0; i < p.keys; ++i) {
        T right = T(p.b ? p.b(t, i) : T(1)) * T(p.k(t, i));
        if (p.a && f == dplr_fault::none) right = T(p.a(t, i)) * right;
        read += right * old[i];
      }
      T written = p.v(t, j);
      if (p.w) written *= T(p.w(t, j));
      T o(0);
      for (index_t i = 0; i < p.keys; ++i) {
        const T decay = p.a ? T(p.a(t, i)) : T(1);
        T left = -T(p.k(t, i));
        if (f == dplr_fault::sign) left = -left;
        if (f == dplr_fault::decay_on_the_left) left = decay * left;
        S[j][i] = decay * old[i] + left * read + T(p.k(t, i)) * written;
        o += T(p.q(t, i)) * (p.read == readout::after ? S[j][i] : old[i]);
      }
      result.push_back(p.scale * o);
    }
  }
  for (index_t i = 0; i < p.keys; ++i) {
    for (index_t j = 0; j < p.values; ++j) result.push_back(S[j][i]);
  }
  return result;
}

struct is_diagonal_plus_low_rank {
  dplr_fault f = dplr_fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    return {values(recurrent<T>(), in), diagonal_plus_low_rank(in, f)};
  }
};

void low_rank(settlement& s) {
  // GDN: a scalar decay and b = w = beta; and any key-axis gates.
  space gdn;
  gdn.gate(a, {along::head}).gate(d, {along::none}).gate(b, {along::head});
  space any;
  any.gate(d, {along::none});
  identity(s, "GDN", gdn, is_diagonal_plus_low_rank{}, 600, 400);
  identity(s, "key-axis decay and erase", any, is_diagonal_plus_low_rank{}, 600,
           400);
  s.detail(
      "S_t = (diag(a) - k (a * b * k)^T) S_{t-1} + k (w * v)^T: the address "
      "takes the decay along, because this form reads the state before it "
      "decays. For GDN the right vector is alpha beta k.");
  using f = dplr_fault;
  identity_mutant(s, "address without the decay", gdn,
                  is_diagonal_plus_low_rank{f::decay_forgotten});
  identity_mutant(s, "decay on the left vector, key-axis decay", any,
                  is_diagonal_plus_low_rank{f::decay_on_the_left});
  identity_mutant(s, "low-rank part added instead of subtracted", gdn,
                  is_diagonal_plus_low_rank{f::sign});
}

}  // namespace

void register_reductions(ledger& all) {
  all.add({.id = "RED-1",
           .statement = "GDN-2 with b = w = beta is KDA; KDA with one decay "
                        "per head is GDN; GDN without decay is DeltaNet; "
                        "without erase they are GLA, Mamba-2 and linear "
                        "attention; values and gradients.",
           .source = "arXiv 2605.22791, 2510.26692, 2412.06464, 2406.06484, "
                     "2312.06635, 2405.21060, 2006.16236",
           .method = "polynomial identities against each family's own "
                     "recurrence; gradients against dual numbers",
           .settle = family_tree});
  all.add({.id = "RED-2",
           .statement = "The tie breaks when negative eigenvalues are "
                        "allowed: GDN-2 doubles b alone, KDA doubles beta in "
                        "both places.",
           .source = "public layers of GDN-2 and KDA",
           .method = "witness, and the difference of the two as a polynomial "
                     "identity",
           .settle = negative_eigenvalues});
  all.add({.id = "RED-3",
           .statement = "At initialisation CARVE is bit-identical to GDN-2.",
           .source = "abstract of arXiv 2606.27229",
           .method = "exact counterexample against the value-wise write gate; "
                     "bitwise comparison in float and double against the "
                     "scalar one",
           .settle = initialisation});
  all.add({.id = "RED-4",
           .statement = "Write gate and value (w, v) act only through their "
                        "product w * v.",
           .source = "this library",
           .method = "polynomial identity of values and gradients",
           .settle = write_gate});
  all.add({.id = "RED-5",
           .statement = "GDN is a diagonal-plus-low-rank recurrence that "
                        "reads the state before it decays.",
           .source = "arXiv 2412.06464, arXiv 2503.14456",
           .method = "polynomial identity against that recurrence, written "
                     "independently",
           .settle = low_rank});
}

}  // namespace carve::proofs
