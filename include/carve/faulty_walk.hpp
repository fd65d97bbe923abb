/// @file
/// What does a walk over the tokens compute that makes a mistake?  The
/// recurrence of @ref recurrence.hpp in double, with faults that no other input
/// would give.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

#include "carve/error.hpp"
#include "carve/head.hpp"

namespace carve {

/// What goes wrong in a walk; nothing does by default.
struct walk_faults {
  double (*store)(double) = nullptr;  ///< rounds the state that is kept
  index_t store_every = 1;            ///< tokens between two such roundings
  bool store_all = false;  ///< and every product and sum of a token, also back
  double (*residual)(double) = nullptr;  ///< rounds `v - S^T k`
  bool decay_last = false;               ///< the state decays after the write
  index_t reset = 0;           ///< tokens after which the state is lost
  index_t tail = 0;            ///< chunk of which a rest does not decay S_T
  index_t back_reset = 0;      ///< tokens after which dS is lost
  index_t no_state_term = 0;   ///< chunk whose S * dS is missing in dg
  index_t mixed = 0;           ///< chunk within which decays are 2^g, not e^g
  bool diagonal_kept = false;  ///< dL keeps its diagonal
  bool erase_stays = false;    ///< dS does not go back through the erase

  /// Something goes wrong.
  bool any() const {
    return store || residual || decay_last || reset != 0 || tail != 0 ||
           back_reset != 0 || no_state_term != 0 || mixed != 0 ||
           diagonal_kept || erase_stays;
  }
};

namespace detail {

/// One head with its faults. Letters as in definition_backward.
class faulty_walk {
 public:
  faulty_walk(const head<double>& p, const walk_faults& f)
      : p_(p), f_(f), T_(p.tokens), K_(p.keys), V_(p.values), size_(K_ * V_) {
    require_step(p);
    if (p.substeps != 1 || p.mask) {
      throw error("a walk with faults: expected one sub-step a token and no ",
                  "full erase mask");
    }
  }

  void forward(rows<double> o, state_view<double> S_end) {
    list<double> S(size_, 0.0);
    for (index_t i = 0; i < K_ && p_.S0; ++i) {
      for (index_t j = 0; j < V_; ++j) S[i * V_ + j] = p_.S0(i, j);
    }
    before_.resize(static_cast<std::size_t>(T_ * size_));
    after_.resize(before_.size());
    c_.resize(static_cast<std::size_t>(T_ * V_)), u_.resize(c_.size());
    for (index_t t = 0; t < T_; ++t) {
      if (f_.reset != 0 && t > 0 && t % f_.reset == 0) S.assign(S.size(), 0.0);
      std::copy(S.begin(), S.end(), &before_[t * size_]);
      if (o && p_.read == readout::before) read(t, S, o);
      if (f_.mixed != 0) {
        decay_mixed(t, S);
      } else if (!f_.decay_last) {
        decay(t, S);
      }
      look_and_write(t, looks_before() ? &before_[t * size_] : S.data(), S);
      if (f_.decay_last) decay(t, S);
      if (f_.store && (t + 1) % f_.store_every == 0) {
        for (double& x : S) x = f_.store(x);
      }
      std::copy(S.begin(), S.end(), &after_[t * size_]);
      if (o && p_.read == readout::after) read(t, S, o);
    }
    lose_tail(S);
    end_ = S;
    for (index_t i = 0; i < K_ && S_end; ++i) {
      for (index_t j = 0; j < V_; ++j) S_end(i, j) = S[i * V_ + j];
    }
  }

