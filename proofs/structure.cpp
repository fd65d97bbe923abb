/// @file
/// Do sequences split, and does nothing look ahead?  SEG-1 and SEG-3.
#include "structure.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <sstream>
#include <type_traits>

#include "carve/segment.hpp"
#include "mutants.hpp"
#include "trace.hpp"

namespace carve::proofs {

namespace {

const std::vector<along> any{along::none, along::head, along::channel};

// SEG-1

enum class split_fault { none, start_dropped, token_twice, end_cotangent_lost };

/// Law: `[0, n)` and then `[n, T)` from its end state is `[0, T)`, forward and
/// backward.
struct splits {
  bool gradient = false;
  split_fault f = split_fault::none;
  actor who = actor::recurrent;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const layout& shape = in.shape;
    const index_t N = shape.tokens, K = shape.keys, V = shape.values;
    const index_t cut = std::min(shape.chunk, N);
    const head<T> p = in.view();
    const solver<T> one = make<T>(who, 2);
    std::vector<T> o(N * V, T(0)), middle(K * V, T(0)), end(K * V, T(0));
    const rows<T> to{o.data(), V, 1};
    const auto state = [V](std::vector<T>& S) {
      return state_view<T>{S.data(), V, 1};
    };
    const head<T> first = p.segment(0, cut, p.S0);
    one.forward(first, to, state(middle));
    const index_t from = cut - (f == split_fault::token_twice ? 1 : 0);
    head<T> second = p.segment(from, N - from, state(middle));
    if (f == split_fault::start_dropped) second.S0 = {};
    one.forward(second, to.from(from), state(end));
    if (!gradient) {
      o.insert(o.end(), end.begin(), end.end());
      return {o, values(one, p)};
    }
    gradient_store<T> store(shape);
    head_gradients<T> out = store.views();
    std::vector<T> dmiddle(K * V, T(0));
    const head_cotangents<T> all = in.cotangents();
    one.backward(second, {all.o.from(from), all.S},
                 out.segment(from, state(dmiddle)));
    head_cotangents<T> half{all.o, state(dmiddle)};
    if (f == split_fault::end_cotangent_lost) half.S = {};
    one.backward(first, half, out.segment(0, out.S0));
    return {store.all(), gradients(one, in)};
  }
};

enum class map_fault { none, order, decay_missing, offset_not_mapped };

/// Law: segment maps give the final state, compose, and do so associatively.
struct maps_compose {
  map_fault f = map_fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const head<T> p = in.view();
    const index_t N = p.tokens, K = p.keys, V = p.values;
    const index_t m = std::min(in.shape.chunk, N), n = (m + N) / 2;
    const auto x = segment_of(p.segment(0, m, {}));
    const auto y = segment_of(p.segment(m, n - m, {}));
    const auto z = segment_of(p.segment(n, N - n, {}));
    matrix<T> S = matrix<T>::Constant(K, V, T(0));
    for (index_t i = 0; i < K && p.S0; ++i) {
      for (index_t j = 0; j < V; ++j) S(i, j) = p.S0(i, j);
    }
    const auto left = joined(z, joined(y, x));
    const auto right = joined(joined(z, y), x);
    std::vector<T> end = values(recurrent<T>(), p);
    end.erase(end.begin(), end.begin() + N * V);
    sides<T> both;
    for (const auto& state :
         {left(S), right(S), z(y(x(S))), segment_of(p)(S)}) {
      both.add(flat(state), end);
    }
    both.add(flat(left.B), flat(right.B));
    for (index_t j = 0; j < V; ++j) {
      both.add(flat(left.map_of(j)), flat(right.map_of(j)));
      both.add(left.D[j], right.D[j]);
    }
    return both;
  }

 private:
  template <class T>
  static std::vector<T> flat(const matrix<T>& x) {
    return {x.data(), x.data() + x.size()};
  }
  template <class T>
  segment_map<T> joined(const segment_map<T>& second,
                        const segment_map<T>& first) const {
    if (f == map_fault::order) return compose(first, second);
    segment_map<T> both = compose(second, first);
    if (f == map_fault::decay_missing) both.D = second.D;
    if (f == map_fault::offset_not_mapped) both.B = second.B + first.B;
    return both;
  }
};

