package match

import (
	"testing"

	"penstock/pipeline"
)

func TestFromNamesAPort(t *testing.T) {
	for _, row := range []struct {
		ports []string
		from  string
		bad   bool
	}{{nil, "lan", false}, {[]string{"lan", "wan"}, "lan", false}, {[]string{"lan", "wan"}, "lam", true}, {[]string{"lan"}, "", false}} {
		issues := pipeline.Issues{Ports: row.ports}
		(&Fields{From: row.from}).Validate("rules[0]", &issues)
		if (len(issues.List) > 0) != row.bad || row.bad && issues.List[0].Path != "rules[0].from" {
			t.Errorf("from %q of %v: %+v", row.from, row.ports, issues.List)
		}
	}
}
