/// @file
/// How is a safetensors file checked, read and written?
#include "safetensors.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <type_traits>

#include "descriptor.hpp"
#include "foreign.hpp"
#include "output.hpp"

namespace carve::safetensors {
namespace {

static_assert(std::endian::native == std::endian::little,
              "elements are read from the file as they stand");

constexpr std::string_view metadata_key = "__metadata__";

struct dtype_row {
  dtype type;
  std::string_view name;
  std::size_t size;
  std::optional<format> number_format;
};

constexpr std::array dtype_table = {
    dtype_row{dtype::f64, "F64", 8, format::f64},
    dtype_row{dtype::f32, "F32", 4, format::f32},
    dtype_row{dtype::f16, "F16", 2, format::f16},
    dtype_row{dtype::bf16, "BF16", 2, format::bf16},
    dtype_row{dtype::f8_e4m3, "F8_E4M3", 1, std::nullopt},
    dtype_row{dtype::f8_e5m2, "F8_E5M2", 1, std::nullopt},
    dtype_row{dtype::i64, "I64", 8, std::nullopt},
    dtype_row{dtype::i32, "I32", 4, std::nullopt},
    dtype_row{dtype::i16, "I16", 2, std::nullopt},
    dtype_row{dtype::i8, "I8", 1, std::nullopt},
    dtype_row{dtype::u64, "U64", 8, std::nullopt},
    dtype_row{dtype::u32, "U32", 4, std::nullopt},
    dtype_row{dtype::u16, "U16", 2, std::nullopt},
    dtype_row{dtype::u8, "U8", 1, std::nullopt},
    dtype_row{dtype::boolean, "BOOL", 1, std::nullopt},
};

static_assert(
    std::is_sorted(dtype_table.begin(), dtype_table.end(),
                   [](auto& x, auto& y) { return x.type < y.type; }) &&
        dtype_table.size() == static_cast<std::size_t>(dtype::boolean) + 1,
    "row() finds a dtype by its place");

const dtype_row& row(dtype type) {
  return dtype_table[static_cast<std::size_t>(type)];
}

std::string escaped(std::string_view text, std::size_t limit) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte > 0x7e) {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else {
      out += c;
    }
  }
  return text.size() > limit ? out + "..." : out;
}

[[noreturn]] void fail(std::string_view name, const std::string& text) {
  throw error(printable(name) + ": " + text);
}

std::string byte_range(std::size_t begin, std::size_t end) {
  return "[" + std::to_string(begin) + "," + std::to_string(end) + ")";
}

std::string known_dtypes() {
  std::string out;
  for (const dtype_row& r : dtype_table) {
    if (!out.empty()) out += ", ";
    out += r.name;
  }
  return out;
}

/// Product of the shape.  Axes of length zero are left out while looking for
/// overflow, so the strides of an empty tensor do not overflow either.
std::size_t count_elements(std::string_view name, dtype type,
                           std::span<const std::int64_t> shape) {
  if (shape.size() > max_rank) {
    fail(name, "shape has " + std::to_string(shape.size()) +
                   " axes, expected at most " + std::to_string(max_rank));
  }
  std::size_t most = std::numeric_limits<std::int64_t>::max() / item_size(type);
  bool empty = false;
  std::size_t count = 1;
  for (std::int64_t axis : shape) {
    if (axis < 0) {
      fail(name, "shape " + shape_text(shape) + " has a negative axis");
    }
    if (axis == 0) {
      empty = true;
      continue;
    }
    const auto length = static_cast<std::size_t>(axis);
    if (count > most / length) {
      fail(name, "shape " + shape_text(shape) + " of " +
                     std::string(dtype_name(type)) + " overflows a byte count");
    }
    count *= length;
  }
  return empty ? 0 : count;
}

using tensor_map = std::map<std::string, tensor_info, std::less<>>;

