#!/bin/bash
# Vets all packages for arm64, and runs their tests (or those of the packages named)
# as arm64 binaries under qemu-user, which comes by apt-get download. A table of the
# packages goes to standard output, and behind it why what skipped has skipped.
#
#   arm64.sh [PACKAGE...]
#
# qemu-user on a machine with a stronger memory model than arm64's proves that the
# code runs there; it does not reorder what arm64 would.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- ./stack ./... # what takes longest begins first

# What is not run here: a pattern of tests, and why.
left_out=(
	'Test(BoundedTime|MemoryIsBounded)' 'measures time or memory, which are the emulation'\''s here'
	'TestSplice(GivesUp|CapsWindow)?|TestCookieTransfer' 'connections come to rest, or stall, within milliseconds: not on a busy emulator'
)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock/vm
test/vm/fetch.sh "$cache" arm64 || {
	[ "${REQUIRE_VM:-}" != 1 ] || exit 1
	echo "SKIPPED, NOT PASSED: arm64; qemu-user cannot be had" >&2
	exit 0
}
work=$(mktemp -d "${TMPDIR:-/tmp}/penstock-arm64.XXXXXX")
trap 'rm -rf "$work"' EXIT

# emulate BINARY ARGS... is what `go test` runs. It goes by way of a script that the
# binary has for its name (os.Args[0]), so that tests that start themselves anew can:
# the kernel does not run arm64 binaries. Emulated system calls of root would half
# work, so root gives up all capabilities, and what needs them skips; but those of
# becoming another user, which tcpdump does when root starts it.
drop=
[ "$(id -u)" != 0 ] || drop='setpriv --bounding-set=-all,+setuid,+setgid --inh-caps=-all'
cat >"$work/emulate" <<-END
	#!/bin/sh
	printf '#!/bin/sh\nexec "%s" -0 "\$0" "%s" "\$@"\n' '$cache/arm64/usr/bin/qemu-aarch64' "\$1" >"\$1.sh"
	chmod 0755 "\$1.sh"
	self=\$1.sh
	shift
	unset GOARCH CGO_ENABLED # of the go that a test starts
	export GOMEMLIMIT=1GiB
	exec $drop "\$self" "\$@"
END
chmod 0755 "$work/emulate"

# Makes the table of the events of `go test -json`, one a line, with Output last.
cat >"$work/table.awk" <<'END'
function field(name,   s) {
	if (!match($0, "\"" name "\":\"?[^\",}]*")) return ""
	s = substr($0, RSTART, RLENGTH)
	sub(/^"[A-Za-z]*":"?/, "", s)
	return s
}
function output(   s) {
	s = $0
	sub(/^.*"Output":"/, "", s)
	sub(/"}$/, "", s)
	gsub(/\\n/, "\n", s); gsub(/\\t/, "\t", s); gsub(/\\"/, "\"", s); gsub(/\\u003c/, "<", s); gsub(/\\u003e/, ">", s); gsub(/\\u0026/, "\\&", s)
	return s
}
BEGIN {
	printf "%-28s %-6s %6s %7s %6s %8s\n", "package", "", "passed", "skipped", "failed", "seconds"
}
!/^{/ { print; next }
{
	action = field("Action"); pkg = field("Package"); test = field("Test"); at = pkg " " test
	if (action == "build-output") { printf "%s", output(); next }
	if (action == "output") {
		s = output()
		if (length(told[at]) < 100000) told[at] = told[at] s
		# Of a test that skips the last line but the framework's own is the reason.
		if (test != "" && s !~ /^ *(---|===) /) { sub(/^ *[^ ]*\.go:[0-9]+: /, "", s); sub(/\n$/, "", s); last[at] = s }
		next
	}
	if (action != "pass" && action != "skip" && action != "fail") next
	if (test != "") {
		top = test
		if (sub(/\/.*/, "", top)) parts[pkg, top, action]++
		if (action == "skip") {
			why[last[at] == "" ? "no reason given" : last[at]]++
			skips[pkg]++
		} else if (top == test && !(action == "pass" && parts[pkg, test, "skip"] && !parts[pkg, test, "pass"])) {
			count[pkg, action]++ # a test all of whose parts have skipped has not passed
		}
		if (action == "fail") wrong[pkg] = wrong[pkg] told[at]
		delete told[at]
		delete last[at]
		next
	}
	short = pkg
	sub(/^penstock\//, "", short)
	word = action == "pass" ? "ok" : action == "fail" ? "FAIL" : "-" # "-": there are no tests
	printf "%-28s %-6s %6d %7d %6d %8.1f\n", short, word, count[pkg, "pass"], skips[pkg], count[pkg, "fail"], field("Elapsed")
	if (action == "fail") printf "%s%s", wrong[pkg], told[at]
	delete told[at]
	fflush()
	packages++; passed += count[pkg, "pass"]; skipped += skips[pkg]; failed += count[pkg, "fail"]; bad += action == "fail"
}
END {
	printf "%-28s %-6s %6d %7d %6d %8.1f\n", packages " packages", bad ? "FAIL" : "ok", passed, skipped, failed, systime() - begun
	for (w in why) {
		n = why[w]
		sub(/^SKIPPED(, NOT PASSED)?: /, "", w)
		printf "SKIPPED, NOT PASSED: %d: %s\n", n, w
	}
}
END

skip=
for ((i = 0; i < ${#left_out[@]}; i += 2)); do skip="$skip${skip:+|}^(${left_out[i]})\$"; done
export GOARCH=arm64 CGO_ENABLED=0
go=${GO:-go}
$go vet ./...
begun=$(date +%s)
status=0
# Two at a time, a quarter of an hour each; after an hour none is begun any more.
REQUIRE_PRIV='' timeout --foreground -s INT 1h $go test -json -p 2 -count 1 -short -timeout 15m -exec "$work/emulate" -skip "$skip" "$@" |
	awk -v begun="$begun" -f "$work/table.awk" || status=$?
for ((i = 0; i < ${#left_out[@]}; i += 2)); do echo "LEFT OUT: ${left_out[i]}: ${left_out[i + 1]}"; done
exit $status
