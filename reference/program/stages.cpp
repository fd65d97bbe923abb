#include "program/stages.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "carve/batch.hpp"
#include "carve/replay.hpp"
#include "program/console.hpp"
#include "program/json.hpp"
#include "program/locate.hpp"

namespace carve::program {

namespace {

namespace st = safetensors;

/// Sub-steps a token that a chunk has rows for.
index_t substeps_of(const dump& d) {
  const substeps s = info(d.in.family).steps;
  return s == substeps::erase_then_delta || s == substeps::trapezoid
             ? 2
             : d.size.substeps;
}

/// Where stages lie in their tensors.
class stage_layout {
 public:
  stage_layout(const dump& d, index_t C)
      : d_(d), C_(C), n_(substeps_of(d)), chunks_(chunks_of(d, C)) {}

  const std::vector<chunk_place>& chunks() const { return chunks_; }

  /// Whether the decay is one number per head.
  bool narrow(const stage_row& row) const {
    return row.id == stage::G && d_.in.in.g.rank() == 3;
  }

  tensor_shape shape(const stage_row& row) const {
    const dimensions& s = d_.size;
    if (row.axes == "K,V") {
      const auto chunks = static_cast<index_t>(chunks_.size()) / s.B;
      return d_.in.state_v_first ? tensor_shape{s.B, chunks, s.HV, s.V, s.K}
                                 : tensor_shape{s.B, chunks, s.HV, s.K, s.V};
    }
    tensor_shape shape{s.B, s.T * n_, s.HV};
    if (!narrow(row)) {
      shape.push_back(row.axes == "t,s"   ? C_ * n_
                      : row.axes == "t,K" ? s.K
                                          : s.V);
    }
    return shape;
  }

  /// The chunk of a sequence that begins at that token.
  std::size_t chunk_at(index_t sequence, index_t first) const {
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      if (chunks_[c].sequence == sequence && chunks_[c].first == first) {
        return c;
      }
    }
    throw error("chunk: none begins at token ", first, " of sequence ",
                sequence);
  }

  /// Calls `visit(element, i, j)` for each place of the stage in one chunk and
  /// head: its row and column in the chunk's matrix.
  template <class Visit>
  void each_place(const stage_row& row, std::size_t chunk, index_t hv,
                  const Visit& visit) const {
    const chunk_place& c = chunks_[chunk];
    const dimensions& s = d_.size;
    const auto put = [&](index_t at, index_t i, index_t j) {
      visit(static_cast<std::size_t>(at), i, j);
    };
    if (row.axes == "K,V") {
      const index_t at = (static_cast<index_t>(chunk) * s.HV + hv) * s.K * s.V;
      for (index_t i = 0; i < s.K; ++i) {
        for (index_t j = 0; j < s.V; ++j) {
          put(at + (d_.in.state_v_first ? j * s.K + i : i * s.V + j), i, j);
        }
      }
      return;
    }
    const auto& cu = d_.in.cu_seqlens;
    const index_t start = cu.empty() ? c.sequence * s.T
                                     : cu[static_cast<std::size_t>(c.sequence)];
    const bool square = row.axes == "t,s";
    const index_t width = narrow(row)         ? 1
                          : square            ? C_ * n_
                          : row.axes == "t,K" ? s.K
                                              : s.V;
    for (index_t t = 0; t < c.tokens * n_; ++t) {
      const index_t at = (((start + c.first) * n_ + t) * s.HV + hv) * width;
      const index_t columns = !square ? width : row.diagonal ? t + 1 : t;
      for (index_t j = 0; j < columns; ++j) put(at + j, t, j);
    }
  }

  /// Calls `visit(element)` for each place of the stage.
  template <class Visit>
  void each_place(const stage_row& row, const Visit& visit) const {
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      for (index_t hv = 0; hv < d_.size.HV; ++hv) {
        each_place(row, c, hv,
                   [&](std::size_t at, index_t, index_t) { visit(at); });
      }
    }
  }

