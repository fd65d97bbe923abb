/// @file
/// CARVE's content gate: an erase gate on the key axis that looks at what the
/// previous window of tokens read, forward and backward, for any solver.
#pragma once

#include <algorithm>
#include <vector>

#include "carve/error.hpp"
#include "carve/head.hpp"
#include "carve/scalar.hpp"

namespace carve {

/// The parameters of one head's content gate. For t in window c
///
///     b_t = f(x_t + W_up (W_down m_c)),   m_c = mean of o over window c - 1
///
/// with `m_0 = 0`, for every sub-step of t. `x` are the logits in head::b, `f`
/// the activation. The window is part of the model: another length is another
/// function.
template <class T>
struct content_gate {
  index_t window = 0;          ///< Lc, tokens per content window
  index_t rank = 0;            ///< rho, inner rank of the projection
  state_view<const T> w_down;  ///< [rho, V]
  state_view<const T> w_up;    ///< [K, rho]
};

/// Where the gradients of the content gate's parameters go, accumulated with
/// `+=`; a null view is skipped. That of the logits goes to head_gradients::b.
template <class T>
struct content_gate_gradients {
  state_view<T> w_down;  ///< [rho, V]
  state_view<T> w_up;    ///< [K, rho]
};

/// `f(x) = 1 / (1 + exp(-x))`, the activation of the model.
struct sigmoid_activation {
  /// f(x)
  template <class T>
  T value(const T& x) const {
    return sigmoid(x);
  }
  /// Derivative at x, whose value is b.
  template <class T>
  T derivative(const T&, const T& b) const {
    return b * (T(1) - b);
  }
};

namespace detail {

/// An integer of at least 0 as an element of the ring, whose integers are made
/// of `int`: `int(n)` itself cuts 2^32 to 0.
template <class T>
T integer(index_t n) {
  constexpr index_t digit = index_t(1) << 30;
  if (n < digit) return T(static_cast<int>(n));
  return integer<T>(n / digit) * T(static_cast<int>(digit)) +
         T(static_cast<int>(n % digit));
}

/// Numbers in rows and columns.  Not a `matrix`: nothing is multiplied here,
/// and batches stay free of Eigen.
template <class T>
class grid {
 public:
  grid() = default;
  grid(index_t height, index_t width)
      : width_(width), x_(static_cast<std::size_t>(height * width), T(0)) {}

  T& operator()(index_t i, index_t j) { return x_[at(i, j)]; }
  const T& operator()(index_t i, index_t j) const { return x_[at(i, j)]; }
  T* data() { return x_.data(); }
  const T* data() const { return x_.data(); }
  state_view<T> view() { return {x_.data(), width_, 1}; }
  state_view<const T> view() const { return {x_.data(), width_, 1}; }

 private:
  std::size_t at(index_t i, index_t j) const {
    return static_cast<std::size_t>(i * width_ + j);
  }

  index_t width_ = 0;
  std::vector<T> x_;
};

/// What the forward walk over windows leaves for the way back.
template <class T>
struct window_record {
  grid<T> start;        // state at the window's start [K,V]
  list<T> mean, inner;  // m_c [V], W_down m_c [rho]
};

template <class T, class Solver, class Activation>
class content_walk {
 public:
  content_walk(const head<T>& p, const content_gate<T>& gate,
               const Solver& solver, const Activation& f)
      : p_(p), gate_(gate), solver_(solver), f_(f), n_(p.substeps) {
    if (gate.window < 1) {
      throw error("window: expected at least 1 token, got ", gate.window);
    }
    // Without tokens there are no logits to point at.
    if ((!p.b && p.tokens > 0) || p.e || p.mask || !p.erases) {
      throw error(
          "content gate: expected logits of a key-axis erase gate and no "
          "other erase gate");
    }
    logits_ = p.b;
    require_step(p);
    b_ = grid<T>(p.steps(), p.keys);
    o_ = grid<T>(p.tokens, p.values);
    S_ = grid<T>(p.keys, p.values);
    for (index_t i = 0; i < p.keys && p.S0; ++i) {
      for (index_t j = 0; j < p.values; ++j) S_(i, j) = p.S0(i, j);
    }
  }

  void forward(bool record) {
    const index_t K = p_.keys, V = p_.values;
    const T share = T(1) / integer<T>(gate_.window);
    list<T> mean(V, T(0)), inner(gate_.rank, T(0));
    for (index_t t0 = 0; t0 < p_.tokens; t0 += gate_.window) {
      const index_t n = std::min(gate_.window, p_.tokens - t0);
      for (index_t m = 0; m < gate_.rank; ++m) {
        inner[m] = T(0);
        for (index_t j = 0; j < V; ++j)
          inner[m] += gate_.w_down(m, j) * mean[j];
      }
      for (index_t i = 0; i < K; ++i) {
        const T shift = shift_of(i, inner);
        for (index_t m = t0 * n_; m < (t0 + n) * n_; ++m) {
          b_(m, i) = f_.value(T(logits_(m, i) + shift));
        }
      }
      if (record) records_.push_back({S_, mean, inner});
      const grid<T> start = S_;
      solver_.forward(segment(t0, n, start), rows<T>{&o_(t0, 0), V, 1},
                      S_.view());
      for (index_t j = 0; j < V; ++j) {
        mean[j] = T(0);
        for (index_t t = t0; t < t0 + n; ++t) mean[j] += share * o_(t, j);
      }
    }
  }

