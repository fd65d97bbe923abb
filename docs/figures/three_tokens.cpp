/// What do three tokens do, to the last digit?  The running example of the
/// book: every number of it that a page shows is computed here, in exact
/// fractions, by the library.
#include <carve/batch.hpp>
#include <carve/chunked.hpp>
#include <carve/columnwise.hpp>
#include <carve/content_gate.hpp>
#include <carve/dual.hpp>
#include <carve/multiprecision.hpp>
#include <carve/recurrence.hpp>
#include <carve/segment.hpp>
#include <carve/solver.hpp>
#include <carve/triangular.hpp>

#include "made.hpp"

namespace {

using carve::family;
using carve::index_t;
using carve::matrix;
using carve::problem;
using carve::rational;
using figures::must;
using figures::tex;

// [tokens]
problem<rational> three_tokens(family f) {
  problem<rational> p;
  p.family = f;
  p.scale = 1;
  p.linear_decay = true;                        // g holds the decays themselves
  p.in.k = {{1, 3, 1, 2}, {1, 0, 1, 1, 0, 1}};  // [B,T,H,K]
  p.in.v = {{1, 3, 1, 2}, {4, 2, 0, 4, 6, 2}};  // [B,T,HV,V]
  p.in.q = {{1, 3, 1, 2}, {1, 0, 1, 0, 1, 0}};
  return p;
}
// [tokens]

const rational half(1, 2);

problem<rational> delta_tokens() {
  problem<rational> p = three_tokens(family::delta);
  p.in.beta = {{1, 3, 1}, {1, half, 1}};
  return p;
}

problem<rational> gated_tokens() {
  problem<rational> p = three_tokens(family::gdn);
  p.in.beta = {{1, 3, 1}, {1, half, 1}};
  p.in.g = {{1, 3, 1}, {half, half, half}};
  return p;
}

problem<rational> gdn2_tokens() {
  problem<rational> p = three_tokens(family::gdn2);
  p.in.g = {{1, 3, 1}, {1, 1, 1}};
  p.in.b = {{1, 3, 1, 2}, {1, 1, 0, half, 1, 1}};
  p.in.w = {{1, 3, 1}, {1, half, 1}};
  return p;
}

problem<rational> value_erase_tokens() {
  problem<rational> p = three_tokens(family::value_erase);
  p.in.g = {{1, 3, 1}, {1, 1, 1}};
  p.in.e = {{1, 3, 1, 2}, {1, 1, half, 0, 1, 1}};
  p.in.w = {{1, 3, 1}, {1, half, 1}};
  return p;
}

/// The first `n` tokens.
problem<rational> first_tokens(const problem<rational>& p, index_t n) {
  problem<rational> cut = p;
  for (const auto& m : carve::tensors<rational>::members()) {
    auto& x = cut.in.*m.at;
    if (!x.present() || m.name == "initial_state") continue;
    index_t width = 1;
    for (index_t i = 2; i < static_cast<index_t>(x.rank()); ++i) {
      width *= x.dim(i);
    }
    x.shape[1] = n;
    x.data.resize(static_cast<std::size_t>(n * width));
  }
  return cut;
}

matrix<rational> as_matrix(const std::vector<rational>& x, index_t rows) {
  const index_t columns = static_cast<index_t>(x.size()) / rows;
  return Eigen::Map<const matrix<rational>>(x.data(), rows, columns);
}

/// The state after `t` tokens.
matrix<rational> state(const problem<rational>& p, index_t t) {
  return as_matrix(carve::forward(first_tokens(p, t)).final_state.data, 2);
}

/// The three states of a model, as `NAME.S1` to `NAME.S3`, and its outputs.
void write_states(const figures::made& to, const std::string& name,
                  const problem<rational>& p) {
  for (index_t t = 1; t <= 3; ++t) {
    to.value(name + ".S" + std::to_string(t), tex(state(p, t)));
  }
  const auto whole = carve::forward(p);
  to.value(name + ".O", tex(as_matrix(whole.o.data, 3)));
  const matrix<rational> S = as_matrix(whole.final_state.data, 2);
  const matrix<rational> k = as_matrix(p.in.k.data, 3);
  const matrix<rational> v = as_matrix(p.in.v.data, 3);
  const matrix<rational> recall = k * S;
  to.value(name + ".recall", tex(recall));
  for (index_t t = 0; t < 3; ++t) {
    to.value(name + ".recall" + std::to_string(t + 1),
             tex(matrix<rational>(recall.row(t))));
  }
}

/// L of the chunk, from its definition.
matrix<rational> couplings(const matrix<rational>& r, const matrix<rational>& a,
                           const matrix<rational>& k) {
  matrix<rational> L = matrix<rational>::Constant(3, 3, rational(0));
  for (index_t t = 0; t < 3; ++t) {
    for (index_t s = 0; s < t; ++s) {
      for (index_t i = 0; i < 2; ++i) {
        rational ratio = 1;
        for (index_t m = s + 1; m <= t; ++m) ratio *= a(m, i);
        L(t, s) += r(t, i) * ratio * k(s, i);
      }
    }
  }
  return L;
}

void write_wy(const figures::made& to) {
  const problem<rational> p = delta_tokens();
  const matrix<rational> k = as_matrix(p.in.k.data, 3);
  const matrix<rational> v = as_matrix(p.in.v.data, 3);
  const matrix<rational> q = as_matrix(p.in.q.data, 3);
  matrix<rational> r = k, wv = v;
  for (index_t t = 0; t < 3; ++t) {
    r.row(t) *= p.in.beta.data[t];
    wv.row(t) *= p.in.beta.data[t];
  }
  const matrix<rational> ones = matrix<rational>::Constant(3, 2, rational(1));
  const matrix<rational> L = couplings(r, ones, k);
  const matrix<rational> one = matrix<rational>::Identity(3, 3);
  const matrix<rational> T = carve::inverse_by_substitution(L);
  must(matrix<rational>((one + L) * T) == one, "T is the inverse of I + L");
  must(T == carve::inverse_by_doubling(L), "doubling gives the same T");
  to.value("wy.k", tex(k));
  to.value("wy.r", tex(r));
  to.value("wy.wv", tex(wv));
  to.value("wy.L", tex(L));
  to.value("wy.L2", tex(matrix<rational>(L * L)));
  to.value("wy.T", tex(T));
  must(L(2, 0) == 0 && T(2, 0) != 0, "tokens 1 and 3 meet by way of token 2");
  to.value("wy.T31", tex(T(2, 0)));
  // From two factors to three.
  const matrix<rational> I = matrix<rational>::Identity(2, 2);
  matrix<rational> product = I;
  matrix<rational> W = matrix<rational>::Constant(3, 2, rational(0));
  for (index_t t = 0; t < 3; ++t) {
    const matrix<rational> factor = I - k.row(t).transpose() * r.row(t);
    to.value("wy.A" + std::to_string(t + 1), tex(factor));
    W.row(t) = r.row(t) * product;
    product = matrix<rational>(factor * product);
    if (t == 1) to.value("wy.A21", tex(product));
  }
  must(W == matrix<rational>(T * r), "the rows w_t are the rows of T R");
  must(product == matrix<rational>(I - k.transpose() * W),
       "the product of the factors is I - K^T W");
  to.value("wy.W", tex(W));
  to.value("wy.A321", tex(product));
  const matrix<rational> U = T * wv;
  to.value("wy.U", tex(U));
  matrix<rational> P = q * k.transpose();
  for (index_t t = 0; t < 3; ++t) {
    for (index_t s = t + 1; s < 3; ++s) P(t, s) = 0;
  }
  to.value("wy.P", tex(P));
  const auto exact = carve::forward(p);
  must(matrix<rational>(P * U) == as_matrix(exact.o.data, 3),
       "P U is the output");
  must(matrix<rational>(k.transpose() * U) ==
           as_matrix(exact.final_state.data, 2),
       "K^T U is the final state");
  // [chunked]
  const auto chunks = carve::forward(p, carve::chunked_solver<>{3});
  const auto tokens = carve::forward(p, carve::recurrent_solver{});
  must(chunks.o.data == tokens.o.data, "chunked equals token by token");
  // [chunked]
  // A chunk that starts from a state.
  problem<rational> later = p;
  later.in.initial_state = {{1, 1, 2, 2}, {1, 0, 0, 1}};
  must(as_matrix(carve::forward(later).final_state.data, 2) ==
           matrix<rational>(product + k.transpose() * U),
       "a start state is carried by the product of the factors");
  // With decay.
  const matrix<rational> a = matrix<rational>::Constant(3, 2, half);
  const matrix<rational> decayed = couplings(r, a, k);
  to.value("wy.decay.L", tex(decayed));
  to.value("wy.decay.T", tex(carve::inverse_by_substitution(decayed)));
}

void write_value_erase(const figures::made& to) {
  const problem<rational> p = value_erase_tokens();
  const matrix<rational> k = as_matrix(p.in.k.data, 3);
  const matrix<rational> e = as_matrix(p.in.e.data, 3);
  const matrix<rational> ones = matrix<rational>::Constant(3, 2, rational(1));
  const matrix<rational> L = couplings(k, ones, k);
  to.value("ve.L", tex(L));
  matrix<rational> inverse[2];
  for (index_t j = 0; j < 2; ++j) {
    matrix<rational> gated = L;
    for (index_t t = 0; t < 3; ++t) gated.row(t) *= e(t, j);
    inverse[j] = carve::inverse_by_substitution(gated);
    to.value("ve.L" + std::to_string(j + 1), tex(gated));
    to.value("ve.T" + std::to_string(j + 1), tex(inverse[j]));
  }
  must(inverse[0] != inverse[1], "the two columns need two inverses");
  const auto columns = carve::forward(p, carve::columnwise_solver{3});
  must(columns.o.data == carve::forward(p).o.data,
       "column by column equals token by token");
  // [refused]
  bool refused = false;
  try {
    carve::forward(p, carve::chunked_solver<>{3});
  } catch (const carve::error& why) {
    refused = true;
    to.value("ve.refusal", why.what());
  }
  must(refused, "the WY solver refuses value-axis erase");
  // [refused]
}

void write_gradients(const figures::made& to) {
  const problem<rational> p = delta_tokens();
  carve::outputs<rational> cotangents;
  cotangents.o = {{1, 3, 1, 2}, {0, 0, 0, 0, 1, 0}};
  // [backward]
  const auto back = carve::backward(p, cotangents);
  // [backward]
  const auto& d = back.gradients;
  to.value("grad.q", tex(as_matrix(d.q.data, 3)));
  to.value("grad.k", tex(as_matrix(d.k.data, 3)));
  to.value("grad.v", tex(as_matrix(d.v.data, 3)));
  to.value("grad.beta", tex(as_matrix(d.beta.data, 1)));
  // The same by a small step: the output is a polynomial, so the derivative
  // of its first entry along beta_2 is its linear coefficient.
  const auto output = [&](const rational& beta) {
    problem<rational> moved = p;
    moved.in.beta.data[1] = beta;
    return carve::forward(moved).o.data[4];
  };
  const rational step(1, 1000);
  const rational slope =
      (output(half + step) - output(half - step)) / (2 * step);
  must(slope == d.beta.data[1], "the slope along beta_2 is its gradient");
  must(d.v.data[4] == 0 && d.v.data[5] == 0, "the last value has no gradient");
  to.value("grad.slope", tex(slope));
  const auto chunked =
      carve::backward(p, cotangents, carve::chunked_solver<>{3});
  must(chunked.gradients.k.data == d.k.data,
       "the chunked backward gives the same gradient");
}

void write_segments(const figures::made& to) {
  const problem<rational> p = gated_tokens();
  const carve::batch<rational> heads(p);
  const carve::head<rational> h = heads.head_of(0, 0);
  // [segments]
  const auto first = carve::segment_of(h.segment(0, 1, {}));
  const auto rest = carve::segment_of(h.segment(1, 2, {}));
  const auto both = carve::compose(rest, first);
  // [segments]
  const auto whole = carve::segment_of(h);
  must(both.A[0] == whole.A[0] && both.B == whole.B, "segments compose");
  must(whole.B == as_matrix(carve::forward(p).final_state.data, 2),
       "B is the state from a zero start");
  to.value("seg.A1", tex(first.A[0]));
  to.value("seg.B1", tex(first.B));
  to.value("seg.A2", tex(rest.A[0]));
  to.value("seg.B2", tex(rest.B));
  to.value("seg.A", tex(both.A[0]));
  to.value("seg.B", tex(both.B));
}

/// The same erase address asked of the state before it decays, and the address
/// that makes up for it.
void write_before(const figures::made& to) {
  const problem<rational> p = gated_tokens();
  const matrix<rational> k = as_matrix(p.in.k.data, 3);
  const matrix<rational> v = as_matrix(p.in.v.data, 3);
  for (const bool made_up : {false, true}) {
    matrix<rational> S = matrix<rational>::Constant(2, 2, rational(0));
    for (index_t t = 0; t < 3; ++t) {
      const rational beta = p.in.beta.data[t], a = p.in.g.data[t];
      const matrix<rational> r =
          (made_up ? rational(a * beta) : beta) * k.row(t);
      const matrix<rational> u = beta * v.row(t) - r * S;
      S = matrix<rational>(a * S + k.row(t).transpose() * u);
    }
    if (made_up) {
      must(S == state(p, 3), "the decay in the address makes up for the order");
    } else {
      to.value("before.S3", tex(S));
      // [before]
      const carve::batch<rational> heads(p);
      carve::head<rational> h = heads.head_of(0, 0);
      h.erase_reads = carve::erase_order::before_decay;
      matrix<rational> end(2, 2);
      carve::definition_forward<rational>(h, {}, {end.data(), 2, 1});
      // [before]
      must(S == end, "the library asks before the decay where told to");
    }
  }
}

/// The two histories of the content gate.
void write_content(const figures::made& to) {
  struct halves {
    rational value(const rational& x) const {
      return half + x / (2 * (1 + abs(x)));
    }
  };
  const rational one = 1, keys[] = {1, 1}, logits[] = {0, 0};
  rational states[2];
  for (const int first : {1, -1}) {
    // K = V = 1, a window of one token, W_down = W_up = 1.
    const rational values[] = {first, 0};
    carve::head<rational> h;
    h.tokens = 2, h.keys = h.values = 1;
    h.q = h.k = {keys, 1, 1}, h.v = {values, 1, 1}, h.b = {logits, 1, 1};
    const carve::content_gate<rational> gate{1, 1, {&one, 1, 1}, {&one, 1, 1}};
    rational o[2], S;
    carve::content_forward(h, gate, carve::recurrent_solver{}, {o, 1, 1},
                           {&S, 1, 1}, halves{});
    const rational b = halves{}.value(o[0]);
    must(S == o[0] - b * o[0], "the second token erases by its gate");
    states[first < 0] = S;
    const std::string name = first > 0 ? "content.plus" : "content.minus";
    to.value(name + ".o", tex(o[0]));
    to.value(name + ".gate", tex(b));
    to.value(name + ".S", tex(S));
  }
  must(states[0] != -states[1], "opposite histories leave no opposite states");
}

/// Key-axis erase that lengthens: one step, and two keys in turn.
void write_growth(const figures::made& to) {
  const auto step = [](const matrix<rational>& k, const matrix<rational>& b,
                       const rational& squared_length) {
    const matrix<rational> r = b.cwiseProduct(k);
    const matrix<rational> one = matrix<rational>::Identity(k.rows(), k.rows());
    return matrix<rational>(one - k * r.transpose() / squared_length);
  };
  const auto column = [](const std::vector<rational>& x) {
    return as_matrix(x, static_cast<index_t>(x.size()));
  };
  const matrix<rational> worst = step(column({1, 1, 1}), column({1, 0, 0}), 3);
  const matrix<rational> from = column({1, -1, -1}), image = worst * from;
  to.value("growth.step", tex(worst));
  to.value("growth.from", tex(from));
  to.value("growth.image", tex(image));
  const rational before = from.squaredNorm(), after = image.squaredNorm();
  must(after / before == rational(4, 3), "the step reaches 2/sqrt(3)");
  to.value("growth.before", tex(before));
  to.value("growth.after", tex(after));
  const matrix<rational> both =
      step(column({rational(4, 5), rational(3, 5)}), column({0, 1}), 1) *
      step(column({rational(3, 5), rational(4, 5)}), column({1, 0}), 1);
  const rational trace = both.trace(),
                 det = both(0, 0) * both(1, 1) - both(0, 1) * both(1, 0);
  const double half_trace = static_cast<double>(trace) / 2;
  const double larger = half_trace + std::sqrt(half_trace * half_trace -
                                               static_cast<double>(det));
  must(1 - trace + det < 0, "one eigenvalue is above 1");
  to.value("growth.trace", tex(trace));
  to.value("growth.determinant", tex(det));
  to.value("growth.eigenvalue", figures::places(larger, 3));
  to.value("growth.percent", figures::places(100 * (std::sqrt(larger) - 1), 1));
}

}  // namespace

