/// @file
/// Which public short cuts lose digits, and from where on?  NUM-1 to NUM-3 and
/// WY-11: the inverse by doubling, quotients of prefixes, a mask after the
/// exponential, and a sequence restarted from a zero state.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>
#include <string>

#include "stability.hpp"

namespace carve::proofs {

namespace {

std::string printed(const char* format, double x) {
  char text[32];
  std::snprintf(text, sizeof text, format, x);
  return std::isfinite(x) ? text : "not finite";
}

// NUM-1

/// L of C tokens that all have the same key: `beta |k|^2` below the diagonal,
/// the hardest of correlated keys.
matrix<float> equal_keys(index_t C, float coupling) {
  matrix<float> L = matrix<float>::Constant(C, C, 0);
  for (index_t t = 0; t < C; ++t) {
    for (index_t s = 0; s < t; ++s) L(t, s) = coupling;
  }
  return L;
}

/// Newton's iteration X <- X (2 - (1 + L) X) from X = 1: exact after log2(C)
/// steps, as the error is nilpotent.
matrix<float> inverse_by_newton(const matrix<float>& L) {
  const index_t C = L.rows();
  const matrix<float> one = matrix<float>::Identity(C, C);
  matrix<float> X = one;
  for (index_t n = 1; n < C; n *= 2) {
    const matrix<float> AX = (one + L) * X;
    X = matrix<float>(X * matrix<float>(one + one - AX));
  }
  return X;
}

enum class inversion { substitution, blocks, doubling, newton };

/// Relative error (Frobenius) of an inverse in fp32, for equal keys.
double inverse_error(inversion how, index_t C, float coupling) {
  const matrix<float> L = equal_keys(C, coupling);
  const matrix<double> exact =
      inverse_by_substitution<double>(L.cast<double>());
  matrix<float> T;
  switch (how) {
    case inversion::substitution:
      T = inverse_by_substitution<float>(L);
      break;
    case inversion::blocks:
      T = inverse_by_blocks<float>(L, 16);
      break;
    case inversion::doubling:
      T = inverse_by_doubling<float>(L);
      break;
    case inversion::newton:
      T = inverse_by_newton(L);
      break;
  }
  const matrix<double> difference = T.cast<double>() - exact;
  return std::sqrt(difference.squaredNorm() / exact.squaredNorm());
}

void inverse_digits(settlement& s) {
  constexpr std::pair<inversion, const char*> all[] = {
      {inversion::substitution, "substitution"},
      {inversion::blocks, "blocks of 16"},
      {inversion::doubling, "doubling"},
      {inversion::newton, "Newton"}};
  std::ostringstream table;
  table << "| beta \\|k\\|^2 | C | substitution | blocks of 16 | doubling | "
           "Newton |\n|---|---|---|---|---|---|\n";
  for (const float coupling : {0.5F, 1.0F, 1.5F, 2.0F}) {
    for (const index_t C : {16, 32, 64, 128}) {
      table << "| " << coupling << " | " << C;
      for (const auto& [how, name] : all) {
        table << " | " << printed("%.1e", inverse_error(how, C, coupling));
        s.searched(1);
      }
      table << " |\n";
    }
  }
  s.measured();
  const auto lost = [](inversion how, index_t C, float coupling) {
    return !(inverse_error(how, C, coupling) < 1);
  };
  s.require(lost(inversion::doubling, 128, 2),
            "doubling keeps no digit for beta |k|^2 = 2, C = 128");
  for (const auto how : {inversion::substitution, inversion::blocks}) {
    for (const float coupling : {0.5F, 1.0F, 1.5F, 2.0F}) {
      s.require(inverse_error(how, 128, coupling) < 1e-4,
                "substitution and blocks of 16 keep their digits");
    }
  }
  s.mutant("doubling in blocks of 16 loses everything too",
           !lost(inversion::blocks, 128, 2));
  s.mutant("doubling loses everything at any beta",
           !lost(inversion::doubling, 128, 0.01F));
  s.mutant("doubling loses everything in chunks of 8",
           !lost(inversion::doubling, 8, 2));
  s.detail(table.str());
  s.detail(
      "Relative error of T = (I + L)^-1 in fp32 for a chunk whose tokens all "
      "have the same key, so that every coupling is beta |k|^2 = x. T itself "
      "is "
      "small: its entries are -x (1 - x)^(t-s-1), at most x for x in [0,2]. "
      "The powers of L are not: doubling sums L^n with entries up to x^n "
      "binomial(C, n), and Newton's iterates are the same partial sums; what "
      "cancels takes the digits along. Substitution and merged blocks form no "
      "power beyond a block; for these keys every number they meet is a small "
      "fraction, and fp32 holds it exactly.");
}

// NUM-2

/// Whether the quotient of prefix products gamma_t / gamma_s, s = t - 1, of a
/// constant decay is within `tolerance` of the decay, in arithmetic Real, for
/// every t < C.
template <class Real>
bool quotients_hold(double decay, int C, double tolerance) {
  Real prefix = 1;
  const Real a = static_cast<Real>(decay);
  for (int t = 1; t <= C; ++t) {
    const Real next = prefix * a;
    const double quotient = static_cast<double>(next / prefix);
    if (!(std::fabs(quotient / static_cast<double>(a) - 1) <= tolerance)) {
      return false;
    }
    prefix = next;
  }
  return true;
}

/// The first chunk length at which a quotient is off by more than a tenth of a
/// per cent, and the first at which the prefix is zero; 0: never, as a decay
/// above a half leaves the smallest subnormal number as it is.
std::pair<int, int> prefix_ruin(double decay) {
  int wrong = 1, zero = 1;
  while (quotients_hold<float>(decay, wrong, 1e-3)) ++wrong;
  const float a = static_cast<float>(decay);
  float prefix = a;
  while (prefix != 0 && prefix * a != prefix) prefix *= a, ++zero;
  return {wrong, prefix == 0 ? zero : 0};
}

void prefixes(settlement& s) {
  std::ostringstream table;
  table << "| decay per token | quotient wrong by 0.1% from C = | log of the "
           "prefix there | prefix zero from C = |\n|---|---|---|---|\n";
  bool long_before = true, subnormal = true;
  for (const double decay :
       {0.9, 0.75, 0.5625, 0.4, 0.3, 0.25, 0.21, 0.2, 0.1, 0.01}) {
    const auto [wrong, zero] = prefix_ruin(decay);
    s.searched(wrong);
    const double log = wrong * std::log(decay);
    // A power of two is exact until its one bit is gone.
    long_before = long_before && (decay == 0.25 || zero == 0 || wrong < zero);
    subnormal = subnormal && log < std::log(1.5e-38);
    table << "| " << decay << " | " << wrong << " | " << printed("%.1f", log)
          << " | " << (zero > 0 ? std::to_string(zero) : "never") << " |\n";
  }
  s.measured();
  s.require(long_before, "digits are gone before the prefix is zero");
  s.require(subnormal, "and only where the prefix is subnormal");
  s.mutant("in double they lose them as early",
           quotients_hold<double>(0.2, 64, 1e-3));
  s.mutant("wrong at C = 32 too, decay 0.2",
           quotients_hold<float>(0.2, 32, 1e-3));
  s.require(!quotients_hold<float>(0.2, 64, 1e-3),
            "decay 0.2 in chunks of 64: a quotient is wrong");
  s.detail(table.str());
  s.detail(
      "fp32, gamma_t the product of the decays of a chunk, and the ratio of "
      "two neighbouring tokens formed as gamma_t / gamma_s. Below 2^-126 = "
      "exp(-87.3) a number is subnormal and has fewer bits, one less with "
      "every halving, down to 2^-149 = exp(-103.3): the quotient is wrong "
      "long before the prefix is zero, and no NaN tells. Flushing subnormals "
      "to zero makes it 0 / 0 at the same place.");
}

// NUM-3

/// The gradient of `sum_ts where(s <= t, exp(G_t - G_s), 0)` in reverse mode,
/// the mask applied after (or before) the exponential: true if finite.
template <class Real>
bool masked_gradient_is_finite(double g, int C, bool mask_first) {
  for (int t = 0; t < C; ++t) {
    for (int s = 0; s < C; ++s) {
      const Real x = static_cast<Real>(g) * static_cast<Real>(t - s);
      const Real mask = s <= t ? 1 : 0;
      const Real seen = mask_first ? x * mask : x;
      // d exp(x) = exp(x) dx, and the mask sends a zero back.
      const Real dx = std::exp(seen) * mask;
      if (!std::isfinite(dx)) return false;
    }
  }
  return true;
}

void mask_after_exponential(settlement& s) {
  std::ostringstream table;
  table << "| C | first log decay per token with a NaN |\n|---|---|\n";
  const double limit = std::log(std::numeric_limits<float>::max());
  bool predicted = true;
  for (const int C : {16, 32, 64, 128}) {
    int n = 0;
    while (masked_gradient_is_finite<float>(-n / 1024.0, C, false)) {
      ++n;
      s.searched(1);
    }
    const double found = -n / 1024.0;
    predicted = predicted && -found * (C - 1) >= limit &&
                (-found - 1 / 1024.0) * (C - 1) <= limit + 1e-3;
    table << "| " << C << " | " << printed("%.3f", found) << " |\n";
  }
  s.measured();
  s.require(predicted, "NaN from (C - 1) |g| > log(FLT_MAX) = 88.72 on");
  const auto first = [](double g) {
    return masked_gradient_is_finite<float>(g, 64, true);
  };
  s.require(first(-200) && first(-1.5), "a mask before the exponential helps");
  s.mutant("a mask before the exponential has a NaN too", first(-200));
  s.mutant("a NaN in chunks of 64 already at -1.4",
           masked_gradient_is_finite<float>(-1.4, 64, false));
  s.detail(table.str());
  s.detail(
      "A chunk's decay ratios exp(G_t - G_s) are above the diagonal "
      "exponentials of positive numbers. Where the mask is applied to the "
      "result, the forward pass is right, and on the way back the mask's zero "
      "meets exp(x) = infinity: 0 * infinity is a NaN, from x = log(FLT_MAX) = "
      "88.72 on, which is (C - 1) |g|. Seen in the naive chunked references of "
      "fla-core 0.6.0 for KDA and GDN-2 in chunks of 64 (a dump of one is in "
      "tests/ports). Masking the exponent first costs nothing.");
}

// WY-11

/// A sequence of n tokens that all have the key k (|k|^2 = x in one channel),
/// one decay per token and one gate: how much of the start state is left at the
/// end, exactly.  A restart from zero forgets this.
rational left_of_start(const rational& decay, const rational& coupling, int n) {
  silent_head h{n, 1, 1};
  for (int t = 0; t < n; ++t) {
    h.key.emplace_back(1);
    h.decay.push_back(decay);
    h.gate.push_back(coupling);
  }
  matrix<rational> start(1, 1);
  start << 1;
  return h.end(start)(0, 0);
}

/// The first n with decay^n <= 2^-20.
int tokens_to_bound(const rational& decay) {
  const rational bound = rational(1) / rational(1 << 20);
  rational product = 1;
  int n = 0;
  while (product > bound) product *= decay, ++n;
  return n;
}

void restarts(settlement& s) {
  // Unit keys and one gate in [0,2]: no step is longer than one, so what is
  // left is at most the decay since.
  const auto within = [](int highest_gate, bool unit) {
    return [=](generator& rng, std::ostream& show) {
      const int K = integer(rng, 1, 3), n = integer(rng, 1, 5);
      silent_head h{n, K, 2};
      rational since = 1;
      for (int t = 0; t < n; ++t) {
        std::vector<rational> key = random_unit(rng, K);
        if (!unit) {
          for (rational& x : key) x *= fraction(3, 2);
        }
        const rational gate = random_fraction(rng, 0, highest_gate);
        const rational decay = fraction(integer(rng, 1, 8), 8);
        since *= decay;
        append(h.key, key);
        append(h.gate, std::vector<rational>(K, gate));
        append(h.decay, std::vector<rational>(K, decay));
        show << "gate " << gate << " decay " << decay << "; ";
      }
      const auto start = random_state(rng, K, 2);
      return squared_norm(h.end(start)) <= since * since * squared_norm(start);
    };
  };
  s.holds("what a restart forgets is at most the decay since (rationals)", 400,
          within(2, true));
  s.mutant("keys of length 3/2", 4000, within(2, false));
  s.mutant("gates up to 3", 4000, within(3, true));
  std::ostringstream table;
  table << "| decay per token | tokens to 2^-20 | beta \\|k\\|^2 = 1/2 | 2 | "
           "9/4 | 3 | 4 |\n|---|---|---|---|---|---|---|\n";
  for (const auto& decay :
       {fraction(1, 2), fraction(3, 4), fraction(7, 8), fraction(15, 16)}) {
    const int n = tokens_to_bound(decay);
    table << "| " << decay << " | " << n;
    for (const auto& x : {fraction(1, 2), fraction(2, 1), fraction(9, 4),
                          fraction(3, 1), fraction(4, 1)}) {
      const rational left = left_of_start(decay, x, n);
      table << " | " << printed("%.1e", std::fabs(left.convert_to<double>()));
      s.count(1);
    }
    table << " |\n";
  }
  // The witness: |k|^2 = 3 with beta = 1, or unit keys' 3/2 with beta = 2.
  const int n = tokens_to_bound(fraction(3, 4));
  const rational left = left_of_start(fraction(3, 4), 3, n);
  s.require(n == 49 && left * left > 1,
            "decay 3/4, |k|^2 = 3: the state has grown when the bound is met");
  s.counterexample(
      "K = V = 1, nothing written, |k|^2 = 3, beta = 1 (or |k|^2 = 3/2, beta = "
      "2), decay 3/4 a token. A step multiplies the state by 3/4 (1 - 3) = "
      "-3/2. After 49 tokens the decay since is below 2^-20, and the state is "
      "not: it is (3/2)^49 times its start, which a restart from zero leaves "
      "out.");
  // Key-axis erase, unit keys, gates in [0,1]: the growth of STAB-2.
  silent_head h{2, 2, 1};
  append(h.key,
         {fraction(3, 5), fraction(4, 5), fraction(4, 5), fraction(3, 5)});
  append(h.gate, {rational(1), rational(0), rational(0), rational(1)});
  append(h.decay, std::vector<rational>(4, fraction(15, 16)));
  matrix<rational> S(2, 1);
  S << 1, -1;
  const rational before = squared_norm(S);
  rational since = 1;
  int pairs = 0;
  const rational bound = rational(1) / rational(1 << 20);
  while (since > bound) {
    S = h.end(S), since *= fraction(225, 256), ++pairs;
  }
  const rational kept = squared_norm(S) / before;
  s.count(1);
  s.require(kept > 1, "key-axis erase with gates 0 and 1 and unit keys grows");
  s.counterexample(
      "Unit keys and gates in [0,1], but on the key axis: the two tokens of "
      "STAB-2 under a decay of 15/16 each. When the decay since is below 2^-20 "
      "the state is longer than at the start, not 2^-20 of it.");
  s.corrected(
      "Where one gate beta in [0,2] erases and |k| = 1 (delta, GDN, KDA on "
      "normalised keys), or beta |k|^2 <= 2, a step is at most as long as its "
      "largest decay (STAB-6), so what a restart from a zero state leaves out "
      "is at most |S| times the product of the largest decays since, for every "
      "later state, and that times |scale q| for every output. In general "
      "each token contributes max a_t max(1, |1 - beta_t |k_t|^2|), and for "
      "key-axis gates max a_t times 2/sqrt(3) (b in [0,1], unit keys) or "
      "sqrt(2) (b in [0,2]) (STAB-8): a bound on that product is sound.");
  s.detail(table.str());
  s.detail(
      "What is left of a state when the decay since has reached 2^-20 = "
      "9.5e-7, all tokens with the same key: the part that a restart from zero "
      "forgets, relative to the state. Public kernels cut sequences there: "
      "cuDNN-frontend's KDA forward for sm_90 at 2^-20, FlashQLA at a "
      "cumulated log decay of -10.");
}

}  // namespace

void register_numerics(ledger& all) {
  all.add({.id = "WY-11",
           .statement = "A piece of a sequence may start from a zero state "
                        "where the decay since is below 2^-20: the error is "
                        "of that size.",
           .source = "context parallelism of cuDNN-frontend 1.32 and FlashQLA "
                     "0.1.3",
           .method = "exact histories over the rationals; witnesses",
           .settle = restarts});
  all.add({.id = "NUM-1",
           .statement = "In fp32 the inverse of I + L by Neumann doubling, or "
                        "by Newton, keeps no digit for correlated keys with "
                        "beta |k|^2 = 2 in chunks of 128; substitution and "
                        "blocks of 16 keep theirs.",
           .source = "kernels of the public libraries",
           .method = "errors against double for chunks of equal keys; "
                     "`carve-proofs NUM-1`",
           .settle = inverse_digits});
  all.add({.id = "NUM-2",
           .statement = "Decay ratios as quotients of prefix products lose "
                        "their digits once a prefix is subnormal, long before "
                        "it is zero.",
           .source = "opengdn 0.1.0",
           .method = "quotients in fp32 for constant decays, every chunk "
                     "length; `carve-proofs NUM-2`",
           .settle = prefixes});
  all.add({.id = "NUM-3",
           .statement = "A gradient that masks after the exponential has a "
                        "NaN as soon as an exponent above the diagonal "
                        "exceeds 88.72.",
           .source = "naive references of fla-core 0.6.0",
           .method = "reverse mode written out, log decays in steps of 1/1024; "
                     "`carve-proofs NUM-3`",
           .settle = mask_after_exponential});
}

}  // namespace carve::proofs
