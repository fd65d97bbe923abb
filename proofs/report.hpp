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
  /// "<= 2^-104", or "-" where no identity was tried at random points.
  std::string failure_text() const;
};

/// Settles one claim: runs it and looks whether everything happened that must.
settled settle(const claim& c, const settings& how);

/// The ledger as JSON: `id, statement, source, verdict, method, cases,
/// failure_probability, counterexample, corrected, mutants_killed,
/// mutants_total, seconds` and what failed.
std::string as_json(const std::vector<settled>& rows, const settings& how);

/// The ledger as Markdown; it holds no times.
std::string as_markdown(const std::vector<settled>& rows, const settings& how);

/// The rows whose verdict in the Markdown `text` is another one, or missing.
std::vector<std::string> stale_rows(const std::vector<settled>& rows,
                                    std::string_view text);

}  // namespace carve::proofs
