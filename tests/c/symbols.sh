#!/bin/sh
# Does the shared library show the functions of carve.h and nothing else?
#   symbols.sh NM LIBRARY HEADER
set -eu
shown=$("$1" -D --defined-only "$2" | awk '{print $NF}' | sed 's/@.*//' | sort)
declared=$(grep -o 'CARVE_API [a-z_ *]*carve_[a-z_]*(' "$3" |
  sed 's/(//; s/.*[ *]//' | sort)
[ "$declared" ] || { echo "no function found in $3"; exit 1; }
[ "$shown" = "$declared" ] && exit 0
echo "shown by the library:"; echo "$shown"
echo "declared by the header:"; echo "$declared"
exit 1
