/// @file
/// Are the stages of a chunk what their names say, exactly; and is a stage that
/// is wrong told by its name?
#include "program/stages.hpp"

#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "carve/multiprecision.hpp"
#include "carve/recurrence.hpp"
#include "carve/solver.hpp"
#include "catch.hpp"
#include "core/random_head.hpp"
#include "program/relation_kernels.hpp"

using namespace carve::program;
using carve::index_t;
using carve::rational;
using carve::stage;
using matrix = carve::matrix<rational>;
using relation_kernels::inputs;

namespace {

/// Below the diagonal, which counts or not.
matrix lower(matrix m, bool diagonal) {
  for (index_t t = 0; t < m.rows(); ++t) {
    for (index_t s = diagonal ? t + 1 : t; s < m.cols(); ++s) m(t, s) = 0;
  }
  return m;
}

bool contains(const std::string& text, const std::string& part) {
  UNSCOPED_INFO(text);
  return text.find(part) != std::string::npos;
}

/// A dump's file with its stages, exact.
fixtures::editable with_stages(const fixtures::editable& file, index_t C) {
  const auto bytes = file.writer().serialize();
  const auto in = fixtures::st::file::parse(bytes);
  const dump d = read_dump(in);
  const auto out =
      stages_file(d, in, {}, C, stages_of(d, C, {1, {}})).serialize();
  return fixtures::editable::of(fixtures::st::file::parse(out));
}

stage_verdicts judged(const fixtures::editable& file) {
  const auto bytes = file.writer().serialize();
  const auto in = fixtures::st::file::parse(bytes);
  const dump d = read_dump(in);
  const index_t C = chunk_of(d, in).value();
  const stage_verdicts v = judge_stages(d, in, C, stages_of(d, C, {1, {}}));
  std::ostringstream text;
  write_stages(text, v);
  UNSCOPED_INFO(text.str());
  return v;
}

/// The stages of `wrong` in the dump of `right`.
fixtures::editable with_stages_of(const fixtures::editable& right,
                                  const fixtures::editable& wrong, index_t C) {
  fixtures::editable e = with_stages(right, C);
  for (const auto& [name, x] : with_stages(wrong, C).tensors) {
    if (role_of(name) == "stage") e.tensors.at(name) = x;
  }
  return e;
}

}  // namespace

