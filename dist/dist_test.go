// Package dist holds what is installed beside the binary: the dashboard for
// Grafana and the alerts for Prometheus.
//
// Its one trap: nothing but these tests knows that a query names a metric which
// is gone.
package dist

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"penstock/internal/control"
	"penstock/stages"
)

// known are the names of all series, of histograms the three that they have.
func known() map[string][]string {
	m := map[string][]string{"up": nil, "process_cpu_seconds_total": nil, "process_resident_memory_bytes": nil}
	histogram := func(name string, labels []string) {
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			m[name+suffix] = labels
		}
	}
	for _, d := range control.Metrics() {
		if d.Kind == "histogram" {
			histogram(d.Name, d.Labels)
		} else {
			m[d.Name] = d.Labels
		}
	}
	// Those of stages are in their manuals.
	for _, k := range stages.Builtin().Kinds() {
		for _, name := range regexp.MustCompile("`((?:gen_ai|penstock_stage)_[a-z_]+)`").FindAllStringSubmatch(k.README, -1) {
			if _, ok := m[name[1]]; !ok {
				histogram(name[1], []string{"chain", "stage", "index"})
			}
		}
	}
	return m
}

var (
	seriesName = regexp.MustCompile(`\b(?:penstock|gen_ai|process|go)_[a-z0-9_]+\b`)
	grouping   = regexp.MustCompile(`\bby \(([^)]*)\)`)
	matcher    = regexp.MustCompile(`\b([a-z_]+)(?:=~|!~|!=|=)"`)
	legend     = regexp.MustCompile(`{{\s*(?:\$labels\.)?([a-z_]+)\s*}}`)
)

// check checks the names in a query, and returns how many series it has.
func check(t *testing.T, what, query string) int {
	t.Helper()
	all := known()
	labels := []string{"instance", "job", "le"}
	names := seriesName.FindAllString(grouping.ReplaceAllString(query, ""), -1)
	n := 0
	for _, name := range names {
		if strings.HasPrefix(name, "gen_ai_request_model") || strings.HasPrefix(name, "gen_ai_token_type") {
			continue
		}
		n++
		l, ok := all[name]
		if !ok {
			t.Errorf("%s: there is no metric %s: %s", what, name, query)
		}
		labels = append(labels, l...)
		if strings.HasPrefix(name, "gen_ai_") {
			labels = append(labels, "gen_ai_request_model", "gen_ai_token_type")
		}
	}
	var used []string
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		used = append(used, strings.Split(g[1], ", ")...)
	}
	for _, g := range matcher.FindAllStringSubmatch(query, -1) {
		used = append(used, g[1])
	}
	for _, l := range used {
		if !slices.Contains(labels, l) {
			t.Errorf("%s: no metric of the query has the label %s: %s", what, l, query)
		}
	}
	return n
}

// TestDashboard: every query asks for what there is.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("grafana/penstock.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	ids, queries := map[int]bool{}, 0
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q: its number is taken, or it does not fit", p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			queries += check(t, p.Title, q.Expr)
			for _, l := range legend.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !strings.Contains(q.Expr, l[1]) && !strings.Contains(q.Expr, "penstock_") {
					t.Errorf("panel %q: the legend wants the label %s", p.Title, l[1])
				}
			}
		}
	}
	if queries < 20 {
		t.Errorf("%d series in all queries", queries)
	}
}

// TestAlerts: rules ask for what there is, and do what they say.
func TestAlerts(t *testing.T) {
	b, err := os.ReadFile("prometheus/penstock.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules := 0
	for _, m := range regexp.MustCompile(`(?m)^ *expr: (.*)$`).FindAllStringSubmatch(string(b), -1) {
		check(t, "alert", m[1])
		rules++
	}
	if rules < 10 {
		t.Errorf("%d rules", rules)
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("REQUIRE_PRIV") == "1" {
			t.Fatalf("%v; test/packages.sh installs it", err)
		}
		t.Skipf("PROMTOOL IS MISSING: rules are not checked by Prometheus itself: %v; test/packages.sh installs it", err)
	}
	for _, args := range [][]string{{"check", "rules", "penstock.rules.yml"}, {"test", "rules", "penstock.test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
