#!/bin/sh
# root.sh DIR: makes DIR/root a clean Debian with systemd, for machines to boot from,
# and installs what that takes, if root and missing. Nobody writes to it afterwards.
# What is there already is left alone; remove DIR to get a newer one.
set -eu
dir=$1
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
missing=
command -v debootstrap >/dev/null || missing="$missing debootstrap"
command -v systemd-nspawn >/dev/null || missing="$missing systemd-container"
if [ -n "$missing" ]; then
	command -v apt-get >/dev/null || { echo "missing:$missing; install it" >&2; exit 1; }
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y -qq --no-install-recommends $missing >&2 || { apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends $missing >&2; }
fi
[ ! -e "$dir/done" ] || exit 0
rm -rf --one-file-system "$dir/root"
echo "making a Debian in $dir" >&2
debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2,ethtool,procps,sudo bookworm "$dir/root" >"$dir/log" 2>&1 || { tail -n 5 "$dir/log" >&2; exit 1; }
touch "$dir/done"
