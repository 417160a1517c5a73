#!/bin/sh
# Builds the bench beside the binary that `make build` made, and runs it. Flags go
# on to it: test/bench/run.sh -quick, test/bench/run.sh -h.
set -eu
cd "$(dirname "$0")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go build -o "$dir/bench" ./test/bench
"$dir/bench" -penstock bin/penstock -root . "$@"
