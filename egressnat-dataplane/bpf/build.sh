#!/usr/bin/env bash
# Builds egressnat.bpf.o from egressnat.bpf.c, or another object from the source that is named; with --check compares a fresh
# build with the committed object.
set -euo pipefail

check=
if [ "${1:-}" = --check ]; then
    check=1
    shift
fi
source=${1:-$(dirname "$0")/egressnat.bpf.c}
cd "$(dirname "$source")"
source=$(basename "$source")
object=${source%.c}.o

out=$object
if [ -n "$check" ]; then
    out=$(mktemp --suffix=.bpf.o)
    trap 'rm -f "$out"' EXIT
fi

# DWARF names the directory of the build; BTF does not. Without DWARF the object depends on the source only.
clang -target bpf -O2 -g -mcpu=v3 -Wall -Werror "-I/usr/include/$(uname -m)-linux-gnu" \
    -fdebug-compilation-dir=. -c "$source" -o "$out"
llvm-strip -g "$out"

if [ -n "$check" ] && ! cmp -s "$out" "$object"; then
    echo "$PWD/$object is not what $source compiles to ($(clang --version | head -n 1))." >&2
    echo "Run 'make ebpf' and commit both files." >&2
    exit 1
fi
