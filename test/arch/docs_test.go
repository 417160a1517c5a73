package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// anchors are the places in a page that a link can name, as they are made of its
// headings.
func anchors(page string) (list []string) {
	code := false
	for line := range strings.Lines(page) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
		}
		title := strings.TrimLeft(line, "#")
		if code || title == line || !strings.HasPrefix(title, " ") {
			continue
		}
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 127:
				return r
			}
			return -1
		}, strings.ToLower(strings.TrimSpace(title)))
		list = append(list, slug)
	}
	return list
}

// TestLinks: what the documents refer to exists, files and places in them.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:\s]*)(?:#([^)]*))?\)`)
	links := 0
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".md") {
			return err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			links++
			to := file
			if m[1] != "" {
				to = filepath.Join(filepath.Dir(file), m[1])
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s refers to %s, which does not exist", strings.TrimPrefix(file, "../../"), m[1])
				continue
			}
			if m[2] == "" || !strings.HasSuffix(to, ".md") {
				continue
			}
			page, err := os.ReadFile(to)
			if err != nil {
				return err
			}
			if !slices.Contains(anchors(string(page)), m[2]) {
				t.Errorf("%s refers to #%s of %s, which has %v", strings.TrimPrefix(file, "../../"), m[2], strings.TrimPrefix(to, "../../"), anchors(string(page)))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if links < 100 {
		t.Errorf("%d links", links)
	}
}

// TestIndex: every page is in the index.
func TestIndex(t *testing.T) {
	index, err := os.ReadFile("../../docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if name := filepath.Base(p); name != "README.md" && !strings.Contains(string(index), "]("+name+")") {
			t.Errorf("docs/README.md does not say when to read %s", name)
		}
	}
}

// TestNamesInSymptoms: the reasons, counters and keys that the pages for people in
// trouble name exist: another page, one that is made from the code or stands
// beside it, has them too.
func TestNamesInSymptoms(t *testing.T) {
	known := ""
	for _, pattern := range []string{"../../docs/metrics.md", "../../docs/reasons.md", "../../docs/doctor.md", "../../stages/*/README.md", "../../dist/man/*", "../../internal/control/openapi.json"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			known += strings.ReplaceAll(string(b), `\-`, "-")
		}
	}
	name := regexp.MustCompile("`([a-z]+(?:_[a-z0-9]+)+)`")
	for _, page := range []string{"troubleshooting.md", "sizing.md", "security.md"} {
		b, err := os.ReadFile(filepath.Join("../../docs", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(b), -1) {
			if !regexp.MustCompile(`\b` + m[1] + `\b`).MatchString(known) {
				t.Errorf("docs/%s names %s, which is nowhere else", page, m[1])
			}
		}
	}
}
