package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"bulkhead/doctor"
	"bulkhead/doctor/posture"
	"bulkhead/privnet"
	"bulkhead/role"
)

// Patient describes the platform of a configuration to the doctor: as it runs, or, if
// it does not run, as it lies there. configFile is what the configuration was read from.
func Patient(c Config, configFile string) (doctor.Platform, error) {
	if os.Geteuid() != 0 {
		return doctor.Platform{}, errors.New("bulkheadd doctor must run as root")
	}
	p := doctor.Platform{
		DataDir: c.DataDir, LibDir: c.LibDir, Config: configFile,
		Probe: func(ctx context.Context) error { return preflight(ctx, hostProbes) },
	}
	p.Nameservers, _ = privnet.ParseNameservers(c.Nameservers) // checked when the configuration was read
	st, err := readState(c.DataDir)
	if err != nil {
		return p, err
	}
	p.RunDir, p.Domain = st.RunDir, st.Domain
	if !holdsLock(st.PID, c.DataDir) {
		return p, nil
	}
	p.Supervisor = st.PID
	p.Posture = newAdmin(socketPath(st.RunDir, role.SocketAdmin)).posture
	p.HTTPAddr, p.HTTPSAddr, p.ClusterAddr = st.HTTPAddr, st.HTTPSAddr, st.ClusterAddr
	return p, nil
}

// posture asks the controller what its operator's choices come to.
func (a *admin) posture(ctx context.Context) (posture.Posture, error) {
	var p posture.Posture
	b, err := a.call(ctx, http.MethodGet, "/posture")
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	return p, err
}

// holdsLock reports whether a process has the lock file of a data directory open: the
// number in the state may be another process's by now.
func holdsLock(pid int, dataDir string) bool {
	want, err := os.Stat(filepath.Join(dataDir, lockFile))
	if pid <= 0 || err != nil {
		return false
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if got, err := os.Stat(fd); err == nil && os.SameFile(want, got) {
			return true
		}
	}
	return false
}
