/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_REASONS_H
#define PENSTOCK_REASONS_H

/* Every packet leaves the program with exactly one of these reasons. The names reach Go through the
 * object's BTF (the enum below), in lower case: REASON_FLOW_KNOWN is "flow_known" in metrics. Add at
 * the end of a group, regenerate, and add the row to README.md; a test compares the two. */
#define STEER_REASONS(X)                                                                                                                   \
	/* to the flow's chain, if the verdict is socket */                                                                                \
	X(FLOW_KNOWN)      /* the flow is in the flows map */                                                                              \
	X(FLOW_NEW)        /* a rule sent a new flow to a chain; both entries were written */                                              \
	X(FRAGMENT_KNOWN)  /* a later fragment, treated as its first fragment was */                                                       \
	X(ICMP_ERROR)      /* an ICMP error that quotes a packet of a known flow */                                                        \
	X(REWRITE_SLOW)    /* an offloaded flow, but this packet is not for XDP to change: it goes up as it came */                         \
	X(REWRITE_STALE)   /* an offloaded flow whose rewrite has become another flow's: the packet goes up as it came */                   \
	X(NO_METADATA)     /* went to the socket without metadata: the driver has no room for it */                                        \
	/* default action, or drop: what the flow's stages decided for all its packets */                                                  \
	X(FLOW_OFFLOADED)  /* no stage wants the flow any more */                                                                          \
	X(FLOW_PASSED)     /* the flow began, or went on, where no chain saw it: it is bypassed until it ends */                            \
	/* default action */                                                                                                               \
	X(NOT_IP)          /* ARP, LLDP, STP, MPLS, ...: neither IPv4 nor IPv6 */                                                          \
	X(VLAN_DEPTH)      /* more than two VLAN tags */                                                                                   \
	X(NO_RULE)         /* a new flow that no rule matches */                                                                           \
	X(NO_SOCKET_OPEN)  /* wanted by a chain, but nobody listens on the queue; on_exit = open */                                        \
	X(WORKER_SILENT_OPEN) /* there is a socket, but the worker behind it does not work; on_exit = open */                              \
	X(FLOW_TABLE_FULL) /* wanted by a chain, but the flows map has no room for both entries */                                         \
	X(FLOW_CONFLICT)   /* wanted by a chain, but its replies would be taken for those of another flow */                                \
	X(FRAGMENT_UNKNOWN)   /* a later fragment whose first fragment was not seen */                                                     \
	X(ICMP_ERROR_UNKNOWN) /* an ICMP error about a flow that is not ours */                                                            \
	X(ICMP_NEIGHBOR)      /* ICMPv6 neighbour discovery and MLD: what ARP is to IPv4 */                                                \
	/* a rule or an option decides between default action, socket and drop */                                                          \
	X(RULE_BYPASS)     /* a rule says bypass */                                                                                        \
	X(RULE_DROP)       /* a rule says drop */                                                                                          \
	X(MIDSTREAM)       /* a TCP segment of a flow nobody saw begin; midstream = bypass or drop */                                      \
	/* while SYNs are answered with cookies */                                                                                         \
	X(SYN_COOKIE_SENT) /* tx: the SYN was answered */                                                                                          \
	X(SYN_COOKIE_GOOD) /* socket: a segment that gives back a good cookie; it begins the flow */                                               \
	X(SYN_COOKIE_BAD) /* as midstream: a segment of an unknown flow that does not */                                                           \
	/* drop */                                                                                                                         \
	X(NO_SOCKET_CLOSED) /* wanted by a chain, but nobody listens on the queue; on_exit = closed */                                     \
	X(WORKER_SILENT_HELD) /* of a connection that the silent worker terminates, or was given to begin; on_exit = open */               \
	X(WORKER_SILENT_CLOSED) /* there is a socket, but the worker behind it does not work; on_exit = closed */                          \
	X(NO_PEER)          /* bridge mode, but the peer port is gone */                                                                   \
	/* malformed: default action, or drop with malformed = drop */                                                                     \
	X(TRUNCATED)        /* a header does not fit into the frame or into its IP packet */                                               \
	X(IP_VERSION)       /* the version nibble contradicts the ethertype */                                                             \
	X(IP_HEADER_LENGTH) /* IPv4 header length below 20 bytes */                                                                        \
	X(IP_LENGTH)        /* IP length beyond the frame or below its header, a jumbogram, a fragment of an impossible length */          \
	X(IP6_EXTENSIONS)   /* more than eight IPv6 extension headers, a repeated or misplaced one, routing type 0 */                      \
	X(TINY_FRAGMENT)    /* a fragment cut so that the transport header is split (RFC 1858, RFC 7112) */                                \
	X(TCP_OFFSET)       /* TCP data offset below 20 bytes or beyond the segment */                                                     \
	X(UDP_LENGTH)       /* UDP length below 8 bytes or beyond the IP packet */                                                         \
	/* the gate: drop */                                                                                                               \
	X(GATE_DENIED) /* the source is on the deny list */                                                                                \
	X(GATE_RATE_PACKETS) /* the source is over its rate of packets */                                                                  \
	X(GATE_RATE_BYTES) /* the source is over its rate of bytes */                                                                      \
	X(GATE_RATE_SYNS) /* the source is over its rate of TCP SYNs */                                                                    \
	X(GATE_LAND) /* source and destination address are the same */                                                                     \
	X(GATE_TCP_FLAGS) /* TCP flags that no stack sends together */                                                                     \
	X(GATE_SOURCE) /* the source is a multicast or the broadcast address */                                                            \
	X(GATE_TINY_FRAGMENT) /* as tiny_fragment, screened */                                                                             \
	X(GATE_LENGTH) /* a length that contradicts the packet, screened */                                                                \
	X(GATE_IP_OPTIONS) /* IPv4 options, IPv6 hop-by-hop options or routing header */                                                   \
	/* router mode: what becomes of packets that are steered or offloaded, where the program does not route them itself */             \
	X(ROUTE_FRAME)       /* pass: not addressed to the port, or with a VLAN tag */                                                     \
	X(ROUTE_TTL)         /* pass: TTL or hop limit used up; the kernel says time exceeded */                                           \
	X(ROUTE_TOO_BIG)     /* pass: larger than the route's MTU, not to be fragmented; the kernel says too big */                        \
	X(ROUTE_NONE)        /* pass: no way on: this host's address, no route, unreachable, prohibited, multicast, martian */             \
	X(ROUTE_DISABLED)    /* pass: forwarding is off on the port */                                                                     \
	X(ROUTE_NO_NEIGHBOR) /* the next hop's address on the link is not known yet */                                                     \
	X(ROUTE_OFF_PORT)    /* the route leaves by an interface that is no port */                                                        \
	X(ROUTE_BY_KERNEL)   /* IP options, fragmentation, encapsulation: what the kernel does and the program cannot */                   \
	X(ROUTE_INJECTED)    /* pass: user space gave it to the kernel; generic XDP sees it again */

enum reason {
#define X(name) REASON_##name,
	STEER_REASONS(X)
#undef X
	REASON_COUNT,
};

#endif
