/// @file
/// A batched problem: named tensors in the field's layout, options, and the
/// check that they fit together.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "carve/activation.hpp"
#include "carve/error.hpp"
#include "carve/gates.hpp"
#include "carve/head.hpp"
#include "carve/scalar.hpp"
#include "carve/tensor.hpp"

namespace carve {

/// The tensors of a problem, or the gradients of all of them. Which ones a
/// family takes is `required_tensors`.
///
/// | tensor | shape | meaning |
/// |---|---|---|
/// | q, k | [B,T,H,K] | query, key |
/// | v | [B,T,HV,V] | value; HV is a multiple of H |
/// | g | [B,T,HV,K] or per head | **natural log** of the key-axis decay |
/// | gd | [B,T,HV,V] or per head | natural log of the value-axis decay |
/// | beta | [B,T,HV] | erase and write gate in one |
/// | b | [B,T,HV,K] or per head | key-axis erase gate; carve: its logits |
/// | e | [B,T,HV,V] or per head | value-axis erase gate |
/// | E | [B,T,HV,K,V] | full-mask erase gate |
/// | w | [B,T,HV,V] or per head | write gate |
/// | initial_state | [N,HV,K,V] | start state; [N,HV,V,K] if state_v_first |
/// | w_down, w_up | [HV,rho,V], [HV,K,rho] | the content gate's projections |
/// | A_log, dt_bias | [HV], [HV] or [HV,K] | of the decay's activation |
///
/// "Per head" is the same without the last axis. Wherever HV stands, H is
/// accepted too. Value head i reads query and key head `i / (HV / H)`.
template <class T>
struct tensors {
  /// A tensor of the table of `tensors`.
  ///@{
  tensor<T> q, k, v, g, gd, beta, b, e, E, w, initial_state;
  tensor<T> w_down, w_up, A_log, dt_bias;
  ///@}

