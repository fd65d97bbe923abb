/// Where are digits lost, and what does a chunk cost?  The drawings of the
/// chapters on precision, on segments and on choosing.
#include <carve/chunked.hpp>
#include <carve/columnwise.hpp>
#include <carve/counting.hpp>
#include <carve/precision.hpp>
#include <carve/recurrence.hpp>
#include <carve/tiled_walk.hpp>
#include <carve/triangular.hpp>
#include <limits>
#include <span>

#include "sequence.hpp"
#include "svg.hpp"

namespace {

using namespace figures;
using carve::format;
using Single = carve::matrix<float>;

/// Rounds the operands of a product.
struct rounding {
  format to;
  void operator()(Single& m) const {
    carve::round_all(to,
                     std::span(m.data(), static_cast<std::size_t>(m.size())));
  }
};

enum class method { substitution, blocks, doubling };

/// L of C tokens with unit keys and one erase strength.
Matrix couplings(index_t C, index_t K, double rho, double beta,
                 std::mt19937_64& random) {
  const Matrix k = unit_keys(C, K, rho, random);
  Matrix L = beta * k * k.transpose();
  L.triangularView<Eigen::Upper>().setZero();
  return L;
}

/// Relative error of T, root mean square over systems; the rounding points are
/// those of the ledger's WY-8.
double inverse_error(method how, format f, index_t C, double rho, double beta,
                     int systems) {
  std::mt19937_64 random(7);
  const rounding round{f};
  double sum = 0;
  for (int n = 0; n < systems; ++n) {
    const Matrix L = couplings(C, 64, rho, beta, random);
    const Matrix exact = carve::inverse_by_substitution(L);
    const Single l = L.cast<float>();
    Single T;
    if (how == method::substitution) {
      T = carve::inverse_by_substitution(l);
    } else if (how == method::blocks) {
      T = carve::inverse_by_blocks<float>(l, 16, round);
    } else {
      T = carve::inverse_by_doubling<float>(l, round);
    }
    round(T);
    sum += (T.cast<double>() - exact).squaredNorm() / exact.squaredNorm();
  }
  return std::sqrt(sum / systems);
}

const char* name(method m) {
  const char* const names[] = {"substitution", "blocks of 16", "doubling"};
  return names[static_cast<int>(m)];
}

void inverse(const made& to) {
  const format formats[] = {format::f32, format::tf32, format::bf16};
  std::vector<curve> curves;
  for (const method m :
       {method::substitution, method::blocks, method::doubling}) {
    for (const format f : formats) {
      curve c{std::string(name(m)) + ", " + std::string(format_name(f)),
              {},
              {},
              1 + static_cast<int>(m),
              f != format::f32,
              f == format::bf16};
      for (const double rho :
           {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99}) {
        c.x.push_back(rho);
        const double e = inverse_error(m, f, 64, rho, 1, 6);
        c.y.push_back(std::min(e, 1e9));
      }
      curves.push_back(c);
    }
  }
  svg drawing(480, 410, "Error of T against the correlation of the keys");
  plot(drawing, 64, 34, 396, 250,
       {0, 1, false, {0, 0.25, 0.5, 0.75, 1}, "inner product of two keys"},
       {1e-8, 1e8, true, {1e-8, 1e-4, 1, 1e4, 1e8}, "relative error of T"},
       curves);
  for (int m = 0; m < 3; ++m) {
    legend(drawing, 10 + 158 * m, 345,
           {curves[3 * m], curves[3 * m + 1], curves[3 * m + 2]});
  }
  to.drawing("inverse", drawing.str());
  for (std::size_t n = 0; n < curves.size(); ++n) {
    const double worst =
        *std::max_element(curves[n].y.begin(), curves[n].y.end());
    const double unit = carve::unit_roundoff(formats[n % 3]);
    must(n < 6 ? worst < 8 * unit : worst > 1,
         curves[n].name + " keeps its digits, or loses all of them");
  }

  // Against the strength of the erase: beta up to 2, chunks of 64 and 128.
  std::vector<std::vector<std::string>> rows{
      {"beta, chunk", "substitution", "blocks of 16", "doubling"}};
  for (const index_t C : {64, 128}) {
    for (const double beta : {0.5, 1.0, 1.5, 2.0}) {
      std::vector<std::string> row{number(beta) + ", " + std::to_string(C)};
      for (const method m :
           {method::substitution, method::blocks, method::doubling}) {
        row.push_back(
            scientific(inverse_error(m, format::f32, C, 0.1, beta, 4)));
      }
      rows.push_back(row);
    }
  }
  to.value("inverse.beta", table(rows));
}

void formats(const made& to) {
  std::vector<std::vector<std::string>> rows{{"format", "bits of precision",
                                              "unit roundoff", "largest number",
                                              "smallest normal"}};
  for (const format f : carve::all_formats) {
    if (f == format::f64) continue;
    rows.push_back({std::string(format_name(f)),
                    std::to_string(carve::precision_bits(f)),
                    scientific(carve::unit_roundoff(f)),
                    scientific(carve::largest_finite(f), 3),
                    scientific(carve::smallest_normal(f))});
  }
  to.value("formats.table", table(rows));
  to.value("formats.bf16", std::to_string(carve::precision_bits(format::bf16)));
  to.value("formats.f16", std::to_string(carve::precision_bits(format::f16)));
  to.value("formats.f32", std::to_string(carve::precision_bits(format::f32)));
  to.value("formats.gain", number(carve::unit_roundoff(format::bf16) /
                                  carve::unit_roundoff(format::f16)));
}

/// How large T gets: the largest element against the correlation.
void inverse_size(const made& to) {
  std::mt19937_64 random(11);
  std::vector<std::vector<std::string>> rows{
      {"inner product", "largest element of L", "of its powers", "of T"}};
  for (const double rho : {0.0, 0.3, 0.6, 0.9}) {
    const Matrix L = couplings(64, 64, rho, 1, random);
    const Matrix T = carve::inverse_by_substitution(L);
    double power = 0;
    Matrix P = L;
    for (int n = 1; n < 64; ++n) {
      power = std::max(power, P.cwiseAbs().maxCoeff());
      P = Matrix(P * L);
    }
    must(T.cwiseAbs().maxCoeff() < 1.5, "the elements of T stay near one");
    rows.push_back({number(rho), number(L.cwiseAbs().maxCoeff(), 2),
                    scientific(power), number(T.cwiseAbs().maxCoeff(), 2)});
  }
  to.value("inverse.size", table(rows));
}

/// From which chunk length on exp(G) exp(-G) has an infinity or a NaN.
void factored(const made& to) {
  std::vector<std::vector<std::string>> rows{
      {"log decay a token", "exp(G) exp(-G) breaks at C =", "exp(G_t - G_s)"}};
  for (const float g : {-0.5f, -1.0f, -1.4f, -2.0f, -5.0f, -20.0f, -100.0f}) {
    int broken = 0;
    bool product = true;
    float G = 0;
    std::vector<float> cumulated;
    for (int C = 1; C <= 256; ++C) {
      G += g;
      for (const float s : cumulated) {  // of earlier tokens
        if (!broken && !std::isfinite(std::exp(G) * std::exp(-s))) broken = C;
        product = product && std::isfinite(std::exp(G - s));
      }
      cumulated.push_back(G);
    }
    if (g == -1.4f) {
      must(broken == 65, "at -1.4 a chunk of 64 is the last that works");
    }
    rows.push_back({number(g), broken ? std::to_string(broken) : "over 256",
                    product ? "finite" : "not finite"});
  }
  to.value("factored.table", table(rows));
}

/// Dropping the state at the start of a piece: what of it the output would
/// still have seen, against what the decay alone has left.
void truncation(const made& to) {
  const index_t K = 32, V = 32, T = 64;
  std::vector<curve> curves;
  const struct {
    const char* name;
    double length, rho, least, most;
    int colour;
  } kinds[] = {{"unit keys, gates in [0,1]", 1, 0.3, 0, 1, 1},
               {"unit keys, all alike, gate 2", 1, 1, 2, 2, 3},
               {"keys of length 1.5, all alike, gate 1", 1.5, 1, 1, 1, 2}};
  for (const auto& kind : kinds) {
    curve c{kind.name, {}, {}, kind.colour, false, true};
    for (int left = -1; left >= -24; --left) {
      // The decay since the cut is 2^left, spread over T tokens.
      double worst = 0;
      for (unsigned seed = 0; seed < 4; ++seed) {
        std::mt19937_64 random(100 + seed);
        sequence s;
        s.k = kind.length * unit_keys(T, K, kind.rho, random);
        s.q = s.k / kind.length;
        s.v = Matrix::Zero(T, V);  // what is written is the same for both
        s.b = uniform(T, 1, kind.least, kind.most, random);
        s.g = Matrix::Constant(T, 1, left * std::log(2.0) / T);
        s.S0 = normal(K, V, random);
        Matrix decay, o(T, V);
        carve::definition_forward<double>(s.head(decay), {o.data(), V, 1}, {});
        const Matrix undecayed = s.q.bottomRows(1) * s.S0;
        worst = std::max(worst, rms(o.bottomRows(1)) / rms(undecayed));
      }
      c.x.push_back(left);
      c.y.push_back(worst);
    }
    curves.push_back(c);
  }
  curves.push_back(
      {"the decay itself", {-24, -1}, {std::exp2(-24), 0.5}, 6, true});
  must(curves[0].y[19] <= std::exp2(-20) * 2, "unit keys: the bound holds");
  must(curves[2].y[19] > 1, "long keys: the dropped state has grown");
  to.value("truncation.long", number(curves[2].y[19], 2));
  svg drawing(480, 400, "What a dropped state would have contributed");
  plot(drawing, 64, 34, 396, 250,
       {-24,
        0,
        false,
        {-24, -20, -16, -12, -8, -4, 0},
        "log2 of the decay since the cut"},
       {1e-8,
        1e8,
        true,
        {1e-8, 1e-4, 1, 1e4, 1e8},
        "contribution of the dropped state"},
       curves);
  legend(drawing, 84, 345, curves);
  to.drawing("truncation", drawing.str());
}

/// The chunk length that is best for a machine that does `delta` operations
/// while it waits for one.
double best_chunk(double K, double V, double delta) {
  return std::sqrt((K * V + delta * (K + 8)) / (17.0 / 8 * K + 2 * V));
}

/// Multiplications and serial depth a token against the chunk length, counted
/// by running the solvers on a scalar that counts: what the second half of a
/// sequence adds, so that the work before the first state counts once.
void cost(const made& to) {
  using scalar = carve::counting<double>;
  const index_t K = 64, V = 64, T = 256;
  std::mt19937_64 random(13);
  const auto fill = [&](index_t rows, index_t columns) {
    std::vector<scalar> x;
    const Matrix m = uniform(rows, columns, 0.1, 0.9, random);
    for (index_t i = 0; i < m.size(); ++i) x.emplace_back(m.data()[i]);
    return x;
  };
  const auto q = fill(2 * T, K), k = fill(2 * T, K), v = fill(2 * T, V),
             a = fill(2 * T, K), b = fill(2 * T, K), w = fill(2 * T, V),
             e = fill(2 * T, V);
  carve::head<scalar> h;
  h.keys = K, h.values = V;
  h.q = {q.data(), K, 1}, h.k = {k.data(), K, 1}, h.v = {v.data(), V, 1};
  h.a = {a.data(), K, 1}, h.w = {w.data(), V, 1};
  std::vector<scalar> o(static_cast<std::size_t>(2 * T * V)),
      S(static_cast<std::size_t>(K * V));
  const carve::rows<scalar> out{o.data(), V, 1};
  const carve::state_view<scalar> end{S.data(), V, 1};
  struct counted {
    double work, depth;
  };
  const auto count = [&](carve::head<scalar> p, auto&& solve) {
    counted at[2];
    for (const int half : {0, 1}) {
      p.tokens = (1 + half) * T;
      carve::operation_counts::reset();
      solve(p);
      const auto n = carve::operation_counts::read();
      std::uint64_t depth = 0;
      for (const scalar& x : S) depth = std::max(depth, x.depth);
      at[half] = {static_cast<double>(n.multiplications),
                  static_cast<double>(depth)};
    }
    return counted{(at[1].work - at[0].work) / T,
                   (at[1].depth - at[0].depth) / T};
  };
  h.b = {b.data(), K, 1};
  const counted token =
      count(h, [&](const auto& p) { carve::recurrent_forward(p, out, end); });
  carve::head<scalar> values = h;
  values.b = {}, values.e = {e.data(), V, 1};
  std::vector<curve> work{{"WY form", {}, {}, 1, false, true},
                          {"column by column", {}, {}, 2, false, true},
                          {"token by token", {}, {}, 6, true, false}};
  std::vector<curve> depth = work;
  std::vector<std::vector<std::string>> rows{
      {"C", "work, WY", "work, columns", "depth, WY", "depth, columns"}};
  for (const index_t C : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    const counted wy = count(
        h, [&](const auto& p) { carve::chunked_forward(p, C, out, end); });
    const counted columns = count(values, [&](const auto& p) {
      carve::columnwise_forward(p, C, out, end);
    });
    const counted all[] = {wy, columns, token};
    for (std::size_t n = 0; n < 3; ++n) {
      work[n].x.push_back(static_cast<double>(C));
      depth[n].x.push_back(static_cast<double>(C));
      work[n].y.push_back(all[n].work / token.work);
      depth[n].y.push_back(all[n].depth);
    }
    rows.push_back({std::to_string(C), places(wy.work / token.work, 2),
                    places(columns.work / token.work, 2), places(wy.depth, 1),
                    places(columns.depth, 1)});
  }
  svg drawing(480, 560, "Work and serial depth against the chunk length");
  const scale x{1, 256, true, {1, 4, 16, 64, 256}, "chunk length C"};
  plot(drawing, 64, 34, 396, 180, x,
       {0,
        6,
        false,
        {0, 1, 2, 3, 4, 5, 6},
        "multiplications a token, of the token loop's"},
       work);
  plot(drawing, 64, 300, 396, 150, x,
       {1, 256, true, {1, 4, 16, 64, 256}, "operations in a row a token"},
       depth);
  legend(drawing, 84, 512, work);
  to.drawing("cost", drawing.str());
  to.value("cost.table", table(rows));
  // The sums that the page makes, against what was counted.
  const double keys = K, channels = V;
  double off = 0;
  for (std::size_t n = 6; n < work[0].x.size(); ++n) {  // from 64 tokens on
    const double C = work[0].x[n];
    const double sum = 3 * keys * channels + keys * channels / C +
                       C * (17.0 / 8 * keys + 2 * channels) + C * C / 6;
    const double counted = work[0].y[n] * token.work;
    off = std::max(off, std::fabs(counted / sum - 1));
    must(std::fabs(depth[0].y[n] / ((keys + C + 8) / C) - 1) < 0.03,
         "the depth of chunks adds up");
    must(work[1].y[n] < work[0].y[n], "column by column multiplies less");
  }
  must(off < 0.13, "the work of chunks adds up");
  to.value("cost.off", places(100 * off, 0));
  to.value("cost.best", places(best_chunk(128, 128, 128 * 128), 0));
  to.value("cost.half", places(best_chunk(1e4, 1e4, 1e8) / 1e4, 2));
  must(depth[0].y[6] < depth[2].y[6] / 20,
       "chunks of 64 are twenty times shallower than the token loop");
}

}  // namespace

int main(int argc, char** argv) {
  const figures::made to(argc, argv);
  formats(to);
  inverse(to);
  inverse_size(to);
  factored(to);
  truncation(to);
  cost(to);
}
