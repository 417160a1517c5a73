#!/bin/sh
# Writes tcpdump.txt: what tcpdump says about every capture here. Run by hand when a capture is added.
cd "$(dirname "$0")" || exit 1
for f in captures/*.pcap; do
	echo "== $(basename "$f" .pcap)"
	tcpdump -nn -S -t -r "$f" 2>/dev/null | grep -v '^	'
done >tcpdump.txt
