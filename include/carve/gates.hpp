/// @file
/// The family: which gate varies along which axis, by name.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "carve/error.hpp"

namespace carve {

/// The members of the family; each is a choice of axes and of nothing else.
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
};

/// Along what a gate varies within a head.
enum class axis {
  none,   ///< the gate is absent
  head,   ///< one number per head and token
  key,    ///< a vector over the K key channels
  value,  ///< a vector over the V value channels
  mask,   ///< a matrix over both
};

/// One row of the family's table.
struct family_info {
  family id;               ///< which member
  std::string_view name;   ///< as in file metadata and on the command line
  std::string_view title;  ///< as in the literature
  /// Along what each gate varies.
  ///@{
  axis decay, erase, write;
  ///@}
  bool tied;                ///< erase and write gate are one tensor, `beta`
  std::string_view source;  ///< the paper that defines it
};

/// The table. A gate that a member lacks is one; a member whose erase axis is
/// `none` erases nothing.
inline constexpr std::array families{
    family_info{family::linear, "linear", "linear attention", axis::none,
                axis::none, axis::none, false, "arXiv 2006.16236"},
    family_info{family::mamba2, "mamba2", "Mamba-2, simple GLA", axis::head,
                axis::none, axis::none, false, "arXiv 2405.21060"},
    family_info{family::gla, "gla", "GLA", axis::key, axis::none, axis::none,
                false, "arXiv 2312.06635"},
    family_info{family::delta, "delta", "DeltaNet", axis::none, axis::head,
                axis::head, true, "arXiv 2406.06484"},
    family_info{family::gdn, "gdn", "Gated DeltaNet", axis::head, axis::head,
                axis::head, true, "arXiv 2412.06464"},
    family_info{family::kda, "kda", "Kimi Delta Attention", axis::key,
                axis::head, axis::head, true, "arXiv 2510.26692"},
    family_info{family::gdn2, "gdn2", "Gated DeltaNet-2", axis::key, axis::key,
                axis::value, false, "arXiv 2605.22791"},
    family_info{family::value_erase, "value_erase", "value-axis erase",
                axis::key, axis::value, axis::value, false,
                "the model that arXiv 2606.27229 calls GDN-2"},
    family_info{family::full_erase, "full_erase", "full-mask erase", axis::key,
                axis::mask, axis::value, false, "abstract of arXiv 2606.27229"},
    family_info{family::carve, "carve", "CARVE", axis::key, axis::key,
                axis::head, false, "arXiv 2606.27229"},
};

/// The table's row of one member.
constexpr const family_info& info(family f) {
  return families[static_cast<std::size_t>(f)];
}

/// The member called `name`.
/// @throws carve::error  naming all members, when there is none.
inline family family_named(std::string_view name) {
  std::string known;
  for (const family_info& f : families) {
    if (f.name == name) return f.id;
    known += known.empty() ? "" : ", ";
    known += f.name;
  }
  throw error("family: expected one of " + known + ", got \"" +
              std::string(name) + "\"");
}

}  // namespace carve
