package supervisor

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/role"
)

// TestClusterKeyFrom: the three places of the cluster key, and what is none.
func TestClusterKeyFrom(t *testing.T) {
	for v, ok := range map[string]bool{
		"": true, "file": true, "credential:bulkhead.key": true, "kms:/run/kms.sock": true,
		"credential:": false, "credential:../x": false, "kms:": false, "kms:relative": false, "vault": false,
	} {
		if err := checkClusterKey(v); (err == nil) != ok {
			t.Errorf("%q: %v", v, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "k"), []byte("the key"), 0o400); err != nil {
		t.Fatal(err)
	}
	s := &Supervisor{in: &installation{dir: "/d"}}
	for _, c := range []struct{ v, credentials, file, kms, content, said string }{
		{"file", "", "/d/cluster-key/cluster.key", "", "", ""},
		{"kms:/run/k", "", "/d/cluster-key/cluster.key", "/run/k", "", ""},
		{"credential:k", dir, "", "", "the key", ""},
		{"credential:k", "", "", "", "", "LoadCredential=k"},
		{"credential:none", dir, "", "", "", "cannot be opened"},
	} {
		t.Setenv("CREDENTIALS_DIRECTORY", c.credentials)
		s.Config.ClusterKey = c.v
		var rc role.Config
		f, err := s.clusterKey(&rc)
		if (err == nil) != (c.said == "") || err != nil && !strings.Contains(err.Error(), c.said) {
			t.Errorf("%s: %v", c.v, err)
			continue
		}
		if rc.ClusterKeyFile != c.file || rc.ClusterKMS != c.kms {
			t.Errorf("%s: %+v", c.v, rc)
		}
		content := ""
		if f != nil {
			b, _ := io.ReadAll(f)
			content = string(b)
			f.Close()
		}
		if content != c.content {
			t.Errorf("%s holds %q", c.v, content)
		}
	}
}
