// Which gates does a problem have, and along what does each vary?
//
// The library's table of families is asked here, once; kernels see axes.
#pragma once

#include "carve/cuda.hpp"
#include "carve/family.hpp"
#include "common.cuh"

namespace carve::cuda {

/// A gate as the kernels read it.  One that the family lacks is read all the
/// same, from an address that exists, and replaced by one: no branch then
/// makes a load wait for another.
struct gate {
  tensor x;
  int step = 0;  ///< distance of channels; 0: one number for all of them
  bool present = false;

  template <class T>
  __device__ __forceinline__ const T* row(std::int64_t batch,
                                          std::int64_t token,
                                          std::int64_t head) const {
    return static_cast<const T*>(x.data) + offset(x, batch, token, head);
  }
};

/// Decay, key-axis erase, write and value-axis erase gate of a problem.
struct gates {
  gate g, b, w, e;
};

/// `anywhere` is an address that may be read in place of an absent gate.
inline gates gates_of(const problem& p, void* anywhere) {
  const family_info& f = info(p.family);
  const auto make = [&](const tensor& x, axis along, bool wanted = true) {
    if (along == axis::none || !wanted) return gate{tensor{anywhere}, 0, false};
    return gate{x, along == axis::head ? 0 : 1, true};
  };
  const bool along_value = f.erase == axis::value;
  return {.g = make(p.g, f.decay),
          .b = make(f.tied ? p.beta : p.b, f.erase, !along_value),
          .w = make(f.tied ? p.beta : p.w, f.write),
          .e = make(p.e, f.erase, along_value)};
}

}  // namespace carve::cuda