  void backward(const head_cotangents<double>& in,
                const head_gradients<double>& out) {
    list<double> dS(size_, 0.0), dS_end;
    start_back_.assign(dS.size(), 0.0);
    carried_ = list<double>(K_, 0.0);
    for (index_t i = 0; i < K_ && in.S; ++i) {
      for (index_t j = 0; j < V_; ++j) dS[i * V_ + j] = in.S(i, j);
    }
    tail_back(dS, out);
    for (index_t t = T_; t-- > 0;) {
      const auto every = [&](index_t n) { return n != 0 && (t + 1) % n == 0; };
      if (every(f_.back_reset) && t + 1 < T_) dS.assign(dS.size(), 0.0);
      if (every(f_.no_state_term) || t + 1 == T_) dS_end = dS;
      if (in.o && p_.read == readout::after) {
        read_back(t, &after_[t * size_], in.o, dS, out);
      }
      if (f_.decay_last) decay_back(t, after_of_decay(t), dS, out);
      step_back(t, dS, out);
      if (in.o && p_.read == readout::before) {
        read_back(t, &before_[t * size_], in.o, dS, out);
      }
      if (f_.mixed != 0 && t % f_.mixed == 0) {
        for (index_t i = 0; i < size_; ++i) dS[i] += start_back_[i];
        start_back_.assign(dS.size(), 0.0);
        carried_.assign(carried_.size(), 0.0);
      }
      if (f_.reset != 0 && t > 0 && t % f_.reset == 0) {
        dS.assign(dS.size(), 0.0);
      }
      if (f_.no_state_term != 0 && t % f_.no_state_term == 0) {
        take_state_term(t, dS_end, out);
      }
    }
    for (index_t i = 0; i < K_ && out.S0; ++i) {
      for (index_t j = 0; j < V_; ++j) out.S0(i, j) += dS[i * V_ + j];
    }
  }

 private:
  bool looks_before() const {
    return f_.decay_last || p_.erase_reads == erase_order::before_decay;
  }
  double a(index_t t, index_t i) const { return p_.a ? p_.a(t, i) : 1.0; }
  double d(index_t t, index_t j) const { return p_.d ? p_.d(t, j) : 1.0; }
  double e(index_t t, index_t j) const { return p_.e ? p_.e(t, j) : 1.0; }
  double w(index_t t, index_t j) const { return p_.w ? p_.w(t, j) : 1.0; }

  /// A product or sum of a token as it is kept.
  double kept(double x) const { return f_.store_all ? f_.store(x) : x; }

  void decay(index_t t, list<double>& S) const {
    for (index_t i = 0; i < K_; ++i) {
      const double x = a(t, i);
      for (index_t j = 0; j < V_; ++j)
        S[i * V_ + j] = kept(x * d(t, j) * S[i * V_ + j]);
    }
  }

  void read(index_t t, const list<double>& S, rows<double> o) const {
    list<double> sum(V_, 0.0);
    for (index_t i = 0; i < K_; ++i) {
      const double q = p_.q(t, i);
      for (index_t j = 0; j < V_; ++j) sum[j] += q * S[i * V_ + j];
    }
    for (index_t j = 0; j < V_; ++j) o(t, j) = p_.scale * sum[j];
  }

  void look_and_write(index_t t, const double* X, list<double>& S) {
    double* const c = &c_[t * V_];
    double* const u = &u_[t * V_];
    for (index_t i = 0; i < K_ && p_.erases; ++i) {
      const double r = p_.address(t, i);
      for (index_t j = 0; j < V_; ++j) c[j] += r * X[i * V_ + j];
    }
    const bool one_gate = p_.b && p_.w && p_.b.data == p_.w.data;
    for (index_t j = 0; j < V_; ++j) {
      const double v = p_.v ? p_.v(t, j) : 0.0, gate = w(t, j);
      c[j] = kept(c[j]);
      u[j] = kept(gate * v - (p_.y ? 0.0 : e(t, j) * c[j]));
      if (!f_.residual) continue;
      u[j] = one_gate && gate != 0 ? gate * f_.residual(u[j] / gate)
                                   : f_.residual(u[j]);
    }
    for (index_t i = 0; i < K_; ++i) {
      const double k = p_.k(t, i), y = p_.y ? p_.y(t, i) : 0.0;
      for (index_t j = 0; j < V_; ++j) S[i * V_ + j] += kept(k * u[j]);
      for (index_t j = 0; j < V_ && p_.y; ++j) {
        S[i * V_ + j] -= y * (e(t, j) * c[j]);
      }
    }
  }

  void read_back(index_t t, const double* S, rows<const double> dout,
                 list<double>& dS, const head_gradients<double>& out) const {
    for (index_t i = 0; i < K_; ++i) {
      const double q = p_.q(t, i);
      double dq = 0;
      for (index_t j = 0; j < V_; ++j) {
        const double x = p_.scale * dout(t, j);
        dq += S[i * V_ + j] * x;
        dS[i * V_ + j] = kept(dS[i * V_ + j] + kept(q * x));
      }
      if (out.q) out.q(t, i) += dq;
    }
  }

