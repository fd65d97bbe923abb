/// @file
/// Are sequences and heads of a batch what they are alone?  SEG-2, SEG-4,
/// SEG-5 and SEG-6.
#include <algorithm>
#include <bit>
#include <cmath>
#include <sstream>
#include <type_traits>

#include "carve/batch.hpp"
#include "mutants.hpp"
#include "structure.hpp"
#include "trace.hpp"

namespace carve::proofs {

namespace {

/// In here `carve::tensor` is the batched one.
template <class T>
using block = carve::tensor<T>;

run_options one_thread() { return {.threads = 1}; }

template <class T>
block<T> filled(tensor_shape shape, const std::function<T()>& fresh) {
  block<T> x(std::move(shape));
  for (T& y : x.data) y = fresh();
  return x;
}

/// A GDN-2 problem with every tensor present, value decay too, and linear
/// decays, so that it runs over any ring.  Heads: H and HV = groups * H.
template <class T>
problem<T> random_problem(const layout& shape, index_t B, index_t H,
                          index_t groups, index_t N,
                          const std::function<T()>& fresh) {
  problem<T> p;
  p.family = family::gdn2;
  p.linear_decay = true;
  p.scale = fresh();
  p.read = shape.read;
  const index_t L = shape.tokens, K = shape.keys, V = shape.values;
  const index_t HV = groups * H;
  p.in.q = filled({B, L, H, K}, fresh), p.in.k = filled({B, L, H, K}, fresh);
  p.in.v = filled({B, L, HV, V}, fresh), p.in.w = filled({B, L, HV, V}, fresh);
  p.in.g = filled({B, L, HV, K}, fresh), p.in.b = filled({B, L, HV, K}, fresh);
  p.in.gd = filled({B, L, HV, V}, fresh);
  p.in.initial_state = filled({N, HV, K, V}, fresh);
  return p;
}

/// Calls `f` with the q, k, v, w, g, b and gd of each of some `tensors`.
template <class F, class First, class... Rest>
void for_token_tensors(F&& f, First& x, Rest&... rest) {
  f(x.q, rest.q...), f(x.k, rest.k...), f(x.v, rest.v...), f(x.w, rest.w...);
  f(x.g, rest.g...), f(x.b, rest.b...), f(x.gd, rest.gd...);
}

/// Entries [from, to) of the batch (axis 0), or of the tokens of batch 0 (axis
/// 1).
template <class T>
block<T> slice(const block<T>& x, index_t axis, index_t from, index_t to) {
  block<T> y;
  y.shape = x.shape;
  index_t inner = 1;
  for (index_t i = axis + 1; i < x.rank(); ++i) inner *= x.dim(i);
  if (axis == 1) y.shape[0] = 1;
  y.shape[static_cast<std::size_t>(axis)] = to - from;
  y.data.assign(x.data.begin() + from * inner, x.data.begin() + to * inner);
  return y;
}

// SEG-2

enum class packed_fault { none, state_carried_over, states_rotated, one_late };

/// Law: packed sequences, an empty one among them, are the separate ones, with
/// their gradients.
struct packed_is_separate {
  bool in_chunks = false;
  packed_fault f = packed_fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const layout& shape = in.shape;
    const index_t L = shape.tokens;
    const index_t cut = std::min(shape.chunk, L);
    // Sequences [0, cut), an empty one, [cut, L).
    const std::vector<std::int64_t> offsets{0, cut, cut, L};
    problem<T> all = random_problem<T>(shape, 1, 2, 1, 3, in.fresh);
    all.cu_seqlens = offsets;
    if (f == packed_fault::one_late && cut < L) {
      all.cu_seqlens = {0, cut + 1, cut + 1, L};
    }
    const carve::outputs<T> cotangents{
        filled<T>({1, L, 2, shape.values}, in.fresh),
        filled<T>({3, 2, shape.keys, shape.values}, in.fresh)};
    const solver<T> one = in_chunks ? chunked<T>(2) : recurrent<T>();
    const auto whole = backward(all, cotangents, one, one_thread());
    sides<T> both;
    block<T> carried;
    for (index_t n = 0; n < 3; ++n) {
      const index_t from = offsets[n], to = offsets[n + 1];
      const index_t state = f == packed_fault::states_rotated ? (n + 1) % 3 : n;
      block<T> start = slice(all.in.initial_state, 0, state, state + 1);
      if (f == packed_fault::state_carried_over && n > 0) start = carried;
      const auto dstart = slice(cotangents.final_state, 0, n, n + 1);
      const auto end = slice(whole.out.final_state, 0, n, n + 1);
      const auto gradient = slice(whole.gradients.initial_state, 0, n, n + 1);
      carried = end;
      if (from == to) {
        both.add(end.data, start.data);
        both.add(gradient.data, dstart.data);
        continue;
      }
      problem<T> part = all;
      part.cu_seqlens.clear();
      for_token_tensors([&](block<T>& x) { x = slice(x, 1, from, to); },
                        part.in);
      part.in.initial_state = start;
      const auto alone = backward(
          part, {slice(cotangents.o, 1, from, to), dstart}, one, one_thread());
      both.add(slice(whole.out.o, 1, from, to).data, alone.out.o.data);
      both.add(end.data, alone.out.final_state.data);
      both.add(gradient.data, alone.gradients.initial_state.data);
      for_token_tensors(
          [&](const block<T>& x, const block<T>& y) {
            both.add(slice(x, 1, from, to).data, y.data);
          },
          whole.gradients, alone.gradients);
    }
    return both;
  }
};

space small() {
  space from;
  from.tokens = 5, from.keys = from.values = 2;
  from.start = false;
  for (const tensor x : {a, d, b, e, w}) from.gate(x, {along::none});
  return from;
}

void packed(settlement& s) {
  identity(s, "recurrent", small(), packed_is_separate{}, 600, 400);
  identity(s, "chunked", small(), packed_is_separate{true}, 600, 400);
  s.detail(
      "Outputs, final states and all gradients; an empty sequence leaves its "
      "state as it was, and its state's cotangent too.");
  using f = packed_fault;
  identity_mutant(s, "state carried over into the next sequence", small(),
                  packed_is_separate{false, f::state_carried_over});
  identity_mutant(s, "start states rotated", small(),
                  packed_is_separate{false, f::states_rotated});
  identity_mutant(s, "boundary one token late", small(),
                  packed_is_separate{false, f::one_late});
}

// SEG-4

template <class T>
bool same_bits(const std::vector<T>& x, const std::vector<T>& y) {
  using bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  return x.size() == y.size() &&
         std::equal(x.begin(), x.end(), y.begin(), [](T u, T v) {
           return std::bit_cast<bits>(u) == std::bit_cast<bits>(v);
         });
}

enum class mixing { none, batch_norm, head_mean };

/// One sequence and head keeps its bits, outputs and gradients, when all
/// others are replaced and when it is alone.
template <class T>
bool is_independent(generator& rng, std::ostream& show, bool in_chunks,
                    mixing how = mixing::none) {
  layout shape;
  shape.tokens = integer(rng, 1, 24), shape.keys = integer(rng, 1, 9);
  shape.values = integer(rng, 1, 9);
  const index_t B = integer(rng, 1, 3), H = integer(rng, 1, 3);
  const index_t n = integer(rng, 0, static_cast<int>(B) - 1);
  const index_t h = integer(rng, 0, static_cast<int>(H) - 1);
  const std::function<T()> fresh = [&rng] {
    return static_cast<T>(uniform(rng, 0, 1));
  };
  show << "B = " << B << ", H = " << H << ", T = " << shape.tokens
       << ", K = " << shape.keys << ", V = " << shape.values;
  const index_t L = shape.tokens, V = shape.values;
  problem<T> p = random_problem<T>(shape, B, H, 1, B, fresh);
  problem<T> other = random_problem<T>(shape, B, H, 1, B, fresh);
  problem<T> alone = random_problem<T>(shape, 1, 1, 1, 1, fresh);
  other.scale = alone.scale = p.scale;
  carve::outputs<T> dp{filled<T>({B, L, H, V}, fresh), {}};
  carve::outputs<T> dother{filled<T>({B, L, H, V}, fresh), {}};
  carve::outputs<T> dalone{filled<T>({1, L, 1, V}, fresh), {}};
  // The head's rows of a [B,L,H,width] tensor.
  const auto rows_of = [&](const block<T>& x) {
    const index_t width = x.dim(3);
    std::vector<T> r;
    for (index_t t = 0; t < L; ++t) {
      const auto at = x.data.begin() + ((n * L + t) * H + h) * width;
      r.insert(r.end(), at, at + width);
    }
    return r;
  };
  const auto put = [&](block<T>& x, const std::vector<T>& r) {
    const index_t width = x.dim(3);
    for (index_t t = 0; t < L; ++t) {
      std::copy_n(r.begin() + t * width, width,
                  x.data.begin() + ((n * L + t) * H + h) * width);
    }
  };
  const auto copy_head = [&](const block<T>& from, block<T>& to,
                             block<T>& single) {
    const auto r = rows_of(from);
    put(to, r);
    single.data = r;
  };
  for_token_tensors(copy_head, p.in, other.in, alone.in);
  copy_head(dp.o, dother.o, dalone.o);
  const index_t size = shape.keys * V, at = (n * H + h) * size;
  const auto first = p.in.initial_state.data.begin() + at;
  std::copy_n(first, size, other.in.initial_state.data.begin() + at);
  std::copy_n(first, size, alone.in.initial_state.data.begin());

  const solver<T> one = in_chunks ? chunked<T>(7) : recurrent<T>();
  const auto run = [&](problem<T> x, const carve::outputs<T>& d) {
    if (how == mixing::batch_norm) {
      T largest(0);
      for (const T& y : x.in.k.data) largest = std::max(largest, y);
      for (T& y : x.in.k.data) y /= largest;
    }
    if (how == mixing::head_mean) {
      T sum(0);
      for (const T& y : x.in.v.data) sum += y;
      for (T& y : x.in.v.data) {
        y -= sum / static_cast<T>(x.in.v.data.size());
      }
    }
    return backward(x, d, one, {.threads = 2});
  };
  const auto x = run(p, dp), y = run(other, dother), z = run(alone, dalone);
  bool same = same_bits(rows_of(x.out.o), rows_of(y.out.o)) &&
              same_bits(rows_of(x.out.o), z.out.o.data);
  for_token_tensors(
      [&](const block<T>& u, const block<T>& v, const block<T>& w) {
        same = same && same_bits(rows_of(u), rows_of(v)) &&
               same_bits(rows_of(u), w.data);
      },
      x.gradients, y.gradients, z.gradients);
  return same;
}

/// The data flow of the batched templates: outputs and gradients of a head
/// depend on its own inputs only.
bool heads_flow_apart(generator& rng, std::ostream& show, bool in_chunks,
                      bool mixed) {
  layout shape;
  shape.tokens = integer(rng, 1, 5), shape.keys = integer(rng, 1, 3);
  shape.values = integer(rng, 1, 3);
  const index_t B = integer(rng, 1, 3), H = integer(rng, 1, 3);
  const index_t L = shape.tokens;
  show << "B = " << B << ", H = " << H << ", T = " << L;
  problem<trace> p =
      random_problem<trace>(shape, B, H, 1, B, [] { return trace(1); });
  carve::outputs<trace> d{block<trace>({B, L, H, shape.values}), {}};
  const auto mark = [&](block<trace>& x) {
    const index_t width = x.dim(3);
    for (std::size_t n = 0; n < x.data.size(); ++n) {
      const index_t row = static_cast<index_t>(n) / width;
      x.data[n] = trace::of(row / (L * H) * H + row % H);
    }
  };
  for_token_tensors(mark, p.in);
  mark(d.o);
  const index_t size = shape.keys * shape.values;
  for (std::size_t n = 0; n < p.in.initial_state.data.size(); ++n) {
    p.in.initial_state.data[n] = trace::of(static_cast<index_t>(n) / size);
  }
  if (mixed) p.in.k.data.front() += p.in.k.data.back();
  const auto r = backward(
      p, d, in_chunks ? chunked<trace>(2) : recurrent<trace>(), one_thread());
  bool apart = true;
  const auto check = [&](const block<trace>& x) {
    const index_t width = x.dim(3);
    for (std::size_t n = 0; n < x.data.size(); ++n) {
      const index_t row = static_cast<index_t>(n) / width;
      const trace own = trace::of(row / (L * H) * H + row % H);
      apart = apart && (x.data[n].inputs & ~own.inputs) == 0;
    }
  };
  check(r.out.o);
  for_token_tensors(check, r.gradients);
  for (std::size_t n = 0; n < r.out.final_state.data.size(); ++n) {
    const trace own = trace::of(static_cast<index_t>(n) / size);
    for (const auto* x : {&r.out.final_state, &r.gradients.initial_state}) {
      apart = apart && (x->data[n].inputs & ~own.inputs) == 0;
    }
  }
  return apart;
}

void independence(settlement& s) {
  for (const bool in_chunks : {false, true}) {
    const std::string form = in_chunks ? ", chunked" : ", token by token";
    s.holds("data flow" + form, 300, [=](generator& rng, std::ostream& show) {
      return heads_flow_apart(rng, show, in_chunks, false);
    });
    s.holds_in_floating_point(
        "float" + form, 300, [=](generator& rng, std::ostream& show) {
          return is_independent<float>(rng, show, in_chunks);
        });
    s.holds_in_floating_point(
        "double" + form, 300, [=](generator& rng, std::ostream& show) {
          return is_independent<double>(rng, show, in_chunks);
        });
  }
  s.mutant("data flow: a key of another head added", 300,
           [](generator& rng, std::ostream& show) {
             return heads_flow_apart(rng, show, false, true);
           });
  s.traced();
  s.detail(
      "By data flow: on a scalar that carries the set of heads a result "
      "was computed from, every output, state and gradient of a head contains "
      "that head alone. Beside it the bits themselves are compared, for one "
      "head of one sequence in a batch, two threads: all other "
      "heads and sequences are replaced by others, and left out.");
  for (const auto& [how, what] :
       {std::pair{mixing::batch_norm, "keys divided by the batch's largest"},
        std::pair{mixing::head_mean, "mean value of all heads subtracted"}}) {
    s.mutant(what, 300, [how = how](generator& rng, std::ostream& show) {
      return is_independent<double>(rng, show, false, how);
    });
  }
}

// SEG-5

/// Law: grouped value heads read query and key head i / (HV / H), and their
/// gradients add up.
struct groups_interleave {
  bool tiled = false;       ///< mutant: head i mod H
  bool first_only = false;  ///< mutant: gradient of one head of the group

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const layout& shape = in.shape;
    const index_t L = shape.tokens, K = shape.keys, V = shape.values;
    const index_t H = 2, groups = shape.chunk % 3 + 1, HV = H * groups;
    const problem<T> p = random_problem<T>(shape, 1, H, groups, 1, in.fresh);
    problem<T> wide = p;
    const auto head_of = [&](index_t i) { return tiled ? i % H : i / groups; };
    const auto repeated = [&](const block<T>& x) {
      block<T> y({1, L, HV, K});
      for (index_t t = 0; t < L; ++t) {
        for (index_t i = 0; i < HV; ++i) {
          std::copy_n(x.data.begin() + (t * H + head_of(i)) * K, K,
                      y.data.begin() + (t * HV + i) * K);
        }
      }
      return y;
    };
    const auto summed = [&](const block<T>& x) {
      block<T> y({1, L, H, K});
      for (index_t t = 0; t < L; ++t) {
        for (index_t i = 0; i < HV; ++i) {
          if (first_only && i % groups != 0) continue;
          for (index_t c = 0; c < K; ++c) {
            y.data[(t * H + head_of(i)) * K + c] +=
                x.data[(t * HV + i) * K + c];
          }
        }
      }
      return y;
    };
    wide.in.q = repeated(p.in.q), wide.in.k = repeated(p.in.k);
    const carve::outputs<T> cotangents{filled<T>({1, L, HV, V}, in.fresh), {}};
    const auto x = backward(p, cotangents, recurrent<T>(), one_thread());
    const auto y = backward(wide, cotangents, recurrent<T>(), one_thread());
    sides<T> both{x.out.o.data, y.out.o.data};
    both.add(x.out.final_state.data, y.out.final_state.data);
    both.add(x.gradients.q.data, summed(y.gradients.q).data);
    both.add(x.gradients.k.data, summed(y.gradients.k).data);
    both.add(x.gradients.v.data, y.gradients.v.data);
    both.add(x.gradients.g.data, y.gradients.g.data);
    both.add(x.gradients.b.data, y.gradients.b.data);
    return both;
  }
};

