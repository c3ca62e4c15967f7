// Package coredump keeps what a process has in memory out of core dumps: keys, tokens
// and secrets would otherwise lie on a disk when it crashes.
//
// Two things forbid it, and each is enough, for a file and for a program that dumps are
// handed to (kernel.core_pattern with "|"): that the process is not dumpable, which an
// exec undoes, and a limit of Limit, which an exec keeps. For a socket that they are sent
// to ("@", Linux 6.16) the kernel asks no limit at all: there only the first forbids it. A limit of 0 forbids files
// only: the kernel asks no limit before it hands a dump to a program, but refuses where
// it is exactly 1, the limit that its own such programs run with (core(5),
// fs/coredump.c).
package coredump

// Limit is the RLIMIT_CORE, soft and hard, with which the kernel writes no dump to a
// file or a program: too small for the one, and the value that refuses the other.
const Limit = 1
