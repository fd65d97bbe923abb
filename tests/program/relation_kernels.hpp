/// @file
/// Kernels for the tests of relations, sound and faulty, and what runs one on
/// the inputs that a plan made.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "carve/family_name.hpp"
#include "program/ensemble.hpp"
#include "program/fixtures.hpp"
#include "program/plan.hpp"
#include "program/relation.hpp"

namespace relation_kernels {

using namespace carve::program;

/// What a kernel is given: a dump with its states in order, and how many tokens
/// of each sequence are accepted, where some are drafts.
struct call {
  const dump& d;
  std::vector<std::int64_t> accepted;
};

/// From inputs to outputs; it may be called again and again.
using kernel = std::function<std::vector<judged_tensor>(const call&)>;

/// A file of sound inputs and cotangents, waves rounded to bf16; keys of about
/// unit length, so that no state grows beyond what a kernel can hold.
inline fixtures::editable inputs(const std::string& family, carve::index_t B,
                                 carve::index_t T, carve::index_t H,
                                 carve::index_t HV, carve::index_t K,
                                 carve::index_t V) {
  using namespace carve;
  namespace st = safetensors;
  fixtures::editable e;
  e.metadata["family"] = family;
  dimensions n;
  n.B = n.N = B, n.T = T, n.H = H, n.HV = n.VH = HV, n.K = K, n.V = V;
  n.rho = 2;
  const family_info& f = info(family_named(family));
  if (f.content_gate) e.metadata["window"] = "16";
  const auto add = [&](const std::string& name, const tensor_row& row,
                       axis along, double low, double high, st::dtype as) {
    const tensor_shape shape = shape_of(axes_of(row, f, along), n);
    fixtures::editable::entry x{as, {shape.begin(), shape.end()}, {}};
    const double step = 0.7 + 0.1 * static_cast<double>(e.tensors.size());
    for (std::size_t i = 0; i < element_count(shape); ++i) {
      const double at = std::sin(static_cast<double>(i * i % 9973 + 1) * step);
      x.values.push_back(
          round_to<format::bf16>(low + (high - low) * (0.5 + 0.5 * at)));
    }
    e.tensors[name] = std::move(x);
  };
  for (const auto& m : tensors<double>::members()) {
    const bool start = m.name == "initial_state";
    if (!required(m, f) && !start) continue;
    const bool log = m.name == "g", logits = f.content_gate && m.name == "b";
    const bool gate = m.name == "beta" || m.name == "w" || m.name == "e" ||
                      (m.name == "b" && !logits);
    const bool wide = log || m.role != tensor_role::token;
    // The mean square of a wave is half of that of its crest.
    const double crest =
        m.name == "k" ? std::sqrt(2 / static_cast<double>(K)) : 1;
    add(std::string(m.name), m, m.along(f),
        log    ? -0.4
        : gate ? 0.1
               : -crest,
        log    ? 0
        : gate ? 0.9
               : crest,
        wide ? st::dtype::f32 : st::dtype::bf16);
  }
  for (const auto& m : outputs<double>::members()) {
    const bool state = m.role == tensor_role::state;
    add("d" + std::string(m.name), m, m.along(f), -1, 1,
        state ? st::dtype::f32 : st::dtype::bf16);
  }
  return e;
}

/// In the formats in which kernels store.
inline std::vector<judged_tensor> stored(
    const dump& d, const carve::gradient_result<double>& r) {
  std::vector<judged_tensor> all;
  each_result(r, [&](const std::string& name, const carve::tensor<double>& x) {
    if (!x.present()) return;
    const bool narrow = has_tokens(name) && name != "dg" &&
                        d.dtype != carve::safetensors::dtype::f64;
    const auto as = narrow ? d.dtype : carve::safetensors::dtype::f32;
    all.push_back(
        {name,
         as,
         {x.shape, stored_as(*carve::safetensors::format_of(as), x.data)}});
  });
  return all;
}

/// The library's replay in chunks of that length.
inline std::vector<judged_tensor> replayed(const dump& d,
                                           carve::index_t chunk = 64) {
  kernel_facts facts;
  facts.chunk = chunk;
  return stored(d, compute(d, ways_of(d, facts).front(), {1, {}}));
}

/// Calls `run` for the accepted tokens, then for the drafts, and keeps the
/// state that the first left.
inline std::vector<judged_tensor> rolled_back(
    const call& c,
    const std::function<std::vector<judged_tensor>(const dump&)>& run) {
  const auto longest = *std::max_element(c.accepted.begin(), c.accepted.end());
  // One length for all: that of a batch.
  const dump first = first_tokens(c.d, longest);
  std::vector<judged_tensor> kept = run(first), all = run(c.d);
  for (judged_tensor& x : all) {
    for (const judged_tensor& y : kept) {
      if (x.name == "final_state" && y.name == x.name) x.values = y.values;
    }
  }
  return all;
}

inline kernel sound(carve::index_t chunk = 64) {
  const auto run = [chunk](const dump& d) { return replayed(d, chunk); };
  return [run](const call& c) {
    return c.accepted.empty() ? run(c.d) : rolled_back(c, run);
  };
}

/// The dumps of a relation's plan with the outputs of a kernel.
/// @param[in] write_pool  where the states of a pool go: by default to their
///                        rows.
inline std::vector<related_dump> run_plan(
    const relation& r, const fixtures::editable& file, const kernel& k,
    const std::function<carve::index_t(const state_pool&, carve::index_t)>&
        write_pool = {}) {
  namespace st = carve::safetensors;
  const std::vector<std::byte> bytes = file.writer().serialize();
  const st::file source = st::file::parse(bytes);
  std::vector<related_dump> all;
  for (const planned_run& run : r.planned(read_dump(source))) {
    const std::vector<std::byte> made = written(run, source, {}).serialize();
    const st::file in = st::file::parse(made);
    related_dump x = read_related(in);
    x.path = run.name;
    if (r.hands_states_on && all.size() > 1) {
      for (const judged_tensor& y : all.back().d.judged) {
        if (y.name == "final_state") x.d.in.in.initial_state = y.values;
      }
    }
    call c{x.d, {}};
    if (in.contains("num_accepted_tokens")) {
      c.accepted = in.as_int64("num_accepted_tokens");
    }
    x.d.judged = k(c);
    if (x.pool) {
      carve::tensor<double>& after = x.pool->after;
      after = x.pool->before;
      for (judged_tensor& y : x.d.judged) {
        if (y.name != "final_state") continue;
        const auto width = static_cast<std::ptrdiff_t>(y.values.data.size() /
                                                       x.pool->used.size());
        for (std::size_t n = 0; n < x.pool->used.size(); ++n) {
          const auto i = static_cast<carve::index_t>(n);
          const carve::index_t row =
              write_pool ? write_pool(*x.pool, i) : x.pool->used[n];
          std::copy(y.values.data.begin() + i * width,
                    y.values.data.begin() + (i + 1) * width,
                    after.data.begin() + row * width);
        }
        // What is then found in the rows.
        for (std::size_t n = 0; n < x.pool->used.size(); ++n) {
          const auto i = static_cast<carve::index_t>(n);
          const auto from = after.data.begin() + x.pool->used[n] * width;
          std::copy(from, from + width, y.values.data.begin() + i * width);
        }
      }
    }
    all.push_back(std::move(x));
  }
  return all;
}

}  // namespace relation_kernels
