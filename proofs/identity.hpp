/// @file
/// When does an equation between two algorithms hold as an identity of
/// polynomials?
///
/// A law is a callable
///
///     template <class T>
///     sides<T> operator()(const tensors<T>& in) const;
///
/// that computes the same thing in two ways.  It is tried on instances over
/// the rationals, which shrink, and then for a number of layouts at uniform
/// points of two prime fields: the degree of the polynomials of a layout is
/// counted by running the law once on `degree`, and as many points are taken
/// as bring the probability of missing a false identity below 2^-100.
#pragma once

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "carve/multiprecision.hpp"
#include "carve/prime_field.hpp"
#include "degree.hpp"
#include "instance.hpp"
#include "law.hpp"

namespace carve::proofs {

/// Two lists that a law says are equal.
template <class T>
struct sides {
  std::vector<T> left, right;
  void add(const std::vector<T>& x, const std::vector<T>& y) {
    left.insert(left.end(), x.begin(), x.end());
    right.insert(right.end(), y.begin(), y.end());
  }
  void add(const T& x, const T& y) {
    left.push_back(x);
    right.push_back(y);
  }
  bool equal() const { return left == right; }
};

/// log2 of the smallest number of the prime fields' sizes.
inline constexpr double log2_prime = 60.999999999;

/// How large the polynomials of a law are, for one layout.
struct identity_size {
  int total = 0;      ///< degree of the larger side
  double height = 0;  ///< log2 of the sum of coefficients of the difference
};

template <class Law>
identity_size size_of(const Law& law, const layout& shape) {
  const auto both =
      law(tensors<degree>::filled(shape, [] { return degree::variable(); }));
  identity_size size;
  if (both.left.size() != both.right.size()) {
    throw error("identity: two sides of ", both.left.size(), " and ",
                both.right.size(), " numbers");
  }
  for (std::size_t n = 0; n < both.left.size(); ++n) {
    const degree difference = both.left[n] - both.right[n];
    size.total = std::max(size.total, difference.total);
    size.height = std::max(size.height, difference.height);
  }
  return size;
}

/// Whether the law holds at one uniform point of the field.
template <class Field, class Law>
bool holds_at_random(const Law& law, const layout& shape, generator& rng) {
  return law(tensors<Field>::filled(shape,
                                    [&rng] { return Field::uniform(rng); }))
      .equal();
}

/// The law is an identity: `normal` instances over the rationals and `layouts`
/// layouts over the prime fields (both scaled by the effort).
template <class Law>
void identity(settlement& s, const std::string& name, const space& from,
              const Law& law, std::int64_t normal = 1000,
              std::int64_t layouts = 600) {
  for_all(s, name + " (rationals)", normal, from, [&](const instance& x) {
    const auto both = law(tensors<rational>::of(x));
    return !both.left.empty() && both.equal();
  });
  generator rng = s.random(name);
  double worst = -1e9, highest = 0;
  int total = 0;
  layout largest;
  std::int64_t points = 0;
  bool held = true;
  std::ostringstream show;
  for (std::int64_t n = 0; n < s.cases(layouts) && held; ++n) {
    const layout shape = draw(from, rng);
    const identity_size size = size_of(law, shape);
    total = std::max(total, size.total);
    largest.tokens = std::max(largest.tokens, shape.tokens);
    largest.keys = std::max(largest.keys, shape.keys);
    largest.values = std::max(largest.values, shape.values);
    highest = std::max(highest, size.height);
    const double one = std::log2(std::max(1, size.total)) - log2_prime;
    const int trials = static_cast<int>(std::ceil(-100 / one));
    worst = std::max(worst, trials * one);
    for (int m = 0; m < trials && held; ++m, points += 2) {
      held = holds_at_random<prime_61>(law, shape, rng) &&
             holds_at_random<prime_61_31>(law, shape, rng);
    }
    if (!held) show << "layout " << instance{shape, {}, 0};
  }
  s.law_ran(name + " (prime fields)", points, held, show.str());
  std::ostringstream sizes;
  sizes << largest.tokens << ", " << largest.keys << ", " << largest.values;
  s.identity({name, sizes.str(), total, static_cast<int>(highest) + 1,
              highest >= 2 * log2_prime},
             worst);
}

/// A wrong variant of the law must fail at some of `layouts` uniform points.
template <class Law>
void identity_mutant(settlement& s, const std::string& what, const space& from,
                     const Law& law, std::int64_t layouts = 2000) {
  generator rng = s.random(what);
  bool killed = false;
  for (std::int64_t n = 0; n < layouts && !killed; ++n) {
    killed = !holds_at_random<prime_61>(law, draw(from, rng), rng);
  }
  s.mutant(what, killed);
}

}  // namespace carve::proofs