  /// The chunk of a row of a token tensor, or of a state.
  std::size_t chunk_of_row(const stage_row& row, index_t b, index_t t) const {
    const auto each =
        static_cast<index_t>(chunks_.size()) / std::max<index_t>(d_.size.B, 1);
    if (row.axes == "K,V") return static_cast<std::size_t>(b * each + t);
    const auto& cu = d_.in.cu_seqlens;
    std::size_t found = 0;
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      const auto n = static_cast<std::size_t>(chunks_[c].sequence);
      const index_t first = (cu.empty() ? 0 : cu[n]) + chunks_[c].first;
      if ((!cu.empty() || chunks_[c].sequence == b) && first <= t / n_) {
        found = c;
      }
    }
    return found;
  }

 private:
  const dump& d_;
  index_t C_, n_;
  std::vector<chunk_place> chunks_;
};

/// The stages of every head under a policy.
template <class T, class Policy>
std::map<stage, tensor<T>> record(const problem<T>& p,
                                  const outputs<T>& cotangents,
                                  const stage_layout& layout, index_t C,
                                  const Policy& policy,
                                  const run_options& run) {
  std::map<stage, tensor<T>> found;
  for (const stage_row& row : stage_table) {
    found[row.id] = tensor<T>(layout.shape(row));
  }
  // Those that are never shown; written by all heads alike.
  std::array<std::atomic<bool>, stage_table.size()> shown{};
  const batch<T> heads(p, run);
  const dimensions n = heads.size();
  const bool back = cotangents.o.present() || cotangents.final_state.present();
  parallel_for(n.N * n.HV, run, [&](index_t task) {
    const index_t s = task / n.HV, hv = task % n.HV;
    const head<T> h = heads.head_of(s, hv);
    if (h.tokens == 0) return;
    const auto take = [&](stage at, const head<T>& chunk, const matrix<T>& m) {
      const index_t first = (chunk.q.data - h.q.data) / h.q.token;
      const auto row = static_cast<std::size_t>(at);
      shown[row] = true;
      layout.each_place(stage_table[row], layout.chunk_at(s, first), hv,
                        [&](std::size_t to, index_t i, index_t j) {
                          found.find(at)->second.data[to] = m(i, j);
                        });
    };
    using recorder = recording_policy<T, Policy>;
    const chunked_solver<recorder> solver{C, recorder(policy, take)};
    const bool gated = info(p.family).content_gate;
    if (!back) {
      if (gated) {
        content_forward(h, heads.gate_of(hv), solver, rows<T>{},
                        state_view<T>{});
      } else {
        solver.forward(h, rows<T>{}, state_view<T>{});
      }
      return;
    }
    const head_cotangents<T> in{
        heads.template view<const T>(cotangents.o, s, hv),
        heads.template states<const T>(cotangents.final_state, s, hv)};
    if (gated) {
      content_backward(h, heads.gate_of(hv), solver, in, head_gradients<T>{},
                       content_gate_gradients<T>{});
    } else {
      solver.backward(h, in, head_gradients<T>{});
    }
  });
  for (const stage_row& row : stage_table) {
    if (!shown[static_cast<std::size_t>(row.id)]) found.erase(row.id);
  }
  return found;
}

template <class T, class Policy>
std::map<stage, tensor<double>> record_as(const dump& d, const problem<T>& p,
                                          const stage_layout& layout, index_t C,
                                          const Policy& policy,
                                          const run_options& run) {
  const auto in = [](double x) { return static_cast<T>(x); };
  std::map<stage, tensor<double>> wide;
  for (const auto& [id, x] : record(p, convert_outputs<T>(d.cotangents, in),
                                    layout, C, policy, run)) {
    wide[id] = convert<double>(
        x, [](const T& e) { return scalar_traits<T>::to_double(e); });
  }
  return wide;
}

/// The stages by one sound way.
std::map<stage, tensor<double>> record_by(const dump& d, const way& w,
                                          const stage_layout& layout, index_t C,
                                          const run_options& run) {
  if (w.draw != 0) {
    const auto in = [&](double x) { return drawn(x, w.draw, w.exp); };
    std::map<stage, tensor<double>> wide;
    for (const auto& [id, x] : record(convert_problem<drawn>(d.in, in),
                                      convert_outputs<drawn>(d.cotangents, in),
                                      layout, C, difference_policy{}, run)) {
      wide[id] = convert<double>(
          x, [](const drawn& e) { return scalar_traits<drawn>::to_double(e); });
    }
    return wide;
  }
  problem<float> p = convert_problem<float>(
      d.in, [](double x) { return static_cast<float>(x); });
  if (w.stored) p = with_stored_activations(p, w.rounding.operand);
  return record_as(d, p, layout, C, operand_policy(w.rounding), run);
}

