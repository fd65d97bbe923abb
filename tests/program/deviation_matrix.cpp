/// @file
/// Is a deviation named when a dump was made with it?  Every one of the
/// catalogue alone, and pairs, on the inputs of real dumps; the table is
/// markdown.
///   deviation_matrix [--tokens N] [--every N] [--pairs N] PATH...
/// A path is a dump or a folder of them, each tried on one thread; of N tokens,
/// every Nth of the deviations and about N pairs. What is not named first, and
/// pairs that are not both named, go to standard error. The faulty outputs are
/// what the deviation gives in double, plus the rounding error of the replay,
/// rounded to the dump's formats.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "carve/parallel.hpp"
#include "program/diagnose.hpp"

using namespace carve::program;

namespace {

struct request {
  carve::index_t tokens = 80;
  std::size_t every = 1, pairs = 40;
};

/// Positions at which the truth was named, over the deviations of a dump.
struct tally {
  std::size_t all = 0, first = 0, three = 0, pairs = 0, both = 0;
  std::size_t named_for_sound = 0;
  std::vector<std::string> not_first;
  std::set<std::string> seen;

  void add(const tally& x) {
    all += x.all, first += x.first, three += x.three;
    pairs += x.pairs, both += x.both, named_for_sound += x.named_for_sound;
    seen.insert(x.seen.begin(), x.seen.end());
  }
};

class kernel {
 public:
  explicit kernel(dump d) : d_(std::move(d)), e_(expect(d_)) {
    for (const judged_tensor& x : d_.judged) {
      const auto& exact = result_named(e_.exact, x.name).data;
      const auto& y = result_named(e_.sound.results[0], x.name).data;
      std::vector<double> noise, right;
      for (std::size_t i = 0; i < exact.size(); ++i) {
        right.push_back(static_cast<double>(exact[i]));
        noise.push_back(y[i] - right[i]);
      }
      size_.push_back(carve::root_mean_square(right));
      noise_.push_back(std::move(noise));
    }
  }

  /// The dump as a kernel with these faults would have written it; the noise
  /// grows with the result.
  std::optional<dump> with(const std::vector<suspect>& faults) const {
    auto r = deviating_result(d_, faults);
    if (!r) return {};
    each_result(*r, [&](const std::string& name, auto& x) {
      for (std::size_t t = 0; t < d_.judged.size(); ++t) {
        if (d_.judged[t].name != name) continue;
        const double grown =
            size_[t] > 0
                ? std::max(1.0, carve::root_mean_square(x.data) / size_[t])
                : 1.0;
        for (std::size_t i = 0; i < x.data.size(); ++i) {
          x.data[i] += grown * noise_[t][i];
        }
      }
    });
    return with_outputs(d_, *r);
  }

  verification judged(const dump& x) const {
    verification v;
    for (const judged_tensor& t : x.judged) v.tensors.push_back(judge(e_, t));
    return v;
  }

  /// Whether two results differ by more than roundings in a judged tensor.
  bool differ(const dump& a, const dump& b) const {
    for (std::size_t t = 0; t < a.judged.size(); ++t) {
      double sum = 0;
      const auto& x = a.judged[t].values.data;
      const auto& y = b.judged[t].values.data;
      for (std::size_t i = 0; i < x.size(); ++i) {
        sum += (x[i] - y[i]) * (x[i] - y[i]);
      }
      const double rms = std::sqrt(sum / static_cast<double>(x.size()));
      if (!(rms <= 2 * e_.sound.units[t].unit.rms)) return true;
    }
    return false;
  }

