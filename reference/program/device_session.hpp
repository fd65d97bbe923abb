/// @file
/// What is around a call of the CUDA kernels: tensors copied to the device,
/// results that are NaN until they are written, and a workspace.  The program
/// and the GPU tests run the kernels so.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "carve/cuda.hpp"
#include "carve/error.hpp"
#include "carve/precision.hpp"

namespace carve::program {

inline void require(cudaError_t e) {
  if (e != cudaSuccess) throw error("CUDA: ", cudaGetErrorString(e));
}
inline void require(const cuda::status& s) {
  if (!s) throw error("CUDA kernels: ", s.text);
}

inline std::size_t size_of(cuda::format f) {
  return f == cuda::format::fp32 ? 4 : 2;
}

/// Numbers as the kernels hold them, rounded to nearest.
inline std::vector<std::byte> encode(cuda::format to,
                                     std::span<const double> x) {
  std::vector<std::byte> bytes(x.size() * size_of(to));
  const auto put = [&](std::size_t i, auto word) {
    std::memcpy(&bytes[i * sizeof word], &word, sizeof word);
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (to == cuda::format::fp32) put(i, static_cast<float>(x[i]));
    if (to == cuda::format::bf16) put(i, to_bf16_bits(x[i]));
    if (to == cuda::format::fp16) put(i, to_f16_bits(x[i]));
  }
  return bytes;
}

inline std::vector<double> decode(cuda::format from,
                                  std::span<const std::byte> bytes) {
  const std::size_t size = size_of(from);
  std::vector<double> x(bytes.size() / size);
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, &bytes[i * size], size);
    const auto half = static_cast<std::uint16_t>(word);
    x[i] = from == cuda::format::fp32   ? std::bit_cast<float>(word)
           : from == cuda::format::bf16 ? from_bf16_bits(half)
                                        : from_f16_bits(half);
  }
  return x;
}

/// Device memory for as long as it is in scope.
class buffer {
 public:
  explicit buffer(std::size_t bytes) : bytes_(bytes) {
    // One byte at least, so that an empty tensor is not taken for an absent
    // one.
    require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)));
  }
  explicit buffer(std::span<const std::byte> host) : buffer(host.size()) {
    require(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice));
  }
  buffer(buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  buffer& operator=(buffer&&) = delete;
  ~buffer() { cudaFree(data_); }

  void* data() const { return data_; }
  /// What the kernels leave of it must not depend on what was there.
  void fill_with_garbage() const { require(cudaMemset(data_, 0xff, bytes_)); }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// A device tensor and its host shape: `rows` rows of `channels`.
struct device_rows {
  cuda::tensor at;
  std::size_t rows = 0;
  std::int64_t channels = 1, pitch = 1;
  cuda::format as = cuda::format::fp32;
};

/// The device memory of some calls.
class device_session {
 public:
  /// A copy of `[B,T,heads,channels]`, with `padding` elements of NaN after
  /// each row.
  device_rows place(std::span<const double> x, std::int64_t T,
                    std::int64_t heads, std::int64_t channels, cuda::format as,
                    std::int64_t padding = 0) {
    const std::int64_t pitch = channels + padding;
    device_rows t{{}, x.size() / channels, channels, pitch, as};
    std::vector<double> padded(t.rows * pitch,
                               std::numeric_limits<double>::quiet_NaN());
    for (std::size_t i = 0; i < x.size(); ++i)
      padded[i / channels * pitch + i % channels] = x[i];
    t.at = {raw(encode(as, padded)), pitch * heads * T, pitch * heads, pitch};
    return t;
  }
  /// A tensor of `size` elements to be written, NaN until then.
  device_rows blank(std::size_t size, std::int64_t T, std::int64_t heads,
                    std::int64_t channels, cuda::format as,
                    std::int64_t padding = 0) {
    return place(
        std::vector<double>(size, std::numeric_limits<double>::quiet_NaN()), T,
        heads, channels, as, padding);
  }
  /// A state or parameter: fp32, without strides.
  device_rows floats(std::span<const double> x) {
    return place(x, 1, 1, 1, cuda::format::fp32);
  }
  device_rows blank_floats(std::size_t size) {
    return blank(size, 1, 1, 1, cuda::format::fp32);
  }
  void* raw(std::span<const std::byte> bytes) {
    kept_.emplace_back(bytes);
    return kept_.back().data();
  }

  std::vector<double> read(const device_rows& t) const {
    std::vector<std::byte> bytes(t.rows * t.pitch * size_of(t.as));
    require(cudaMemcpy(bytes.data(), t.at.data, bytes.size(),
                       cudaMemcpyDeviceToHost));
    const std::vector<double> padded = decode(t.as, bytes);
    std::vector<double> x(t.rows * t.channels);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = padded[i / t.channels * t.pitch + i % t.channels];
    return x;
  }

  /// Runs a pass and waits for it.
  ///@{
  static void run(const cuda::problem& p, const cuda::outputs& out,
                  cuda::path how = cuda::path::best) {
    run(cuda::forward_workspace, cuda::forward, p, out, how);
  }
  static void run(const cuda::problem& p, const cuda::gradients& g,
                  cuda::path how = cuda::path::best) {
    run(cuda::backward_workspace, cuda::backward, p, g, how);
  }
  ///@}

 private:
  template <class Size, class Pass, class Results>
  static void run(Size&& size, Pass&& pass, const cuda::problem& p,
                  const Results& results, cuda::path how) {
    std::size_t bytes = 0;
    require(size(p, &bytes, how));
    const buffer workspace(bytes);
    workspace.fill_with_garbage();
    require(pass(p, results, workspace.data(), bytes, nullptr, how));
    require(cudaDeviceSynchronize());
  }

  std::vector<buffer> kept_;
};

}  // namespace carve::program
