/// @file
/// How tensors come from and go to safetensors files: a reader that trusts
/// none of it, and a writer that leaves no half-written file.
///
/// A file is an 8-byte little-endian length N, a JSON object of N bytes, and
/// the tensors' bytes, row-major and little-endian.  The object maps a tensor's
/// name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted
/// from the first byte after the object; `"__metadata__"` maps strings to
/// strings. A number or a boolean in a string's place, which a careless writer
/// leaves, is read as its text.
///
/// Source: the format's description in the README of
/// https://github.com/huggingface/safetensors, sections "Format" and
/// "Benefits".
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "carve/error.hpp"
#include "carve/precision.hpp"

namespace carve::safetensors {

/// The element types that this library reads.
enum class dtype {
  f64,
  f32,
  f16,
  bf16,
  f8_e4m3,
  f8_e5m2,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean
};

/// The name in the file: "F64", "F8_E4M3", "BOOL".
std::string_view dtype_name(dtype type);

/// The dtype of that name in the file, or nothing for one not read here.
std::optional<dtype> dtype_named(std::string_view text);

/// Bytes of one element.
std::size_t item_size(dtype type);

/// True for F64 to F8_E5M2.
bool is_floating(dtype type);

/// The format to which numbers of that dtype are rounded when they are
/// written; nothing for integers and for the 8-bit floats, which are only read.
std::optional<format> format_of(dtype type);

/// `[2,192,2,64]`, `[]` for a scalar.
std::string shape_text(std::span<const std::int64_t> shape);

/// `text` fit for a message or a terminal: every byte that is not printable
/// ASCII as `\\xNN`, quotes and backslashes escaped, at most `limit` bytes of
/// it.  Names in a file are whatever its author wished.
std::string printable(std::string_view text, std::size_t limit = 100);

/// What the header says of one tensor, after it was checked.
struct tensor_info {
  safetensors::dtype dtype = dtype::f64;
  std::vector<std::int64_t> shape;  ///< empty for a scalar
  std::size_t elements = 0;         ///< product of the shape
  std::size_t begin = 0;  ///< first byte, counted from the header's end
  std::size_t end = 0;    ///< one past the last byte
};

/// The largest header accepted, in bytes: the format's own limit.
inline constexpr std::size_t max_header_bytes = 100'000'000;

/// The most axes a tensor may have.
inline constexpr std::size_t max_rank = 64;

/// Elements of a floating-point `type` as they are stored, each value rounded
/// to it (nearest even, see `carve::round_to`).
/// @throws carve::error naming `name`  when `type` is not F64 to BF16
std::vector<std::byte> encoded(std::string_view name, dtype type,
                               std::span<const double> values);

/// A tensor in memory that the caller keeps.
struct memory_tensor {
  std::string name;
  safetensors::dtype dtype = dtype::f64;
  std::vector<std::int64_t> shape;    ///< empty for a scalar
  std::vector<std::int64_t> strides;  ///< in elements; empty: row-major
  const std::byte* data = nullptr;    ///< of the element at [0,0,...]

  /// The strides, those of a row-major tensor where there are none.
  std::vector<std::int64_t> steps() const;
};

/// A safetensors file, read only.  Copies are cheap and share what was read.
///
/// `open` and `parse` check all of the header before they return: its length
/// against the file and the format's limit; UTF-8 JSON of the one legal
/// structure, every member once, none unknown; dtypes; shapes of non-negative
/// integers whose product does not overflow; byte ranges that lie in the file,
/// have the length that dtype and shape ask for, do not overlap, and together
/// cover every byte (the format forbids holes, so that no second file hides in
/// one).  Elements are not checked: NaN and infinity are legal.
///
/// A regular file stays open and each tensor is read when it is asked for: one
/// that shrinks meanwhile is an error then.  A pipe is read to its end at once.
class file {
 public:
  /// Opens the file at `path`, which may be a pipe; `-` is standard input.
  /// @throws carve::error naming the path and, where there is one, the tensor,
  ///   when the file cannot be read or any check fails; for a file in another
  ///   format that is recognised, with the lines that convert it
  static file open(const std::filesystem::path& path);

  /// Reads from memory that the caller keeps; same checks as `open`.
  /// @throws carve::error when any check fails
  static file parse(std::span<const std::byte> bytes);

  /// Tensors in memory that the caller keeps, as if they stood in a file; a
  /// row-major one is read where it is.
  /// @throws carve::error naming the tensor, for a name that comes twice, a
  ///   shape that is no shape, strides of another number or no memory
  static file of(const std::vector<memory_tensor>& tensors,
                 std::map<std::string, std::string> metadata);

  /// The file's `__metadata__`, empty when it has none.
  const std::map<std::string, std::string>& metadata() const;

  /// All tensor names, in alphabetic order.
  std::vector<std::string> names() const;

  bool contains(std::string_view name) const;

  /// @throws carve::error when the file has no tensor `name`; so do all
  ///   functions below
  const tensor_info& info(std::string_view name) const;

  /// The tensor's bytes as they stand in the file.
  std::vector<std::byte> bytes(std::string_view name) const;

  /// All elements, row-major, each exactly.
  /// @throws carve::error for an I64 or U64 element that no double equals
  std::vector<double> as_double(std::string_view name) const;

  /// All elements, row-major, each exactly; an F32 NaN keeps its bits.
  /// @throws carve::error when the dtype is not F32, F16 or BF16
  std::vector<float> as_float(std::string_view name) const;

  /// All elements, row-major.
  /// @throws carve::error when the dtype is floating, and for a U64 element
  ///   above the range
  std::vector<std::int64_t> as_int64(std::string_view name) const;

 private:
  file() = default;
  /// The tensor's bytes, in `kept` where they are not in memory as they stand.
  std::span<const std::byte> look(std::string_view name,
                                  std::vector<std::byte>& kept) const;
  struct content;
  std::shared_ptr<const content> content_;
};

/// Collects tensors and metadata, then writes them as one file.
class writer {
 public:
  /// Sets one `__metadata__` entry; a second value for a key replaces the
  /// first.
  void set_metadata(const std::string& key, const std::string& value);

  /// Adds a tensor of a floating-point `type`, its values `encoded`.
  /// @throws carve::error when the name is taken or reserved, the shape is
  ///   negative or does not have `values.size()` elements, or `type` is not F64
  ///   to BF16; so do the functions below, where it applies
  void add(const std::string& name, dtype type,
           const std::vector<std::int64_t>& shape,
           std::span<const double> values);

  /// Adds an I64 tensor.
  void add_int64(const std::string& name,
                 const std::vector<std::int64_t>& shape,
                 std::span<const std::int64_t> values);

  /// Adds a tensor from its bytes (row-major, little-endian), untouched.
  void add_bytes(const std::string& name, dtype type,
                 const std::vector<std::int64_t>& shape,
                 std::span<const std::byte> values);

  /// The bytes of the whole file.  The data starts at a multiple of 8 bytes,
  /// and tensors of wide elements come first, so every tensor is aligned.
  /// @throws carve::error when a name or a metadata string is not UTF-8
  std::vector<std::byte> serialize() const;

  /// Writes the file whole or not at all, see `write_output`.
  /// @throws carve::error naming the path, when the system refuses
  void save(const std::filesystem::path& path) const;

 private:
  struct entry {
    safetensors::dtype dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;
  };
  void insert(const std::string& name, dtype type,
              const std::vector<std::int64_t>& shape, std::size_t given,
              std::vector<std::byte> bytes);
  std::vector<std::pair<std::string_view, const entry*>> layout() const;
  std::string header() const;

  std::map<std::string, entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace carve::safetensors
