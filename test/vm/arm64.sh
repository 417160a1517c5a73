#!/bin/bash
# Vets all packages for arm64, and runs the unprivileged tests of those named (or of
# those where the order of memory accesses, or the size and alignment of things,
# matters) under qemu-user, which comes by apt-get download. What needs root skips.
#
#   arm64.sh [PACKAGE...]
#
# qemu-user on a machine with a stronger memory model than arm64's proves that the
# code runs there; it does not reorder what arm64 would.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- ./xsk/... ./pipeline ./pipeline/afxdp ./pipeline/fault ./inspect ./pcap ./internal/...
dir=${XDG_CACHE_HOME:-$HOME/.cache}/penstock/vm
test/vm/fetch.sh "$dir" arm64 || {
	[ "${REQUIRE_VM:-}" != 1 ] || exit 1
	echo "NOT TESTED: arm64; qemu-user cannot be had" >&2
	exit 0
}
export GOARCH=arm64 CGO_ENABLED=0
go=${GO:-go}
$go vet ./...
exec=$dir/arm64/usr/bin/qemu-aarch64
# Emulated system calls of root would half work: without capabilities tests skip.
[ "$(id -u)" != 0 ] || exec="setpriv --bounding-set=-all --inh-caps=-all $exec"
REQUIRE_PRIV='' $go test -p 2 -count 1 -short -timeout 15m -exec "$exec" \
	-skip '^Test(BoundedTime|MemoryIsBounded)$' "$@" # they measure time
