package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"bulkhead/role"
)

// Token asks the running platform of a data directory for a new admin token and
// returns the line with which one logs in. It needs root.
func Token(ctx context.Context, c Config) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("bulkheadd token must run as root")
	}
	st, err := readState(c.DataDir)
	if err != nil {
		return "", err
	}
	a := newAdmin(socketPath(st.RunDir, role.SocketAdmin))
	l, err := a.login(ctx)
	if err != nil {
		return "", explainAdmin(c.DataDir, err)
	}
	token, err := a.token(ctx)
	if err != nil {
		return "", explainAdmin(c.DataDir, err)
	}
	return loginLine(st.APIURL, l.Pin, token), nil
}

// explainAdmin names the likely reason when nobody answers.
func explainAdmin(dataDir string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no bulkheadd runs on %s; start it with bulkheadd up", dataDir)
	}
	return err
}

// readState reads what the last `bulkheadd up` on a data directory left.
func readState(dataDir string) (State, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return State{}, fmt.Errorf("%s holds no installation that was ever started; is --data-dir right?", dataDir)
	}
	if err != nil {
		return State{}, err
	}
	var st State
	if err := json.Unmarshal(b, &st); err != nil {
		return State{}, fmt.Errorf("%s: %w", filepath.Join(dataDir, stateFile), err)
	}
	return st, nil
}
