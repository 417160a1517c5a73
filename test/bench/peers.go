package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// proxyPort is where proxies listen: none that a client connects from, or a proxy
// could not do so in its place.
const proxyPort = 999

// startRedirect attaches a program of five instructions to both interfaces: what
// comes in by one goes out by the other.
func startRedirect(_ context.Context, _ *bed, s *site) (r *running, err error) {
	r = &running{alive: func() error { return nil }}
	defer func() {
		if err != nil {
			_ = r.stop()
		}
	}()
	indices := map[string]int{}
	for _, name := range []string{s.lanIf, s.wanIf} {
		if indices[name], err = s.gateway.LinkIndex(name); err != nil {
			return r, err
		}
	}
	for _, way := range [][2]string{{s.lanIf, s.wanIf}, {s.wanIf, s.lanIf}} {
		err := s.gateway.Do(func() error {
			target, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.DevMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				return fmt.Errorf("create device map: %w", err)
			}
			defer target.Close() // the program keeps it
			if err := target.Put(uint32(0), uint32(indices[way[1]])); err != nil {
				return fmt.Errorf("set device map: %w", err)
			}
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Apache-2.0", Instructions: asm.Instructions{
				asm.LoadMapPtr(asm.R1, target.FD()),
				asm.Mov.Imm(asm.R2, 0),
				asm.Mov.Imm(asm.R3, 0),
				asm.FnRedirectMap.Call(),
				asm.Return(),
			}})
			if err != nil {
				return fmt.Errorf("load redirect program: %w", err)
			}
			defer prog.Close() // the link keeps it
			l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: indices[way[0]], Flags: link.XDPDriverMode})
			if err != nil {
				return fmt.Errorf("attach redirect program to %s: %w", way[0], err)
			}
			r.undo = append(r.undo, l.Close)
			return nil
		})
		if err != nil {
			return r, err
		}
	}
	r.seen = func() (n uint64, err error) {
		for name := range indices {
			st, e := s.gateway.LinkStats(name)
			n, err = n+st.Driver["rx_queue_0_xdp_redirect"], errors.Join(err, e)
		}
		return n, err
	}
	return r, nil
}

// divert is what the kernel's documentation says of TPROXY: new connections to
// the servers' ports, and packets of sockets that are transparent, are for this
// host. New connections come first, or one on the ports of an earlier one would
// go to what is left of that, in TIME_WAIT, where no listener is found for it.
// Nothing is forwarded: what arrives has gone through the proxy.
const divert = `table ip bench {
  chain prerouting {
    type filter hook prerouting priority mangle; policy accept;
    iifname "%s" tcp dport %d-%d tcp flags & (fin | syn | rst | ack) == syn tproxy to :%d meta mark set 1 accept
    meta l4proto tcp socket transparent 1 meta mark set 1 accept
  }
}
`

// intercept sets up TPROXY in the gateway, and undoes it when r stops.
func intercept(ctx context.Context, b *bed, s *site, r *running) error {
	rules, err := writeFile(b.dir, "divert.nft", fmt.Sprintf(divert, s.lanIf, httpPort, playPort, proxyPort))
	if err != nil {
		return err
	}
	for _, step := range []struct{ do, undo string }{
		{"nft -f " + rules, "nft delete table ip bench"},
		{"ip rule add fwmark 1 lookup 100", "ip rule del fwmark 1 lookup 100"},
		{"ip route add local 0.0.0.0/0 dev lo table 100", "ip route flush table 100"},
	} {
		if err := run1(ctx, s, step.do); err != nil {
			return err
		}
		// Undone also after an interrupt, for the next gateway's sake.
		r.undo = append(r.undo, func() error { return run1(context.WithoutCancel(ctx), s, step.undo) })
	}
	return nil
}

// run1 runs one command line, words parted by blanks, in the gateway.
func run1(ctx context.Context, s *site, line string) error {
	words := strings.Fields(line)
	_, err := output(ctx, s.gateway, nil, words[0], words[1:]...)
	return err
}

// startProxy sets up TPROXY and starts a proxy that listens on proxyPort.
func startProxy(ctx context.Context, b *bed, s *site, begin func() (*process, error)) (r *running, err error) {
	r = &running{}
	defer func() {
		if err != nil {
			_ = r.stop()
		}
	}()
	if err := intercept(ctx, b, s, r); err != nil {
		return r, err
	}
	p, err := begin()
	if err != nil {
		return r, err
	}
	r.add(p)
	return r, nil
}

