package fault

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Trouble is what the operating system has too little of, or refuses.
type Trouble struct {
	Errno syscall.Errno
	Kind  Kind
	// Word is the Status of an Error about it: never rename one.
	Word string
	// Text says what it is, and what to do, as the end of a sentence.
	Text string
}

// The words of troubles.
const (
	DiskFull     = "disk_full"
	DiskQuota    = "disk_quota"
	DiskReadOnly = "disk_read_only"
	DiskError    = "disk_error"
	NoFiles      = "no_file_descriptors"
	NoMemory     = "no_memory"
	NoNamespaces = "no_namespaces"
	NoProcesses  = "no_processes"
	Forbidden    = "forbidden_by_host"
	NoFeature    = "no_kernel_feature"
)

// files is what a call about a file can run into.
var files = []Trouble{
	{syscall.ENOSPC, Full, DiskFull, "the disk is full, or has no inode left (ENOSPC); free some of it or make it larger, and it goes on by itself"},
	{syscall.EDQUOT, Full, DiskQuota, "the disk quota of Bulkhead's users is used up (EDQUOT); raise it, and it goes on by itself"},
	{syscall.EROFS, Unavailable, DiskReadOnly, "the file system is read-only (EROFS), which is what the kernel makes of one that has errors; read dmesg, repair it and mount it for writing"},
	{syscall.EIO, Unavailable, DiskError, "the disk reports an error (EIO); read dmesg, save what can be read and replace the disk"},
	{syscall.EMFILE, Unavailable, NoFiles, "the process has no file descriptor left (EMFILE); raise its limit: LimitNOFILE= of the service, ulimit -n of a shell"},
	{syscall.ENFILE, Unavailable, NoFiles, "the host has no file descriptor left for anybody (ENFILE); raise the sysctl fs.file-max, or end what holds them"},
	{syscall.ENOMEM, Unavailable, NoMemory, "the host is out of memory (ENOMEM); free some, add some, or run fewer machines"},
	{syscall.EACCES, Internal, Forbidden, "the owner or the mode of the file, or of a directory above it, does not allow it (EACCES); give it back to the user it belongs to"},
	{syscall.EPERM, Internal, Forbidden, "the host forbids it (EPERM): a security module, a container around Bulkhead, or an immutable file"},
	{syscall.ENOSYS, Internal, NoFeature, "this kernel does not have it (ENOSYS); run Linux 5.13 or newer"},
}

// clones is what making a process or a namespace can run into: ENOSPC is no disk here.
var clones = []Trouble{
	{syscall.ENOSPC, Unavailable, NoNamespaces, "the host has no namespace left (ENOSPC); raise the sysctls user.max_user_namespaces, user.max_net_namespaces, user.max_mnt_namespaces and user.max_pid_namespaces"},
	{syscall.EUSERS, Unavailable, NoNamespaces, "the host has no user namespace left (EUSERS); raise the sysctl user.max_user_namespaces"},
	{syscall.EAGAIN, Unavailable, NoProcesses, "the host has no process left (EAGAIN); raise the sysctls kernel.pid_max and kernel.threads-max, or the service's TasksMax="},
	{syscall.EINVAL, Internal, NoFeature, "this kernel has no namespaces of that kind (EINVAL); it needs CONFIG_USER_NS, CONFIG_NET_NS and CONFIG_PID_NS"},
	{syscall.EPERM, Internal, Forbidden, "the host forbids namespaces (EPERM); look at the sysctls kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, and at a container around Bulkhead"},
}

// System gives an error of the operating system about a file its kind, its word and
// its remedy. The format says what could not be done, and with which path. An error
// that says all this already is returned as it is; one that is not known here
// becomes Internal, with the cause for the log.
func System(err error, format string, args ...any) error {
	return system(err, files, format, args)
}

// Clone is System for making a process or a namespace, where the same numbers mean
// other things.
func Clone(err error, format string, args ...any) error {
	return system(err, append(clones[:len(clones):len(clones)], files...), format, args)
}

func system(err error, known []Trouble, format string, args []any) error {
	if err == nil {
		return nil
	}
	var have *Error
	if errors.As(err, &have) && have.Status != "" {
		return err
	}
	for _, t := range known {
		if t.is(err) {
			return Wrap(t.Kind, err, "%s: %s", fmt.Sprintf(format, args...), t.Text).WithStatus(t.Word)
		}
	}
	if have != nil {
		return err
	}
	return Wrap(Internal, err, format, args...)
}

// is also finds a number that somebody has made a text of: bbolt and etcd do.
func (t Trouble) is(err error) bool {
	return errors.Is(err, t.Errno) || strings.HasSuffix(err.Error(), t.Errno.Error())
}
