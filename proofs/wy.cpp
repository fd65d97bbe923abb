/// @file
/// Is the chunked form the same function as the recurrence?  WY-1, 2, 5, 7.
#include "wy.hpp"

#include "carve/triangular.hpp"
#include "mutants.hpp"

namespace carve::proofs {

namespace {

void add_mutants(settlement& s, const space& from, actor who,
                 std::initializer_list<std::pair<fault, const char*>> faults) {
  for (const auto& [f, what] : faults) {
    same_values law{who, actor::recurrent, f};
    identity_mutant(s, what, from, law);
  }
}

// WY-1

void key_axis(settlement& s) {
  const space all;
  identity(s, "chunked = recurrent", all, same_values{}, 2000, 1000);
  identity(s, "long heads", long_heads(), same_values{}, 20, 100);
  identity(s, "wide heads", wide_heads(), same_values{}, 20, 100);
  identity(s, "independent chunked form = recurrent", all,
           same_values{actor::naive_chunked}, 400, 200);
  identity(s, "independent recurrence = recurrent", all,
           same_values{actor::naive_recurrent}, 400, 200);
  add_mutants(s, all, actor::naive_chunked,
              {{fault::transposed_inverse, "transposed inverse"},
               {fault::triangle_off_by_one, "triangle off by one"},
               {fault::ratio_off_by_one, "decay ratio off by one token"},
               {fault::no_start_later,
                "later chunks do not erase from their start state"},
               {fault::end_decay_missing,
                "start state not decayed at the end of a chunk"},
               {fault::short_last_chunk, "last token of a ragged chunk lost"}});
  add_mutants(s, all, actor::naive_recurrent,
              {{fault::other_readout, "read-out at the other side"},
               {fault::erase_before_decay, "erase before decay"},
               {fault::no_value_decay, "value decay missing"},
               {fault::write_gate_on_all, "write gate on what is erased too"},
               {fault::address_without_gate, "erase address without its gate"},
               {fault::no_start, "start state dropped"}});
}

// WY-2

void value_axis(settlement& s) {
  const std::vector<along> any{along::none, along::head, along::channel};
  const space gated = space{}.gate(e, {along::head, along::channel});
  space masked = space{}.gate(e, any).gate(b, {along::none});
  masked.mask = true;
  const same_values law{actor::columnwise};
  identity(s, "value-axis gate", gated, law, 1500, 600);
  identity(s, "full mask", masked, law, 1500, 600);
  identity(s, "long heads", long_heads(gated), law, 20, 100);
  identity(s, "wide heads", wide_heads(gated), law, 20, 100);
  identity(s, "independent column-by-column form", gated,
           same_values{actor::naive_chunked}, 400, 200);
  const space varied = space{}.gate(e, {along::channel});
  add_mutants(s, varied, actor::naive_chunked,
              {{fault::one_column_for_all, "column 0's gate for all columns"},
               {fault::gate_of_source_token,
                "gate of the earlier token in the coupling"},
               {fault::transposed_inverse, "transposed inverse"}});
  add_mutants(s, varied, actor::naive_recurrent,
              {{fault::erase_gate_of_neighbour, "gate of the next column"}});
  add_mutants(s, masked, actor::naive_chunked,
              {{fault::one_column_for_all, "mask column 0 for all columns"}});
}

// WY-5

/// The coupling matrix of a chunk that holds all tokens.
template <class T>
matrix<T> coupling(const head<T>& p) {
  matrix<T> L = matrix<T>::Constant(p.tokens, p.tokens, T(0));
  for (index_t s = 0; s < p.tokens; ++s) {
    for (index_t i = 0; i < p.keys; ++i) {
      T ratio = p.k(s, i);
      for (index_t t = s + 1; t < p.tokens; ++t) {
        if (p.a) ratio *= T(p.a(t, i));
        T r = p.k(t, i);
        if (p.b) r *= T(p.b(t, i));
        L(t, s) += r * ratio;
      }
    }
  }
  return L;
}

/// Law: value decay turns the shared inverse into one per column by a diagonal
/// scaling alone, `T_ts -> (D_t/D_s) T_ts`.
struct decay_is_a_scaling {
  bool square = false;  ///< mutant

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const head<T> p = in.view();
    const matrix<T> L = coupling(p);
    const matrix<T> shared = inverse_by_substitution<T>(L);
    sides<T> both;
    for (index_t j = 0; j < p.values; ++j) {
      matrix<T> own = L, scaled = shared;
      for (index_t s = 0; s < p.tokens; ++s) {
        T ratio(1);
        for (index_t t = s + 1; t < p.tokens; ++t) {
          ratio *= T(p.d(t, j));
          own(t, s) = own(t, s) * ratio;
          scaled(t, s) = scaled(t, s) * ratio;
          if (square) scaled(t, s) = scaled(t, s) * ratio;
        }
      }
      const matrix<T> inverse = inverse_by_substitution<T>(own);
      for (index_t n = 0; n < inverse.size(); ++n) {
        both.add(inverse.data()[n], scaled.data()[n]);
      }
    }
    return both;
  }
};

void write_and_decay(settlement& s) {
  const space from = space{}
                         .gate(d, {along::head, along::channel})
                         .gate(w, {along::head, along::channel});
  identity(s, "chunked = recurrent with value decay and value-wise write", from,
           same_values{}, 1500, 600);
  const space decayed = space{}.gate(d, {along::head, along::channel});
  identity(s, "a column's inverse is the shared one, scaled", decayed,
           decay_is_a_scaling{}, 600, 400);
  identity_mutant(s, "decay ratio applied twice", decayed,
                  decay_is_a_scaling{true});
  add_mutants(s, from, actor::naive_recurrent,
              {{fault::no_value_decay, "value decay missing"},
               {fault::write_gate_on_all, "write gate on what is erased too"}});
}

// WY-7

enum class content_fault {
  none,
  window_is_chunk,
  state_dropped,
  other_readout,
  mean_unscaled,
};

struct content_chunked_equals_recurrent {
  content_fault f = content_fault::none;
  fault inner = fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const index_t C = in.shape.chunk;
    solver<T> left = chunked<T>(C);
    if (inner != fault::none) left = make<T>(actor::naive_chunked, C, inner);
    tensors<T> other = in;
    if (f == content_fault::window_is_chunk) other.shape.window = C;
    if (f == content_fault::state_dropped ||
        f == content_fault::other_readout ||
        f == content_fault::mean_unscaled) {
      const solver<T> right = left;
      left.run = [right, kind = f](head<T> p, rows<T> o, state_view<T> S) {
        if (kind == content_fault::state_dropped) p.S0 = {};
        if (kind == content_fault::mean_unscaled) p.scale = T(1);
        if (kind == content_fault::other_readout) {
          p.read = p.read == readout::after ? readout::before : readout::after;
        }
        right.forward(p, o, S);
      };
    }
    return {content_values(left, other), content_values(recurrent<T>(), in)};
  }
};

