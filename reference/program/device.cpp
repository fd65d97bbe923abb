#include "program/device.hpp"

#ifndef CARVE_WITH_CUDA

namespace carve::program {

std::vector<judged_tensor> run_on_device(const dump&) {
  throw error("--cuda: this program was built without CUDA");
}

}  // namespace carve::program

#else

#include <cuda_runtime_api.h>

#include <cstring>
#include <limits>
#include <span>

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
    if (in.in.gd.present()) {
      throw error("gd: the CUDA kernels have no value-axis decay");
    }
    if (d.dtype == dtype::f64) {
      throw error("q: the CUDA kernels take F32, BF16 and F16, got F64");
    }
    const dimensions& n = d.size;
    const auto size = [](index_t x) { return static_cast<int>(x); };
    p_.family = family_of(in.family);
    p_.input = d.dtype == dtype::f32    ? cuda::format::fp32
               : d.dtype == dtype::bf16 ? cuda::format::bf16
                                        : cuda::format::fp16;
    p_.B = size(n.B), p_.T = size(n.T), p_.H = size(n.H);
    p_.HV = size(n.HV), p_.K = size(n.K), p_.V = size(n.V), p_.N = size(n.N);
    p_.scale = static_cast<float>(in.scale ? *in.scale : 1 / std::sqrt(n.K));
    p_.read_before = in.read == readout::before;
    p_.q = upload("q", in.in.q, d.dtype), p_.k = upload("k", in.in.k, d.dtype);
    p_.v = upload("v", in.in.v, d.dtype),
    p_.beta = upload("beta", in.in.beta, d.dtype);
    p_.g = upload("g", gate("g"), dtype::f32);
    p_.b = upload("b", gate("b"), d.dtype);
    p_.e = upload("e", gate("e"), d.dtype);
    p_.w = upload("w", gate("w"), d.dtype);
    p_.initial_state = floats(in.in.initial_state);
    p_.window = size(in.window), p_.rank = size(n.rho);
    p_.w_down = floats(in.in.w_down), p_.w_up = floats(in.in.w_up);
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
    g.d_final_state = floats(d_.cotangents.final_state);
    const auto like = [&](const char* name, const tensor<double>& x, dtype as) {
      return x.present() ? output(name, x.shape, as) : cuda::tensor{};
    };
    g.dq = like("dq", in.in.q, d_.dtype), g.dk = like("dk", in.in.k, d_.dtype);
    g.dv = like("dv", in.in.v, d_.dtype);
    g.dg = like("dg", gate("g"), dtype::f32);
    g.dbeta = like("dbeta", in.in.beta, d_.dtype);
    g.db = like("db", gate("b"), d_.dtype);
    g.de = like("de", gate("e"), d_.dtype);
    g.dw = like("dw", gate("w"), d_.dtype);
    const auto state_like = [&](const char* name, const tensor<double>& x) {
      return x.present() ? state(name, x.shape) : nullptr;
    };
    g.d_initial_state = state_like("dinitial_state", in.in.initial_state);
    g.d_w_down = state_like("dw_down", in.in.w_down);
    g.d_w_up = state_like("dw_up", in.in.w_up);
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
  static cuda::family family_of(family f) {
    switch (f) {
      case family::delta:
        return cuda::family::delta;
      case family::gdn:
        return cuda::family::gdn;
      case family::kda:
        return cuda::family::kda;
      case family::gdn2:
        return cuda::family::gdn2;
      case family::carve:
        return cuda::family::carve;
      case family::value_erase:
        return cuda::family::value_erase;
      default:
        throw error("family: no CUDA kernel for ", info(f).name);
    }
  }

  /// The gate of that name; it must have the shape that the kernels read.
  const tensor<double>& gate(std::string_view name) const {
    for (const auto& m : tensors<double>::members()) {
      if (m.name != name) continue;
      const tensor<double>& x = d_.in.in.*m.at;
      const family_info& row = info(d_.in.family);
      const axis along = name == "g"   ? row.decay
                         : name == "w" ? row.write
                                       : row.erase;
      const index_t rank = along == axis::head ? 3 : 4;
      if (x.present() && (x.rank() != rank || x.dim(2) != d_.size.HV)) {
        throw error(name, ": the CUDA kernels take one gate for each of ",
                    d_.size.HV, " value heads and every channel, got ",
                    x.shape);
      }
      return x;
    }
    throw error(name, ": not a gate");
  }

  void* keep(buffer b) {
    inputs_.push_back(std::move(b));
    return inputs_.back().data();
  }

  static cuda::tensor strided(void* data, const tensor_shape& shape) {
    const std::int64_t head = shape.size() == 4 ? shape[3] : 1;
    return {data, shape[1] * shape[2] * head, shape[2] * head, head};
  }

  /// The kernels read one format; a tensor that was given in a wider one must
  /// not be rounded behind its owner's back.
  cuda::tensor upload(std::string_view name, const tensor<double>& x,
                      dtype as) {
    if (!x.present()) return {};
    const std::vector<std::byte> bytes = encode(as, x.data);
    if (decode(as, bytes) != x.data) {
      throw error(name, ": the CUDA kernels read it as ",
                  safetensors::dtype_name(as), ", which cannot hold it");
    }
    return strided(keep(buffer(bytes)), x.shape);
  }
  const float* floats(const tensor<double>& x) {
    if (!x.present()) return nullptr;
    return static_cast<const float*>(keep(buffer(encode(dtype::f32, x.data))));
  }

  /// A tensor to be written, NaN until then.
  cuda::tensor output(const char* name, const tensor_shape& shape, dtype as) {
    const std::vector<double> unwritten(
        element_count(shape), std::numeric_limits<double>::quiet_NaN());
    outputs_.push_back({name, as, shape, buffer(encode(as, unwritten))});
    return strided(outputs_.back().memory.data(), shape);
  }
  float* state(const char* name, const tensor_shape& shape) {
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
