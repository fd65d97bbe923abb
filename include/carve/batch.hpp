/// @file
/// Whole problems, forward and backward: activations, heads, sequences, all
/// cores.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "carve/content_gate.hpp"
#include "carve/default_solver.hpp"
#include "carve/parallel.hpp"
#include "carve/problem.hpp"

namespace carve {

/// Outputs together with the gradients of everything that went in.
template <class T>
struct gradient_result {
  outputs<T> out;        ///< outputs and final states
  tensors<T> gradients;  ///< of each tensor present in problem::in
};

/// A checked problem with its activations applied, and its heads.
template <class T>
class batch {
 public:
  /// @throws carve::error  as check() does.
  explicit batch(const problem<T>& p, const run_options& run = {})
      : p_(p), n_(check(p)) {
    constexpr auto given = tensors<T>::members();
    constexpr auto seen = each_tensor<source>::members();
    for (std::size_t i = 0; i < given.size(); ++i) {
      x_.*seen[i].at = source(p.in.*given[i].at);
    }
    if constexpr (scalar_traits<T>::is_real) {
      const activations& act = p.act;
      if (act.l2norm) {
        x_.q = l2_normalise(p.in.q, act);
        x_.k = l2_normalise(p.in.k, act);
      }
      if (act.decay != decay_activation::none) {
        x_.g = activate_decay(act, p.in.g, p.in.A_log, p.in.dt_bias);
      }
      if (act.domain != decay_domain::log) {
        x_.g = natural_log(act.domain, *x_.g);
        x_.gd = natural_log(act.domain, p.in.gd);
      }
      const auto gate = [](gate_activation f, source& x) {
        if (f != gate_activation::none) x = activate(f, *x);
      };
      gate(act.beta, x_.beta);
      if (!info(p.family).content_gate) gate(act.b, x_.b);
      gate(act.w, x_.w);
      if (!p.linear_decay) {
        a_ = exponential(*x_.g, run);
        d_ = exponential(*x_.gd, run);
      }
      scale_ =
          p.scale ? *p.scale : T(T(1) / carve::sqrt(T(static_cast<int>(n_.K))));
    } else {
      if (!p.linear_decay && (p.in.g.present() || p.in.gd.present())) {
        throw error("g: expected linear decays for the scalar ",
                    scalar_traits<T>::name, ", which has no exp");
      }
      if (!p.scale) {
        throw error("scale: expected a value for the scalar ",
                    scalar_traits<T>::name, ", which has no square root");
      }
      scale_ = *p.scale;
    }
    if (row().address == erase_address::gated_p) {
      x_.r = times_gate(*x_.p, *erase_gate(x_));
    }
    if (row().direction == erase_direction::gated_address) {
      x_.y = times_gate(*x_.r, *erase_gate(x_));
    }
    if (row().steps == substeps::erase_then_delta) {
      x_.v = in_turn(tensor<T>(x_.v->shape), *x_.v);
      x_.k = in_turn(*x_.p, *x_.k);
      x_.beta = in_turn(*x_.eta, *x_.beta);
    }
    if (row().steps == substeps::trapezoid) {
      x_.v = in_turn(one_token_later(*x_.v), *x_.v);
      x_.k = in_turn(one_token_later(*x_.k), *x_.k);
      x_.w = in_turn(*x_.w_last, *x_.w);
    }
  }

  /// The sizes that check() found.
  const dimensions& size() const { return n_; }

  /// Value head `hv` of sequence `n`.
  head<T> head_of(index_t n, index_t hv) const {
    head<T> h;
    h.tokens = range(n).second - range(n).first;
    h.keys = n_.K, h.values = n_.V, h.substeps = rows_a_token(*x_.k);
    h.q = view<const T>(*x_.q, n, hv), h.k = view<const T>(*x_.k, n, hv);
    h.v = view<const T>(*x_.v, n, hv);
    h.a = view<const T>(p_.linear_decay ? *x_.g : a_, n, hv);
    h.d = view<const T>(p_.linear_decay ? *x_.gd : d_, n, hv);
    if (!p_.linear_decay) h.g = view<const T>(*x_.g, n, hv);
    h.r = view<const T>(*x_.r, n, hv), h.y = view<const T>(*x_.y, n, hv);
    if (!h.r) h.b = view<const T>(*erase_gate(x_), n, hv);
    h.w = view<const T>(row().tied ? *x_.beta : *x_.w, n, hv);
    h.e = view<const T>(*x_.e, n, hv);
    h.mask = mask_view<const T>(*x_.E, n, hv);
    h.erases = row().erases();
    h.erase_reads = p_.erase_reads.value_or(row().erase_reads);
    h.S0 = states<const T>(*x_.initial_state, n, hv);
    h.scale = scale_;
    h.read = p_.read;
    return h;
  }

