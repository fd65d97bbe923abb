/// @file
/// The ledger as JSON and as Markdown.
#include "report.hpp"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <sstream>

#include "carve/error.hpp"

namespace carve::proofs {

namespace {

/// Breaks `text` at blanks so that lines stay within 80 columns; lines that
/// begin a table or a code block are left alone, and a link or code is never
/// broken: Doxygen does not read a link that goes on in the next line.
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
      while ((word.starts_with('[') && word.find(')') == std::string::npos &&
              line.find("](") != std::string::npos) ||
             std::count(word.begin(), word.end(), '`') % 2 != 0) {
        std::string more;
        if (!(words >> more)) break;
        word += ' ' + more;
      }
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

/// The groups of claims in the order of their pages.
struct group {
  std::string_view prefix, name, title, about;
};
constexpr group groups[] = {
    {"WY", "wy", "The chunked form",
     "When is the chunked (WY) form the recurrence, which gates break it, and "
     "what do cutting and inverting cost?"},
    {"RED", "family", "The family tree",
     "Which published models are settings of one recurrence, and which "
     "statements about them are not so?"},
    {"GRAD", "gradients", "Gradients",
     "Is the reverse walk the derivative, token by token, in chunks and "
     "through the content gate?"},
    {"SEG", "segments", "Sequences and batches",
     "What may be split, packed, laid out or grouped without a change?"},
    {"STAB", "stability", "Stability",
     "Which gates and decays keep a state from growing?"},
    {"CAP", "memory", "Memory", "What can a state hold, and a gate see?"},
    {"EFF", "cost", "Cost",
     "Parameters, operations, depth, throughput, and the length of a window."},
    {"NUM", "numerics", "Finite precision",
     "Where does rounding ruin what is exact on paper?"}};

const group& group_of(const std::string& id) {
  for (const group& one : groups) {
    if (id.starts_with(std::string(one.prefix) + "-")) return one;
  }
  throw error("ledger: claim ", id, " belongs to no group of pages");
}

/// What a verdict means, in words.
std::string_view words_of(verdict v) {
  switch (v) {
    case verdict::refuted:
      return "False as worded. A counterexample that can be checked by hand "
             "is below, and after it what holds.";
    case verdict::formal:
      return "True, for every number of tokens and channels: a proof "
             "assistant checked the theorems below. The other evidence is "
             "about the code.";
    case verdict::argument:
      return "True: an argument of a few lines or a witness says so, and what "
             "it rests on was checked exactly.";
    case verdict::layouts:
      return "True for every input of the sizes that were tried, up to the "
             "failure probability in the table; of larger sizes it says "
             "nothing.";
    case verdict::supported:
      return "Supported by samples: the effects and their confidence "
             "intervals are below.";
    case verdict::measured:
      return "Measured: numbers, which hold for what they were measured on.";
    case verdict::instances:
      return "Tried in exact instances and never false, which proves nothing.";
    case verdict::none:
      break;
  }
  return "There is no evidence.";
}

/// The drawings of counterexamples; docs/figures/ledger.cpp makes them.
struct drawing {
  std::string_view claim, file;
};
constexpr drawing drawings[] = {
    {"WY-3", "ledger.wy_3.svg"},   {"WY-6", "ledger.wy_6.svg"},
    {"WY-11", "ledger.wy_11.svg"}, {"RED-3", "ledger.red_3.svg"},
    {"RED-8", "ledger.red_8.svg"}, {"STAB-7", "ledger.stab_7.svg"}};

/// The number of a claim within its group.
int number_in_group(const std::string& id) {
  return std::stoi(id.substr(id.find('-') + 1));
}

constexpr std::string_view verdicts_head =
    "| claim | statement | verdict |\n|---|---|---|\n";

std::string verdict_row(const settled& row) {
  return "| " + row.what.id + " | " + in_cell(row.what.statement) + " | " +
         row.verdict_text() + " |\n";
}

constexpr std::string_view evidence_head =
    "| claim | instances | steps | failure | mutants |\n"
    "|---|--:|--:|---|--:|\n";

std::string evidence_row(const settled& row) {
  const std::size_t total = row.found.killed.size() + row.found.survived.size();
  std::string failure = row.failure_text();
  if (failure.starts_with("<= ")) failure.erase(0, 3);
  return "| " + row.what.id + " | " + grouped(row.found.instances) + " | " +
         grouped(row.found.steps) + " | " + failure + " | " +
         std::to_string(row.found.killed.size()) + "/" + std::to_string(total) +
         " |\n";
}

/// The name by which other pages point at a claim's section: "claim_wy_3".
std::string anchor_of(const std::string& id) {
  std::string name = "claim_" + id;
  for (char& c : name) {
    c = c == '-' ? '_' : static_cast<char>(std::tolower(c));
  }
  return name;
}

/// A claim's section in the page of its group.
std::string section(const settled& row) {
  std::ostringstream out;
  out << "\n## " << row.what.id << " {#" << anchor_of(row.what.id) << "}\n\n"
      << wrapped("*Claim.* " + row.what.statement) << "\n"
      << wrapped("Verdict: **" + row.verdict_text() + "**. " +
                 std::string(words_of(row.found.kind())));
  for (const std::string& text : row.found.counterexamples) {
    out << "\n" << wrapped("*Counterexample.* " + text);
  }
  for (const drawing& one : drawings) {
    if (one.claim == row.what.id) out << "\n{{" << one.file << "}}\n";
  }
  for (const std::string& text : row.found.corrections) {
    out << "\n" << wrapped("*What holds.* " + text);
  }
  for (const std::string& text : row.found.witnesses) {
    out << "\n" << wrapped("*Witness.* " + text);
  }
  out << "\n"
      << wrapped("Source: " + row.what.source + ". Method: " + row.what.method +
                 ".");
  for (const bool part : {false, true}) {
    bool first = true;
    for (const std::string& text : row.found.theorems) {
      constexpr std::string_view mark = "part: ";
      const std::size_t at = text.find(mark);
      if ((at != std::string::npos) != part) continue;
      if (first) {
        out << (part ? "\nTheorems about a part of it, or another form:\n\n"
                     : "\nTheorems:\n\n");
      }
      first = false;
      std::string line = "- " + text;
      if (part) line.erase(2 + at, mark.size());
      out << wrapped(line + ".");
    }
  }
  if (!row.found.held.empty() || !row.found.details.empty()) {
    out << "\nEvidence and remarks:\n";
  }
  if (!row.found.held.empty()) out << "\n" << identities_of(row.found);
  for (const std::string& text : row.found.details) {
    out << "\n" << wrapped(text);
  }
  if (!row.found.killed.empty()) {
    out << "\n"
        << wrapped("Mutants refuted: " + joined(row.found.killed, "; ") + ".");
  }
  for (const std::string& text : row.found.failures) {
    out << "\n" << wrapped("FAILED: " + text);
  }
  return out.str();
}

}  // namespace

std::string identities_of(const evidence& found) {
  std::string text =
      "| identity | T, K, V up to | degree at most | coefficients below |\n"
      "|---|---|--:|---|\n";
  bool fields_only = false, ring = false;
  for (const held_identity& one : found.held) {
    std::string sizes = one.largest;  // without blanks: in one line
    sizes.erase(std::remove(sizes.begin(), sizes.end(), ' '), sizes.end());
    text += "| " + in_cell(one.name) + " | " + sizes + " | " +
            std::to_string(one.degree) + " | 2^" +
            std::to_string(one.coefficient_bits) +
            (one.fields_only ? " (fields) |\n" : " |\n");
    (one.fields_only ? fields_only : ring) = true;
  }
  std::string holds = "\n";
  if (ring) {
    holds +=
        "Coefficients this small cannot vanish in both fields: it is an "
        "identity over every commutative ring. ";
  }
  if (fields_only) {
    holds +=
        "Where the table says (fields) it is one over both fields and on the "
        "rational instances.";
  }
  return text + wrapped(holds);
}

std::string settled::verdict_text() const {
  return holds() ? std::string(name_of(found.kind())) : "FAILED";
}

std::string settled::failure_text() const {
  if (!found.identities) return "-";
  return "<= 2^" +
         std::to_string(static_cast<int>(std::ceil(found.log2_failure))) +
         (found.fields_only ? " (fields)" : "");
}

std::vector<theorem> theorems_in(std::string_view text) {
  std::vector<theorem> all;
  std::istringstream lines{std::string(text)};
  std::string line;
  while (std::getline(lines, line)) {
    if (line.empty() || line.starts_with("#")) continue;
    constexpr std::string_view bar = " | ";
    const std::size_t first = line.find(bar);
    const std::size_t second =
        first == std::string::npos ? first : line.find(bar, first + bar.size());
    if (second == std::string::npos) {
      throw error("theorems: expected `claim | name | scope`, got \"", line,
                  "\"");
    }
    all.push_back({line.substr(0, first),
                   line.substr(first + bar.size(), second - first - bar.size()),
                   line.substr(second + bar.size())});
  }
  return all;
}

settled settle(const claim& c, const settings& how,
               const std::vector<theorem>& proved) {
  const auto start = std::chrono::steady_clock::now();
  settlement s(c.id, how);
  try {
    c.settle(s);
  } catch (const std::exception& e) {
    s.require(false, std::string("stopped by an exception: ") + e.what());
  }
  for (const theorem& t : proved) {
    if (t.claim != c.id) continue;
    s.theorem("`" + t.name + "`: " + t.scope, !t.part());
  }
  s.require(s.result().instances + s.result().steps > 0, "no case ran");
  s.require(s.result().kind() != verdict::none, "no evidence");
  s.require(!s.result().argued || s.result().instances > 0,
            "an argument, and nothing exact that it rests on");
  s.require(!s.result().killed.empty() || !s.result().survived.empty(),
            "no mutant was tried");
  if (s.result().identities) {
    s.require(s.result().log2_failure <= -100,
              "failure probability above 2^-100");
  }
  if (s.result().kind() == verdict::refuted) {
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
    one["instances"] = row.found.instances;
    one["steps"] = row.found.steps;
    if (row.found.identities) {
      one["failure_probability"] = std::exp2(row.found.log2_failure);
    } else {
      one["failure_probability"] = nullptr;
    }
    one["fields_only"] = row.found.fields_only;
    one["theorems"] = row.found.theorems;
    one["witness"] = joined(row.found.witnesses, "\n");
    one["counterexample"] = joined(row.found.counterexamples, "\n");
    one["corrected"] = joined(row.found.corrections, "\n");
    one["times"] = row.found.times;
    one["mutants_killed"] = row.found.killed.size();
    one["mutants_total"] = row.found.killed.size() + row.found.survived.size();
    one["seconds"] = row.seconds;
    one["failures"] = row.found.failures;
    out["claims"].push_back(std::move(one));
  }
  return out.dump(1) + "\n";
}

std::vector<page> as_pages(const std::vector<settled>& rows,
                           const settings& how) {
  std::ostringstream out;
  std::ostringstream effort;
  effort << how.effort;
  out << "# Ledger of claims\n\n"
      << wrapped(
             "What is said about gated delta-rule attention, claim by claim, "
             "and what is true of it. This page is written by the program "
             "`carve-proofs`, which settles every claim anew each time it "
             "runs; `build/bin/carve-proofs WY-3` settles one. Each group of "
             "claims has a page with the evidence; symbols are those below.")
      << R"(
## The recurrence

A head has a state `S` of K key channels and V value channels. Token t brings a
query `q` and a key `k` (K), a value `v` (V), and gates; a gate that a model
lacks is one, a scalar gate the same number along its axis.

```
S~_t = diag(a_t) S_{t-1} diag(d_t)          decay, key axis a, value axis d
r_t  = b_t * k_t                            erase address, key-axis gate b
c_t  = S~_t^T r_t                           what is found there (V)
u_t  = w_t * v_t - e_t * c_t                write gate w, value-axis erase e
S_t  = S~_t + k_t u_t^T
o_t  = scale * S_t^T q_t                    (S_{t-1} when it reads before)
```

A full mask `E` (K x V) takes the place of b: `c_t[j] = sum_i E_t[i,j] k_t[i]
S~_t[i,j]`. In chunks of C tokens, with `G_t` the product of the decays from
the chunk's start to token t and `S_0` its start state:

```
L_ts = sum_i r_t[i] (G_t/G_s)[i] k_s[i]     s < t, else 0
P_ts = scale * sum_i q_t[i] (G_t/G_s)[i] k_s[i]   s <= t
T    = (I + L)^-1
U    = T (w * v - (r * G) S_0)              one solve for all V columns
O    = scale * (q * G) S_0 + P U
S_C  = diag(G_C) S_0 + (k * G_C/G)^T U
```

This is the WY form. `G_t/G_s` is always a product of decays, no quotient.

## The verdicts

)"
      << wrapped(
             "They follow from the evidence that a claim's program recorded; "
             "nobody writes them down.\n\n"
             "- **refuted**: false as worded; a shrunk counterexample to "
             "check by hand, and the strongest wording that holds.\n"
             "- **proved for all sizes (formal)**: a theorem checked by a "
             "proof assistant, for every number of tokens and channels; "
             "[proofs](proofs.md) has the statements. What it does not cover "
             "is said there.\n"
             "- **proved (argument)**: an argument in a few lines, or a "
             "witness where the claim is that something exists; what the "
             "argument rests on is checked exactly.\n"
             "- **proved (exact) for the layouts drawn**: equality over the "
             "rationals on generated instances and, as a polynomial "
             "identity, at uniform points of the fields of 2^61 - 1 and "
             "2^61 - 31 elements. By the lemma of Schwartz and Zippel an "
             "identity of degree D that is false survives n points of a field "
             "of p elements with probability at most (D / p)^n; D is counted "
             "by running the same code on a scalar that carries degrees, and "
             "the same scalar bounds the coefficients, so that none can "
             "vanish in both fields; where they are too large for that the "
             "bound is about the two fields alone, and the table says "
             "(fields). An identity is settled for the layouts drawn (most "
             "with up to 8 tokens and 4 channels, some with up to 70 of "
             "either), for all inputs of these; it is no induction over all "
             "sizes. The same for data flow: the code itself, run on a scalar "
             "that carries what a result was computed from.\n"
             "- **supported**: statistical, with samples, effect and "
             "confidence interval.\n"
             "- **measured**: a count or an error, with the command that "
             "gives it.\n"
             "- **held in exact instances**: tried and never false, which "
             "proves nothing.")
      << "\n"
      << wrapped("Seed " + std::to_string(how.seed) + ", effort " +
                 effort.str() + (how.quick ? ", quick" : "") + ".")
      << "\n"
      << "## The claims\n";
  std::vector<page> pages(1);
  std::string numbers(evidence_head);
  for (const group& one : groups) {
    std::vector<const settled*> members;
    for (const settled& row : rows) {
      if (&group_of(row.what.id) == &one) members.push_back(&row);
    }
    if (members.empty()) continue;
    std::stable_sort(members.begin(), members.end(), [](auto* a, auto* b) {
      return number_in_group(a->what.id) < number_in_group(b->what.id);
    });
    const std::string name = std::string(one.name);
    std::string text = "# " + std::string(one.title) + ": claims {#ledger_" +
                       name + "}\n\n" +
                       wrapped(std::string(one.about) +
                               " The [ledger](../ledger.md) has the "
                               "recurrence, the symbols and all verdicts.");
    out << "\n### " << one.title << "\n\n"
        << wrapped(std::string(one.about) +
                   " [Evidence, claim by claim](ledger/" + name + ".md).")
        << "\n"
        << verdicts_head;
    for (const settled* row : members) {
      out << verdict_row(*row);
      numbers += evidence_row(*row);
      text += section(*row);
    }
    pages.push_back({name + ".md", text});
  }
  out << "\n## The evidence in numbers\n\n"
      << wrapped(
             "Instances are decided exactly; steps are floating-point: of a "
             "search, a sample or a grid; failure is at most the probability "
             "that a false identity went unnoticed. A mutant is a deliberately "
             "wrong "
             "implementation that the claim's own check must refute: how many "
             "were, of how many.")
      << "\n"
      << numbers;
  pages.front().text = out.str();
  return pages;
}

