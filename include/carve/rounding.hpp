/// @file
/// Where do kernels round, and how is a solver told to do so?
#pragma once

#include <vector>

#include "carve/index.hpp"

namespace carve {

/// Where a tensor-core kernel rounds. The names are those of the matrices in
/// chunked_forward and chunked_backward.
enum class rounding_point {
  score,    ///< factors of an off-diagonal block of L or P, and of its way back
  inverse,  ///< factors of the products that merge blocks of T
  T,        ///< T = (I + L)^-1
  P,        ///< P, its scale included
  r,        ///< r = b * k
  wv,       ///< w * v
  rg,       ///< r e^G
  W,        ///< W = T (r e^G)
  Twv,      ///< T (w * v)
  qg,       ///< q e^G
  kg,       ///< k e^(G_C - G)
  S,        ///< the chunk's start state as an operand
  U,        ///< U as an operand
  U_tail,   ///< e^(G_C - G) U, where the decay rides on U
  dS,       ///< cotangent of the end state as an operand
  PtdO,     ///< P^T dO
  dU,       ///< cotangent of U
  qg_back,  ///< q e^G where it updates dS
  dW,       ///< cotangent of W
  M,        ///< dU (w*v)^T + dW (r e^G)^T
  MTt,      ///< M T^T
  dscore,   ///< dP and dL times their decay
  dk_part,  ///< the halves of dk that a kernel stores before it adds them
  SdS,      ///< products and partial sums of the sum over S * dS
};

/// The policy of plain arithmetic: nothing is rounded.
struct exact_policy {
  /// Whether decay ratios are formed as `exp(G_t - G_s)` from cumulated logs,
  /// as kernels do, instead of as products of decays.
  static constexpr bool exponentials = false;
  /// Called with every matrix that a kernel rounds; `per_channel` says whether
  /// the decay varies along the key axis.
  template <class M>
  void round(rounding_point, bool per_channel, M&) const {
    static_cast<void>(per_channel);
  }
  /// Called with every gradient of a chunk that is a sum of contributions, one
  /// or two of each token of the chunk: so many `parts`.
  template <class M>
  void accumulate(M&, index_t parts) const {
    static_cast<void>(parts);
  }
  /// The sum of `x`.
  template <class T>
  T sum(rounding_point, bool per_channel, std::vector<T>& x) const {
    static_cast<void>(per_channel);
    T total(0);
    for (const T& e : x) total += e;
    return total;
  }
};

}  // namespace carve