/// Builds the tensors from the header's JSON while it is parsed.  The legal
/// nesting is written out as places, so depth is bounded whatever comes, and a
/// repeated member is seen before anything replaces it.
class header_reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit header_reader(std::size_t data_bytes) : data_bytes_(data_bytes) {}

  tensor_map tensors;
  std::map<std::string, std::string> metadata;

  bool null() override { return unexpected("null"); }
  bool boolean(bool value) override {
    return set_metadata(value ? "true" : "false") || unexpected("a boolean");
  }
  bool number_integer(number_integer_t value) override {
    return set_metadata(std::to_string(value)) ||
           unexpected("a negative number");
  }
  bool number_float(number_float_t, const string_t& text) override {
    return set_metadata(text) || unexpected("the number " + printable(text));
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == place::shape) {
      if (value > std::numeric_limits<std::int64_t>::max()) {
        fail(tensor_, "shape has an axis of " + std::to_string(value) +
                          ", which overflows");
      }
      if (info_.shape.size() == max_rank) {
        fail(tensor_,
             "shape has more than " + std::to_string(max_rank) + " axes");
      }
      info_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (place_ == place::offsets) {
      if (offsets_ == 2) {
        fail(tensor_, "data_offsets has more than two numbers");
      }
      (offsets_ == 0 ? info_.begin : info_.end) = value;
      ++offsets_;
    } else {
      return set_metadata(std::to_string(value)) ||
             unexpected("the number " + std::to_string(value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (set_metadata(value)) return true;
    if (place_ == place::tensor && member_ == "dtype") {
      const auto type = dtype_named(value);
      if (!type) {
        fail(tensor_, "dtype \"" + printable(value) +
                          "\" is not supported, expected one of " +
                          known_dtypes());
      }
      info_.dtype = *type;
    } else {
      return unexpected("the string \"" + printable(value) + "\"");
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == place::start) {
      place_ = place::root;
    } else if (place_ == place::root) {
      const bool is_metadata = tensor_ == metadata_key;
      place_ = is_metadata ? place::metadata : place::tensor;
      members_.clear();
      info_ = {};
      offsets_ = 0;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == place::root) {
      if (!root_names_.insert(name).second) {
        fail(name, "appears twice in the header");
      }
      tensor_ = name;
      return true;
    }
    if (place_ == place::tensor && name != "dtype" && name != "shape" &&
        name != "data_offsets") {
      fail(tensor_, "unknown member \"" + printable(name) +
                        "\", expected dtype, shape and data_offsets");
    }
    if (!members_.insert(name).second) {
      fail(tensor_, "member \"" + printable(name) + "\" appears twice");
    }
    member_ = name;
    return true;
  }

  bool end_object() override {
    if (place_ == place::tensor) finish_tensor();
    place_ = place_ == place::root ? place::end : place::root;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == place::tensor && member_ == "shape") {
      place_ = place::shape;
    } else if (place_ == place::tensor && member_ == "data_offsets") {
      place_ = place::offsets;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == place::offsets && offsets_ != 2) {
      fail(tensor_, "data_offsets has " + std::to_string(offsets_) +
                        " numbers, expected two");
    }
    place_ = place::tensor;
    return true;
  }

  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::json::exception& e) override {
    // The library's text begins with an identifier in brackets.
    const std::string_view text = e.what();
    const auto after = text.find("] ");
    throw error(
        "the header is not valid JSON: " +
        escaped(after == text.npos ? text : text.substr(after + 2), 200));
  }

 private:
  enum class place { start, root, metadata, tensor, shape, offsets, end };

  /// Where a metadata value stands: its text.
  bool set_metadata(const std::string& text) {
    if (place_ != place::metadata) return false;
    metadata[member_] = text;
    return true;
  }

  [[noreturn]] bool unexpected(const std::string& what) const {
    switch (place_) {
      case place::start:
      case place::end:
        throw error("the header: expected an object, got " + what);
      case place::root:
        fail(tensor_, "expected an object, got " + what);
      case place::metadata:
        fail(metadata_key,
             "\"" + printable(member_) + "\" expected a string, got " + what);
      case place::shape:
        fail(tensor_, "shape expected non-negative integers, got " + what);
      case place::offsets:
        fail(tensor_,
             "data_offsets expected non-negative integers, got " + what);
      case place::tensor:
        break;
    }
    fail(tensor_, member_ + " expected " +
                      (member_ == "dtype" ? "a string" : "an array") +
                      ", got " + what);
  }

  void finish_tensor() {
    for (const char* member : {"dtype", "shape", "data_offsets"}) {
      if (!members_.contains(member)) {
        fail(tensor_, "member \"" + std::string(member) + "\" is missing");
      }
    }
    info_.elements = count_elements(tensor_, info_.dtype, info_.shape);
    const std::string range = byte_range(info_.begin, info_.end);
    if (info_.begin > info_.end || info_.end > data_bytes_) {
      fail(tensor_, "data_offsets " + range + " do not lie in the " +
                        std::to_string(data_bytes_) + " bytes of data");
    }
    const std::size_t expected = info_.elements * item_size(info_.dtype);
    if (info_.end - info_.begin != expected) {
      fail(tensor_, "data_offsets " + range + " hold " +
                        std::to_string(info_.end - info_.begin) + " bytes, " +
                        std::string(dtype_name(info_.dtype)) +
                        shape_text(info_.shape) + " has " +
                        std::to_string(expected));
    }
    tensors.emplace(tensor_, info_);
  }

  std::size_t data_bytes_;
  place place_ = place::start;
  std::string tensor_;  // the root's current member
  std::string member_;  // the current member below it
  tensor_info info_;
  int offsets_ = 0;  // how many of data_offsets were read
  std::set<std::string> root_names_;
  std::set<std::string> members_;
};

