#include "program/report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "program/console.hpp"
#include "program/json.hpp"
#include "program/text_table.hpp"

namespace carve::program {

namespace {

namespace st = safetensors;

std::string formatted(const char* form, double x) {
  char buffer[64];
  std::snprintf(buffer, sizeof(buffer), form, x);
  return buffer;
}

std::string scientific(double x) { return formatted("%.2e", x); }

}  // namespace

std::string ratio_text(double x) {
  return formatted(x < 999.995 || !std::isfinite(x) ? "%.2f" : "%.1e", x);
}

namespace {

tensor_shape position_of(const tensor_shape& shape, std::size_t flat) {
  tensor_shape at(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    at[i] = static_cast<index_t>(flat) % shape[i];
    flat /= static_cast<std::size_t>(shape[i]);
  }
  return at;
}

/// "3, first at t=17".
std::string nonfinite_text(const verdict& v) {
  const tensor_error& e = v.errors.actual;
  if (e.nonfinite == 0) return "0";
  const tensor_shape at = position_of(v.shape, e.first_nonfinite);
  return has_tokens(v.name)
             ? text(e.nonfinite, " from t=", at[1] / v.map.substeps)
             : text(e.nonfinite);
}

}  // namespace

std::string reason(const verdict& v, const tolerance& limit) {
  const comparison& c = v.errors;
  switch (c.fault) {
    case fault::none:
      return "";
    case fault::nonfinite:
      return text(c.actual.nonfinite, " of ", element_count(v.shape),
                  " elements are not finite, the first at ",
                  position_of(v.shape, c.actual.first_nonfinite));
    case fault::zeros:
      return "all zeros, which the exact result is not";
    case fault::rms:
      return "RMS error " + ratio_text(c.ratio) + " units, " +
             ratio_text(limit.rms) + " allowed";
    case fault::largest:
      return "largest error " + ratio_text(c.max_ratio) +
             " times the largest of sound ways, " + ratio_text(limit.largest) +
             " allowed";
    case fault::undetermined:
      return "sound ways err by " + ratio_text(c.unit_rel_rms) +
             " of the exact RMS, this tensor by " + ratio_text(c.rel_rms) +
             ": no digit to judge";
  }
  return "";
}

namespace {

/// A product in TF32 has an error of about 2^-11 of its operands; sums and
/// cancellation move that of an output by a few factors of two.
bool errs_like_tf32(const verification& v) {
  const auto like = [](const verdict& t) {
    const comparison& c = t.errors;
    return (c.fault == fault::rms || c.fault == fault::largest) &&
           c.rel_rms >= 0x1p-15 && c.rel_rms <= 0x1p-7;
  };
  return std::all_of(v.tensors.begin(), v.tensors.end(),
                     [&](const verdict& t) { return !t.fails() || like(t); });
}

std::string shortened(std::string s, std::size_t width) {
  if (s.size() > width) s = s.substr(0, width - 3) + "...";
  return s;
}

std::string file_name(const std::string& path) {
  if (path == "-") return "standard input";
  return st::printable(std::filesystem::path(path).filename().string());
}

}  // namespace

std::string verdict_text(const verdict& t) {
  return t.fails() ? "FAIL" : t.pass() ? "pass" : "not judged";
}

namespace {

/// Why a tensor does not pass, the distance from the replay included.
std::string reason(const verdict& t, const verification& v) {
  if (!t.errors.pass()) return reason(t, v.limit);
  if (!t.too_far) return "";
  return ratio_text(t.errors.replay_distance) +
         " replay errors from the replay, " + ratio_text(*v.bitlike) +
         " allowed";
}

/// `parts` joined to lines of at most 78 columns, indented.
std::string joined_lines(const std::vector<std::string>& parts,
                         const std::string& indent) {
  std::string all, line;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string part = parts[i] + (i + 1 < parts.size() ? ";" : "");
    if (!line.empty() && indent.size() + line.size() + part.size() > 76) {
      all += indent + line + '\n';
      line.clear();
    }
    line += (line.empty() ? "" : " ") + part;
  }
  return all + indent + line + '\n';
}

}  // namespace

