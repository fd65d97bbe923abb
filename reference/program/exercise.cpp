#include "program/exercise.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace carve::program {

namespace {

std::string shown(double x) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%.2g", x);
  return buffer;
}

double dot(const double* x, const double* y, index_t n) {
  double s = 0;
  for (index_t i = 0; i < n; ++i) s += x[i] * y[i];
  return s;
}

/// Norms of keys, and the largest cosine between one and those of the 16 tokens
/// before it.
struct key_facts {
  double least = HUGE_VAL, largest = 0, mean = 0, cosine = 0;
};

key_facts facts_of(const tensor<double>& k) {
  key_facts f;
  const index_t T = k.dim(1), H = k.dim(2), K = k.dim(3);
  const double* const data = k.data.data();
  index_t count = 0;
  for (index_t row = 0; row < k.dim(0) * T * H; ++row) {
    const double* const x = data + row * K;
    const double norm = std::sqrt(dot(x, x, K));
    f.least = std::min(f.least, norm), f.largest = std::max(f.largest, norm);
    f.mean += norm, ++count;
    const index_t t = row / H % T;
    for (index_t s = 1; s <= std::min<index_t>(t, 16); ++s) {
      const double* const y = x - s * H * K;
      const double other = std::sqrt(dot(y, y, K));
      if (norm == 0 || other == 0) continue;
      f.cosine = std::max(f.cosine, std::fabs(dot(x, y, K) / (norm * other)));
    }
  }
  f.mean /= static_cast<double>(std::max<index_t>(1, count));
  return f;
}

std::pair<double, double> range_of(const tensor<double>& x) {
  const auto [a, b] = std::minmax_element(x.data.begin(), x.data.end());
  return {*a, *b};
}

}  // namespace

input_notes study_inputs(const dump& d) {
  input_notes n;
  const problem<double>& p = d.in;
  const tensors<double>& in = p.in;
  const family_info& row = info(p.family);
  const auto untested = [&n](std::string s) {
    n.untested.push_back(std::move(s));
  };
  const auto suspicious = [&n](std::string s) {
    n.suspicious.push_back(std::move(s));
  };
  const tensor<double> k = p.act.l2norm ? l2_normalise(in.k, p.act) : in.k;
  const key_facts keys = facts_of(k);
  if (row.erases()) {
    if (keys.cosine < 0.7 && d.size.T > 1) {
      untested("keys are hardly correlated (largest cosine " +
               shown(keys.cosine) + "): the growth of an inverse");
    }
    if (keys.least > 0.99 && keys.largest < 1.01) {
      untested("unit keys only: factors |k|^2");
    }
    if (!p.act.l2norm && (keys.mean > 1.5 || keys.mean < 0.67)) {
      suspicious("|k| is " + shown(keys.mean) +
                 " on average and l2norm is off: is --l2norm true missing?");
    }
  }
  if (in.g.present() && !p.linear_decay) {
    const tensor<double> g = natural_log(
        p.act.domain, activate_decay(p.act, in.g, in.A_log, in.dt_bias));
    const auto [least, largest] = range_of(g);
    if (largest > 0 && p.act.decay == decay_activation::none &&
        p.act.domain == decay_domain::log) {
      suspicious("g is up to " + shown(largest) +
                 ": decays, not logs? --decay-domain linear");
    }
    if (least == 0 && largest == 0) {
      untested("no decay at all: exp");
    } else if (least > -1) {
      untested("no log decay below -1 (least " + shown(least) +
               "): strong decay");
    }
    if (p.act.decay != decay_activation::none && range_of(in.g).first > -5) {
      untested("no decay logits under -5: the activation's tail");
    }
  }
  const auto gate = [&](std::string_view name, const tensor<double>& x,
                        gate_activation how) {
    if (!x.present()) return;
    const std::string called(name);
    const auto [least, largest] = range_of(activate(how, x));
    if (how != gate_activation::none) {
      if (range_of(x).first > -5) {
        untested("no " + called + " logits under -5: the sigmoid's tail");
      }
      return;
    }
    if (least < 0 || largest > 2) {
      suspicious(called + " is from " + shown(least) + " to " + shown(largest) +
                 ", outside of [0,2]: logits? " + "--" + called +
                 "-activation sigmoid");
    }
    const bool zero =
        std::find(x.data.begin(), x.data.end(), 0.0) != x.data.end();
    const bool one =
        std::find(x.data.begin(), x.data.end(), 1.0) != x.data.end();
    if (!zero || !one) {
      untested(called + " is never " + (zero ? "1" : one ? "0" : "0 or 1"));
    }
  };
  gate("beta", in.beta, p.act.beta);
  if (!row.content_gate) gate("b", in.b, p.act.b);
  gate("e", in.e, gate_activation::none);
  const dimensions& size = d.size;
  if (size.K == size.V) untested("K = V: a transposed state shows less");
  if (size.HV == 1) untested("one head: strides over heads");
  if (size.B == 1 && p.cu_seqlens.empty()) {
    untested("one sequence: strides over the batch");
  }
  bool whole = true;
  for (index_t s = 0; s < size.N; ++s) {
    const auto i = static_cast<std::size_t>(s);
    const index_t tokens =
        p.cu_seqlens.empty()
            ? size.T
            : static_cast<index_t>(p.cu_seqlens[i + 1] - p.cu_seqlens[i]);
    whole = whole && tokens % 64 == 0;
  }
  if (whole) untested("T is a multiple of 64: the end of a chunk cut short");
  if (size.T <= 64) untested("T is at most 64: the way from chunk to chunk");
  if (!in.initial_state.present()) untested("no start state");
  if (!d.has_cotangents()) untested("no cotangents: gradients");
  return n;
}

}  // namespace carve::program
