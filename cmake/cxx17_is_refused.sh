# cxx17_is_refused.sh COMPILER INCLUDE: does C++17 get one error, and the right
# one?
errors=$(echo '#include <carve/carve.hpp>' |
  "$1" -std=c++17 -I"$2" -fsyntax-only -x c++ - 2>&1 | grep 'error:')
printf '%s\n' "$errors"
[ "$(printf '%s\n' "$errors" | grep -c .)" = 1 ] &&
  printf '%s\n' "$errors" | grep -q 'carve needs C++20'
