/// @file
/// Is this compiler set to C++20?  If not, this is the one error that says so:
/// headers that define CARVE_CXX20 depends on include nothing else.
#pragma once

#if __cplusplus >= 202002L || (defined(_MSVC_LANG) && _MSVC_LANG >= 202002L)
#define CARVE_CXX20
#else
#error "carve needs C++20: compile with -std=c++20 or later"
#endif
