package machine

import (
	"strconv"
	"strings"
	"time"

	"bulkhead/fault"
)

// Numbers of stopping.
const (
	DefaultStopSignal  = 2 // SIGINT, as on Fly
	DefaultStopTimeout = 5 * time.Second
	MaxStopTimeout     = 5 * time.Minute
)

// signals are the names of Linux's signals on every processor that Bulkhead runs on.
var signals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10,
	"SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CONT": 18, "STOP": 19,
	"TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28,
	"IO": 29, "PWR": 30, "SYS": 31,
}

const rtMin, rtMax = 34, 64

// ParseSignal reads a signal as people and images write it: "SIGTERM", "TERM",
// "term", "15", "SIGRTMIN+3".
func ParseSignal(s string) (int, error) {
	bad := fault.New(fault.Invalid, "signal %q is not known; use a name such as SIGTERM or a number from 1 to 64", fault.Clip(s))
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > rtMax {
			return 0, bad
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signals[name]; ok {
		return n, nil
	}
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		if rest == "" {
			return rtMin, nil
		}
		if n, err := strconv.Atoi(rest); err == nil && rest[0] == '+' && n >= 0 && rtMin+n <= rtMax {
			return rtMin + n, nil
		}
	}
	return 0, bad
}

// Stop returns the signal and the timeout with which a Machine of this config is
// stopped; image is what the image says (OCI StopSignal), which counts when the
// config says nothing, and may be empty or wrong.
func (c *Config) Stop(image string) (signal int, timeout time.Duration) {
	signal, timeout = DefaultStopSignal, DefaultStopTimeout
	if n, err := ParseSignal(image); image != "" && err == nil {
		signal = n
	}
	if c.StopConfig == nil {
		return signal, timeout
	}
	if n, err := ParseSignal(c.StopConfig.Signal); c.StopConfig.Signal != "" && err == nil {
		signal = n
	}
	if t := c.StopConfig.Timeout; t != nil {
		timeout = min(max(time.Duration(*t), 0), MaxStopTimeout)
	}
	return signal, timeout
}
