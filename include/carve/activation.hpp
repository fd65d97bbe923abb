/// @file
/// What models put in front of the recurrence: gate activations and the L2
/// normalisation of queries and keys, each with its way back.
#pragma once

#include <string_view>

#include "carve/error.hpp"
#include "carve/scalar.hpp"
#include "carve/tensor.hpp"

namespace carve {

/// How the decay's logits become its natural log `g`.
enum class decay_activation {
  none,      ///< the tensor is `g` itself
  softplus,  ///< `g = -exp(A_log) * softplus(x + dt_bias)` (GDN, KDA)
  bounded,   ///< `g = lower_bound * sigmoid(exp(A_log) * (x + dt_bias))`
};

/// How a gate's logits become the gate.
enum class gate_activation {
  none,             ///< the tensor is the gate itself
  sigmoid,          ///< `1 / (1 + exp(-x))`
  doubled_sigmoid,  ///< twice that: negative eigenvalues are allowed
};

/// In which form `g` and `gd` hold a decay a.
enum class decay_domain {
  log,     ///< `a = exp(g)`
  log2,    ///< `a = 2^g`
  linear,  ///< `a = g`, above zero
};

/// By what q and k are divided, with s the sum of x^2 over the K channels.
enum class l2_norm {
  inside,   ///< `sqrt(s + epsilon)`
  mean,     ///< `sqrt(K (s / K + epsilon))`: epsilon is on the mean
  maximum,  ///< `max(sqrt(s), epsilon)`
};

/// The activations of one problem. `doubled_sigmoid` on `beta` doubles erase
/// and write (GDN, KDA); on `b` it doubles the erase alone (GDN-2).
struct activations {
  decay_activation decay = decay_activation::none;  ///< of `g`
  double lower_bound = -5;  ///< of `g`, for decay_activation::bounded
  gate_activation beta = gate_activation::none;  ///< of `beta`
  gate_activation b = gate_activation::none;     ///< of `b`
  gate_activation w = gate_activation::none;     ///< of `w`
  decay_domain domain = decay_domain::log;       ///< of `g` and `gd`
  bool l2norm = false;                           ///< q and k are L2-normalised
  l2_norm norm = l2_norm::inside;                ///< how
  double l2_epsilon = 1e-6;  ///< the decimal, where it is this one
};

/// `none`, `softplus` or `bounded`.
/// @throws carve::error  for another name.
inline decay_activation decay_activation_named(std::string_view name) {
  if (name == "none") return decay_activation::none;
  if (name == "softplus") return decay_activation::softplus;
  if (name == "bounded") return decay_activation::bounded;
  throw error("decay activation: expected none, softplus or bounded, got \"",
              name, "\"");
}

/// `none`, `sigmoid` or `doubled_sigmoid`.
/// @throws carve::error  for another name.
inline gate_activation gate_activation_named(std::string_view name) {
  if (name == "none") return gate_activation::none;
  if (name == "sigmoid") return gate_activation::sigmoid;
  if (name == "doubled_sigmoid") return gate_activation::doubled_sigmoid;
  throw error("gate activation: expected none, sigmoid or doubled_sigmoid, ",
              "got \"", name, "\"");
}

/// The gate of logits `x`, element by element, in any shape.
template <real T>
tensor<T> activate(gate_activation f, tensor<T> x) {
  if (f == gate_activation::none) return x;
  const T factor(f == gate_activation::sigmoid ? 1 : 2);
  for (T& e : x.data) e = factor * sigmoid(e);
  return x;
}

/// The way back of `activate`: cotangent of the logits from that of the gate.
template <real T>
tensor<T> activate_back(gate_activation f, const tensor<T>& x, tensor<T> dy) {
  if (f == gate_activation::none) return dy;
  const T factor(f == gate_activation::sigmoid ? 1 : 2);
  for (std::size_t i = 0; i < dy.data.size(); ++i) {
    const T s = sigmoid(x.data[i]);
    dy.data[i] = factor * dy.data[i] * s * (T(1) - s);
  }
  return dy;
}

/// The natural log of decays in another domain, and the way back of that.
///@{
template <real T>
tensor<T> natural_log(decay_domain domain, tensor<T> g) {
  if (domain == decay_domain::log) return g;
  const T ln2 = carve::log(T(2));
  for (T& e : g.data) {
    e = domain == decay_domain::log2 ? T(e * ln2) : carve::log(e);
  }
  return g;
}
template <real T>
tensor<T> natural_log_back(decay_domain domain, const tensor<T>& g,
                           tensor<T> dy) {
  if (domain == decay_domain::log) return dy;
  const T ln2 = carve::log(T(2));
  for (std::size_t i = 0; i < dy.data.size(); ++i) {
    dy.data[i] = domain == decay_domain::log2 ? T(dy.data[i] * ln2)
                                              : T(dy.data[i] / g.data[i]);
  }
  return dy;
}
///@}

namespace detail {

/// The norm of one vector, and its square where it depends on the vector.
template <class T>
struct l2_denominator {
  T norm;
  T square;
  bool constant = false;
};

template <class T>
l2_denominator<T> l2_denominator_of(const activations& act, const T* x,
                                    std::size_t n) {
  const T epsilon = act.l2_epsilon == 1e-6
                        ? T(T(1) / T(1000000))
                        : scalar_traits<T>::from_double(act.l2_epsilon);
  T sum = act.norm == l2_norm::inside ? epsilon
          : act.norm == l2_norm::mean ? T(T(static_cast<int>(n)) * epsilon)
                                      : T(0);
  for (std::size_t j = 0; j < n; ++j) sum += x[j] * x[j];
  const T norm = carve::sqrt(sum);
  if (act.norm == l2_norm::maximum && norm < epsilon) {
    return {epsilon, T(epsilon * epsilon), true};
  }
  return {norm, sum};
}

}  // namespace detail

/// `x` divided by its norm along the last axis, see l2_norm.
template <real T>
tensor<T> l2_normalise(tensor<T> x, const activations& act = {}) {
  const std::size_t n = static_cast<std::size_t>(x.dim(-1));
  for (std::size_t i = 0; i < x.data.size(); i += n) {
    const T norm = detail::l2_denominator_of(act, &x.data[i], n).norm;
    for (std::size_t j = i; j < i + n; ++j) x.data[j] = x.data[j] / norm;
  }
  return x;
}

/// The way back of `l2_normalise`: with y its value and n the norm,
/// `dx_i = (dy_i - y_i sum_j y_j dy_j) / n`; `dy_i / n` where n is epsilon.
template <real T>
tensor<T> l2_normalise_back(const tensor<T>& x, tensor<T> dy,
                            const activations& act = {}) {
  const std::size_t n = static_cast<std::size_t>(x.dim(-1));
  for (std::size_t i = 0; i < x.data.size(); i += n) {
    const auto d = detail::l2_denominator_of(act, &x.data[i], n);
    T dot(0);
    if (!d.constant) {
      for (std::size_t j = i; j < i + n; ++j) dot += x.data[j] * dy.data[j];
    }
    for (std::size_t j = i; j < i + n; ++j) {
      dy.data[j] = (dy.data[j] - x.data[j] * (dot / d.square)) / d.norm;
    }
  }
  return dy;
}

namespace detail {

/// The decay's logits of one element with its two parameters.
template <class T>
struct decay_element {
  T z;     // x + dt_bias
  T rate;  // exp(A_log)
};

template <class T>
decay_element<T> decay_at(const tensor<T>& x, std::size_t i,
                          const tensor<T>& A_log, const tensor<T>& dt_bias,
                          std::size_t* head, std::size_t* bias) {
  // x is [B,T,HV] or [B,T,HV,K]; A_log [HV]; dt_bias [HV] or [HV,K].
  const bool channels = x.rank() == 4;
  const std::size_t K = channels ? static_cast<std::size_t>(x.dim(3)) : 1;
  const std::size_t HV = static_cast<std::size_t>(x.dim(2));
  *head = i / K % HV;
  *bias = dt_bias.rank() == 2 ? i % (HV * K) : *head;
  return {dt_bias.present() ? T(x.data[i] + dt_bias.data[*bias]) : x.data[i],
          A_log.present() ? carve::exp(A_log.data[*head]) : T(1)};
}

}  // namespace detail

/// The natural log decay of logits `x` `[B,T,HV]` or `[B,T,HV,K]`.
/// @param[in] A_log    [HV]; absent: zero.
/// @param[in] dt_bias  [HV] or [HV,K]; absent: zero.
template <real T>
tensor<T> activate_decay(const activations& act, const tensor<T>& x,
                         const tensor<T>& A_log, const tensor<T>& dt_bias) {
  if (act.decay == decay_activation::none) return x;
  tensor<T> g = x;
  std::size_t head, bias;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const auto [z, rate] = detail::decay_at(x, i, A_log, dt_bias, &head, &bias);
    g.data[i] = act.decay == decay_activation::softplus
                    ? T(-(rate * softplus(z)))
                    : T(scalar_traits<T>::from_double(act.lower_bound) *
                        sigmoid(T(rate * z)));
  }
  return g;
}

