#include "program/device.hpp"

#ifndef CARVE_WITH_CUDA

namespace carve::program {

std::vector<judged_tensor> run_on_device(const dump&) {
  throw error("--cuda: this program was built without CUDA");
}

}  // namespace carve::program

#else

#include <cuda_runtime_api.h>

#include <array>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "carve/cuda.hpp"

namespace carve::program {

namespace {

using safetensors::dtype;

void require(cudaError_t e) {
  if (e != cudaSuccess) throw error("CUDA: ", cudaGetErrorString(e));
}
void require(const cuda::status& s) {
  if (!s) throw error("CUDA kernels: ", s.text);
}

/// Device memory for as long as it is in scope.
class buffer {
 public:
  buffer() = default;
  explicit buffer(std::size_t bytes) : bytes_(bytes) {
    // One byte at least, so that an empty tensor is not taken for an absent
    // one.
    require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)));
  }
  explicit buffer(std::span<const std::byte> host) : buffer(host.size()) {
    require(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice));
  }
  buffer(buffer&& other) noexcept { *this = std::move(other); }
  buffer& operator=(buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~buffer() { cudaFree(data_); }

  void* data() const { return data_; }
  std::vector<std::byte> read() const {
    std::vector<std::byte> host(bytes_);
    require(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

std::vector<std::byte> encode(dtype to, std::span<const double> x) {
  std::vector<std::byte> bytes(x.size() * safetensors::item_size(to));
  const auto put = [&](std::size_t i, auto word) {
    std::memcpy(&bytes[i * sizeof word], &word, sizeof word);
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (to == dtype::f32) put(i, static_cast<float>(x[i]));
    if (to == dtype::bf16) put(i, to_bf16_bits(x[i]));
    if (to == dtype::f16) put(i, to_f16_bits(x[i]));
  }
  return bytes;
}

std::vector<double> decode(dtype from, std::span<const std::byte> bytes) {
  const std::size_t size = safetensors::item_size(from);
  std::vector<double> x(bytes.size() / size);
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, &bytes[i * size], size);
    const auto half = static_cast<std::uint16_t>(word);
    x[i] = from == dtype::f32    ? std::bit_cast<float>(word)
           : from == dtype::bf16 ? from_bf16_bits(half)
                                 : from_f16_bits(half);
  }
  return x;
}

/// How the kernels read and write the tensor of one row of the table.
struct device_tensor {
  std::string_view name;
  cuda::tensor cuda::problem::*in = nullptr;
  cuda::tensor cuda::gradients::*gradient = nullptr;
  bool fp32 = false;  // else it has the format of q
  // The states and parameters: fp32, without strides.
  const float* cuda::problem::*floats = nullptr;
  float* cuda::gradients::*float_gradient = nullptr;
};

constexpr std::array device_tensors{
    device_tensor{"q", &cuda::problem::q, &cuda::gradients::dq},
    device_tensor{"k", &cuda::problem::k, &cuda::gradients::dk},
    device_tensor{"v", &cuda::problem::v, &cuda::gradients::dv},
    device_tensor{"g", &cuda::problem::g, &cuda::gradients::dg, true},
    device_tensor{"beta", &cuda::problem::beta, &cuda::gradients::dbeta},
    device_tensor{"b", &cuda::problem::b, &cuda::gradients::db},
    device_tensor{"e", &cuda::problem::e, &cuda::gradients::de},
    device_tensor{"w", &cuda::problem::w, &cuda::gradients::dw},
    device_tensor{.name = "initial_state",
                  .floats = &cuda::problem::initial_state,
                  .float_gradient = &cuda::gradients::d_initial_state},
    device_tensor{.name = "w_down",
                  .floats = &cuda::problem::w_down,
                  .float_gradient = &cuda::gradients::d_w_down},
    device_tensor{.name = "w_up",
                  .floats = &cuda::problem::w_up,
                  .float_gradient = &cuda::gradients::d_w_up},
};

const device_tensor* on_device(std::string_view name) {
  for (const device_tensor& t : device_tensors) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

/// A dump's problem on the device.
class device_problem {
 public:
  explicit device_problem(const dump& d) : d_(d) {
    const problem<double>& in = d.in;
    const activations& act = in.act;
    if (act.l2norm || act.decay != decay_activation::none ||
        act.beta != gate_activation::none || act.b != gate_activation::none ||
        act.w != gate_activation::none) {
      throw error("--cuda: the kernels take gates, not their logits");
    }
    if (in.state_v_first) {
      throw error("--cuda: the kernels take states [N,HV,K,V]");
    }
    if (d.dtype == dtype::f64) {
      throw error("q: the CUDA kernels take F32, BF16 and F16, got F64");
    }
    const dimensions& n = d.size;
    const auto size = [](index_t x) { return static_cast<int>(x); };
    if (!cuda::has_kernel(in.family)) {
      throw error("family: no CUDA kernel for ", info(in.family).name);
    }
    p_.family = in.family;
    p_.input = d.dtype == dtype::f32    ? cuda::format::fp32
               : d.dtype == dtype::bf16 ? cuda::format::bf16
                                        : cuda::format::fp16;
    p_.B = size(n.B), p_.T = size(n.T), p_.H = size(n.H);
    p_.HV = size(n.HV), p_.K = size(n.K), p_.V = size(n.V), p_.N = size(n.N);
    p_.scale = static_cast<float>(in.scale ? *in.scale : 1 / std::sqrt(n.K));
    p_.read_before = in.read == readout::before;
    for (const auto& m : tensors<double>::members()) {
      const tensor<double>& x = in.in.*m.at;
      if (!x.present()) continue;
      const device_tensor* const t = on_device(m.name);
      if (!t) throw error(m.name, ": the CUDA kernels have no such tensor");
      expect_full(m, x);
      if (t->in) {
        p_.*t->in = upload(m.name, x, t->fp32 ? dtype::f32 : d.dtype);
      } else {
        p_.*t->floats = floats(m.name, x);
      }
    }
    p_.window = size(in.window), p_.rank = size(n.rho);
    if (!in.cu_seqlens.empty()) {
      p_.cu_seqlens = static_cast<const std::int64_t*>(
          keep(buffer(std::as_bytes(std::span(in.cu_seqlens)))));
    }
  }

  void forward() {
    const dimensions& n = d_.size;
    cuda::outputs out;
    out.o = output("o", {n.B, n.T, n.HV, n.V}, d_.dtype);
    out.final_state = state("final_state", {n.N, n.HV, n.K, n.V});
    std::size_t bytes = 0;
    require(cuda::forward_workspace(p_, &bytes));
    const buffer workspace(bytes);
    require(cuda::forward(p_, out, workspace.data(), bytes, nullptr));
    require(cudaDeviceSynchronize());
  }

  void backward() {
    const problem<double>& in = d_.in;
    cuda::gradients g;
    if (!d_.cotangents.o.present()) {
      throw error("do: missing; the CUDA kernels need it for gradients");
    }
    g.d_o = upload("do", d_.cotangents.o, d_.dtype);
    g.d_final_state = floats("dfinal_state", d_.cotangents.final_state);
    for (const auto& m : tensors<double>::members()) {
      const tensor<double>& x = in.in.*m.at;
      if (!x.present()) continue;
      const device_tensor& t = *on_device(m.name);
      const std::string name = "d" + std::string(m.name);
      if (t.in) {
        g.*t.gradient = output(name, x.shape, t.fp32 ? dtype::f32 : d_.dtype);
      } else {
        g.*t.float_gradient = state(name, x.shape);
      }
    }
    std::size_t bytes = 0;
    require(cuda::backward_workspace(p_, &bytes));
    const buffer workspace(bytes);
    require(cuda::backward(p_, g, workspace.data(), bytes, nullptr));
    require(cudaDeviceSynchronize());
  }

  /// What was written, in the order of the calls.
  std::vector<judged_tensor> results() const {
    std::vector<judged_tensor> all;
    for (const auto& [name, as, shape, memory] : outputs_) {
      all.push_back({name, as, {shape, decode(as, memory.read())}});
    }
    return all;
  }

 private:
  /// The kernels broadcast nothing: a gate has all its heads and channels.
  void expect_full(const tensor_row& row, const tensor<double>& x) const {
    const tensor_shape full =
        shapes_of(row, info(d_.in.family), d_.size, false).front();
    if (x.shape != full) {
      throw error(row.name, ": the CUDA kernels take ", full, ", got ",
                  x.shape);
    }
  }

  void* keep(buffer b) {
    inputs_.push_back(std::move(b));
    return inputs_.back().data();
  }

  static cuda::tensor strided(void* data, const tensor_shape& shape) {
    const std::int64_t head = shape.size() == 4 ? shape[3] : 1;
    return {data, shape[1] * shape[2] * head, shape[2] * head, head};
  }

  /// In device memory; null for an absent tensor.  What was given in a wider
  /// format than the kernels read must not be rounded behind its owner's back.
  void* place(std::string_view name, const tensor<double>& x, dtype as) {
    if (!x.present()) return nullptr;
    const std::vector<std::byte> bytes = encode(as, x.data);
    if (decode(as, bytes) != x.data) {
      throw error(name, ": the CUDA kernels read it as ",
                  safetensors::dtype_name(as), ", which cannot hold it");
    }
    return keep(buffer(bytes));
  }
  cuda::tensor upload(std::string_view name, const tensor<double>& x,
                      dtype as) {
    if (!x.present()) return {};
    return strided(place(name, x, as), x.shape);
  }
  const float* floats(std::string_view name, const tensor<double>& x) {
    return static_cast<const float*>(place(name, x, dtype::f32));
  }

  /// A tensor to be written, NaN until then.
  cuda::tensor output(const std::string& name, const tensor_shape& shape,
                      dtype as) {
    const std::vector<double> unwritten(
        element_count(shape), std::numeric_limits<double>::quiet_NaN());
    outputs_.push_back({name, as, shape, buffer(encode(as, unwritten))});
    return strided(outputs_.back().memory.data(), shape);
  }
  float* state(const std::string& name, const tensor_shape& shape) {
    return static_cast<float*>(output(name, shape, dtype::f32).data);
  }

  struct written {
    std::string name;
    dtype as;
    tensor_shape shape;
    buffer memory;
  };

  const dump& d_;
  cuda::problem p_;
  std::vector<buffer> inputs_;
  std::vector<written> outputs_;
};

}  // namespace

std::vector<judged_tensor> run_on_device(const dump& d) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    throw error("--cuda: no CUDA device");
  }
  device_problem p(d);
  p.forward();
  if (d.has_cotangents()) p.backward();
  return p.results();
}

}  // namespace carve::program

#endif
