/// @file
/// The ledger as JSON and as Markdown.
#include "report.hpp"

#include <chrono>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <sstream>

namespace carve::proofs {

namespace {

/// Breaks `text` at blanks so that lines stay within 80 columns; lines that
/// begin a table, a list or a code block are left alone.
std::string wrapped(std::string_view text) {
  std::istringstream lines{std::string(text)};
  std::string line, result;
  bool code = false;
  while (std::getline(lines, line)) {
    if (line.starts_with("```")) code = !code;
    if (code || line.empty() || line.starts_with("|") ||
        line.starts_with("```")) {
      result += line + "\n";
      continue;
    }
    const std::string indent = line.starts_with("- ") ? "  " : "";
    std::istringstream words(line);
    std::string word;
    std::size_t column = 0;
    while (words >> word) {
      // At the start of a line these would begin a list or a heading.
      const bool sign = word == "-" || word == "+" || word == "*" ||
                        word == "=" || word[0] == '#';
      if (column > 0 && column + 1 + word.size() > 78 && !sign) {
        result += "\n" + indent;
        column = indent.size();
      } else if (column > 0) {
        result += " ";
        ++column;
      }
      result += word;
      column += word.size();
    }
    result += "\n";
  }
  return result;
}

std::string in_cell(std::string text) {
  for (std::size_t at = 0; (at = text.find('|', at)) != std::string::npos;
       at += 2) {
    text.insert(at, "\\");
  }
  return text;
}

std::string joined(const std::vector<std::string>& parts,
                   std::string_view separator) {
  std::string all;
  for (const std::string& part : parts) {
    if (!all.empty()) all += separator;
    all += part;
  }
  return all;
}

/// A number in groups of three digits.
std::string grouped(std::int64_t n) {
  std::string digits = std::to_string(n);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<std::size_t>(at), ",");
  }
  return digits;
}

}  // namespace

std::string settled::verdict_text() const {
  return holds() ? std::string(name_of(what.expected)) : "FAILED";
}

std::string settled::failure_text() const {
  if (!found.identities) return "-";
  return "<= 2^" +
         std::to_string(static_cast<int>(std::ceil(found.log2_failure)));
}

settled settle(const claim& c, const settings& how) {
  const auto start = std::chrono::steady_clock::now();
  settlement s(c.id, how);
  try {
    c.settle(s);
  } catch (const std::exception& e) {
    s.require(false, std::string("stopped by an exception: ") + e.what());
  }
  s.require(s.result().cases > 0, "no case ran");
  s.require(!s.result().killed.empty() || !s.result().survived.empty(),
            "no mutant was tried");
  if (s.result().identities) {
    s.require(s.result().log2_failure <= -100,
              "failure probability above 2^-100");
  }
  if (c.expected == verdict::refuted) {
    s.require(!s.result().counterexamples.empty(), "no counterexample");
    s.require(!s.result().corrections.empty(), "no corrected statement");
  }
  const std::chrono::duration<double> time =
      std::chrono::steady_clock::now() - start;
  return {c, s.result(), time.count()};
}

std::string as_json(const std::vector<settled>& rows, const settings& how) {
  nlohmann::ordered_json out;
  out["seed"] = how.seed;
  out["effort"] = how.effort;
  out["quick"] = how.quick;
  for (const settled& row : rows) {
    nlohmann::ordered_json one;
    one["id"] = row.what.id;
    one["statement"] = row.what.statement;
    one["source"] = row.what.source;
    one["verdict"] = row.verdict_text();
    one["method"] = row.what.method;
    one["cases"] = row.found.cases;
    if (row.found.identities) {
      one["failure_probability"] = std::exp2(row.found.log2_failure);
    } else {
      one["failure_probability"] = nullptr;
    }
    one["counterexample"] = joined(row.found.counterexamples, "\n");
    one["corrected"] = joined(row.found.corrections, "\n");
    one["mutants_killed"] = row.found.killed.size();
    one["mutants_total"] = row.found.killed.size() + row.found.survived.size();
    one["seconds"] = row.seconds;
    one["failures"] = row.found.failures;
    out["claims"].push_back(std::move(one));
  }
  return out.dump(1) + "\n";
}

