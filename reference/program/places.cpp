#include "program/places.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

namespace carve::program {

namespace {

namespace st = safetensors;

/// Which of a tensor's heads value head `hv` reads.
index_t head_in(const dump& d, index_t heads, index_t hv) {
  return d.in.tiled_heads ? hv % heads : hv / (d.size.HV / heads);
}

/// Rows a token.
index_t rows_in(const dump& d, const tensor<double>& x) {
  return x.dim(1) / d.size.T;
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

}  // namespace

std::string letter(std::size_t i) {
  return i < 26 ? std::string(1, static_cast<char>('A' + i))
                : text("dump ", i + 1);
}

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

std::string place_text(index_t sequence, index_t token, index_t head) {
  std::string s;
  if (sequence >= 0) s += text("sequence ", sequence, ", ");
  if (token >= 0) s += text("token ", token, ", ");
  return s + text("head ", head);
}

const tensor<double>* judged_named(const dump& d, std::string_view name) {
  for (const judged_tensor& x : d.judged) {
    if (x.name == name) return &x.values;
  }
  return nullptr;
}

void each_run(const dump& a, const dump& b, const stretch& s,
              const tensor_pair& x, bool sums, const run_visitor& visit) {
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

namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

}  // namespace carve::program