  /// Where the gradients of that head go in `to`.
  head_gradients<T> gradients_of(tensors<T>& to, index_t n, index_t hv) const {
    head_gradients<T> h;
    h.q = view<T>(to.q, n, hv), h.k = view<T>(to.k, n, hv);
    h.v = view<T>(to.v, n, hv), h.g = view<T>(to.g, n, hv);
    h.gd = view<T>(to.gd, n, hv), h.e = view<T>(to.e, n, hv);
    h.r = view<T>(to.r, n, hv), h.y = view<T>(to.y, n, hv);
    if (!x_.r->present()) h.b = view<T>(erase_gate(to), n, hv);
    h.w = view<T>(row().tied ? to.beta : to.w, n, hv);
    h.mask = mask_view<T>(to.E, n, hv);
    h.S0 = states<T>(to.initial_state, n, hv);
    return h;
  }

  /// The content gate of value head `hv`.
  content_gate<T> gate_of(index_t hv) const {
    return {p_.window,
            n_.rho,
            {x_.w_down->data.data() + hv * n_.rho * n_.V, n_.V, 1},
            {x_.w_up->data.data() + hv * n_.K * n_.rho, n_.rho, 1}};
  }

  /// Tokens of sequence `n` and value head `hv` in a tensor `[B,T,HV,V]`; in
  /// one with fewer heads, H, those of head `hv / (HV / H)`, or `hv % H` if
  /// tiled_heads; in one without a channel axis a broadcast number per token.
  /// An absent tensor gives a null view.
  template <class U, class Tensor>
  rows<U> view(Tensor& x, index_t n, index_t hv) const {
    if (!x.present()) return {};
    const index_t heads = x.dim(2), width = x.rank() == 4 ? x.dim(3) : 1;
    const index_t first = first_token(n) * rows_a_token(x);
    return {x.data.data() + (first * heads + head_in(heads, hv)) * width,
            heads * width, x.rank() == 4 ? 1 : 0};
  }

  /// State of sequence `n` and value head `hv`, in the storage order of
  /// problem::state_v_first.
  template <class U, class Tensor>
  state_view<U> states(Tensor& x, index_t n, index_t hv) const {
    if (!x.present()) return {};
    U* const data = x.data.data() + (n * n_.HV + hv) * n_.K * n_.V;
    return p_.state_v_first ? state_view<U>{data, 1, n_.K}
                            : state_view<U>{data, n_.V, 1};
  }

  /// A tensor of zeros for the outputs `[B,T,HV,V]`, or for the final states
  /// `[N,HV,K,V]` (`[N,HV,V,K]` if state_v_first).
  ///@{
  tensor<T> zero_outputs() const {
    return tensor<T>({n_.B, n_.T, n_.HV, n_.V});
  }
  tensor<T> zero_states() const {
    return tensor<T>(p_.state_v_first ? tensor_shape{n_.N, n_.HV, n_.V, n_.K}
                                      : tensor_shape{n_.N, n_.HV, n_.K, n_.V});
  }
  ///@}

  /// Zeros for the gradient of each tensor that the heads read: those of the
  /// problem, and what is made of several.
  tensors<T> zero_gradients() const {
    tensors<T> d;
    constexpr auto members = tensors<T>::members();
    constexpr auto seen = each_tensor<source>::members();
    for (std::size_t i = 0; i < members.size(); ++i) {
      const tensor<T>& x = *(x_.*seen[i].at);
      if (x.present()) d.*members[i].at = tensor<T>(x.shape);
    }
    return d;
  }

