package http

import (
	"os"
	"strings"
	"testing"
)

// TestVariables: docs/policy.md has the variables of rules as they are.
func TestVariables(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	c := defaults()
	for _, v := range ruleVars(&c) {
		row := "| `" + v.Name + "` | " + v.Type() + " | " + v.Help + " |"
		if !strings.Contains(string(text), row) {
			t.Errorf("want the row %s", row)
		}
	}
}