const haproxyConf = `global
  nbthread 1
  maxconn 9800
  maxpipes 100
  log stdout format raw local0
defaults
  mode %s
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  %s
frontend in
  bind :%d transparent
  %s
  default_backend out
backend out
  source 0.0.0.0 usesrc client
  server any 0.0.0.0:0
`

func startHAProxy(mode string) func(context.Context, *bed, *site) (*running, error) {
	options := "option splice-auto"
	if mode == "http" {
		options = noSharing
	}
	return func(ctx context.Context, b *bed, s *site) (*running, error) {
		return startHAProxyWith(ctx, b, s, mode, options, "", nil)
	}
}

// haproxySNI waits for a ClientHello and refuses it by its server name; what goes
// to other ports is not looked at.
const haproxySNI = `acl tls dst_port %d %d
  tcp-request inspect-delay 5s
  tcp-request content accept if !tls
  tcp-request content reject if { req.ssl_sni -i -m end .ads.example }
  tcp-request content accept if { req.ssl_hello_type 1 }
  tcp-request content reject`

func startHAProxySNI(ctx context.Context, b *bed, s *site) (*running, error) {
	return startHAProxyWith(ctx, b, s, "tcp", "option splice-auto", fmt.Sprintf(haproxySNI, tlsPort, playPort), nil)
}

// noSharing keeps HAProxy from using a connection to a server for another client:
// it has this one's address.
const noSharing = "http-reuse never"

// startHAProxyWith starts HAProxy with further lines for its frontend. Its log, if
// those ask for one, goes to a file of that name; "": it is thrown away.
func startHAProxyWith(ctx context.Context, b *bed, s *site, mode, options, frontend string, log *os.File) (*running, error) {
	conf, err := writeFile(b.dir, "haproxy.cfg", fmt.Sprintf(haproxyConf, mode, options, proxyPort, frontend))
	if err != nil {
		return nil, err
	}
	return startProxy(ctx, b, s, func() (*process, error) {
		p, err := prepare(ctx, s.gateway, gatewayCPU, nil, "haproxy", "-db", "-f", conf)
		if err != nil {
			return nil, err
		}
		if log != nil {
			p.Stdout = log
		} else {
			p.Stdout = p.log
		}
		return p, p.Start()
	})
}

const nginxStreamConf = `load_module %[1]s; daemon off; master_process off; worker_processes 1; user root;
error_log stderr warn; pid %[2]s/nginx-stream.pid;
events { worker_connections 8192; }
stream {
  server {
    listen %[3]d;
    proxy_bind $remote_addr transparent;
    proxy_pass $server_addr:$server_port;
  }
}
`

// streamModule is where Debian and others have nginx's stream module.
func streamModule() (string, error) {
	for _, path := range []string{"/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("find nginx's stream module: it is not installed (Debian: libnginx-mod-stream)")
}

// startNginx runs nginx as a transparent proxy. It can connect from a foreign
// address, but has no option to accept for foreign ones, so its listener is
// given that from outside.
func startNginx(ctx context.Context, b *bed, s *site) (*running, error) {
	module, err := streamModule()
	if err != nil {
		return nil, err
	}
	conf, err := writeFile(b.dir, "stream.conf", fmt.Sprintf(nginxStreamConf, module, b.dir, proxyPort))
	if err != nil {
		return nil, err
	}
	return startProxy(ctx, b, s, func() (*process, error) {
		p, err := start(ctx, s.gateway, gatewayCPU, nil, "nginx", "-c", conf, "-p", b.dir)
		if err != nil {
			return nil, err
		}
		err = eventually(ctx, func() error { return makeListenerTransparent(p.Process.Pid) })
		if err != nil {
			return nil, errors.Join(err, p.alive(), p.stop())
		}
		return p, nil
	})
}

// makeListenerTransparent sets IP_TRANSPARENT on a listening TCP socket of
// another process.
func makeListenerTransparent(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if domain == unix.AF_INET && listens == 1 {
			err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			unix.Close(fd)
			return err
		}
		unix.Close(fd)
	}
	return fmt.Errorf("process %d does not listen", pid)
}

func startGoProxy(ctx context.Context, b *bed, s *site) (*running, error) {
	return startProxy(ctx, b, s, func() (*process, error) {
		return startSelf(ctx, s.gateway, gatewayCPU, []string{"GOMAXPROCS=1"}, "proxy", fmt.Sprintf(":%d", proxyPort))
	})
}

func startForwarding(_ context.Context, _ *bed, s *site) (*running, error) {
	if err := s.gateway.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return nil, err
	}
	return &running{
		alive: func() error { return nil },
		undo:  []func() error{func() error { return s.gateway.Sysctl("net/ipv4/ip_forward", "0") }},
	}, nil
}
