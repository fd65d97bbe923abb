#include "program/relation.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>
#include <utility>

#include "program/console.hpp"
#include "program/locate.hpp"

namespace carve::program {

namespace {

namespace st = safetensors;

/// What a dump is called here: A, B, ...
std::string letter(std::size_t i) {
  return i < 26 ? std::string(1, static_cast<char>('A' + i))
                : text("dump ", i + 1);
}

/// Tokens of a sequence.
index_t length_of(const dump& d, index_t n) {
  const auto& cu = d.in.cu_seqlens;
  if (cu.empty()) return d.size.T;
  const auto i = static_cast<std::size_t>(n);
  return cu[i + 1] - cu[i];
}

/// Which of a tensor's heads value head `hv` reads.
index_t head_in(const dump& d, index_t heads, index_t hv) {
  return d.in.tiled_heads ? hv % heads : hv / (d.size.HV / heads);
}

/// Rows a token.
index_t rows_in(const dump& d, const tensor<double>& x) {
  return x.dim(1) / d.size.T;
}

/// Numbers of one head and row, state or parameter.
std::size_t width_of(const tensor_row& row, const tensor<double>& x) {
  const std::size_t axes = row.role == tensor_role::token   ? 3
                           : row.role == tensor_role::state ? 2
                                                            : 1;
  std::size_t n = 1;
  for (std::size_t i = axes; i < x.shape.size(); ++i) {
    n *= static_cast<std::size_t>(x.shape[i]);
  }
  return n;
}

/// The index of the first number of a row of a token tensor.
std::size_t place_of(const dump& d, const tensor<double>& x, std::size_t width,
                     index_t n, index_t token, index_t sub, index_t head) {
  const bool packed = !d.in.cu_seqlens.empty();
  const index_t first =
      packed ? d.in.cu_seqlens[static_cast<std::size_t>(n)] : 0;
  const index_t row = (first + token) * rows_in(d, x) + sub;
  return static_cast<std::size_t>(
             ((packed ? 0 : n) * x.dim(1) + row) * x.dim(2) + head) *
         width;
}

/// A tensor in two dumps; an absent one has the shape of the other and zeros.
struct tensor_pair {
  const tensor_row& row;
  const tensor<double>& here;
  const tensor<double>& there;
};

/// Calls `visit(here, there, token, head, other head)` with the places of each
/// run of `width` numbers of a stretch; token is -1 for states and parameters.
/// @param[in] sums  a head that several value heads read holds a sum over them,
///                  and corresponds only where all of them do.
template <class Visit>
void each_run(const dump& a, const dump& b, const stretch& s,
              const tensor_pair& x, bool sums, const Visit& visit) {
  const std::size_t width = width_of(x.row, x.here);
  const auto value_heads = static_cast<index_t>(s.heads.size());
  if (x.row.role != tensor_role::token) {
    for (index_t hv = 0; hv < value_heads; ++hv) {
      const index_t other = s.heads[static_cast<std::size_t>(hv)];
      if (other < 0) continue;
      const bool state = x.row.role == tensor_role::state;
      const index_t at = state ? s.here.sequence * a.size.HV + hv : hv;
      const index_t to = state ? s.there.sequence * b.size.HV + other : other;
      visit(static_cast<std::size_t>(at) * width,
            static_cast<std::size_t>(to) * width, index_t{-1}, hv, other);
    }
    return;
  }
  std::map<index_t, std::map<index_t, index_t>> reads;  // how often, by heads
  for (index_t hv = 0; hv < value_heads; ++hv) {
    const index_t other = s.heads[static_cast<std::size_t>(hv)];
    if (other < 0) continue;
    ++reads[head_in(a, x.here.dim(2), hv)][head_in(b, x.there.dim(2), other)];
  }
  for (const auto& [head, others] : reads) {
    const index_t group = a.size.HV / x.here.dim(2);
    if (sums && (others.size() != 1 || others.begin()->second != group ||
                 b.size.HV / x.there.dim(2) != group)) {
      continue;
    }
    for (const auto& [other, count] : others) {
      for (index_t t = 0; t < s.tokens; ++t) {
        for (index_t r = 0; r < rows_in(a, x.here); ++r) {
          visit(place_of(a, x.here, width, s.here.sequence, s.here.first + t, r,
                         head),
                place_of(b, x.there, width, s.there.sequence, s.there.first + t,
                         r, other),
                t, head, other);
        }
      }
    }
  }
}

/// The first token of a stretch in which a tensor differs.
struct difference {
  std::string tensor;
  index_t token = -1;
  index_t head = 0, other_head = 0;  // of the tensor, here and there
};

std::optional<difference> first_difference(const dump& a, const dump& b,
                                           const stretch& s,
                                           std::string_view name,
                                           const tensor_pair& x) {
  const std::size_t width = width_of(x.row, x.here);
  std::optional<difference> found;
  each_run(a, b, s, x, false,
           [&](std::size_t i, std::size_t j, index_t token, index_t head,
               index_t other) {
             if (found && found->token <= token) return;
             for (std::size_t c = 0; c < width; ++c) {
               if (x.here.data[i + c] == x.there.data[j + c]) continue;
               found = difference{std::string(name), token, head, other};
               return;
             }
           });
  return found;
}

/// The tensor in `b`, or zeros where one may do without it.
/// @throws carve::error  where the shapes cannot be compared.
void with_pair(const tensor_row& row, std::string_view name,
               const tensor<double>& x, const tensor<double>& y, const dump& a,
               const dump& b, bool zero_if_absent,
               const std::function<void(const tensor_pair&)>& use) {
  if (!x.present() && !y.present()) return;
  if (x.present() && y.present()) {
    if (width_of(row, x) != width_of(row, y)) {
      throw error(name, ": expected the same channels, got ", x.shape, " and ",
                  y.shape);
    }
    return use({row, x, y});
  }
  if (!zero_if_absent) {
    throw error(name, ": in one of the dumps only");
  }
  const auto zeros = [&](const tensor<double>& like, const dump& d) {
    tensor_shape shape = like.shape;
    if (row.role == tensor_role::state) {
      shape[0] = d.size.N, shape[1] = d.size.HV;
    } else {
      shape[0] = d.size.B, shape[1] = d.size.T, shape[2] = d.size.HV;
    }
    return tensor<double>(shape);
  };
  if (x.present()) return use({row, x, zeros(x, b)});
  use({row, zeros(y, a), y});
}

/// Visits what must be the same before outputs are compared: inputs, and the
/// cotangents where gradients are.
void each_given(
    const dump& a, const dump& b, const stretch& s, bool gradients,
    const std::function<void(std::string_view, const tensor_pair&)>& visit) {
  for (const auto& m : tensors<double>::members()) {
    const bool state = m.role == tensor_role::state;
    if (state && !s.start) continue;
    with_pair(m, m.name, a.in.in.*m.at, b.in.in.*m.at, a, b, state,
              [&](const tensor_pair& x) { visit(m.name, x); });
  }
  for (const auto& m : outputs<double>::members()) {
    const bool state = m.role == tensor_role::state;
    if (!gradients || (state && !s.end)) continue;
    const std::string name = "d" + std::string(m.name);
    with_pair(m, name, a.cotangents.*m.at, b.cotangents.*m.at, a, b, true,
              [&](const tensor_pair& x) { visit(name, x); });
  }
}

/// The inputs that differ in a stretch, each with the first token.
std::vector<difference> differences(const dump& a, const dump& b,
                                    const stretch& s, bool gradients) {
  std::vector<difference> all;
  each_given(a, b, s, gradients,
             [&](std::string_view name, const tensor_pair& x) {
               if (auto d = first_difference(a, b, s, name, x)) {
                 all.push_back(std::move(*d));
               }
             });
  return all;
}

std::string place_text(index_t sequence, index_t token, index_t head) {
  std::string s;
  if (sequence >= 0) s += text("sequence ", sequence, ", ");
  if (token >= 0) s += text("token ", token, ", ");
  return s + text("head ", head);
}

/// @throws carve::error  where inputs differ that must be the same.
void expect_same_inputs(const std::vector<related_dump>& all, const stretch& s,
                        bool gradients) {
  const auto found =
      differences(all[s.here.dump].d, all[s.there.dump].d, s, gradients);
  if (found.empty()) return;
  const difference& d = found.front();
  const bool tokens = d.token >= 0;
  const auto at = [&](const stretch_place& p, index_t head) {
    return text(letter(p.dump), " at ",
                place_text(p.sequence, tokens ? p.first + d.token : -1, head));
  };
  throw error(d.tensor, ": expected the same numbers in ", at(s.here, d.head),
              " and in ", at(s.there, d.other_head), ", got others");
}

/// @throws carve::error  where two dumps are not of one problem.
void expect_same_settings(const related_dump& x, const related_dump& y,
                          const std::string& b) {
  const dump &p = x.d, &q = y.d;
  const auto expect = [&b](std::string_view what, const auto& one,
                           const auto& other) {
    if (one == other) return;
    throw error(what, ": expected the same in A and ", b, ", got ", one,
                " and ", other);
  };
  const auto number = [](auto e) { return static_cast<int>(e); };
  expect("family", info(p.in.family).name, info(q.in.family).name);
  expect("K", p.size.K, q.size.K);
  expect("V", p.size.V, q.size.V);
  expect("sub-steps a token", p.size.substeps, q.size.substeps);
  expect("scale", p.in.scale.value_or(0), q.in.scale.value_or(0));
  expect("read_out", number(p.in.read), number(q.in.read));
  const auto order = [](const dump& d) {
    return static_cast<int>(
        d.in.erase_reads.value_or(info(d.in.family).erase_reads));
  };
  expect("erase_order", order(p), order(q));
  expect("state_layout", p.in.state_v_first, q.in.state_v_first);
  expect("head_order", p.in.tiled_heads, q.in.tiled_heads);
  expect("window", p.in.window, q.in.window);
  const activations &f = p.in.act, &g = q.in.act;
  expect("decay_domain", number(f.domain), number(g.domain));
  expect("decay_activation", number(f.decay), number(g.decay));
  expect("lower_bound", f.lower_bound, g.lower_bound);
  expect("beta_activation", number(f.beta), number(g.beta));
  expect("b_activation", number(f.b), number(g.b));
  expect("w_activation", number(f.w), number(g.w));
  expect("l2norm", f.l2norm, g.l2norm);
  if (f.l2norm) expect("l2norm", number(f.norm), number(g.norm));
  if (f.l2norm) expect("l2norm_eps", f.l2_epsilon, g.l2_epsilon);
}

// ---- Which places correspond -------------------------------------------

using dumps_ref = const std::vector<related_dump>&;

std::vector<index_t> all_heads(const dump& d) {
  std::vector<index_t> heads(static_cast<std::size_t>(d.size.HV));
  std::iota(heads.begin(), heads.end(), index_t{0});
  return heads;
}

/// @throws carve::error  unless dump `f` has the heads of A.
void expect_heads(dumps_ref all, std::size_t f) {
  const dimensions &a = all[0].d.size, &b = all[f].d.size;
  if (std::tuple(a.H, a.VH, a.HV) == std::tuple(b.H, b.VH, b.HV)) return;
  throw error("heads: expected H ", a.H, " and HV ", a.HV, " in ", letter(f),
              " as in A, got H ", b.H, " and HV ", b.HV);
}

void expect_sequences(dumps_ref all, std::size_t f) {
  expect_heads(all, f);
  const index_t a = all[0].d.size.N, b = all[f].d.size.N;
  if (a != b) {
    throw error("sequences: expected ", a, " in ", letter(f), " as in A, got ",
                b);
  }
}

bool both_differentiate(const dump& a, const dump& b) {
  return a.has_cotangents() && b.has_cotangents();
}

/// Whole sequences, each with that of the same number.
std::vector<correspondence> places_in_order(dumps_ref all) {
  std::vector<correspondence> found;
  const dump& a = all[0].d;
  for (std::size_t f = 1; f < all.size(); ++f) {
    expect_sequences(all, f);
    const dump& b = all[f].d;
    correspondence c;
    c.gradients = c.complete = both_differentiate(a, b);
    for (index_t n = 0; n < a.size.N; ++n) {
      if (length_of(a, n) != length_of(b, n)) {
        throw error("sequence ", n, ": expected ", length_of(a, n),
                    " tokens in ", letter(f), " as in A, got ",
                    length_of(b, n));
      }
      c.stretches.push_back(
          {{0, n, 0}, {f, n, 0}, length_of(a, n), all_heads(a), true, true});
    }
    found.push_back(std::move(c));
  }
  return found;
}

std::vector<correspondence> places_causal(dumps_ref all) {
  expect_sequences(all, 1);
  const dump &a = all[0].d, &b = all[1].d;
  correspondence c;
  bool differ = false;
  for (index_t n = 0; n < a.size.N; ++n) {
    const index_t la = length_of(a, n), lb = length_of(b, n);
    stretch s{{0, n, 0}, {1, n, 0}, std::min(la, lb), all_heads(a), true};
    for (const difference& d : differences(a, b, s, false)) {
      // States and parameters are not to differ; the caller will say.
      if (d.token < 0) continue;
      s.tokens = std::min(s.tokens, d.token);
    }
    s.end = s.tokens == la && s.tokens == lb;
    differ = differ || !s.end;
    c.notes.push_back(s.end ? text("sequence ", n, ": inputs are equal")
                            : text("sequence ", n, ": inputs are equal before ",
                                   "token ", s.tokens));
    if (s.tokens > 0) c.stretches.push_back(std::move(s));
  }
  if (!differ) {
    throw error("inputs: expected other ones in B than in A from some token ",
                "on, got the same (repeat is for these)");
  }
  if (c.stretches.empty()) {
    throw error("inputs: expected the same in A and B before some token, got ",
                "others in the first");
  }
  if (c.notes.size() > 4) {
    const std::size_t more = c.notes.size() - 3;
    c.notes.resize(3);
    c.notes.push_back(text("and so for ", more, " more sequences"));
  }
  return {c};
}

/// @throws carve::error  unless the final states of dump f are the start states
///                       of the next, and, for gradients, the other way round.
void expect_handed_on(std::size_t f, std::string_view from,
                      const tensor<double>* given, std::size_t to,
                      std::string_view into, const tensor<double>& taken) {
  if (!given || !given->present() || !taken.present()) {
    const bool lacks_given = !given || !given->present();
    throw error(lacks_given ? from : into, ": missing in ",
                letter(lacks_given ? f : to), "; expected ", from, " of ",
                letter(f), " as ", into, " of ", letter(to));
  }
  for (std::size_t i = 0; i < given->data.size(); ++i) {
    if (given->data[i] == taken.data[i]) continue;
    throw error(into, ": expected ", from, " of ", letter(f), " in ",
                letter(to), ", got another number at ",
                detail::position(taken.shape, i));
  }
}

const tensor<double>* judged_named(const dump& d, std::string_view name) {
  for (const judged_tensor& x : d.judged) {
    if (x.name == name) return &x.values;
  }
  return nullptr;
}

std::vector<correspondence> places_split(dumps_ref all) {
  const dump& a = all[0].d;
  correspondence c;
  c.gradients = true;
  for (std::size_t f = 1; f < all.size(); ++f) {
    expect_sequences(all, f);
    const dump& b = all[f].d;
    c.gradients = c.gradients && both_differentiate(a, b);
    if (f + 1 == all.size()) continue;
    const dump& next = all[f + 1].d;
    expect_handed_on(f, "final_state", judged_named(b, "final_state"), f + 1,
                     "initial_state", next.in.in.initial_state);
  }
  for (std::size_t f = 1; f + 1 < all.size() && c.gradients; ++f) {
    const dump &b = all[f].d, &next = all[f + 1].d;
    const tensor<double>* back = judged_named(next, "dinitial_state");
    if (!back || !b.cotangents.final_state.present()) {
      c.gradients = false;
      c.notes.push_back(text("gradients are not compared: dinitial_state of ",
                             letter(f + 1), " is not given to ", letter(f),
                             " as dfinal_state"));
    } else {
      expect_handed_on(f + 1, "dinitial_state", back, f, "dfinal_state",
                       b.cotangents.final_state);
    }
  }
  for (index_t n = 0; n < a.size.N; ++n) {
    index_t first = 0;
    for (std::size_t f = 1; f < all.size(); ++f) {
      const index_t tokens = length_of(all[f].d, n);
      const index_t left = length_of(a, n) - first;
      if (tokens > left || (f + 1 == all.size() && tokens < left)) {
        throw error("sequence ", n, ": expected pieces of ", length_of(a, n),
                    " tokens in all, got ", first + tokens, " up to ",
                    letter(f));
      }
      c.stretches.push_back({{0, n, first},
                             {f, n, 0},
                             tokens,
                             all_heads(a),
                             f == 1,
                             f + 1 == all.size()});
      first += tokens;
    }
  }
  return {c};
}

std::vector<correspondence> places_decode(dumps_ref all) {
  for (std::size_t f = 2; f < all.size(); ++f) {
    for (index_t n = 0; n < all[f].d.size.N; ++n) {
      if (length_of(all[f].d, n) <= 1) continue;
      throw error("sequence ", n, ": expected one token in ", letter(f),
                  ", got ", length_of(all[f].d, n),
                  " (split is for longer pieces)");
    }
  }
  if (all.size() < 3) {
    throw error("dumps: expected the whole, a prefill and steps of one token, ",
                "got ", all.size());
  }
  return places_split(all);
}

/// Finds the sequences and heads of dump f in dump w by their inputs, each at
/// most once.
/// @throws carve::error  naming what differs in the nearest, where one is not
///                       found.
correspondence found_by_inputs(dumps_ref all, std::size_t f, std::size_t w) {
  const dump &part = all[f].d, &whole = all[w].d;
  correspondence c;
  c.measured = f;
  c.gradients = both_differentiate(part, whole);
  std::vector<bool> taken(static_cast<std::size_t>(whole.size.N));
  for (index_t n = 0; n < part.size.N; ++n) {
    struct {
      std::size_t differ = std::numeric_limits<std::size_t>::max();
      index_t sequence = 0, head = 0, of = 0;
      std::string names;
    } nearest;
    std::optional<stretch> found;
    for (index_t turn = 0; turn < whole.size.N && !found; ++turn) {
      // That of the same number first.
      const index_t m = (n + turn) % whole.size.N;
      const index_t tokens = length_of(part, n);
      if (taken[static_cast<std::size_t>(m)] || length_of(whole, m) != tokens) {
        continue;
      }
      stretch s{{f, n, 0}, {w, m, 0}, tokens, {}, true, true};
      s.heads.assign(static_cast<std::size_t>(part.size.HV), -1);
      std::vector<bool> used(static_cast<std::size_t>(whole.size.HV));
      bool complete = true;
      for (index_t hv = 0; hv < part.size.HV && complete; ++hv) {
        complete = false;
        for (index_t i = 0; i < whole.size.HV && !complete; ++i) {
          const index_t other = (hv + i) % whole.size.HV;
          if (used[static_cast<std::size_t>(other)]) continue;
          stretch one = s;
          std::fill(one.heads.begin(), one.heads.end(), index_t{-1});
          one.heads[static_cast<std::size_t>(hv)] = other;
          const auto d = differences(part, whole, one, c.gradients);
          complete = d.empty();
          if (complete) {
            s.heads[static_cast<std::size_t>(hv)] = other;
            used[static_cast<std::size_t>(other)] = true;
          } else if (d.size() < nearest.differ) {
            nearest = {d.size(), m, other, hv, {}};
            for (const difference& e : d) {
              nearest.names += (nearest.names.empty() ? "" : ", ") + e.tensor;
            }
          }
        }
      }
      if (complete) found = s;
    }
    if (!found) {
      const std::string what =
          text("inputs: expected those of sequence ", n, ", head ", nearest.of,
               " of ", letter(f), " in ", letter(w));
      if (nearest.names.empty()) {
        throw error(what, ", got no sequence of ", length_of(part, n),
                    " tokens");
      }
      throw error(what, ", got others; the nearest, sequence ",
                  nearest.sequence, ", head ", nearest.head, ", differs in ",
                  nearest.names);
    }
    taken[static_cast<std::size_t>(found->there.sequence)] = true;
    c.stretches.push_back(std::move(*found));
  }
  return c;
}

/// "sequence 0 is sequence 2 of A", for the few first.
void describe_found(correspondence& c, const dump& here) {
  constexpr std::size_t few = 3;
  for (const stretch& s : c.stretches) {
    std::string heads;
    if (s.heads != all_heads(here)) {
      heads = text("; its heads are ", s.heads);
    }
    if (c.notes.size() == few) {
      c.notes.push_back(text("and ", c.stretches.size() - few, " more"));
      return;
    }
    c.notes.push_back(text("sequence ", s.here.sequence, " of ",
                           letter(s.here.dump), " is sequence ",
                           s.there.sequence, " of ", letter(s.there.dump),
                           heads));
  }
}

std::vector<correspondence> places_alone(dumps_ref all) {
  std::vector<correspondence> found;
  for (std::size_t f = 1; f < all.size(); ++f) {
    const dimensions &part = all[f].d.size, &whole = all[0].d.size;
    if (part.N >= whole.N && part.HV >= whole.HV) {
      throw error("sequences: expected fewer sequences or heads in ", letter(f),
                  " than in A, got ", part.N, " of ", part.HV,
                  " heads and in A ", whole.N, " of ", whole.HV);
    }
    found.push_back(found_by_inputs(all, f, 0));
    describe_found(found.back(), all[f].d);
  }
  return found;
}

std::vector<correspondence> places_permute(dumps_ref all) {
  std::vector<correspondence> found;
  for (std::size_t f = 1; f < all.size(); ++f) {
    expect_sequences(all, f);
    correspondence c = found_by_inputs(all, f, 0);
    bool moved = false, alike = true;
    for (const stretch& s : c.stretches) {
      moved = moved || s.here.sequence != s.there.sequence ||
              s.heads != all_heads(all[f].d);
      alike = alike && s.heads == c.stretches[0].heads;
    }
    if (!moved) {
      throw error("inputs: expected those of A in another order in ", letter(f),
                  ", got the same order (repeat is for these)");
    }
    c.complete = c.gradients && alike;
    describe_found(c, all[f].d);
    found.push_back(std::move(c));
  }
  return found;
}

/// Whether tokens [first, last) of a sequence leave the state as it was, and
/// whether they are read.
struct padding {
  bool neutral = true, unread = true;
};

padding padding_of(const dump& d, index_t n, index_t first, index_t last) {
  padding p;
  const auto all = [&](const tensor<double>& x, double value) {
    if (!x.present()) return true;
    const auto width = static_cast<std::size_t>(
        x.data.size() / static_cast<std::size_t>(x.dim(0) * x.dim(1)));
    const auto rows = static_cast<std::size_t>(rows_in(d, x));
    const auto from = static_cast<std::size_t>(n * x.dim(1));
    const auto begin = (from + static_cast<std::size_t>(first) * rows) * width;
    const auto end = (from + static_cast<std::size_t>(last) * rows) * width;
    return std::all_of(x.data.begin() + static_cast<std::ptrdiff_t>(begin),
                       x.data.begin() + static_cast<std::ptrdiff_t>(end),
                       [value](double e) { return e == value; });
  };
  if (first == last) return p;
  const auto& in = d.in.in;
  const double one = d.in.act.domain == decay_domain::linear ? 1 : 0;
  p.neutral = d.in.act.decay == decay_activation::none && all(in.g, one) &&
              all(in.gd, one) && all(in.k, 0) && all(in.p, 0) && all(in.r, 0) &&
              all(in.y, 0) && all(in.w_last, 0);
  p.unread = all(d.cotangents.o, 0);
  return p;
}

std::vector<correspondence> places_pack(dumps_ref all) {
  const bool first_packed = !all[0].d.in.cu_seqlens.empty();
  if (first_packed != all[1].d.in.cu_seqlens.empty()) {
    throw error("cu_seqlens: expected in one of the dumps, the packed one, ",
                "got it in ", first_packed ? "both" : "none");
  }
  const std::size_t p = first_packed ? 0 : 1, q = 1 - p;
  const dump &packed = all[p].d, &padded = all[q].d;
  expect_sequences(all, 1);
  correspondence c;
  c.measured = p;
  c.gradients = both_differentiate(packed, padded);
  bool neutral = true, unread = true;
  for (index_t n = 0; n < packed.size.N; ++n) {
    const index_t tokens = length_of(packed, n), T = padded.size.T;
    if (tokens > T) {
      throw error("sequence ", n, ": expected room for ", tokens, " tokens in ",
                  letter(q), ", got ", T);
    }
    stretch s{{p, n, 0}, {q, n, 0}, tokens, all_heads(packed), true, false};
    padding pad = padding_of(padded, n, tokens, T);
    const auto at_start = differences(packed, padded, s, false);
    if (!at_start.empty() && tokens < T) {
      stretch late = s;
      late.there.first = T - tokens;
      if (differences(packed, padded, late, false).empty()) {
        s = late;
        pad = padding_of(padded, n, 0, T - tokens);
        if (!pad.neutral) {
          throw error("sequence ", n, ": expected padding before the tokens ",
                      "that leaves the state as it was (k zero, decay one), ",
                      "got others in ", letter(q));
        }
      }
    }
    neutral = neutral && pad.neutral, unread = unread && pad.unread;
    s.end = pad.neutral;
    c.stretches.push_back(std::move(s));
  }
  if (!neutral) {
    c.notes.push_back(
        "padding is no zeros: final_state of padded sequences and gradients "
        "are not compared");
  } else if (!unread && c.gradients) {
    c.notes.push_back(
        "do is not zero in the padding: gradients are not compared");
  }
  c.gradients = c.complete = c.gradients && neutral && unread;
  return {c};
}

std::vector<correspondence> places_rollback(dumps_ref all) {
  expect_sequences(all, 1);
  const dump &a = all[0].d, &b = all[1].d;
  correspondence c;
  bool rejected = false;
  for (index_t n = 0; n < a.size.N; ++n) {
    const index_t tokens = length_of(a, n), more = length_of(b, n) - tokens;
    if (more < 0) {
      throw error("sequence ", n, ": expected the ", tokens,
                  " accepted tokens of A and drafts after them in B, got ",
                  length_of(b, n), " tokens");
    }
    rejected = rejected || more > 0;
    c.stretches.push_back(
        {{0, n, 0}, {1, n, 0}, tokens, all_heads(a), true, true});
  }
  if (!rejected) {
    throw error("tokens: expected more in B than in A, the rejected drafts, ",
                "got as many");
  }
  return {c};
}

std::vector<correspondence> places_pool(dumps_ref all) {
  if (!all[0].pool && !all[1].pool) {
    throw error("state_indices: missing in both dumps; expected the rows of ",
                "the sequences in the pool [N]");
  }
  return places_in_order(all);
}

// ---- Comparing ---------------------------------------------------------

/// Numbers of a tensor of the measured dump beside those that they must equal.
struct gathered {
  std::vector<double> here, there;
  std::vector<std::size_t> at;  // in the measured tensor
  tensor<double> other;         // the measured tensor with the others' numbers
  std::optional<std::tuple<index_t, index_t, index_t>> first;
  std::size_t differing = 0;

