/// @file
/// Does every relation hold for a sound kernel, fail for one that breaks it,
/// and refuse dumps that do not fit?
#include <sstream>

#include "catch.hpp"
#include "program/relation_kernels.hpp"

using namespace relation_kernels;
using kind = agreement::kind;

namespace {

relation_outcome outcome_of(
    const std::string& name, const fixtures::editable& file, const kernel& k,
    const std::function<carve::index_t(const state_pool&, carve::index_t)>&
        write_pool = {}) {
  const relation& r = relation_named(name);
  const relation_outcome found =
      relate(r, run_plan(r, file, k, write_pool), {}, {1, {}});
  std::ostringstream text;
  write_relation(text, found);
  UNSCOPED_INFO(text.str());
  return found;
}

bool contains(const std::string& text, const std::string& part) {
  UNSCOPED_INFO(text);
  return text.find(part) != std::string::npos;
}

const agreement& named(const relation_outcome& r, const std::string& tensor) {
  for (const agreement& a : r.tensors) {
    if (a.tensor == tensor) return a;
  }
  FAIL(tensor + " was not compared");
  return r.tensors.front();
}

std::size_t compared(const relation_outcome& r, const std::string& tensor) {
  for (const agreement& a : r.tensors) {
    if (a.tensor == tensor) return a.compared;
  }
  return 0;
}

judged_tensor& judged(std::vector<judged_tensor>& all,
                      const std::string& name) {
  for (judged_tensor& x : all) {
    if (x.name == name) return x;
  }
  FAIL(name + " is no output");
  return all.front();
}

/// Heads in groups, two sequences.
fixtures::editable ordinary() { return inputs("gdn2", 2, 40, 2, 4, 8, 6); }

/// The same packed, one sequence empty.
fixtures::editable packed() {
  fixtures::editable e = inputs("gdn", 1, 70, 2, 4, 8, 6);
  e.tensors["cu_seqlens"] = {fixtures::st::dtype::i64, {4}, {0, 33, 33, 70}};
  for (const char* name : {"initial_state", "dfinal_state"}) {
    auto& x = e.tensors[name];
    x.shape[0] = 3;
    const std::vector<double> one = x.values;
    for (int i = 0; i < 2; ++i) {
      x.values.insert(x.values.end(), one.begin(), one.end());
    }
  }
  return e;
}

/// Attention in blocks of 16, the decays in a block referenced to its row
/// `anchor`.
kernel anchored_gla(carve::index_t anchor) {
  return [anchor](const call& c) {
    const dump& d = c.d;
    const auto [B, T, HV, K, V] =
        std::tuple(d.size.B, d.size.T, d.size.HV, d.size.K, d.size.V);
    REQUIRE(d.size.H == HV);
    carve::gradient_result<double> r;
    r.out.o = carve::tensor<double>({B, T, HV, V});
    r.out.final_state = d.in.in.initial_state;
    const auto scale =
        static_cast<float>(1 / std::sqrt(static_cast<double>(K)));
    for (carve::index_t n = 0; n < B * HV; ++n) {
      const carve::index_t b = n / HV, h = n % HV;
      const auto at = [&](const carve::tensor<double>& x, carve::index_t t,
                          carve::index_t i) {
        return static_cast<float>(x.data[static_cast<std::size_t>(
            ((b * T + t) * HV + h) * x.dim(3) + i)]);
      };
      std::vector<float> S;
      const auto first = r.out.final_state.data.begin() + n * K * V;
      for (carve::index_t i = 0; i < K * V; ++i) {
        S.push_back(static_cast<float>(first[i]));
      }
      for (carve::index_t t0 = 0; t0 < T; t0 += 16) {
        const carve::index_t m = std::min<carve::index_t>(16, T - t0);
        std::vector<std::vector<float>> G(static_cast<std::size_t>(m));
        for (carve::index_t t = 0; t < m; ++t) {
          for (carve::index_t i = 0; i < K; ++i) {
            const float before = t > 0 ? G[t - 1][i] : 0.0f;
            G[t].push_back(before + at(d.in.in.g, t0 + t, i));
          }
        }
        const auto& A = G[std::min(anchor, m - 1)];
        for (carve::index_t t = 0; t < m; ++t) {
          for (carve::index_t j = 0; j < V; ++j) {
            float o = 0;
            for (carve::index_t i = 0; i < K; ++i) {
              o += at(d.in.in.q, t0 + t, i) * std::exp(G[t][i]) * S[i * V + j];
            }
            for (carve::index_t s = 0; s <= t; ++s) {
              float score = 0;
              for (carve::index_t i = 0; i < K; ++i) {
                score += at(d.in.in.q, t0 + t, i) * std::exp(G[t][i] - A[i]) *
                         (at(d.in.in.k, t0 + s, i) * std::exp(A[i] - G[s][i]));
              }
              o += score * at(d.in.in.v, t0 + s, j);
            }
            r.out.o.data[static_cast<std::size_t>(
                ((b * T + t0 + t) * HV + h) * V + j)] =
                static_cast<double>(scale * o);
          }
        }
        for (carve::index_t i = 0; i < K; ++i) {
          for (carve::index_t j = 0; j < V; ++j) {
            float x = std::exp(G[m - 1][i]) * S[i * V + j];
            for (carve::index_t s = 0; s < m; ++s) {
              x += at(d.in.in.k, t0 + s, i) * std::exp(G[m - 1][i] - G[s][i]) *
                   at(d.in.in.v, t0 + s, j);
            }
            S[i * V + j] = x;
          }
        }
      }
      std::copy(S.begin(), S.end(), first);
    }
    return stored(d, r);
  };
}

}  // namespace

