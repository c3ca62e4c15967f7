package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDownTrustsRootAlone: a data directory of another user, or a runtime directory of
// another user that a data directory names, is refused, and nothing is removed.
func TestDownTrustsRootAlone(t *testing.T) {
	for _, theirs := range []string{"data", "run"} {
		dir, err := os.MkdirTemp("", "bhdown")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		data, run := filepath.Join(dir, "data"), filepath.Join(dir, "run")
		state, err := json.Marshal(map[string]string{"run_dir": run, "tag": "bnone"})
		if err != nil {
			t.Fatal(err)
		}
		kept := filepath.Join(run, "kept")
		for _, err := range []error{
			os.Chmod(dir, 0o755), os.Mkdir(data, 0o711), os.Mkdir(run, 0o711), os.WriteFile(kept, nil, 0o600),
			os.WriteFile(filepath.Join(data, lockFile), nil, 0o600), os.WriteFile(filepath.Join(data, stateFile), state, 0o600),
			os.Chown(filepath.Join(dir, theirs), 4242, 4242),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		err = Down(context.Background(), Config{DataDir: data, RunDir: run}, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "root") {
			t.Errorf("the %s directory is user 4242's: %v", theirs, err)
		}
		if _, err := os.Stat(kept); err != nil {
			t.Errorf("the %s directory is user 4242's, and a file is gone: %v", theirs, err)
		}
	}
}

// TestDownRemovesItsOwnRunDirAlone: a runtime directory outside of /run/bulkhead* goes only
// when a file of root in it names the data directory.
func TestDownRemovesItsOwnRunDirAlone(t *testing.T) {
	const ours = "ours"
	for name, mark := range map[string]func(run, data string) error{
		ours:        func(run, data string) error { return os.WriteFile(run, []byte(data+"\n"), 0o600) },
		"unmarked":  func(string, string) error { return nil },
		"another's": func(run, _ string) error { return os.WriteFile(run, []byte("/var/lib/other\n"), 0o600) },
		"a user's": func(run, data string) error {
			return errors.Join(os.WriteFile(run, []byte(data+"\n"), 0o600), os.Chown(run, 4242, 4242))
		},
		"a link": func(run, data string) error {
			return errors.Join(os.WriteFile(data+".txt", []byte(data+"\n"), 0o600), os.Symlink(data+".txt", run))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "bhdown")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			data, run := filepath.Join(dir, "data"), filepath.Join(dir, "run")
			for _, err := range []error{
				os.Chmod(dir, 0o755), os.Mkdir(data, 0o711), os.Mkdir(run, 0o711), os.WriteFile(filepath.Join(data, lockFile), nil, 0o600),
				mark(filepath.Join(run, ownerFile), data),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			err = Down(context.Background(), Config{DataDir: data, RunDir: run}, slog.New(slog.DiscardHandler))
			_, there := os.Stat(run)
			if name == ours && (err != nil || there == nil) {
				t.Errorf("%v, and the directory is still there: %v", err, there == nil)
			}
			if name != ours && (there != nil || err == nil || !strings.Contains(err.Error(), "is not known to be this installation's")) {
				t.Errorf("%v; %v", err, there)
			}
		})
	}
}