  /// Adds a run of numbers.
  void add(const tensor<double>& x, std::size_t i, const tensor<double>& y,
           std::size_t j, std::size_t width,
           const std::tuple<index_t, index_t, index_t>& place) {
    bool differs = false;
    for (std::size_t c = 0; c < width; ++c) {
      here.push_back(x.data[i + c]), there.push_back(y.data[j + c]);
      at.push_back(i + c);
      other.data[i + c] = y.data[j + c];
      if (same_bits(here.back(), there.back())) continue;
      ++differing;
      differs = true;
    }
    if (differs && (!first || place < *first)) first = place;
  }

  static bool same_bits(double x, double y) {
    return std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y);
  }
};

/// Whether a relation with those places speaks of a judged tensor.
struct claim {
  bool output = false, state = false, parameter = false;
  tensor_row row;
};

claim claim_of(std::string_view name) {
  for (const auto& m : outputs<double>::members()) {
    if (m.name == name) {
      return {true, m.role == tensor_role::state, false, m};
    }
  }
  for (const auto& m : tensors<double>::members()) {
    if (name.substr(1) != m.name) continue;
    return {false, m.role == tensor_role::state,
            m.role == tensor_role::parameter, m};
  }
  throw error(name, ": not the name of an output");
}

class comparer {
 public:
  comparer(dumps_ref all, const kernel_facts& facts, const run_settings& run)
      : all_(all), facts_(facts), run_(run), units_(all.size()) {}