/// Every byte of the data belongs to one tensor.
void check_cover(const tensor_map& tensors, std::size_t data_bytes) {
  using item = const tensor_map::value_type*;
  std::vector<item> order;
  for (const auto& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](item x, item y) {
    return std::pair(x->second.begin, x->second.end) <
           std::pair(y->second.begin, y->second.end);
  });
  const auto hole = [](std::size_t begin, std::size_t end) {
    throw error("bytes " + byte_range(begin, end) +
                " of the data belong to no tensor");
  };
  std::size_t covered = 0;
  item last = nullptr;
  for (item t : order) {
    if (t->second.begin < covered) {
      fail(t->first, "data_offsets " +
                         byte_range(t->second.begin, t->second.end) +
                         " overlap those of " + printable(last->first));
    }
    if (t->second.begin > covered) hole(covered, t->second.begin);
    covered = t->second.end;
    last = t;
  }
  if (covered != data_bytes) hole(covered, data_bytes);
}

/// Where a file's bytes are: in memory, or in a file that is read when asked.
class source {
 public:
  /// Memory that the caller keeps.
  explicit source(std::span<const std::byte> bytes) : memory_(bytes) {}

  /// The file at `path`; nothing is read yet.
  explicit source(const std::filesystem::path& path)
      : fd_(path == "-" ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0)
                        : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_.get() < 0) fail_system("open");
    struct stat status = {};
    if (::fstat(fd_.get(), &status) != 0) fail_system("stat");
    if (S_ISDIR(status.st_mode)) throw error("is a folder, expected a file");
    if (::isatty(fd_.get()) != 0) {
      throw error("is a terminal, expected a file or a pipe");
    }
    if (S_ISREG(status.st_mode))
      size_ = static_cast<std::size_t>(status.st_size);
  }

  /// Bytes in all; nothing for a pipe.
  std::optional<std::size_t> size() const {
    return fd_.get() < 0 ? std::optional(memory_.size()) : size_;
  }

  /// Up to `count` bytes from the first on, fewer when there are no more.  Of
  /// a pipe what was read is kept.
  std::span<const std::byte> head(std::size_t count) {
    if (fd_.get() < 0) return memory_.first(std::min(count, memory_.size()));
    constexpr std::size_t step = 1 << 20;  // no size in a file is believed
    while (kept_.size() < count) {
      const std::size_t had = kept_.size();
      kept_.resize(had + std::min(step, count - had));
      const std::size_t got = read_some(had, std::span(kept_).subspan(had));
      kept_.resize(had + got);
      if (got == 0) break;
    }
    return std::span(kept_).first(std::min(count, kept_.size()));
  }

  /// Bytes [at, at + count).
  /// @throws carve::error  when they are not there any more.
  std::vector<std::byte> read(std::size_t at, std::size_t count) const {
    if (fd_.get() < 0 || !size_) {
      const auto all = fd_.get() < 0 ? memory_ : std::span(kept_);
      const auto part = all.subspan(at, count);
      return {part.begin(), part.end()};
    }
    std::vector<std::byte> out(count);
    std::size_t had = 0;
    while (had < count) {
      const std::size_t got = read_some(at + had, std::span(out).subspan(had));
      if (got == 0) {
        throw error("the file shrank while it was read: it had ", *size_,
                    " bytes, now it ends at ", at + had);
      }
      had += got;
    }
    return out;
  }

 private:
  [[noreturn]] static void fail_system(std::string_view action) {
    throw error("cannot ", action, ": ",
                std::generic_category().message(errno));
  }

  std::size_t read_some(std::size_t at, std::span<std::byte> to) const {
    for (;;) {
      const ssize_t got = size_ ? ::pread(fd_.get(), to.data(), to.size(),
                                          static_cast<off_t>(at))
                                : ::read(fd_.get(), to.data(), to.size());
      if (got >= 0) return static_cast<std::size_t>(got);
      if (errno != EINTR) fail_system("read");
    }
  }

  std::span<const std::byte> memory_;
  descriptor fd_;
  std::optional<std::size_t> size_;
  std::vector<std::byte> kept_;
};