  /// Cotangents of the raw inputs from those of the activated ones.
  void activations_back(tensors<T>& d) const {
    if (row().steps == substeps::erase_then_delta) {
      tensor<T> nothing(p_.in.v.shape);
      in_turn_back(nothing, p_.in.v, d.v);
      in_turn_back(d.p, p_.in.k, d.k);
      in_turn_back(d.eta, p_.in.beta, d.beta);
    }
    if (row().steps == substeps::trapezoid) {
      tensor<T> last_v(p_.in.v.shape), last_k(p_.in.k.shape);
      in_turn_back(last_v, p_.in.v, d.v);
      in_turn_back(last_k, p_.in.k, d.k);
      in_turn_back(d.w_last, p_.in.w, d.w);
      each_pair_of_tokens(d.v, [&](std::size_t t, std::size_t next) {
        d.v.data[t] += last_v.data[next];
      });
      each_pair_of_tokens(d.k, [&](std::size_t t, std::size_t next) {
        d.k.data[t] += last_k.data[next];
      });
    }
    if (row().direction == erase_direction::gated_address) {
      times_gate_back(*x_.r, *erase_gate(x_), d.y, d.r, erase_gate(d));
      d.y = {};
    }
    if (row().address == erase_address::gated_p) {
      times_gate_back(*x_.p, *erase_gate(x_), d.r, d.p, erase_gate(d));
      d.r = {};
    }
    if constexpr (scalar_traits<T>::is_real) {
      const activations& act = p_.act;
      const tensors<T>& raw = p_.in;
      if (act.l2norm) {
        d.q = l2_normalise_back(raw.q, std::move(d.q), act);
        d.k = l2_normalise_back(raw.k, std::move(d.k), act);
      }
      d.g = natural_log_back(act.domain, raw.g, std::move(d.g));
      d.gd = natural_log_back(act.domain, raw.gd, std::move(d.gd));
      d.g = activate_decay_back(act, raw.g, raw.A_log, raw.dt_bias,
                                std::move(d.g), &d.A_log, &d.dt_bias);
      d.beta = activate_back(act.beta, raw.beta, std::move(d.beta));
      if (!info(p_.family).content_gate) {
        d.b = activate_back(act.b, raw.b, std::move(d.b));
      }
      d.w = activate_back(act.w, raw.w, std::move(d.w));
    }
  }

 private:
  /// @cond
  // A tensor that the heads read: the problem's own, or one made of it.
  class source {
   public:
    source() = default;
    explicit source(const tensor<T>& x) : given_(&x) {}
    source& operator=(tensor<T> x) {
      made_ = std::move(x), given_ = nullptr;
      return *this;
    }

    const tensor<T>& operator*() const { return given_ ? *given_ : made_; }
    const tensor<T>* operator->() const { return &**this; }

   private:
    const tensor<T>* given_ = nullptr;
    tensor<T> made_;
  };
  /// @endcond

  const family_info& row() const { return info(p_.family); }

  /// beta or b.
  template <class Tensors>
  auto& erase_gate(Tensors& x) const {
    return row().tied ? x.beta : x.b;
  }

  /// Which of a tensor's heads value head `hv` reads.
  index_t head_in(index_t heads, index_t hv) const {
    return p_.tiled_heads ? hv % heads : hv / (n_.HV / heads);
  }

  /// The first token of sequence n, of all batch entries.
  index_t first_token(index_t n) const {
    return p_.cu_seqlens.empty() ? n * n_.T : range(n).first;
  }

  /// Rows a token of a tensor: its sub-steps.
  template <class U>
  index_t rows_a_token(const tensor<U>& x) const {
    return n_.T > 0 ? x.dim(1) / n_.T : 1;
  }

