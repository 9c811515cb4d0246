#!/usr/bin/env bash
# Installs the system packages that building, testing and the demo need, as far as they are missing.
set -euo pipefail

# clang, llvm, libbpf-dev: rebuilding the eBPF object (tests compare it with the committed one)
# libnftnl-dev, libmnl-dev, pkg-config, gcc: linking the nftables library
# openssl: the key of the tests' API server
# iproute2, iputils-ping, nftables, tcpdump, curl, procps: the lab and its tests
packages=(
    clang llvm libbpf-dev
    libnftnl-dev libmnl-dev pkg-config gcc libc6-dev
    openssl
    iproute2 iputils-ping nftables tcpdump curl procps
)

if ! command -v dpkg-query >/dev/null; then
    echo "This machine is no Debian: install the counterparts of these packages yourself: ${packages[*]}" >&2
    exit 1
fi

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done

if [ ${#missing[@]} -eq 0 ]; then
    echo "packages: all are there"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "These packages are missing: ${missing[*]}. Run this as root, or install them yourself." >&2
    exit 1
fi
echo "packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
