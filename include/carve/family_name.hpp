/// @file
/// Which member of the family does a name mean?
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "carve/error.hpp"
#include "carve/family.hpp"

namespace carve {

namespace detail {

/// Calls `visit` with each of the names between the blanks of `list`.
template <class Visit>
void each_word(std::string_view list, const Visit& visit) {
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(' '), list.size());
    if (end > 0) visit(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

/// Lower case, with _ for -, blanks and dots: "Gated DeltaNet-2" is
/// gated_deltanet_2.
inline std::string plain_name(std::string_view name) {
  std::string plain(name);
  for (char& c : plain) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-' || c == ' ' || c == '.') c = '_';
  }
  return plain;
}

/// Letters to insert, delete, replace or exchange with their neighbour to get
/// from one word to the other.
inline std::size_t typing_errors(std::string_view x, std::string_view y) {
  const std::size_t n = x.size(), m = y.size();
  // D[i][j]: from the first i letters of x to the first j of y.
  std::vector<std::vector<std::size_t>> D(n + 1,
                                          std::vector<std::size_t>(m + 1));
  for (std::size_t i = 0; i <= n; ++i) {
    for (std::size_t j = 0; j <= m; ++j) {
      if (i == 0 || j == 0) {
        D[i][j] = i + j;
        continue;
      }
      const std::size_t replaced =
          D[i - 1][j - 1] + (x[i - 1] == y[j - 1] ? 0 : 1);
      D[i][j] = std::min({D[i - 1][j] + 1, D[i][j - 1] + 1, replaced});
      if (i > 1 && j > 1 && x[i - 1] == y[j - 2] && x[i - 2] == y[j - 1]) {
        D[i][j] = std::min(D[i][j], D[i - 2][j - 2] + 1);
      }
    }
  }
  return D[n][m];
}

}  // namespace detail

/// The member called `name`, by its name, its title or an alias; capitals do
/// not matter, nor whether parts are joined by _, - or a blank.
/// @throws carve::error  naming all members and, where one is spelled almost
///                       so, that one.
inline family family_named(std::string_view name) {
  const std::string plain = detail::plain_name(name);
  std::string known, near;
  std::size_t nearest = plain.size() / 4 + 1;  // more errors: another word
  for (const family_info& f : families) {
    bool found = false, mentioned = false;
    const auto consider = [&](std::string_view word) {
      const std::string candidate = detail::plain_name(word);
      found = found || candidate == plain;
      // The least that a difference in length costs; a name may be very long.
      if (plain.size() > candidate.size() + nearest) return;
      const std::size_t errors = detail::typing_errors(plain, candidate);
      if (errors > nearest || (errors == nearest && mentioned)) return;
      if (errors < nearest) nearest = errors, near.clear();
      near += (near.empty() ? "" : " or ") + std::string(f.name);
      mentioned = true;
    };
    consider(f.name);
    consider(f.title);
    detail::each_word(f.aliases, consider);
    if (found) return f.id;
    known += (known.empty() ? "" : ", ") + std::string(f.name);
  }
  throw error("family: expected one of ", known, ", got \"", name, "\"",
              near.empty() ? "" : "; did you mean " + near + "?");
}

}  // namespace carve