TEST_CASE("every relation holds for a sound kernel, in a batch and packed") {
  for (const relation& r : relations()) {
    for (const fixtures::editable& file : {ordinary(), packed()}) {
      if (r.name == "rollback" && file.tensors.contains("cu_seqlens")) continue;
      CAPTURE(r.name, file.metadata.at("family"));
      const relation_outcome found =
          outcome_of(std::string(r.name), file, sound());
      REQUIRE(found.is() <= kind::within_unit);
      REQUIRE(compared(found, "o") > 0);
      // Of those the order of sums is another, or the shape of a product.
      if (r.name != "split" && r.name != "decode" && r.name != "permute" &&
          r.name != "pack") {
        REQUIRE(found.is() == kind::same_bits);
      }
    }
  }
}

TEST_CASE("gradients are compared where the relation implies theirs") {
  const std::map<std::string, std::vector<std::string>> with{
      {"repeat", {"dq", "dg", "dw", "dinitial_state"}},
      {"alone", {"dq", "dg", "dw", "dinitial_state"}},
      {"pack", {"dq", "dg", "dw", "dinitial_state"}},
      {"permute", {"dq", "dg", "dw", "dinitial_state"}}};
  for (const relation& r : relations()) {
    const auto at = with.find(std::string(r.name));
    const relation_outcome found =
        outcome_of(std::string(r.name), ordinary(), sound());
    CAPTURE(r.name);
    if (at == with.end()) {
      REQUIRE(compared(found, "dq") == 0);
      continue;
    }
    for (const std::string& name : at->second) REQUIRE(compared(found, name));
  }
}

TEST_CASE("gradients of parameters are compared where sums are the same") {
  const fixtures::editable file = inputs("carve", 2, 40, 2, 2, 8, 6);
  for (const char* name : {"repeat", "permute", "pack"}) {
    CAPTURE(name);
    REQUIRE(compared(outcome_of(name, file, sound()), "dw_up") > 0);
  }
  REQUIRE(compared(outcome_of("alone", file, sound()), "dw_up") == 0);
}

TEST_CASE("repeat: a kernel whose sums change order, and one with a race") {
  int runs = 0;
  const kernel reordered = [&](const call& c) {
    return replayed(c.d, runs++ == 0 ? 64 : 16);
  };
  const relation_outcome near = outcome_of("repeat", ordinary(), reordered);
  REQUIRE(near.is() == kind::within_unit);
  REQUIRE(named(near, "o").differing > 0);
  REQUIRE(named(near, "o").differing < named(near, "o").compared);
  REQUIRE(*named(near, "o").ratio > 0);

  runs = 0;
  const kernel racing = [&](const call& c) {
    auto out = replayed(c.d);
    // [2,40,4,6]: entry 1, token 17, head 2.
    if (runs++ > 0) {
      judged(out, "o").values.data[((40 + 17) * 4 + 2) * 6 + 3] += 0.5;
    }
    return out;
  };
  const relation_outcome far = outcome_of("repeat", ordinary(), racing);
  REQUIRE(far.is() == kind::apart);
  const agreement& o = named(far, "o");
  REQUIRE(o.differing == 1);
  REQUIRE(o.first == "sequence 1, token 17, head 2");
  REQUIRE(contains(o.where, "entry 1 head 2, token 17"));
  REQUIRE(named(far, "dk").is == kind::same_bits);
}