/// The numbers in the places of a stage.
template <class T>
std::vector<T> in_places(const std::vector<T>& x,
                         const std::vector<bool>& place) {
  std::vector<T> y;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (place[i]) y.push_back(x[i]);
  }
  return y;
}

/// What the file calls the stage.
const std::string* name_in_file(const dump& d, const stage_row& row) {
  const auto at = d.file_names.find(row.name);
  return at == d.file_names.end() ? nullptr : &at->second;
}

/// A shape in the file as [B,T,HV,...].
tensor_shape in_axes(const dump& d, const std::vector<std::int64_t>& shape) {
  tensor_shape s(shape.begin(), shape.end());
  if (d.no_batch) s.insert(s.begin(), 1);
  if (d.heads_first && s.size() >= 3) std::swap(s[1], s[2]);
  return s;
}

}  // namespace

std::vector<chunk_place> chunks_of(const dump& d, index_t C) {
  if (C < 1) throw error("chunk: expected a length of at least 1, got ", C);
  std::vector<chunk_place> all;
  for (index_t n = 0; n < d.size.N; ++n) {
    const index_t T = length_of(d, n);
    const index_t window =
        info(d.in.family).content_gate ? d.in.window : std::max<index_t>(T, 1);
    for (index_t w = 0; w < T; w += window) {
      for (index_t t = w; t < std::min(w + window, T); t += C) {
        all.push_back({n, t, std::min({C, w + window - t, T - t})});
      }
    }
  }
  return all;
}

std::vector<staged_tensor> stages_of(const dump& d, index_t C,
                                     const run_settings& run) {
  const stage_layout layout(d, C);
  run_options o{run.threads, {}};
  const auto exact_in = [](double x) { return double_double(x); };
  const std::map<stage, tensor<double_double>> exact =
      record(convert_problem<double_double>(d.in, exact_in),
             convert_outputs<double_double>(d.cotangents, exact_in), layout, C,
             exact_policy{}, o);
  std::vector<staged_tensor> all;
  for (const stage_row& row : stage_table) {
    const auto at = exact.find(row.id);
    if (at == exact.end()) continue;
    staged_tensor x{row, at->second, {}, {}, {}};
    x.place.assign(x.exact.data.size(), false);
    layout.each_place(row, [&](std::size_t i) { x.place[i] = true; });
    all.push_back(std::move(x));
  }
  kernel_facts facts;
  facts.chunk = C;
  dump inputs = d;
  inputs.judged.clear();
  const std::vector<way> ways = ways_of(inputs, facts);
  const auto widen = [](staged_tensor& x, const std::vector<double>& values) {
    const tensor_error e =
        measure(in_places(values, x.place), in_places(x.exact.data, x.place));
    x.unit.rms = std::max(x.unit.rms, e.rms);
    x.unit.largest = std::max(x.unit.largest, e.largest);
  };
  for (std::size_t w = 0; w < ways.size(); ++w) {
    auto results = record_by(d, ways[w], layout, C, o);
    if (run.progress) {
      run.progress("sound ways", static_cast<index_t>(w + 1),
                   static_cast<index_t>(ways.size()));
    }
    for (staged_tensor& x : all) {
      tensor<double>& values = results.at(x.row.id);
      widen(x, values.data);
      if (w == 0) x.replayed = std::move(values);
    }
  }
  // A stage is an operand of the next: it may be kept in that format.
  const format operand = ways.front().rounding.operand;
  for (staged_tensor& x : all) {
    std::vector<double> stored;
    for (const double_double& e : x.exact.data) {
      stored.push_back(rounded(operand, e));
    }
    widen(x, stored);
  }
  return all;
}

std::optional<index_t> chunk_of(const dump& d, const st::file& file) {
  for (const stage_row& row : stage_table) {
    const std::string* name = name_in_file(d, row);
    if (!name || row.axes != "t,s") continue;
    const auto& shape = file.info(*name).shape;
    if (!shape.empty() && shape.back() % substeps_of(d) == 0) {
      return std::max<index_t>(shape.back() / substeps_of(d), 1);
    }
  }
  const auto& metadata = file.metadata();
  const auto at = metadata.find("chunk");
  if (at == metadata.end()) return {};
  const index_t C = std::atol(at->second.c_str());
  if (C < 1) {
    throw error("chunk: expected a length of at least 1, got \"",
                st::printable(at->second), "\"");
  }
  return C;
}

