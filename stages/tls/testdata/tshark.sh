#!/bin/sh
# Writes tshark.txt: what tshark says of the hellos over TCP in each capture.
# Run it in this directory. The fields: capture, source port, type of the
# message, SNI, ALPN, version, supported_versions, JA3, JA3S.
for f in captures/*.pcap; do
	name=${f#captures/}
	tshark -n -r "$f" -Y 'tcp && (tls.handshake.type == 1 || tls.handshake.type == 2)' -T fields -E separator='|' \
		-e tcp.srcport -e tls.handshake.type -e tls.handshake.extensions_server_name -e tls.handshake.extensions_alpn_str \
		-e tls.handshake.version -e tls.handshake.extensions.supported_version -e tls.handshake.ja3 -e tls.handshake.ja3s 2>/dev/null |
		sed "s/^/${name%.pcap}|/"
done >tshark.txt
