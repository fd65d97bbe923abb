/// @file
/// What must the compiler be told so that loops over scalars vectorise?
#pragma once

/// Inlines even where the compiler's size limits would stop it: a call left
/// in a loop body keeps the loop scalar.
#if defined(__GNUC__) || defined(__clang__)
#define CARVE_INLINE inline __attribute__((always_inline))
#else
#define CARVE_INLINE inline
#endif

/// Before a `for`: no iteration reads what another one writes, whatever the
/// pointers say, so no run-time overlap checks are needed.
#if defined(__clang__)
#define CARVE_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define CARVE_IVDEP _Pragma("GCC ivdep")
#else
#define CARVE_IVDEP
#endif
