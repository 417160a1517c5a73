#!/bin/sh
# Installs the Debian packages that the tests and benchmarks use, when they are
# missing and we are root. Elsewhere the tests that need them skip, loudly, or
# fail under REQUIRE_PRIV=1.
set -eu
missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need curl curl
need wget wget
need iperf3 iperf3
need tshark tshark
need ethtool ethtool
need ip iproute2
need openssl openssl
need traceroute traceroute
need tmux tmux
need groff groff-base
need mandoc mandoc
# `packages.sh bench`: the peers that only the benchmarks run.
if [ "${1:-}" = bench ]; then
	need haproxy haproxy
	need wrk wrk
	need nft nftables
	need nginx nginx
	ls /usr/lib*/nginx/modules/ngx_stream_module.so >/dev/null 2>&1 || missing="$missing libnginx-mod-stream"
fi
# Only promtool is wanted of Prometheus: its package would start a server.
promtool=
command -v promtool >/dev/null 2>&1 || promtool=" promtool"
[ -n "$missing$promtool" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "packages: missing:$missing$promtool; install them to run all tests" >&2
	exit 0
fi
echo "packages: installing$missing$promtool" >&2
export DEBIAN_FRONTEND=noninteractive
get_promtool() {
	dir=$(mktemp -d)
	(cd "$dir" && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && install usr/bin/promtool /usr/local/bin/promtool)
	status=$?
	rm -rf "$dir"
	return $status
}
install_all() {
	[ -z "$missing" ] || apt-get install -y -qq $missing >/dev/null || return 1
	[ -z "$promtool" ] || get_promtool >/dev/null 2>&1
}
install_all 2>/dev/null || {
	apt-get update -qq >/dev/null
	install_all
}
