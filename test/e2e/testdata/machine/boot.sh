#!/bin/sh
# boot.sh ROOT NAME: boots the Debian in ROOT as a container, in the network namespace
# that this runs in. What it writes is kept in memory and goes with it. NAME is for
# its control groups.
set -eu
root=$1 name=$2 keep=
if [ ! -d /run/systemd/system ]; then
	# Nobody gives out control groups here.
	keep=--keep-unit
	for at in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup/memory; do
		[ ! -e "$at/cgroup.procs" ] || { mkdir -p "$at/$name" && echo $$ >"$at/$name/cgroup.procs"; }
	done
fi
exec systemd-nspawn --quiet --register=no $keep --notify-ready=yes --directory="$root" --machine="$name" --volatile=overlay \
	--capability=all --system-call-filter="bpf @keyring perf_event_open" --console=pipe --boot
