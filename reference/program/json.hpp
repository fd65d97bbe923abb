/// @file
/// How do numbers and texts of the program's JSON stand?
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

namespace carve::program {

/// A number, or null where it is not finite, which JSON does not know.
inline nlohmann::ordered_json json_number(double x) {
  using json = nlohmann::ordered_json;
  return std::isfinite(x) ? json(x) : json(nullptr);
}

/// In ASCII: it may be printed. A byte that is not UTF-8 does no harm.
inline std::string json_text(const nlohmann::ordered_json& x) {
  using handler = nlohmann::ordered_json::error_handler_t;
  return x.dump(2, ' ', true, handler::replace);
}

}  // namespace carve::program