void grouped(settlement& s) {
  identity(s, "values and gradients", small(), groups_interleave{}, 600, 400);
  s.detail("Groups of one, two and three value heads for each of two heads.");
  identity_mutant(s, "heads tiled instead of interleaved", small(),
                  groups_interleave{true});
  identity_mutant(s, "gradient of the group's first head only", small(),
                  groups_interleave{false, true});
}

// SEG-6

/// Law: states stored [V,K] are the states stored [K,V], transposed.
struct layouts_agree {
  bool start_not_transposed = false;     ///< mutant
  bool gradient_not_transposed = false;  ///< mutant

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const layout& shape = in.shape;
    const index_t N = 2, H = 2, K = shape.keys, V = shape.values;
    const problem<T> p = random_problem<T>(shape, N, H, 1, N, in.fresh);
    const auto transposed = [&](const block<T>& x) {
      block<T> y({N, H, V, K});
      for (index_t n = 0; n < N * H; ++n) {
        for (index_t i = 0; i < K; ++i) {
          for (index_t j = 0; j < V; ++j) {
            y.data[(n * V + j) * K + i] = x.data[(n * K + i) * V + j];
          }
        }
      }
      return y;
    };
    problem<T> turned = p;
    turned.state_v_first = true;
    turned.in.initial_state = transposed(p.in.initial_state);
    if (start_not_transposed) {
      turned.in.initial_state.data = p.in.initial_state.data;
    }
    const carve::outputs<T> cotangents{
        filled<T>({N, shape.tokens, H, V}, in.fresh),
        filled<T>({N, H, K, V}, in.fresh)};
    const auto x = backward(p, cotangents, recurrent<T>(), one_thread());
    const auto y =
        backward(turned, {cotangents.o, transposed(cotangents.final_state)},
                 recurrent<T>(), one_thread());
    sides<T> both{x.out.o.data, y.out.o.data};
    both.add(transposed(x.out.final_state).data, y.out.final_state.data);
    both.add(gradient_not_transposed
                 ? x.gradients.initial_state.data
                 : transposed(x.gradients.initial_state).data,
             y.gradients.initial_state.data);
    for_token_tensors(
        [&](const block<T>& u, const block<T>& v) { both.add(u.data, v.data); },
        x.gradients, y.gradients);
    return both;
  }
};

