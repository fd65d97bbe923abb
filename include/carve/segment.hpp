/// @file
/// What a run of tokens does to the state: an affine map, and how such maps
/// compose (context parallelism, split sequences).
#pragma once

#include <algorithm>

#include "carve/head.hpp"
#include "carve/matrix.hpp"
#include "carve/tiled_walk.hpp"

namespace carve {

/// The map `S_j -> D_j A_j S_j + B_j` of the state's value columns j. Where
/// erase does not vary along the value axis one A `[K,K]` serves all columns;
/// so it does not where the erase looks before a value-axis decay, which then
/// is part of A.
template <class T>
struct segment_map {
  detail::list<matrix<T>> A;  ///< one, or one per value channel; each [K,K]
  detail::list<T> D;          ///< value-axis decay over the segment [V]
  matrix<T> B;                ///< end state from a zero start [K,V]

  /// The matrix that value column j sees.
  const matrix<T>& map_of(index_t j) const {
    return A.size() == 1 ? A[0] : A[j];
  }

  /// The end state for start state `S` `[K,V]`.
  matrix<T> operator()(const matrix<T>& S) const {
    matrix<T> end = B;
    for (index_t j = 0; j < S.cols(); ++j) {
      end.col(j) += D[j] * (map_of(j) * S.col(j));
    }
    return end;
  }
};

/// The map of `first`, then `second`: `(A2 A1, D2 D1, A2 B1 D2 + B2)`.
template <class T>
segment_map<T> compose(const segment_map<T>& second,
                       const segment_map<T>& first) {
  segment_map<T> both;
  const index_t maps = std::max(second.A.count(), first.A.count());
  for (index_t j = 0; j < maps; ++j) {
    both.A.push_back(second.map_of(j) * first.map_of(j));
  }
  for (index_t j = 0; j < first.D.count(); ++j) {
    both.D.push_back(second.D[j] * first.D[j]);
  }
  both.B = second(first.B);
  return both;
}

/// The affine map of a head's tokens; its start state is ignored.
/// Work `T K^2` multiply-adds per distinct column of the erase gates.
template <class T>
segment_map<T> segment_of(const head<T>& p) {
  const index_t K = p.keys, V = p.values;
  segment_map<T> map;
  head<T> zero_start = p;
  zero_start.S0 = {};
  map.B = matrix<T>(K, V);
  recurrent_forward(zero_start, rows<T>{}, state_view<T>{map.B.data(), V, 1});
  map.D = detail::list<T>(V, T(1));
  const bool d_in_A =
      p.d && p.erases && p.erase_reads == erase_order::before_decay;
  for (index_t j = 0; j < V && p.d && !d_in_A; ++j) {
    for (index_t t = 0; t < p.tokens; ++t) map.D[j] = p.d(t, j) * map.D[j];
  }
  // A is what a head that writes nothing makes of the identity.
  const matrix<T> one = matrix<T>::Identity(K, K);
  const bool columns = p.erases && (p.e || p.mask || d_in_A);
  for (index_t j = 0; j < (columns ? V : 1); ++j) {
    head<T> h = p;
    h.values = K;
    h.v = {}, h.w = {};
    h.d = d_in_A ? p.d.from_channel(j) : rows<const T>{};
    h.d.channel = 0;
    h.e = p.e.from_channel(j);
    h.e.channel = 0;
    if (p.mask) h.b = p.mask.column(j);
    h.mask = {};
    h.S0 = {one.data(), K, 1};
    map.A.emplace_back(K, K);
    recurrent_forward(h, rows<T>{}, state_view<T>{map.A.back().data(), K, 1});
  }
  return map;
}

}  // namespace carve
