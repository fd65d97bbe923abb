/// How do these programs make a head?  Random or chosen tokens in one place,
/// and the head that sees them.
#pragma once

#include <carve/head.hpp>
#include <carve/triangular.hpp>
#include <cmath>
#include <random>

namespace figures {

using carve::index_t;
using Matrix = carve::matrix<double>;

/// The tokens of one head; an empty matrix is an absent gate.
struct sequence {
  Matrix q, k, v, g, b, e, w;
  Matrix S0;
  bool erases = true;

  /// As a head; `decay` keeps exp(g) alive.
  carve::head<double> head(Matrix& decay) const {
    carve::head<double> h;
    h.tokens = k.rows(), h.keys = k.cols(), h.values = v.cols();
    const auto rows = [](const Matrix& m, index_t width) {
      if (m.size() == 0) return carve::rows<const double>{};
      return carve::rows<const double>{m.data(), m.cols(),
                                       m.cols() == width ? 1 : 0};
    };
    h.q = rows(q, h.keys), h.k = rows(k, h.keys), h.v = rows(v, h.values);
    h.b = rows(b, h.keys), h.e = rows(e, h.values), h.w = rows(w, h.values);
    if (g.size()) {
      decay = g.array().exp().matrix();
      h.a = rows(decay, h.keys), h.g = rows(g, h.keys);
    }
    h.erases = erases;
    if (S0.size()) h.S0 = {S0.data(), S0.cols(), 1};
    return h;
  }
};

/// Independent standard normal numbers.
inline Matrix normal(index_t rows, index_t columns, std::mt19937_64& random) {
  std::normal_distribution<double> draw;
  Matrix m(rows, columns);
  for (index_t i = 0; i < m.size(); ++i) m.data()[i] = draw(random);
  return m;
}

/// Uniform numbers between two.
inline Matrix uniform(index_t rows, index_t columns, double from, double to,
                      std::mt19937_64& random) {
  std::uniform_real_distribution<double> draw(from, to);
  Matrix m(rows, columns);
  for (index_t i = 0; i < m.size(); ++i) m.data()[i] = draw(random);
  return m;
}

/// Unit vectors whose expected inner product is `rho`: a common direction and
/// independent rest.
inline Matrix unit_keys(index_t rows, index_t columns, double rho,
                        std::mt19937_64& random) {
  const Matrix common = normal(1, columns, random).normalized();
  Matrix k = normal(rows, columns, random).rowwise().normalized();
  for (index_t t = 0; t < rows; ++t) {
    k.row(t) = std::sqrt(rho) * common + std::sqrt(1 - rho) * k.row(t);
    k.row(t).normalize();
  }
  return k;
}

inline double rms(const Matrix& m) {
  return std::sqrt(m.squaredNorm() / static_cast<double>(m.size()));
}

}  // namespace figures
