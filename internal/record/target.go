package record

import (
	"fmt"
	"strings"
)

// sunPath is the longest path of a Unix socket (unix(7): sun_path has 108
// bytes with the final zero).
const sunPath = 107

// CheckTarget says what is wrong with the To of a Spec, without opening it.
func CheckTarget(to string) error {
	_, _, err := splitTarget(to)
	return err
}

// splitTarget splits "file:PATH" and "unix:PATH"; "stdout" has no path.
func splitTarget(to string) (scheme, path string, err error) {
	scheme, path, hasPath := strings.Cut(to, ":")
	switch {
	case to == "stdout":
		return to, "", nil
	case !hasPath || scheme != "file" && scheme != "unix":
		return "", "", fmt.Errorf(`want "file:PATH", "unix:PATH" or "stdout", got %q`, to)
	case path == "" || strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/"):
		return "", "", fmt.Errorf(`want a path behind "%s:", got %q`, scheme, path)
	case scheme == "unix" && len(path) > sunPath:
		return "", "", fmt.Errorf("want the path of a socket, at most %d bytes, got %d", sunPath, len(path))
	}
	return scheme, path, nil
}