void segments(settlement& s) {
  const space key, value = space{}.gate(e, any);
  space full = space{}.gate(b, {along::none});
  full.mask = true;
  identity(s, "splitting, recurrent", value, splits{}, 1000, 600);
  identity(s, "splitting, chunked", key,
           splits{false, split_fault::none, actor::chunked}, 600, 400);
  identity(s, "splitting, full mask, column by column", full,
           splits{false, split_fault::none, actor::columnwise}, 600, 400);
  identity(s, "splitting, gradients, recurrent", value, splits{true}, 600, 400);
  identity(s, "splitting, gradients, chunked", key,
           splits{true, split_fault::none, actor::chunked}, 600, 400);
  identity(s, "maps, key-axis erase", key, maps_compose{}, 600, 400);
  identity(s, "maps, value-axis erase", value, maps_compose{}, 600, 400);
  identity(s, "maps, full mask", full, maps_compose{}, 600, 400);
  s.detail(
      "A run of tokens acts on value column j of the state as S_j -> D_j A_j "
      "S_j + B_j; first (A1, D1, B1), then (A2, D2, B2) is (A2 A1, D2 D1, D2 "
      "A2 B1 + B2).");
  identity_mutant(s, "start state dropped at the split", key,
                  splits{false, split_fault::start_dropped});
  identity_mutant(s, "token at the split walked twice", key,
                  splits{false, split_fault::token_twice});
  identity_mutant(s, "cotangent of the state lost at the split", key,
                  splits{true, split_fault::end_cotangent_lost});
  identity_mutant(s, "maps composed in the wrong order", key,
                  maps_compose{map_fault::order});
  identity_mutant(s, "value decay of the first map lost", key,
                  maps_compose{map_fault::decay_missing});
  identity_mutant(s, "offset of the first map not mapped by the second", key,
                  maps_compose{map_fault::offset_not_mapped});
}

// SEG-3

enum class leak { none, value_of_next_token, largest_key, gate_of_own_window };

template <class T>
tensors<T> random_head(generator& rng, bool value_erase) {
  layout shape;
  shape.tokens = integer(rng, 2, 40), shape.keys = integer(rng, 1, 9);
  shape.values = integer(rng, 1, 9), shape.chunk = integer(rng, 1, 20);
  shape.window = integer(rng, 1, 12), shape.rank = 2;
  shape.gates = {along::channel, along::none, along::channel, along::none,
                 along::channel};
  if (rng() % 2 == 0) shape.gates[d - a] = along::channel;
  if (value_erase) shape.gates[e - a] = along::channel;
  shape.has_start = shape.has_content = true;
  shape.read = rng() % 2 == 0 ? readout::after : readout::before;
  auto in = tensors<T>::filled(
      shape, [&rng] { return static_cast<T>(uniform(rng, -1, 1)); });
  for (const tensor i : {a, d}) {
    for (T& x : in.x[i]) x = std::fabs(x);
  }
  return in;
}

/// Which of the forms runs.
enum class form { recurrent, chunked, columnwise, content };

template <class T>
std::vector<T> outputs_of(form which, const tensors<T>& in, leak how) {
  const index_t C = in.shape.chunk, N = in.shape.tokens, V = in.shape.values;
  tensors<T> x = in;
  if (how == leak::value_of_next_token) {
    for (index_t n = 0; n + V < N * V; ++n) x.x[v][n] += in.x[v][n + V];
  }
  if (how == leak::largest_key) {
    T largest(0);
    for (const T& y : in.x[k]) largest = std::max(largest, T(std::fabs(y)));
    for (T& y : x.x[k]) y /= largest;
  }
  if (how == leak::gate_of_own_window) {
    for (index_t t0 = 0; t0 < N; t0 += in.shape.window) {
      const index_t end = std::min(t0 + in.shape.window, N);
      T sum(0);
      for (index_t t = t0; t < end; ++t) sum += in.x[v][t * V];
      for (index_t n = t0 * in.shape.keys; n < end * in.shape.keys; ++n) {
        x.x[b][n] += sum;
      }
    }
  }
  std::vector<T> r;
  if (which == form::content) {
    r.resize(N * V);
    content_forward(x.view(), gate_of(x), chunked<T>(C),
                    rows<T>{r.data(), V, 1}, state_view<T>{});
  } else {
    r = values(which == form::recurrent ? recurrent<T>()
               : which == form::chunked ? chunked<T>(C)
                                        : columnwise<T>(C),
               x);
    r.resize(N * V);
  }
  return r;
}

