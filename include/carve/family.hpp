/// @file
/// What is a member of the family?  A row: which gate varies along which axis,
/// and how it erases.  Light enough for device code: it includes no string, no
/// stream and no matrix; names are looked up in @ref family_name.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "carve/cxx20.hpp"

namespace carve {

/// The members of the family, in the order of `families`.
enum class family {
  linear,
  mamba2,
  gla,
  delta,
  gdn,
  kda,
  gdn2,
  value_erase,
  full_erase,
  carve,
  comba,
  dplr,
  rwkv7,
  gated_delta_product,
  eda,
  mamba3,
};

/// Along what a gate varies within a head.
enum class axis {
  none,   ///< the gate is absent
  head,   ///< one number per head and token
  key,    ///< a vector over the K key channels
  value,  ///< a vector over the V value channels
  mask,   ///< a matrix over both
};

/// The erase address `r_t`: what of the state is looked up.
enum class erase_address {
  gated_key,  ///< `b_t * k_t`
  gated_p,    ///< `b_t * p_t`, p a tensor of its own
  given,      ///< the tensor r
};

/// The erase direction `y_t`: where the looked-up value is taken away.
enum class erase_direction {
  key,            ///< `k_t`
  given,          ///< the tensor y
  gated_address,  ///< `b_t * r_t`
};

/// Which state the erase reads.
enum class erase_order {
  after_decay,   ///< `diag(a_t) S_{t-1} diag(d_t)`
  before_decay,  ///< `S_{t-1}`
};

/// Updates of the state for one token; it decays before the first of them and
/// is read after the last.
enum class substeps {
  one,    ///< erase and write at one key
  given,  ///< n of them, each with its own k, v and gates
  /// Erase along p with strength eta, nothing written; then erase and write.
  erase_then_delta,
  /// Write the last token's k and v with w_last, then this one's; the first
  /// token of a sequence has no last one.
  trapezoid,
};

/// One row of the family's table.
struct family_info {
  family id;               ///< which member
  std::string_view name;   ///< as in file metadata and on the command line
  std::string_view title;  ///< as in the literature
  std::string_view aliases = "";  ///< other names, with blanks between them
  /// Along what each gate varies; a gate that a member lacks is one.
  ///@{
  axis decay = axis::none, erase = axis::none, write = axis::none;
  ///@}
  bool tied = false;          ///< erase and write gate are one tensor, `beta`
  bool content_gate = false;  ///< b is made of its logits and of the content
  /// How it erases, where it does not do so as the delta rule.
  ///@{
  erase_address address = erase_address::gated_key;
  erase_direction direction = erase_direction::key;
  erase_order erase_reads = erase_order::after_decay;
  substeps steps = substeps::one;
  ///@}
  std::string_view source;  ///< the paper that defines it