TEST_CASE("causal: decays anchored at a later row of the block") {
  const fixtures::editable file = inputs("gla", 2, 40, 2, 2, 8, 6);
  const relation_outcome first = outcome_of("causal", file, anchored_gla(0));
  REQUIRE(first.is() == kind::same_bits);
  // 21 of 40 tokens of 2 entries and heads.
  REQUIRE(named(first, "o").compared == 2 * 21 * 2 * 6);
  const relation_outcome last = outcome_of("causal", file, anchored_gla(15));
  REQUIRE(last.is() == kind::apart);
  REQUIRE(contains(named(last, "o").first, "token 16"));
}

TEST_CASE("split: a kernel that forgets its start state") {
  const kernel forgetful = [](const call& c) {
    dump d = c.d;
    d.in.in.initial_state = {};
    return replayed(d);
  };
  const relation_outcome found = outcome_of("split", ordinary(), forgetful);
  REQUIRE(found.is() == kind::apart);
  // The first piece is right: it is cut after 13 tokens.
  REQUIRE(contains(named(found, "o").first, "token 13"));
}

TEST_CASE("decode: a step that does not decay") {
  const kernel undecayed = [](const call& c) {
    dump d = c.d;
    if (d.size.T == 1)
      std::fill(d.in.in.g.data.begin(), d.in.in.g.data.end(), 0);
    return replayed(d);
  };
  const relation_outcome found = outcome_of("decode", ordinary(), undecayed);
  REQUIRE(found.is() == kind::apart);
  REQUIRE(contains(named(found, "o").first, "token 36"));
}

TEST_CASE("alone: a batch-dependent split, and a row that reads another's") {
  const kernel dependent = [](const call& c) {
    return replayed(c.d, c.d.size.N > 1 ? 16 : 64);
  };
  const relation_outcome near = outcome_of("alone", ordinary(), dependent);
  REQUIRE(near.is() == kind::within_unit);
  REQUIRE(named(near, "o").differing > 0);

  const kernel row_zero = [](const call& c) {
    dump d = c.d;
    auto& g = d.in.in.g.data;
    const std::size_t entry = g.size() / static_cast<std::size_t>(d.size.B);
    for (std::size_t i = entry; i < g.size(); ++i) g[i] = g[i % entry];
    return replayed(d);
  };
  REQUIRE(outcome_of("alone", ordinary(), row_zero).is() == kind::apart);
}

TEST_CASE("pack: a kernel that does not look at the offsets") {
  const kernel blind = [](const call& c) {
    if (c.d.in.cu_seqlens.empty()) return replayed(c.d);
    dump one = c.d;
    one.in.cu_seqlens.clear();
    one.in.in.initial_state.shape[0] = 1;
    one.in.in.initial_state.data.resize(one.in.in.initial_state.data.size() /
                                        static_cast<std::size_t>(c.d.size.N));
    one.cotangents = {};
    one.size = carve::check(one.in);
    auto out = replayed(one);
    std::erase_if(out, [](const auto& x) { return x.name != "o"; });
    return out;
  };
  const relation_outcome found = outcome_of("pack", ordinary(), blind);
  REQUIRE(found.is() == kind::apart);
  REQUIRE(contains(named(found, "o").first, "sequence 1, token 0"));
}

TEST_CASE("permute: a kernel whose heads all read the first one's gate") {
  const kernel first_head = [](const call& c) {
    dump d = c.d;
    auto& w = d.in.in.w;
    const auto row = static_cast<std::size_t>(w.dim(2) * w.dim(3));
    const auto width = static_cast<std::size_t>(w.dim(3));
    for (std::size_t i = 0; i < w.data.size(); ++i) {
      w.data[i] = w.data[i / row * row + i % width];
    }
    return replayed(d);
  };
  const relation_outcome found = outcome_of("permute", ordinary(), first_head);
  REQUIRE(found.is() == kind::apart);
  // Sequences alone were permuted in B: that, it survives.
  REQUIRE(named(found, "o").here == 1);
  REQUIRE(named(found, "o").is == kind::same_bits);
}

