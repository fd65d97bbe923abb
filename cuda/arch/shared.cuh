// Where do things lie in shared memory, and how are they read and written?
//
// Addresses are 32 bits, as the instructions take them.  `shared<T>` is the
// address of a T: what is laid out as a struct is found by its members,
//   shared<stage> s; s[&stage::keys][3], load<float2>(s[&stage::decay], 2 * c),
// and costs one addition of a constant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace carve::cuda::arch {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ uint4 read16(std::uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ void write16(std::uint32_t address, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}
__device__ __forceinline__ uint2 read8(std::uint32_t address) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];\n"
               : "=r"(x.x), "=r"(x.y)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ void write8(std::uint32_t address, std::uint32_t x,
                                       std::uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};\n" ::"r"(address), "r"(x),
               "r"(y)
               : "memory");
}
__device__ __forceinline__ std::uint32_t read_word(std::uint32_t address) {
  std::uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ void write_word(std::uint32_t address,
                                           std::uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ float read4(std::uint32_t address) {
  return __uint_as_float(read_word(address));
}
__device__ __forceinline__ void write4(std::uint32_t address, float x) {
  write_word(address, __float_as_uint(x));
}

/// The address of a T.
template <class T>
struct shared {
  std::uint32_t at;
  __device__ operator std::uint32_t() const { return at; }
  /// Of a member.
  template <class M, class C>
  __device__ __forceinline__ shared<M> operator[](M C::*member) const {
    M T::*const own = member;
    std::ptrdiff_t offset;
    static_assert(sizeof own == sizeof offset, "a member is its offset");
    __builtin_memcpy(&offset, &own, sizeof offset);
    return {at + static_cast<std::uint32_t>(offset)};
  }
};
template <class T, std::size_t N>
struct shared<T[N]> {
  std::uint32_t at;
  __device__ operator std::uint32_t() const { return at; }
  __device__ __forceinline__ shared<T> operator[](int i) const {
    return {at + i * static_cast<std::uint32_t>(sizeof(T))};
  }
};

/// Reads the V that begins at element i.
template <class V, class T, std::size_t N>
__device__ __forceinline__ V load(shared<T[N]> from, int i) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  V y;
  if constexpr (sizeof(V) == 4) {
    const std::uint32_t x = read_word(from[i]);
    __builtin_memcpy(&y, &x, sizeof y);
  } else if constexpr (sizeof(V) == 8) {
    const uint2 x = read8(from[i]);
    __builtin_memcpy(&y, &x, sizeof y);
  } else {
    const uint4 x = read16(from[i]);
    __builtin_memcpy(&y, &x, sizeof y);
  }
  return y;
}
/// Writes y from element i on.
template <class V, class T, std::size_t N>
__device__ __forceinline__ void store(shared<T[N]> to, int i, const V& y) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  if constexpr (sizeof(V) == 4) {
    std::uint32_t x;
    __builtin_memcpy(&x, &y, sizeof y);
    write_word(to[i], x);
  } else if constexpr (sizeof(V) == 8) {
    uint2 x;
    __builtin_memcpy(&x, &y, sizeof y);
    write8(to[i], x.x, x.y);
  } else {
    uint4 x;
    __builtin_memcpy(&x, &y, sizeof y);
    write16(to[i], x);
  }
}

}  // namespace carve::cuda::arch
