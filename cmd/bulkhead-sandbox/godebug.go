// The Go runtime would follow the cgroup's quota, through files of the host's that it
// holds open into the sandbox. gVisor sets the number of its threads itself.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

package main
