// Command bulkhead-unpack makes one sealed image from the layers of one container
// image. The worker's image store starts it for each image and is the only one who
// does: it reads frames on standard input, writes to descriptor 3, and takes
// neither arguments nor environment. Before it reads a byte of a layer it gives up
// the right to open files, to use networks and to start programs.
package main

import (
	"os"

	"bulkhead/image/unpack"
)

func main() { os.Exit(unpack.Main()) }
