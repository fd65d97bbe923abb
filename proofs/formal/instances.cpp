/// @file
/// What does the library compute over the fractions?  Prints random heads with
/// the results of its solvers as a Coq file, on which the machine-checked
/// definition is run and compared, number by number.
///
/// usage: carve-formal-instances [COUNT [SEED]]
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "carve/chunked.hpp"
#include "carve/columnwise.hpp"
#include "carve/multiprecision.hpp"
#include "carve/recurrence.hpp"
#include "carve/tiled_walk.hpp"

namespace {

using carve::index_t;
using carve::rational;
using numbers = std::vector<rational>;

class generator {
 public:
  explicit generator(std::uint64_t seed) : bits_(seed) {}
  index_t between(index_t low, index_t high) {
    return low + static_cast<index_t>(bits_() %
                                      static_cast<unsigned>(high - low + 1));
  }
  bool coin() { return between(0, 1) == 1; }
  numbers fractions(index_t n) {
    numbers x;
    for (index_t i = 0; i < n; ++i) {
      x.push_back(rational(between(-4, 4)) / rational(between(1, 3)));
    }
    return x;
  }

 private:
  std::mt19937_64 bits_;
};

std::string text(const rational& x) {
  return "(fraction (" + numerator(x).str() + ") " + denominator(x).str() + ")";
}

/// A list of n numbers, each given by its place.
std::string list(index_t n, const std::function<std::string(index_t)>& at) {
  std::string out = "[:: ";
  for (index_t i = 0; i < n; ++i) out += (i == 0 ? "" : "; ") + at(i);
  return out + "]";
}

/// Row t of a [T,n] tensor; `absent` where there is none.
std::string row(const numbers& x, index_t t, index_t n, int absent) {
  return list(n, [&](index_t i) {
    return text(x.empty() ? rational(absent)
                          : x[static_cast<std::size_t>(t * n + i)]);
  });
}

/// Everything that a head views.
struct storage {
  index_t T, K, V, C;
  numbers q, k, v, a, d, b, e, w, r, y, start;
  carve::head<rational> head;
};

storage draw(generator& random) {
  storage x{};
  x.T = random.between(1, 5), x.K = random.between(1, 3);
  x.V = random.between(1, 3), x.C = random.between(1, x.T);
  const auto keys = [&] { return random.fractions(x.T * x.K); };
  const auto values = [&] { return random.fractions(x.T * x.V); };
  const auto maybe = [&](const auto& draw_it) {
    return random.coin() ? draw_it() : numbers{};
  };
  x.q = keys(), x.k = keys(), x.v = values();
  x.a = maybe(keys), x.d = maybe(values), x.w = maybe(values);
  x.start = random.fractions(x.K * x.V);
  auto& p = x.head;
  p.erases = random.between(0, 7) != 0;
  if (p.erases) {
    p.erase_reads = random.between(0, 3) == 0 ? carve::erase_order::before_decay
                                              : carve::erase_order::after_decay;
    if (random.between(0, 3) == 0) x.e = values();
    if (random.coin()) x.y = keys();
    if (random.coin()) {
      x.r = keys();
    } else {
      x.b = maybe(keys);
    }
  }
  const auto view = [](const numbers& y, index_t n) {
    return y.empty() ? carve::rows<const rational>{}
                     : carve::rows<const rational>{y.data(), n, 1};
  };
  p.tokens = x.T, p.keys = x.K, p.values = x.V;
  p.q = view(x.q, x.K), p.k = view(x.k, x.K), p.v = view(x.v, x.V);
  p.a = view(x.a, x.K), p.d = view(x.d, x.V), p.b = view(x.b, x.K);
  p.e = view(x.e, x.V), p.w = view(x.w, x.V);
  p.r = view(x.r, x.K), p.y = view(x.y, x.K);
  p.S0 = {x.start.data(), x.V, 1};
  p.scale = random.fractions(1)[0];
  p.read = random.coin() ? carve::readout::after : carve::readout::before;
  return x;
}

/// A [K,V] state as the list of its columns.
std::string columns(const storage& x, const numbers& S) {
  return list(x.V, [&](index_t j) {
    return list(x.K, [&](index_t i) {
      return text(S[static_cast<std::size_t>(i * x.V + j)]);
    });
  });
}

std::string token(const storage& x, index_t t) {
  const std::string k = row(x.k, t, x.K, 0);
  const std::string erased_at =
      !x.head.erases ? row({}, t, x.K, 0)
      : !x.r.empty() ? row(x.r, t, x.K, 0)
                     : "(times " + row(x.b, t, x.K, 1) + " " + k + ")";
  return "\n  TokenList " + row(x.q, t, x.K, 0) + "\n    " + k + "\n    " +
         row(x.a, t, x.K, 1) + "\n    " + erased_at + "\n    " +
         (x.y.empty() ? k : row(x.y, t, x.K, 0)) + "\n    " +
         row(x.v, t, x.V, 0) + "\n    " + row(x.d, t, x.V, 1) + "\n    " +
         row(x.e, t, x.V, 1) + "\n    " + row(x.w, t, x.V, 1);
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 40;
  const auto seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 20260627;
  if (count < 1) {
    std::cerr << "carve-formal-instances: expected a count of at least 1, got "
              << argv[1] << '\n';
    return 2;
  }
  generator random(seed);
  std::cout << "(* Written by carve-formal-instances: " << count
            << " heads, seed " << seed << ". *)\n"
            << "From mathcomp Require Import all_ssreflect all_algebra.\n"
            << "From Coq Require Import ZArith QArith Qcanon.\n"
            << "From carve Require Import recurrence executable.\n"
            << "Local Open Scope Z_scope.\n";
  std::string names;
  int written = 0;
  for (int n = 0; n < count; ++n) {
    const storage x = draw(random);
    const auto& p = x.head;
    const std::string id = std::to_string(n);
    std::cout << "Definition tokens_" << id
              << " : seq (token_list Qc_comRingType) :=\n  "
              << list(x.T, [&](index_t t) { return token(x, t); }) << ".\n"
              << "Definition start_" << id
              << " : seq (seq Qc) := " << columns(x, x.start) << ".\n";
    const auto result = [&](const char* solver, const auto& run) {
      numbers o(static_cast<std::size_t>(x.T * x.V)), S(x.start.size());
      run({o.data(), x.V, 1}, {S.data(), x.V, 1});
      const std::string name = std::string(solver) + "_" + id;
      const auto when = [](bool after) { return after ? "after" : "before"; };
      std::cout << "Definition " << name << " := Instance " << x.K << "%nat "
                << x.V << "%nat "
                << when(p.erase_reads == carve::erase_order::after_decay) << ' '
                << when(p.read == carve::readout::after) << ' ' << text(p.scale)
                << " tokens_" << id << " start_" << id << "\n  "
                << list(x.T, [&](index_t t) { return row(o, t, x.V, 0); })
                << "\n  " << columns(x, S) << ".\n";
      names += (written++ == 0 ? "" : "; ") + name;
    };
    using out = carve::rows<rational>;
    using end = carve::state_view<rational>;
    result("definition",
           [&](out o, end S) { carve::definition_forward(p, o, S); });
    result("recurrent",
           [&](out o, end S) { carve::recurrent_forward(p, o, S); });
    if (carve::wy_applies(p, x.C)) {
      result("chunked",
             [&](out o, end S) { carve::chunked_forward(p, x.C, o, S); });
    }
    result("columnwise",
           [&](out o, end S) { carve::columnwise_forward(p, x.C, o, S); });
  }
  std::cout << "Definition instances : seq instance := [:: " << names << "].\n";
}
