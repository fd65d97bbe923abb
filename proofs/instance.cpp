/// @file
/// How instances are drawn, shrunk and shown.
#include "instance.hpp"

#include <algorithm>
#include <numeric>
#include <ostream>

#include "property.hpp"

namespace carve::proofs {

namespace {

enum axis { token_axis, key_axis, value_axis, rank_axis };

std::vector<axis> axes_of(const layout& s, tensor x) {
  switch (x) {
    case q:
    case k:
    case address:
    case direction:
      return {token_axis, key_axis};
    case v:
    case dout:
      return {token_axis, value_axis};
    case a:
    case b:
      if (s.gate(x) == along::head) return {token_axis};
      return {token_axis, key_axis};
    case d:
    case e:
    case w:
      if (s.gate(x) == along::head) return {token_axis};
      return {token_axis, value_axis};
    case mask:
      return {token_axis, key_axis, value_axis};
    case start:
    case dstate:
      return {key_axis, value_axis};
    case down:
      return {rank_axis, value_axis};
    case up:
      return {key_axis, rank_axis};
  }
  return {};
}

index_t& extent(layout& s, axis x) {
  switch (x) {
    case token_axis:
      return s.tokens;
    case key_axis:
      return s.keys;
    case value_axis:
      return s.values;
    case rank_axis:
      break;
  }
  return s.rank;
}

/// Tensor `i` without entry `at` of dimension `dim`.
std::vector<number> without(const std::vector<number>& from,
                            const std::vector<index_t>& extents,
                            std::size_t dim, index_t at) {
  index_t inner = 1;
  for (std::size_t n = dim + 1; n < extents.size(); ++n) inner *= extents[n];
  std::vector<number> to;
  for (std::size_t n = 0; n < from.size(); ++n) {
    const index_t here = static_cast<index_t>(n) / inner % extents[dim];
    if (here != at) to.push_back(from[n]);
  }
  return to;
}

instance dropped(const instance& from, axis which, index_t at) {
  instance to = from;
  for (int i = 0; i < tensor_count; ++i) {
    const auto x = static_cast<tensor>(i);
    if (!from.has(x)) continue;
    const auto axes = axes_of(from, x);
    for (std::size_t dim = 0; dim < axes.size(); ++dim) {
      if (axes[dim] != which) continue;
      to.x[i] = without(from.x[i], from.extents(x), dim, at);
    }
  }
  --extent(to, which);
  return to;
}

/// The instance with gate x placed otherwise; entries of channel 0 are kept.
instance placed(const instance& from, tensor x, along where) {
  instance to = from;
  to.gates[x - a] = where;
  const index_t width = from.size(x) / from.tokens;
  to.x[x].clear();
  for (index_t t = 0; t < from.tokens && where == along::head; ++t) {
    to.x[x].push_back(from.x[x][t * width]);
  }
  return to;
}

bool allowed(const space& from, tensor x, along where) {
  const auto& choice = from.gates[x - a];
  return std::find(choice.begin(), choice.end(), where) != choice.end();
}

number any_number(generator& rng, int size) {
  const int most = 1 + size / 34;
  number n{integer(rng, -most, most), 1};
  if (size > 50 && rng() % 3 == 0) n.q = 2;
  if (n.p % n.q == 0) n = {n.p / n.q, 1};
  return n;
}

number unit_number(generator& rng, bool binary) {
  static constexpr number values[] = {{0, 1}, {1, 1}, {1, 2}, {1, 3}, {2, 3}};
  return values[rng() % (binary ? 2 : 5)];
}

void shape_keys(instance& x, generator& rng) {
  const index_t K = x.keys;
  const auto key = [&](index_t t, index_t i) -> number& {
    return x.x[k][t * K + i];
  };
  const auto pattern = rng() % 8;
  for (index_t t = 0; t < x.tokens; ++t) {
    const int factor = integer(rng, -2, 2);
    const bool zero = rng() % 2 == 0;
    for (index_t i = 0; i < K; ++i) {
      if (pattern == 0) {  // repeated
        key(t, i) = key(0, i);
      } else if (pattern == 1) {  // parallel
        if (t > 0) key(t, i) = {factor * key(0, i).p, key(0, i).q};
      } else if (pattern == 2) {  // orthogonal, as long as channels last
        key(t, i) = {t % K == i ? 1 : 0, 1};
      } else if (pattern == 3 && zero) {
        key(t, i) = {0, 1};
      }
    }
  }
}

}  // namespace

bool layout::has(tensor x) const {
  if (x >= a && x <= w) return gate(x) != along::none;
  if (x == mask) return has_mask;
  if (x == start) return has_start;
  if (x == down || x == up) return has_content;
  if (x == address) return has_address;
  if (x == direction) return has_direction;
  return true;
}

std::vector<index_t> layout::extents(tensor x) const {
  std::vector<index_t> result;
  if (!has(x)) return result;
  layout copy = *this;
  for (const axis along_axis : axes_of(*this, x)) {
    result.push_back(extent(copy, along_axis));
  }
  return result;
}

index_t layout::size(tensor x) const {
  if (!has(x)) return 0;
  index_t n = 1;
  for (const index_t m : extents(x)) n *= m;
  return n;
}

std::ostream& operator<<(std::ostream& out, const instance& x) {
  out << "T = " << x.tokens << ", K = " << x.keys << ", V = " << x.values
      << ", C = " << x.chunk;
  if (x.has_content) {
    out << ", window = " << x.window << ", rank = " << x.rank;
  }
  if (x.read == readout::before) out << ", read-out before the update";
  if (x.substeps > 1) out << ", sub-steps = " << x.substeps;
  if (x.order == erase_order::before_decay) out << ", erase before decay";
  for (int i = 0; i < tensor_count; ++i) {
    const auto which = static_cast<tensor>(i);
    if (!x.has(which) || x.x[i].empty()) continue;
    // What a law does not look at shrinks to zero.
    const bool zero = std::all_of(x.x[i].begin(), x.x[i].end(),
                                  [](const number& n) { return n.p == 0; });
    const bool gate = (which >= a && which <= w) || which == mask;
    if (zero && !gate) continue;
    const auto extents = x.extents(which);
    out << "; " << tensor_names[i] << " = ";
    for (std::size_t n = 0; n < x.x[i].size(); ++n) {
      index_t inner = 1;
      std::string close;
      for (std::size_t dim = extents.size(); dim-- > 0;) {
        inner *= extents[dim];
        if (static_cast<index_t>(n) % inner == 0) close += '[';
      }
      out << (n > 0 ? "," : "") << close << x.x[i][n].p;
      if (x.x[i][n].q != 1) out << "/" << x.x[i][n].q;
      inner = 1;
      for (std::size_t dim = extents.size(); dim-- > 0;) {
        inner *= extents[dim];
        if (static_cast<index_t>(n + 1) % inner == 0) out << ']';
      }
    }
  }
  return out;
}

instance draw(const space& from, generator& rng, int size) {
  const auto upto = [&](index_t low, index_t high) {
    const index_t most = low + (high - low) * std::min(size + 20, 100) / 100;
    return static_cast<index_t>(
        integer(rng, static_cast<int>(low), static_cast<int>(most)));
  };
  instance x;
  x.tokens = upto(from.min_tokens, from.tokens);
  x.keys = upto(1, from.keys);
  x.values = upto(from.min_values, from.values);
  x.chunk = upto(1, x.tokens + 2);
  x.has_content = from.content;
  if (from.content) {
    x.window = upto(1, x.tokens + 1);
    x.rank = upto(1, 2);
  }
  for (int g = 0; g < 5; ++g) {
    x.gates[g] = from.gates[g][rng() % from.gates[g].size()];
  }
  x.has_mask = from.mask;
  x.has_address = from.address, x.has_direction = from.direction;
  x.order = from.order, x.substeps = from.substeps;
  x.has_start = from.start && rng() % 4 != 0;
  x.read = from.before && rng() % 2 == 0 ? readout::before : readout::after;
  for (int i = 0; i < tensor_count; ++i) {
    const auto which = static_cast<tensor>(i);
    const bool gate = (which >= a && which <= w) || which == mask;
    const bool binary = rng() % 4 == 0;
    x.x[i].resize(x.size(which));
    for (number& n : x.x[i]) {
      n = gate && (from.unit_gates || binary) ? unit_number(rng, binary)
                                              : any_number(rng, size);
    }
  }
  shape_keys(x, rng);
  x.salt = static_cast<unsigned>(rng());
  return x;
}

std::vector<instance> smaller(const space& from, const instance& x) {
  std::vector<instance> less;
  const auto shorten = [&](axis which, index_t n, index_t least) {
    for (index_t at = 0; at < n && n > least; ++at) {
      less.push_back(dropped(x, which, at));
    }
  };
  shorten(token_axis, x.tokens, from.min_tokens);
  shorten(value_axis, x.values, from.min_values);
  shorten(key_axis, x.keys, 1);
  if (x.has_content) shorten(rank_axis, x.rank, 1);
  for (index_t C = 1; C < x.chunk; ++C) {
    less.push_back(x);
    less.back().chunk = C;
  }
  for (index_t n = 1; n < x.window; ++n) {
    less.push_back(x);
    less.back().window = n;
  }
  for (const tensor g : {a, d, b, e, w}) {
    for (const along where : {along::none, along::head}) {
      if (x.gate(g) > where && allowed(from, g, where)) {
        less.push_back(placed(x, g, where));
      }
    }
  }
  if (x.has_start) {
    less.push_back(x);
    less.back().has_start = false;
    less.back().x[start].clear();
  }
  if (x.read == readout::before) {
    less.push_back(x);
    less.back().read = readout::after;
  }
  if (x.salt != 0) {
    less.push_back(x);
    less.back().salt = 0;
  }
  for (int i = 0; i < tensor_count; ++i) {
    for (std::size_t n = 0; n < x.x[i].size(); ++n) {
      const number old = x.x[i][n];
      for (const number next :
           {number{0, 1}, number{1, 1}, number{old.p / old.q, 1},
            number{old.p < 0 ? -old.p : old.p / 2, old.q}}) {
        // Zero before one before anything else, so that it ends.
        const auto weight = [](const number& m) {
          if (m.p == 0) return 0;
          if (m.p == m.q) return 1;
          return 2 * std::abs(m.p) + (m.p < 0) + 8 * (m.q - 1);
        };
        if (weight(next) >= weight(old)) continue;
        less.push_back(x);
        less.back().x[i][n] = next;
      }
    }
  }
  return less;
}

namespace {

rc::Gen<instance> instances(const space& from) {
  return rc::Gen<instance>([from](const rc::Random& seed, int size) {
    rc::Random source = seed;
    generator rng(source.next());
    return rc::shrinkable::shrinkRecur(
        draw(from, rng, size), [from](const instance& x) {
          return rc::seq::fromContainer(smaller(from, x));
        });
  });
}

}  // namespace

void for_all(settlement& s, std::string_view law, std::int64_t normal,
             const space& from, const instance_law& holds) {
  for_all(s, law, normal, instances(from), holds);
}

void refute(settlement& s, std::string_view law, std::int64_t normal,
            const space& from, const instance_law& holds) {
  refute(s, law, normal, instances(from), holds);
}

void find_witness(settlement& s, std::string_view law, std::int64_t normal,
                  const space& from, const instance_law& holds) {
  if (const auto text =
          find_counterexample(s, law, normal, instances(from), holds)) {
    s.witness(*text);
  }
}

void mutant(settlement& s, std::string_view what, std::int64_t normal,
            const space& from, const instance_law& holds) {
  mutant(s, what, normal, instances(from), holds);
}

}  // namespace carve::proofs
