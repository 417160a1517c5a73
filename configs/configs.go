// Package configs holds the configurations that Penstock ships. They are files
// to copy from; the demo runs one of them as it is, and the tests load and run
// them all.
//
// Its one trap: they are embedded when the binary is built. A change to a file
// reaches `penstock demo` with the next build.
package configs

import "embed"

// FS holds the configurations, by file name.
//
//go:embed *.toml
var FS embed.FS
