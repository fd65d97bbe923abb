/// @file
/// What has a chunked kernel inside, and how does the chunked solver show it?
#pragma once

#include <array>
#include <functional>
#include <string_view>
#include <utility>

#include "carve/head.hpp"
#include "carve/matrix.hpp"
#include "carve/rounding.hpp"

namespace carve {

/// A matrix of one chunk, as in chunked_forward and chunked_backward, or the
/// cotangent of one.
enum class stage { S, G, L, T, P, W, U, dP, dU, dW, dT, dL, dS };

/// One row of the table of stages.
struct stage_row {
  stage id;               ///< which
  std::string_view name;  ///< in files
  /// The axes within a chunk: t and s its sub-steps, K and V the channels.
  std::string_view axes;
  std::string_view meaning;  ///< in words
  /// Of t by s: the diagonal counts, else what is below it alone.
  bool diagonal = false;
  /// Present only where something is erased.
  bool of_erase = false;
  bool backward = false;  ///< it needs cotangents
};

/// All stages, in the order in which a chunk comes to them.
inline constexpr std::array stage_table{
    stage_row{stage::S, "S", "K,V", "state at the chunk's start"},
    stage_row{stage::G, "G", "t,K", "decay from the chunk's start to t"},
    stage_row{.id = stage::L,
              .name = "L",
              .axes = "t,s",
              .meaning = "couplings of the erase, s < t",
              .of_erase = true},
    stage_row{.id = stage::T,
              .name = "T",
              .axes = "t,s",
              .meaning = "(I + L)^-1",
              .diagonal = true,
              .of_erase = true},
    stage_row{.id = stage::P,
              .name = "P",
              .axes = "t,s",
              .meaning = "scores of the read-out, without its scale",
              .diagonal = true},
    stage_row{.id = stage::W,
              .name = "W",
              .axes = "t,K",
              .meaning = "T (r*G)",
              .of_erase = true},
    stage_row{stage::U, "U", "t,V", "T (w*v) - W S"},
    stage_row{.id = stage::dP,
              .name = "dP",
              .axes = "t,s",
              .meaning = "cotangent of P",
              .diagonal = true,
              .backward = true},
    stage_row{.id = stage::dU,
              .name = "dU",
              .axes = "t,V",
              .meaning = "cotangent of U",
              .backward = true},
    stage_row{.id = stage::dW,
              .name = "dW",
              .axes = "t,K",
              .meaning = "cotangent of W",
              .of_erase = true,
              .backward = true},
    stage_row{.id = stage::dT,
              .name = "dT",
              .axes = "t,s",
              .meaning = "cotangent of T below its diagonal",
              .of_erase = true,
              .backward = true},
    stage_row{.id = stage::dL,
              .name = "dL",
              .axes = "t,s",
              .meaning = "cotangent of L",
              .of_erase = true,
              .backward = true},
    stage_row{.id = stage::dS,
              .name = "dS",
              .axes = "K,V",
              .meaning = "cotangent of the state at the chunk's start",
              .backward = true},
};

/// A policy that does as `Base` does, and hands on what the chunked solver
/// shows it: the stage, the head of the chunk alone, whose views tell where the
/// chunk begins, and the matrix. A chunk is shown its way forward twice where
/// it is walked back.
template <class T, class Base = exact_policy>
struct recording_policy : Base {
  /// Who is shown a matrix.
  using taker = std::function<void(stage, const head<T>&, const matrix<T>&)>;
  taker take;  ///< called for each matrix

  /// Calls `take`.
  recording_policy(Base base, taker to)
      : Base(std::move(base)), take(std::move(to)) {}
  /// What the solver calls.
  void show(stage at, const head<T>& chunk, const matrix<T>& m) const {
    take(at, chunk, m);
  }
};

}  // namespace carve