  void compare_all(const correspondence& c, relation_outcome& out) {
    const dump& a = all_[c.measured].d;
    std::string left;
    std::vector<std::pair<const judged_tensor*, gathered>> found;
    for (const judged_tensor& x : a.judged) {
      gathered g = gather(c, x);
      if (g.at.empty()) {
        left += (left.empty() ? "" : ", ") + x.name;
      } else {
        found.emplace_back(&x, std::move(g));
      }
    }
    const bool equal =
        std::all_of(found.begin(), found.end(),
                    [](const auto& f) { return f.second.differing == 0; });
    if (!equal && !units_[c.measured]) {
      units_[c.measured] = expect(a, facts_, run_);
    }
    for (const auto& [x, g] : found) {
      out.tensors.push_back(judge(c.measured, *x, g));
    }
    for (const std::string& note : c.notes) out.notes.push_back(note);
    if (!left.empty()) {
      out.notes.push_back(
          text("not compared of ", letter(c.measured), ": ", left));
    }
  }

 private:
  gathered gather(const correspondence& c, const judged_tensor& x) const {
    gathered g;
    g.other = x.values;
    const dump& a = all_[c.measured].d;
    const claim is = claim_of(x.name);
    if (!is.output && !(is.parameter ? c.complete : c.gradients)) return g;
    bool first = true;
    for (const stretch& s : c.stretches) {
      if (is.state && !(is.output ? s.end : s.start)) continue;
      // Sums over the sequences are compared once.
      if (is.parameter && !std::exchange(first, false)) break;
      const dump& b = all_[s.there.dump].d;
      const judged_tensor* y = nullptr;
      for (const judged_tensor& z : b.judged) {
        if (z.name == x.name) y = &z;
      }
      if (!y) return {};
      if (y->dtype != x.dtype) {
        throw error(x.name, ": expected ", st::dtype_name(x.dtype), " in ",
                    letter(s.there.dump), " as in ", letter(c.measured),
                    ", got ", st::dtype_name(y->dtype));
      }
      const std::size_t width = width_of(is.row, x.values);
      if (width != width_of(is.row, y->values)) {
        throw error(x.name, ": expected the same channels, got ",
                    x.values.shape, " and ", y->values.shape);
      }
      const index_t n = is.parameter ? -1 : s.here.sequence;
      each_run(a, b, s, {is.row, x.values, y->values}, !is.output,
               [&](std::size_t i, std::size_t j, index_t token, index_t head,
                   index_t) {
                 g.add(x.values, i, y->values, j, width,
                       {n, token < 0 ? token : s.here.first + token, head});
               });
    }
    return g;
  }

