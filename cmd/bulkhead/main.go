// Command bulkhead is the command line of Bulkhead: see package cli and docs/cli.md.
package main

import (
	"os"

	"bulkhead/cli"
)

func main() { os.Exit(cli.Main()) }