template <class T>
T load(std::span<const std::byte> bytes, std::size_t i) {
  T value;
  std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

/// `convert` of every element, read from the file as a `Stored`.
template <class Result, class Stored, class Convert>
std::vector<Result> load_all(std::span<const std::byte> bytes,
                             Convert convert) {
  std::vector<Result> values(bytes.size() / sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = convert(load<Stored>(bytes, i));
  }
  return values;
}

template <class Stored, class Source, class Convert>
std::vector<std::byte> store_all(std::span<const Source> values,
                                 Convert convert) {
  std::vector<std::byte> bytes(values.size() * sizeof(Stored));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Stored stored = convert(values[i]);
    std::memcpy(bytes.data() + i * sizeof(Stored), &stored, sizeof(Stored));
  }
  return bytes;
}

/// The value of an 8-bit float with `bits` of fraction.  E5M2 is a short F16;
/// E4M3 has no infinity and one NaN a sign, its largest number is 448.
/// Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022),
/// table 1.
double from_f8(std::uint8_t word, int bits) {
  const int exponents = (1 << (7 - bits)) - 1, bias = exponents >> 1;
  const int exponent = word >> bits & exponents;
  const int fraction = word & ((1 << bits) - 1), one = 1 << bits;
  double value;
  if (exponent == exponents && (bits == 2 || fraction == one - 1)) {
    value = bits == 2 && fraction == 0
                ? std::numeric_limits<double>::infinity()
                : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - bias - bits);
  } else {
    value = std::ldexp(one + fraction, exponent - bias - bits);
  }
  return word & 0x80 ? -value : value;
}

/// `use(x)` with x a zero of the integer type that stores `type`.
template <class Use>
auto with_integer(dtype type, Use&& use) {
  switch (type) {
    case dtype::i64:
      return use(std::int64_t{});
    case dtype::i32:
      return use(std::int32_t{});
    case dtype::i16:
      return use(std::int16_t{});
    case dtype::i8:
      return use(std::int8_t{});
    case dtype::u64:
      return use(std::uint64_t{});
    case dtype::u32:
      return use(std::uint32_t{});
    case dtype::u16:
      return use(std::uint16_t{});
    default:
      return use(std::uint8_t{});
  }
}

/// The elements of a tensor, row-major.
std::vector<std::byte> gathered(const memory_tensor& t, std::size_t elements) {
  const std::size_t item = item_size(t.dtype);
  std::vector<std::byte> out(elements * item);
  if (elements == 0) return out;
  const std::vector<std::int64_t> steps = t.steps();
  std::vector<std::int64_t> at(t.shape.size());
  std::int64_t from = 0;  // in elements
  for (std::size_t i = 0; i < elements; ++i) {
    std::memcpy(&out[i * item], t.data + from * static_cast<std::int64_t>(item),
                item);
    for (std::size_t a = at.size(); a-- > 0;) {
      from += steps[a];
      if (++at[a] < t.shape[a]) break;
      from -= steps[a] * t.shape[a], at[a] = 0;
    }
  }
  return out;
}

/// No gaps, and no axis out of order; an axis of length 1 has no say.
bool row_major(const memory_tensor& t) {
  std::int64_t step = 1;
  for (std::size_t a = t.shape.size(); a-- > 0 && !t.strides.empty();) {
    if (t.shape[a] != 1 && t.strides[a] != step) return false;
    step *= t.shape[a];
  }
  return true;
}

}  // namespace

std::vector<std::int64_t> memory_tensor::steps() const {
  if (!strides.empty()) return strides;
  std::vector<std::int64_t> out(shape.size(), 1);
  for (std::size_t a = shape.size(); a-- > 1;) {
    out[a - 1] = out[a] * shape[a];
  }
  return out;
}

std::string_view dtype_name(dtype type) { return row(type).name; }