TEST_CASE("stages satisfy the formulas of the chunked form, exactly") {
  using namespace carve::tests;
  const head_shape shape{7, 2, 3};
  constexpr index_t C = 3;
  std::mt19937_64 random{20261128};
  const auto draw = [&] {
    return rational(static_cast<int>(random() % 7) - 3) / rational(4);
  };
  auto x = fill<rational>(shape, erase::key, draw);
  x.d.clear();
  std::vector<rational> dO, dS;
  for (index_t i = 0; i < shape.T * shape.V; ++i) dO.push_back(draw());
  for (index_t i = 0; i < shape.K * shape.V; ++i) dS.push_back(draw());
  const auto p = head_of(x, shape, carve::readout::after);

  std::map<index_t, std::map<stage, matrix>> chunks;
  const auto take = [&](stage at, const carve::head<rational>& chunk,
                        const matrix& m) {
    chunks[(chunk.q.data - p.q.data) / shape.K][at] = m;
  };
  using recorder = carve::recording_policy<rational>;
  const carve::chunked_solver<recorder> solver{C, recorder({}, take)};
  const auto by_chunks = walk(p, shape, erase::key, dO, dS, solver);
  const auto expected =
      walk(p, shape, erase::key, dO, dS, carve::recurrent_solver{});
  REQUIRE(by_chunks.o == expected.o);
  REQUIRE(by_chunks.S == expected.S);

  REQUIRE(chunks.size() == 3);
  matrix dS_next(shape.K, shape.V), S_next;
  for (index_t i = 0; i < shape.K; ++i) {
    for (index_t j = 0; j < shape.V; ++j) {
      dS_next(i, j) = dS[static_cast<std::size_t>(i * shape.V + j)];
    }
  }
  for (index_t c = 2; c >= 0; --c) {
    CAPTURE(c);
    auto& m = chunks.at(c * C);
    const index_t n = std::min(C, shape.T - c * C);
    const auto rows = [&](const std::vector<rational>& of, index_t width) {
      matrix y(n, width);
      for (index_t t = 0; t < n; ++t) {
        for (index_t i = 0; i < width; ++i) {
          y(t, i) = of[static_cast<std::size_t>((c * C + t) * width + i)];
        }
      }
      return y;
    };
    const matrix q = rows(x.q, shape.K), k = rows(x.k, shape.K);
    const matrix a = rows(x.a, shape.K), dout = rows(dO, shape.V);
    const matrix r = k.cwiseProduct(rows(x.b, shape.K));
    const matrix wv = rows(x.w, shape.V).cwiseProduct(rows(x.v, shape.V));
    matrix G = a, tail = matrix::Constant(n, shape.K, rational(1));
    for (index_t t = 1; t < n; ++t)
      G.row(t) = G.row(t - 1).cwiseProduct(a.row(t)).eval();
    for (index_t t = n - 1; t-- > 0;) {
      tail.row(t) = tail.row(t + 1).cwiseProduct(a.row(t + 1)).eval();
    }
    REQUIRE(m.at(stage::G) == G);
    // Ratios of decays are products: a decay may be zero.
    matrix L = matrix::Constant(n, n, rational(0)), P = L;
    for (index_t t = 0; t < n; ++t) {
      for (index_t s = 0; s <= t; ++s) {
        for (index_t i = 0; i < shape.K; ++i) {
          rational ratio(1);
          for (index_t j = s + 1; j <= t; ++j) ratio *= a(j, i);
          P(t, s) += q(t, i) * ratio * k(s, i);
          if (s < t) L(t, s) += r(t, i) * ratio * k(s, i);
        }
      }
    }
    const matrix one = matrix::Identity(n, n);
    const matrix &T = m.at(stage::T), &W = m.at(stage::W), &U = m.at(stage::U);
    const matrix& S = m.at(stage::S);
    REQUIRE(m.at(stage::L) == L);
    REQUIRE(m.at(stage::P) == P);
    REQUIRE(matrix((one + L) * T) == one);
    const matrix rG = r.cwiseProduct(G);
    REQUIRE(W == matrix(T * rG));
    REQUIRE(U == matrix(T * (wv - rG * S)));
    REQUIRE(rows(expected.o, shape.V) ==
            matrix(p.scale * (q.cwiseProduct(G) * S + P * U)));
    matrix end = k.cwiseProduct(tail).transpose() * U;
    for (index_t i = 0; i < shape.K; ++i) end.row(i) += G(n - 1, i) * S.row(i);
    if (c == 2) {
      for (index_t i = 0; i < shape.K * shape.V; ++i) {
        REQUIRE(end.data()[i] == expected.S[static_cast<std::size_t>(i)]);
      }
    } else {
      REQUIRE(end == S_next);
    }
    S_next = S;

    const matrix &dU = m.at(stage::dU), &dW = m.at(stage::dW);
    REQUIRE(m.at(stage::dP) ==
            lower(matrix(p.scale * (dout * U.transpose())), true));
    REQUIRE(dU == matrix(k.cwiseProduct(tail) * dS_next +
                         p.scale * (P.transpose() * dout)));
    REQUIRE(dW == matrix(-(dU * S.transpose())));
    const matrix dT =
        lower(matrix(dU * wv.transpose() + dW * rG.transpose()), false);
    REQUIRE(m.at(stage::dT) == dT);
    REQUIRE(m.at(stage::dL) ==
            lower(matrix(-(T.transpose() * dT * T.transpose())), false));
    matrix start = p.scale * (q.cwiseProduct(G).transpose() * dout);
    start -= W.transpose() * dU;
    for (index_t i = 0; i < shape.K; ++i) {
      start.row(i) += G(n - 1, i) * dS_next.row(i);
    }
    REQUIRE(m.at(stage::dS) == start);
    dS_next = start;
  }
  for (index_t i = 0; i < shape.K * shape.V; ++i) {
    REQUIRE(dS_next.data()[i] ==
            expected.gradients.S0[static_cast<std::size_t>(i)]);
  }
}