int main(int argc, char** argv) {
  const figures::made to(argc, argv);
  const problem<rational> linear = three_tokens(family::linear);
  write_states(to, "linear", linear);
  write_states(to, "delta", delta_tokens());
  write_states(to, "gdn", gated_tokens());
  write_states(to, "gdn2", gdn2_tokens());
  write_states(to, "ve", value_erase_tokens());

  // Key 1 written a second time, with the value (1, 1).
  for (const bool erases : {false, true}) {
    problem<rational> p = first_tokens(erases ? delta_tokens() : linear, 1);
    for (auto* x : {&p.in.q, &p.in.k, &p.in.v}) x->shape[1] = 2;
    p.in.q.data = p.in.k.data = {1, 0, 1, 0};
    p.in.v.data = {4, 2, 1, 1};
    if (erases) p.in.beta = {{1, 2, 1}, {1, 1}};
    to.value(erases ? "delta.again" : "linear.again",
             tex(as_matrix(carve::forward(p).final_state.data, 2)));
  }
  // What each token of the delta rule finds, and what it adds.
  for (index_t t = 1; t <= 3; ++t) {
    const problem<rational> p = delta_tokens();
    const matrix<rational> before =
        t > 1 ? state(p, t - 1)
              : matrix<rational>(matrix<rational>::Constant(2, 2, rational(0)));
    const matrix<rational> k = as_matrix(p.in.k.data, 3).row(t - 1);
    const matrix<rational> v = as_matrix(p.in.v.data, 3).row(t - 1);
    const matrix<rational> found = k * before;
    const matrix<rational> u = p.in.beta.data[t - 1] * (v - found);
    to.value("delta.found" + std::to_string(t), tex(found));
    to.value("delta.u" + std::to_string(t), tex(u));
    must(matrix<rational>(before + k.transpose() * u) == state(p, t),
         "the written-out step is the library's");
    must(matrix<rational>(k * state(p, t)) == v,
         "with beta = 1/|k|^2 the token's own value is found exactly");
  }
  write_wy(to);
  write_value_erase(to);
  write_gradients(to);
  write_segments(to);
  write_before(to);
  write_content(to);
  write_growth(to);
}
