/// @file
/// What does a command print, and with which code does it end?
#pragma once

#include <sys/wait.h>

#include <cstddef>
#include <cstdio>
#include <string>

#include "catch.hpp"

namespace fixtures {

struct result {
  int exit = -1;    // -1: a signal
  std::string out;  // standard output, and standard error where redirected
};

/// Runs a command line of sh(1).
inline result run_shell(const std::string& command) {
  result r;
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    r.out.append(buffer, n);
  }
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) r.exit = WEXITSTATUS(status);
  return r;
}

/// Runs `carve` with these words of a shell.
inline result carve_with(const std::string& words,
                         const std::string& prefix = "") {
  return run_shell(prefix + " '" CARVE_PROGRAM "' " + words);
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace fixtures
