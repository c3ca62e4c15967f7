// Command bulkhead is the command line of Bulkhead: see package cli and docs/cli.md.
package main

import (
	"fmt"
	"os"

	"bulkhead/cli"
	"bulkhead/coredump"
)

func main() {
	// Tokens, and values of secrets on their way, are in its memory.
	if err := coredump.Forbid(); err != nil {
		fmt.Fprintln(os.Stderr, "bulkhead:", err)
	}
	os.Exit(cli.Main())
}
