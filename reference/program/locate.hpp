/// @file
/// Where is a tensor wrong?  Heads, sequences and tokens outside of what sound
/// ways err by, a factor or a period that explains it, and a heat map.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "carve/double_double.hpp"
#include "carve/tensor.hpp"

namespace carve::program {

/// RMS errors over the channels of each token and head, of a tensor `[B,T,H]`
/// or `[B,T,H,D]`; of a state `[N,H,K,V]` over the whole of each, with T = 1.
/// Where a tensor has a row for each sub-step, T counts those.
struct error_map {
  index_t B = 0;  ///< batch entries, or sequences of a state
  index_t T = 0, H = 0;
  index_t substeps = 1;       ///< rows a token
  std::vector<double> error;  ///< [B,T,H]; infinite where it is not finite

  double at(index_t b, index_t t, index_t h) const {
    return error[static_cast<std::size_t>((b * T + t) * H + h)];
  }
};

/// @param[in] rows  a token has on the tensor's second axis; 0 where that is
///                  none of tokens.
error_map map_errors(const tensor_shape& shape, index_t rows,
                     const std::vector<double>& values,
                     const std::vector<double_double>& exact);

/// A run of tokens, or of their sub-steps, of one head that is outside.
struct wrong_tokens {
  index_t b = 0, h = 0;
  index_t first = 0, last = 0;  ///< rows, inclusive
};

/// What is wrong with a tensor, and where.
struct location {
  std::vector<wrong_tokens> outside;  ///< by batch entry, head, token
  bool everywhere = false;            ///< no head is clean
  std::optional<index_t> period;      ///< of the rows that are outside
  index_t phase = 0;                  ///< they are `phase` modulo `period`
  /// The tensor is this multiple of the exact one, nearly.
  std::optional<double> factor;
  /// Error at the end of the sequence over that at its start, in units.
  std::optional<double> growth;

  /// In words: "head 1, tokens 0 to 63; all else clean".
  std::string text(const error_map& of) const;
};

/// Compares an error map with the largest of sound ways, both smoothed over a
/// few tokens: outside is what exceeds it by more than a factor of 4.
/// @param[in] floor  error that is always allowed.
location locate(const error_map& actual, const error_map& sound, double floor,
                const std::vector<double>& values,
                const std::vector<double_double>& exact);

/// An SVG image of log10 of the error over tokens and heads.
std::string heat_map(const error_map& errors, const std::string& title);

}  // namespace carve::program
