/// @file
/// A batched problem: named tensors in the field's layout, options, and the
/// check that they fit together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "carve/activation.hpp"
#include "carve/error.hpp"
#include "carve/family.hpp"
#include "carve/head.hpp"
#include "carve/scalar.hpp"
#include "carve/tensor.hpp"
#include "carve/tensor_table.hpp"

namespace carve {

/// The tensors of a problem, or the gradients of all of them; the table of
/// each_tensor says which there are, and which family takes which. Gates may
/// have H heads where HV stands. Value head i reads query and key head
/// `i / (HV / H)`. Where q has more heads than v there are as many states as
/// query heads, and k, v and the gates may have the fewer heads of v.
template <class T>
using tensors = each_tensor<tensor<T>>;

/// A batched problem: the recurrence of `head` for every sequence and head.
template <class T>
struct problem {
  carve::family family = family::gdn2;  ///< which gates there are
  tensors<T> in;                        ///< the inputs
  /// Packed sequences: B = 1 and N + 1 offsets, first 0, last at most T, never
  /// decreasing; an empty sequence leaves its state as it was. Tokens after
  /// the last offset belong to none: their outputs and gradients are zero.
  /// Empty: every batch entry is one sequence.
  std::vector<std::int64_t> cu_seqlens;
  std::optional<T> scale;         ///< of the read-out; absent: `1 / sqrt(K)`
  readout read = readout::after;  ///< which state o_t reads
  /// Which state the erase looks into; absent: what the family's row says.
  std::optional<erase_order> erase_reads;
  bool state_v_first = false;  ///< states are [N,HV,V,K]
  /// g and gd hold the decays themselves: for rings, which have no exp.
  bool linear_decay = false;
  /// Value head i reads head `i % H` of a tensor with fewer heads, H.
  bool tiled_heads = false;
  activations act;     ///< what g, beta, b, w, q and k go through first
  index_t window = 0;  ///< content window Lc of the carve family
};

/// Outputs and final state of a problem, or their cotangents.
template <class T>
using outputs = each_output<tensor<T>>;

/// The sizes that the tensors of a problem agree on.
struct dimensions {
  /// Batch, tokens, query and key heads, value heads (those of the states), key
  /// channels, value channels.
  ///@{
  index_t B = 0, T = 0, H = 0, HV = 0, K = 0, V = 0;
  ///@}
  index_t N = 0;         ///< sequences
  index_t rho = 0;       ///< inner rank of the content gate
  index_t VH = 0;        ///< heads of v: HV, or fewer that query heads share
  index_t substeps = 1;  ///< n, sub-steps a token that are given
};

/// Names of the tensors that a family must have.
inline std::vector<std::string_view> required_tensors(family f) {
  std::vector<std::string_view> names;
  for (const tensor_row& row : each_tensor<char>::members()) {
    if (required(row, info(f))) names.push_back(row.name);
  }
  return names;
}

/// The axes of a tensor, each by its letters as in tensor_row::axes; Tn for T
/// where there is one row for each sub-step that is given.
/// @param[in] along  what * stands for.
inline std::vector<std::string_view> axes_of(const tensor_row& row,
                                             const family_info& f, axis along,
                                             bool state_v_first = false) {
  const bool several = row.each_substep && f.steps == substeps::given;
  std::vector<std::string_view> axes;
  std::string_view rest = row.axes;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    const std::string_view letters = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const bool both = along == axis::mask;
    if (letters != "*") {
      axes.push_back(several && letters == "T" ? "Tn" : letters);
    } else if (both && row.role == tensor_role::state && state_v_first) {
      axes.insert(axes.end(), {"V", "K"});
    } else {
      if (both || along == axis::key) axes.push_back("K");
      if (both || along == axis::value) axes.push_back("V");
    }
  }
  return axes;
}

/// The shape that those axes have.
inline tensor_shape shape_of(const std::vector<std::string_view>& axes,
                             const dimensions& n) {
  const std::pair<std::string_view, index_t> sizes[] = {
      {"B", n.B},   {"T", n.T},
      {"H", n.H},   {"HV", n.HV},
      {"K", n.K},   {"V", n.V},
      {"N", n.N},   {"rho", n.rho},
      {"VH", n.VH}, {"Tn", n.T * n.substeps}};
  tensor_shape shape;
  for (const std::string_view letters : axes) {
    for (const auto& [name, size] : sizes) {
      if (letters == name) shape.push_back(size);
    }
  }
  return shape;
}

