/// @file
/// A dense tensor: shape and elements, last axis contiguous.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "carve/head.hpp"

namespace carve {

/// The number of axes and their lengths.
using tensor_shape = std::vector<index_t>;

/// Elements of a tensor of that shape.
inline std::size_t element_count(const tensor_shape& shape) {
  std::size_t n = 1;
  for (const index_t d : shape) n *= static_cast<std::size_t>(d);
  return n;
}

/// Shape and elements; an empty shape means "absent".
template <class T>
struct tensor {
  tensor_shape shape;   ///< lengths of the axes
  std::vector<T> data;  ///< elements, last axis contiguous

  tensor() = default;
  /// Zeros of that shape.
  explicit tensor(tensor_shape s)
      : shape(std::move(s)), data(element_count(shape), T(0)) {}
  /// Elements of that shape; the caller vouches for their number.
  tensor(tensor_shape s, std::vector<T> d)
      : shape(std::move(s)), data(std::move(d)) {}

  /// The shape is not empty.
  bool present() const { return !shape.empty(); }
  /// The number of axes.
  index_t rank() const { return static_cast<index_t>(shape.size()); }
  /// The length of axis i; negative i count from the last axis.
  index_t dim(index_t i) const {
    return shape[static_cast<std::size_t>(i < 0 ? i + rank() : i)];
  }
};

/// The tensor of `f(x)` for every element x: the same in another scalar.
template <class To, class From, class Convert>
tensor<To> convert(const tensor<From>& x, Convert&& f) {
  tensor<To> y;
  y.shape = x.shape;
  y.data.reserve(x.data.size());
  for (const From& e : x.data) y.data.push_back(f(e));
  return y;
}

}  // namespace carve
