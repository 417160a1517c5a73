package doctor

import (
	"encoding/binary"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// RSS is how a NIC spreads packets over its queues.
type RSS struct {
	Key      []byte
	Table    []uint32 // queue by hash
	Symmetry bool     // the NIC makes its hash symmetric itself (input_xfrm)
}

// Attributes of ETHTOOL_MSG_RSS_GET (linux/ethtool_netlink.h).
const (
	rssHeader    = 1
	rssIndir     = 4
	rssKey       = 5
	rssInputXfrm = 6

	headerDevIndex = 1
	genlVersion    = 1

	nlaTypeMask = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
)

// readRSS asks over ethtool's netlink family; nil if nothing is told.
func readRSS(ifindex int) *RSS {
	family, err := netlink.GenlFamilyGet("ethtool")
	if err != nil {
		return nil
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	req.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_RSS_GET, Version: genlVersion})
	header := nl.NewRtAttr(rssHeader|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(headerDevIndex, nl.Uint32Attr(uint32(ifindex)))
	req.AddData(header)
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(answers) == 0 || len(answers[0]) < nl.SizeofGenlmsg {
		return nil
	}
	return parseRSS(answers[0][nl.SizeofGenlmsg:])
}

func parseRSS(b []byte) *RSS {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	r := &RSS{}
	for _, a := range attrs {
		switch a.Attr.Type & nlaTypeMask {
		case rssIndir:
			for v := a.Value; len(v) >= 4; v = v[4:] {
				r.Table = append(r.Table, binary.NativeEndian.Uint32(v))
			}
		case rssKey:
			r.Key = slices.Clone(a.Value)
		case rssInputXfrm:
			r.Symmetry = len(a.Value) >= 4 && binary.NativeEndian.Uint32(a.Value) != 0
		}
	}
	return r
}

// Symmetric says whether both directions of a flow have one hash. With Toeplitz
// that is so if the key repeats every 16 bits: addresses and ports can then be
// swapped.
func (r *RSS) Symmetric() bool {
	if r.Symmetry {
		return true
	}
	if len(r.Key) < 40 {
		return false
	}
	for i := 2; i < len(r.Key); i++ {
		if r.Key[i] != r.Key[i-2] {
			return false
		}
	}
	return true
}

// Queues lists those that the table names, ascending.
func (r *RSS) Queues() []int {
	var q []int
	for _, n := range r.Table {
		q = append(q, int(n))
	}
	slices.Sort(q)
	return slices.Compact(q)
}
