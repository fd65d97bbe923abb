#include "foreign.hpp"

#include <filesystem>

#include "carve/error.hpp"
#include "safetensors.hpp"

namespace carve::safetensors {

namespace {

using std::string_view;

/// A row says how a file of a format begins, what it is, and what to do; `$`
/// stands for the file's path as a literal, `@` for the path written to.
struct foreign_row {
  string_view begins;
  string_view contains;  ///< somewhere in the head; empty: anything
  string_view is;
  string_view lines;
};

// A byte string may hold zero bytes.
constexpr foreign_row foreign_table[] = {
    {{"PK\3\4", 4},
     ".npy",
     "a NumPy archive (.npz)",
     "  import numpy as np, safetensors.numpy as s\n"
     "  s.save_file(dict(np.load($)), @, {\"family\": \"gdn\"})"},
    {{"PK\3\4", 4},
     "",
     "a PyTorch file (.pt), a zip archive of pickles",
     "  import torch, safetensors.torch as s\n"
     "  s.save_file(torch.load($), @, {\"family\": \"gdn\"})"},
    {{"\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14},
     "",
     "a PyTorch file (.pt) of the old form, a pickle",
     "  import torch, safetensors.torch as s\n"
     "  s.save_file(torch.load($), @, {\"family\": \"gdn\"})"},
    {{"\x93NUMPY", 6},
     "",
     "one NumPy array (.npy)",
     "  import numpy as np, safetensors.numpy as s\n"
     "  s.save_file({\"q\": np.load($), \"k\": ...}, @, {\"family\": "
     "\"gdn\"})"},
    {{"\x89HDF\r\n\x1a\n", 8},
     "",
     "an HDF5 file (.h5)",
     "  import h5py, safetensors.numpy as s\n"
     "  s.save_file({n: x[()] for n, x in h5py.File($).items()}, @, "
     "{\"family\": \"gdn\"})"},
    {{"GGUF", 4},
     "",
     "a GGUF file",
     "  import gguf, safetensors.numpy as s\n"
     "  s.save_file({t.name: t.data for t in gguf.GGUFReader($).tensors}, @, "
     "{\"family\": \"gdn\"})"},
    {"version https://git-lfs", "",
     "a git-lfs pointer: the file itself was not fetched",
     "  git lfs pull --include $"},
    {{"\x80\2", 2},
     "",
     "a Python pickle",
     "  import pickle, safetensors.numpy as s\n"
     "  s.save_file(pickle.load(open($, \"rb\")), @, {\"family\": \"gdn\"})"},
    {{"\x80\4", 2},
     "",
     "a Python pickle",
     "  import pickle, safetensors.numpy as s\n"
     "  s.save_file(pickle.load(open($, \"rb\")), @, {\"family\": \"gdn\"})"},
    {{"\x1f\x8b", 2}, "", "compressed by gzip", "  zcat $ | carve verify -"},
    {{"\x28\xb5\x2f\xfd", 4},
     "",
     "compressed by zstd",
     "  zstdcat $ | carve verify -"},
    {"<!DOCTYPE html", "", "a web page, not the file it links to", ""},
    {"<html", "", "a web page, not the file it links to", ""},
};

}  // namespace

std::string foreign_format(std::span<const std::byte> head, string_view path) {
  const string_view text(reinterpret_cast<const char*>(head.data()),
                         head.size());
  const auto literal = [](string_view s) {
    return '"' + printable(s, s.size()) + '"';
  };
  for (const foreign_row& row : foreign_table) {
    if (!text.starts_with(row.begins) ||
        text.find(row.contains) == string_view::npos) {
      continue;
    }
    std::string out = carve::text("not safetensors but ", row.is);
    if (!row.lines.empty()) out += ":\n";
    for (const char c : row.lines) {
      if (c == '$') {
        out += literal(path);
      } else if (c == '@') {
        out += literal(std::filesystem::path(path)
                           .replace_extension("safetensors")
                           .string());
      } else {
        out += c;
      }
    }
    return out;
  }
  return {};
}

}  // namespace carve::safetensors
