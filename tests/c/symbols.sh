#!/bin/sh
# Does the shared library show the functions of its headers and nothing else?
#   symbols.sh NM LIBRARY HEADER...
set -eu
library=$2
shown=$("$1" -D --defined-only "$library" | awk '{print $NF}' | sed 's/@.*//' |
  sort)
shift 2
declared=$(cat "$@" | tr '\n' ' ' |
  grep -o 'CARVE_API [a-z_ *]*carve_[a-z_]*(' |
  sed 's/(//; s/.*[ *]//' | sort)
[ "$declared" ] || { echo "no function found in $*"; exit 1; }
[ "$shown" = "$declared" ] && exit 0
echo "shown by the library:"; echo "$shown"
echo "declared by the headers:"; echo "$declared"
exit 1
