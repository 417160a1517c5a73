package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// numbered writes a text once for each number.
func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.ReplaceAll(format, "#", fmt.Sprint(i)))
	}
	return b.String()
}

func TestTooMany(t *testing.T) {
	for want, src := range map[string]string{
		"f:129:1: want at most 32 [[port]] tables, got 40":                       numbered(40, "[[port]]\nname = \"p#\"\ninterface = \"e#\"\n\n"),
		"f:2055:1: want at most 1024 [[chain]] tables, got 1030":                 ports + numbered(1030, "[[chain]]\nname = \"c#\"\n"),
		"f:519:1: want at most 256 [[steer]] tables, got 300":                    ports + numbered(300, "[[steer]]\nto = \"drop\"\n"),
		"f:135:1: want at most 64 [[record]] tables, got 65":                     ports + numbered(65, "[[record]]\nto = \"file:/e#\"\n"),
		`f:137:1: chain "c": want at most 64 stages in a chain, got 70`:          ports + "[[chain]]\nname = \"c\"\n" + numbered(70, "[[chain.stage]]\nkind = \"acl\"\n"),
		"f: want a file of at most 1048576 bytes":                                strings.Repeat(" ", MaxSize+1),
		"f:1:36: want at most 32 levels of nesting and keys of at most 16 parts": "x=" + strings.Repeat("[", MaxSize-2),
	} {
		_, problems := Parse("f", []byte(src), testRegistry())
		if len(problems) != 1 || problems[0].String() != want {
			t.Errorf("got %d problems, the first %v; want %q", len(problems), problems[0], want)
		}
	}
}

// TestBoundedTime: no file takes long, whatever it holds.
// Each of these once took minutes, or would with a quadratic step somewhere.
func TestBoundedTime(t *testing.T) {
	const size = MaxSize / 4
	fill := func(head, text, tail string) string {
		return head + strings.Repeat(text, size/len(text)) + tail
	}
	chain := ports + "[[chain]]\nname = \"c\"\n"
	for name, src := range map[string]string{
		"tables":   fill("", "[[port]]\n", ""),
		"rules":    fill(chain, "[[steer]]\n", ""),
		"stages":   fill(chain, "[[chain.stage]]\n", ""),
		"array":    "x = [" + strings.Repeat("1,", size/2) + "]",
		"dots":     fill("", "a.", "a = 1"),
		"header":   fill("[", "a.", "a]"),
		"keys":     numbered(20000, "\"k #\" = 1\n"),
		"names":    ports + numbered(3000, "[[chain]]\nname = \"n#\"\n[[chain.stage]]\nkind = \"acx\"\n[[steer]]\nto = \"x#\"\n"),
		"prefixes": chain + "[[steer]]\nto = \"c\"\nsrc = [" + strings.Repeat("\"1.0.0.0/8\",", 10000) + "]\ndst = [" + strings.Repeat("\"1.0.0.0/8\",", 10000) + "]\n",
		"quotes":   fill("", "\"", ""),
		"escapes":  fill("x = \"", "\\\\", "\""),
		"lines":    fill("x = \"\"\"", "\\\n", "\"\"\""),
	} {
		start := time.Now()
		if _, problems := Parse("f", []byte(src), testRegistry()); len(problems) == 0 {
			t.Errorf("%s: no problems", name)
		}
		took := time.Since(start)
		t.Logf("%-10s %v", name, took)
		if took > 10*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}
