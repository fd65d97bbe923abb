/// @file
/// What is a claim, and what must have happened before it counts as settled?
///
/// A file of claims has one function that adds them to the ledger:
///
///     void register_stability(ledger& all) {
///       all.add({.id = "STAB-6",
///                .statement = "Scalar beta in [0,2]: contraction.",
///                .source = "arXiv 2412.06464",
///                .method = "eigenvalues of I - beta k k^T, exact",
///                .settle = [](settlement& s) {
///         // A law over random cases; `show` describes the case for a reader.
///         s.holds("norm at most 1", 1000, [](generator& rng, auto& show) {
///           const double beta = uniform(rng, 0, 2);
///           show << "beta = " << beta;
///           return norm_of_step(beta) <= 1;
///         });
///         // The same law must refute a wrong variant.
///         s.mutant("beta up to 3", 1000, [](generator& rng, auto& show)
///         {...}); s.require(witness == 1, "the bound is reached at beta = 0");
///       }});
///     }
///
/// `holds` fails the claim when the law is false, throws, or ran no case.
/// A claim also fails when it has no mutant, when a mutant survives, when it
/// was refuted and nothing corrected it, and when an identity was left with a
/// failure probability above 2^-100.  Nobody writes a claim's verdict down: it
/// follows from the evidence (see `verdict`).  Case counts are for normal
/// effort; `cases(n)` scales them.  Generators are seeded from the run's seed,
/// the claim and the law, so a claim alone repeats what it does in a full run.
///
/// Generation with shrinking is in property.hpp (any RapidCheck generator) and
/// instance.hpp (heads of every shape); polynomial identities in identity.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace carve::proofs {

using generator = std::mt19937_64;

/// Uniform in [low, high), the same on every standard library.
inline double uniform(generator& rng, double low, double high) {
  return low + (high - low) * (static_cast<double>(rng() >> 11) * 0x1p-53);
}

/// Uniform in low, ..., high; the same on every standard library.
inline int integer(generator& rng, int low, int high) {
  return low + static_cast<int>(rng() % static_cast<unsigned>(high - low + 1));
}

/// What the evidence comes to.  The first that applies:
enum class verdict {
  refuted,    ///< a counterexample to the claim as worded
  formal,     ///< a machine-checked theorem, for all sizes
  argument,   ///< an argument in words; what it rests on is checked exactly
  layouts,    ///< polynomial identities or data flow, for the layouts drawn
  supported,  ///< statistics
  measured,   ///< a count, an error or a time
  instances,  ///< exact instances and nothing else
  none,       ///< no evidence: the claim is open
};

/// As the ledger prints it: "proved (exact) for the layouts drawn", ...
std::string_view name_of(verdict v);

/// How much to do, and from which seed.
struct settings {
  std::uint64_t seed = 20260627;
  double effort = 1;
  bool quick = false;
};

/// One random case of a law; describes itself to the stream.
using random_case = std::function<bool(generator&, std::ostream&)>;

/// A polynomial identity that held: the sizes it was tried on, and what bounds
/// the chance that it held for nothing.
struct held_identity {
  std::string name;
  std::string largest;  ///< "T, K, V" of the layouts
  int degree = 0;
  int coefficient_bits = 0;  ///< coefficients lie below 2^coefficient_bits
  bool fields_only = false;  ///< as in `evidence`
};

/// What settling a claim brought to light.
struct evidence {
  std::int64_t instances = 0;  ///< decided exactly
  std::int64_t steps = 0;      ///< in floating point: searches, samples, grids
  bool identities = false;     ///< whether log2_failure says anything
  double log2_failure = -std::numeric_limits<double>::infinity();
  /// Coefficients so large that one may vanish in both fields: log2_failure is
  /// about the two fields and not about the rationals.
  bool fields_only = false;
  bool formal = false, argued = false, traced = false, sampled = false,
       measured = false;
  std::vector<std::string> theorems;  ///< machine-checked, with their scope
  std::vector<held_identity> held;    ///< in the order they were tried
  std::vector<std::string> counterexamples, corrections, details;
  std::vector<std::string> times;             ///< never in the committed ledger
  std::vector<std::string> witnesses;         ///< that something exists
  std::vector<std::string> killed, survived;  ///< mutants
  std::vector<std::string> failures;          ///< empty: the claim is settled

