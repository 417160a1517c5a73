package configs

import (
	"io/fs"
	"testing"

	"penstock/internal/config"
	"penstock/stages"
)

// TestLoad loads every shipped configuration: no problem, and no warning
// either. The end-to-end tests run them.
func TestLoad(t *testing.T) {
	files, err := fs.Glob(FS, "*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		src, err := fs.ReadFile(FS, file)
		if err != nil {
			t.Fatal(err)
		}
		cfg, problems := config.Parse(file, src, stages.Builtin())
		for _, p := range problems {
			t.Error(p)
		}
		if cfg != nil {
			for _, w := range cfg.Warnings {
				t.Errorf("warning: %s", w)
			}
		}
	}
}
