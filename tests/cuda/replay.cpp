// The unit of tolerance of the GPU tests: the library's rounding replay on a
// test's inputs.
#include "carve/replay.hpp"

#include "carve/family_name.hpp"
#include "tools.hpp"

namespace carve::cuda::test {
namespace {

carve::tensor<float> tensor_of(const values& x, tensor_shape shape) {
  if (x.empty()) return {};
  return {std::move(shape), std::vector<float>(x.begin(), x.end())};
}

results replayed(const inputs& in) {
  const problem& s = in.shape;
  // Without a WY form there is no chunked replay, and fp32 inputs are not for
  // tensor cores; tests keep their bounds.
  if (s.family == family::value_erase || s.input == format::fp32) return {};
  const index_t B = s.B, T = s.T, H = s.H, HV = s.HV, K = s.K, V = s.V;
  const carve::family_info& row = info(s.family);
  carve::problem<float> p;
  p.family = row.id;
  p.scale = s.scale;
  p.read = s.read_before ? readout::before : readout::after;
  p.cu_seqlens = in.cu;
  p.window = s.window;
  const auto gate = [&](axis along) {
    tensor_shape shape{B, T, HV};
    if (along == axis::key) shape.push_back(K);
    if (along == axis::value) shape.push_back(V);
    return shape;
  };
  p.in.q = tensor_of(in.q, {B, T, H, K});
  p.in.k = tensor_of(in.k, {B, T, H, K});
  p.in.v = tensor_of(in.v, {B, T, HV, V});
  p.in.g = tensor_of(in.g, gate(row.decay));
  p.in.beta = tensor_of(in.beta, gate(axis::head));
  p.in.b = tensor_of(in.b, gate(axis::key));
  p.in.w = tensor_of(in.w, gate(row.write));
  p.in.initial_state = tensor_of(in.initial_state, {s.N, HV, K, V});
  p.in.w_down = tensor_of(in.w_down, {HV, s.rank, V});
  p.in.w_up = tensor_of(in.w_up, {HV, K, s.rank});
  const carve::outputs<float> cotangents{
      tensor_of(in.d_o, {B, T, HV, V}),
      tensor_of(in.d_final_state, {s.N, HV, K, V})};
  const carve::format operand =
      s.input == format::bf16 ? carve::format::bf16 : carve::format::f16;
  const run_options alone{.threads = 1};  // the cases have the others
  const auto stored = [&](const carve::tensor<float>& x, carve::format as) {
    values y;
    for (const float e : x.data) y.push_back(round_to(as, e));
    return y;
  };
  const carve::format wide = carve::format::f32;
  results out;
  if (in.d_o.empty()) {
    const chunked_solver<operand_policy> solver{replay_chunk,
                                                operand_policy(operand)};
    const carve::outputs<float> r = carve::forward(p, solver, alone);
    out.o = stored(r.o, operand);
    out.final_state = stored(r.final_state, wide);
    return out;
  }
  const auto r =
      carve::replay(p, cotangents, profile::tensor_core, operand, alone);
  const tensors<float>& d = r.gradients;
  out.o = stored(r.out.o, operand);
  out.final_state = stored(r.out.final_state, wide);
  out.dq = stored(d.q, operand), out.dk = stored(d.k, operand);
  out.dv = stored(d.v, operand), out.dg = stored(d.g, wide);
  out.dbeta = stored(d.beta, operand), out.db = stored(d.b, operand);
  out.dw = stored(d.w, operand);
  out.d_initial_state = stored(d.initial_state, wide);
  out.d_w_down = stored(d.w_down, wide), out.d_w_up = stored(d.w_up, wide);
  return out;
}

[[maybe_unused]] const bool plugged_in = [] {
  replay() = replayed;
  return true;
}();

}  // namespace
}  // namespace carve::cuda::test