  agreement judge(std::size_t here, const judged_tensor& x,
                  const gathered& g) const {
    agreement a;
    a.tensor = x.name, a.here = here;
    a.compared = g.at.size(), a.differing = g.differing;
    if (g.differing == 0) return a;
    const auto [n, token, head] = *g.first;
    a.first = place_text(n, token, head);
    const format storage = *st::format_of(x.dtype);
    // NaNs that are the same in both stand for no difference.
    std::vector<double_double> expected;
    std::vector<double> actual;
    bool finite = true;
    for (std::size_t i = 0; i < g.at.size(); ++i) {
      if (!std::isfinite(g.here[i]) || !std::isfinite(g.there[i])) {
        finite = finite && gathered::same_bits(g.here[i], g.there[i]);
        continue;
      }
      expected.push_back(g.here[i]), actual.push_back(g.there[i]);
    }
    const auto& units = units_[here]->sound.units;
    const auto unit =
        std::find_if(units.begin(), units.end(),
                     [&x](const tensor_unit& u) { return u.name == x.name; });
    const comparison c =
        compare(expected, actual, unit->unit, storage, tolerance{});
    a.ratio = finite ? c.ratio : HUGE_VAL;
    a.largest_ratio = finite ? c.max_ratio : HUGE_VAL;
    a.is = !finite || c.fails() ? agreement::kind::apart
           : c.pass()           ? agreement::kind::within_unit
                                : agreement::kind::undecided;
    const bool beyond = a.is == agreement::kind::apart;
    a.where = place_words(x, g, beyond ? unit->unit.rms : 0,
                          beyond ? negligible_error(storage) : 0);
    return a;
  }

