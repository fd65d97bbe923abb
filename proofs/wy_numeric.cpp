/// @file
/// Do the ways to invert a chunk's system agree, what do they lose in the
/// formats of kernels, and when do decay ratios overflow?  WY-8 and WY-9.
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <functional>
#include <sstream>

#include "carve/chunked.hpp"
#include "carve/precision.hpp"
#include "carve/triangular.hpp"
#include "mutants.hpp"
#include "wy.hpp"

namespace carve::proofs {

namespace {

// WY-8

enum class inversion_fault {
  none,
  doubling_stops_early,
  merge_sign,
  merge_order,
  diagonal_in_power,
};

/// Law: substitution, inverted blocks and Neumann doubling agree, and are
/// inverses.
struct inversions_agree {
  inversion_fault f = inversion_fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    const index_t C = in.shape.tokens;
    matrix<T> L = matrix<T>::Constant(C, C, T(0));
    for (index_t t = 0; t < C; ++t) {
      for (index_t s = 0; s < t; ++s) L(t, s) = in.fresh();
    }
    const matrix<T> one = matrix<T>::Identity(C, C);
    const matrix<T> first = inverse_by_substitution<T>(L);
    const matrix<T> product = (one + L) * first;
    sides<T> both;
    const auto same = [&](const matrix<T>& x, const matrix<T>& y) {
      for (index_t n = 0; n < x.size(); ++n) both.add(x.data()[n], y.data()[n]);
    };
    same(product, one);
    same(f == inversion_fault::merge_sign || f == inversion_fault::merge_order
             ? wrong_blocks(L)
             : inverse_by_blocks<T>(L, in.shape.chunk),
         first);
    same(f == inversion_fault::doubling_stops_early ||
                 f == inversion_fault::diagonal_in_power
             ? wrong_doubling(L)
             : inverse_by_doubling<T>(L),
         first);
    return both;
  }

