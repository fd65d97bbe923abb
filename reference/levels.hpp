/// @file
/// Which sets of vector instructions is the recurrence compiled for?  Its two
/// functions exist in a namespace for each.
#pragma once

#include "carve/double_double.hpp"
#include "carve/head.hpp"

/// Declares the walks of one scalar.
#define CARVE_DECLARE_WALKS(T)                                        \
  void walk_forward(const carve::head<T>& p, const carve::rows<T>& o, \
                    const carve::state_view<T>& S);                   \
  void walk_backward(const carve::head<T>& p,                         \
                     const carve::head_cotangents<T>& in,             \
                     const carve::head_gradients<T>& out,             \
                     const carve::rows<T>& o, const carve::state_view<T>& S);

/// Declares them in the namespace of one level.
#define CARVE_DECLARE_LEVEL(level)            \
  namespace carve_##level {                   \
    CARVE_DECLARE_WALKS(float)                \
    CARVE_DECLARE_WALKS(double)               \
    CARVE_DECLARE_WALKS(carve::double_double) \
  }

CARVE_DECLARE_LEVEL(baseline)
CARVE_DECLARE_LEVEL(avx2)
CARVE_DECLARE_LEVEL(avx512)
