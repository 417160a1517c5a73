#!/bin/sh
# Writes tshark.txt: what tshark says of the header fields in the capture, one
# line for each packet that has any. Run it in this directory.
tshark -n -r http2-nghttp2.pcap -Y 'http2.header.name' -T fields -E separator='|' -E aggregator='^' \
	-e tcp.srcport -e http2.header.name -e http2.header.value >tshark.txt 2>/dev/null