void write_table(std::ostream& out, const verification& v, bool colour) {
  const std::string green = colour ? "\033[32m" : "";
  const std::string red = colour ? "\033[1;31m" : "";
  const std::string plain = colour ? "\033[0m" : "";
  const dimensions& n = v.size;
  out << file_name(v.file) << ": " << info(v.of).title << " ("
      << info(v.of).name << ")\n"
      << "  B " << n.B << ", T " << n.T << ", H " << n.H;
  if (n.HV != n.H) out << ", HV " << n.HV;
  out << ", K " << n.K << ", V " << n.V;
  if (v.packed) out << ", " << n.N << " packed sequences";
  out << ", scale " << formatted("%.6g", v.scale);
  if (v.read == readout::before) out << ", read-out before the update";
  out << "\n  exact: double-double; unit: the largest error of " << v.ways
      << " sound ways\n  profile " << name(v.as) << ", which grants\n"
      << joined_lines(v.freedoms, "    ")
      << "  nearest: " << wrapped(v.nearest, 80, 11) << '\n';
  for (const std::string& note : v.notes) {
    out << "  note: " << wrapped(note, 80, 8) << '\n';
  }
  out << '\n';

  text_table errors({0, 7});
  errors.add({"", "RMS", "", "", "", "largest", "", ""});
  errors.add({"tensor", "error", "unit", "ratio", "dist", "error", "ratio",
              "verdict"});
  text_table worst({0, 1, 4});
  worst.add({"tensor", "worst at", "actual", "exact", "not finite"});
  for (const verdict& t : v.tensors) {
    const comparison& c = t.errors;
    errors.add({t.name, scientific(c.rel_rms), scientific(c.unit_rel_rms),
                ratio_text(c.ratio), ratio_text(c.replay_distance),
                scientific(c.max_abs), ratio_text(c.max_ratio),
                verdict_text(t)});
    worst.add({t.name, text(position_of(t.shape, c.worst)),
               formatted("%.5e", t.actual_value),
               formatted("%.5e", t.reference_value), nonfinite_text(t)});
  }
  errors.write(out, [&](std::size_t, const std::string& cell) {
    if (cell == "pass") return green + cell + plain;
    if (cell == "FAIL") return red + cell + plain;
    return cell;
  });
  out << '\n';
  worst.write(out);
  out << '\n';
  for (const verdict& t : v.tensors) {
    if (t.pass()) continue;
    out << (t.fails() ? red : "") << verdict_text(t) << (t.fails() ? plain : "")
        << "  " << t.name << ": " << reason(t, v) << '\n';
    if (!t.where.empty()) out << "      " << t.where << '\n';
  }
  for (const verdict& t : v.tensors) {
    if (!t.fp32_ratio || *t.fp32_ratio <= v.limit.rms) continue;
    out << "note  " << t.name << ": as that of an fp32 kernel it would fail by "
        << ratio_text(*t.fp32_ratio) << '\n';
  }
  if (v.pass()) {
    out << green << "pass" << plain << "  "
        << (v.tensors.size() == 1
                ? "the tensor is"
                : text("all ", v.tensors.size(), " tensors are"))
        << " within " << formatted("%g", v.limit.rms) << " (RMS) and "
        << formatted("%g", v.limit.largest) << " (largest) units\n";
  } else if (v.as == profile::fp32 && v.result() == outcome::fail &&
             errs_like_tf32(v)) {
    out << "\nReplayed in fp32; a kernel that multiplies in TF32 is judged "
           "with --profile tf32.\n";
  }
  for (const std::string& s : v.inputs.suspicious) {
    out << "\ncheck the inputs: " << s << '\n';
  }
  if (!v.inputs.untested.empty()) {
    out << "\nnot tested by these inputs\n"
        << joined_lines(v.inputs.untested, "  ");
  }
}

