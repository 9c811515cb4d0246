#!/usr/bin/env bash
# Runs a command as root under Debian's own kernel, in a virtual machine that sees this machine's files, and ends with its exit code.
# What it writes to files is gone with the machine.
#
#   hack/debian-kernel.sh COMMAND [ARGUMENT …]
#
# KERNEL names another package than that of linux-image-amd64, MEMORY and PROCESSORS size the machine. Without hardware for it the processor is
# emulated, which is ten times as slow.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

missing=()
for tool in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static modprobe:kmod cpio:cpio; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

package=${KERNEL:-$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')}
version=${package#linux-image-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/egressnat/$package
job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT

# The kernel, unpacked and not installed, and its first program: this machine's files from below, memory from above.
if [ ! -e "$cache/initramfs" ]; then
    rm -rf "$cache"
    mkdir -p "$cache" "$job/root/bin"
    (cd "$job" && apt-get download -qq "$package" 2>/dev/null && dpkg -x "$package"_*.deb "$cache")
    depmod -b "$cache" "$version"
    cd "$job/root"
    mkdir dev proc lower upper new
    cp "$(command -v busybox)" bin/busybox
    {
        echo '#!/bin/busybox sh'
        for module in virtio_pci 9pnet_virtio 9p overlay; do
            modprobe -d "$cache" -S "$version" --show-depends "$module" | while read -r _ path; do
                cp -n "$path" .
                echo "/bin/busybox insmod /${path##*/} 2>/dev/null"
            done
        done
        cat <<'INIT'
b=/bin/busybox
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /lower
$b mount -t tmpfs none /upper
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work none /new
$b mkdir -p /new/job
$b mount -t 9p -o trans=virtio,version=9p2000.L job /new/job
exec $b switch_root /new /bin/sh /job/start
INIT
    } >init
    chmod +x init
    find . | cpio -o -H newc --quiet >"$cache/initramfs"
    cd - >/dev/null
fi

{
    cat <<START
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts && mount -t devpts none /dev/pts
mount -t bpf none /sys/fs/bpf
mount -t tmpfs none /run
mkdir -p /lib/modules && mount --bind '$cache/lib/modules' /lib/modules
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
export PATH='$PATH' HOME='$HOME'
cd '$PWD'
START
    env | grep -E '^(EGRESSNAT|RUST|KUBEBUILDER)_' | sed "s/=\(.*\)/='\1'/; s/^/export /" || true
    printf '%q ' "$@"
    printf '\necho $? >/job/exit-code\necho o >/proc/sysrq-trigger\nwhile :; do :; done\n'
} >"$job/start"

accelerator=(-accel tcg,thread=multi -cpu max)
if [ -w /dev/kvm ] && grep -qE '^flags.* (vmx|svm) ' /proc/cpuinfo; then
    accelerator=(-accel kvm -cpu host)
fi
qemu-system-x86_64 "${accelerator[@]}" -m "${MEMORY:-4G}" -smp "${PROCESSORS:-$(nproc)}" \
    -kernel "$cache"/boot/vmlinuz-* -initrd "$cache/initramfs" -append "console=ttyS0 quiet panic=-1" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    -virtfs "local,path=$job,mount_tag=job,security_model=none" \
    -nic none -nodefaults -no-reboot -display none -serial stdio </dev/null | sed -u 's/\r$//'
exit "$(cat "$job/exit-code" 2>/dev/null || echo 125)"
