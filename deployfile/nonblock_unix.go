//go:build unix

package deployfile

import "syscall"

// openNonblock keeps a pipe in a repository from holding up whoever deploys it.
const openNonblock = syscall.O_NONBLOCK
