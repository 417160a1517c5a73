package pcap

import (
	"encoding/binary"
	"fmt"

	"penstock/internal/wire"
)

// LinkType says what a captured packet begins with (the LINKTYPE_ registry of
// tcpdump.org).
type LinkType uint16

// The link types that become Ethernet frames.
const (
	LinkNull      LinkType = 0   // BSD loopback: address family in the byte order of the host
	LinkEthernet  LinkType = 1   //
	LinkRawBSD    LinkType = 12  // raw IP, as OpenBSD's and others' DLT_RAW
	LinkRawBSDI   LinkType = 14  // raw IP, likewise
	LinkRaw       LinkType = 101 // raw IP, version in the first nibble
	LinkLoop      LinkType = 108 // OpenBSD loopback: address family in network byte order
	LinkLinuxSLL  LinkType = 113 // Linux cooked capture
	LinkIPv4      LinkType = 228
	LinkIPv6      LinkType = 229
	LinkLinuxSLL2 LinkType = 276 // Linux cooked capture v2
)

// linkNames has the types above and those that captures most often have
// besides.
var linkNames = map[LinkType]string{
	LinkNull: "BSD loopback", LinkEthernet: "Ethernet", LinkRawBSD: "raw IP", LinkRawBSDI: "raw IP",
	LinkRaw: "raw IP", LinkLoop: "OpenBSD loopback", LinkLinuxSLL: "Linux cooked",
	LinkIPv4: "IPv4", LinkIPv6: "IPv6", LinkLinuxSLL2: "Linux cooked v2",
	6: "token ring", 9: "PPP", 10: "FDDI", 50: "PPP in HDLC framing", 51: "PPPoE", 104: "Cisco HDLC",
	105: "802.11", 107: "frame relay", 117: "OpenBSD pflog", 119: "802.11 with Prism header",
	127: "802.11 with radiotap", 147: "user 0", 187: "Bluetooth HCI", 189: "USB, Linux",
	192: "PPI", 195: "802.15.4", 201: "Bluetooth HCI with direction", 220: "USB, Linux, padded",
	227: "CAN", 239: "NFLOG", 249: "USBPcap", 253: "netlink", 258: "PKTAP",
}

// String returns "type 113 (Linux cooked)".
func (l LinkType) String() string {
	if name, ok := linkNames[l]; ok {
		return fmt.Sprintf("type %d (%s)", uint16(l), name)
	}
	return fmt.Sprintf("type %d", uint16(l))
}

// Supported reports whether packets of this link type can become Ethernet
// frames.
func (l LinkType) Supported() bool {
	switch l {
	case LinkNull, LinkEthernet, LinkRawBSD, LinkRawBSDI, LinkRaw, LinkLoop, LinkLinuxSLL, LinkIPv4, LinkIPv6, LinkLinuxSLL2:
		return true
	}
	return false
}

// The addresses in the Ethernet header of a packet that was captured without
// one. They are locally administered, so they are nobody's. A Linux cooked
// packet keeps the sender's address where it has six bytes.
var (
	SyntheticSource      = [6]byte{0x02, 0, 0, 0, 0, 0x01}
	SyntheticDestination = [6]byte{0x02, 0, 0, 0, 0, 0x02}
)

// etherTypeOther is the EtherType of a packet whose protocol has none: the
// first of the two that IEEE 802 sets aside for local experiments.
const etherTypeOther = 0x88b5

// EthernetHeader returns how many bytes of data (a packet of link type l) are
// its link header, and writes the Ethernet header that replaces them into
// header. For Ethernet, which keeps its own, replace is false. Of a packet that
// is cut inside its link header nothing is skipped, and it is not IP. The error
// names a link type that is not supported.
func (l LinkType) EthernetHeader(data []byte, header *[wire.EthernetLen]byte) (skip int, replace bool, err error) {
	src, etherType := SyntheticSource[:], uint16(0)
	switch l {
	case LinkEthernet:
		return 0, false, nil
	case LinkRaw, LinkRawBSD, LinkRawBSDI:
		// Neither 4 nor 6 is a malformed packet; as IPv4 it is seen as one.
		etherType = wire.EtherTypeIPv4
		if len(data) > 0 && data[0]>>4 == 6 {
			etherType = wire.EtherTypeIPv6
		}
	case LinkIPv4:
		etherType = wire.EtherTypeIPv4
	case LinkIPv6:
		etherType = wire.EtherTypeIPv6
	case LinkNull, LinkLoop:
		if skip = 4; len(data) >= skip {
			etherType = familyEtherType(binary.BigEndian.Uint32(data))
		}
	case LinkLinuxSLL:
		if skip = 16; len(data) >= skip {
			etherType = cookedEtherType(binary.BigEndian.Uint16(data[14:]), len(data)-skip)
			if binary.BigEndian.Uint16(data[4:]) == 6 {
				src = data[6:12]
			}
		}
	case LinkLinuxSLL2:
		if skip = 20; len(data) >= skip {
			etherType = cookedEtherType(binary.BigEndian.Uint16(data), len(data)-skip)
			if data[11] == 6 {
				src = data[12:18]
			}
		}
	default:
		return 0, false, fmt.Errorf("link %v is not supported", l)
	}
	copy(header[0:], SyntheticDestination[:])
	copy(header[6:], src)
	if len(data) < skip {
		skip, etherType = 0, etherTypeOther // the header itself was cut: nothing of it can be told
	}
	binary.BigEndian.PutUint16(header[12:], etherType)
	return skip, true, nil
}

// familyEtherType maps the address family of a loopback packet. Its byte order
// is the capturing host's, which need not be the file's: families are small
// numbers, so it shows. IPv6 has a number of its own on every system.
func familyEtherType(family uint32) uint16 {
	if family > 0xffff {
		family = family>>24 | family>>8&0xff00 // the low half, bytes swapped
	}
	switch family {
	case 2:
		return wire.EtherTypeIPv4
	case 10, 23, 24, 28, 30: // Linux, Windows, NetBSD and OpenBSD, FreeBSD, macOS
		return wire.EtherTypeIPv6
	}
	return etherTypeOther
}

// cookedEtherType maps the protocol of a Linux cooked packet. Below 0x600 they
// are Linux's own numbers for frames that have a length there (802.3).
func cookedEtherType(protocol uint16, payload int) uint16 {
	switch {
	case protocol >= 0x600:
		return protocol
	case protocol == 1, protocol == 4:
		return uint16(min(payload, 1500))
	}
	return etherTypeOther
}
