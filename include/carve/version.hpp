/// @file
/// Which version of the library is this?  The build, the package and the
/// program all read the line below; the number stands nowhere else.
#pragma once

#include <string_view>

/// The gated delta rule: exact results, and those of rounding hardware.
namespace carve {

/// The library's version, "major.minor.patch".
inline constexpr std::string_view version = "0.1.0";

}  // namespace carve
