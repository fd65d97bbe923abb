/// @file
/// How does a settled claim reach its reader?
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "law.hpp"

namespace carve::proofs {

/// One row of the ledger.
struct settled {
  claim what;
  evidence found;
  double seconds = 0;

  bool holds() const { return found.failures.empty(); }
  /// The verdict, or "FAILED" when something was left open.
  std::string verdict_text() const;
  /// "<= 2^-104", "<= 2^-100 (fields)" where the bound says nothing of the
  /// rationals, or "-" where no identity was tried at random points.
  std::string failure_text() const;
};

/// A machine-checked theorem and the claim that it states.
struct theorem {
  std::string claim, name, scope;

  /// It states a part of the claim, or another form of it: then it is shown,
  /// and the claim's verdict rests on the rest.
  bool part() const { return scope.starts_with("part: "); }
};

/// The theorems listed in `text`: a line each, `claim | name | scope in words`;
/// a line that begins with `#` is a comment.
/// @throws carve::error  for another line.
std::vector<theorem> theorems_in(std::string_view text);

/// Settles one claim: runs it and looks whether everything happened that must.
/// @param[in] proved  theorems; those of this claim are part of its evidence.
settled settle(const claim& c, const settings& how,
               const std::vector<theorem>& proved = {});

/// The identities that a claim's laws are, as a Markdown table, and over what
/// they hold.
std::string identities_of(const evidence& found);

/// The ledger as JSON: `id, statement, source, verdict, method, instances,
/// steps, failure_probability, fields_only, theorems, counterexample, witness,
/// corrected, mutants_killed, mutants_total, seconds` and what failed.
std::string as_json(const std::vector<settled>& rows, const settings& how);

/// A page of the ledger: its file beside the first page, which has no name,
/// and its text.
struct page {
  std::string name, text;
};

/// The ledger as Markdown: first the page of all verdicts, then one a group of
/// claims.  It holds no times.
std::vector<page> as_pages(const std::vector<settled>& rows,
                           const settings& how);

/// The claims whose statement or verdict in the Markdown pages `text` is
/// another one, or missing, in the table of all or in their group's page; if
/// `rows` are `all` there are, the claims of `text` that no row settles too.
std::vector<std::string> stale_rows(const std::vector<settled>& rows,
                                    std::string_view text, bool all);

}  // namespace carve::proofs
