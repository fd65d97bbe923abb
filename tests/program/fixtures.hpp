/// @file
/// Dumps for the tests: the bundled ones, small ones made here, and either
/// with something changed.
#pragma once

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <numbers>
#include <string>
#include <vector>

#include "program/dump.hpp"
#include "program/verify.hpp"
#include "safetensors.hpp"

namespace fixtures {

namespace st = carve::safetensors;

/// Names of the bundled dumps, without ending.
inline const std::vector<std::string> bundled{
    "delta_bf16", "gdn_bf16",  "gdn_no_decay_bf16",
    "kda_bf16",   "gdn2_bf16", "kda_strong_decay_bf16"};

inline std::string path_of(const std::string& name) {
  return std::string(CARVE_DUMPS) + "/" + name + ".safetensors";
}

/// A file in memory, to be changed.
struct editable {
  struct entry {
    st::dtype dtype = st::dtype::f32;
    std::vector<std::int64_t> shape;
    std::vector<double> values;
  };
  std::map<std::string, entry> tensors;
  std::map<std::string, std::string> metadata;

  static editable of(const st::file& file) {
    editable e;
    e.metadata = file.metadata();
    for (const std::string& name : file.names()) {
      const st::tensor_info& i = file.info(name);
      entry x{i.dtype, i.shape, {}};
      if (st::format_of(i.dtype)) {
        x.values = file.as_double(name);
      } else {
        for (const auto n : file.as_int64(name)) {
          x.values.push_back(static_cast<double>(n));
        }
      }
      e.tensors[name] = x;
    }
    return e;
  }

  st::writer writer() const {
    st::writer w;
    for (const auto& [key, value] : metadata) w.set_metadata(key, value);
    for (const auto& [name, x] : tensors) {
      if (st::format_of(x.dtype)) {
        w.add(name, x.dtype, x.shape, x.values);
      } else {
        w.add_int64(
            name, x.shape,
            std::vector<std::int64_t>(x.values.begin(), x.values.end()));
      }
    }
    return w;
  }

  carve::program::dump read(const carve::program::settings& given = {}) const {
    const std::vector<std::byte> bytes = writer().serialize();
    return carve::program::read_dump(st::file::parse(bytes), given);
  }
};

inline carve::program::dump read(const std::string& name,
                                 const carve::program::settings& given = {}) {
  return carve::program::read_dump(st::file::open(path_of(name)), given);
}

/// A small dump of the family gdn2 in F32 with o, final_state and dq, all of
/// them wrong: B 1, T 5, H 2, K 3, V 4.
inline editable small(st::dtype dtype = st::dtype::f32) {
  editable e;
  e.metadata = {{"family", "gdn2"}};
  const auto add = [&](const std::string& name, std::int64_t width, double low,
                       double high) {
    editable::entry x{dtype, {1, 5, 2, width}, {}};
    for (std::int64_t i = 0; i < 10 * width; ++i) {
      const double wave = std::sin(static_cast<double>(i + 1) *
                                   (1 + static_cast<double>(e.tensors.size())));
      x.values.push_back(low + (high - low) * (0.5 + 0.5 * wave));
    }
    e.tensors[name] = x;
  };
  add("q", 3, -1, 1), add("k", 3, -1, 1), add("v", 4, -1, 1);
  add("g", 3, -1, 0), add("b", 3, 0, 1), add("w", 4, 0, 1);
  add("o", 4, -1, 1), add("do", 4, -1, 1), add("dq", 3, -1, 1);
  e.tensors["final_state"] = {
      dtype, {1, 2, 3, 4}, std::vector<double>(24, 0.25)};
  return e;
}

/// What `action` throws, as text; "" when it does not.
template <class Action>
std::string message(Action action) {
  try {
    action();
  } catch (const carve::error& e) {
    return e.what();
  }
  return "";
}

/// A new folder, removed with all in it.
class scratch {
 public:
  scratch() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "carve.XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  ~scratch() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const {
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

}  // namespace fixtures
