/// @file
/// How does carve report an input that it cannot use?
#pragma once

#include <concepts>
#include <ranges>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "carve/cxx20.hpp"

namespace carve {

namespace detail {

template <class Part>
void write_part(std::ostream& out, const Part& part) {
  if constexpr (std::convertible_to<const Part&, std::string_view>) {
    out << std::string_view(part);
  } else if constexpr (std::ranges::input_range<const Part&>) {
    std::string_view separator = "[";
    for (const auto& element : part) {
      out << separator << element;
      separator = ",";
    }
    out << (separator == "[" ? "[]" : "]");
  } else {
    out << part;
  }
}

}  // namespace detail

/// The parts written one after the other; a range reads `[2,192,2,64]`.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (detail::write_part(out, parts), ...);
  return out.str();
}

/// Thrown for every unusable input.  The text names the tensor, what was
/// expected and what came.
struct error : std::runtime_error {
  /// `error("k: expected ", shape_of_q, " like q, got ", shape_of_k)`
  template <class... Parts>
  requires(sizeof...(Parts) > 0 && !(std::derived_from<Parts, error> ||
                                     ...)) explicit error(const Parts&... parts)
      : std::runtime_error(text(parts...)) {}
};

}  // namespace carve