  /// Elements that meet in a product of a tensor [B,T,HV,K] and a gate, each of
  /// which may have H heads and the gate no channels: calls `visit` with the
  /// places in the product, the tensor and the gate.
  template <class Visit>
  void each_product(const tensor<T>& x, const tensor<T>& gate,
                    const Visit& visit) const {
    const index_t tokens = n_.B * n_.T;
    const auto place = [&](const tensor<T>& y, index_t t, index_t hv) {
      return t * y.dim(2) + head_in(y.dim(2), hv);
    };
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t hv = 0; hv < n_.HV; ++hv) {
        const index_t from = place(x, t, hv) * n_.K, g = place(gate, t, hv);
        for (index_t i = 0; i < n_.K; ++i) {
          visit(static_cast<std::size_t>((t * n_.HV + hv) * n_.K + i),
                static_cast<std::size_t>(from + i),
                static_cast<std::size_t>(gate.rank() == 4 ? g * n_.K + i : g));
        }
      }
    }
  }

  tensor<T> times_gate(const tensor<T>& x, const tensor<T>& gate) const {
    tensor<T> y({n_.B, n_.T, n_.HV, n_.K});
    each_product(x, gate, [&](std::size_t m, std::size_t i, std::size_t j) {
      y.data[m] = gate.data[j] * x.data[i];
    });
    return y;
  }
  void times_gate_back(const tensor<T>& x, const tensor<T>& gate,
                       const tensor<T>& dy, tensor<T>& dx,
                       tensor<T>& dgate) const {
    each_product(x, gate, [&](std::size_t m, std::size_t i, std::size_t j) {
      dx.data[i] += gate.data[j] * dy.data[m];
      dgate.data[j] += x.data[i] * dy.data[m];
    });
  }

  /// The rows of two tensors [B,T,heads,...] in turn, one of each a token. They
  /// have HV heads where the heads of the two differ.
  tensor<T> in_turn(const tensor<T>& first, const tensor<T>& second) const {
    tensor<T> both = first;
    both.shape[1] = 2 * n_.T;
    if (first.dim(2) != second.dim(2)) both.shape[2] = n_.HV;
    both = tensor<T>(both.shape);
    each_turn(both, 0, first, [&](std::size_t to, std::size_t from) {
      both.data[to] = first.data[from];
    });
    each_turn(both, 1, second, [&](std::size_t to, std::size_t from) {
      both.data[to] = second.data[from];
    });
    return both;
  }
  /// From `d`, the gradient of both, those of the first and, in its place, of
  /// the second.
  void in_turn_back(tensor<T>& dfirst, const tensor<T>& second,
                    tensor<T>& d) const {
    const tensor<T> both = std::exchange(d, tensor<T>(second.shape));
    each_turn(both, 0, dfirst, [&](std::size_t from, std::size_t to) {
      dfirst.data[to] += both.data[from];
    });
    each_turn(both, 1, d, [&](std::size_t from, std::size_t to) {
      d.data[to] += both.data[from];
    });
  }
  /// Calls `visit` with the place in `both` and in `x` of each element of x,
  /// whose rows come first or second in turn.
  template <class Visit>
  void each_turn(const tensor<T>& both, index_t turn, const tensor<T>& x,
                 const Visit& visit) const {
    const index_t width = x.rank() == 4 ? x.dim(3) : 1, heads = both.dim(2);
    for (index_t t = 0; t < n_.B * n_.T; ++t) {
      for (index_t h = 0; h < heads; ++h) {
        const index_t own = heads == x.dim(2) ? h : head_in(x.dim(2), h);
        for (index_t i = 0; i < width; ++i) {
          visit(static_cast<std::size_t>(((2 * t + turn) * heads + h) * width +
                                         i),
                static_cast<std::size_t>((t * x.dim(2) + own) * width + i));
        }
      }
    }
  }

  /// A tensor whose token t is the token before it of `x`; zero for the first
  /// of a sequence.
  tensor<T> one_token_later(const tensor<T>& x) const {
    tensor<T> y(x.shape);
    each_pair_of_tokens(
        x, [&](std::size_t t, std::size_t next) { y.data[next] = x.data[t]; });
    return y;
  }
  /// Calls `visit` with the places of an element of `x` and of that of the next
  /// token, within each sequence.
  template <class Visit>
  void each_pair_of_tokens(const tensor<T>& x, const Visit& visit) const {
    if (x.data.empty()) return;
    const std::size_t width =
        x.data.size() / static_cast<std::size_t>(n_.B * n_.T);
    for (index_t n = 0; n < n_.N; ++n) {
      const index_t tokens = range(n).second - range(n).first;
      const std::size_t first = static_cast<std::size_t>(first_token(n));
      for (std::size_t i = first * width;
           i + width < (first + static_cast<std::size_t>(tokens)) * width;
           ++i) {
        visit(i, i + width);
      }
    }
  }

  /// `exp(g)`; in double-double it costs as much as a few tokens' updates.
  static tensor<T> exponential(const tensor<T>& g, const run_options& run) {
    if (!g.present()) return {};
    tensor<T> a(g.shape);
    constexpr index_t block = 4096;
    const index_t n = static_cast<index_t>(g.data.size());
    const T* const from = g.data.data();
    T* const to = a.data.data();
    parallel_for((n + block - 1) / block, {run.threads, {}}, [&](index_t task) {
      const index_t end = std::min(n, (task + 1) * block);
      for (index_t i = task * block; i < end; ++i) to[i] = carve::exp(from[i]);
    });
    return a;
  }

  /// First and last token of sequence n on the token axis.
  std::pair<index_t, index_t> range(index_t n) const {
    if (p_.cu_seqlens.empty()) return {0, n_.T};
    const auto first = p_.cu_seqlens.begin() + n;
    return {first[0], first[1]};
  }

  template <class U, class Tensor>
  masks<U> mask_view(Tensor& x, index_t n, index_t hv) const {
    if (!x.present()) return {};
    const index_t first = first_token(n) * rows_a_token(x);
    const index_t size = n_.K * n_.V;
    return {x.data.data() + (first * n_.HV + hv) * size, n_.HV * size, n_.V, 1};
  }

  const problem<T>& p_;
  dimensions n_;
  each_tensor<source> x_;
  tensor<T> a_, d_;
  T scale_{};
};

