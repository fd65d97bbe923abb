/// @file
/// Which number formats a kernel stores and multiplies in, and what rounding a
/// real number to each of them gives.
///
/// Every rounding here is to nearest, ties to even, with the target's own
/// overflow and subnormals, and is made in one step: a double goes to bf16
/// without passing through fp32, which would round twice.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

#ifdef __FAST_MATH__
#error "carve/precision.hpp rounds by (x + c) - c, which -ffast-math removes"
#endif

namespace carve {

/// A binary floating-point format of a kernel's operands or storage.
///
/// | format | precision p (bits) | exponents | unit roundoff |
/// |---|---|---|---|
/// | f64 | 53 | -1022 ... 1023 | \f$2^{-53}\f$ |
/// | f32 | 24 | -126 ... 127 | \f$2^{-24}\f$ |
/// | tf32 | 11 | -126 ... 127 | \f$2^{-11}\f$ |
/// | bf16 | 8 | -126 ... 127 | \f$2^{-8}\f$ |
/// | f16 | 11 | -14 ... 15 | \f$2^{-11}\f$ |
///
/// tf32 has no storage of its own: it is an fp32 word of which the tensor core
/// reads the upper 19 bits.  How the lower 13 go is the kernel's choice:
/// an fp32 word handed over as it is loses them by truncation,
/// `cvt.rna.tf32.f32` rounds to nearest with ties *away* from zero, and
/// `cvt.rn.tf32.f32` (compute capability 9.0 and later) rounds to nearest even.
/// This library rounds to nearest even.  `rna` differs from that in every other
/// tie and nowhere else (one word in 16384); truncation doubles the largest
/// error and biases it towards zero.
///
/// Source: IEEE 754-2019 section 3.3; NVIDIA, "PTX ISA", instruction `cvt`.
enum class format { f64, f32, tf32, bf16, f16 };

/// All formats, the widest first.
inline constexpr format all_formats[] = {format::f64, format::f32, format::tf32,
                                         format::bf16, format::f16};

/// The name under which users write a format: "f64", "f32", "tf32", "bf16",
/// "f16".
constexpr std::string_view format_name(format f) {
  constexpr std::string_view names[] = {"f64", "f32", "tf32", "bf16", "f16"};
  return names[static_cast<int>(f)];
}

/// The format called `text`, or nothing when there is none of that name.
constexpr std::optional<format> format_named(std::string_view text) {
  for (format f : all_formats) {
    if (format_name(f) == text) return f;
  }
  return std::nullopt;
}

/// Precision p in bits, the leading bit counted.
constexpr int precision_bits(format f) {
  constexpr int bits[] = {53, 24, 11, 8, 11};
  return bits[static_cast<int>(f)];
}

/// Exponent of the smallest normal number \f$2^{e_{min}}\f$.
constexpr int min_exponent(format f) {
  constexpr int exponents[] = {-1022, -126, -126, -126, -14};
  return exponents[static_cast<int>(f)];
}

/// Exponent of the largest finite number
/// \f$(2 - 2^{1-p})\,2^{e_{max}}\f$; IEEE 754 sets
/// \f$e_{max} = 1 - e_{min}\f$.
constexpr int max_exponent(format f) { return 1 - min_exponent(f); }

namespace detail {

template <class T>
using bits_of =
    std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

/// The normal power 2^e, put together from its bits to be constexpr.
template <std::floating_point T>
constexpr T power_of_two(int e) {
  using limits = std::numeric_limits<T>;
  using bits = bits_of<T>;
  const auto biased = static_cast<bits>(e + limits::max_exponent - 1);
  return std::bit_cast<T>(static_cast<bits>(biased << (limits::digits - 1)));
}

}  // namespace detail

/// Unit roundoff \f$u = 2^{-p}\f$: a number within the normal range is rounded
/// with relative error at most \f$u / (1 + u)\f$.
/// Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.,
/// theorem 2.2.
constexpr double unit_roundoff(format f) {
  return detail::power_of_two<double>(-precision_bits(f));
}

/// Largest finite number of the format.
constexpr double largest_finite(format f) {
  return (2.0 - 2.0 * unit_roundoff(f)) *
         detail::power_of_two<double>(max_exponent(f));
}

/// Smallest positive normal number of the format.
constexpr double smallest_normal(format f) {
  return detail::power_of_two<double>(min_exponent(f));
}

/// Smallest positive subnormal number of the format.
constexpr double smallest_subnormal(format f) {
  return smallest_normal(f) * 2.0 * unit_roundoff(f);
}

/// `x` rounded to format `F`, nearest, ties to even; the result is returned in
/// the type of `x`, which holds it exactly.
///
/// A magnitude of at least \f$(2 - u)\,2^{e_{max}}\f$ becomes an infinity,
/// results below the normal range are multiples of the smallest subnormal
/// (none is flushed), zeros keep their sign.  A NaN becomes the NaN that the
/// conversion instructions give: positive, every bit of the fraction that `F`
/// has set.  A format that holds every `T` returns `x` untouched.
///
/// The rounding mode of the thread must be to nearest, as a program starts.
///
/// Source: IEEE 754-2019 section 4.3.1; NVIDIA, "PTX ISA", instruction `cvt`
/// (`cvt.rn.bf16.f32`, `cvt.rn.f16.f32`, `cvt.rn.tf32.f32`).
template <format F, std::floating_point T>
constexpr T round_to(T x) {
  using limits = std::numeric_limits<T>;
  using bits = detail::bits_of<T>;
  static_assert(limits::is_iec559 && sizeof(T) <= 8,
                "round_to carries values in float or double");
  constexpr int drop = limits::digits - precision_bits(F);
  if constexpr (drop <= 0) {
    return x;
  } else {
    constexpr auto sign = bits{1} << (8 * sizeof(T) - 1);
    constexpr bits infinity = std::bit_cast<bits>(limits::infinity());
    constexpr bits dropped = (bits{1} << drop) - 1;
    constexpr bits nan = (sign - 1) & ~dropped;
    const bits word = std::bit_cast<bits>(x);
    const bits magnitude = word & ~sign;
    // The fraction's carry runs into the exponent, which is what it should do.
    bits rounded =
        (magnitude + (dropped >> 1) + ((magnitude >> drop) & 1)) & ~dropped;
    if constexpr (min_exponent(F) > limits::min_exponent - 1) {
      // Below the normal range the spacing is fixed.  Adding the power of two
      // whose own spacing it is lets the processor round to it.
      constexpr T shift = detail::power_of_two<T>(
          min_exponent(F) + limits::digits - precision_bits(F));
      constexpr bits normal =
          std::bit_cast<bits>(detail::power_of_two<T>(min_exponent(F)));
      const bits spaced =
          std::bit_cast<bits>((std::bit_cast<T>(magnitude) + shift) - shift);
      rounded = magnitude < normal ? spaced : rounded;
    }
    if constexpr (max_exponent(F) < limits::max_exponent - 1) {
      constexpr bits overflow =
          std::bit_cast<bits>(detail::power_of_two<T>(max_exponent(F) + 1));
      rounded = rounded >= overflow ? infinity : rounded;
    }
    const bits value = rounded | (word & sign);
    return std::bit_cast<T>(magnitude > infinity ? nan : value);
  }
}

namespace detail {

/// Calls `body` with the format as a compile-time constant, so that a loop
/// chooses once and not for each element.
template <class Body>
constexpr auto with_format(format f, Body&& body) {
  switch (f) {
    case format::f32:
      return body(std::integral_constant<format, format::f32>{});
    case format::tf32:
      return body(std::integral_constant<format, format::tf32>{});
    case format::bf16:
      return body(std::integral_constant<format, format::bf16>{});
    case format::f16:
      return body(std::integral_constant<format, format::f16>{});
    case format::f64:
      break;
  }
  return body(std::integral_constant<format, format::f64>{});
}

}  // namespace detail

/// As `round_to<F>(x)`, for a format known only when the program runs.
template <std::floating_point T>
constexpr T round_to(format f, T x) {
  return detail::with_format(
      f, [x](auto constant) { return round_to<decltype(constant)::value>(x); });
}

/// Rounds every element of `values` in place, see `round_to<F>(x)`.  The loop
/// has no branch and is vectorised.
template <std::floating_point T>
constexpr void round_all(format f, std::span<T> values) {
  detail::with_format(f, [values](auto constant) {
    constexpr format to = decltype(constant)::value;
    T* const data = values.data();
    const std::size_t size = values.size();
    for (std::size_t i = 0; i < size; ++i) data[i] = round_to<to>(data[i]);
  });
}

/// The bf16 word of `x`, rounded as by `round_to`; a NaN gives 0x7fff.
template <std::floating_point T>
constexpr std::uint16_t to_bf16_bits(T x) {
  const auto narrow = static_cast<float>(round_to<format::bf16>(x));
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(narrow) >> 16);
}

