// How does a matrix of 16-bit elements lie in shared memory?
//
// As rows whose 16-byte pieces are permuted by the row number, so that eight
// rows of one piece lie in 32 banks.  With 64 columns, rows of 128 bytes, this
// is the "128-byte swizzle" of the tensor cores and begins at a multiple of
// 1024 bytes.
#pragma once

#include <cstdint>

namespace carve::cuda::arch {

/// 64 rows of 64 elements.  (Not aligned by its type, which would pad what is
/// beside it: kernels check where theirs begin.)
struct tile {
  static constexpr int rows = 64, columns = 64, row_bytes = 128, bytes = 8192;
  std::uint16_t element[rows][columns];
};

/// Byte offset of 16-byte piece `piece` of row `row` in a tile.
__device__ __forceinline__ std::uint32_t swizzled(int row, int piece) {
  return row * 128 + ((piece ^ (row & 7)) << 4);
}

/// Byte offset of element (row, col) where a row has `Columns` (a multiple of
/// 64) elements.
template <int Columns>
__device__ __forceinline__ std::uint32_t tile_offset(int row, int col) {
  return row * (Columns * 2) +
         ((((col >> 3) ^ (row & 7)) << 4) | ((col & 7) << 1));
}

/// Such a matrix where its elements are read and written one by one.
template <class T, int Rows, int Columns>
struct alignas(128) swizzled_matrix {
  static_assert(sizeof(T) == 2);
  T element[Rows * Columns];
  /// The Y that begins at (row, col), within a 16-byte piece.
  template <class Y = T>
  __device__ __forceinline__ Y& at(int row, int col) {
    return reinterpret_cast<Y&>(element[tile_offset<Columns>(row, col) / 2]);
  }
};

}  // namespace carve::cuda::arch