  /// It erases at all.
  constexpr bool erases() const {
    return erase != axis::none || address == erase_address::given;
  }
};

/// The table: to add a member is to add its name to `family` and its row here.
inline constexpr std::array families{
    family_info{.id = family::linear,
                .name = "linear",
                .title = "linear attention",
                .aliases = "linear_attention linear_attn",
                .source = "arXiv 2006.16236"},
    family_info{.id = family::mamba2,
                .name = "mamba2",
                .title = "Mamba-2, simple GLA",
                .aliases = "mamba_2 ssd simple_gla",
                .decay = axis::head,
                .source = "arXiv 2405.21060"},
    family_info{.id = family::gla,
                .name = "gla",
                .title = "GLA",
                .aliases = "gated_linear_attention",
                .decay = axis::key,
                .source = "arXiv 2312.06635"},
    family_info{.id = family::delta,
                .name = "delta",
                .title = "DeltaNet",
                .aliases = "deltanet delta_net delta_rule",
                .erase = axis::head,
                .write = axis::head,
                .tied = true,
                .source = "arXiv 2406.06484"},
    family_info{
        .id = family::gdn,
        .name = "gdn",
        .title = "Gated DeltaNet",
        .aliases =
            "gated_deltanet gated_delta_net gated_delta_rule gated_delta",
        .decay = axis::head,
        .erase = axis::head,
        .write = axis::head,
        .tied = true,
        .source = "arXiv 2412.06464"},
    family_info{.id = family::kda,
                .name = "kda",
                .title = "Kimi Delta Attention",
                .aliases = "kimi kimi_linear kimi_delta_attention",
                .decay = axis::key,
                .erase = axis::head,
                .write = axis::head,
                .tied = true,
                .source = "arXiv 2510.26692"},
    family_info{
        .id = family::gdn2,
        .name = "gdn2",
        .title = "Gated DeltaNet-2",
        .aliases = "gdn_2 gated_deltanet2 gated_deltanet_2 gated_delta_net_2",
        .decay = axis::key,
        .erase = axis::key,
        .write = axis::value,
        .source = "arXiv 2605.22791"},
    family_info{.id = family::value_erase,
                .name = "value_erase",
                .title = "value-axis erase",
                .aliases = "value_axis_erase",
                .decay = axis::key,
                .erase = axis::value,
                .write = axis::value,
                .source = "the model that arXiv 2606.27229 calls GDN-2"},
    family_info{.id = family::full_erase,
                .name = "full_erase",
                .title = "full-mask erase",
                .aliases = "full_mask_erase",
                .decay = axis::key,
                .erase = axis::mask,
                .write = axis::value,
                .source = "abstract of arXiv 2606.27229"},
    family_info{.id = family::carve,
                .name = "carve",
                .title = "CARVE",
                .decay = axis::key,
                .erase = axis::key,
                .write = axis::head,
                .content_gate = true,
                .source = "arXiv 2606.27229"},
    // Its published kernels look before the decay, its recurrent form after it.
    family_info{.id = family::comba,
                .name = "comba",
                .title = "Comba",
                .decay = axis::head,
                .erase = axis::head,
                .write = axis::head,
                .tied = true,
                .address = erase_address::gated_p,
                .erase_reads = erase_order::before_decay,
                .source = "arXiv 2506.02475"},
    family_info{.id = family::dplr,
                .name = "dplr",
                .title = "DPLR",
                .aliases = "diagonal_plus_low_rank",
                .decay = axis::key,
                .address = erase_address::given,
                .direction = erase_direction::given,
                .erase_reads = erase_order::before_decay,
                .source = "arXiv 2503.14456"},
    family_info{.id = family::rwkv7,
                .name = "rwkv7",
                .title = "RWKV-7",
                .aliases = "rwkv_7 goose",
                .decay = axis::key,
                .erase = axis::key,
                .address = erase_address::given,
                .direction = erase_direction::gated_address,
                .erase_reads = erase_order::before_decay,
                .source = "arXiv 2503.14456"},
    family_info{.id = family::gated_delta_product,
                .name = "gated_delta_product",
                .title = "Gated DeltaProduct",
                .decay = axis::head,
                .erase = axis::head,
                .write = axis::head,
                .tied = true,
                .steps = substeps::given,
                .source = "arXiv 2502.10297"},
    family_info{.id = family::eda,
                .name = "eda",
                .title = "Erase-then-Delta",
                .aliases = "erase_then_delta_attention",
                .decay = axis::key,
                .erase = axis::head,
                .write = axis::head,
                .tied = true,
                .steps = substeps::erase_then_delta,
                .source = "arXiv 2606.26560"},
    // Its state is real here: a rotation of q and k goes before it.
    family_info{.id = family::mamba3,
                .name = "mamba3",
                .title = "Mamba-3",
                .decay = axis::head,
                .write = axis::head,
                .steps = substeps::trapezoid,
                .source = "arXiv 2603.15569"},
};

/// The table's row of one member.
constexpr const family_info& info(family f) {
  return families[static_cast<std::size_t>(f)];
}

namespace detail {

constexpr bool families_in_order() {
  for (std::size_t i = 0; i < families.size(); ++i) {
    if (static_cast<std::size_t>(families[i].id) != i) return false;
  }
  return true;
}
static_assert(families_in_order(), "families must stand in the enum's order");

}  // namespace detail

}  // namespace carve