  void backward(const head_cotangents<T>& in, const head_gradients<T>& out,
                const content_gate_gradients<T>& parameters) {
    const index_t K = p_.keys, V = p_.values;
    const T share = T(1) / integer<T>(gate_.window);
    grid<T> dS = grid<T>(K, V);
    for (index_t i = 0; i < K && in.S; ++i) {
      for (index_t j = 0; j < V; ++j) dS(i, j) = in.S(i, j);
    }
    list<T> dmean(V, T(0));  // cotangent of the next window's mean
    for (index_t c = records_.count(); c-- > 0;) {
      const index_t t0 = c * gate_.window;
      const index_t n = std::min(gate_.window, p_.tokens - t0);
      const window_record<T>& past = records_[c];
      grid<T> dout(n, V), db = grid<T>(n * n_, K);
      for (index_t t = 0; t < n; ++t) {
        for (index_t j = 0; j < V; ++j) {
          dout(t, j) = share * dmean[j];
          if (in.o) dout(t, j) += in.o(t0 + t, j);
        }
      }
      grid<T> dstart = grid<T>(K, V);
      head_gradients<T> target = out.segment(t0, dstart.view(), n_);
      target.b = {db.data(), K, 1};
      solver_.backward(segment(t0, n, past.start),
                       {rows<const T>{dout.data(), V, 1}, dS.view()}, target);
      dS = dstart;
      list<T> dshift(K, T(0)), dinner(gate_.rank, T(0));
      for (index_t i = 0; i < K; ++i) {
        const T shift = shift_of(i, past.inner);
        for (index_t s = 0; s < n * n_; ++s) {
          const index_t m = t0 * n_ + s;
          const T x = logits_(m, i) + shift;
          const T dx = db(s, i) * f_.derivative(x, T(b_(m, i)));
          if (out.b) out.b(m, i) += dx;
          dshift[i] += dx;
        }
        for (index_t m = 0; m < gate_.rank; ++m) {
          if (parameters.w_up)
            parameters.w_up(i, m) += dshift[i] * past.inner[m];
          dinner[m] += gate_.w_up(i, m) * dshift[i];
        }
      }
      for (index_t j = 0; j < V; ++j) {
        dmean[j] = T(0);
        for (index_t m = 0; m < gate_.rank; ++m) {
          if (parameters.w_down) {
            parameters.w_down(m, j) += dinner[m] * past.mean[j];
          }
          dmean[j] += gate_.w_down(m, j) * dinner[m];
        }
      }
    }
    for (index_t i = 0; i < K && out.S0; ++i) {
      for (index_t j = 0; j < V; ++j) out.S0(i, j) += dS(i, j);
    }
  }

  void results(rows<T> o, state_view<T> S) const {
    for (index_t t = 0; t < p_.tokens && o; ++t) {
      for (index_t j = 0; j < p_.values; ++j) o(t, j) = o_(t, j);
    }
    for (index_t i = 0; i < p_.keys && S; ++i) {
      for (index_t j = 0; j < p_.values; ++j) S(i, j) = S_(i, j);
    }
  }

 private:
  /// `W_up (W_down m)` at key channel i.
  T shift_of(index_t i, const list<T>& inner) const {
    T shift(0);
    for (index_t m = 0; m < gate_.rank; ++m) {
      shift += gate_.w_up(i, m) * inner[m];
    }
    return shift;
  }

  /// Tokens of one window, their gate in place of the logits.
  head<T> segment(index_t t0, index_t n, const grid<T>& start) const {
    head<T> h = p_.segment(t0, n, start.view());
    h.b = rows<const T>{b_.data(), p_.keys, 1}.from(t0 * n_);
    return h;
  }

  const head<T>& p_;
  const content_gate<T>& gate_;
  const Solver& solver_;
  const Activation& f_;
  index_t n_;  // sub-steps a token
  rows<const T> logits_;
  grid<T> b_, o_, S_;
  list<window_record<T>> records_;
};

}  // namespace detail

/// Forward with a content gate. The gate of a window is known before the
/// window starts and is the same for every value channel, so within a window
/// any solver applies, the chunked WY form included; windows come one after
/// the other.
/// @param[in] p       the head; head::b holds the erase logits x.
/// @param[in] gate    window length and projections.
/// @param[in] solver  recurrent_solver or chunked_solver.
/// @param[out] o      outputs `[T,V]`, or a null view.
/// @param[out] S      final state `[K,V]`, or a null view.
/// @param[in] f       activation with `value` and `derivative`.
/// @throws carve::error  for a window below 1 or another erase gate.
/// Source: arXiv 2606.27229; the exact wiring of mean and projection is this
/// library's reading of it.
template <class T, class Solver, class Activation = sigmoid_activation>
void content_forward(const head<T>& p, const content_gate<T>& gate,
                     const Solver& solver, rows<T> o, state_view<T> S,
                     const Activation& f = {}) {
  detail::content_walk<T, Solver, Activation> walk(p, gate, solver, f);
  walk.forward(false);
  walk.results(o, S);
}

/// Forward and backward with a content gate; parameters as in content_forward
/// and recurrent_backward. Every output of window c - 1 receives
/// `(1/Lc) W_down^T W_up^T sum_{t in c} dx_t` before its own step is walked.
template <class T, class Solver, class Activation = sigmoid_activation>
void content_backward(const head<T>& p, const content_gate<T>& gate,
                      const Solver& solver, const head_cotangents<T>& in,
                      const head_gradients<T>& out,
                      const content_gate_gradients<T>& parameters,
                      rows<T> o = {}, state_view<T> S = {},
                      const Activation& f = {}) {
  detail::content_walk<T, Solver, Activation> walk(p, gate, solver, f);
  walk.forward(true);
  walk.results(o, S);
  walk.backward(in, out, parameters);
}

}  // namespace carve
