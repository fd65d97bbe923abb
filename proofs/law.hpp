/// @file
/// What is a claim, and what must have happened before it counts as settled?
///
/// A file of claims has one function that adds them to the ledger:
///
///     void register_stability(ledger& all) {
///       all.add({.id = "STAB-6",
///                .statement = "Scalar beta in [0,2]: contraction.",
///                .source = "arXiv 2412.06464",
///                .expected = verdict::proved,
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
/// was to be refuted and no counterexample came up, and when an identity was
/// left with a failure probability above 2^-100.  Case counts are for normal
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

enum class verdict { proved, refuted, supported, measured };

/// As the ledger prints it: "proved (exact)", "refuted", ...
std::string_view name_of(verdict v);

/// How much to do, and from which seed.
struct settings {
  std::uint64_t seed = 20260627;
  double effort = 1;
  bool quick = false;
};

/// One random case of a law; describes itself to the stream.
using random_case = std::function<bool(generator&, std::ostream&)>;

/// What settling a claim brought to light.
struct evidence {
  std::int64_t cases = 0;
  bool identities = false;  ///< whether log2_failure says anything
  double log2_failure = -std::numeric_limits<double>::infinity();
  std::vector<std::string> counterexamples, corrections, details;
  std::vector<std::string> killed, survived;  ///< mutants
  std::vector<std::string> failures;          ///< empty: the claim is settled
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

  /// The law holds in `normal` random cases (scaled).
  void holds(std::string_view law, std::int64_t normal, const random_case& one);
  /// A wrong variant: one of ten times `normal` random cases must be false,
  /// whatever the effort. An exception counts as false.
  void mutant(std::string_view what, std::int64_t normal,
              const random_case& one);
  /// A mutant that was tried elsewhere.
  void mutant(std::string_view what, bool killed);
  /// Fails the claim, with this text, unless `condition`.
  void require(bool condition, std::string_view text);
  /// Adds cases that ran outside of `holds`.
  void count(std::int64_t cases) { result_.cases += cases; }
  /// The claim as worded is false: a counterexample to check by hand.
  void counterexample(std::string_view text);
  /// The strongest wording that holds (and is checked here).
  void corrected(std::string_view text);
  /// A paragraph or table for the claim's section in the ledger (Markdown).
  /// Numbers only where they repeat: no times, nothing that depends on load.
  void detail(std::string_view markdown);
  /// An identity would have gone wrong unnoticed with probability at most
  /// 2^log2_probability.
  void failure_probability(double log2_probability);
  /// What a law came to that ran elsewhere (property.hpp, identity.hpp).
  void law_ran(std::string_view law, std::int64_t cases, bool held,
               std::string_view counterexample);

  const std::string& id() const { return id_; }
  const evidence& result() const { return result_; }

 private:
  std::string id_;
  settings how_;
  evidence result_;
};

/// What a claim says, and how it is settled.
struct claim {
  std::string id;
  std::string statement;
  std::string source;
  verdict expected = verdict::proved;
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
void register_reductions(ledger& all);
void register_gradients(ledger& all);
void register_structure(ledger& all);
void register_stability(ledger& all);
void register_memory(ledger& all);
void register_cost(ledger& all);

}  // namespace carve::proofs