TEST_CASE("each family's stages pass, exact and replayed") {
  const std::map<std::string, std::size_t> stages{
      {"gdn", 13}, {"gdn2", 13}, {"carve", 13}, {"delta", 12}, {"gla", 7}};
  for (const auto& [family, count] : stages) {
    CAPTURE(family);
    fixtures::editable e = with_stages(inputs(family, 2, 40, 2, 2, 8, 6), 16);
    const stage_verdicts exact = judged(e);
    REQUIRE(exact.chunk == 16);
    REQUIRE(exact.stages.size() == count);
    REQUIRE(exact.result() == outcome::pass);
    for (const carve::stage_row& row : carve::stage_table) {
      const auto x = e.tensors.find("replayed." + std::string(row.name));
      if (x == e.tensors.end()) continue;
      e.tensors.at(std::string(row.name)) = x->second;
    }
    REQUIRE(judged(e).result() == outcome::pass);
  }
}

TEST_CASE("a damaged stage is named, with its chunk") {
  const fixtures::editable sound =
      with_stages(inputs("gdn2", 2, 40, 2, 2, 8, 6), 16);
  for (const carve::stage_row& row : carve::stage_table) {
    CAPTURE(row.name);
    fixtures::editable e = sound;
    auto& x = e.tensors.at(std::string(row.name));
    const auto width =
        x.values.size() / static_cast<std::size_t>(x.shape[0] * x.shape[1] * 2);
    // Entry 1, head 1: token 20, column 2 of the chunk's, or chunk 1.
    const std::size_t at = row.axes == "K,V" ? ((3 + 1) * 2 + 1) * width
                                             : ((40 + 20) * 2 + 1) * width;
    x.values[at + 2] += 3;
    const stage_verdicts v = judged(e);
    REQUIRE(v.result() == outcome::fail);
    const stage_verdict& first = v.stages.at(v.first_wrong.value());
    REQUIRE(first.row.name == row.name);
    REQUIRE(first.chunk.value().sequence == 1);
    REQUIRE(first.chunk.value().first == 16);
    REQUIRE(contains(first.where, "entry 1 head 1"));
    std::ostringstream text;
    write_stages(text, v);
    std::istringstream lines(text.str());
    for (std::string l; std::getline(lines, l);) REQUIRE(l.size() <= 80);
    REQUIRE(contains(
        text.str(), "the first wrong stage is " + std::string(row.name) + ","));
  }
}

TEST_CASE("where one mistake spoils many stages, the first is named") {
  const fixtures::editable right = inputs("gdn2", 2, 40, 2, 2, 8, 6);
  fixtures::editable wrong = right;
  // The erase gate of entry 1, token 20, head 0 and 1.
  for (std::size_t i = 0; i < 16; ++i) {
    wrong.tensors.at("b").values[(40 + 20) * 16 + i] *= 0.5;
  }
  const stage_verdicts v = judged(with_stages_of(right, wrong, 16));
  REQUIRE(v.result() == outcome::fail);
  std::size_t failing = 0;
  for (const auto& s : v.stages) failing += s.errors.fails() ? 1 : 0;
  REQUIRE(failing > 4);
  REQUIRE(v.stages.at(v.first_wrong.value()).row.name == "L");
  REQUIRE(v.stages.at(v.first_wrong.value()).chunk.value().first == 16);

  // Of the way back the latest chunk is the first.
  wrong = right;
  for (std::size_t i = 0; i < 12; ++i) {
    wrong.tensors.at("do").values[(40 + 20) * 12 + i] += 2;
    wrong.tensors.at("do").values[(40 + 2) * 12 + i] += 2;
  }
  const stage_verdicts back = judged(with_stages_of(right, wrong, 16));
  REQUIRE(back.stages.at(back.first_wrong.value()).row.name == "dP");
  REQUIRE(back.stages.at(back.first_wrong.value()).chunk.value().first == 16);
}

TEST_CASE("what is no place of a stage is written as zero and not looked at") {
  fixtures::editable e = with_stages(inputs("gdn2", 2, 40, 2, 2, 8, 6), 16);
  auto& T = e.tensors.at("T").values;  // [2,40,2,16]
  // Token 4, column 5: beyond the mask. Token 39, the last of a chunk of 8,
  // column 8: beyond the tail.
  for (const std::size_t at : {4 * 32 + 5, 39 * 32 + 8}) {
    REQUIRE(T[at] == 0);
    T[at] = std::numeric_limits<double>::quiet_NaN();
  }
  REQUIRE(judged(e).result() == outcome::pass);
  T[4 * 32 + 4] = 0;  // the diagonal is one
  REQUIRE(judged(e).result() == outcome::fail);
}