TEST_CASE("rollback: a state that the drafts have changed") {
  const kernel keeping = [](const call& c) { return replayed(c.d); };
  const relation_outcome found = outcome_of("rollback", ordinary(), keeping);
  REQUIRE(found.is() == kind::apart);
  REQUIRE(named(found, "o").is == kind::same_bits);
  REQUIRE(named(found, "final_state").is == kind::apart);
}

TEST_CASE("pool: states that go to the wrong rows") {
  const relation_outcome found =
      outcome_of("pool", ordinary(), sound(),
                 [](const state_pool&, carve::index_t n) { return n; });
  REQUIRE(found.is() == kind::apart);
  REQUIRE(named(found, "o").is == kind::same_bits);
  REQUIRE(named(found, "final_state").is == kind::apart);
  REQUIRE(named(found, "other rows").is == kind::apart);
  REQUIRE(named(found, "other rows").first == "row 0 of the pool");
}

TEST_CASE("dumps that do not fit a relation are refused, naming what differs") {
  const auto complaint =
      [](const std::string& name,
         const std::function<void(std::vector<related_dump>&)>& change) {
        const relation& r = relation_named(name);
        std::vector<related_dump> all = run_plan(r, ordinary(), sound());
        change(all);
        return fixtures::message([&] { relate(r, all, {}, {1, {}}); });
      };
  REQUIRE(complaint("repeat",
                    [](auto& all) {
                      // [2,40,2,8]: entry 1, token 2, head 1.
                      all[1].d.in.in.k.data[((40 + 2) * 2 + 1) * 8] += 1;
                    }) ==
          "k: expected the same numbers in A at sequence 1, token 2, head 1 "
          "and in B at sequence 1, token 2, head 1, got others");
  REQUIRE(complaint("repeat",
                    [](auto& all) { all[1].d.cotangents.o.data[0] += 1; }) ==
          "do: expected the same numbers in A at sequence 0, token 0, head 0 "
          "and in B at sequence 0, token 0, head 0, got others");
  REQUIRE(complaint("repeat", [](auto& all) { all[1].d.in.scale = 2; }) ==
          "scale: expected the same in A and B, got 0 and 2");
  REQUIRE(complaint("repeat", [](auto& all) { all.pop_back(); }) ==
          "repeat: expected runs on the same inputs, got 1 dump");
  REQUIRE(complaint("repeat", [](auto& all) { all[1].d.judged.clear(); }) ==
          "outputs: expected o, final_state or gradients in all dumps, got "
          "none that could be compared");
  REQUIRE(complaint("repeat", [](auto& all) {
            all[1].d.judged[0].dtype = fixtures::st::dtype::f32;
          }) == "o: expected BF16 in B as in A, got F32");
  REQUIRE(complaint("causal", [](auto& all) { all[1] = all[0]; }) ==
          "inputs: expected other ones in B than in A from some token on, got "
          "the same (repeat is for these)");
  REQUIRE(complaint("causal",
                    [](auto& all) {
                      for (double& x : all[1].d.in.in.q.data) x += 1;
                    }) ==
          "inputs: expected the same in A and B before some token, got others "
          "in the first");
  REQUIRE(contains(
      complaint("causal",
                [](auto& all) { all[1].d.in.in.initial_state.data[0] += 1; }),
      "initial_state: expected the same numbers"));
  REQUIRE(complaint("split", [](auto& all) { all.pop_back(); }) ==
          "sequence 0: expected pieces of 40 tokens in all, got 23 up to C");
  REQUIRE(
      complaint("split",
                [](auto& all) { all[2].d.in.in.initial_state.data[7] += 1; }) ==
      "initial_state: expected final_state of B in C, got another number "
      "at [0,0,1,1]");
  REQUIRE(complaint("split",
                    [](auto& all) { all[2].d.in.in.initial_state = {}; }) ==
          "initial_state: missing in C; expected final_state of B as "
          "initial_state of C");
  REQUIRE(complaint("decode",
                    [](auto& all) {
                      all = run_plan(relation_named("split"), ordinary(),
                                     sound());
                    }) ==
          "sequence 0: expected one token in C, got 10 (split is for longer "
          "pieces)");
  REQUIRE(complaint("alone",
                    [](auto& all) { all.resize(1), all.push_back(all[0]); }) ==
          "sequences: expected fewer sequences or heads in B than in A, got 3 "
          "of 4 heads and in A 3 of 4");
  REQUIRE(complaint("alone",
                    [](auto& all) {
                      all.resize(2);
                      all[1].d.in.in.v.data[3] += 1;
                    }) ==
          "inputs: expected those of sequence 0, head 0 of B in A, got others; "
          "the nearest, sequence 2, head 0, differs in v");
  REQUIRE(complaint("permute", [](auto& all) { all[1] = all[0]; }) ==
          "inputs: expected those of A in another order in B, got the same "
          "order (repeat is for these)");
  REQUIRE(complaint("pack", [](auto& all) { all[1] = all[0]; }) ==
          "cu_seqlens: expected in one of the dumps, the packed one, got it in "
          "both");
  REQUIRE(complaint("rollback", [](auto& all) { all[1] = all[0]; }) ==
          "tokens: expected more in B than in A, the rejected drafts, got as "
          "many");
  REQUIRE(complaint("rollback", [](auto& all) { std::swap(all[0], all[1]); }) ==
          "sequence 0: expected the 40 accepted tokens of A and drafts after "
          "them in B, got 37 tokens");
  REQUIRE(complaint("pool", [](auto& all) { all[1] = all[0]; }) ==
          "state_indices: missing in both dumps; expected the rows of the "
          "sequences in the pool [N]");
  REQUIRE(contains(fixtures::message([] { relation_named("same"); }),
                   "relation: expected one of"));
}

