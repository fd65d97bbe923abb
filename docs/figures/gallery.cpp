/// What does each row of the catalogue of deviations look like?  The first of a
/// few small problems in which it changes something, and where.
#include <carve/deviation.hpp>
#include <carve/family_name.hpp>
#include <optional>

#include "svg.hpp"

namespace {

using namespace figures;
using carve::computation;
using carve::deviation;
using carve::index_t;
using result = carve::gradient_result<double>;
using values = carve::tensor<double>;

values wave(const carve::tensor_shape& shape, double low, double high,
            double step) {
  values x(shape);
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double at = std::sin(static_cast<double>(i * i % 9973 + 1) * step);
    x.data[i] = carve::round_to<carve::format::bf16>(
        low + (high - low) * (0.5 + 0.5 * at));
  }
  return x;
}

/// 80 tokens, a chunk of 64 and a shorter one, of 8 by 8 channels.
struct made_problem {
  const char* family;
  index_t B = 1, H = 1, HV = 1;
  bool packed = false, activations = false;
  double decay = 0.3;  ///< the largest
};
constexpr index_t T = 80, K = 8, V = 8;

computation start(const made_problem& m) {
  computation c;
  carve::problem<double>& p = c.in;
  p.family = carve::family_named(m.family);
  const carve::family_info& f = carve::info(p.family);
  auto& x = p.in;
  x.q = wave({m.B, T, m.H, K}, -1, 1, 1.1);
  x.k = wave({m.B, T, m.H, K}, -0.5, 0.5, 1.3);
  x.v = wave({m.B, T, m.HV, V}, -1, 1, 1.7);
  const auto gate = [&](carve::axis a) {
    carve::tensor_shape s{m.B, T, m.HV};
    if (a == carve::axis::key) s.push_back(K);
    if (a == carve::axis::value) s.push_back(V);
    return s;
  };
  x.g = wave(gate(f.decay), m.activations ? -2 : -m.decay,
             m.activations ? 6 : 0, 0.7);
  if (f.tied) {
    x.beta = wave({m.B, T, m.HV}, m.activations ? -2 : 0.1,
                  m.activations ? 2 : 0.9, 0.9);
  } else {
    x.b = wave(gate(f.erase), 0.1, 0.9, 0.8);
    x.w = wave(gate(f.write), 0.1, 0.9, 0.6);
  }
  if (m.packed) p.cu_seqlens = {0, 30, T};
  const index_t N = m.packed ? 2 : m.B;
  x.initial_state = wave({N, m.HV, K, V}, -0.5, 0.5, 1.9);
  if (m.activations) {
    p.act.decay = carve::decay_activation::softplus;
    p.act.beta = carve::gate_activation::sigmoid;
    p.act.l2norm = true, p.act.l2_epsilon = 1e-2;
    x.A_log = wave({m.HV}, -3, -2, 0.3);
    carve::tensor_shape bias{m.HV};
    if (f.decay == carve::axis::key) bias.push_back(K);
    x.dt_bias = wave(bias, -1, 1, 0.4);
  }
  c.cotangents.o = wave({m.B, T, m.HV, V}, -1, 1, 2.1);
  c.cotangents.final_state = wave({N, m.HV, K, V}, -1, 1, 2.3);
  carve::check(p);
  return c;
}

template <class Visit>
void each_of(const result& r, const Visit& visit) {
  for (const auto& m : decltype(r.out)::members()) {
    visit(std::string(m.name), r.out.*m.at);
  }
  for (const auto& m : decltype(r.gradients)::members()) {
    visit("d" + std::string(m.name), r.gradients.*m.at);
  }
}

/// One tensor that a deviation changes.
struct change {
  std::string tensor;
  carve::tensor_shape shape;
  std::vector<double> error;
  double relative = 0;  ///< RMS; of what is finite
  bool infinite = false;
};

/// The output, else the final state, else the gradient that changes most.
std::optional<change> changed(const result& right, const result& wrong) {
  std::optional<change> most;
  each_of(wrong, [&](const std::string& name, const values& y) {
    const values* x = nullptr;
    each_of(right, [&](const std::string& of, const values& z) {
      if (of == name) x = &z;
    });
    if (!y.present() || x->data.size() != y.data.size()) return;
    change c{name, y.shape, {}, 0, false};
    double error = 0, size = 0;
    for (std::size_t i = 0; i < y.data.size(); ++i) {
      c.error.push_back(y.data[i] - x->data[i]);
      size += x->data[i] * x->data[i];
      if (std::isfinite(c.error[i])) {
        error += c.error[i] * c.error[i];
      } else {
        c.infinite = true;
      }
    }
    c.relative = size > 0 ? std::sqrt(error / size) : 0;
    if (!c.infinite && c.relative < 1e-5) return;
    // Of outputs the first; of gradients the one with most of it.
    if (most &&
        (!most->tensor.starts_with('d') || most->relative >= c.relative)) {
      return;
    }
    most = std::move(c);
  });
  return most;
}

