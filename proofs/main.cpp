/// @file
/// The program carve-proofs: settles claims and prints the ledger.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <mutex>
#include <thread>

#include "law.hpp"
#include "report.hpp"

namespace {

using namespace carve::proofs;

void print(const settled& row, const settings& how, bool verbose) {
  const std::size_t total = row.found.killed.size() + row.found.survived.size();
  std::printf(
      "%-7s %-35s %7lld exact %9lld steps  %-18s mutants %zu/%zu  "
      "%6.2f s\n",
      row.what.id.c_str(), row.verdict_text().c_str(),
      static_cast<long long>(row.found.instances),
      static_cast<long long>(row.found.steps), row.failure_text().c_str(),
      row.found.killed.size(), total, row.seconds);
  if (verbose) {
    std::printf("  %s\n  source: %s\n  method: %s\n",
                row.what.statement.c_str(), row.what.source.c_str(),
                row.what.method.c_str());
    for (const auto& text : row.found.counterexamples) {
      std::printf("  counterexample: %s\n", text.c_str());
    }
    for (const auto& text : row.found.theorems) {
      std::printf("  theorem: %s\n", text.c_str());
    }
    for (const auto& text : row.found.witnesses) {
      std::printf("  witness: %s\n", text.c_str());
    }
    for (const auto& text : row.found.corrections) {
      std::printf("  what holds: %s\n", text.c_str());
    }
    if (!row.found.held.empty()) {
      std::printf("%s", identities_of(row.found).c_str());
    }
    for (const auto& text : row.found.details) {
      std::printf("%s\n", text.c_str());
    }
    for (const auto& text : row.found.times) std::printf("%s\n", text.c_str());
    for (const auto& text : row.found.killed) {
      std::printf("  mutant refuted: %s\n", text.c_str());
    }
  }
  for (const auto& text : row.found.failures) {
    std::printf("  FAILED: %s\n", text.c_str());
  }
  if (!row.holds()) {
    std::printf("  again: carve-proofs %s --seed %llu --effort %g%s\n",
                row.what.id.c_str(), static_cast<unsigned long long>(how.seed),
                how.effort, how.quick ? " --quick" : "");
  }
  std::fflush(stdout);
}

std::vector<settled> settle_all(const std::vector<claim>& claims,
                                const settings& how,
                                const std::vector<theorem>& proved,
                                unsigned threads, bool verbose) {
  std::vector<settled> rows(claims.size());
  std::atomic<std::size_t> next{0};
  std::mutex printing;
  const auto work = [&] {
    for (std::size_t n; (n = next++) < claims.size();) {
      rows[n] = settle(claims[n], how, proved);
      const std::lock_guard<std::mutex> lock(printing);
      print(rows[n], how, verbose);
    }
  };
  std::vector<std::thread> others;
  for (unsigned n = 1; n < threads; ++n) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return rows;
}

void write(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path);
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The file of a page of the ledger whose first page is `first`: ledger.md has
/// its others in the folder ledger.
std::string page_path(const std::string& first, const std::string& name) {
  if (name.empty()) return first;
  std::filesystem::path folder(first);
  folder.replace_extension();
  return (folder / name).string();
}

/// The committed pages, one after the other.
std::string pages_of(const std::string& first, const std::vector<settled>& rows,
                     const settings& how) {
  std::string text;
  for (const page& one : as_pages(rows, how)) {
    text += read(page_path(first, one.name));
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Settles the claims about gated delta-rule attention.");
  settings how;
  std::vector<std::string> ids;
  std::string json, markdown, committed, formal;
  bool list = false;
  unsigned threads = std::max(1U, std::thread::hardware_concurrency());
  app.add_option("IDS", ids, "claims to settle, e.g. WY-3 or WY; default all");
  app.add_option("--effort", how.effort, "factor on the number of cases")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--quick", how.quick, "a tenth of the cases");
  app.add_option("--seed", how.seed, "where random numbers begin")
      ->capture_default_str();
  app.add_option("--threads", threads, "claims settled at once")
      ->check(CLI::Range(1U, 1024U))
      ->capture_default_str();
  app.add_option("--json", json, "write the ledger to this file");
  app.add_option("--markdown", markdown,
                 "write the ledger to this file and its pages to the folder "
                 "of the same name");
  app.add_option("--check", committed,
                 "fail when a verdict in this Markdown ledger is stale");
  app.add_option("--formal", formal,
                 "machine-checked theorems, a line each: claim name scope");
  app.add_flag("--list", list, "name the claims and stop");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    ledger all;
    register_wy(all);
    register_general_step(all);
    register_reductions(all);
    register_gradients(all);
    register_structure(all);
    register_stability(all);
    register_memory(all);
    register_cost(all);
    register_numerics(all);
    std::vector<claim> chosen;
    for (const claim& c : all.claims()) {
      const bool named =
          std::any_of(ids.begin(), ids.end(), [&](const std::string& id) {
            return c.id == id || c.id.starts_with(id + "-");
          });
      if (ids.empty() || named) chosen.push_back(c);
    }
    for (const std::string& id : ids) {
      if (std::none_of(chosen.begin(), chosen.end(), [&](const claim& c) {
            return c.id == id || c.id.starts_with(id + "-");
          })) {
        std::cerr << "no claim is called " << id << "\n";
        return 2;
      }
    }
    if (list) {
      for (const claim& c : chosen) {
        std::cout << c.id << "  " << c.statement << "\n";
      }
      return 0;
    }
    std::printf("seed %llu, effort %g%s\n",
                static_cast<unsigned long long>(how.seed), how.effort,
                how.quick ? ", quick" : "");
    const auto proved =
        formal.empty() ? std::vector<theorem>{} : theorems_in(read(formal));
    for (const theorem& t : proved) {
      if (std::none_of(all.claims().begin(), all.claims().end(),
                       [&](const claim& c) { return c.id == t.claim; })) {
        throw std::runtime_error(formal + ": no claim is called " + t.claim);
      }
    }
    const auto rows = settle_all(chosen, how, proved, threads, !ids.empty());
    std::size_t open = 0, killed = 0, total = 0;
    for (const settled& row : rows) {
      open += !row.holds();
      killed += row.found.killed.size();
      total += row.found.killed.size() + row.found.survived.size();
    }
    std::printf("%zu claims, %zu settled, %zu failed; mutants killed %zu/%zu\n",
                rows.size(), rows.size() - open, open, killed, total);
    if (!json.empty()) write(json, as_json(rows, how));
    if (!markdown.empty()) {
      for (const page& one : as_pages(rows, how)) {
        const std::filesystem::path path(page_path(markdown, one.name));
        if (path.has_parent_path()) {
          std::filesystem::create_directories(path.parent_path());
        }
        write(path.string(), one.text);
      }
    }
    bool stale = false;
    if (!committed.empty()) {
      for (const std::string& id :
           stale_rows(rows, pages_of(committed, rows, how), ids.empty())) {
        std::printf("stale in %s: %s\n", committed.c_str(), id.c_str());
        stale = true;
      }
    }
    return open > 0 || stale ? 1 : 0;
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 2;
  }
}
