package tap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
)

// vlanWord is a filter that speaks of VLAN tags itself.
var vlanWord = regexp.MustCompile(`(^|[^[:alnum:]_.-])vlan([^[:alnum:]_.-]|$)`)

// Compile translates an expression in pcap filter syntax (pcap-filter(7)). The compiler is libpcap's, as tcpdump brings it. tagged
// is for NewFilter: an expression with the word vlan is taken at its word.
func Compile(ctx context.Context, expression string) (program []Instruction, tagged bool, err error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "tcpdump", "-ddd", "-y", "EN10MB", "--", expression)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, false, errors.New("compile filter: tcpdump is not installed here, and its compiler is needed: apt install tcpdump")
		}
		why := strings.TrimPrefix(strings.TrimSpace(stderr.String()), "tcpdump: ")
		if why == "" {
			why = err.Error()
		}
		return nil, false, fmt.Errorf("compile filter %q: %s; see pcap-filter(7)", expression, why)
	}
	program, err = readProgram(stdout.Bytes())
	if err != nil {
		return nil, false, fmt.Errorf("compile filter %q: %w", expression, err)
	}
	return program, vlanWord.MatchString(expression), nil
}

// readProgram reads what tcpdump -ddd prints: how many instructions there are, and a line for each.
func readProgram(text []byte) (program []Instruction, err error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	n := -1
	for lines.Scan() {
		if n < 0 {
			if _, err := fmt.Sscan(lines.Text(), &n); err != nil {
				return nil, fmt.Errorf("want a number of instructions, got %q", lines.Text())
			}
			continue
		}
		var i Instruction
		if _, err := fmt.Sscan(lines.Text(), &i.Op, &i.Jt, &i.Jf, &i.K); err != nil {
			return nil, fmt.Errorf("want four numbers, got %q", lines.Text())
		}
		program = append(program, i)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(program) != n {
		return nil, fmt.Errorf("want %d instructions, got %d", n, len(program))
	}
	return program, nil
}
