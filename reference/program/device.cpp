#include "program/device.hpp"

#ifndef CARVE_WITH_CUDA

namespace carve::program {

std::vector<judged_tensor> run_on_device(const dump&) {
  throw error("--cuda: this program was built without CUDA");
}

}  // namespace carve::program

#else

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "program/device_session.hpp"

namespace carve::program {

namespace {

using safetensors::dtype;

cuda::format device_format(dtype as) {
  return as == dtype::f32    ? cuda::format::fp32
         : as == dtype::bf16 ? cuda::format::bf16
                             : cuda::format::fp16;
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
    device_tensor{"gd", &cuda::problem::gd, &cuda::gradients::dgd, true},
    device_tensor{"beta", &cuda::problem::beta, &cuda::gradients::dbeta},
    device_tensor{"b", &cuda::problem::b, &cuda::gradients::db},
    device_tensor{"e", &cuda::problem::e, &cuda::gradients::de},
    device_tensor{"E", &cuda::problem::E, &cuda::gradients::dE},
    device_tensor{"w", &cuda::problem::w, &cuda::gradients::dw},
    device_tensor{"w_last", &cuda::problem::w_last, &cuda::gradients::dw_last},
    device_tensor{"p", &cuda::problem::p, &cuda::gradients::dp},
    device_tensor{"eta", &cuda::problem::eta, &cuda::gradients::deta},
    device_tensor{"r", &cuda::problem::r, &cuda::gradients::dr},
    device_tensor{"y", &cuda::problem::y, &cuda::gradients::dy},
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
    if (act.domain != decay_domain::log) {
      throw error("--cuda: the kernels take natural logs of decays");
    }
    if (in.tiled_heads || d.size.VH != d.size.HV) {
      throw error("--cuda: the kernels take HV value heads, a multiple of H, ",
                  "in groups");
    }
    if (!in.cu_seqlens.empty() && in.cu_seqlens.back() != d.size.T) {
      throw error("--cuda: the kernels take no tokens after the last offset");
    }
    if (d.dtype == dtype::f64) {
      throw error("q: the CUDA kernels take F32, BF16 and F16, got F64");
    }
    const dimensions& n = d.size;
    const auto size = [](index_t x) { return static_cast<int>(x); };
    p_.family = in.family;
    p_.input = device_format(d.dtype);
    p_.B = size(n.B), p_.T = size(n.T), p_.H = size(n.H);
    p_.HV = size(n.HV), p_.K = size(n.K), p_.V = size(n.V), p_.N = size(n.N);
    p_.scale = static_cast<float>(in.scale ? *in.scale : 1 / std::sqrt(n.K));
    p_.read_before = in.read == readout::before;
    p_.erase_reads = in.erase_reads;
    p_.substeps = size(n.substeps);
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
          session_.raw(std::as_bytes(std::span(in.cu_seqlens))));
    }
  }

  void forward() {
    const dimensions& n = d_.size;
    cuda::outputs out;
    out.o = output("o", {n.B, n.T, n.HV, n.V}, d_.dtype);
    out.final_state = state("final_state", {n.N, n.HV, n.K, n.V});
    session_.run(p_, out);
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
    session_.run(p_, g);
  }

  /// What was written, in the order of the calls.
  std::vector<judged_tensor> results() const {
    std::vector<judged_tensor> all;
    for (const auto& [name, as, shape, rows] : outputs_) {
      all.push_back({name, as, {shape, session_.read(rows)}});
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

  /// Of a shape [B,T,heads], [B,T,heads,channels] or [B,T,heads,K,V].
  struct extents {
    std::int64_t T = 1, heads = 1, channels = 1;
  };
  static extents extents_of(const tensor_shape& shape) {
    std::int64_t channels = 1;
    for (std::size_t i = 3; i < shape.size(); ++i) channels *= shape[i];
    return {shape[1], shape[2], channels};
  }

  /// What was given in a wider format than the kernels read must not be rounded
  /// behind its owner's back.
  static void expect_held(std::string_view name, const tensor<double>& x,
                          dtype as) {
    if (decode(device_format(as), encode(device_format(as), x.data)) !=
        x.data) {
      throw error(name, ": the CUDA kernels read it as ",
                  safetensors::dtype_name(as), ", which cannot hold it");
    }
  }
  cuda::tensor upload(std::string_view name, const tensor<double>& x,
                      dtype as) {
    if (!x.present()) return {};
    expect_held(name, x, as);
    const auto [T, heads, channels] = extents_of(x.shape);
    return session_.place(x.data, T, heads, channels, device_format(as)).at;
  }
  const float* floats(std::string_view name, const tensor<double>& x) {
    if (!x.present()) return nullptr;
    expect_held(name, x, dtype::f32);
    return static_cast<const float*>(session_.floats(x.data).at.data);
  }

  /// A tensor to be written, NaN until then.
  cuda::tensor output(const std::string& name, const tensor_shape& shape,
                      dtype as) {
    const auto [T, heads, channels] = extents_of(shape);
    outputs_.push_back({name, as, shape,
                        session_.blank(element_count(shape), T, heads, channels,
                                       device_format(as))});
    return outputs_.back().rows.at;
  }
  float* state(const std::string& name, const tensor_shape& shape) {
    outputs_.push_back(
        {name, dtype::f32, shape, session_.blank_floats(element_count(shape))});
    return static_cast<float*>(outputs_.back().rows.at.data);
  }

  struct written {
    std::string name;
    dtype as;
    tensor_shape shape;
    device_rows rows;
  };

  const dump& d_;
  cuda::problem p_;
  device_session session_;
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
