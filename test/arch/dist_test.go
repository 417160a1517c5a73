package arch

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestInstalled: what the documents say of installed files is there.
func TestInstalled(t *testing.T) {
	root := t.TempDir()
	cmd := exec.Command("make", "install-data", "DESTDIR="+root, "PREFIX=/usr")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make install-data: %v: %s", err, out)
	}
	path := regexp.MustCompile("/(?:usr|etc)/[A-Za-z0-9_./@*-]*penstock[A-Za-z0-9_./@*-]*")
	n := 0
	for _, page := range []string{"install.md", "observe.md"} {
		text, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range path.FindAllString(string(text), -1) {
			if p == "/usr/bin/penstock" || strings.HasPrefix(p, "/etc/penstock/edge.toml") || strings.Contains(p, "NAME") {
				continue // built by another target; made by who reads
			}
			n++
			if found, err := filepath.Glob(root + p); err != nil || len(found) == 0 {
				t.Errorf("docs/%s: %s is not installed (%v)", page, p, err)
			}
		}
	}
	if n < 8 {
		t.Errorf("%d paths found in the documents", n)
	}
}

// TestUnit: systemd understands the unit file, and it grants the capabilities that
// the documents name.
func TestUnit(t *testing.T) {
	text, err := os.ReadFile("../../dist/penstock@.service")
	if err != nil {
		t.Fatal(err)
	}
	const caps = "CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_PERFMON CAP_IPC_LOCK"
	for _, want := range []string{"Type=notify\n", "AmbientCapabilities=" + caps + "\n", "CapabilityBoundingSet=" + caps + "\n", "\nUser=penstock\n", "NoNewPrivileges=yes\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the unit has no %q", want)
		}
	}
	page, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range strings.Fields(caps) {
		if !strings.Contains(string(page), c) {
			t.Errorf("docs/install.md does not say what %s is for", c)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED, NOT PASSED: systemd-analyze is not installed")
	}
	// An instance, and programs that exist.
	dir := t.TempDir()
	unit := filepath.Join(dir, "penstock@edge.service")
	here := strings.NewReplacer("/usr/lib/penstock/prepare", "/bin/true", "/usr/bin/penstock", "/bin/true").Replace(string(text))
	if err := os.WriteFile(unit, []byte(here), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || strings.Contains(string(out), "penstock@edge") {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
}
