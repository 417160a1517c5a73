#!/bin/sh
# Installs the package into a clean Debian and uses it there: test.sh DEB
# Needs root, debootstrap, a mirror, iproute2, ethtool, curl and python3. ROOT
# keeps the tree for another run.
set -eu
deb=$1
root=${ROOT:-$(mktemp -d)/root}
n=pstk$$
cleanup() {
	kill $run $web 2>/dev/null || true
	for ns in c a s; do ip netns del $n$ns 2>/dev/null || true; done
	umount "$root/sys/fs/bpf" "$root/sys" "$root/proc" 2>/dev/null || true
	[ -n "${ROOT:-}" ] || rm -rf --one-file-system "$(dirname "$root")"
}
run='' web=''
trap cleanup EXIT INT TERM
[ -x "$root/bin/sh" ] || debootstrap --variant=minbase bookworm "$root" >/dev/null
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
cp "$deb" "$root/penstock.deb"
inside() { chroot "$root" "$@"; }
inside dpkg -i /penstock.deb
inside penstock version
inside getent passwd penstock
for file in "$root"/etc/penstock/*.toml; do
	inside penstock check --quiet "/etc/penstock/$(basename "$file")"
done
# The machine may be wrong for an appliance; doctor itself must work.
inside penstock doctor || [ $? = 1 ]
inside /usr/lib/penstock/prepare demo
[ "$(inside stat -c '%U %a' /sys/fs/bpf/demo)" = "penstock 700" ]
inside rmdir /sys/fs/bpf/demo

# The first appliance of install.md, word for word, between two namespaces; what
# systemd does for the unit is done by hand.
for ns in c a s; do ip netns add $n$ns; done
ip link add eth0 netns ${n}c type veth peer name enp1s0f0 netns ${n}a
ip link add eth0 netns ${n}s type veth peer name enp1s0f1 netns ${n}a
for at in c:eth0 a:enp1s0f0 a:enp1s0f1 s:eth0; do
	ip -n $n${at%%:*} link set dev ${at##*:} up
	ip netns exec $n${at%%:*} ethtool -K ${at##*:} tx off tso off gso off gro off >/dev/null 2>&1
done
for at in c:eth0 a:enp1s0f0 a:enp1s0f1 s:eth0; do ip netns exec $n${at%%:*} ethtool -K ${at##*:} gro on; done
ip -n ${n}c address add 10.5.5.1/24 dev eth0
ip -n ${n}s address add 10.5.5.2/24 dev eth0
(cd "$root/etc" && exec ip netns exec ${n}s python3 -m http.server 80 --bind 10.5.5.2) >/dev/null 2>&1 &
web=$!
edge=/etc/penstock/edge.toml
sed -n '/```toml/,/```$/p' "$root/usr/share/doc/penstock/install.md" | sed '1d;$d;s/^    //' >"$root$edge"
at() { ip netns exec ${n}a chroot "$root" "$@"; }
at penstock check $edge
at penstock doctor --quiet $edge
inside /usr/lib/penstock/prepare edge
inside install -d -o penstock -g penstock /run/penstock /run/edge
caps=-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock
start() {
	ip netns exec ${n}a chroot "$root" setpriv --reuid penstock --regid penstock --clear-groups --no-new-privs --bounding-set=$caps --inh-caps=$caps --ambient-caps=$caps penstock run $edge &
	run=$!
	for _ in $(seq 100); do
		at penstock status --control /run/edge/control.sock >/dev/null 2>&1 && return
		sleep 0.1
	done
	echo "the appliance does not answer"
	exit 1
}
get() { ip netns exec ${n}c curl -sS -m 10 -o /dev/null -w "%{http_code}\n" http://10.5.5.2/; }
start
[ "$(get)" = 200 ]
at penstock status --control /run/edge/control.sock
at penstock status --control /run/edge/control.sock | grep -q "^web  *inspect"
kill -KILL $run
wait $run 2>/dev/null || true
[ "$(get)" = 200 ] # XDP goes on bridging
start              # as the unit does
[ "$(get)" = 200 ]
kill $run
wait $run
[ "$(get)" = 200 ]
at penstock detach $edge
if get 2>/dev/null; then echo "traffic passes though nothing is attached" && exit 1; fi
rm "$root$edge"

# A changed configuration survives a new version; all goes with a purge.
echo '# changed' >>"$root/etc/penstock/demo.toml"
inside dpkg -i --force-confold /penstock.deb >/dev/null
grep -q '^# changed' "$root/etc/penstock/demo.toml"
inside dpkg --purge penstock
[ ! -e "$root/usr/bin/penstock" ]
[ ! -e "$root/etc/penstock" ]
if inside getent passwd penstock; then echo "the user is still there" && exit 1; fi
echo "the package installs, works and leaves nothing"
