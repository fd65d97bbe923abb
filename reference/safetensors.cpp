/// @file
/// How is a safetensors file checked, read and written?
#include "safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <type_traits>

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
    dtype_row{dtype::i64, "I64", 8, std::nullopt},
    dtype_row{dtype::i32, "I32", 4, std::nullopt},
};

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
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t) override {
    return unexpected("a negative number");
  }
  bool number_float(number_float_t, const string_t& text) override {
    return unexpected("the number " + printable(text));
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
      return unexpected("the number " + std::to_string(value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == place::metadata) {
      metadata[member_] = value;
    } else if (place_ == place::tensor && member_ == "dtype") {
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

[[noreturn]] void fail_system(const std::filesystem::path& path,
                              const std::string& action) {
  throw error(path.string() + ": cannot " + action + ": " +
              std::generic_category().message(errno));
}

class descriptor {
 public:
  explicit descriptor(int fd) : fd_(fd) {}
  descriptor(const descriptor&) = delete;
  descriptor& operator=(const descriptor&) = delete;
  ~descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

/// A file's bytes, mapped read only.
class mapping {
 public:
  mapping() = default;
  explicit mapping(const std::filesystem::path& path) {
    // O_NONBLOCK: opening a pipe must not wait for its writer.
    const descriptor fd(
        ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (fd.get() < 0) fail_system(path, "open");
    struct stat status = {};
    if (::fstat(fd.get(), &status) != 0) fail_system(path, "stat");
    if (!S_ISREG(status.st_mode)) {
      throw error(path.string() + ": not a regular file");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;  // nothing to map; too short, as `parse` will say
    void* const start =
        ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (start == MAP_FAILED) fail_system(path, "map");
    start_ = start;
  }
  mapping(mapping&& other) noexcept
      : start_(std::exchange(other.start_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  mapping& operator=(mapping&&) = delete;
  ~mapping() {
    if (start_ != nullptr) ::munmap(start_, size_);
  }
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(start_), start_ ? size_ : 0};
  }

 private:
  void* start_ = nullptr;
  std::size_t size_ = 0;
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

void write_all(int fd, const void* data, std::size_t size,
               const std::filesystem::path& path) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd, next, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_system(path, "write");
    }
    next += written;
    size -= static_cast<std::size_t>(written);
  }
}

}  // namespace

std::string_view dtype_name(dtype type) { return row(type).name; }

std::optional<dtype> dtype_named(std::string_view text) {
  for (const dtype_row& r : dtype_table) {
    if (r.name == text) return r.type;
  }
  return std::nullopt;
}

std::size_t item_size(dtype type) { return row(type).size; }

std::optional<format> format_of(dtype type) { return row(type).number_format; }

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ',';
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

std::string printable(std::string_view text) { return escaped(text, 100); }

struct file::content {
  mapping map;  // empty when the caller keeps the bytes
  std::span<const std::byte> data;
  tensor_map tensors;
  std::map<std::string, std::string> metadata;

  content(mapping&& m, std::span<const std::byte> bytes) : map(std::move(m)) {
    constexpr std::size_t prefix = 8;
    if (bytes.size() < prefix) {
      throw error("a file of " + std::to_string(bytes.size()) +
                  " bytes is too short to be a safetensors file");
    }
    const auto length = load<std::uint64_t>(bytes, 0);
    if (length > max_header_bytes) {
      throw error("the header's length " + std::to_string(length) +
                  " exceeds the format's limit of " +
                  std::to_string(max_header_bytes) +
                  "; is this a safetensors file?");
    }
    if (length > bytes.size() - prefix) {
      throw error("the header's length " + std::to_string(length) +
                  " exceeds the " + std::to_string(bytes.size() - prefix) +
                  " bytes that follow");
    }
    data = bytes.subspan(prefix + length);
    const std::string_view header(
        reinterpret_cast<const char*>(bytes.data()) + prefix, length);
    if (!header.starts_with('{')) {
      throw error("the header does not begin with {");
    }
    // The parser takes a zero byte for the end and would ignore what follows.
    if (header.find('\0') != header.npos) {
      throw error("the header has a zero byte");
    }
    header_reader reader(data.size());
    nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
    check_cover(reader.tensors, data.size());
    tensors = std::move(reader.tensors);
    metadata = std::move(reader.metadata);
  }
};

file file::open(const std::filesystem::path& path) {
  mapping map(path);
  file result;
  const auto bytes = map.bytes();
  try {
    result.content_ = std::make_shared<const content>(std::move(map), bytes);
  } catch (const error& e) {
    throw error(path.string() + ": " + e.what());
  }
  return result;
}

file file::parse(std::span<const std::byte> bytes) {
  file result;
  result.content_ = std::make_shared<const content>(mapping(), bytes);
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

std::span<const std::byte> file::bytes(std::string_view name) const {
  const tensor_info& t = info(name);
  return content_->data.subspan(t.begin, t.end - t.begin);
}

std::vector<double> file::as_double(std::string_view name) const {
  const auto b = bytes(name);
  switch (info(name).dtype) {
    case dtype::f64:
      return load_all<double, double>(b, [](double x) { return x; });
    case dtype::f32:
      return load_all<double, float>(b, [](float x) { return double{x}; });
    case dtype::f16:
      return load_all<double, std::uint16_t>(b, from_f16_bits);
    case dtype::bf16:
      return load_all<double, std::uint16_t>(b, from_bf16_bits);
    case dtype::i32:
      return load_all<double, std::int32_t>(b,
                                            [](auto x) { return double(x); });
    case dtype::i64:
      break;
  }
  return load_all<double, std::int64_t>(b, [name](std::int64_t x) {
    // Below 2^63 in magnitude the way back is defined; the largest integers
    // may round up to 2^63 itself.
    const auto value = static_cast<double>(x);
    if (value == 0x1p63 || static_cast<std::int64_t>(value) != x) {
      fail(name, "the integer " + std::to_string(x) + " is not a double");
    }
    return value;
  });
}

std::vector<float> file::as_float(std::string_view name) const {
  const auto b = bytes(name);
  const dtype type = info(name).dtype;
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
  fail(name, "expected F32, F16 or BF16, got " + std::string(dtype_name(type)));
}

std::vector<std::int64_t> file::as_int64(std::string_view name) const {
  const auto b = bytes(name);
  const dtype type = info(name).dtype;
  if (type == dtype::i64) {
    return load_all<std::int64_t, std::int64_t>(b, [](auto x) { return x; });
  }
  if (type == dtype::i32) {
    return load_all<std::int64_t, std::int32_t>(b, [](auto x) { return x; });
  }
  fail(name, "expected I64 or I32, got " + std::string(dtype_name(type)));
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
  std::vector<std::byte> bytes;
  switch (type) {
    case dtype::f64:
      bytes = store_all<double>(values, [](double x) { return x; });
      break;
    case dtype::f32:
      bytes = store_all<float>(values, [](double x) {
        return static_cast<float>(round_to<format::f32>(x));
      });
      break;
    case dtype::f16:
      bytes = store_all<std::uint16_t>(values, to_f16_bits<double>);
      break;
    case dtype::bf16:
      bytes = store_all<std::uint16_t>(values, to_bf16_bits<double>);
      break;
    case dtype::i64:
    case dtype::i32:
      fail(name, "expected a floating-point dtype, got " +
                     std::string(dtype_name(type)));
  }
  insert(name, type, shape, values.size(), std::move(bytes));
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
  namespace fs = std::filesystem;
  const std::string head = header();
  std::error_code code;
  fs::path target = path;
  // A rename would put a file in the place of a device, a pipe or a link.
  if (fs::exists(path, code)) {
    if (!fs::is_regular_file(path, code)) {
      throw error(path.string() + ": exists and is not a regular file");
    }
    target = fs::canonical(path, code);
    if (code) throw error(path.string() + ": " + code.message());
  }
  static std::atomic<unsigned> serial = 0;
  fs::path temporary = target;
  temporary +=
      ".tmp" + std::to_string(::getpid()) + "." + std::to_string(serial++);
  descriptor fd(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (fd.get() < 0) fail_system(path, "write");
  try {
    write_all(fd.get(), head.data(), head.size(), path);
    for (const auto& [name, e] : layout()) {
      write_all(fd.get(), e->bytes.data(), e->bytes.size(), path);
    }
    if (::fsync(fd.get()) != 0 || fd.close() != 0) fail_system(path, "write");
    if (::rename(temporary.c_str(), target.c_str()) != 0) {
      fail_system(path, "write");
    }
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

}  // namespace carve::safetensors