std::optional<dtype> dtype_named(std::string_view text) {
  for (const dtype_row& r : dtype_table) {
    if (r.name == text) return r.type;
  }
  return std::nullopt;
}

std::size_t item_size(dtype type) { return row(type).size; }

bool is_floating(dtype type) { return type <= dtype::f8_e5m2; }

std::optional<format> format_of(dtype type) { return row(type).number_format; }

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ',';
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

std::string printable(std::string_view text, std::size_t limit) {
  return escaped(text, limit);
}

struct file::content {
  source from;
  std::size_t begin = 0;  // of the data
  tensor_map tensors;
  std::map<std::string, std::string> metadata;
  std::map<std::string, memory_tensor, std::less<>> in_memory;

  content(const std::vector<memory_tensor>& all,
          std::map<std::string, std::string> pairs)
      : from(std::span<const std::byte>()), metadata(std::move(pairs)) {
    for (const memory_tensor& t : all) {
      const std::size_t n = count_elements(t.name, t.dtype, t.shape);
      if (!t.strides.empty() && t.strides.size() != t.shape.size()) {
        fail(t.name, text("expected ", t.shape.size(), " strides, got ",
                          t.strides.size()));
      }
      if (n > 0 && !t.data) fail(t.name, "expected data, got a null pointer");
      if (!in_memory.emplace(t.name, t).second) {
        fail(t.name, "is already among the tensors");
      }
      tensors.emplace(
          t.name, tensor_info{t.dtype, t.shape, n, 0, n * item_size(t.dtype)});
    }
  }

  content(source&& s, std::string_view path) : from(std::move(s)) {
    constexpr std::size_t prefix = 8;
    const auto start = from.head(4096);
    const auto refuse = [&](const std::string& why) {
      const std::string format = foreign_format(from.head(4096), path);
      throw error(format.empty() ? why : format);
    };
    const auto size = from.size();
    if (start.size() < prefix) {
      refuse("a file of " + std::to_string(start.size()) +
             " bytes is too short to be a safetensors file");
    }
    const auto length = load<std::uint64_t>(start, 0);
    if (length > max_header_bytes) {
      refuse("the header's length " + std::to_string(length) +
             " exceeds the format's limit of " +
             std::to_string(max_header_bytes) +
             "; is this a safetensors file?");
    }
    const auto too_long = [&](std::size_t all) {
      refuse("the header's length " + std::to_string(length) + " exceeds the " +
             std::to_string(all - prefix) + " bytes that follow");
    };
    if (size && length > *size - prefix) too_long(*size);
    begin = prefix + length;
    const auto head = from.head(begin);
    if (head.size() < begin) too_long(head.size());
    const std::string_view header(
        reinterpret_cast<const char*>(head.data()) + prefix, length);
    if (!header.starts_with('{')) refuse("the header does not begin with {");
    // The parser takes a zero byte for the end and would ignore what follows.
    if (header.find('\0') != header.npos) {
      throw error("the header has a zero byte");
    }
    // Of a pipe the length is known when all of it was read.
    constexpr std::size_t most = std::numeric_limits<std::int64_t>::max();
    header_reader reader(size ? *size - begin : most);
    nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
    std::size_t data = 0;
    for (const auto& [name, t] : reader.tensors) data = std::max(data, t.end);
    if (size) {
      data = *size - begin;
    } else if (const auto got = from.head(begin + data + 1).size() - begin;
               got != data) {
      throw error("expected ", data, " bytes of data, got ",
                  got < data ? text(got) : "more");
    }
    check_cover(reader.tensors, data);
    tensors = std::move(reader.tensors);
    metadata = std::move(reader.metadata);
  }
};

file file::open(const std::filesystem::path& path) {
  const std::string name =
      path == "-" ? "standard input" : printable(path.string(), 300);
  try {
    file result;
    result.content_ =
        std::make_shared<const content>(source(path), path.string());
    return result;
  } catch (const error& e) {
    throw error(name, ": ", e.what());
  }
}

file file::parse(std::span<const std::byte> bytes) {
  file result;
  result.content_ = std::make_shared<const content>(source(bytes), "FILE");
  return result;
}

file file::of(const std::vector<memory_tensor>& tensors,
              std::map<std::string, std::string> metadata) {
  file result;
  result.content_ =
      std::make_shared<const content>(tensors, std::move(metadata));
  return result;
}

