/// @file
/// How a law is run: cases counted, failures kept, mutants tried.
#include "law.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <sstream>

namespace carve::proofs {

std::string_view name_of(verdict v) {
  switch (v) {
    case verdict::refuted:
      return "refuted";
    case verdict::formal:
      return "proved for all sizes (formal)";
    case verdict::argument:
      return "proved (argument)";
    case verdict::layouts:
      return "proved (exact) for the layouts drawn";
    case verdict::supported:
      return "supported";
    case verdict::measured:
      return "measured";
    case verdict::instances:
      return "held in exact instances";
    case verdict::none:
      break;
  }
  return "no evidence";
}

verdict evidence::kind() const {
  if (!counterexamples.empty()) return verdict::refuted;
  if (formal) return verdict::formal;
  if (argued || !witnesses.empty()) return verdict::argument;
  if (identities || traced) return verdict::layouts;
  if (sampled) return verdict::supported;
  if (measured) return verdict::measured;
  return instances > 0 ? verdict::instances : verdict::none;
}

std::int64_t settlement::cases(std::int64_t normal) const {
  const double scale = how_.effort * (how_.quick ? 0.1 : 1);
  return std::max<std::int64_t>(1, std::llround(scale * normal));
}

generator settlement::random(std::string_view law) const {
  // FNV-1a, so that the stream is the same on every standard library.
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const std::string_view part : {std::string_view(id_), law}) {
    for (const char c : part) {
      hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    }
    hash = (hash ^ 0xff) * 0x100000001b3;
  }
  generator rng(how_.seed ^ hash);
  rng.discard(16);
  return rng;
}

std::int64_t settlement::run(std::string_view law, std::int64_t normal,
                             const random_case& one) {
  generator rng = random(law);
  const std::int64_t wanted = cases(normal);
  for (std::int64_t n = 0; n < wanted; ++n) {
    std::ostringstream show;
    try {
      if (one(rng, show)) continue;
    } catch (const std::exception& e) {
      show << " (" << e.what() << ")";
    }
    judge(law, n + 1, false, show.str());
    return n + 1;
  }
  judge(law, wanted, true, {});
  return wanted;
}

void settlement::holds(std::string_view law, std::int64_t normal,
                       const random_case& one) {
  result_.instances += run(law, normal, one);
}

void settlement::holds_in_floating_point(std::string_view law,
                                         std::int64_t normal,
                                         const random_case& one) {
  result_.steps += run(law, normal, one);
}

void settlement::mutant(std::string_view what, std::int64_t normal,
                        const random_case& one) {
  generator rng = random(what);
  bool killed = false;
  for (std::int64_t n = 0; n < 10 * normal && !killed; ++n) {
    std::ostringstream show;
    killed = !one(rng, show);
  }
  mutant(what, killed);
}

void settlement::mutant(std::string_view what, bool killed) {
  (killed ? result_.killed : result_.survived).emplace_back(what);
  if (!killed)
    result_.failures.push_back("a mutant survived: " + std::string(what));
}

void settlement::require(bool condition, std::string_view text) {
  if (!condition) result_.failures.emplace_back(text);
}

void settlement::counterexample(std::string_view text) {
  result_.counterexamples.emplace_back(text);
}

void settlement::witness(std::string_view text) {
  result_.witnesses.emplace_back(text);
}

void settlement::argued(std::string_view markdown) {
  result_.argued = true;
  detail(markdown);
}

void settlement::sampled(std::int64_t samples) {
  result_.sampled = true;
  result_.steps += samples;
}

void settlement::corrected(std::string_view text) {
  result_.corrections.emplace_back(text);
}

void settlement::detail(std::string_view markdown) {
  result_.details.emplace_back(markdown);
}

void settlement::identity(held_identity one, double log2_probability) {
  result_.identities = true;
  result_.log2_failure = std::max(result_.log2_failure, log2_probability);
  result_.fields_only = result_.fields_only || one.fields_only;
  result_.held.push_back(std::move(one));
}

void settlement::judge(std::string_view law, std::int64_t cases, bool held,
                       std::string_view counterexample) {
  if (cases < 1) result_.failures.push_back("no case ran: " + std::string(law));
  if (!held) {
    result_.failures.push_back(
        "false: " + std::string(law) +
        (counterexample.empty() ? "" : "; " + std::string(counterexample)));
  }
}

void settlement::law_ran(std::string_view law, std::int64_t cases, bool held,
                         std::string_view counterexample) {
  result_.instances += cases;
  judge(law, cases, held, counterexample);
}

}  // namespace carve::proofs
