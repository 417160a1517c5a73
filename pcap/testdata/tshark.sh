#!/bin/sh
# Writes tshark.txt: what tshark says of each capture. Run it in this directory.
# tshark numbers custom blocks, too, and shows them as plain data: they are left out.
for f in captures/*; do
	echo "# ${f#captures/}"
	tshark -n -r "$f" -Y 'frame.protocols != "data"' -T fields -E separator=' ' -e frame.number -e frame.time_epoch -e frame.len -e frame.cap_len 2>/dev/null
done >tshark.txt