void write_summary(std::ostream& out, const std::vector<judged_file>& all,
                   bool colour) {
  const std::string green = colour ? "\033[32m" : "";
  const std::string red = colour ? "\033[1;31m" : "";
  const std::string plain = colour ? "\033[0m" : "";
  text_table table({0, 1, 2});
  table.add({"dump", "family", "worst", "ratio", "largest", "verdict"});
  std::size_t passes = 0, fails = 0, open = 0;
  for (const judged_file& f : all) {
    const std::string file = shortened(file_name(f.path), 36);
    if (!f.outcome) {
      table.add({file, "", "", "", "", "unusable"});
      continue;
    }
    const verification& v = *f.outcome;
    // A ratio that is no number is worse than any.
    const auto badness = [](const verdict& t) {
      const double ratio = t.errors.ratio;
      return std::pair(t.fails()  ? 2
                       : t.pass() ? 0
                                  : 1,
                       std::isfinite(ratio) ? ratio : HUGE_VAL);
    };
    const verdict& worst = *std::max_element(
        v.tensors.begin(), v.tensors.end(),
        [&](auto& x, auto& y) { return badness(x) < badness(y); });
    const outcome result = v.result();
    ++(result == outcome::pass   ? passes
       : result == outcome::fail ? fails
                                 : open);
    table.add({file, std::string(info(v.of).name), worst.name,
               ratio_text(worst.errors.ratio),
               ratio_text(worst.errors.max_ratio), verdict_text(worst)});
  }
  table.write(out, [&](std::size_t, const std::string& cell) {
    if (cell == "pass") return green + cell + plain;
    if (cell == "FAIL" || cell == "unusable") return red + cell + plain;
    return cell;
  });
  out << '\n';
  for (const judged_file& f : all) {
    if (!f.outcome) {
      out << red << "unusable" << plain << "  " << fit_for_terminal(f.error)
          << '\n';
      continue;
    }
    for (const verdict& t : f.outcome->tensors) {
      if (t.pass()) continue;
      out << (t.fails() ? red : "") << verdict_text(t)
          << (t.fails() ? plain : "") << "  " << file_name(f.path) << ": "
          << t.name << ": " << reason(t, *f.outcome) << '\n';
    }
    if (f.why && !f.why->found.empty()) {
      const explanation& e = f.why->found[0];
      out << "      " << wrapped(e.text + " (" + e.id + ")", 74, 6) << '\n';
    }
  }
  if (passes < all.size()) out << '\n';
  out << all.size() << " dumps: " << passes << " pass, " << fails << " fail, "
      << (open > 0 ? text(open, " not judged, ") : "")
      << all.size() - passes - fails - open << " unusable\n";
}

namespace {

// Ordered: a reader finds the verdict first.
using json = nlohmann::ordered_json;

json report_of(const verification& v) {
  const outcome result = v.result();
  json all{{"verdict", result == outcome::pass   ? "pass"
                       : result == outcome::fail ? "fail"
                                                 : "not judged"},
           {"file", st::printable(v.file)},
           {"family", info(v.of).name},
           {"profile", name(v.as)},
           {"freedoms", v.freedoms},
           {"ways", v.ways},
           {"replay", v.replay},
           {"nearest", v.nearest},
           {"untested", v.inputs.untested},
           {"suspicious", v.inputs.suspicious},
           {"threshold", v.limit.rms},
           {"max_threshold", v.limit.largest},
           {"bitlike", v.bitlike ? json(*v.bitlike) : json(nullptr)},
           {"reference",
            {{"scalar", scalar_traits<double_double>::name},
             {"digits", scalar_traits<double_double>::digits}}},
           {"notes", v.notes},
           {"tensors", json::array()}};
  for (const verdict& t : v.tensors) {
    const comparison& c = t.errors;
    json row{{"name", t.name},
             {"dtype", st::dtype_name(t.dtype)},
             {"shape", t.shape},
             {"rel_rms", json_number(c.rel_rms)},
             {"unit_rel_rms", json_number(c.unit_rel_rms)},
             {"ratio", json_number(c.ratio)},
             {"replay_distance", json_number(c.replay_distance)},
             {"max_abs", json_number(c.max_abs)},
             {"max_ratio", json_number(c.max_ratio)},
             {"worst_index", position_of(t.shape, c.worst)},
             {"reference_value", json_number(t.reference_value)},
             {"actual_value", json_number(t.actual_value)},
             {"nonfinite", c.actual.nonfinite},
             {"first_nonfinite", nullptr},
             {"nearest", t.nearest},
             {"nearest_distance", json_number(t.nearest_distance)},
             {"verdict", t.fails()  ? "fail"
                         : t.pass() ? "pass"
                                    : "not judged"},
             {"pass", t.pass()}};
    if (!t.where.empty()) row["where"] = t.where;
    if (t.fp32_ratio) row["fp32_ratio"] = json_number(*t.fp32_ratio);
    if (c.actual.nonfinite > 0) {
      row["first_nonfinite"] = position_of(t.shape, c.actual.first_nonfinite);
    }
    if (!t.pass()) row["reason"] = reason(t, v);
    all["tensors"].push_back(std::move(row));
  }
  return all;
}

/// Explanations, and what the best of them leaves.
json diagnosis_of(const diagnosis& found) {
  json all = json::array(), left = json::array();
  for (const explanation& e : found.found) {
    all.push_back({{"id", e.id},
                   {"tensors", e.tensors},
                   {"ratio", e.ratio},
                   {"text", e.text},
                   {"by", name_of(e.by)},
                   {"same_as_first", e.same}});
  }
  for (const unexplained& x : found.left) {
    left.push_back({{"name", x.name}, {"where", x.where}});
  }
  return {{"diagnosis", all}, {"unexplained", left}};
}

json report_of(const judged_file& f) {
  if (f.outcome) {
    json all = report_of(*f.outcome);
    if (f.why) all.update(diagnosis_of(*f.why));
    return all;
  }
  return {{"verdict", "unusable"},
          {"file", st::printable(f.path)},
          {"error", f.error}};
}

}  // namespace

