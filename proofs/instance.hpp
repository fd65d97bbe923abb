/// @file
/// Which heads are the laws tried on?
///
/// An instance is one head as small fractions: a shape, which gate varies
/// along which axis, a chunk length, and numbers.  It is generated inside a
/// `space` and shrinks towards one token, one channel, absent gates, and zeros
/// and ones.  `tensors<T>` is the same head over any scalar.
#pragma once

#include <array>
#include <functional>
#include <iosfwd>
#include <string_view>
#include <vector>

#include "carve/head.hpp"
#include "carve/solver.hpp"
#include "law.hpp"

namespace carve::proofs {

/// A small fraction.
struct number {
  int p = 0, q = 1;
  friend bool operator==(const number&, const number&) = default;
};

/// A gate is absent (one), one number a head, or one number a channel.
enum class along { none, head, channel };

/// The tensors of an instance.  `down` and `up` are the content gate's
/// projections, `dout` and `dstate` the cotangents.
/// `address` and `direction` those of the general step.
enum tensor {
  q,
  k,
  v,
  a,
  d,
  b,
  e,
  w,
  mask,
  start,
  dout,
  dstate,
  down,
  up,
  address,
  direction
};
inline constexpr int tensor_count = 16;
inline constexpr std::string_view tensor_names[tensor_count] = {
    "q", "k",  "v",  "a",  "d",      "b",    "e", "w",
    "E", "S0", "do", "dS", "W_down", "W_up", "r", "y"};

/// Everything about a head but its numbers.
struct layout {
  index_t tokens = 1, keys = 1, values = 1;
  index_t chunk = 1;
  index_t window = 1, rank = 1;  ///< content gate only
  std::array<along, 5> gates{along::none, along::none, along::none, along::none,
                             along::none};  ///< a, d, b, e, w
  bool has_mask = false, has_start = false, has_content = false;
  bool has_address = false, has_direction = false;
  erase_order order = erase_order::after_decay;
  /// Sub-steps a token; `tokens` counts sub-steps, those left over are unused.
  index_t substeps = 1;
  readout read = readout::after;

  along gate(tensor x) const { return gates[x - a]; }
  bool has(tensor x) const;
  /// Extents of a tensor; empty when it is absent.
  std::vector<index_t> extents(tensor x) const;
  index_t size(tensor x) const;
};

struct instance : layout {
  std::array<std::vector<number>, tensor_count> x;
  unsigned salt = 0;  ///< seed of numbers that a law wants besides
};

std::ostream& operator<<(std::ostream& out, const instance& x);

/// Where instances are drawn from.
struct space {
  index_t tokens = 8, keys = 4, values = 4;  ///< at most
  index_t min_tokens = 1, min_values = 1;
  /// Placements to choose from: a, d, b, e, w.
  std::array<std::vector<along>, 5> gates{
      std::vector{along::none, along::head, along::channel},
      std::vector{along::none, along::head, along::channel},
      std::vector{along::none, along::head, along::channel},
      std::vector{along::none},
      std::vector{along::none, along::head, along::channel}};
  bool mask = false, content = false;
  bool address = false, direction = false;
  erase_order order = erase_order::after_decay;
  index_t substeps = 1;
  bool before = true;  ///< read-out before the update too
  bool start = true;   ///< with and without a start state
  /// Numbers in [0, 1] for gates instead of any small fraction.
  bool unit_gates = false;

  space& gate(tensor x, std::vector<along> choice) {
    gates[x - a] = std::move(choice);
    return *this;
  }
};

/// Heads long and wide enough to cross the inner boundaries of the library's
/// solvers: blocks of tokens, slices of columns.
inline space long_heads(space from = {}) {
  from.tokens = 70, from.keys = from.values = 2;
  return from;
}
inline space wide_heads(space from = {}) {
  from.tokens = 3, from.keys = from.values = 70;
  return from;
}

/// A random instance; `size` from 1 to 100 bounds shape and numbers.
instance draw(const space& from, generator& rng, int size = 100);
/// Instances one step smaller, the smallest first.
std::vector<instance> smaller(const space& from, const instance& x);

using instance_law = std::function<bool(const instance&)>;

/// The law holds for `normal` instances (scaled by the effort).
void for_all(settlement& s, std::string_view law, std::int64_t normal,
             const space& from, const instance_law& holds);
/// The claim, as worded, is false: records a shrunk counterexample.
void refute(settlement& s, std::string_view law, std::int64_t normal,
            const space& from, const instance_law& holds);
/// The claim says that this law is broken: records a shrunk witness.
void find_witness(settlement& s, std::string_view law, std::int64_t normal,
                  const space& from, const instance_law& holds);
/// The wrong variant must break the law.
void mutant(settlement& s, std::string_view what, std::int64_t normal,
            const space& from, const instance_law& holds);

/// A head over T with everything a law may want.
template <class T>
struct tensors {
  layout shape;
  std::array<std::vector<T>, tensor_count> x;
  T scale = T(1);
  std::function<T()> fresh;  ///< more numbers of the same kind

  /// Every number from `make`.
  static tensors filled(const layout& shape, const std::function<T()>& make) {
    tensors r;
    r.shape = shape;
    for (int i = 0; i < tensor_count; ++i) {
      r.x[i].resize(shape.size(static_cast<tensor>(i)));
      for (T& y : r.x[i]) y = make();
    }
    r.scale = make();
    r.fresh = make;
    return r;
  }
  /// The instance's own numbers, over a field.
  static tensors of(const instance& from) {
    tensors r;
    r.shape = from;
    for (int i = 0; i < tensor_count; ++i) {
      for (const number& n : from.x[i]) {
        r.x[i].push_back(scalar_traits<T>::from_ratio(n.p, n.q));
      }
    }
    generator rng(from.salt);
    r.fresh = [rng]() mutable {
      return scalar_traits<T>::from_ratio(integer(rng, -3, 3), 1);
    };
    return r;
  }

  rows<const T> view(tensor i) const {
    if (x[i].empty()) return {};
    const bool one = i >= a && i <= w && shape.gate(i) == along::head;
    const bool key =
        i == q || i == k || i == a || i == b || i == address || i == direction;
    return {x[i].data(),
            one   ? 1
            : key ? shape.keys
                  : shape.values,
            one ? 0 : 1};
  }
  state_view<const T> state(tensor i) const {
    if (x[i].empty()) return {};
    return {x[i].data(), i == up ? shape.rank : shape.values, 1};
  }
  head<T> view() const {
    head<T> p;
    p.substeps = shape.substeps, p.tokens = shape.tokens / shape.substeps;
    p.keys = shape.keys, p.values = shape.values;
    p.r = view(address), p.y = view(direction);
    p.erase_reads = shape.order;
    p.q = view(q), p.k = view(k), p.v = view(v);
    p.a = view(a), p.d = view(d);
    p.b = view(b), p.e = view(e), p.w = view(w);
    if (!x[mask].empty()) {
      p.mask = {x[mask].data(), shape.keys * shape.values, shape.values, 1};
    }
    p.S0 = state(start);
    p.scale = scale;
    p.read = shape.read;
    return p;
  }
  head_cotangents<T> cotangents() const { return {view(dout), state(dstate)}; }
};

}  // namespace carve::proofs
