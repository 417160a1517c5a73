package stages

import (
	"os"
	"slices"
	"testing"
)

// TestEveryFolderIsListed keeps a stage from being written and forgotten.
func TestEveryFolderIsListed(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var folders, kinds []string
	for _, e := range entries {
		if e.IsDir() {
			folders = append(folders, e.Name())
		}
	}
	for _, k := range Builtin().Kinds() {
		kinds = append(kinds, k.Name)
		if k.Summary == "" || k.README == "" {
			t.Errorf("stage %s has no summary or no manual", k.Name)
		}
	}
	if !slices.Equal(folders, kinds) {
		t.Errorf("folders %v, kinds %v", folders, kinds)
	}
}
