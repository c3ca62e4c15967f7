package world

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/audit"
)

// identityAudit keeps a checkpoint, makes a change, finds its record, and verifies: by the
// API and in the platform's own directory, while it runs. Control: a checkpoint of another
// history, and a record that is changed on the way, do not pass.
func identityAudit(t *testing.T, w *World) {
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	out := w.MustCLI("audit", "checkpoint")
	if err := os.WriteFile(kept, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	w.MustCLI("apps", "create", "audited")
	w.MustCLI("apps", "destroy", "audited", "--yes")
	log := strings.Split(strings.TrimSpace(w.MustCLI("audit", "log", "--app", "audited", "--result", "ok")), "\n")
	if len(log) != 2 || !strings.Contains(log[0], "POST /v1/apps") || !strings.Contains(log[1], "DELETE /v1/apps/{app}") || !strings.Contains(log[1], "app=audited") {
		t.Errorf("the log of an app that was made and removed: %q", log)
	}
	if out := w.MustCLI("audit", "verify", "--checkpoint", kept); !strings.Contains(out, "extends the kept checkpoint") {
		t.Errorf("verify: %s", out)
	}
	w.MustCLI("audit", "verify", "--cluster", "--checkpoint", kept)
	proof := filepath.Join(dir, "proof")
	if err := os.WriteFile(proof, []byte(w.MustCLI("audit", "proof", "1")), 0o600); err != nil {
		t.Fatal(err)
	}
	w.MustCLI("audit", "verify", "--proof", proof, "--checkpoint", kept)

	b, err := os.ReadFile(proof)
	var p audit.Proof
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.Entry.Record = []byte(strings.Replace(string(p.Entry.Record), `"result"`, `"Result"`, 1))
	b, _ = json.Marshal(p)
	os.WriteFile(proof, b, 0o600)
	if out, errs, code := w.CLI("audit", "verify", "--proof", proof, "--checkpoint", kept); code != 1 || !strings.Contains(errs, "is not in the log") {
		t.Errorf("a changed record passes: %d %s%s", code, out, errs)
	}
	live := filepath.Join(w.DataDir, "controller", "audit")
	copied := filepath.Join(dir, "copy")
	for _, part := range []string{audit.LogDir, audit.OrgsDir, audit.RecordsDir} { // the checkpoint first, the records last
		if err := os.CopyFS(filepath.Join(copied, part), os.DirFS(filepath.Join(live, part))); err != nil {
			t.Fatal(err)
		}
	}
	w.MustCLI("audit", "verify", "--dir", copied, "--checkpoint", kept)
	segment := filepath.Join(copied, audit.SegmentPath(0))
	b, err = os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	os.WriteFile(segment, b, 0o600)
	if out, errs, code := w.CLI("audit", "verify", "--dir", copied, "--checkpoint", kept); code != 1 || !strings.Contains(errs, "is not what was written") {
		t.Errorf("a changed byte passes: %d %s%s", code, out, errs)
	}
}
