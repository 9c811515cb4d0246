#!/usr/bin/env bash
# Builds egressnat.bpf.o from egressnat.bpf.c; with --check compares a fresh build with the committed object.
set -euo pipefail
cd "$(dirname "$0")"

out=egressnat.bpf.o
if [ "${1:-}" = --check ]; then
    out=$(mktemp --suffix=.bpf.o)
    trap 'rm -f "$out"' EXIT
fi

# DWARF names the directory of the build; BTF does not. Without DWARF the object depends on the source only.
clang -target bpf -O2 -g -mcpu=v3 -Wall -Werror "-I/usr/include/$(uname -m)-linux-gnu" \
    -fdebug-compilation-dir=. -c egressnat.bpf.c -o "$out"
llvm-strip -g "$out"

if [ "${1:-}" = --check ] && ! cmp -s "$out" egressnat.bpf.o; then
    echo "egressnat-dataplane/bpf: egressnat.bpf.o is not what egressnat.bpf.c compiles to ($(clang --version | head -n 1))." >&2
    echo "Run 'make ebpf' and commit both files." >&2
    exit 1
fi
