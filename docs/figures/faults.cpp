/// What does each fault look like?  A small GDN-2 head, right and with one
/// fault at a time; where its outputs are wrong, and by how much.
#include <carve/precision.hpp>
#include <carve/recurrence.hpp>
#include <carve/triangular.hpp>
#include <functional>

#include "sequence.hpp"
#include "svg.hpp"

namespace {

using namespace figures;

constexpr index_t T = 72, K = 16, V = 16, C = 16;  // the last chunk is ragged

enum class fault {
  none,
  log_base,
  erase_before_decay,
  erase_axis,
  gated_erase,
  ratio_late,
  state_not_decayed,
  state_dropped,
  tail_lost,
  transposed_inverse,
  read_before,
  state_bf16,
  last
};

const char* title(fault f) {
  const char* const titles[] = {"none",
                                "log decay taken to base 2",
                                "erase looks before the decay",
                                "erase gate on the value axis",
                                "write gate on the erased part too",
                                "decay ratio one token late",
                                "start state not decayed",
                                "start state of a chunk dropped",
                                "ragged last chunk lost",
                                "T transposed",
                                "read before the update",
                                "state kept in bf16"};
  return titles[static_cast<int>(f)];
}

sequence tokens() {
  std::mt19937_64 random(21);
  sequence s;
  s.q = unit_keys(T, K, 0.2, random), s.k = unit_keys(T, K, 0.2, random);
  s.v = normal(T, V, random);
  s.g = uniform(T, K, -0.15, -0.01, random);
  s.b = uniform(T, K, 0.2, 1, random);
  s.w = uniform(T, V, 0.2, 1, random);
  s.S0 = normal(K, V, random);
  return s;
}

/// The recurrence, written out, with a fault.
Matrix token_loop(const sequence& s, fault f) {
  Matrix S = s.S0, o(T, V);
  for (index_t t = 0; t < T; ++t) {
    const double base = f == fault::log_base ? std::log(2.0) : 1.0;
    const Matrix a = (base * s.g.row(t)).array().exp().matrix();
    const Matrix before = S;
    if (f == fault::read_before) o.row(t) = s.q.row(t) * S;
    S = a.transpose().asDiagonal() * S;
    const Matrix& asked = f == fault::erase_before_decay ? before : S;
    Matrix erased;
    if (f == fault::erase_axis) {
      erased = (s.k.row(t) * asked).cwiseProduct(s.b.row(t));
    } else {
      erased = s.k.row(t).cwiseProduct(s.b.row(t)) * asked;
    }
    if (f == fault::gated_erase) erased = erased.cwiseProduct(s.w.row(t));
    S +=
        s.k.row(t).transpose() * (s.w.row(t).cwiseProduct(s.v.row(t)) - erased);
    if (f == fault::state_bf16) {
      for (index_t i = 0; i < S.size(); ++i) {
        S.data()[i] = carve::round_to<carve::format::bf16>(S.data()[i]);
      }
    }
    if (f != fault::read_before) o.row(t) = s.q.row(t) * S;
  }
  return o;
}

/// The chunked form, written out, with a fault.
Matrix chunked(const sequence& s, fault f) {
  Matrix S = s.S0, o = Matrix::Zero(T, V);
  for (index_t t0 = 0; t0 < T; t0 += C) {
    const index_t n = std::min(C, T - t0);
    if (f == fault::tail_lost && n < C) break;
    if (f == fault::state_dropped) S.setZero();
    Matrix G = s.g.middleRows(t0, n);
    for (index_t t = 1; t < n; ++t) G.row(t) += G.row(t - 1);
    const Matrix k = s.k.middleRows(t0, n), q = s.q.middleRows(t0, n);
    const Matrix r = k.cwiseProduct(s.b.middleRows(t0, n));
    const auto ratio = [&](index_t t, index_t u, index_t i) {
      const index_t from = f == fault::ratio_late ? u - 1 : u;
      return std::exp(G(t, i) - (from < 0 ? 0 : G(from, i)));
    };
    Matrix L = Matrix::Zero(n, n), P = Matrix::Zero(n, n);
    for (index_t t = 0; t < n; ++t) {
      for (index_t u = 0; u <= t; ++u) {
        for (index_t i = 0; i < K; ++i) {
          const double x = ratio(t, u, i) * k(u, i);
          if (u < t) L(t, u) += r(t, i) * x;
          P(t, u) += q(t, i) * x;
        }
      }
    }
    Matrix inverse = carve::inverse_by_substitution(L);
    if (f == fault::transposed_inverse) inverse.transposeInPlace();
    const Matrix decay = f == fault::state_not_decayed
                             ? Matrix(Matrix::Ones(n, K))
                             : Matrix(G.array().exp().matrix());
    const Matrix U =
        inverse * (s.w.middleRows(t0, n).cwiseProduct(s.v.middleRows(t0, n)) -
                   r.cwiseProduct(decay) * S);
    o.middleRows(t0, n) = q.cwiseProduct(decay) * S + P * U;
    Matrix tail = k;
    for (index_t t = 0; t < n; ++t) {
      tail.row(t).array() *= (G.row(n - 1) - G.row(t)).array().exp();
    }
    S = G.row(n - 1).transpose().array().exp().matrix().asDiagonal() * S;
    S += tail.transpose() * U;
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const made to(argc, argv);
  const sequence s = tokens();
  Matrix decay, exact(T, V);
  carve::definition_forward<double>(s.head(decay), {exact.data(), V, 1}, {});
  must(rms(token_loop(s, fault::none) - exact) < 1e-13, "the loop is right");
  must(rms(chunked(s, fault::none) - exact) < 1e-13, "the chunks are right");
  const int count = static_cast<int>(fault::last) - 1;
  const double cell = 3, high = cell * V, row = high + 56;
  svg drawing(480, 34 + row * ((count + 1) / 2),
              "Where eleven faults show in the output");
  drawing.text(8, 16,
               "tokens to the right, value channels down; full colour:"
               " three times the RMS error",
               "start", "faint-label small");
  std::vector<std::vector<std::string>> rows{
      {"fault", "relative RMS error", "first token wrong"}};
  for (int n = 1; n <= count; ++n) {
    const fault f = static_cast<fault>(n);
    const bool in_chunks = f == fault::ratio_late ||
                           f == fault::state_not_decayed ||
                           f == fault::state_dropped || f == fault::tail_lost ||
                           f == fault::transposed_inverse;
    const Matrix wrong = (in_chunks ? chunked(s, f) : token_loop(s, f)) - exact;
    const double error = rms(wrong) / rms(exact);
    must(error > 1e-4, std::string("this fault shows: ") + title(f));
    index_t first = 0;
    while (wrong.row(first).cwiseAbs().maxCoeff() < 1e-6 * rms(exact)) ++first;
    const double x = 8 + 240 * ((n - 1) % 2), y = 46 + row * ((n - 1) / 2);
    drawing.text(x, y - 6, title(f));
    heat_map(drawing, x, y, cell, wrong.transpose(), 3 * rms(wrong));
    drawing.text(x, y + high + 15, "relative RMS error " + scientific(error),
                 "start", "faint-label small");
    for (index_t t = C; t < T; t += C) {
      drawing.line(x + cell * static_cast<double>(t), y,
                   x + cell * static_cast<double>(t), y + high, "faint hair");
    }
    rows.push_back({title(f), scientific(error), std::to_string(first)});
  }
  to.drawing("faults", drawing.str());
  to.value("faults.table", table(rows));
}