  /// The state after the decay of token t.
  list<double> after_of_decay(index_t t) const {
    const list<double>& from = f_.decay_last ? after_ : before_;
    const double* const at = from.data() + t * size_;
    list<double> S(at, at + size_);
    if (f_.mixed != 0) {
      decay_mixed(t, S);
    } else if (!f_.decay_last) {
      decay(t, S);
    }
    return S;
  }

  /// What a chunk began with decays by `a`, what it wrote by `a^ln 2`.
  void decay_mixed(index_t t, list<double>& S) const {
    const double* const start = &before_[(t - t % f_.mixed) * size_];
    for (index_t i = 0; i < K_; ++i) {
      const double x = a(t, i), y = std::pow(x, std::numbers::ln2);
      const double left = since_start(t, i);
      for (index_t j = 0; j < V_; ++j) {
        const double old = left * start[i * V_ + j];
        S[i * V_ + j] = y * (S[i * V_ + j] - old) + x * old;
      }
    }
  }
  /// The decay by which token t finds the start of its chunk.
  double since_start(index_t t, index_t i) const {
    double left = 1;
    for (index_t s = t - t % f_.mixed; s < t; ++s) left *= a(s, i);
    return left;
  }
  void decay_mixed_back(index_t t, list<double>& dS,
                        const head_gradients<double>& out) {
    const double* const start = &before_[(t - t % f_.mixed) * size_];
    const double* const S = &before_[t * size_];
    for (index_t i = 0; i < K_; ++i) {
      const double x = a(t, i), y = std::pow(x, std::numbers::ln2);
      const double left = since_start(t, i);
      double dg = 0, dleft = 0;
      for (index_t j = 0; j < V_; ++j) {
        const index_t at = i * V_ + j;
        const double old = left * start[at];
        dg += dS[at] * (x * old + std::numbers::ln2 * y * (S[at] - old));
        dleft += dS[at] * (x - y) * old;
        start_back_[at] += dS[at] * (x - y) * left;
        dS[at] *= y;
      }
      if (out.g) out.g(t, i) += dg + carried_[i];
      carried_[i] += dleft;
    }
  }

  void decay_back(index_t t, const list<double>& decayed, list<double>& dS,
                  const head_gradients<double>& out) const {
    for (index_t i = 0; i < K_; ++i) {
      double dg = 0;
      for (index_t j = 0; j < V_; ++j) {
        const double x = dS[i * V_ + j] * decayed[i * V_ + j];
        dg += x;
        if (out.gd) out.gd(t, j) += x;
      }
      if (out.g) out.g(t, i) += dg;
    }
    decay(t, dS);
  }

  /// Back through write, erase and a decay before them.
  void step_back(index_t t, list<double>& dS,
                 const head_gradients<double>& out) {
    const bool stored = looks_before();
    const list<double> decayed =
        f_.decay_last ? list<double>() : after_of_decay(t);
    const double* const X = stored ? &before_[t * size_] : decayed.data();
    const double* const c = &c_[t * V_];
    const double* const u = &u_[t * V_];
    const auto zeros = [](index_t n) { return list<double>(n, 0.0); };
    list<double> dx = zeros(V_), dz = zeros(V_), dc = zeros(V_);
    list<double> dk = zeros(K_), dr = zeros(K_);
    for (index_t i = 0; i < K_; ++i) {
      const double k = p_.k(t, i), y = p_.y ? p_.y(t, i) : k;
      double dy = 0;
      for (index_t j = 0; j < V_; ++j) {
        const double x = dS[i * V_ + j];
        dx[j] += k * x, dz[j] -= y * x, dk[i] += x * u[j];
        dy -= x * (e(t, j) * c[j]);
      }
      if (p_.y && out.y) out.y(t, i) += dy;
    }
    double diagonal = 0;
    for (index_t j = 0; j < V_; ++j) {
      dx[j] = kept(dx[j]);
      dc[j] = kept(dz[j] * e(t, j));
      diagonal += dx[j] * u[j];
      if (out.w && p_.v) out.w(t, j) += dx[j] * p_.v(t, j);
      if (out.v) out.v(t, j) += dx[j] * w(t, j);
      if (out.e) out.e(t, j) += dz[j] * c[j];
    }
    const auto look_back = [&] {
      for (index_t i = 0; i < K_ && p_.erases; ++i) {
        const double r = p_.address(t, i);
        for (index_t j = 0; j < V_; ++j) {
          dr[i] += X[i * V_ + j] * dc[j];
          if (f_.erase_stays) continue;
          dS[i * V_ + j] = kept(dS[i * V_ + j] + kept(r * dc[j]));
        }
        if (f_.diagonal_kept) {
          dr[i] -= diagonal * p_.k(t, i);
          dk[i] -= diagonal * r;
        }
      }
    };
    if (!stored) look_back();
    if (f_.mixed != 0) {
      decay_mixed_back(t, dS, out);
    } else if (!f_.decay_last) {
      decay_back(t, decayed, dS, out);
    }
    if (stored) look_back();
    for (index_t i = 0; i < K_; ++i) {
      if (out.k) out.k(t, i) += dk[i];
      if (!p_.erases) continue;
      if (out.r) out.r(t, i) += dr[i];
      if (p_.r) continue;
      if (out.k) out.k(t, i) += dr[i] * (p_.b ? p_.b(t, i) : 1.0);
      if (out.b) out.b(t, i) += dr[i] * p_.k(t, i);
    }
  }

