#!/bin/bash
# Fetches what the virtual machines are made of, by apt-get download from Debian:
# nothing is installed, and no state of the host's apt is touched.
#
#   fetch.sh DIR WHAT...     qemu | arm64 | a kernel series (6.12) | newest
#
# DIR/qemu becomes QEMU's root directory, DIR/arm64 that of qemu-user, and
# DIR/kernel-WHAT holds vmlinuz, release and a few modules. What is there already
# is left alone; remove the folder to get a newer one.
set -euo pipefail
dir=$1
shift
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
todo=()
for what in "$@"; do
	case $what in
	qemu | arm64) [ -e "$dir/$what/done" ] || todo+=("$what") ;;
	*) [ -e "$dir/kernel-$what/done" ] || todo+=("$what") ;;
	esac
done
[ ${#todo[@]} -gt 0 ] || exit 0
for tool in apt-get apt-cache dpkg-deb xz tar; do
	command -v $tool >/dev/null || { echo "fetch packages: no $tool here; mend: run on Debian, install xz-utils" >&2; exit 1; }
done

. /etc/os-release
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e $keys ] || { echo "fetch packages: no $keys; mend: apt-get install debian-archive-keyring" >&2; exit 1; }
apt=$dir/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
source() { echo "deb [signed-by=$keys] http://deb.debian.org/$1 main"; }
{
	# Kernels live in the security and backports suites, whose indexes are small.
	source "debian-security bullseye-security"
	source "debian-security bookworm-security"
	source "debian bookworm-backports"
	source "debian trixie-backports"
} >"$apt/kernels.list"
case ${VERSION_CODENAME:-} in
bookworm | trixie)
	source "debian $VERSION_CODENAME"
	source "debian $VERSION_CODENAME-backports"
	source "debian-security $VERSION_CODENAME-security"
	;;
esac >"$apt/host.list"
# use LIST: which sources the apt commands after it see.
use() {
	cat >"$apt/apt.conf" <<-CONF
		Dir::Etc::SourceList "$apt/$1.list";
		Dir::Etc::SourceParts "/dev/null";
		Dir::State::Lists "$apt/lists";
		Dir::Cache "$apt/cache";
		APT::Sandbox::User "";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
		Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
	CONF
	export APT_CONFIG=$apt/apt.conf
	apt-get update -qq
}

# closure TARGET PACKAGE: unpacks a package and what it needs of what the host has not.
closure() {
	local target=$1 package=$2 list
	list=$(apt-get install -s -qq --no-install-recommends -t "$VERSION_CODENAME-backports" "$package" | awk '$1 == "Inst" { print $2 "=" substr($0, index($0, "(") + 1) }' | awk '{ print $1 }')
	# The package itself is not listed if the host has it.
	[ -n "$list" ] || list=$package
	rm -rf "$target"
	mkdir -p "$target/debs"
	(cd "$target/debs" && apt-get download -qq $list 2>/dev/null)
	for deb in "$target"/debs/*.deb; do dpkg-deb -x "$deb" "$target"; done
	rm -rf "$target/debs"
	touch "$target/done"
}

# kernel TARGET SERIES
kernel() {
	local target=$1 pattern=$2 names image
	[ "$pattern" != newest ] || pattern='[0-9]+\.[0-9]+'
	# Real packages only: a name that others merely depend on has no candidate.
	names=$(apt-cache dumpavail | awk '$1 == "Package:" { print $2 }' |
		grep -E "^linux-image-${pattern}[.+][^ ]*-amd64$" | grep -vE -- '-rt-|-cloud-' | sort -Vu)
	image=$(tail -n 1 <<<"$names")
	[ -n "$image" ] || { echo "fetch kernel $2: Debian has none now" >&2; return 1; }
	rm -rf "$target"
	mkdir -p "$target/debs" "$target/root"
	# Since 7.x the image is an empty package: kernel and modules are packages of their own.
	(cd "$target/debs" && apt-get download -qq "$image" $(apt-cache depends --no-recommends --no-suggests "$image" |
		awk '$1 == "Depends:" && $2 ~ /^linux-(binary|modules)-/ { print $2 }') 2>/dev/null)
	for deb in "$target"/debs/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$target/root" --wildcards --no-anchored \
			'boot/vmlinuz-*' 'modules/*/vmlinuz' 'kernel/lib/*' 'kernel/drivers/virtio/*' 'kernel/drivers/net/*.ko*' 'kernel/net/core/*' 'kernel/net/packet/*' 2>/dev/null || true
	done
	find "$target/root" -name '*.ko.xz' -exec xz -d {} +
	mkdir "$target/modules"
	find "$target/root" -name '*.ko' -exec mv -t "$target/modules" {} +
	find "$target/root" -name 'vmlinuz*' -exec mv -T {} "$target/vmlinuz" \;
	rm -rf "$target/debs" "$target/root"
	echo "${image#linux-image-}" >"$target/release"
	touch "$target/done"
}

using=
for what in "${todo[@]}"; do
	case $what in qemu | arm64) list=host ;; *) list=kernels ;; esac
	[ "$using" = $list ] || { use $list; using=$list; }
	echo "fetching $what" >&2
	case $what in
	qemu) closure "$dir/qemu" qemu-system-x86 ;;
	arm64) closure "$dir/arm64" qemu-user ;;
	*) kernel "$dir/kernel-$what" "$what" ;;
	esac
done