outcome stage_verdicts::result() const {
  if (first_wrong) return outcome::fail;
  const bool all = std::all_of(stages.begin(), stages.end(),
                               [](auto& v) { return v.errors.pass(); });
  return all ? outcome::pass : outcome::not_judged;
}

stage_verdicts judge_stages(const dump& d, const st::file& file, index_t C,
                            const std::vector<staged_tensor>& all) {
  stage_verdicts v;
  v.chunk = C;
  const stage_layout layout(d, C);
  std::pair<bool, std::pair<index_t, std::size_t>> earliest;
  for (const stage_row& row : stage_table) {
    const std::string* name = name_in_file(d, row);
    if (!name) continue;
    const auto x = std::find_if(all.begin(), all.end(), [&row](const auto& s) {
      return s.row.id == row.id;
    });
    if (x == all.end()) {
      throw error(row.name, ": the dump gives no such stage",
                  row.backward && !d.has_cotangents()
                      ? "; it needs do or dfinal_state"
                      : "");
    }
    const st::tensor_info& info = file.info(*name);
    if (!st::format_of(info.dtype)) {
      throw error(row.name, ": expected F64, F32, F16 or BF16, got ",
                  st::dtype_name(info.dtype));
    }
    tensor<double> values({info.shape.begin(), info.shape.end()},
                          file.as_double(*name));
    if (d.no_batch) values.shape.insert(values.shape.begin(), 1);
    if (d.heads_first && values.rank() >= 3) values = exchange_axes(values);
    if (values.shape != x->exact.shape) {
      throw error(row.name, ": expected ", x->exact.shape, " for chunks of ", C,
                  ", got ", in_axes(d, info.shape));
    }
    stage_verdict verdict{row, {}, {}, {}};
    verdict.errors = compare(in_places(x->exact.data, x->place),
                             in_places(values.data, x->place), x->unit,
                             *st::format_of(info.dtype));
    if (verdict.errors.fails()) {
      // What is no place of the stage is not looked at.
      std::vector<double_double> exact = x->exact.data;
      std::vector<double> actual = values.data;
      for (std::size_t i = 0; i < actual.size(); ++i) {
        if (!x->place[i]) exact[i] = 0.0, actual[i] = 0;
      }
      const error_map map = map_errors(values.shape, 1, actual, exact);
      error_map sound = map;
      std::fill(sound.error.begin(), sound.error.end(), x->unit.rms);
      const location l =
          locate(map, sound, negligible_error(*st::format_of(info.dtype)),
                 actual, exact);
      verdict.where = l.text(map);
      std::optional<std::size_t> chunk;
      for (const wrong_tokens& w : l.outside) {
        for (const index_t t : {w.first, w.last}) {
          const std::size_t c = layout.chunk_of_row(row, w.b, t);
          const auto order = [&](std::size_t i) {
            const index_t first = layout.chunks()[i].first;
            return row.backward ? -first : first;
          };
          if (!chunk || order(c) < order(*chunk)) chunk = c;
        }
      }
      if (chunk) verdict.chunk = layout.chunks()[*chunk];
      // The way there comes before the way back.
      const index_t first = verdict.chunk ? verdict.chunk->first : 0;
      const std::pair<bool, std::pair<index_t, std::size_t>> when{
          row.backward,
          {row.backward ? -first : first, static_cast<std::size_t>(row.id)}};
      if (!v.first_wrong || when < earliest) {
        earliest = when;
        v.first_wrong = v.stages.size();
      }
    }
    v.stages.push_back(std::move(verdict));
  }
  return v;
}