std::vector<std::string> stale_rows(const std::vector<settled>& rows,
                                    std::string_view text, bool all) {
  std::vector<std::string> stale;
  for (const settled& row : rows) {
    const std::string in_list = "\n" + verdict_row(row);
    // Its section, up to and with the verdict.
    const std::string whole = section(row);
    const std::string mark = "Verdict: **" + row.verdict_text() + "**";
    std::string start = whole.substr(0, whole.find("Verdict: **"));
    start += mark;
    if (text.find(in_list) == std::string_view::npos ||
        text.find(start) == std::string_view::npos) {
      stale.push_back(row.what.id);
    }
  }
  if (!all) return stale;
  std::istringstream lines{std::string(text)};
  std::string line;
  while (std::getline(lines, line)) {
    // A claim is a row of the list, and a section of its page.
    std::string id;
    if (line.starts_with("## ") && line.find('-') != std::string::npos) {
      id = line.substr(3, line.find(" {#") - 3);
    } else if (line.starts_with("| ")) {
      id = line.substr(2, line.find(' ', 2) - 2);
      if (std::none_of(std::begin(groups), std::end(groups), [&](auto& one) {
            return id.starts_with(std::string(one.prefix) + "-");
          })) {
        continue;
      }
    } else {
      continue;
    }
    if (std::none_of(rows.begin(), rows.end(),
                     [&](const settled& row) { return row.what.id == id; }) &&
        std::find(stale.begin(), stale.end(), id) == stale.end()) {
      stale.push_back(id);
    }
  }
  return stale;
}

}  // namespace carve::proofs