/// Of one sequence and head: channels down, tokens to the right; where a
/// tensor has one number a token, heads down; of a state keys down.
Eigen::MatrixXd picture(const change& c) {
  const bool tokens = c.shape.size() >= 3 && c.shape[1] == T;
  const auto at = [&](index_t i) {
    return c.error[static_cast<std::size_t>(i)];
  };
  if (!tokens) {
    const index_t columns = c.shape.back();
    const index_t rows = c.shape.size() > 2 ? c.shape[c.shape.size() - 2] : 1;
    Eigen::MatrixXd m(rows, columns);
    for (index_t i = 0; i < rows * columns; ++i) {
      m(i / columns, i % columns) = at(i);
    }
    return m;
  }
  const index_t heads = c.shape[2];
  const bool channels = c.shape.size() > 3;
  const index_t rows = channels ? c.shape[3] : heads;
  // The batch entry and head that is wrong the most.
  index_t entry = 0, head = 0;
  double most = -1;
  for (index_t h = 0; h < c.shape[0] * heads; ++h) {
    double sum = 0;
    for (index_t t = 0; t < T; ++t) {
      for (index_t i = 0; i < (channels ? rows : 1); ++i) {
        const double e = at(((h / heads * T + t) * heads + h % heads) *
                                (channels ? rows : 1) +
                            i);
        sum += std::isfinite(e) ? e * e : 1e30;
      }
    }
    if (sum > most) most = sum, entry = h / heads, head = h % heads;
  }
  Eigen::MatrixXd m(rows, T);
  for (index_t t = 0; t < T; ++t) {
    for (index_t i = 0; i < rows; ++i) {
      const index_t token = entry * T + t;
      m(i, t) =
          at(channels ? (token * heads + head) * rows + i : token * heads + i);
    }
  }
  return m;
}

/// A heat map of few strokes: four strengths of each sign, and what is no
/// number.
std::string drawn(const Eigen::MatrixXd& m, const std::string& what) {
  double square = 0;
  index_t count = 0;
  for (index_t i = 0; i < m.size(); ++i) {
    if (!std::isfinite(m.data()[i])) continue;
    square += m.data()[i] * m.data()[i], ++count;
  }
  const double most =
      count > 0 ? 2 * std::sqrt(square / static_cast<double>(count)) : 0;
  std::string paths[9];
  for (index_t i = 0; i < m.rows(); ++i) {
    for (index_t j = 0; j < m.cols(); ++j) {
      const double v = m(i, j);
      int level = 8;
      if (std::isfinite(v)) {
        const double strength =
            most > 0 ? std::min(1.0, std::fabs(v) / most) : 0;
        level = static_cast<int>(std::lround(4 * strength));
        if (level == 0) continue;
        level += v > 0 ? -1 : 3;
      }
      paths[level] +=
          "M" + std::to_string(j) + " " + std::to_string(i) + "h1v1h-1z";
    }
  }
  const auto columns = static_cast<double>(m.cols());
  const auto rows = static_cast<double>(m.rows());
  // As wide as 80 tokens; a state is as high as it is wide.
  svg to(std::max(80.0, columns), rows, what);
  to.rect(0, 0, columns, rows, "wash");
  for (int level = 0; level < 8; ++level) {
    if (paths[level].empty()) continue;
    to.path(paths[level], std::string(level < 4 ? "f1" : "f2") +
                              "' fill-opacity='" +
                              number((level % 4 + 1) / 4.0));
  }
  if (!paths[8].empty()) to.path(paths[8], "cv-none");
  return to.bare();
}

}  // namespace

int main(int argc, char** argv) {
  const made to(argc, argv);
  const std::vector<made_problem> problems{{"gdn2", 1, 1, 1},
                                           {"gdn", 1, 1, 1},
                                           {"gdn2", 1, 2, 4, true},
                                           {"gdn", 2, 1, 2, false, true},
                                           {"kda", 2, 1, 2, false, true},
                                           {"gdn", 1, 1, 1, false, false, 4}};
  std::vector<result> right;
  for (const made_problem& m : problems) right.push_back(start(m).result());
  std::string rows =
      "<style>" + svg::style_sheet() +
      ".carve-gallery{display:grid;gap:1.2em;margin:1em 0;"
      "grid-template-columns:repeat(auto-fill,minmax(15em,1fr))}"
      ".carve-gallery figure{margin:0}"
      ".carve-gallery svg{width:100%;display:block;margin:0 0 .4em}"
      ".carve-gallery .cv-none{fill:var(--cv-ink)}"
      ".carve-gallery figcaption{font-size:.9em;line-height:1.35}</style>\n";
  std::size_t count = 0;
  for (const deviation& row : carve::deviations()) {
    std::optional<change> seen;
    const carve::deviation_choice* with = nullptr;
    for (std::size_t i = 0; i < problems.size() && !seen; ++i) {
      for (const auto& choice : row.choices) {
        computation c = start(problems[i]);
        if (!row.apply(c, choice)) continue;
        seen = changed(right[i], c.result());
        with = &choice;
        if (seen) break;
      }
    }
    must(seen.has_value(), std::string(row.id) + " changes something");
    const std::string text = row.sentence(*with);
    const std::string size =
        seen->infinite ? "not finite where it is full"
                       : "relative RMS error " + scientific(seen->relative);
    rows += "<figure>" + drawn(picture(*seen), text) + "<figcaption><code>" +
            std::string(row.id) + "</code><br/>" + escaped(text) +
            "<br/><small>" + seen->tensor + ", " + size +
            "</small></figcaption></figure>\n";
    ++count;
  }
  to.value("gallery", "<div class='carve-gallery'>\n" + rows + "</div>\n");
  to.value("gallery.count", std::to_string(count));
}
