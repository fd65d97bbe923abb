/// @file
/// How is a law tried on generated values, and a counterexample made small?
///
/// RapidCheck generates and shrinks; the loop around it is here, because it
/// must count its cases, fail when there were none, and run in threads (so no
/// `gen::exec`, whose state is global: build generators from the functional
/// combinators or from a callable `(const rc::Random&, int size)`).
#pragma once

#include <rapidcheck.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <optional>
#include <sstream>
#include <string>

#include "law.hpp"

namespace carve::proofs {

/// What a search for a counterexample found.
template <class X>
struct search_result {
  std::int64_t cases = 0;
  std::optional<X> counterexample;
};

namespace detail {

/// What a law that throws has shown.
enum class thrown {
  fails,   ///< that it does not hold
  nothing  ///< nothing: whoever looks for a counterexample goes on
};

template <class X, class Law>
bool holds_for(const Law& law, const X& x, thrown shows,
               std::string* why = nullptr) {
  try {
    return law(x);
  } catch (const std::exception& e) {
    if (why) *why = std::string(" (") + e.what() + ")";
    return shows == thrown::nothing;
  }
}

}  // namespace detail

/// Looks for a value that breaks the law, among `cases` of growing size, and
/// shrinks it as long as it breaks the law.
template <class X, class Law>
search_result<X> search(generator rng, std::int64_t cases,
                        const rc::Gen<X>& values, const Law& law,
                        detail::thrown shows, bool shrink = true) {
  search_result<X> result;
  for (std::int64_t n = 0; n < cases; ++n) {
    const int size =
        static_cast<int>(1 + 99 * n / std::max<std::int64_t>(1, cases - 1));
    const rc::Shrinkable<X> value = values(rc::Random(rng()), size);
    ++result.cases;
    if (detail::holds_for(law, value.value(), shows)) continue;
    result.counterexample =
        shrink
            ? rc::shrinkable::findLocalMin(
                  value,
                  [&](const X& x) { return !detail::holds_for(law, x, shows); })
                  .first
            : value.value();
    break;
  }
  return result;
}

/// The law holds for `normal` generated values (scaled by the effort).
template <class X, class Law>
void for_all(settlement& s, std::string_view name, std::int64_t normal,
             const rc::Gen<X>& values, const Law& law) {
  const auto found = search(s.random(name), s.cases(normal), values, law,
                            detail::thrown::fails);
  std::ostringstream show;
  if (found.counterexample) {
    std::string why;
    detail::holds_for(law, *found.counterexample, detail::thrown::fails, &why);
    rc::show(*found.counterexample, show);
    show << why;
  }
  s.law_ran(name, found.cases, !found.counterexample, show.str());
}

/// The law is false: the text of a smallest counterexample that the search
/// comes to. Ten times `normal` values at most, whatever the effort.
template <class X, class Law>
std::optional<std::string> find_counterexample(settlement& s,
                                               std::string_view name,
                                               std::int64_t normal,
                                               const rc::Gen<X>& values,
                                               const Law& law) {
  const auto found =
      search(s.random(name), 10 * normal, values, law, detail::thrown::nothing);
  s.count(found.cases);
  if (!found.counterexample) {
    s.require(false, "not refuted: " + std::string(name));
    return {};
  }
  std::ostringstream show;
  show << name << ": false for ";
  rc::show(*found.counterexample, show);
  return show.str();
}

/// The claim, as worded, is false: records a smallest counterexample.
template <class X, class Law>
void refute(settlement& s, std::string_view name, std::int64_t normal,
            const rc::Gen<X>& values, const Law& law) {
  if (const auto text = find_counterexample(s, name, normal, values, law)) {
    s.counterexample(*text);
  }
}

/// A wrong variant must break the law within ten times `normal` values,
/// whatever the effort: the search ends with the first.
template <class X, class Law>
void mutant(settlement& s, std::string_view what, std::int64_t normal,
            const rc::Gen<X>& values, const Law& law) {
  const auto found = search(s.random(what), 10 * normal, values, law,
                            detail::thrown::nothing, false);
  s.mutant(what, found.counterexample.has_value());
}

}  // namespace carve::proofs
