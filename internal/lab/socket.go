package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// dialTimeout bounds Dial; DialContext obeys its context.
const dialTimeout = 10 * time.Second

// Dial connects from inside the namespace. network is tcp or udp, address an IP
// literal with a port. The connection may be used and closed anywhere.
func (n *NS) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	return n.DialFrom(ctx, network, "", address)
}

// DialContext is Dial bounded by ctx, in the form http.Transport wants.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.DialFrom(ctx, network, "", address)
}

// DialFrom is Dial from a local "address:port" (port 0: any); "" is any address.
// Each dial holds one OS thread until it is done.
func (n *NS) DialFrom(ctx context.Context, network, local, address string) (net.Conn, error) {
	conn, err := n.dialFrom(ctx, network, local, address)
	if err != nil {
		return nil, fmt.Errorf("dial %s %s from %s: %w", network, address, n.name, err)
	}
	return conn, nil
}

func (n *NS) dialFrom(ctx context.Context, network, local, address string) (net.Conn, error) {
	// A host name would be resolved outside the namespace, on another thread.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, err
	}
	var d net.Dialer
	d.SetMultipathTCP(false)
	if local != "" {
		ap, err := netip.ParseAddrPort(local)
		if err != nil {
			return nil, err
		}
		if network == "udp" || network == "udp4" || network == "udp6" {
			d.LocalAddr = net.UDPAddrFromAddrPort(ap)
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(ap)
		}
	}
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen opens a TCP listener inside the namespace; address as for net.Listen, with
// an IP literal or no host. The listener may be used and closed anywhere.
func (n *NS) Listen(network, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // plain TCP on the wire
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = lc.Listen(context.Background(), network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", n.name, err)
	}
	return ln, nil
}

// ListenPacket opens a UDP socket inside the namespace, as Listen does for TCP.
func (n *NS) ListenPacket(network, address string) (net.PacketConn, error) {
	var pc net.PacketConn
	err := n.Do(func() (err error) {
		pc, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", n.name, err)
	}
	return pc, nil
}
