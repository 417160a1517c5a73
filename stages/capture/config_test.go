package capture

import (
	"fmt"
	"strings"
	"testing"
)

func TestProblems(t *testing.T) {
	for _, c := range []struct{ keys, want string }{
		{"", "dir: is missing: want the directory that the files go to"},
		{`dir = "x"` + "\nprefix = \"a/b\"\nfile_size = \"1KiB\"\nfiles = 0\nsnaplen = \"1MiB\"\nbuffer = \"1B\"\nmatch = [{ flags = \"syn\", proto = \"udp\" }]",
			"prefix: want the beginning|file_size: must be from 1MiB|files: must be from 1|snaplen: must be at most 256KiB|buffer: must be from 64KiB|match[0].proto: must be"},
		{`dir = "x"` + "\nsnaplen = 100", "snaplen: want a size"},
	} {
		_, err := parse(c.keys)
		for _, w := range strings.Split(c.want, "|") {
			if !strings.Contains(fmt.Sprint(err), w) {
				t.Errorf("%s\ngot  %v\nwant %s", c.keys, err, w)
			}
		}
	}
}
