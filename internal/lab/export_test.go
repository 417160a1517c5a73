package lab

import "testing"

// WithoutIPv6 makes this package act, until the test ends, as on a kernel without IPv6.
func WithoutIPv6(t *testing.T) {
	was := ipv6Dir
	ipv6Dir = t.TempDir() + "/none"
	t.Cleanup(func() { ipv6Dir = was })
}