void content_gate_keeps_wy(settlement& s) {
  space from = space{}.gate(b, {along::head, along::channel});
  from.content = true;
  from.tokens = 5;
  using law = content_chunked_equals_recurrent;
  identity(s, "chunked = recurrent through the content gate", from, law{}, 1000,
           600);
  s.detail(
      "The sigmoid is replaced by the activation x^3 + x, so that the "
      "whole is a polynomial; the argument uses nothing of the activation but "
      "that it is a function.");
  identity_mutant(s, "content window tied to the chunk length", from,
                  law{content_fault::window_is_chunk});
  identity_mutant(s, "state dropped between windows", from,
                  law{content_fault::state_dropped});
  identity_mutant(s, "read-out at the other side", from,
                  law{content_fault::other_readout});
  identity_mutant(s, "mean of unscaled outputs", from,
                  law{content_fault::mean_unscaled});
  identity_mutant(s, "transposed inverse", from,
                  law{content_fault::none, fault::transposed_inverse});
  identity_mutant(s, "decay ratio off by one token", from,
                  law{content_fault::none, fault::ratio_off_by_one});
}

}  // namespace

void register_wy(ledger& all) {
  all.add({.id = "WY-1",
           .statement = "Key-axis erase: the chunked form equals the "
                        "recurrence exactly, for every chunk length, ragged "
                        "last chunk, start state, key decay, value decay, "
                        "write gate and both read-outs.",
           .source = "arXiv 2406.06484 section 3, arXiv 2510.26692 section 3",
           .method = "polynomial identity of outputs and final state",
           .settle = key_axis});
  all.add({.id = "WY-2",
           .statement = "Value-axis and full-mask erase: the column-by-column "
                        "chunked form equals the recurrence exactly.",
           .source = "this library",
           .method = "polynomial identity of outputs and final state",
           .settle = value_axis});
  register_wy_criterion(all);
  all.add({.id = "WY-5",
           .statement = "Value-axis decay and value-axis write never break "
                        "the WY form.",
           .source = "this library",
           .method = "polynomial identities: chunked = recurrent under both, "
                     "and a column's inverse is the shared inverse scaled by "
                     "decay ratios",
           .settle = write_and_decay});
  register_wy_mask(all);
  all.add({.id = "WY-7",
           .statement = "CARVE's content gate keeps the WY form: chunked = "
                        "recurrent for any chunk length against any content "
                        "window.",
           .source = "arXiv 2606.27229",
           .method = "polynomial identity of outputs and final state with a "
                     "polynomial activation",
           .settle = content_gate_keeps_wy});
  register_wy_numeric(all);
}

}  // namespace carve::proofs
