#!/usr/bin/env bash
# Do the machine-checked proofs hold, and on what do they rest?  Compiles the
# theories of this folder in the directory given, then prints every theorem of
# theorems.txt with its assumptions.  Fails when a file does not compile, when
# a proof is left open, or when a theorem rests on any axiom.
#
# INSTANCES is the program carve-formal-instances: what it prints of the
# library's results is compared with the definition, evaluated by Coq.
#
# usage: prove.sh DIRECTORY INSTANCES
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?usage: prove.sh DIRECTORY INSTANCES}
instances=$(realpath "${2:?usage: prove.sh DIRECTORY INSTANCES}")
mkdir -p "$out"
fail() {
  printf 'prove.sh: %s\n' "$*" >&2
  exit 1
}

if grep -nE '\b(Admitted|admit|give_up|Axioms?|Parameters?|Conjectures?)\b' \
  "$here"/*.v; then
  fail "a proof is left open, or an axiom is assumed (lines above)"
fi

cp --update --preserve=timestamps "$here"/*.v "$here/_CoqProject" "$out"
cd "$out"
coq_makefile -f _CoqProject -o Makefile >/dev/null
make --no-print-directory -j "${PROVE_JOBS:-$(nproc)}" >build.log 2>&1 || {
  cat build.log >&2
  fail "a theory does not compile"
}

readonly flags=(-q -w none -R . carve)
"$instances" >instances.v || fail "no instances"
{ coqc "${flags[@]}" instances.v && coqc "${flags[@]}" agreement.v; } \
  >agreement.log 2>&1 || {
  cat agreement.log >&2
  fail "the library does not compute what the definition says"
}

# The theorems that are no claim of their own: the definition runs, and the
# library agrees with it.
readonly library=(
  executable.run_is_recurrent executable.generalize_step
  agreement.library_agrees agreement.one_wrong_output_is_seen
  agreement.one_wrong_state_is_seen
)

# One query a theorem, each after a line that names it.
theorems=$(
  sed -n '/^#/!s/^[^|]*| *\([^| ]*\) *|.*/\1/p' "$here/theorems.txt"
  printf '%s\n' "${library[@]}"
)
{
  echo 'From mathcomp Require Import all_ssreflect all_algebra.'
  sed -n 's/^\([a-z_0-9]*\)\.v$/From carve Require \1./p' _CoqProject
  echo 'From carve Require agreement.'
  echo 'Open Scope ring_scope.'
  while read -r name; do
    printf 'Check %s.\nPrint Assumptions %s.\n' "$name" "$name"
  done <<<"$theorems"
} >assumptions.v
coqc "${flags[@]}" assumptions.v >assumptions.txt 2>&1 || {
  cat assumptions.txt >&2
  fail "theorems.txt names what the theories do not prove"
}
cat assumptions.txt
count=$(wc -l <<<"$theorems")
closed=$(grep -cx 'Closed under the global context' assumptions.txt || true)
((closed == count)) ||
  fail "$((count - closed)) of $count theorems rest on axioms (see above)"
printf 'prove.sh: %d theorems, no axioms; %d results of the library agree\n' \
  "$count" "$(grep -c ':= Instance ' instances.v)"
