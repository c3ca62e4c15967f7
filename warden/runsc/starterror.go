package runsc

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"bulkhead/fault"
)

// reportPrefix is where bulkhead-sandbox's error log has a report of bulkhead-init's, or of
// its own about a file: a word, an error number and a path (cmd/bulkhead-init/init.c).
const reportPrefix = "init: "

// StartError turns the error log of a start, or of an exec, of command into what
// the user reads. What a user cannot repair is Internal.
func StartError(log, command string) *fault.Error {
	m := message(log)
	cause := fmt.Errorf("%s", m)
	if r, ok := strings.CutPrefix(m, reportPrefix); ok {
		if f := reported(r, command, cause); f != nil {
			return f
		}
	}
	if strings.Contains(m, fmt.Sprintf("creating mount point %q", apiDir)) {
		return fault.Wrap(fault.Unprocessable, cause, "the image has a file %s; that is where the platform's API is, and it must be a directory or absent", apiDir)
	}
	if strings.Contains(m, "resource temporarily unavailable") && !strings.Contains(m, "fork/exec") {
		return fault.Wrap(fault.Unprocessable, cause, "the machine has used up its processes, the reserve for commands among them: raise bulkhead_limits.processes, or restart it")
	}
	if strings.Contains(m, "cannot allocate memory") && !strings.Contains(m, "fork/exec") {
		return fault.Wrap(fault.Unprocessable, cause, "the machine has no memory left for the command %q: raise guest.memory_mb", clip(command))
	}
	if f := (*fault.Error)(nil); strings.Contains(m, "fork/exec") && errors.As(fault.Clone(cause, "the sandbox's namespaces cannot be made"), &f) {
		return f
	}
	return fault.Wrap(fault.Internal, cause, "the sandbox did not start")
}

// reported words a report; nil when it is none. Whoever holds the sandbox may have written
// anything: it is shown to the users of this Machine only, and bounded.
func reported(report, command string, cause error) *fault.Error {
	word, rest, _ := strings.Cut(report, " ")
	number, path, ok := strings.Cut(rest, " ")
	n, err := strconv.Atoi(number)
	if err != nil || !ok {
		return nil
	}
	no, path := syscall.Errno(n), clip(path)
	command = clip(command)
	refuse := func(format string, args ...any) *fault.Error {
		return fault.Wrap(fault.Unprocessable, cause, format, args...)
	}
	switch word {
	case "command":
		return commandError(command, no, cause)
	case "interpreter":
		if strings.HasSuffix(path, "\r") {
			return refuse("the script %q needs the interpreter %q: its first line ends with a carriage return; save it with Unix line ends", command, path)
		}
		return missing(command, "the interpreter", path, no, cause)
	case "loader":
		return missing(command, "the program loader", path, no, cause)
	case "directory":
		if no == syscall.EACCES {
			return refuse("the user of the command %q may not enter the working directory %q", command, path)
		}
		return refuse("the working directory %q of the command %q does not exist in the image", path, command)
	case "systemd":
		return refuse("systemd cannot run in a machine: the sandbox gives it neither cgroups nor mounts; set the service's own program as the command")
	case "terminal":
		return refuse("init.tty: the machine has no terminal (%s: %v)", path, no)
	case "process":
		if no == syscall.EAGAIN {
			return refuse("the machine may have no more processes, so the command %q cannot be started: raise bulkhead_limits.processes", command)
		}
		return refuse("the command %q cannot be started: %v", command, no)
	case "file":
		return fileRefused(path, no, cause)
	}
	return nil
}

// commandError is for a command that is there or not, and misses nothing else.
func commandError(command string, no syscall.Errno, cause error) *fault.Error {
	switch no {
	case syscall.ENOENT, syscall.ENOTDIR:
		return fault.Wrap(fault.Unprocessable, cause, "the command %q does not exist in the image", command)
	case syscall.EACCES, syscall.EPERM, syscall.EISDIR:
		return fault.Wrap(fault.Unprocessable, cause, "the command %q is not an executable file in the image, or its user may not run it", command)
	case syscall.ENOMEM, syscall.EAGAIN:
		return fault.Wrap(fault.Unprocessable, cause, "the machine has no memory left for the command %q", command)
	case syscall.E2BIG:
		return fault.Wrap(fault.Unprocessable, cause, "the arguments and variables of the command %q are too long", command)
	}
	return fault.Wrap(fault.Unprocessable, cause, "the command %q cannot be executed: it is neither a script nor a program for this machine's architecture", command)
}

// missing is for a command that is there and needs another file.
func missing(command, what, path string, no syscall.Errno, cause error) *fault.Error {
	if no == syscall.EACCES {
		return fault.Wrap(fault.Unprocessable, cause, "the command %q needs %s %q, which its user may not run", command, what, path)
	}
	return fault.Wrap(fault.Unprocessable, cause, "the command %q needs %s %q, which is missing in the image", command, what, path)
}

// fileRefused is for a file of the config that the image has no place for.
func fileRefused(path string, no syscall.Errno, cause error) *fault.Error {
	why := no.Error()
	switch no {
	case syscall.ELOOP:
		why = "its path goes through too many links"
	case syscall.ENOTDIR:
		why = "a part of its path is a file in the image"
	case syscall.EISDIR:
		why = "it is a directory in the image"
	case syscall.EXDEV:
		why = "a link of the image leads to the platform's own files"
	case syscall.ENOSPC:
		why = "the disk is full"
	}
	return fault.Wrap(fault.Unprocessable, cause, "the file %q cannot be put into the machine: %s", path, why)
}
