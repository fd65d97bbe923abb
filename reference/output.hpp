/// @file
/// How is a file written whole or not at all?
#pragma once

#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace carve {

/// Would `write_output` be let write there?  To be asked before long work.
/// `-` is standard output.
/// @throws carve::error  naming the path, when it is a folder, or when the
///                       folder it would stand in is missing or not writable.
void check_output(const std::filesystem::path& path);

/// Writes `parts`, one after the other.  A regular file is written under a
/// temporary name beside `path` and then renamed: a reader sees the old file
/// or the new one, whole, and after a failure the old one stands alone.  What
/// exists and is no regular file (a pipe, a device) is written to; `-` is
/// standard output; a link stays and its target is replaced.
/// @throws carve::error  naming the path, when the system refuses.
void write_output(const std::filesystem::path& path,
                  const std::vector<std::span<const std::byte>>& parts);

/// The same with one text.
void write_output(const std::filesystem::path& path, std::string_view text);

}  // namespace carve