/// The value of a bf16 word, exactly; a NaN keeps its payload.
constexpr float from_bf16_bits(std::uint16_t word) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(word) << 16);
}

/// The fp16 word of `x`, rounded as by `round_to`; a NaN gives 0x7fff.
template <std::floating_point T>
constexpr std::uint16_t to_f16_bits(T x) {
  const auto narrow = static_cast<float>(round_to<format::f16>(x));
  const auto word = std::bit_cast<std::uint32_t>(narrow);
  const std::uint32_t magnitude = word & 0x7fffffffu;
  // Subnormals: k 2^-24 + 1/2 has k in the low bits of its fraction.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
      0x3f000000u;
  // Normals: exponent bias 127 becomes 15.
  std::uint32_t half = (magnitude - (112u << 23)) >> 13;
  half = magnitude < 0x38800000u ? subnormal : half;
  half = magnitude == 0x7f800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7fffu : half;
  return static_cast<std::uint16_t>(half | ((word >> 16) & 0x8000u));
}

/// The value of an fp16 word, exactly; a NaN keeps its payload.
constexpr float from_f16_bits(std::uint16_t half) {
  const std::uint32_t magnitude = half & 0x7fffu;
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(
      static_cast<float>(magnitude) * detail::power_of_two<float>(-24));
  // Exponent bias 15 becomes 127; all ones stays all ones.
  std::uint32_t word = (magnitude << 13) + (112u << 23);
  word = magnitude >= 0x7c00u ? word + (112u << 23) : word;
  word = magnitude < 0x400u ? subnormal : word;
  return std::bit_cast<float>(word | sign);
}

}  // namespace carve