void write_stages(std::ostream& out, const stage_verdicts& v) {
  char line[160];
  const auto row = [&](const std::string& stage, const char* error,
                       const char* ratio, const char* largest,
                       const std::string& verdict) {
    std::snprintf(line, sizeof(line), "%-6s %9s %8s %8s  %s", stage.c_str(),
                  error, ratio, largest, verdict.c_str());
    std::string text = line;
    text.erase(text.find_last_not_of(' ') + 1);
    out << text << '\n';
  };
  const auto number = [](const char* form, double x) {
    char buffer[32];
    std::snprintf(buffer, sizeof(buffer), form, x);
    return std::string(buffer);
  };
  const auto ratio = [&](double x) {
    return number(x < 999.995 || !std::isfinite(x) ? "%.2f" : "%.1e", x);
  };
  out << "stages of chunks of " << v.chunk << " tokens\n\n";
  row("", "RMS", "RMS", "largest", "");
  row("stage", "error", "ratio", "ratio", "verdict");
  for (const stage_verdict& s : v.stages) {
    const comparison& c = s.errors;
    row(std::string(s.row.name), number("%.2e", c.rel_rms).c_str(),
        ratio(c.ratio).c_str(), ratio(c.max_ratio).c_str(),
        c.fails()  ? "FAIL"
        : c.pass() ? "pass"
                   : "not judged");
  }
  out << '\n';
  if (!v.first_wrong) {
    out << (v.result() == outcome::pass ? "pass  all stages are sound\n"
                                        : "no stage is wrong\n");
    return;
  }
  const stage_verdict& s = v.stages[*v.first_wrong];
  std::string first =
      text("FAIL  the first wrong stage is ", s.row.name, ", ", s.row.meaning);
  if (s.chunk) {
    first += text(", in the chunk of tokens ", s.chunk->first, " to ",
                  s.chunk->first + s.chunk->tokens - 1);
    if (s.chunk->sequence > 0)
      first += text(" of sequence ", s.chunk->sequence);
  }
  out << wrapped(first, 80, 6) << '\n'
      << "      " << wrapped(s.where, 74, 6) << '\n';
}

void write_stages_json(std::ostream& out, const stage_verdicts& v) {
  using json = nlohmann::ordered_json;
  const auto words = [](bool fails, bool passes) {
    return fails ? "fail" : passes ? "pass" : "not judged";
  };
  const outcome is = v.result();
  json all{
      {"verdict", words(is == outcome::fail, is == outcome::pass)},
      {"chunk", v.chunk},
      {"first_wrong",
       v.first_wrong ? json(v.stages[*v.first_wrong].row.name) : json(nullptr)},
      {"stages", json::array()}};
  for (const stage_verdict& s : v.stages) {
    json row{{"name", s.row.name},
             {"meaning", s.row.meaning},
             {"rel_rms", json_number(s.errors.rel_rms)},
             {"ratio", json_number(s.errors.ratio)},
             {"max_ratio", json_number(s.errors.max_ratio)},
             {"verdict", words(s.errors.fails(), s.errors.pass())}};
    if (!s.where.empty()) row["where"] = s.where;
    if (s.chunk) {
      row["first_wrong_chunk"] = {{"sequence", s.chunk->sequence},
                                  {"first", s.chunk->first},
                                  {"tokens", s.chunk->tokens}};
    }
    all["stages"].push_back(std::move(row));
  }
  out << json_text(all) << '\n';
}

st::writer stages_file(const dump& d, const st::file& file,
                       const settings& given, index_t C,
                       const std::vector<staged_tensor>& all) {
  st::writer w;
  for (const auto& [key, value] : file.metadata()) w.set_metadata(key, value);
  for (const auto& [key, value] : given) w.set_metadata(key, value);
  w.set_metadata("chunk", std::to_string(C));
  for (const auto& [ours, name] : d.file_names) {
    const std::string_view role = role_of(ours);
    if (role != "input" && role != "cotangent") continue;
    const st::tensor_info& i = file.info(name);
    w.add_bytes(name, i.dtype, i.shape, file.bytes(name));
  }
  const auto add = [&](const std::string& name, st::dtype as,
                       tensor<double> x) {
    if (d.heads_first) x = exchange_axes(x);
    if (d.no_batch) x.shape.erase(x.shape.begin());
    w.add(name, as, {x.shape.begin(), x.shape.end()}, x.data);
  };
  for (const staged_tensor& x : all) {
    const std::string name(x.row.name);
    add(name, st::dtype::f64, convert<double>(x.exact, [](double_double e) {
          return static_cast<double>(e);
        }));
    add("replayed." + name, st::dtype::f32, x.replayed);
  }
  return w;
}

}  // namespace carve::program