/// The way back of `activate_decay`: returns the cotangent of x and adds those
/// of the two parameters, where they are present.
template <real T>
tensor<T> activate_decay_back(const activations& act, const tensor<T>& x,
                              const tensor<T>& A_log, const tensor<T>& dt_bias,
                              tensor<T> dg, tensor<T>* dA_log,
                              tensor<T>* ddt_bias) {
  if (act.decay == decay_activation::none) return dg;
  std::size_t head, bias;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const auto [z, rate] = detail::decay_at(x, i, A_log, dt_bias, &head, &bias);
    T dz, dlog_rate;  // of z and of A_log
    if (act.decay == decay_activation::softplus) {
      dz = -(dg.data[i] * rate * sigmoid(z));
      dlog_rate = -(dg.data[i] * rate * softplus(z));
    } else {
      const T s = sigmoid(T(rate * z));
      const T ds = dg.data[i] * scalar_traits<T>::from_double(act.lower_bound) *
                   s * (T(1) - s);
      dz = ds * rate;
      dlog_rate = dz * z;
    }
    dg.data[i] = dz;
    if (A_log.present()) dA_log->data[head] += dlog_rate;
    if (dt_bias.present()) ddt_bias->data[bias] += dz;
  }
  return dg;
}

}  // namespace carve