  /// Where the difference is more than `unit` allows, or `floor`.
  std::string place_words(const judged_tensor& x, const gathered& g,
                          double unit, double floor) const {
    std::vector<double> other = g.other.data;
    std::vector<double_double> expected;
    for (std::size_t i = 0; i < other.size(); ++i) {
      double e = x.values.data[i];
      if (gathered::same_bits(e, other[i]) || !std::isfinite(e)) {
        // What is the same is no difference, even a NaN.
        const bool same = gathered::same_bits(e, other[i]);
        e = std::isfinite(e) ? e : 0;
        other[i] = same ? e : HUGE_VAL;
      }
      expected.push_back(e);
    }
    const error_map map =
        map_errors(x.values.shape, has_tokens(x.name), other, expected);
    error_map sound = map;
    std::fill(sound.error.begin(), sound.error.end(), unit);
    location l = locate(map, sound, floor, other, expected);
    const auto factor = std::exchange(l.factor, std::nullopt);
    const std::string words = l.text(map);
    return factor ? text("a factor of ", *factor, " between them; ", words)
                  : words;
  }

  dumps_ref all_;
  const kernel_facts& facts_;
  const run_settings& run_;
  std::vector<std::optional<expectation>> units_;
};

/// Rows of a pool that no sequence had are as they were.
void compare_pool(const related_dump& f, std::size_t number,
                  relation_outcome& out) {
  const tensor<double>& after = f.pool->after;
  if (!after.present() || !f.pool->before.present() ||
      after.shape != f.pool->before.shape) {
    out.notes.push_back(text("rows of the pool that no sequence had are not ",
                             "compared: ", letter(number), " does not hold ",
                             "the pool before and after"));
    return;
  }
  agreement a;
  a.tensor = "other rows", a.here = number;
  const auto rows = static_cast<std::size_t>(after.dim(0));
  const std::size_t width = after.data.size() / rows;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto& used = f.pool->used;
    if (std::find(used.begin(), used.end(), static_cast<index_t>(r)) !=
        used.end()) {
      continue;
    }
    for (std::size_t i = r * width; i < (r + 1) * width; ++i) {
      ++a.compared;
      if (gathered::same_bits(after.data[i], f.pool->before.data[i])) continue;
      if (a.differing++ == 0) a.first = text("row ", r, " of the pool");
    }
  }
  if (a.differing > 0) a.is = agreement::kind::apart;
  if (a.compared > 0) out.tensors.push_back(std::move(a));
}