TEST_CASE("a state does not hold all of the past of every family") {
  const fixtures::editable file = inputs("carve", 1, 40, 2, 2, 8, 6);
  for (const char* name : {"split", "decode"}) {
    const relation& r = relation_named(name);
    REQUIRE(fixtures::message([&] {
              relate(r, run_plan(r, file, sound()), {}, {1, {}});
            }) ==
            "family: expected one whose state holds all of the past, got "
            "carve, whose gate reads earlier outputs");
  }
}

TEST_CASE("a row of a pool that is not there, or that two sequences share") {
  fixtures::editable e = ordinary();
  auto& pool = e.tensors["initial_state"];
  pool.shape[0] = 3;
  const std::vector<double> one(pool.values.begin(),
                                pool.values.begin() + 4 * 8 * 6);
  pool.values.insert(pool.values.end(), one.begin(), one.end());
  const auto complaint = [&](double row) {
    e.tensors["state_indices"] = {fixtures::st::dtype::i32, {2}, {row, 1}};
    e.tensors["state_indices"].dtype = fixtures::st::dtype::i64;
    const auto bytes = e.writer().serialize();
    return fixtures::message(
        [&] { read_related(fixtures::st::file::parse(bytes)); });
  };
  REQUIRE(complaint(2).empty());
  REQUIRE(complaint(3) ==
          "state_indices: expected rows 0 to 2 of initial_state, got 3 for "
          "sequence 0");
  REQUIRE(complaint(1) ==
          "state_indices: expected a row for each sequence, got 1 twice");
}

TEST_CASE("padding before the tokens counts where it leaves the state alone") {
  const relation& r = relation_named("pack");
  std::vector<related_dump> all = run_plan(r, ordinary(), sound());
  dump& d = all[1].d;
  const carve::index_t T = d.size.T;
  const auto to_the_end = [&](carve::tensor<double>& x, carve::index_t n,
                              carve::index_t tokens) {
    const auto row = static_cast<std::ptrdiff_t>(
        x.data.size() / static_cast<std::size_t>(d.size.B * T));
    const auto first = x.data.begin() + n * T * row;
    std::rotate(first, first + tokens * row, first + T * row);
  };
  for (carve::index_t n = 0; n < d.size.B; ++n) {
    const auto& cu = all[0].d.in.cu_seqlens;
    const carve::index_t tokens = cu[n + 1] - cu[n];
    for (const auto& m : carve::tensors<double>::members()) {
      if (m.role != carve::tensor_role::token) continue;
      auto& x = d.in.in.*m.at;
      if (x.present()) to_the_end(x, n, tokens);
    }
    to_the_end(d.cotangents.o, n, tokens);
  }
  d.judged = replayed(d);
  REQUIRE(relate(r, all, {}, {1, {}}).is() <= kind::within_unit);
  // Sequence 2 is shorter than T.
  d.in.in.k.data[static_cast<std::size_t>(2 * T * d.size.H * d.size.K)] = 1;
  REQUIRE(contains(fixtures::message([&] {
                     relate(r, all, {}, {1, {}});
                   }),
                   "sequence 2: expected padding before the tokens that"));
}