 private:
  template <class T>
  matrix<T> wrong_doubling(const matrix<T>& L) const {
    const index_t C = L.rows();
    const matrix<T> one = matrix<T>::Identity(C, C);
    matrix<T> power = L, inverse = one - L;
    const bool early = f == inversion_fault::doubling_stops_early;
    for (index_t n = 2; n < (early ? C / 2 : C); n *= 2) {
      power = matrix<T>(power * power);
      if (!early) power = matrix<T>(power + one);
      inverse = matrix<T>(inverse * (one + power));
    }
    return inverse;
  }
  template <class T>
  matrix<T> wrong_blocks(const matrix<T>& L) const {
    const index_t C = L.rows(), n = C / 2;
    matrix<T> inverse = inverse_by_substitution<T>(L);
    if (n == 0) return inverse;
    const matrix<T> A = inverse.block(0, 0, n, n);
    const matrix<T> B = inverse.block(n, n, C - n, C - n);
    const matrix<T> X = L.block(n, 0, C - n, n);
    if (f == inversion_fault::merge_sign) {
      const matrix<T> BX = B * X;
      inverse.block(n, 0, C - n, n) = BX * A;
    } else {
      const matrix<T> BX = B.transpose() * X;
      inverse.block(n, 0, C - n, n) = -(BX * A);
    }
    return inverse;
  }
};

/// Rounds a matrix of floats to the operand format.
struct rounded {
  format to;
  void operator()(matrix<float>& m) const {
    round_all(to, std::span<float>(m.data(), m.size()));
  }
};

/// L of C tokens with unit keys whose pairwise inner products are near
/// `correlation`, gates b = 1.
matrix<double> key_system(generator& rng, index_t C, index_t K,
                          double correlation) {
  const auto normal = [&rng] {
    double sum = 0;  // of twelve uniform numbers
    for (int n = 0; n < 12; ++n) sum += uniform(rng, -0.5, 0.5);
    return sum;
  };
  std::vector<double> common(K);
  for (double& x : common) x = normal();
  matrix<double> keys(C, K);
  for (index_t t = 0; t < C; ++t) {
    for (index_t i = 0; i < K; ++i) {
      keys(t, i) = std::sqrt(correlation) * common[i] +
                   std::sqrt(1 - correlation) * normal();
    }
    keys.row(t) /= std::sqrt(keys.row(t).squaredNorm());
  }
  matrix<double> L = keys * keys.transpose();
  for (index_t t = 0; t < C; ++t) {
    for (index_t s = t; s < C; ++s) L(t, s) = 0;
  }
  return L;
}

double relative_error(const matrix<float>& x, const matrix<double>& exact) {
  const matrix<double> difference = x.cast<double>() - exact;
  return std::sqrt(difference.squaredNorm() / exact.squaredNorm());
}

/// How an inverse is formed in a format: name and function.
using method = std::function<matrix<float>(const matrix<float>&, rounded)>;

/// Root mean square over `draws` systems of the relative error of T.
double mean_error(const method& invert, format to, double correlation,
                  std::int64_t draws, generator rng) {
  double sum = 0;
  for (std::int64_t n = 0; n < draws; ++n) {
    const matrix<double> L = key_system(rng, 64, 64, correlation);
    // The same rounded L for all, so that only the inversion differs.
    matrix<float> given = L.cast<float>();
    const matrix<double> exact =
        inverse_by_substitution<double>(given.cast<double>());
    const double error = relative_error(invert(given, rounded{to}), exact);
    sum += error * error;
  }
  return std::sqrt(sum / static_cast<double>(draws));
}

void inversions(settlement& s) {
  space from;
  from.tokens = 9;
  identity(s, "substitution = blocks = doubling", from, inversions_agree{},
           1000, 600);
  using f = inversion_fault;
  for (const auto& [what, fault] :
       {std::pair{"doubling that stops a step early", f::doubling_stops_early},
        std::pair{"identity added to every power", f::diagonal_in_power},
        std::pair{"sign of the merged block", f::merge_sign},
        std::pair{"transposed block in the merge", f::merge_order}}) {
    identity_mutant(s, what, from, inversions_agree{fault});
  }

  const method substitution = [](const matrix<float>& L, rounded round) {
    matrix<float> x = inverse_by_substitution<float>(L);
    round(x);
    return x;
  };
  const method blocks = [](const matrix<float>& L, rounded round) {
    matrix<float> x = inverse_by_blocks<float>(L, 16, round);
    round(x);
    return x;
  };
  const method doubling = [](const matrix<float>& L, rounded round) {
    matrix<float> x = inverse_by_doubling<float>(L, round);
    round(x);
    return x;
  };
  const std::int64_t draws = s.cases(40);
  std::ostringstream table;
  table << "Relative error of T (Frobenius norm, root mean square over "
        << draws
        << " systems of C = 64 tokens, K = 64, unit keys, b = 1), products "
           "with operands in the format and sums in fp32. Substitution runs "
           "in fp32 and only T is rounded; blocks of 16 are inverted by "
           "substitution and merged by products; doubling is all products. "
           "Keys are independent, or have inner products near 0.9.\n\n"
           "| keys | format | substitution | blocks of 16 | doubling |\n"
           "|---|---|---|---|---|\n";
  double independent[5][3], correlated[5][3];
  for (const double correlation : {0.0, 0.9}) {
    int row = 0;
    for (const format to :
         {format::f32, format::tf32, format::f16, format::bf16}) {
      table << "| " << (correlation > 0 ? "correlated" : "independent") << " | "
            << format_name(to);
      int column = 0;
      for (const method* invert : {&substitution, &blocks, &doubling}) {
        const double error = mean_error(*invert, to, correlation, draws,
                                        s.random("measured errors"));
        (correlation > 0 ? correlated : independent)[row][column++] = error;
        char text[32];
        std::snprintf(text, sizeof text, " | %.1e", error);
        table << (std::isfinite(error) ? text : " | not finite");
        s.searched(draws);
      }
      table << " |\n";
      ++row;
    }
  }
  s.detail(table.str());
  // A comparison with a result that is not finite is false.
  for (int row = 0; row < 4; ++row) {
    s.require(!(independent[row][2] < independent[row][0]) &&
                  !(correlated[row][2] < correlated[row][0]),
              "doubling is nowhere better than substitution");
    s.require(!(correlated[row][2] <= 1e3 * correlated[row][0]),
              "doubling loses more than three digits to substitution where "
              "keys are correlated");
    s.require(correlated[row][1] <= 20 * correlated[row][0],
              "merged blocks lose little where keys are correlated");
  }
  s.detail(
      "With correlated keys the powers of L grow to many digits and cancel: "
      "doubling over all 64 tokens is useless there in every format, fp32 "
      "included (fp16 overflows), while substitution and merged blocks of 16 "
      "stay within a few roundings.");
}

// WY-9

/// Kernel arithmetic: decay ratios as exponentials of sums of logs.
struct exponential_policy : exact_policy {
  static constexpr bool exponentials = true;
};

/// One channel's ratios exp(G_t) exp(-G_s) in float, s < t < C, all tokens
/// with log decay g: true if every one is finite.
bool factored_is_finite(float g, int C) {
  float G = 0;
  bool finite = true;
  std::vector<float> grow, shrink;
  for (int t = 0; t < C; ++t) {
    G += g;
    shrink.push_back(std::exp(G));
    grow.push_back(std::exp(-G));
    for (int s = 0; s < t && finite; ++s) {
      finite = std::isfinite(shrink[t] * grow[s]);
    }
  }
  return finite;
}

/// The same with each ratio as the exponential of a sum, or as a product.
bool ratio_is_finite(float g, int C, bool product) {
  bool finite = true;
  for (int t = 0; t < C; ++t) {
    float G = 0, P = 1;
    for (int s = t; s-- > 0;) {
      G += g;
      P *= std::exp(g);
      const float ratio = product ? P : std::exp(G);
      finite = finite && ratio >= 0 && ratio <= 1;
    }
  }
  return finite;
}

/// Smallest chunk length whose factored form is not finite: exp(-G_s) is
/// infinite from the first s with (s + 1) |g| > log(FLT_MAX) on, and the chunk
/// needs one token more.
int predicted_length(double g) {
  return static_cast<int>(std::floor(std::log(double{FLT_MAX}) / -g)) + 2;
}

template <class Policy>
bool library_is_finite(generator& rng, std::ostream& show) {
  layout shape;
  shape.tokens = integer(rng, 1, 64), shape.keys = integer(rng, 1, 3);
  shape.values = integer(rng, 1, 3), shape.chunk = integer(rng, 1, 64);
  shape.gates = {along::channel, along::none, along::channel, along::none,
                 along::channel};
  shape.has_start = true;
  auto in = tensors<float>::filled(
      shape, [&rng] { return static_cast<float>(uniform(rng, -1, 1)); });
  in.scale = 1;
  for (float& gate : in.x[b]) gate = std::fabs(gate);
  // Keys of norm at most one.
  for (float& x : in.x[k]) x *= 0.57F;
  std::vector<float> log(in.x[a].size());
  const auto kind = rng() % 3;
  for (std::size_t n = 0; n < log.size(); ++n) {
    log[n] = kind == 0   ? -200.0F
             : kind == 1 ? (rng() % 2 == 0 ? 0.0F : -200.0F)
                         : static_cast<float>(uniform(rng, -200, 0));
    in.x[a][n] = std::exp(log[n]);
  }
  head<float> p = in.view();
  p.g = {log.data(), shape.keys, 1};
  std::vector<float> o(shape.tokens * shape.values),
      S(shape.keys * shape.values);
  chunked_forward(p, shape.chunk, rows<float>{o.data(), shape.values, 1},
                  state_view<float>{S.data(), shape.values, 1}, Policy{});
  show << "T = " << shape.tokens << ", C = " << shape.chunk;
  bool finite = true;
  for (const float x : o) finite = finite && std::isfinite(x);
  for (const float x : S) finite = finite && std::isfinite(x);
  return finite;
}

void decay_ratios(settlement& s) {
  // Every multiple of 1/16 in [-200, 0], chunks up to 128.
  const int step = s.how().quick ? 16 : 1;
  bool products = true, exponentials = true, threshold = true;
  std::int64_t grid = 0;
  for (int n = 0; n <= 3200; n += step) {
    const float g = static_cast<float>(-n) / 16;
    products = products && ratio_is_finite(g, 128, true);
    exponentials = exponentials && ratio_is_finite(g, 128, false);
    if (n > 0) {
      const int length = predicted_length(g);
      for (const int C : {length - 1, length}) {
        if (C > 1024) continue;
        threshold = threshold && factored_is_finite(g, C) == (C < length);
      }
    }
    grid += 2 * 128;
  }
  s.searched(grid);
  s.measured();
  s.require(products, "ratios as products of decays lie in [0, 1]");
  s.require(exponentials, "ratios as exp of a sum lie in [0, 1]");
  s.require(threshold, "the factored form breaks at the predicted length");
  s.holds_in_floating_point(
      "chunked form in float is finite, ratios as products", 400,
      library_is_finite<exact_policy>);
  s.holds_in_floating_point(
      "chunked form in float is finite, ratios as exponentials of sums", 400,
      library_is_finite<exponential_policy>);
  std::ostringstream table;
  table << "| log decay per token | first chunk length with an infinity or a "
           "NaN |\n|---|---|\n";
  for (const double g : {-0.1, -0.5, -1.0, -1.4, -1.5, -2.0, -5.0, -20.0, -60.0,
                         -100.0, -200.0}) {
    table << "| " << g << " | " << predicted_length(g) << " |\n";
  }
  s.detail(
      "Product form: every factor exp(g) lies in [0, 1] for g <= 0, in exact "
      "arithmetic and, as rounding is monotonic, in float; so do products of "
      "them and exp(g_(s+1) + ... + g_t). They may underflow to zero, which "
      "is what they are to the last bit.");
  s.detail(
      "Factored form exp(G_t) exp(-G_s) in float: exp(-G_s) is infinite from "
      "-G_s > log(FLT_MAX) = 88.7228 on. With the same log decay g at every "
      "token the first infinite factor belongs to token s = floor(88.7228 / "
      "|g|) + 1 (counted from 1) and meets a later token, so the form breaks "
      "from chunk length C = floor(88.7228 / |g|) + 2 on: for C = 64 as soon "
      "as |g| > 88.7228 / 63 = 1.4083, and from |g| > 88.7228 on for every "
      "C >= 2. (Where exp(G_t) has underflowed to zero the product is a NaN.)");
  s.detail(table.str());
  const auto broken = [](bool (*finite)(float, int)) {
    for (int n = 0; n <= 3200; ++n) {
      if (!finite(static_cast<float>(-n) / 16, 64)) return true;
    }
    return false;
  };
  s.mutant("factored form exp(G_t) exp(-G_s)", broken(factored_is_finite));
  s.mutant("factored form referenced to the middle of the chunk",
           broken([](float g, int C) {
             bool finite = true;
             for (int t = 0; t < C; ++t) {
               const float G = g * static_cast<float>(t - C / 2);
               finite = finite && std::isfinite(std::exp(G)) &&
                        std::isfinite(std::exp(-G));
             }
             return finite;
           }));
  s.mutant("ratio with its sign turned", broken([](float g, int C) {
             return std::isfinite(std::exp(-g * static_cast<float>(C - 1)));
           }));
}

}  // namespace

void register_wy_numeric(ledger& all) {
  all.add({.id = "WY-8",
           .statement = "Forward substitution, blocked inversion and Neumann "
                        "doubling of I + L agree exactly; in bf16, fp16, tf32 "
                        "and fp32 they do not.",
           .source = "kernels of the public libraries, arXiv 2406.06484",
           .method = "polynomial identity for the agreement; errors measured "
                     "against double for independent and correlated keys",
           .settle = inversions});
  all.add({.id = "WY-9",
           .statement = "Decay ratios: the product form is finite for every "
                        "log decay in [-200, 0]; the factored form exp(G) "
                        "exp(-G) overflows in float from a stated decay and "
                        "chunk length on.",
           .source = "kernels of the public libraries",
           .method = "all ratios on a grid of log decays (steps of 1/16) and "
                     "chunk lengths; the threshold predicted and found; "
                     "`carve-proofs WY-9`",
           .settle = decay_ratios});
}

}  // namespace carve::proofs
