/// @file
/// What counts elements?
#pragma once

#include <cstddef>
#include <vector>

namespace carve {

/// Sizes, positions and strides; signed, so that a step back is a number too.
using index_t = std::ptrdiff_t;

namespace detail {

/// A std::vector whose elements are counted so.
template <class T>
class list : public std::vector<T> {
 public:
  list() = default;
  explicit list(index_t n, const T& x = T())
      : std::vector<T>(static_cast<std::size_t>(n), x) {}
  list(const T* first, const T* last) : std::vector<T>(first, last) {}

  T& operator[](index_t i) { return *(this->data() + i); }
  const T& operator[](index_t i) const { return *(this->data() + i); }
  index_t count() const { return static_cast<index_t>(this->size()); }
};

}  // namespace detail

}  // namespace carve
