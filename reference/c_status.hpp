/// @file
/// How does what is thrown become a status of the C interface?
#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "carve/carve.h"
#include "carve/error.hpp"

namespace carve::program {

/// The text of the thread's last failure.
inline std::string& last_error() {
  thread_local std::string text;
  return text;
}

inline carve_status failed(carve_status status, const char* why) noexcept {
  try {
    last_error() = why;
  } catch (...) {
    last_error().clear();
  }
  return status;
}

/// Nothing thrown by `f` leaves this.
template <class F>
carve_status guarded(F&& f) noexcept {
  try {
    f();
    return CARVE_OK;
  } catch (const error& e) {
    return failed(CARVE_BAD_INPUT, e.what());
  } catch (const std::bad_alloc&) {
    return failed(CARVE_NO_MEMORY, "not enough memory");
  } catch (const std::exception& e) {
    return failed(CARVE_INTERNAL, e.what());
  } catch (...) {
    return failed(CARVE_INTERNAL, "an exception of no known type");
  }
}

template <class T>
T& given(T* pointer, const char* what) {
  if (!pointer) throw error(what, ": expected a pointer, got NULL");
  return *pointer;
}

}  // namespace carve::program