  verdict kind() const;
};

/// One claim while it is being settled.
class settlement {
 public:
  settlement(std::string id, const settings& how)
      : id_(std::move(id)), how_(how) {}

  const settings& how() const { return how_; }
  /// `normal` cases scaled by the effort, a tenth of them when quick; never 0.
  std::int64_t cases(std::int64_t normal) const;
  /// A generator of its own for everything called `law` in this claim.
  generator random(std::string_view law) const;

  /// The law holds in `normal` random cases (scaled), each decided exactly.
  void holds(std::string_view law, std::int64_t normal, const random_case& one);
  /// The same in floating point: evidence, but nobody's proof.
  void holds_in_floating_point(std::string_view law, std::int64_t normal,
                               const random_case& one);
  /// A wrong variant: one of ten times `normal` random cases must be false,
  /// whatever the effort. An exception does not refute it: a mutant that stops
  /// has not been looked at.
  void mutant(std::string_view what, std::int64_t normal,
              const random_case& one);
  /// A mutant that was tried elsewhere.
  void mutant(std::string_view what, bool killed);
  /// Fails the claim, with this text, unless `condition`.
  void require(bool condition, std::string_view text);
  /// Adds exact instances that were decided outside of `holds`.
  void count(std::int64_t instances) { result_.instances += instances; }
  /// Adds steps of a floating-point search, or points of a grid.
  void searched(std::int64_t steps) { result_.steps += steps; }
  /// Samples of a statistic: the claim is supported, not proved, by them.
  void sampled(std::int64_t samples);
  /// What the claim states is a count, an error or a time, and this run took
  /// it.
  void measured() { result_.measured = true; }
  /// The instances followed the data through the code itself: what is not read
  /// cannot matter, whatever the inputs of the layouts drawn.
  void traced() { result_.traced = true; }
  /// A paragraph or table of times, which no two runs share: printed, and in
  /// the JSON.
  void times(std::string_view markdown) {
    result_.times.emplace_back(markdown);
  }
  /// A proof in words, for the ledger; what it rests on must be checked here.
  void argued(std::string_view markdown);
  /// A machine-checked theorem, and for what; `whole`: it says this claim.
  void theorem(std::string_view text, bool whole) {
    result_.theorems.emplace_back(text);
    result_.formal = result_.formal || whole;
  }
  /// The claim as worded is false: a counterexample to check by hand.
  void counterexample(std::string_view text);
  /// The claim says that something exists: here it is, to check by hand.
  void witness(std::string_view text);
  /// The strongest wording that holds (and is checked here).
  void corrected(std::string_view text);
  /// A paragraph or table for the claim's section in the ledger (Markdown).
  /// Numbers only where they repeat: no times, nothing that depends on load.
  void detail(std::string_view markdown);
  /// An identity would have gone wrong unnoticed with probability at most
  /// 2^log2_probability.
  void identity(held_identity one, double log2_probability);
  /// What a law came to that ran elsewhere (property.hpp, identity.hpp), all
  /// its cases exact.
  void law_ran(std::string_view law, std::int64_t cases, bool held,
               std::string_view counterexample);

  const std::string& id() const { return id_; }
  const evidence& result() const { return result_; }

 private:
  std::int64_t run(std::string_view law, std::int64_t normal,
                   const random_case& one);
  void judge(std::string_view law, std::int64_t cases, bool held,
             std::string_view counterexample);

  std::string id_;
  settings how_;
  evidence result_;
};

/// What a claim says, and how it is settled.
struct claim {
  std::string id;
  std::string statement;
  std::string source;
  std::string method;
  std::function<void(settlement&)> settle;
};

/// All claims, in the order of their registration.
class ledger {
 public:
  void add(claim c) { claims_.push_back(std::move(c)); }
  const std::vector<claim>& claims() const { return claims_; }

 private:
  std::vector<claim> claims_;
};

// One function a file of claims.
void register_wy(ledger& all);
void register_general_step(ledger& all);
void register_reductions(ledger& all);
void register_gradients(ledger& all);
void register_structure(ledger& all);
void register_stability(ledger& all);
void register_memory(ledger& all);
void register_cost(ledger& all);
void register_numerics(ledger& all);

}  // namespace carve::proofs