std::string as_markdown(const std::vector<settled>& rows, const settings& how) {
  std::ostringstream out;
  std::ostringstream effort;
  effort << how.effort;
  out << "# Ledger of claims\n\n"
      << wrapped(
             "What is said about gated delta-rule attention, claim by claim, "
             "and what is true of it. This page is written by the program "
             "`carve-proofs`, which settles every claim anew each time it "
             "runs; `build/bin/carve-proofs WY-3` settles one. Symbols are "
             "those of the recurrence: state `S` (K x V), key-axis decay `a`, "
             "value-axis decay `d`, erase gates `b` (key axis), `e` (value "
             "axis) and `E` (full mask), write gate `w`, chunk length `C`.\n\n"
             "The verdicts:\n\n"
             "- **proved (exact)**: an argument in a few lines, or equality "
             "over the rationals on generated instances and, as a polynomial "
             "identity, at uniform points of the fields of 2^61 - 1 and "
             "2^61 - 31 elements. By the lemma of Schwartz and Zippel an "
             "identity of degree D that is false survives n points of a field "
             "of p elements with probability at most (D / p)^n; D is counted "
             "by running the same code on a scalar that carries degrees, and "
             "the same scalar bounds the coefficients, so that none can "
             "vanish in both fields. The probability is in the table. An "
             "identity is "
             "settled for the layouts drawn (most with up to 8 tokens and 4 "
             "channels, some with up to 70 of either), for all inputs of "
             "these; it is no induction over all sizes.\n"
             "- **refuted**: false as worded; a shrunk counterexample to "
             "check by hand, and the strongest wording that holds.\n"
             "- **supported**: statistical, with samples, effect and "
             "confidence interval.\n"
             "- **measured**: a count or an error, with the command that "
             "gives it.\n\n"
             "A mutant is a deliberately wrong implementation that the "
             "claim's own check must refute.")
      << "\n"
      << wrapped("Seed " + std::to_string(how.seed) + ", effort " +
                 effort.str() + (how.quick ? ", quick" : "") + ".")
      << "\n"
      << "| claim | statement | verdict | cases | failure probability | "
         "mutants killed |\n|---|---|---|---|---|---|\n";
  for (const settled& row : rows) {
    const std::size_t total =
        row.found.killed.size() + row.found.survived.size();
    out << "| " << row.what.id << " | " << in_cell(row.what.statement) << " | "
        << row.verdict_text() << " | " << grouped(row.found.cases) << " | "
        << row.failure_text() << " | " << row.found.killed.size() << "/"
        << total << " |\n";
  }
  for (const settled& row : rows) {
    out << "\n## " << row.what.id << "\n\n" << wrapped(row.what.statement);
    out << "\n"
        << wrapped("Verdict: **" + row.verdict_text() + "**. Source: " +
                   row.what.source + ".\n\nMethod: " + row.what.method + ".");
    for (const std::string& text : row.found.counterexamples) {
      out << "\n" << wrapped("Counterexample. " + text);
    }
    for (const std::string& text : row.found.corrections) {
      out << "\n" << wrapped("What holds. " + text);
    }
    for (const std::string& text : row.found.details) {
      out << "\n" << wrapped(text);
    }
    if (!row.found.killed.empty()) {
      out << "\n"
          << wrapped("Mutants refuted: " + joined(row.found.killed, "; ") +
                     ".");
    }
    for (const std::string& text : row.found.failures) {
      out << "\n" << wrapped("FAILED: " + text);
    }
  }
  return out.str();
}

std::vector<std::string> stale_rows(const std::vector<settled>& rows,
                                    std::string_view text) {
  std::vector<std::string> stale;
  for (const settled& row : rows) {
    const std::string begin = "| " + row.what.id + " | " +
                              in_cell(row.what.statement) + " | " +
                              row.verdict_text() + " |";
    if (text.find("\n" + begin) == std::string_view::npos) {
      stale.push_back(row.what.id);
    }
  }
  return stale;
}

}  // namespace carve::proofs
