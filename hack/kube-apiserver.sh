#!/usr/bin/env bash
# Prints a directory that holds kube-apiserver, etcd and kubectl: what KUBEBUILDER_ASSETS should say.
#
#   export KUBEBUILDER_ASSETS=$(hack/kube-apiserver.sh)
#
# A directory that KUBEBUILDER_ASSETS names already is taken as it is. Otherwise kube-apiserver and kubectl are built once, from
# the Go modules that hack/kube-apiserver/go.mod pins, and etcd comes from PATH or from Debian's package etcd-server. The package is
# unpacked, not installed: nothing starts as a service and nothing of the machine changes.
set -euo pipefail

programs=(kube-apiserver etcd kubectl)

fail() {
    printf 'hack/kube-apiserver.sh: %s\n' "$@" >&2
    exit 1
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    for program in "${programs[@]}"; do
        [ -x "$KUBEBUILDER_ASSETS/$program" ] ||
            fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS holds no $program: name a directory with ${programs[*]}, or unset it to have them built."
    done
    realpath "$KUBEBUILDER_ASSETS"
    exit 0
fi

cd "$(dirname "$0")/kube-apiserver"

version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' go.mod)
[ -n "$version" ] || fail "hack/kube-apiserver/go.mod requires no k8s.io/kubernetes"
directory=${XDG_CACHE_HOME:-$HOME/.cache}/egressnat/kube-apiserver-$version
mkdir -p "$directory"

# One at a time: whoever waited finds the work done.
exec 9>"$directory/lock"
flock 9

# Puts a finished program in its place, so that a build that was killed leaves none that looks finished.
place() {
    chmod 0755 "$1"
    mv "$1" "$directory/$(basename "$1")"
}

build() {
    command -v go >/dev/null ||
        fail "There is no Go to build kube-apiserver $version with." \
            "Install Go 1.26 or later (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a directory with ${programs[*]}."
    echo "building kube-apiserver and kubectl $version; once, some minutes" >&2
    local minor=${version#v1.}
    local package=k8s.io/component-base/version
    local variables="-X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
    CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $variables" -o "$work/" \
        k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl >&2
    place "$work/kube-apiserver"
    place "$work/kubectl"
}

# As the user that runs this: apt's own user may not enter a home directory.
download() {
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root etcd-server >&2)
}

fetch_etcd() {
    local found
    if found=$(command -v etcd); then
        cp "$found" "$work/etcd"
    elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
        echo "unpacking etcd from the package etcd-server" >&2
        # The lists of packages may be missing or old; only root can fetch them.
        download || {
            [ "$(id -u)" -ne 0 ] || apt-get update -qq >&2
            download ||
                fail "There is no etcd: install it (Debian: etcd-server), or set KUBEBUILDER_ASSETS to a directory with ${programs[*]}."
        }
        dpkg-deb -x "$work"/etcd-server_*.deb "$work/package"
        mv "$work/package/usr/bin/etcd" "$work/etcd"
    else
        fail "There is no etcd: install it, or set KUBEBUILDER_ASSETS to a directory with ${programs[*]}."
    fi
    place "$work/etcd"
}

work=$(mktemp -d "$directory/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

[ -x "$directory/etcd" ] || fetch_etcd
[ -x "$directory/kube-apiserver" ] && [ -x "$directory/kubectl" ] || build
printf '%s\n' "$directory"