std::string xml_quoted(const std::string& s) {
  std::string q = "\"";
  for (const char c : s) {
    if (c == '&') {
      q += "&amp;";
    } else if (c == '<') {
      q += "&lt;";
    } else if (c == '>') {
      q += "&gt;";
    } else if (c == '"') {
      q += "&quot;";
    } else if (c == '\n') {
      q += "&#10;";
    } else if (c < 0x20 || c > 0x7e) {
      q += st::printable({&c, 1});
    } else {
      q += c;
    }
  }
  return q + "\"";
}

namespace {

void write_suite(std::ostream& out, const judged_file& f) {
  const std::string suite = xml_quoted(
      "carve." + (f.path == "-"
                      ? "stdin"
                      : std::filesystem::path(f.path).stem().string()));
  if (!f.outcome) {
    out << "  <testsuite name=" << suite
        << " tests=\"1\" failures=\"0\" errors=\"1\" skipped=\"0\">\n"
        << "    <testcase classname=" << suite << " name=\"file\">\n"
        << "      <error message=" << xml_quoted(f.error)
        << "/>\n    </testcase>\n  </testsuite>\n";
    return;
  }
  const verification& v = *f.outcome;
  const auto failures =
      std::count_if(v.tensors.begin(), v.tensors.end(),
                    [](const verdict& t) { return t.fails(); });
  const auto skipped =
      std::count_if(v.tensors.begin(), v.tensors.end(),
                    [](const verdict& t) { return !t.fails() && !t.pass(); });
  out << "  <testsuite name=" << suite << " tests=\"" << v.tensors.size()
      << "\" failures=\"" << failures << "\" errors=\"0\" skipped=\"" << skipped
      << "\">\n";
  for (const verdict& t : v.tensors) {
    out << "    <testcase classname=" << suite
        << " name=" << xml_quoted(t.name);
    if (t.pass()) {
      out << "/>\n";
      continue;
    }
    std::string why = reason(t, v);
    if (f.why && !f.why->found.empty()) {
      const explanation& e = f.why->found[0];
      if (std::count(e.tensors.begin(), e.tensors.end(), t.name) > 0) {
        why += "; " + e.text;
      }
    }
    out << ">\n      <" << (t.fails() ? "failure" : "skipped")
        << " message=" << xml_quoted(why) << "/>\n    </testcase>\n";
  }
  out << "  </testsuite>\n";
}

}  // namespace

