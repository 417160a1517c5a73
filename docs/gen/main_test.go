package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"penstock/pipeline"
)

// TestPagesAreFresh: what is in docs is what the code says now.
func TestPagesAreFresh(t *testing.T) {
	pages, err := render("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) != 2 {
		t.Errorf("%d pages", len(pages))
	}
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil || string(got) != want {
			t.Errorf("docs/%s is stale (%v): run make docs", name, err)
		}
	}
	for _, r := range pipeline.Reasons() {
		if r.Help() == "" || r != pipeline.ReasonNone && !strings.Contains(pages["reasons.md"], "`"+r.String()+"`") {
			t.Errorf("reason %s is not explained", r)
		}
	}
	if _, err := xdpReasons("| `flow_known` | socket | yes |\n"); err == nil {
		t.Error("a reason without a row is not noticed")
	}
}