/// Outputs and final states of a problem.
/// @param[in] solver  recurrent_solver, chunked_solver or columnwise_solver.
/// @throws carve::error  as check() does, and where the solver does not apply.
template <class T, class Solver = default_solver>
outputs<T> forward(const problem<T>& p, const Solver& solver = {},
                   const run_options& run = {}) {
  const batch<T> heads(p, run);
  const dimensions n = heads.size();
  outputs<T> out{heads.zero_outputs(), heads.zero_states()};
  parallel_for(n.N * n.HV, run, [&](index_t task) {
    const index_t s = task / n.HV, hv = task % n.HV;
    const head<T> h = heads.head_of(s, hv);
    const rows<T> o = heads.template view<T>(out.o, s, hv);
    const state_view<T> S = heads.template states<T>(out.final_state, s, hv);
    if constexpr (scalar_traits<T>::is_real) {
      if (info(p.family).content_gate) {
        return content_forward(h, heads.gate_of(hv), solver, o, S);
      }
    }
    solver.forward(h, o, S);
  });
  return out;
}

/// Outputs, final states and the gradients of every tensor in the problem.
/// @param[in] cotangents  of outputs and final states; an absent one is zero.
/// @throws carve::error  as forward() does, and for cotangents of other shapes
///                       than the outputs.
template <class T, class Solver = default_solver>
gradient_result<T> backward(const problem<T>& p, const outputs<T>& cotangents,
                            const Solver& solver = {},
                            const run_options& run = {}) {
  const batch<T> heads(p, run);
  const dimensions n = heads.size();
  gradient_result<T> r{{heads.zero_outputs(), heads.zero_states()}, {}};
  for (const auto& m : outputs<T>::members()) {
    if (!(cotangents.*m.at).present()) continue;
    detail::expect_shape("d" + std::string(m.name), cotangents.*m.at,
                         {(r.out.*m.at).shape}, " like " + std::string(m.name));
  }
  r.gradients = heads.zero_gradients();
  const auto walk_back = [&](index_t s, index_t hv) {
    const head<T> h = heads.head_of(s, hv);
    tensors<T>& d = r.gradients;
    const head_gradients<T> to = heads.gradients_of(d, s, hv);
    const head_cotangents<T> in{
        heads.template view<const T>(cotangents.o, s, hv),
        heads.template states<const T>(cotangents.final_state, s, hv)};
    const rows<T> o = heads.template view<T>(r.out.o, s, hv);
    const state_view<T> S = heads.template states<T>(r.out.final_state, s, hv);
    if constexpr (scalar_traits<T>::is_real) {
      if (info(p.family).content_gate) {
        const content_gate_gradients<T> parameters{
            {d.w_down.data.data() + hv * n.rho * n.V, n.V, 1},
            {d.w_up.data.data() + hv * n.K * n.rho, n.rho, 1}};
        return content_backward(h, heads.gate_of(hv), solver, in, to,
                                parameters, o, S);
      }
    }
    solver.backward(h, in, to, o, S);
  };
  // What several heads (q, k or v) or several sequences (the content gate's
  // projections) share is written by one task, in order.
  const index_t shared = std::min(n.H, n.VH), group = n.HV / shared;
  const index_t together = info(p.family).content_gate ? n.N : 1;
  parallel_for(n.N / together * shared, run, [&](index_t task) {
    const index_t first = task / shared, head = task % shared;
    for (index_t s = first; s < first + together; ++s) {
      for (index_t m = 0; m < group; ++m) {
        walk_back(s, p.tiled_heads ? m * shared + head : head * group + m);
      }
    }
  });
  heads.activations_back(r.gradients);
  return r;
}

}  // namespace carve

#ifdef CARVE_REFERENCE
#include "carve/reference_batch.hpp"
#endif
