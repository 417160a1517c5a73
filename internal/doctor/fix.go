package doctor

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// fixTimeout bounds how long a mend may take.
const fixTimeout = 20 * time.Second

// Fix runs the mend of a finding that says it is safe. Words of a mend are
// separated by spaces; there is no shell between.
func Fix(f Finding) error {
	if !f.Safe {
		return fmt.Errorf("mend %s: it is not safe to run unasked: %s", f.Check, f.Mend)
	}
	words := strings.Fields(f.Mend)
	ctx, cancel := context.WithTimeout(context.Background(), fixTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %q: %w: %s", f.Mend, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}
