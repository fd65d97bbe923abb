/// @file
/// What is the SHA-256 of some bytes?
///
/// Source: FIPS 180-4, sections 4.1.2, 4.2.2, 5 and 6.2.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace carve::program {

namespace detail {

/// The first 32 bits of the fraction of the n-th root of x, n = 2 or 3, in
/// integers: of the largest y with y^n <= x 2^(32 n), which for x < 2^9 is
/// below 2^37.
constexpr std::uint32_t root_bits(std::uint32_t x, int n) {
  __extension__ using wide = unsigned __int128;
  const auto below = [x, n](std::uint64_t y) {
    const wide target = static_cast<wide>(x) << (32 * n);
    wide power = y;
    for (int i = 1; i < n; ++i) power *= y;
    return power <= target;
  };
  std::uint64_t y = 0;
  for (int bit = 36; bit >= 0; --bit) {
    const std::uint64_t next = y | std::uint64_t{1} << bit;
    if (below(next)) y = next;
  }
  return static_cast<std::uint32_t>(y);
}

/// Roots of the first N primes.
template <std::size_t N>
constexpr std::array<std::uint32_t, N> prime_roots(int n) {
  std::array<std::uint32_t, N> roots{};
  std::size_t found = 0;
  for (std::uint32_t p = 2; found < N; ++p) {
    bool prime = true;
    for (std::uint32_t q = 2; q * q <= p; ++q) prime = prime && p % q != 0;
    if (prime) roots[found++] = root_bits(p, n);
  }
  return roots;
}

}  // namespace detail

/// 64 hexadecimal digits.
inline std::string sha256(std::span<const std::byte> bytes) {
  static constexpr auto K = detail::prime_roots<64>(3);
  std::array<std::uint32_t, 8> H = detail::prime_roots<8>(2);
  std::vector<std::byte> padded(bytes.begin(), bytes.end());
  padded.push_back(std::byte{0x80});
  while (padded.size() % 64 != 56) padded.push_back(std::byte{0});
  const std::uint64_t bits = std::uint64_t{8} * bytes.size();
  for (int shift = 56; shift >= 0; shift -= 8) {
    padded.push_back(static_cast<std::byte>(bits >> shift));
  }
  for (std::size_t block = 0; block < padded.size(); block += 64) {
    std::array<std::uint32_t, 64> W{};
    for (std::size_t i = 0; i < 64; ++i) {
      W[i / 4] = W[i / 4] << 8 | static_cast<std::uint32_t>(padded[block + i]);
    }
    for (std::size_t t = 16; t < 64; ++t) {
      const std::uint32_t x = W[t - 15], y = W[t - 2];
      W[t] = W[t - 16] + W[t - 7] +
             (std::rotr(x, 7) ^ std::rotr(x, 18) ^ x >> 3) +
             (std::rotr(y, 17) ^ std::rotr(y, 19) ^ y >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = H;
    for (std::size_t t = 0; t < 64; ++t) {
      const std::uint32_t first =
          h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
          ((e & f) ^ (~e & g)) + K[t] + W[t];
      const std::uint32_t second =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) +
          ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first;
      d = c, c = b, b = a, a = first + second;
    }
    const std::uint32_t words[] = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) H[i] += words[i];
  }
  std::string hex;
  for (const std::uint32_t word : H) {
    for (int shift = 28; shift >= 0; shift -= 4) {
      hex += "0123456789abcdef"[word >> shift & 15u];
    }
  }
  return hex;
}

}  // namespace carve::program