 private:
  dump d_;
  expectation e_;
  std::vector<std::vector<double>> noise_;
  std::vector<double> size_;
};

/// From 1; 0 where it is not named. Equals of the best count as one with it.
std::size_t position(const diagnosis& d, const std::string& id) {
  std::size_t place = 0;
  for (const explanation& e : d.found) {
    if (!e.same) ++place;
    if (e.id == id) return e.same ? 1 : place;
  }
  return 0;
}

std::string joined(const std::vector<std::string>& words) {
  std::string s;
  for (const std::string& w : words) s += (s.empty() ? "" : ", ") + w;
  return s.empty() ? "-" : s;
}

std::string percent(std::size_t part, std::size_t of) {
  return std::to_string(part) + " of " + std::to_string(of);
}

const run_settings one_thread{1, {}};

tally tried(const std::filesystem::path& file, const request& how) {
  tally here;
  const dump all = read_dump(carve::safetensors::file::open(file));
  const kernel k(how.tokens > 0 ? first_tokens(all, how.tokens) : all);
  known_results known;
  const auto told = [&](const dump& d, const verification& v) {
    return diagnose(d, v, one_thread, &known);
  };
  const dump right = *k.with({});
  here.named_for_sound = !told(right, k.judged(right)).found.empty();
  std::vector<std::pair<suspect, dump>> changing;
  std::size_t n = 0;
  for (const suspect& s : suspects()) {
    if (n++ % how.every != 0) continue;
    const std::optional<dump> wrong = k.with({s});
    if (!wrong) continue;
    const verification v = k.judged(*wrong);
    if (v.result() != outcome::fail) continue;
    const diagnosis found = told(*wrong, v);
    const std::size_t at = position(found, name_of({s}));
    ++here.all, here.first += at == 1, here.three += at > 0 && at <= 3;
    here.seen.insert(name_of({s}));
    if (at != 1) {
      here.not_first.push_back("`" + name_of({s}) + "`" +
                               (at == 0 ? "" : " " + std::to_string(at)));
      std::string text = file.stem().string() + ": " + name_of({s}) + " (" +
                         sentence_of(s) + ")\n";
      for (const explanation& e : found.found) text += "    " + e.text + "\n";
      std::cerr << text;
    }
    if (changing.empty() || changing.back().first.row != s.row) {
      changing.emplace_back(s, *wrong);
    }
  }
  const std::size_t m = changing.size(), possible = m * (m - 1) / 2;
  const std::size_t step =
      how.pairs == 0 ? 0 : std::max<std::size_t>(1, possible / how.pairs);
  std::size_t count = 0;
  for (std::size_t i = 0; i < m && step > 0; ++i) {
    for (std::size_t j = i + 1; j < m; ++j) {
      if (count++ % step != 0) continue;
      const auto& [a, alone_a] = changing[i];
      const auto& [b, alone_b] = changing[j];
      const std::optional<dump> wrong = k.with({a, b});
      if (!wrong || !k.differ(*wrong, alone_a) || !k.differ(*wrong, alone_b)) {
        continue;  // one hides the other
      }
      const verification v = k.judged(*wrong);
      if (v.result() != outcome::fail) continue;
      std::string names;
      const diagnosis found = told(*wrong, v);
      for (const explanation& e : found.found) names += " + " + e.id + " + ";
      const auto named = [&](const suspect& s) {
        return names.find("+ " + name_of({s}) + " +") != std::string::npos;
      };
      ++here.pairs;
      if (named(a) && named(b)) {
        ++here.both;
        continue;
      }
      std::string text =
          file.stem().string() + ": " + name_of({a, b}) + " (pair)\n";
      for (const explanation& e : found.found) text += "    " + e.text + "\n";
      std::cerr << text;
    }
  }
  return here;
}

}  // namespace

int main(int argc, char** argv) try {
  request how;
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto number = [&] { return std::stoul(argv[++i]); };
    if (word.starts_with("--") && i + 1 == argc) {
      throw carve::error(word, ": expected a number");
    }
    if (word == "--tokens") {
      how.tokens = static_cast<carve::index_t>(number());
    } else if (word == "--every") {
      how.every = std::max(1ul, number());
    } else if (word == "--pairs") {
      how.pairs = number();
    } else if (std::filesystem::is_directory(word)) {
      for (const auto& entry : std::filesystem::directory_iterator(word)) {
        if (entry.path().extension() == ".safetensors") files.push_back(entry);
      }
    } else {
      files.emplace_back(word);
    }
  }
  if (files.empty()) throw carve::error("expected a dump or a folder of them");
  std::sort(files.begin(), files.end());

  std::vector<tally> each(files.size());
  carve::parallel_for(static_cast<carve::index_t>(files.size()), {},
                      [&](carve::index_t i) {
                        const auto at = static_cast<std::size_t>(i);
                        each[at] = tried(files[at], how);
                      });
  tally total;
  std::cout << "| dump | change something | named first | in the first three "
               "| not first | pairs: both in the first five |\n"
               "|---|--:|--:|--:|---|--:|\n";
  const auto row = [](const std::string& name, const tally& x) {
    std::cout << "| " << name << " | " << x.all << " | " << x.first << " | "
              << x.three << " | " << joined(x.not_first) << " | "
              << percent(x.both, x.pairs) << " |\n";
  };
  for (std::size_t i = 0; i < files.size(); ++i) {
    row("`" + files[i].stem().string() + "`", each[i]);
    total.add(each[i]);
  }
  row("all", total);
  std::set<std::string> unseen;
  for (const suspect& s : suspects()) {
    if (!total.seen.contains(name_of({s}))) {
      unseen.insert("`" + name_of({s}) + "`");
    }
  }
  if (how.every == 1) {
    std::cout << "\nNothing in these dumps fails under: "
              << joined({unseen.begin(), unseen.end()}) << ".\n";
  }
  std::cout << "\nSound dumps for which one is named: " << total.named_for_sound
            << ".\n";
  const auto share = [](std::size_t part, std::size_t of) {
    return of == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(of);
  };
  return total.named_for_sound == 0 && total.all > 0 &&
                 share(total.first, total.all) >= 0.95 &&
                 total.three == total.all &&
                 share(total.both, total.pairs) >= 0.8
             ? 0
             : 1;
} catch (const std::exception& e) {
  std::cerr << "deviation_matrix: " << e.what() << '\n';
  return 2;
}
