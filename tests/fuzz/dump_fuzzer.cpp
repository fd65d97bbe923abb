/// @file
/// Can a dump whose structure was tampered with do worse than be refused?
///
/// The input's bytes are read as edits to the header of a small valid dump:
/// names, dtypes, shapes, byte ranges, settings.  Mutated so, a file gets past
/// the checks that random bytes stop at, and reaches those of the dump, of the
/// problem and, when it is small, the verdict and its reports.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "program/dump.hpp"
#include "program/report.hpp"
#include "program/verify.hpp"
#include "safetensors.hpp"

namespace st = carve::safetensors;
namespace program = carve::program;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

/// The input, a byte at a time; zeros when it is used up.
class edits {
 public:
  explicit edits(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  bool done() const { return at_ >= bytes_.size(); }
  std::size_t below(std::size_t n) {
    const std::size_t byte = done() ? 0 : bytes_[at_++];
    return byte % n;
  }
  template <class Range>
  const auto& one_of(const Range& range) {
    return range[below(std::size(range))];
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
};

struct header_tensor {
  std::string name, dtype;
  std::vector<std::string> shape;  // any text: a number, or not
  std::string begin, end;
};

struct header {
  std::vector<header_tensor> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::size_t data = 0;
};

std::size_t size_of(const std::string& dtype) {
  const auto type = st::dtype_named(dtype);
  return type ? st::item_size(*type) : 1;
}

/// The bytes that a shape of small numbers asks for; 0 for another.
std::size_t bytes_of(const header_tensor& t) {
  std::size_t count = size_of(t.dtype);
  for (const std::string& axis : t.shape) {
    const unsigned long n = std::strtoul(axis.c_str(), nullptr, 10);
    if (n > 64 || count > 100'000) return 0;
    count *= n;
  }
  return count;
}

/// Every byte range as the format wants it.
void lay_out(header& h) {
  h.data = 0;
  for (header_tensor& t : h.tensors) {
    t.begin = std::to_string(h.data);
    h.data += bytes_of(t);
    t.end = std::to_string(h.data);
  }
}

/// gdn2 with gradients, T 5, H 2, K 3, V 4; or gdn, packed, T 6, H 1, HV 2.
header base(std::size_t which) {
  header h;
  const auto add = [&](const char* name, std::vector<std::string> shape,
                       const char* dtype = "F32") {
    h.tensors.push_back({name, dtype, std::move(shape), "", ""});
  };
  if (which == 0) {
    h.metadata = {{"family", "gdn2"}, {"scale", "0.5"}};
    for (const char* name : {"q", "k", "g", "b", "dq"}) {
      add(name, {"1", "5", "2", "3"});
    }
    for (const char* name : {"v", "w", "o", "do"}) {
      add(name, {"1", "5", "2", "4"});
    }
    add("final_state", {"1", "2", "3", "4"});
  } else {
    h.metadata = {{"family", "gdn"}, {"l2norm", "true"}};
    for (const char* name : {"q", "k"}) add(name, {"1", "6", "1", "2"}, "BF16");
    for (const char* name : {"v", "o"}) add(name, {"1", "6", "2", "2"}, "BF16");
    for (const char* name : {"g", "beta"}) add(name, {"1", "6", "2"});
    add("cu_seqlens", {"3"}, "I64");
    add("initial_state", {"2", "2", "2", "2"});
  }
  lay_out(h);
  return h;
}

constexpr const char* names[] = {
    "q",          "k",    "v",     "g",           "gd",
    "beta",       "b",    "e",     "E",           "w",
    "w_down",     "w_up", "A_log", "dt_bias",     "initial_state",
    "cu_seqlens", "o",    "do",    "final_state", "dfinal_state",
    "dq",         "dg",   "dbeta", "dw",          "dinitial_state",
    "dA_log",     "mask", "h0",    "\x1b[2J",     ""};
constexpr const char* dtypes[] = {"F64", "F32", "F16",  "BF16", "F8_E4M3",
                                  "I64", "I32", "BOOL", "U8",   "F8_E5M2",
                                  "U64", "C64", "f32",  ""};
constexpr const char* numbers[] = {"0",
                                   "1",
                                   "2",
                                   "3",
                                   "4",
                                   "5",
                                   "6",
                                   "7",
                                   "8",
                                   "64",
                                   "65536",
                                   "2147483648",
                                   "4294967296",
                                   "1152921504606846976",
                                   "2305843009213693952",
                                   "9223372036854775807",
                                   "9223372036854775808",
                                   "18446744073709551615",
                                   "18446744073709551616",
                                   "-1",
                                   "1.5",
                                   "null",
                                   "\"1\"",
                                   "[1]"};
constexpr const char* values[] = {"gdn",
                                  "gdn2",
                                  "kda",
                                  "gla",
                                  "delta",
                                  "linear",
                                  "mamba2",
                                  "carve",
                                  "full_erase",
                                  "value_erase",
                                  "true",
                                  "false",
                                  "True",
                                  "0.5",
                                  "-1",
                                  "0",
                                  "1e308",
                                  "nan",
                                  "inf",
                                  "1e-320",
                                  "before",
                                  "BHTD",
                                  "NHVK",
                                  "softplus",
                                  "bounded",
                                  "sigmoid",
                                  "doubled_sigmoid",
                                  "4",
                                  "9223372036854775807",
                                  "\x1b[31m",
                                  "",
                                  "log",
                                  "log2",
                                  "linear"};

void edit(header& h, edits& e) {
  const auto tensor = [&]() -> header_tensor& {
    return h.tensors[e.below(h.tensors.size())];
  };
  switch (e.below(13)) {
    case 0:
      tensor().name = e.one_of(names);
      break;
    case 1:
      tensor().dtype = e.one_of(dtypes);
      break;
    case 2:
      if (auto& s = tensor().shape; !s.empty()) {
        s[e.below(s.size())] = e.one_of(numbers);
      }
      break;
    case 3:
      if (auto& s = tensor().shape; s.size() < 70) {
        s.insert(s.begin() + static_cast<std::ptrdiff_t>(e.below(s.size() + 1)),
                 e.one_of(numbers));
      }
      break;
    case 4:
      if (auto& s = tensor().shape; !s.empty()) {
        s.erase(s.begin() + static_cast<std::ptrdiff_t>(e.below(s.size())));
      }
      break;
    case 5:
      if (auto& s = tensor().shape; s.size() > 1) {
        const std::size_t i = e.below(s.size()), j = e.below(s.size());
        std::swap(s[i], s[j]);
      }
      break;
    case 6:
      tensor().begin = e.one_of(numbers);
      break;
    case 7:
      tensor().end = e.one_of(numbers);
      break;
    case 8:
      if (h.tensors.size() < 40) {
        h.tensors.push_back(header_tensor(tensor()));
        h.tensors.back().name = e.one_of(names);
      }
      break;
    case 9:
      if (h.tensors.size() > 1) {
        h.tensors.erase(h.tensors.begin() +
                        static_cast<std::ptrdiff_t>(e.below(h.tensors.size())));
      }
      break;
    case 10: {
      const std::size_t i = e.below(program::settings_table.size() + 1);
      h.metadata.emplace_back(i < program::settings_table.size()
                                  ? program::settings_table[i].key
                                  : "\x1b]0;",
                              e.one_of(values));
      break;
    }
    case 11:  // one length throughout, as a change of T, H or K would be
      for (const char *const from = e.one_of(numbers), *const to =
                                                           e.one_of(numbers);
           header_tensor & t : h.tensors) {
        std::replace(t.shape.begin(), t.shape.end(), std::string(from),
                     std::string(to));
      }
      break;
    default:
      h.data = e.below(256) * 4;
      break;
  }
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", c);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

/// The file of that header; its numbers are small, its offsets rise.
std::vector<std::byte> file_of(const header& h, edits& e) {
  std::string text = "{\"__metadata__\":{";
  // A member twice is refused at once; the last value stands.
  std::vector<std::string> seen;
  for (auto i = h.metadata.rbegin(); i != h.metadata.rend(); ++i) {
    if (std::find(seen.begin(), seen.end(), i->first) != seen.end()) continue;
    text +=
        (seen.empty() ? "" : ",") + quoted(i->first) + ":" + quoted(i->second);
    seen.push_back(i->first);
  }
  text += "}";
  for (const header_tensor& t : h.tensors) {
    text += "," + quoted(t.name) + ":{\"dtype\":" + quoted(t.dtype) +
            ",\"shape\":[";
    for (std::size_t i = 0; i < t.shape.size(); ++i) {
      text += (i == 0 ? "" : ",") + t.shape[i];
    }
    text += "],\"data_offsets\":[" + t.begin + "," + t.end + "]}";
  }
  text += "}";
  if (e.below(16) == 15)
    text[e.below(text.size())] = "{}[],:\"0a\\\x01\xff"[e.below(12)];
  const std::uint64_t length =
      text.size() + (e.below(32) == 31 ? e.below(4) : 0);
  // A header may promise more than a small file holds.
  const std::size_t held = std::min<std::size_t>(h.data, 1 << 20);
  std::vector<std::byte> file(8 + text.size() + held);
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, text.data(), text.size());
  std::byte* const data = file.data() + 8 + text.size();
  for (const header_tensor& t : h.tensors) {
    const std::size_t begin = std::strtoul(t.begin.c_str(), nullptr, 10);
    const std::size_t size = bytes_of(t), item = size_of(t.dtype);
    if (begin > held || size > held - begin) continue;
    for (std::size_t i = 0; i < size / item; ++i) {
      std::byte* const at = data + begin + i * item;
      const auto store = [at](auto x) { std::memcpy(at, &x, sizeof(x)); };
      const double x = 0.25 * static_cast<double>(i % 7) - 0.75;
      if (t.dtype == "F64") store(x);
      if (t.dtype == "F32") store(static_cast<float>(x));
      if (t.dtype == "F16") store(carve::to_f16_bits(x));
      if (t.dtype == "BF16") store(carve::to_bf16_bits(x));
      if (t.dtype == "I64") store(static_cast<std::int64_t>(i) * 3);
      if (t.dtype == "I32") store(static_cast<std::int32_t>(i) * 3);
    }
  }
  return file;
}

void check_text(const std::string& text) {
  for (const char c : text) {
    require(c == '\n' || (static_cast<unsigned char>(c) >= 0x20 &&
                          static_cast<unsigned char>(c) < 0x7f));
  }
}

void try_dump(const st::file& file) {
  std::ostringstream shown;
  program::write_content(shown, file);
  check_text(shown.str());

  const program::dump d = program::read_dump(file);
  for (const program::judged_tensor& x : d.judged) {
    require(static_cast<std::size_t>(carve::element_count(x.values.shape)) ==
            x.values.data.size());
  }
  const carve::dimensions& n = d.size;
  if (d.judged.empty() || n.N * n.HV * n.K * n.V > 4096 ||
      n.B * n.T * n.HV * n.K * n.V > 4096) {
    return;
  }
  program::verify_settings how;
  how.run.threads = 1;
  const program::judged_file judged{"dump", program::verify(d, how), ""};
  require(judged.outcome->tensors.size() == d.judged.size());
  std::ostringstream report;
  program::write_table(report, *judged.outcome, false);
  program::write_json(report, {judged});
  program::write_junit(report, {judged});
  program::write_summary(report, {judged, {"other", {}, "why"}}, false);
  check_text(report.str());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  edits e(std::span(data, size));
  header h = base(e.below(2));
  const bool consistent = e.below(4) != 0;
  for (std::size_t i = e.below(5) + 1; i-- > 0;) edit(h, e);
  if (consistent) lay_out(h);
  const std::vector<std::byte> file = file_of(h, e);
  try {
    try_dump(st::file::parse(file));
  } catch (const carve::error& refusal) {
    check_text(refusal.what());  // the one way to refuse
  }
  return 0;
}