const std::map<std::string, std::string>& file::metadata() const {
  return content_->metadata;
}

std::vector<std::string> file::names() const {
  std::vector<std::string> out;
  for (const auto& [name, info] : content_->tensors) out.push_back(name);
  return out;
}

bool file::contains(std::string_view name) const {
  return content_->tensors.contains(name);
}

const tensor_info& file::info(std::string_view name) const {
  const auto found = content_->tensors.find(name);
  if (found == content_->tensors.end()) {
    fail(name, "the file has no such tensor");
  }
  return found->second;
}

std::span<const std::byte> file::look(std::string_view name,
                                      std::vector<std::byte>& kept) const {
  const auto found = content_->in_memory.find(name);
  if (found != content_->in_memory.end() && row_major(found->second)) {
    return {found->second.data, info(name).end};
  }
  return kept = bytes(name);
}

std::vector<std::byte> file::bytes(std::string_view name) const {
  const tensor_info& t = info(name);
  if (const auto found = content_->in_memory.find(name);
      found != content_->in_memory.end()) {
    return gathered(found->second, t.elements);
  }
  try {
    return content_->from.read(content_->begin + t.begin, t.end - t.begin);
  } catch (const error& e) {
    fail(name, e.what());
  }
}

std::vector<double> file::as_double(std::string_view name) const {
  std::vector<std::byte> kept;
  const auto b = look(name, kept);
  const dtype type = info(name).dtype;
  switch (type) {
    case dtype::f64:
      return load_all<double, double>(b, [](double x) { return x; });
    case dtype::f32:
      return load_all<double, float>(b, [](float x) { return double{x}; });
    case dtype::f16:
      return load_all<double, std::uint16_t>(b, from_f16_bits);
    case dtype::bf16:
      return load_all<double, std::uint16_t>(b, from_bf16_bits);
    case dtype::f8_e4m3:
      return load_all<double, std::uint8_t>(
          b, [](std::uint8_t x) { return from_f8(x, 3); });
    case dtype::f8_e5m2:
      return load_all<double, std::uint8_t>(
          b, [](std::uint8_t x) { return from_f8(x, 2); });
    default:
      break;
  }
  return with_integer(type, [&]<class Stored>(Stored) {
    return load_all<double, Stored>(b, [name](Stored x) {
      // Within the range of Stored the way back is defined; the largest
      // integers may round up to the number after it.
      const auto value = static_cast<double>(x);
      if (value >= std::ldexp(1.0, std::numeric_limits<Stored>::digits) ||
          static_cast<Stored>(value) != x) {
        fail(name, "the integer " + std::to_string(x) + " is not a double");
      }
      return value;
    });
  });
}

std::vector<float> file::as_float(std::string_view name) const {
  const dtype type = info(name).dtype;
  if (type == dtype::f64 || !is_floating(type)) {
    fail(name, "expected F32, F16, BF16 or an 8-bit float, got " +
                   std::string(dtype_name(type)));
  }
  std::vector<std::byte> kept;
  const auto b = look(name, kept);
  if (type == dtype::f32) {
    std::vector<float> values(b.size() / sizeof(float));
    // One copy of bytes: moved through registers, no bit of a NaN changes.
    if (!b.empty()) std::memcpy(values.data(), b.data(), b.size());
    return values;
  }
  if (type == dtype::f16) {
    return load_all<float, std::uint16_t>(b, from_f16_bits);
  }
  if (type == dtype::bf16) {
    return load_all<float, std::uint16_t>(b, from_bf16_bits);
  }
  const int bits = type == dtype::f8_e4m3 ? 3 : 2;
  return load_all<float, std::uint8_t>(b, [bits](std::uint8_t x) {
    return static_cast<float>(from_f8(x, bits));
  });
}

std::vector<std::int64_t> file::as_int64(std::string_view name) const {
  const dtype type = info(name).dtype;
  if (is_floating(type)) {
    fail(name, "expected integers, got " + std::string(dtype_name(type)));
  }
  std::vector<std::byte> kept;
  const auto b = look(name, kept);
  return with_integer(type, [&]<class Stored>(Stored) {
    return load_all<std::int64_t, Stored>(b, [name](Stored x) {
      if (std::is_same_v<Stored, std::uint64_t> &&
          x > static_cast<Stored>(std::numeric_limits<std::int64_t>::max())) {
        fail(name, "the integer " + std::to_string(x) + " is above 2^63 - 1");
      }
      return static_cast<std::int64_t>(x);
    });
  });
}