/// The shapes that a tensor may have in a problem of those sizes; the first is
/// the full one.
inline std::vector<tensor_shape> shapes_of(const tensor_row& row,
                                           const family_info& f,
                                           const dimensions& n,
                                           bool state_v_first) {
  std::vector<tensor_shape> shapes;
  const auto add = [&](axis along) {
    std::vector<std::string_view> axes = axes_of(row, f, along, state_v_first);
    shapes.push_back(shape_of(axes, n));
    const auto with_heads = [&](std::string_view letters) {
      for (std::string_view& a : axes) {
        if (a == "H" || a == "HV") a = letters;
      }
      shapes.push_back(shape_of(axes, n));
    };
    if (row.shared && n.H != n.HV) with_heads("H");
    const bool of_values = row.shared || row.name == "k" || row.name == "v";
    if (of_values && n.VH != n.HV) with_heads("VH");
  };
  const axis along = row.along(f);
  add(along);
  if (row.per_head && along != axis::head) add(axis::head);
  return shapes;
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

/// What a shape is like, for messages: q, or the letters of its axes.
inline std::string likeness(const tensor_row& row, const family_info& f,
                            bool state_v_first) {
  if (row.per_head || row.shared) return "";  // several shapes
  const auto axes = [&](const tensor_row& x) {
    return axes_of(x, f, x.along(f), state_v_first);
  };
  if (axes(row) == axes(each_tensor<char>::members()[0])) return " like q";
  return " (" + text(axes(row)) + ")";
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
  if (cu.back() > n.T) {
    throw error("cu_seqlens: expected the last offset to be at most T = ", n.T,
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
  const family_info& f = info(p.family);
  const tensors<T>& x = p.in;
  constexpr auto members = tensors<T>::members();
  for (const auto& m : members) {
    if (required(m, f) && !(x.*m.at).present()) {
      throw error(m.name, ": missing; family ", f.name, " needs ",
                  required_tensors(p.family));
    }
  }
  for (const auto& m : members) {
    if (m.along(f) == axis::none && (x.*m.at).present()) {
      throw error(m.name, ": not a tensor of family ", f.name, ", which takes ",
                  required_tensors(p.family));
    }
  }
  if (x.q.rank() != 4) {
    throw error("q: expected [B,T,H,K], got ", x.q.shape);
  }
  dimensions n;
  n.B = x.q.dim(0), n.T = x.q.dim(1), n.H = x.q.dim(2), n.K = x.q.dim(3);
  if (n.B < 1 || n.H < 1 || n.K < 1) {
    throw error("q: expected [B,T,H,K] with B, H, K at least 1, got ",
                x.q.shape);
  }
  const bool several = f.steps == substeps::given;
  if (several && x.v.rank() == 4 && n.T > 0 && x.v.dim(1) >= n.T) {
    n.substeps = x.v.dim(1) / n.T;
  }
  if (x.v.rank() != 4 || x.v.dim(0) != n.B || x.v.dim(1) != n.T * n.substeps ||
      x.v.dim(2) < 1 || x.v.dim(3) < 1 ||
      (x.v.dim(2) % n.H != 0 && n.H % x.v.dim(2) != 0)) {
    throw error("v: expected [", n.B, ",", n.T, several ? " n" : "",
                ",HV,V] with HV a multiple of ", n.H, ", got ", x.v.shape);
  }
  n.VH = x.v.dim(2), n.HV = std::max(n.H, n.VH), n.V = x.v.dim(3);
  n.N = detail::check_cu_seqlens(p.cu_seqlens, n);
  if (x.w_down.rank() == 3) n.rho = x.w_down.dim(1);
  for (const auto& m : members) {
    if (!(x.*m.at).present()) continue;
    detail::expect_shape(m.name, x.*m.at, shapes_of(m, f, n, p.state_v_first),
                         detail::likeness(m, f, p.state_v_first));
  }
  if (f.content_gate) {
    if (p.window < 1) {
      throw error("window: expected at least 1 token, got ", p.window);
    }
    if (p.act.b != gate_activation::none) {
      throw error("b: the ", f.name,
                  " family activates its erase logits itself");
    }
  }
  if (p.act.decay == decay_activation::none) {
    for (const auto& [t, name] :
         {std::pair{&x.A_log, "A_log"}, std::pair{&x.dt_bias, "dt_bias"}}) {
      if (t->present()) {
        throw error(name, ": expected a decay activation that reads it, got ",
                    "none");
      }
    }
  }
  if (p.act.decay != decay_activation::none &&
      p.act.domain != decay_domain::log) {
    throw error("decay domain: a decay activation gives natural logs");
  }
  if constexpr (scalar_traits<T>::is_real) {
    if (p.act.domain == decay_domain::linear) {
      for (const auto& [t, name] :
           {std::pair{&x.g, "g"}, std::pair{&x.gd, "gd"}}) {
        for (std::size_t i = 0; i < t->data.size(); ++i) {
          if (t->data[i] > T(0)) continue;
          throw error(name, ": expected decays above zero, got another at ",
                      detail::position(t->shape, i));
        }
      }
    }
  }
  if (p.act.l2norm && !(p.act.l2_epsilon >= 0)) {
    throw error("l2 epsilon: expected a number from zero on, got ",
                p.act.l2_epsilon);
  }
  if (p.act.decay != decay_activation::none && x.g.present() &&
      x.g.dim(2) != n.HV) {
    throw error("g: expected logits of ", n.HV, " value heads, got ",
                x.g.shape);
  }
  if (x.dt_bias.rank() == 2 && x.g.rank() == 3) {
    throw error("dt_bias: expected ", tensor_shape{n.HV}, " like g, which is ",
                x.g.shape, ", got ", x.dt_bias.shape);
  }
  for (const auto& m : members) {
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