const std::vector<relation> table{
    {"repeat", "the same inputs give the same outputs in every run",
     "runs on the same inputs", 0, false, places_in_order, plan_repeat},
    {"causal", "outputs before token t depend on nothing from t on",
     "two runs, inputs equal before some token", 2, false, places_causal,
     plan_causal},
    {"split", "pieces, the state handed on, give what the whole gives",
     "the whole, then its pieces in order", 0, true, places_split, plan_split},
    {"decode", "a prefill, then single tokens, give what one pass gives",
     "one pass, the prefill, then a dump for each token", 0, true,
     places_decode, plan_decode},
    {"alone", "a sequence or a head gives alone what it gives among others",
     "a batch or a pack, then parts of it", 0, false, places_alone, plan_alone},
    {"pack", "sequences give packed what they give padded",
     "the packed and the padded, in any order", 2, false, places_pack,
     plan_pack},
    {"permute", "outputs follow sequences and heads to other places",
     "a run, then others with its sequences or heads permuted", 0, false,
     places_permute, plan_permute},
    {"rollback", "rejected drafts leave the state as it was before them",
     "the accepted tokens alone, then the run with drafts", 2, false,
     places_rollback, plan_rollback},
    {"pool", "states in a pool of rows give what states in order give",
     "states in order and in a pool, in any order", 2, false, places_pool,
     plan_pool},
};

}  // namespace

