/* Conditions that the programs of this folder count. */
#ifndef CARVE_TESTS_CHECK_H
#define CARVE_TESTS_CHECK_H

#include <stdio.h>

static int failures = 0;

#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) {                                                  \
      ++failures;                                                        \
      fprintf(stderr, "%s:%d: not so: %s\n  last error: %s\n", __FILE__, \
              __LINE__, #condition, carve_last_error());                 \
    }                                                                    \
  } while (0)

#endif
