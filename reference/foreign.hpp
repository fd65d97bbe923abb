/// @file
/// Which other format is a file in, and how does it become a safetensors file?
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace carve::safetensors {

/// What a file that begins with these bytes is and the lines that make a
/// safetensors file of it; empty when the bytes tell nothing.
/// @param[in] path  how the lines call the file.
std::string foreign_format(std::span<const std::byte> head,
                           std::string_view path);

}  // namespace carve::safetensors