std::vector<std::byte> encoded(std::string_view name, dtype type,
                               std::span<const double> values) {
  switch (type) {
    case dtype::f64:
      return store_all<double>(values, [](double x) { return x; });
    case dtype::f32:
      return store_all<float>(values, [](double x) {
        return static_cast<float>(round_to<format::f32>(x));
      });
    case dtype::f16:
      return store_all<std::uint16_t>(values, to_f16_bits<double>);
    case dtype::bf16:
      return store_all<std::uint16_t>(values, to_bf16_bits<double>);
    default:
      fail(name, "expected F64, F32, F16 or BF16, got " +
                     std::string(dtype_name(type)));
  }
}

void writer::set_metadata(const std::string& key, const std::string& value) {
  metadata_[key] = value;
}

void writer::insert(const std::string& name, dtype type,
                    const std::vector<std::int64_t>& shape, std::size_t given,
                    std::vector<std::byte> bytes) {
  if (name == metadata_key) fail(name, "is no name for a tensor");
  if (entries_.contains(name)) fail(name, "is already in the file");
  const std::size_t expected = count_elements(name, type, shape);
  if (given != expected) {
    fail(name, shape_text(shape) + " has " + std::to_string(expected) +
                   " elements, got " + std::to_string(given));
  }
  entries_.emplace(name, entry{type, shape, std::move(bytes)});
}

void writer::add(const std::string& name, dtype type,
                 const std::vector<std::int64_t>& shape,
                 std::span<const double> values) {
  insert(name, type, shape, values.size(), encoded(name, type, values));
}

void writer::add_int64(const std::string& name,
                       const std::vector<std::int64_t>& shape,
                       std::span<const std::int64_t> values) {
  insert(name, dtype::i64, shape, values.size(),
         store_all<std::int64_t>(values, [](std::int64_t x) { return x; }));
}

void writer::add_bytes(const std::string& name, dtype type,
                       const std::vector<std::int64_t>& shape,
                       std::span<const std::byte> values) {
  if (values.size() % item_size(type) != 0) {
    fail(name, std::to_string(values.size()) +
                   " bytes are no whole number of " +
                   std::string(dtype_name(type)) + " elements");
  }
  insert(name, type, shape, values.size() / item_size(type),
         {values.begin(), values.end()});
}

std::vector<std::pair<std::string_view, const writer::entry*>> writer::layout()
    const {
  std::vector<std::pair<std::string_view, const entry*>> order;
  for (const auto& [name, e] : entries_) order.emplace_back(name, &e);
  std::stable_sort(order.begin(), order.end(), [](auto& x, auto& y) {
    return item_size(x.second->dtype) > item_size(y.second->dtype);
  });
  return order;
}

std::string writer::header() const {
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  if (!metadata_.empty()) root[std::string(metadata_key)] = metadata_;
  std::size_t begin = 0;
  for (const auto& [name, e] : layout()) {
    const std::size_t end = begin + e->bytes.size();
    root[std::string(name)] = {{"dtype", dtype_name(e->dtype)},
                               {"shape", e->shape},
                               {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text;
  try {
    text = root.dump();
  } catch (const nlohmann::json::exception&) {
    throw error("a tensor's name or a metadata string is not UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > max_header_bytes) {
    throw error("the header of " + std::to_string(text.size()) +
                " bytes exceeds the format's limit of " +
                std::to_string(max_header_bytes));
  }
  const auto length = static_cast<std::uint64_t>(text.size());
  std::string prefix(sizeof(length), '\0');
  std::memcpy(prefix.data(), &length, sizeof(length));
  return prefix + text;
}

std::vector<std::byte> writer::serialize() const {
  const std::string head = header();
  const auto head_bytes = std::as_bytes(std::span(head));
  std::vector<std::byte> out(head_bytes.begin(), head_bytes.end());
  for (const auto& [name, e] : layout()) {
    out.insert(out.end(), e->bytes.begin(), e->bytes.end());
  }
  return out;
}

void writer::save(const std::filesystem::path& path) const {
  const std::string head = header();
  std::vector<std::span<const std::byte>> parts{std::as_bytes(std::span(head))};
  for (const auto& [name, e] : layout()) parts.emplace_back(e->bytes);
  write_output(path, parts);
}

}  // namespace carve::safetensors
