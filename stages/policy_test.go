package stages

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"penstock/internal/config"
)

// TestPolicyPage loads the examples of docs/policy.md, and compiles each rule of
// its table of expressions.
func TestPolicyPage(t *testing.T) {
	text, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```toml\n(.*?)^```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 2 {
		t.Fatalf("%d examples", len(blocks))
	}
	const ports = "[[port]]\nname = \"lan\"\ninterface = \"eth1\"\n[[port]]\nname = \"wan\"\ninterface = \"eth2\"\n"
	load := func(name, src string) {
		t.Helper()
		cfg, problems := config.Parse(name, []byte(ports+src), Builtin())
		for _, p := range problems {
			t.Errorf("%s: %v", name, p)
		}
		if cfg == nil {
			return
		}
		var b strings.Builder
		cfg.Explain(&b)
		if !strings.Contains(b.String(), "(cost at most ") {
			t.Errorf("%s: rules are not explained: %s", name, b.String())
		}
	}
	for _, b := range blocks {
		load("example", b[1])
	}
	_, table, _ := strings.Cut(string(text), "## Expressions")
	table, _, _ = strings.Cut(table, "\nThe rest")
	n := 0
	for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(table, -1) {
		expr := strings.ReplaceAll(m[1], `\|`, "|")
		kind := "tls"
		switch {
		case expr[0] == '.' || strings.HasPrefix(expr, "a ") || expr == "!a":
			continue // a part
		case strings.Contains(expr, "http."):
			kind = "http"
		}
		n++
		load(expr, "[set.office]\nprefixes = [\"10.0.0.0/8\"]\n[[chain]]\nname = \"c\"\n[[chain.stage]]\nkind = \"tcp\"\n[[chain.stage]]\nkind = \""+kind+"\"\nrules = [{ action = \"deny\", if = '"+expr+"' }]\n")
	}
	if n < 12 {
		t.Errorf("%d expressions", n)
	}
}