void write_json(std::ostream& out, const std::vector<judged_file>& all) {
  if (all.size() == 1) {
    out << json_text(report_of(all[0])) << '\n';
    return;
  }
  json files = json::array();
  std::string verdict = "pass";
  for (const judged_file& f : all) {
    files.push_back(report_of(f));
    if (verdict == "fail") continue;
    if (!f.outcome) {
      verdict = "unusable";
    } else if (f.outcome->result() == outcome::fail) {
      verdict = "fail";
    } else if (!f.outcome->pass() && verdict == "pass") {
      verdict = "not judged";
    }
  }
  out << json_text({{"verdict", verdict}, {"dumps", files}}) << '\n';
}

void write_junit(std::ostream& out, const std::vector<judged_file>& all) {
  out << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n";
  for (const judged_file& f : all) write_suite(out, f);
  out << "</testsuites>\n";
}

void write_diagnosis(std::ostream& out, const diagnosis& found,
                     std::size_t width, bool places) {
  if (found.wrong.empty()) {
    out << "no tensor fails: there is nothing to explain\n";
    return;
  }
  const auto line = [&](const std::string& s) {
    out << wrapped(s, width, 4) << '\n';
  };
  for (std::size_t i = 0; i < found.found.size(); ++i) {
    const explanation& e = found.found[i];
    line(text(i + 1, ". ", e.text, " (", e.id, ")"));
  }
  if (found.found.empty()) {
    line(text("none of the ", found.tried,
              " known mistakes that change something explains it"));
  }
  if (places) {
    for (const unexplained& x : found.left) {
      line(text("not explained: ", x.name, ": ", x.where));
    }
  } else if (!found.found.empty() && !found.left.empty()) {
    std::string names;
    for (const unexplained& x : found.left) {
      names += (names.empty() ? "" : ", ") + x.name;
    }
    line("not explained: " + names);
  }
}

void write_diagnosis_json(std::ostream& out, const diagnosis& found) {
  json all{{"wrong", found.wrong}, {"tried", found.tried}};
  all.update(diagnosis_of(found));
  out << json_text(all) << '\n';
}

void write_families(std::ostream& out) {
  constexpr std::string_view axes[] = {"1", "head", "key", "value", "mask"};
  const auto along = [&](axis a) {
    return std::string(axes[static_cast<std::size_t>(a)]);
  };
  text_table table({0, 1, 2, 3, 4, 5});
  table.add({"family", "", "decay", "erase", "write", "source"});
  // The last column is what is left of 80.
  std::size_t left = 80 - 3 * 7 - 2;
  const auto longest = [](auto&& of) {
    std::size_t n = 0;
    for (const family_info& f : families) n = std::max(n, of(f).size());
    return n + 2;
  };
  left -= longest([](const family_info& f) { return f.name; });
  left -= longest([](const family_info& f) { return f.title; }) - 2;
  for (const family_info& f : families) {
    std::istringstream source(wrapped(f.source, left));
    std::string line;
    std::getline(source, line);
    table.add({std::string(f.name), std::string(f.title), along(f.decay),
               f.tied                  ? "beta"
               : f.erase == axis::none ? "none"
                                       : along(f.erase),
               f.tied ? "beta" : along(f.write), line});
    while (std::getline(source, line)) table.add({"", "", "", "", "", line});
  }
  table.write(out);
  out << "\nA gate varies along that axis of the state, or is one number per "
         "head; a mask\nvaries along both; beta is one number per head, erase "
         "and write gate in one.\n1: there is no such gate.\n\n";
  const auto word = [](auto choice, const auto& words) {
    return std::string(words[static_cast<std::size_t>(choice)]);
  };
  constexpr std::string_view addresses[] = {"b * k", "b * p", "r"};
  constexpr std::string_view directions[] = {"k", "y", "b * r"};
  constexpr std::string_view orders[] = {"after", "before"};
  constexpr std::string_view steps[] = {"1", "as given", "erase p, then k",
                                        "last token's, then its own"};
  text_table how({0, 1, 2, 3, 4});
  how.add({"family", "address", "direction", "decay", "sub-steps a token"});
  for (const family_info& f : families) {
    const bool erases = f.erases();
    how.add({std::string(f.name),
             erases ? word(f.address, addresses) : std::string("none"),
             erases ? word(f.direction, directions) : std::string("none"),
             erases ? word(f.erase_reads, orders) : std::string("none"),
             word(f.steps, steps)});
  }
  how.write(out);
  out << "\nWhat is erased is looked up at the address, after or before the "
         "decay, and taken\naway along the direction; a tied gate is b "
         "too.\n\n";
  text_table names({0, 1});
  names.add({"family", "tensors it takes"});
  for (const family_info& f : families) {
    std::string list;
    for (const std::string_view t : required_tensors(f.id)) {
      list += (list.empty() ? "" : " ") + std::string(t);
    }
    names.add({std::string(f.name), list});
  }
  names.write(out);
  out << "\nEach may come with initial_state and cu_seqlens, and with gd, the "
         "log of a decay\nalong the value axis; A_log and dt_bias belong to a "
         "decay activation.\n";
}

