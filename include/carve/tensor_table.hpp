/// @file
/// What is known of each tensor of a problem?  One row: its name, axes, role,
/// the families that take it and what it means.  Checks, files, views and the
/// manual's tables read it here; like @ref family.hpp it is light.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "carve/family.hpp"

namespace carve {

/// What a tensor is to a problem.
enum class tensor_role {
  token,      ///< it comes with each token: axes B, T, heads and channels
  state,      ///< the state before or after a sequence
  parameter,  ///< one for all tokens
};

/// One row of the table of tensors.
struct tensor_row {
  std::string_view name;  ///< as in `tensors`, in files and in messages
  /// The axes with commas between them: B batch, T tokens, H query and key
  /// heads, HV value heads, K key channels, V value channels, N sequences, rho
  /// the inner rank of the content gate; * stands for what `along` says.
  std::string_view axes;
  /// Along what it varies within a head of a member of the family; none: the
  /// member does not take it.
  axis (*along)(const family_info&);
  std::string_view meaning;               ///< in a few words
  tensor_role role = tensor_role::token;  ///< what it is to a problem
  bool optional = false;  ///< a member that takes it can do without
  bool per_head = false;  ///< it may come without its channel axis
  bool shared = false;    ///< it may have H heads where it could have HV
  /// Where a member is given its sub-steps, T n rows: one for each.
  bool each_substep = false;
};

namespace detail {

/// For tensor_row::along.
///@{
constexpr axis key_axis(const family_info&) { return axis::key; }
constexpr axis value_axis(const family_info&) { return axis::value; }
constexpr axis state_axes(const family_info&) { return axis::mask; }
constexpr axis decay_axis(const family_info& f) { return f.decay; }
constexpr axis decayed_heads(const family_info& f) {
  return f.decay == axis::none ? axis::none : axis::head;
}
constexpr axis tied_axis(const family_info& f) {
  return f.tied ? axis::head : axis::none;
}
constexpr axis write_axis(const family_info& f) {
  return f.tied ? axis::none : f.write;
}
template <axis Along>
constexpr axis erase_along(const family_info& f) {
  return !f.tied && f.erase == Along ? Along : axis::none;
}
template <axis Along>
constexpr axis content_axis(const family_info& f) {
  return f.content_gate ? Along : axis::none;
}
constexpr axis p_axis(const family_info& f) {
  return f.address == erase_address::gated_p ||
                 f.steps == substeps::erase_then_delta
             ? axis::key
             : axis::none;
}
constexpr axis r_axis(const family_info& f) {
  return f.address == erase_address::given ? axis::key : axis::none;
}
constexpr axis y_axis(const family_info& f) {
  return f.direction == erase_direction::given ? axis::key : axis::none;
}
constexpr axis eta_axis(const family_info& f) {
  return f.steps == substeps::erase_then_delta ? axis::head : axis::none;
}
constexpr axis last_axis(const family_info& f) {
  return f.steps == substeps::trapezoid ? axis::head : axis::none;
}
///@}

}  // namespace detail

/// A thing for each tensor that goes into a problem, under the tensor's name.
/// To add a tensor is to add its name and its row here.
template <class Each>
struct each_tensor {
  /// One for each row of the table.
  ///@{
  Each q, k, v, g, gd, beta, b, e, E, w, w_last, p, eta, r, y;
  Each initial_state, w_down, w_up, A_log, dt_bias;
  ///@}

  /// A tensor's row and where it is: `x.*at` is the tensor of `x`.
  struct member : tensor_row {
    Each each_tensor::*at;  ///< under the tensor's name
  };

