package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"penstock/internal/lab"
)

// TestPacketdrill has packetdrill play the server of connections that are
// terminated, packet by packet, while the client is this kernel and its socket calls.
// There is no Debian package of it; CONTRIBUTING.md says how it is built. PACKETDRILL is its path.
func TestPacketdrill(t *testing.T) {
	program := os.Getenv("PACKETDRILL")
	if program == "" {
		program = "packetdrill"
	}
	program, err := exec.LookPath(program)
	if err != nil {
		t.Skip("SKIPPED: no packetdrill: build it (CONTRIBUTING.md), and set PACKETDRILL to its path")
	}
	scripts, err := filepath.Glob("testdata/packetdrill/*.pkt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts, %v", err)
	}
	r := newRig(t, lab.InlineOptions{})
	// Its ends talk to each other past the chain.
	r.config("closed", "", strings.Replace(terminateChain, `proto = "tcp"`, `proto = "tcp"`+"\ndst = [\"192.0.2.0/24\"]", 1)+"  ack_delay = \"0s\"\n")
	a := r.start()
	server := netip.MustParseAddrPort(r.addr(false, 1)).Addr().String()
	client, err := r.Client.Dial("udp", r.addr(false, 9))
	if err != nil {
		t.Fatal(err)
	}
	from := netip.MustParseAddrPort(client.LocalAddr().String()).Addr().String()
	client.Close()
	for i, script := range scripts {
		script, err := filepath.Abs(script)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(script), ".pkt"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			port := fmt.Sprintf("--wire_server_port=%d", 8081+i)
			ends := []string{
				port, "--ip_version=ipv4", "--local_ip=" + from, "--remote_ip=192.0.2.1", "--gateway_ip=" + server, "--netmask_ip=255.255.255.0",
				// The client's kernel, two wires, and a stack in between: packets need not come at once.
				"--tolerance_usecs=100000",
			}
			log := &lockedBuffer{}
			listens := r.Server.Command(ctx, program, append([]string{"--wire_server", "--wire_server_dev=eth0"}, ends...)...)
			listens.Stdout, listens.Stderr = log, log
			// It would turn GRO off, and without that a veth takes nothing that XDP redirects.
			listens.Env = []string{"PATH=/nonexistent"}
			if err := listens.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cancel()
				_ = listens.Wait()
			}()
			r.eventually("packetdrill listens", func() error {
				c, err := r.Server.Dial("tcp", fmt.Sprintf("%s:%d", server, 8081+i))
				if err == nil {
					c.Close()
				}
				return err
			})
			plays := r.Client.Command(ctx, program, append(append([]string{"--wire_client", "--wire_client_dev=eth0", "--wire_server_ip=" + server}, ends...), script)...)
			if out, err := plays.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\nserver: %s", err, out, log)
			}
		})
	}
	a.stop()
}