TEST_CASE("packed sequences and content windows begin a chunk") {
  fixtures::editable e = inputs("gdn", 1, 70, 2, 2, 8, 6);
  e.tensors["cu_seqlens"] = {fixtures::st::dtype::i64, {3}, {0, 33, 70}};
  for (const char* name : {"initial_state", "dfinal_state"}) {
    auto& x = e.tensors.at(name);
    x.shape[0] = 2;
    x.values.resize(2 * x.values.size(), 0.25);
  }
  fixtures::editable stages = with_stages(e, 16);
  REQUIRE(stages.tensors.at("S").shape ==
          std::vector<std::int64_t>{1, 6, 2, 8, 6});
  REQUIRE(judged(stages).result() == outcome::pass);
  // Token 40 is token 7 of sequence 1: it has 8 columns.
  auto& P = stages.tensors.at("P").values;  // [1,70,2,16]
  REQUIRE(P[(40 * 2) * 16 + 7] != 0);
  REQUIRE(P[(40 * 2) * 16 + 8] == 0);
  P[(40 * 2) * 16 + 7] += 4;
  const stage_verdicts v = judged(stages);
  REQUIRE(v.stages.at(v.first_wrong.value()).chunk.value().sequence == 1);

  // Windows of 16 in chunks of 12: 12 and 4 tokens.
  const fixtures::editable carve =
      with_stages(inputs("carve", 1, 40, 2, 2, 8, 6), 12);
  REQUIRE(carve.tensors.at("S").shape[1] == 5);
  REQUIRE(judged(carve).result() == outcome::pass);
}

TEST_CASE("stages that cannot be are refused") {
  fixtures::editable e = with_stages(inputs("gdn2", 2, 40, 2, 2, 8, 6), 16);
  fixtures::editable other = e;
  other.tensors.at("U").shape = {2, 20, 4, 6};
  REQUIRE(fixtures::message([&] { judged(other); }) ==
          "U: expected [2,40,2,6] for chunks of 16, got [2,20,4,6]");
  other = e;
  other.tensors.erase("do"), other.tensors.erase("dfinal_state");
  REQUIRE(fixtures::message([&] { judged(other); }) ==
          "dP: the dump gives no such stage; it needs do or dfinal_state");
  REQUIRE(fixtures::message([&] {
            with_stages(inputs("value_erase", 1, 20, 1, 1, 4, 4), 16);
          }).starts_with("the WY form does not apply"));
}

TEST_CASE("the command writes stages, judges them and exits as it says") {
  const fixtures::scratch folder;
  const std::string in = folder / "in", out = folder / "out";
  inputs("gdn", 1, 40, 2, 2, 8, 6).writer().save(in);
  const auto run = [](const std::string& words) {
    const int status = std::system(
        ("'" CARVE_PROGRAM "' stages " + words + " >/dev/null 2>&1").c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  REQUIRE(run("'" + in + "'") == 2);
  REQUIRE(run("'" + in + "' -o '" + out + "' --chunk 16") == 0);
  REQUIRE(run("'" + out + "'") == 0);
  REQUIRE(run("'" + out + "' --chunk 32") == 2);
  const std::string json = folder / "json";
  REQUIRE(run("'" + out + "' --json '" + json + "'") == 0);
  const auto report = [&] {
    std::ifstream from(json);
    return nlohmann::json::parse(from);
  };
  REQUIRE(report().at("verdict") == "pass");
  REQUIRE(report().at("chunk") == 16);
  REQUIRE(report().at("first_wrong").is_null());
  REQUIRE(report().at("stages").size() == 13);
  fixtures::editable e = fixtures::editable::of(fixtures::st::file::open(out));
  e.tensors.at("W").values[5] += 1;
  e.writer().save(out);
  REQUIRE(run("'" + out + "' --json '" + json + "'") == 1);
  REQUIRE(report().at("verdict") == "fail");
  REQUIRE(report().at("first_wrong") == "W");
  for (const auto& s : report().at("stages")) {
    REQUIRE(s.contains("first_wrong_chunk") == (s.at("verdict") == "fail"));
  }
}