  /// A tensor's name and where it is.
  struct member {
    std::string_view name;   ///< as in the table and in files
    tensor<T> tensors::*at;  ///< `x.*at` is the tensor of `x`
  };
  /// All of them by name.
  static constexpr auto members() {
    return std::array{
        member{"q", &tensors::q},
        member{"k", &tensors::k},
        member{"v", &tensors::v},
        member{"g", &tensors::g},
        member{"gd", &tensors::gd},
        member{"beta", &tensors::beta},
        member{"b", &tensors::b},
        member{"e", &tensors::e},
        member{"E", &tensors::E},
        member{"w", &tensors::w},
        member{"initial_state", &tensors::initial_state},
        member{"w_down", &tensors::w_down},
        member{"w_up", &tensors::w_up},
        member{"A_log", &tensors::A_log},
        member{"dt_bias", &tensors::dt_bias},
    };
  }
};

/// A batched problem: the recurrence of `head` for every sequence and head.
template <class T>
struct problem {
  carve::family family = family::gdn2;  ///< which gates there are
  tensors<T> in;                        ///< the inputs
  /// Packed sequences: B = 1 and N + 1 offsets, first 0, last T, never
  /// decreasing; an empty sequence leaves its state as it was. Empty: every
  /// batch entry is one sequence.
  std::vector<std::int64_t> cu_seqlens;
  std::optional<T> scale;         ///< of the read-out; absent: `1 / sqrt(K)`
  readout read = readout::after;  ///< which state o_t reads
  bool state_v_first = false;     ///< states are [N,HV,V,K]
  /// g and gd hold the decays themselves: for rings, which have no exp.
  bool linear_decay = false;
  activations act;     ///< what g, beta, b, w, q and k go through first
  index_t window = 0;  ///< content window Lc of the carve family
};

/// Outputs and final state of a problem, or their cotangents.
template <class T>
struct outputs {
  tensor<T> o;            ///< [B,T,HV,V]
  tensor<T> final_state;  ///< [N,HV,K,V], or [N,HV,V,K] if state_v_first
};

/// The sizes that the tensors of a problem agree on.
struct dimensions {
  /// Batch, tokens, query and key heads, value heads, key channels, value
  /// channels.
  ///@{
  index_t B = 0, T = 0, H = 0, HV = 0, K = 0, V = 0;
  ///@}
  index_t N = 0;    ///< sequences
  index_t rho = 0;  ///< inner rank of the content gate
};

/// Names of the tensors that a family must have.
inline std::vector<std::string_view> required_tensors(family f) {
  const family_info& row = info(f);
  std::vector<std::string_view> names{"q", "k", "v"};
  if (row.decay != axis::none) names.push_back("g");
  if (row.tied) {
    names.push_back("beta");
    return names;
  }
  if (row.erase == axis::key) names.push_back("b");
  if (row.erase == axis::value) names.push_back("e");
  if (row.erase == axis::mask) names.push_back("E");
  if (row.write != axis::none) names.push_back("w");
  if (f == family::carve) {
    names.push_back("w_down");
    names.push_back("w_up");
  }
  return names;
}

namespace detail {

/// Throws unless `shape` is one of `allowed`.
template <class T>
void expect_shape(std::string_view name, const tensor<T>& x,
                  const std::vector<tensor_shape>& allowed,
                  std::string_view like) {
  std::string expected;
  for (const tensor_shape& s : allowed) {
    if (x.shape == s) return;
    const std::string form = text(s);
    if (expected.find(form) != std::string::npos) continue;
    expected += (expected.empty() ? "" : " or ") + form;
  }
  throw error(name, ": expected ", expected, like, ", got ", x.shape);
}

/// Shapes that a gate may have: per channel (width > 0) and per head.
inline std::vector<tensor_shape> gate_shapes(const dimensions& n,
                                             index_t width) {
  std::vector<tensor_shape> shapes;
  if (width > 0) {
    shapes.push_back({n.B, n.T, n.HV, width});
    if (n.H != n.HV) shapes.push_back({n.B, n.T, n.H, width});
  }
  shapes.push_back({n.B, n.T, n.HV});
  if (n.H != n.HV) shapes.push_back({n.B, n.T, n.H});
  return shapes;
}

inline std::string position(const tensor_shape& shape, std::size_t flat) {
  tensor_shape at(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    at[i] = static_cast<index_t>(flat % static_cast<std::size_t>(shape[i]));
    flat /= static_cast<std::size_t>(shape[i]);
  }
  return text(at);
}

inline index_t check_cu_seqlens(const std::vector<std::int64_t>& cu,
                                const dimensions& n) {
  if (cu.empty()) return n.B;
  if (n.B != 1) {
    throw error("cu_seqlens: expected packed sequences in a batch of 1, got ",
                "B = ", n.B);
  }
  if (cu.size() < 2 || cu.front() != 0) {
    throw error("cu_seqlens: expected at least two offsets, the first 0, got ",
                cu);
  }
  for (std::size_t i = 1; i < cu.size(); ++i) {
    if (cu[i] < cu[i - 1]) {
      throw error("cu_seqlens: expected offsets that never decrease, got ",
                  cu[i - 1], " then ", cu[i], " at entry ", i);
    }
  }
  if (cu.back() != n.T) {
    throw error("cu_seqlens: expected the last offset to be T = ", n.T,
                ", got ", cu.back());
  }
  return static_cast<index_t>(cu.size()) - 1;
}

}  // namespace detail

/// The sizes of a problem, after checking that family, tensors and options fit
/// together.
/// @throws carve::error  naming the tensor, what was expected and what came;
///                       also for a NaN or an infinity in an input.
template <class T>
dimensions check(const problem<T>& p) {
  const family_info& row = info(p.family);
  const tensors<T>& x = p.in;
  for (const std::string_view name : required_tensors(p.family)) {
    for (const auto& m : tensors<T>::members()) {
      if (m.name == name && !(x.*m.at).present()) {
        throw error(name, ": missing; family ", row.name, " needs ",
                    required_tensors(p.family));
      }
    }
  }
  const auto refuse = [&](const tensor<T>& t, std::string_view name) {
    if (t.present()) {
      throw error(name, ": not a tensor of family ", row.name, ", which takes ",
                  required_tensors(p.family));
    }
  };
  if (row.decay == axis::none) refuse(x.g, "g");
  if (!row.tied) refuse(x.beta, "beta");
  if (row.tied || row.erase != axis::key) refuse(x.b, "b");
  if (row.erase != axis::value) refuse(x.e, "e");
  if (row.erase != axis::mask) refuse(x.E, "E");
  if (row.tied || row.write == axis::none) refuse(x.w, "w");
  if (p.family != family::carve) refuse(x.w_down, "w_down");
  if (p.family != family::carve) refuse(x.w_up, "w_up");

  if (x.q.rank() != 4) {
    throw error("q: expected [B,T,H,K], got ", x.q.shape);
  }
  dimensions n;
  n.B = x.q.dim(0), n.T = x.q.dim(1), n.H = x.q.dim(2), n.K = x.q.dim(3);
  if (n.B < 1 || n.H < 1 || n.K < 1) {
    throw error("q: expected [B,T,H,K] with B, H, K at least 1, got ",
                x.q.shape);
  }
  detail::expect_shape("k", x.k, {x.q.shape}, " like q");
  if (x.v.rank() != 4 || x.v.dim(0) != n.B || x.v.dim(1) != n.T ||
      x.v.dim(2) < 1 || x.v.dim(2) % n.H != 0 || x.v.dim(3) < 1) {
    throw error("v: expected [", n.B, ",", n.T, ",HV,V] with HV a multiple of ",
                n.H, ", got ", x.v.shape);
  }
  n.HV = x.v.dim(2), n.V = x.v.dim(3);
  const auto gate = [&](std::string_view name, const tensor<T>& t, axis along) {
    if (!t.present()) return;
    const index_t width = along == axis::key     ? n.K
                          : along == axis::value ? n.V
                                                 : 0;
    detail::expect_shape(name, t, detail::gate_shapes(n, width), "");
  };
  gate("g", x.g, row.decay);
  gate("gd", x.gd, axis::value);
  gate("beta", x.beta, axis::head);
  gate("b", x.b, axis::key);
  gate("e", x.e, axis::value);
  gate("w", x.w, row.write);
  if (x.E.present()) {
    detail::expect_shape("E", x.E, {{n.B, n.T, n.HV, n.K, n.V}}, "");
  }
  n.N = detail::check_cu_seqlens(p.cu_seqlens, n);
  if (x.initial_state.present()) {
    detail::expect_shape("initial_state", x.initial_state,
                         {p.state_v_first ? tensor_shape{n.N, n.HV, n.V, n.K}
                                          : tensor_shape{n.N, n.HV, n.K, n.V}},
                         p.state_v_first ? " ([N,HV,V,K])" : " ([N,HV,K,V])");
  }
  if (p.family == family::carve) {
    if (p.window < 1) {
      throw error("window: expected at least 1 token, got ", p.window);
    }
    n.rho = x.w_down.rank() == 3 ? x.w_down.dim(1) : 0;
    detail::expect_shape("w_down", x.w_down, {{n.HV, n.rho, n.V}},
                         " ([HV,rho,V])");
    detail::expect_shape("w_up", x.w_up, {{n.HV, n.K, n.rho}}, " ([HV,K,rho])");
    if (p.act.b != gate_activation::none) {
      throw error("b: the carve family activates its erase logits itself");
    }
  }
  if (p.act.decay == decay_activation::none) {
    refuse(x.A_log, "A_log");
    refuse(x.dt_bias, "dt_bias");
  }
  if (p.act.decay != decay_activation::none && x.g.present() &&
      x.g.dim(2) != n.HV) {
    throw error("g: expected logits of ", n.HV, " value heads, got ",
                x.g.shape);
  }
  if (x.A_log.present()) {
    detail::expect_shape("A_log", x.A_log, {{n.HV}}, "");
  }
  if (x.dt_bias.present()) {
    detail::expect_shape("dt_bias", x.dt_bias,
                         x.g.rank() == 4
                             ? std::vector<tensor_shape>{{n.HV}, {n.HV, n.K}}
                             : std::vector<tensor_shape>{{n.HV}},
                         "");
  }
  for (const auto& m : tensors<T>::members()) {
    const tensor<T>& t = x.*m.at;
    for (std::size_t i = 0; i < t.data.size(); ++i) {
      if (!carve::isfinite(t.data[i])) {
        throw error(m.name, ": expected finite numbers, got a NaN or an ",
                    "infinity at ", detail::position(t.shape, i));
      }
    }
  }
  return n;
}

}  // namespace carve