  /// All of them, in the order in which messages and tables list them.
  static constexpr auto members() {
    using enum tensor_role;
    return std::array{
        member{{.name = "q",
                .axes = "B,T,H,*",
                .along = detail::key_axis,
                .meaning = "query"},
               &each_tensor::q},
        member{{.name = "k",
                .axes = "B,T,H,*",
                .along = detail::key_axis,
                .meaning = "key",
                .each_substep = true},
               &each_tensor::k},
        member{{.name = "v",
                .axes = "B,T,HV,*",
                .along = detail::value_axis,
                .meaning = "value; HV is a multiple of H",
                .each_substep = true},
               &each_tensor::v},
        member{{.name = "g",
                .axes = "B,T,HV,*",
                .along = detail::decay_axis,
                .meaning = "natural log of the key-axis decay",
                .per_head = true,
                .shared = true},
               &each_tensor::g},
        member{{.name = "gd",
                .axes = "B,T,HV,*",
                .along = detail::value_axis,
                .meaning = "natural log of the value-axis decay",
                .optional = true,
                .per_head = true,
                .shared = true},
               &each_tensor::gd},
        member{{.name = "beta",
                .axes = "B,T,HV,*",
                .along = detail::tied_axis,
                .meaning = "erase and write gate in one",
                .shared = true,
                .each_substep = true},
               &each_tensor::beta},
        member{{.name = "b",
                .axes = "B,T,HV,*",
                .along = detail::erase_along<axis::key>,
                .meaning =
                    "key-axis erase gate; of carve its logits, of rwkv7 eta",
                .per_head = true,
                .shared = true,
                .each_substep = true},
               &each_tensor::b},
        member{{.name = "e",
                .axes = "B,T,HV,*",
                .along = detail::erase_along<axis::value>,
                .meaning = "value-axis erase gate",
                .per_head = true,
                .shared = true,
                .each_substep = true},
               &each_tensor::e},
        member{{.name = "E",
                .axes = "B,T,HV,*",
                .along = detail::erase_along<axis::mask>,
                .meaning = "full-mask erase gate",
                .each_substep = true},
               &each_tensor::E},
        member{{.name = "w",
                .axes = "B,T,HV,*",
                .along = detail::write_axis,
                .meaning = "write gate",
                .per_head = true,
                .shared = true,
                .each_substep = true},
               &each_tensor::w},
        member{{.name = "w_last",
                .axes = "B,T,HV,*",
                .along = detail::last_axis,
                .meaning = "write gate of the last token's k and v",
                .shared = true},
               &each_tensor::w_last},
        member{{.name = "p",
                .axes = "B,T,HV,*",
                .along = detail::p_axis,
                .meaning =
                    "erase address before its gate; of eda its direction too",
                .shared = true,
                .each_substep = true},
               &each_tensor::p},
        member{{.name = "eta",
                .axes = "B,T,HV,*",
                .along = detail::eta_axis,
                .meaning = "strength of the erase along p",
                .shared = true},
               &each_tensor::eta},
        member{{.name = "r",
                .axes = "B,T,HV,*",
                .along = detail::r_axis,
                .meaning = "erase address; of rwkv7 kappa",
                .shared = true,
                .each_substep = true},
               &each_tensor::r},
        member{{.name = "y",
                .axes = "B,T,HV,*",
                .along = detail::y_axis,
                .meaning = "erase direction",
                .shared = true,
                .each_substep = true},
               &each_tensor::y},
        member{{.name = "initial_state",
                .axes = "N,HV,*",
                .along = detail::state_axes,
                .meaning = "start state; [N,HV,V,K] if state_v_first",
                .role = state,
                .optional = true},
               &each_tensor::initial_state},
        member{{.name = "w_down",
                .axes = "HV,rho,*",
                .along = detail::content_axis<axis::value>,
                .meaning = "content gate: from the mean output to rank rho",
                .role = parameter},
               &each_tensor::w_down},
        member{{.name = "w_up",
                .axes = "HV,*,rho",
                .along = detail::content_axis<axis::key>,
                .meaning = "content gate: from rank rho to the erase logits",
                .role = parameter},
               &each_tensor::w_up},
        member{{.name = "A_log",
                .axes = "HV,*",
                .along = detail::decayed_heads,
                .meaning = "log rate of the decay's activation",
                .role = parameter,
                .optional = true},
               &each_tensor::A_log},
        member{{.name = "dt_bias",
                .axes = "HV,*",
                .along = detail::decay_axis,
                .meaning = "bias of the decay's activation",
                .role = parameter,
                .optional = true,
                .per_head = true},
               &each_tensor::dt_bias},
    };
  }
};

/// A thing for each tensor that comes out of a problem.
template <class Each>
struct each_output {
  Each o;            ///< [B,T,HV,V]
  Each final_state;  ///< [N,HV,K,V], or [N,HV,V,K] if state_v_first

  /// An output's row and where it is.
  struct member : tensor_row {
    Each each_output::*at;  ///< under the output's name
  };

  /// Both of them.
  static constexpr auto members() {
    return std::array{
        member{{.name = "o",
                .axes = "B,T,HV,*",
                .along = detail::value_axis,
                .meaning = "output"},
               &each_output::o},
        member{{.name = "final_state",
                .axes = "N,HV,*",
                .along = detail::state_axes,
                .meaning = "state after the last token",
                .role = tensor_role::state},
               &each_output::final_state},
    };
  }
};

// A name without its row would be forgotten everywhere.
static_assert(sizeof(each_tensor<char>) == each_tensor<char>::members().size());
static_assert(sizeof(each_output<char>) == each_output<char>::members().size());

/// True where the member of the family cannot do without the tensor.
constexpr bool required(const tensor_row& row, const family_info& f) {
  return !row.optional && row.along(f) != axis::none;
}

}  // namespace carve