const std::vector<relation>& relations() { return table; }

const relation& relation_named(std::string_view name) {
  std::vector<std::string_view> names;
  for (const relation& r : table) {
    if (r.name == name) return r;
    names.push_back(r.name);
  }
  throw error("relation: expected one of ", names, ", got \"",
              st::printable(name), "\"");
}

related_dump read_related(const st::file& file, const settings& given) {
  const std::string indices = "state_indices";
  if (!file.contains(indices)) return {{}, read_dump(file, given), {}};
  const std::vector<std::int64_t> used = file.as_int64(indices);
  related_dump r;
  r.pool.emplace();
  r.pool->used.assign(used.begin(), used.end());
  // The same file with the states of the sequences, in order.
  std::vector<std::vector<std::byte>> kept;
  std::vector<st::memory_tensor> in_order;
  for (const std::string& name : file.names()) {
    const st::tensor_info& i = file.info(name);
    kept.push_back(file.bytes(name));
    st::memory_tensor t{name, i.dtype, i.shape, {}, nullptr};
    const bool state = name == "initial_state" || name == "final_state";
    if (state && i.shape.size() == 4) {
      const std::int64_t rows = i.shape[0];
      (name == "initial_state" ? r.pool->before : r.pool->after) =
          tensor<double>({i.shape.begin(), i.shape.end()},
                         file.as_double(name));
      const std::size_t bytes =
          kept.back().size() /
          static_cast<std::size_t>(std::max<std::int64_t>(rows, 1));
      std::vector<std::byte> some;
      for (std::size_t n = 0; n < used.size(); ++n) {
        if (used[n] < 0 || used[n] >= rows) {
          throw error(indices, ": expected rows 0 to ", rows - 1, " of ", name,
                      ", got ", used[n], " for sequence ", n);
        }
        if (std::count(used.begin(), used.end(), used[n]) > 1) {
          throw error(indices, ": expected a row for each sequence, got ",
                      used[n], " twice");
        }
        const auto at = kept.back().begin() +
                        static_cast<std::ptrdiff_t>(
                            static_cast<std::size_t>(used[n]) * bytes);
        some.insert(some.end(), at, at + static_cast<std::ptrdiff_t>(bytes));
      }
      kept.back() = std::move(some);
      t.shape[0] = static_cast<std::int64_t>(used.size());
    }
    in_order.push_back(std::move(t));
  }
  for (std::size_t i = 0; i < kept.size(); ++i)
    in_order[i].data = kept[i].data();
  std::erase_if(in_order, [&](const auto& t) { return t.name == indices; });
  r.d = read_dump(st::file::of(in_order, file.metadata()), given);
  return r;
}

agreement::kind relation_outcome::is() const {
  agreement::kind worst = agreement::kind::same_bits;
  for (const agreement& a : tensors) worst = std::max(worst, a.is);
  return worst;
}

