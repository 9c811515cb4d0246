#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS. Stable Rust: the sanitizer flags need the bootstrap switch.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${FUZZ_SECONDS:-10}
export RUSTC_BOOTSTRAP=1
if ! command -v cargo-fuzz >/dev/null; then
    echo "installing cargo-fuzz"
    cargo install --locked cargo-fuzz
fi
for target in $(cargo fuzz list); do
    cargo fuzz run "$target" -- "-max_total_time=$seconds"
done
