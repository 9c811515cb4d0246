#!/usr/bin/env bash
# Runs every test and ends with one line that adds up the test runner's own counts.
set -uo pipefail

if [ "$(id -u)" -ne 0 ]; then
    echo "The tests make network namespaces and load eBPF programs: run them as root." >&2
    exit 1
fi

KUBEBUILDER_ASSETS=$("$(dirname "$0")/kube-apiserver.sh") || exit 1
export KUBEBUILDER_ASSETS

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --workspace --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

read -r passed failed < <(awk '
    /^test result:/ {
        for (i = 2; i <= NF; i++) {
            if ($i ~ /^passed/) passed += $(i - 1)
            if ($i ~ /^failed/) failed += $(i - 1)
        }
    }
    END { print passed + 0, failed + 0 }' "$log")
echo
echo "$passed passed, $failed failed"
if [ "$status" -eq 0 ] && [ "$passed" -eq 0 ]; then
    echo "no test ran" >&2
    exit 1
fi
exit "$status"