/// Everything from token t on is replaced; outputs before it keep their bits.
template <class T>
bool is_causal(generator& rng, std::ostream& show, form which,
               leak how = leak::none) {
  using bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const auto in = random_head<T>(rng, which == form::columnwise);
  const index_t N = in.shape.tokens, V = in.shape.values;
  const index_t cut = integer(rng, 1, static_cast<int>(N) - 1);
  auto other = in;
  for (const tensor i : {q, k, v, a, d, b, e, w}) {
    if (in.x[i].empty()) continue;
    const index_t width = in.shape.size(i) / N;
    for (index_t n = cut * width; n < N * width; ++n) {
      other.x[i][n] = static_cast<T>(uniform(rng, 0, 1));
    }
  }
  show << "T = " << N << ", K = " << in.shape.keys << ", V = " << V
       << ", C = " << in.shape.chunk << ", changed from token " << cut;
  const auto x = outputs_of(which, in, how), y = outputs_of(which, other, how);
  for (index_t n = 0; n < cut * V; ++n) {
    if (std::bit_cast<bits>(x[n]) != std::bit_cast<bits>(y[n])) return false;
  }
  return true;
}

/// Fewer tokens give the same bits: any number of them token by token, whole
/// chunks in the chunked form.
template <class T>
bool prefix_is_causal(generator& rng, std::ostream& show, form which) {
  const auto in = random_head<T>(rng, which == form::columnwise);
  const index_t N = in.shape.tokens;
  index_t cut = integer(rng, 1, static_cast<int>(N) - 1);
  if (which != form::recurrent) {
    cut = std::max<index_t>(cut / in.shape.chunk, 1) * in.shape.chunk;
    if (cut > N) return true;
  }
  show << "T = " << N << ", C = " << in.shape.chunk << ", cut at " << cut;
  auto part = in;
  part.shape.tokens = cut;
  for (const tensor i : {q, k, v, a, d, b, e, w}) {
    if (!in.x[i].empty()) part.x[i].resize(part.shape.size(i));
  }
  const auto x = outputs_of(which, in, leak::none);
  const auto y = outputs_of(which, part, leak::none);
  return std::equal(y.begin(), y.end(), x.begin());
}

/// The data flow of the templates themselves: no output depends on an input of
/// a later token, nor any content gate.
bool flows_forward(const layout& shape, form which, leak how) {
  tensors<trace> in;
  in.shape = shape;
  for (int n = 0; n < tensor_count; ++n) {
    const auto i = static_cast<tensor>(n);
    const index_t size = shape.size(i);
    const bool timed = i != start && i != dstate && i != down && i != up;
    for (index_t m = 0; m < size; ++m) {
      in.x[i].push_back(timed ? trace::of(m / (size / shape.tokens))
                              : trace(1));
    }
  }
  if (how == leak::value_of_next_token) {
    const index_t V = shape.values;
    for (index_t m = 0; m + V < shape.tokens * V; ++m) {
      in.x[v][m] += in.x[v][m + V];
    }
  }
  const index_t C = shape.chunk;
  const auto o = which == form::content
                     ? content_values(chunked<trace>(C), in)
                     : values(which == form::recurrent ? recurrent<trace>()
                              : which == form::chunked ? chunked<trace>(C)
                                                       : columnwise<trace>(C),
                              in);
  bool forward = true;
  for (index_t t = 0; t < shape.tokens; ++t) {
    const std::uint64_t later = ~std::uint64_t{0} << t << 1;
    for (index_t j = 0; j < shape.values; ++j) {
      forward = forward && (o[t * shape.values + j].inputs & later) == 0;
    }
  }
  return forward;
}

/// `flows_forward` for a random layout.
bool random_layout_flows_forward(generator& rng, std::ostream& show, form which,
                                 leak how = leak::none) {
  space from =
      space{}.gate(e, which == form::columnwise ? std::vector{along::channel}
                                                : std::vector{along::none});
  from.tokens = 24, from.keys = from.values = 2;
  from.content = which == form::content;
  if (from.content) from.gate(b, {along::head, along::channel});
  const instance x = draw(from, rng);
  show << "T = " << x.tokens << ", C = " << x.chunk;
  return flows_forward(x, which, how);
}