void state_layout(settlement& s) {
  identity(s, "values and gradients", small(), layouts_agree{}, 600, 400);
  identity_mutant(s, "start state not transposed", small(),
                  layouts_agree{true});
  identity_mutant(s, "gradient of the start state not transposed", small(),
                  layouts_agree{false, true});
}

}  // namespace

void register_packed(ledger& all) {
  all.add({.id = "SEG-2",
           .statement = "Packed sequences equal separate ones, empty ones "
                        "included.",
           .source = "cu_seqlens of the public libraries",
           .method = "polynomial identity of outputs, states and gradients",
           .settle = packed});
}

void register_batches(ledger& all) {
  all.add({.id = "SEG-4",
           .statement = "Sequences and heads of a batch are independent, "
                        "bitwise.",
           .source = "this library",
           .method = "data flow of the templates by a scalar that carries "
                     "dependencies; bits of outputs and gradients compared "
                     "after all other heads were replaced or left out",
           .settle = independence});
  all.add({.id = "SEG-5",
           .statement = "Grouped value heads repeat-interleave: value head i "
                        "reads query and key head i / (HV / H).",
           .source = "layout of the public libraries",
           .method = "polynomial identity of outputs, states and gradients",
           .settle = grouped});
  all.add({.id = "SEG-6",
           .statement = "A state stored as [V, K] is the state stored as "
                        "[K, V], transposed, at both ends and in the "
                        "gradient.",
           .source = "state_v_first of the public libraries",
           .method = "polynomial identity of outputs, states and gradients",
           .settle = state_layout});
}

}  // namespace carve::proofs