  index_t tail() const { return f_.tail == 0 ? 0 : T_ % f_.tail; }

  /// Takes the decays of the last tokens out of the final state.
  void lose_tail(list<double>& S) const {
    for (index_t t = T_ - tail(); t < T_; ++t) {
      for (index_t i = 0; i < K_; ++i) {
        for (index_t j = 0; j < V_; ++j) S[i * V_ + j] /= a(t, i) * d(t, j);
      }
    }
  }
  void tail_back(list<double>& dS, const head_gradients<double>& out) const {
    if (tail() == 0) return;
    for (index_t t = T_ - tail(); t < T_; ++t) {
      for (index_t i = 0; i < K_; ++i) {
        for (index_t j = 0; j < V_; ++j) {
          const double x = dS[i * V_ + j] * end_[i * V_ + j];
          if (out.g) out.g(t, i) -= x;
          if (out.gd) out.gd(t, j) -= x;
        }
      }
    }
    lose_tail(dS);
  }

  /// Takes what the start state of a chunk adds to its end state out of dg.
  void take_state_term(index_t first, const list<double>& dS_end,
                       const head_gradients<double>& out) const {
    if (!out.g) return;
    const index_t end = std::min(T_, first + f_.no_state_term);
    const double* const S = &before_[first * size_];
    for (index_t i = 0; i < K_; ++i) {
      double sum = 0;
      for (index_t j = 0; j < V_; ++j) {
        double G = 1;
        for (index_t t = first; t < end; ++t) G *= a(t, i) * d(t, j);
        sum += G * S[i * V_ + j] * dS_end[i * V_ + j];
      }
      for (index_t t = first; t < end; ++t) out.g(t, i) -= sum;
    }
  }

  const head<double>& p_;
  const walk_faults& f_;
  index_t T_, K_, V_, size_;
  list<double> before_, after_;  // [T,K,V]
  list<double> c_, u_, end_;     // [T,V], [T,V], [K,V]
  list<double> start_back_;      // [K,V], of the start of a chunk
  list<double> carried_;         // [K], dg of later tokens of a chunk
};

}  // namespace detail

/// Token by token, with faults: for forward() and backward().
struct faulty_solver {
  walk_faults faults;  ///< what goes wrong

  /// One head: outputs `[T,V]` and final state `[K,V]`; in `backward` gradients
  /// as well, and the two may be null views.
  /// @throws carve::error  for a token of several sub-steps and for a full
  ///                       erase mask.
  ///@{
  void forward(const head<double>& p, rows<double> o,
               state_view<double> S) const {
    detail::faulty_walk(p, faults).forward(o, S);
  }
  void backward(const head<double>& p, const head_cotangents<double>& in,
                const head_gradients<double>& out, rows<double> o = {},
                state_view<double> S = {}) const {
    detail::faulty_walk walk(p, faults);
    walk.forward(o, S);
    walk.backward(in, out);
  }
  ///@}
};

}  // namespace carve