void causality(settlement& s) {
  for (const auto& [which, name] :
       {std::pair{form::recurrent, "token by token"},
        std::pair{form::chunked, "chunked"},
        std::pair{form::columnwise, "column by column"},
        std::pair{form::content, "content gate, chunked"}}) {
    const std::string of(name);
    s.holds(of + ", data flow", 500,
            [which = which](generator& rng, std::ostream& show) {
              return random_layout_flows_forward(rng, show, which);
            });
    s.holds_in_floating_point(
        of + ", float", 1000,
        [which = which](generator& rng, std::ostream& show) {
          return is_causal<float>(rng, show, which);
        });
    s.holds_in_floating_point(
        of + ", double", 1000,
        [which = which](generator& rng, std::ostream& show) {
          return is_causal<double>(rng, show, which);
        });
    if (which == form::content) continue;
    s.holds_in_floating_point(
        of + ", fewer tokens", 1000,
        [which = which](generator& rng, std::ostream& show) {
          return prefix_is_causal<double>(rng, show, which);
        });
  }
  s.traced();
  s.detail(
      "By data flow: the same templates run on a scalar that carries "
      "the set of tokens a result was computed from, and no output of token t "
      "contains a later one, in random layouts of up to 24 tokens. What is "
      "not read cannot change a bit. Beside it the bits themselves are "
      "compared: all tokens from a random one on are replaced by others, "
      "within a chunk too, and left out. (Leaving tokens out keeps the bits "
      "of the chunked forms when whole chunks are left out: a chunk of "
      "another length is another order of additions.)");
  // 0 * infinity: a chunk of two tokens, the second one overflows.
  layout two;
  two.tokens = two.chunk = 2;
  auto in = tensors<float>::filled(two, [] { return 1.0F; });
  const auto before = values(chunked<float>(2), in);
  in.x[v] = {1.0F, std::numeric_limits<float>::infinity()};
  const auto token_by_token = values(recurrent<float>(), in);
  const auto in_chunk = values(chunked<float>(2), in);
  s.searched(2);
  s.require(before[0] == 1 && token_by_token[0] == 1 && in_chunk[0] != 1,
            "the exception for overflow");
  s.detail(
      "The exception: in a chunk, earlier outputs are sums over all its "
      "tokens with factors of zero for the later ones, and zero times an "
      "infinity is a NaN. With T = C = 2, K = V = 1, all inputs 1 and v_2 "
      "infinite, the first output is 1 token by token and a NaN in the "
      "chunked form. So it holds as long as later tokens stay finite.");
  s.mutant("data flow: value of the next token added", 500,
           [](generator& rng, std::ostream& show) {
             return random_layout_flows_forward(rng, show, form::recurrent,
                                                leak::value_of_next_token);
           });
  for (const auto& [how, what] :
       {std::pair{leak::value_of_next_token, "value of the next token added"},
        std::pair{leak::largest_key, "keys divided by the largest of all"},
        std::pair{leak::gate_of_own_window,
                  "gate from the window's own values"}}) {
    s.mutant(what, 1000, [how = how](generator& rng, std::ostream& show) {
      return is_causal<double>(rng, show, form::chunked, how);
    });
  }
}

}  // namespace

void register_segments(ledger& all) {
  all.add({.id = "SEG-1",
           .statement = "Splitting a sequence anywhere and passing the state "
                        "changes nothing; segment maps compose "
                        "associatively.",
           .source = "context parallelism of the public libraries",
           .method = "polynomial identities of values, gradients and maps",
           .settle = segments});
}

void register_causality(ledger& all) {
  all.add({.id = "SEG-3",
           .statement = "Causality, bitwise: later tokens change no earlier "
                        "output, for a fixed chunk grid, as long as all is "
                        "finite.",
           .source = "this library",
           .method = "data flow of the templates by a scalar that carries "
                     "dependencies; bits of outputs compared after random "
                     "changes of later tokens, in float and double",
           .settle = causality});
}

void register_structure(ledger& all) {
  register_segments(all);
  register_packed(all);
  register_causality(all);
  register_batches(all);
}

}  // namespace carve::proofs
