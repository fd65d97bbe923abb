/// @file
/// What has been measured so far, for the ratios printed at the end.
#pragma once

#include <map>
#include <string>

namespace carve::bench {

/// Seconds (whole problems) or nanoseconds an element, by name.
inline std::map<std::string, double>& measured() {
  static std::map<std::string, double> values;
  return values;
}

/// Keeps the smallest value of a name.
inline void note(const std::string& name, double value) {
  const auto [at, fresh] = measured().try_emplace(name, value);
  if (!fresh && value < at->second) at->second = value;
}

}  // namespace carve::bench