void write_tensors(std::ostream& out, std::size_t width) {
  constexpr std::string_view roles[] = {"token", "state", "parameter"};
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](const tensor_row& row, const std::string& of) {
    std::string axes;
    std::string takers;
    std::size_t count = 0;
    axis along = axis::none;
    for (const family_info& f : families) {
      const axis a = row.along(f);
      if (a == axis::none) continue;
      takers += (count++ == 0 ? "" : " ") + std::string(f.name);
      if (static_cast<int>(a) > static_cast<int>(along)) along = a;
    }
    for (const std::string_view letters : axes_of(row, families[0], along)) {
      axes += (axes.empty() ? "[" : ",") + std::string(letters);
    }
    std::string role(roles[static_cast<std::size_t>(row.role)]);
    if (!of.empty()) role = of;
    if (row.optional) role += ", optional";
    rows.push_back({std::string(row.name), axes + "]", role,
                    std::string(row.meaning),
                    count == families.size() ? "all" : takers});
  };
  for (const tensor_row& row : tensors<double>::members()) add(row, "");
  for (const tensor_row& row : outputs<double>::members()) add(row, "output");
  for (const std::vector<std::string>& r : rows) {
    constexpr std::size_t at = 17;
    out << two_columns(r[0], r[1] + ", " + r[2] + ": " + r[3], at, width)
        << two_columns("", "of " + r[4], at, width);
  }
  out << '\n'
      << wrapped(
             "B batch, T tokens, H query and key heads, HV value heads, K "
             "key channels, V value channels, N sequences, rho the inner "
             "rank of the content gate. Axes are the most that a tensor "
             "has: a gate per head lacks the last, gates may have H heads "
             "for HV, states are [N,HV,V,K] if state_v_first, and a "
             "family that is given its sub-steps has Tn tokens. A file "
             "may hold do, dfinal_state and the gradient of each input, "
             "named with a d before it, and cu_seqlens.",
             width)
      << '\n';
}

void write_content(std::ostream& out, const st::file& file) {
  if (!file.metadata().empty()) {
    text_table metadata({0, 1});
    for (const auto& [key, value] : file.metadata()) {
      metadata.add({shortened(st::printable(key), 24), st::printable(value)});
    }
    metadata.write(out);
    out << '\n';
  }
  text_table table({0, 1, 2, 3});
  table.add({"tensor", "is", "dtype", "shape", "least", "largest", "RMS"});
  std::size_t bad = 0;
  for (const std::string& tensor : file.names()) {
    const st::tensor_info& i = file.info(tensor);
    std::vector<double> finite;
    if (st::is_floating(i.dtype)) {
      finite = file.as_double(tensor);
    } else if (i.dtype != st::dtype::u64) {
      for (const std::int64_t e : file.as_int64(tensor)) {
        finite.push_back(static_cast<double>(e));
      }
    }
    bad += std::erase_if(finite, [](double e) { return !std::isfinite(e); });
    std::vector<std::string> row{
        shortened(st::printable(tensor), 24), std::string(role_of(tensor)),
        std::string(st::dtype_name(i.dtype)), st::shape_text(i.shape)};
    if (!finite.empty()) {
      const auto [least, largest] =
          std::minmax_element(finite.begin(), finite.end());
      row.push_back(scientific(*least));
      row.push_back(scientific(*largest));
      row.push_back(scientific(root_mean_square(finite)));
    }
    table.add(std::move(row));
  }
  table.write(out);
  if (bad > 0) out << '\n' << bad << " elements are NaN or infinite\n";
}

}  // namespace carve::program