relation_outcome relate(const relation& r,
                        const std::vector<related_dump>& dumps,
                        const kernel_facts& facts, const run_settings& run) {
  if (dumps.size() < 2 || (r.most > 0 && dumps.size() > r.most)) {
    throw error(r.name, ": expected ", r.files, ", got ", dumps.size(),
                dumps.size() == 1 ? " dump" : " dumps");
  }
  const family_info& f = info(dumps[0].d.in.family);
  if (r.hands_states_on && (f.content_gate || f.steps == substeps::trapezoid)) {
    throw error("family: expected one whose state holds all of the past, got ",
                f.name,
                f.content_gate ? ", whose gate reads earlier outputs"
                               : ", which writes the last token too");
  }
  for (std::size_t i = 1; i < dumps.size(); ++i) {
    expect_same_settings(dumps[0], dumps[i], letter(i));
  }
  const std::vector<correspondence> all = r.places(dumps);
  for (const correspondence& c : all) {
    for (const stretch& s : c.stretches) {
      expect_same_inputs(dumps, s, c.gradients);
    }
  }
  relation_outcome out{r.name, r.sentence, {}, {}, {}};
  for (const related_dump& d : dumps) out.paths.push_back(d.path);
  comparer compare(dumps, facts, run);
  for (const correspondence& c : all) compare.compare_all(c, out);
  if (out.tensors.empty()) {
    throw error("outputs: expected o, final_state or gradients in all dumps, ",
                "got none that could be compared");
  }
  for (std::size_t i = 0; i < dumps.size() && r.name == "pool"; ++i) {
    if (dumps[i].pool) compare_pool(dumps[i], i, out);
  }
  return out;
}

namespace {

std::string_view words(agreement::kind is) {
  switch (is) {
    case agreement::kind::same_bits:
      return "same bits";
    case agreement::kind::within_unit:
      return "within the unit";
    case agreement::kind::undecided:
      return "undecided";
    case agreement::kind::apart:
      return "apart";
  }
  return "";
}

std::string two_digits(const std::optional<double>& x) {
  if (!x) return "";
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer),
                *x < 999.995 || !std::isfinite(*x) ? "%.2f" : "%.1e", *x);
  return buffer;
}

}  // namespace

void write_relation(std::ostream& out, const relation_outcome& r) {
  out << r.name << ": " << r.sentence << '\n';
  for (std::size_t i = 0; i < r.paths.size(); ++i) {
    out << "  " << letter(i) << "  " << st::printable(r.paths[i]) << '\n';
  }
  for (const std::string& note : r.notes) {
    out << "  note: " << wrapped(note, 80, 8) << '\n';
  }
  char line[160];
  const auto row = [&](const char* tensor, const char* of, const char* compared,
                       const char* differ, const char* ratio,
                       const char* largest, std::string_view verdict) {
    std::snprintf(line, sizeof(line), "%-15s %2s %10s %10s %8s %8s  %s", tensor,
                  of, compared, differ, ratio, largest,
                  std::string(verdict).c_str());
    out << line << '\n';
  };
  out << '\n';
  row("", "", "numbers", "with other", "RMS", "largest", "");
  row("tensor", "of", "compared", "bits", "units", "units", "verdict");
  for (const agreement& a : r.tensors) {
    row(a.tensor.c_str(), letter(a.here).c_str(),
        std::to_string(a.compared).c_str(), std::to_string(a.differing).c_str(),
        two_digits(a.ratio).c_str(), two_digits(a.largest_ratio).c_str(),
        words(a.is));
  }
  out << '\n';
  for (const agreement& a : r.tensors) {
    if (a.is == agreement::kind::same_bits) continue;
    std::string all = a.tensor + ": first at " + a.first;
    if (!a.where.empty()) {
      all += (a.is == agreement::kind::apart ? "; beyond the unit: "
                                             : "; other bits: ") +
             a.where;
    }
    out << wrapped(all, 80, 2) << '\n';
  }
  switch (r.is()) {
    case agreement::kind::same_bits:
      out << "holds, bit for bit and so within the unit\n";
      return;
    case agreement::kind::within_unit:
      out << "holds within the unit, not bit for bit\n";
      return;
    case agreement::kind::undecided:
      out << "undecided: not bit for bit, and sound ways leave no digit to "
             "judge by\n";
      return;
    case agreement::kind::apart:
      out << "does not hold: neither bit for bit nor within the unit\n";
  }
}

void write_relation_json(std::ostream& out, const relation_outcome& r) {
  using json = nlohmann::ordered_json;
  const auto number = [](const std::optional<double>& x) {
    return x && std::isfinite(*x) ? json(*x) : json(nullptr);
  };
  const agreement::kind is = r.is();
  json all{{"relation", r.name},
           {"sentence", r.sentence},
           {"holds", is == agreement::kind::undecided
                         ? json(nullptr)
                         : json(is < agreement::kind::undecided)},
           {"bit_for_bit", is == agreement::kind::same_bits},
           {"within_the_unit", is <= agreement::kind::within_unit},
           {"verdict", words(is)},
           {"files", json::array()},
           {"notes", r.notes},
           {"tensors", json::array()}};
  for (const std::string& path : r.paths) {
    all["files"].push_back(st::printable(path));
  }
  for (const agreement& a : r.tensors) {
    json row{{"name", a.tensor},         {"of", letter(a.here)},
             {"compared", a.compared},   {"differing", a.differing},
             {"ratio", number(a.ratio)}, {"max_ratio", number(a.largest_ratio)},
             {"verdict", words(a.is)}};
    if (!a.first.empty()) row["first"] = a.first;
    if (!a.where.empty()) row["where"] = a.where;
    all["tensors"].push_back(std::move(row));
  }
  out << all.dump(2, ' ', true, json::error_handler_t::replace) << '\n';
}

}  // namespace carve::program
