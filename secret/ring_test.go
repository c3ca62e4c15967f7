package secret_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/secret"
)

var ctx = context.Background()

// open opens the ring of a directory as the controller does.
func open(t *testing.T, path string, check []byte) (*secret.Ring, []byte) {
	t.Helper()
	r, check, err := secret.OpenRing(ctx, "c-1", secret.FileKeeper{Path: path}, check)
	if err != nil {
		t.Fatal(err)
	}
	return r, check
}

// TestWrap: what is wrapped opens for the same purpose in the same cluster only, and
// no flipped bit goes unseen.
func TestWrap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.key")
	r, check := open(t, path, nil)
	w, err := r.Wrap("app:a", []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	again, _ := r.Wrap("app:a", []byte("plain"))
	if bytes.Equal(w, again) || bytes.Contains(w, []byte("plain")) {
		t.Error("the same bytes twice, or the plaintext")
	}
	r, _ = open(t, path, check) // another process
	if b, err := r.Unwrap("app:a", w); err != nil || string(b) != "plain" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := r.Unwrap("app:b", w); err == nil {
		t.Error("it opened for another purpose")
	}
	if _, err := secret.NewRing("c-2", "", r.Keys()).Unwrap("app:a", w); err == nil {
		t.Error("it opened in another cluster")
	}
	for bit := range len(w) * 8 {
		bad := bytes.Clone(w)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := r.Unwrap("app:a", bad); err == nil {
			t.Fatalf("bit %d flipped: it opened", bit)
		}
	}
	for n := range w {
		if _, err := r.Unwrap("app:a", w[:n]); err == nil {
			t.Fatalf("cut to %d bytes: it opened", n)
		}
	}
}

// TestClusterKeyLostOrWrong: each is refused with its own sentence, and the file is as
// it was.
func TestClusterKeyLostOrWrong(t *testing.T) {
	cases := 0
	for name, c := range map[string]struct {
		change func(path string, b []byte) error
		said   string
	}{
		"lost": {func(p string, _ []byte) error { return os.Remove(p) }, "the cluster key is lost"},
		"of another": {func(p string, _ []byte) error {
			return os.WriteFile(p, secret.FormatKeys([]secret.Key{secret.NewKey()}), 0o600)
		}, "restore that key"},
		"empty":             {func(p string, _ []byte) error { return os.WriteFile(p, nil, 0o600) }, "there is no key in it"},
		"cut short":         {func(p string, b []byte) error { return os.WriteFile(p, b[:len(b)-9], 0o600) }, "is not 32 bytes in base64"},
		"a bit is flipped":  {flipKey, "does not belong to its id"},
		"garbage":           {func(p string, b []byte) error { return os.WriteFile(p, []byte("x y z"), 0o600) }, "line 1 is not"},
		"open to all users": {func(p string, _ []byte) error { return os.Chmod(p, 0o644) }, "chmod 600"},
	} {
		path := filepath.Join(t.TempDir(), "cluster.key")
		_, check := open(t, path, nil)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.change(path, b); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(path)
		_, _, err = secret.OpenRing(ctx, "c-1", secret.FileKeeper{Path: path}, check)
		if err == nil || !strings.Contains(err.Error(), c.said) {
			t.Errorf("%s: %v", name, err)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Errorf("%s: the file was changed", name)
		}
		cases++
	}
	t.Logf("%d kinds of loss and damage", cases)
}

// flipKey changes one bit of the key in a key file.
func flipKey(path string, b []byte) error {
	i := bytes.LastIndexByte(b, ' ')
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b[i+1:])))
	if err != nil {
		return err
	}
	raw[7] ^= 4
	return os.WriteFile(path, append(b[:i+1], base64.StdEncoding.EncodeToString(raw)+"\n"...), 0o600)
}

// TestRewrap finds what is wrapped inside of values of the store and leaves the rest,
// down to the byte.
func TestRewrap(t *testing.T) {
	old := secret.NewKey()
	r := secret.NewRing("c-1", "", []secret.Key{old})
	a, _ := r.Wrap("a", []byte("one"))
	b, _ := r.Wrap("b", []byte("two"))
	record, _ := json.Marshal(map[string]any{"z": 1.50, "a": a, "deep": []any{map[string]any{"b": b}}, "text": "QkhXUlAx and no more", "short": "QkhXUlAx"})
	r.Set([]secret.Key{secret.NewKey(), old})
	out, n, lost := r.Rewrap(record)
	if n != 2 || lost != 0 {
		t.Fatalf("%d rewrapped, %d lost", n, lost)
	}
	if raw, n, _ := r.Rewrap(a); n != 1 {
		t.Error("a whole value was not rewrapped")
	} else if p, err := r.Unwrap("a", raw); err != nil || string(p) != "one" {
		t.Errorf("%q, %v", p, err)
	}
	if again, n, _ := r.Rewrap(out); n != 0 || !bytes.Equal(again, out) {
		t.Error("it was rewrapped twice")
	}
	r.Set(r.Keys()[:1])
	r.Forget([]secret.Key{old}) // the old key is gone
	var got struct {
		A    []byte
		Deep []struct{ B []byte }
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if p, err := r.Unwrap("a", got.A); err != nil || string(p) != "one" {
		t.Errorf("%q, %v", p, err)
	}
	if p, err := r.Unwrap("b", got.Deep[0].B); err != nil || string(p) != "two" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := r.Unwrap("a", a); err == nil {
		t.Error("what the old key wrapped opens without it")
	}
	a[len(a)-1] ^= 1
	r.Set([]secret.Key{r.Keys()[0], old})
	if same, n, lost := r.Rewrap(a); n != 0 || lost != 1 || !bytes.Equal(same, a) {
		t.Errorf("damaged: %d rewrapped, %d lost", n, lost)
	}
}

// TestXAES: the vectors of c2sp.org/XAES-256-GCM open, so this is that cipher.
func TestXAES(t *testing.T) {
	for _, v := range []struct {
		key     byte
		ad, out string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		ct, _ := hex.DecodeString(v.out)
		got, err := secret.Open(bytes.Repeat([]byte{v.key}, 32), append([]byte("ABCDEFGHIJKLMNOPQRSTUVWX"), ct...), []byte(v.ad))
		if err != nil || string(got) != "XAES-256-GCM" {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// TestRingForgets: a key that was replaced unwraps until it is forgotten, whatever else is
// replaced meanwhile, and forgetting it takes no other key away.
func TestRingForgets(t *testing.T) {
	k1, k2, k3 := secret.NewKey(), secret.NewKey(), secret.NewKey()
	r := secret.NewRing("c-1", "", []secret.Key{k1})
	w1, _ := r.Wrap("p", []byte("1"))
	r.Set([]secret.Key{k2, k1})
	w2, _ := r.Wrap("p", []byte("2"))
	r.Set([]secret.Key{k2})
	r.Set([]secret.Key{k3, k2}) // the next rotation begins before k1 is forgotten
	opens := func(what string, w []byte, want bool) {
		t.Helper()
		if _, err := r.Unwrap("p", w); (err == nil) != want {
			t.Errorf("%s: %v, to open should be %v", what, err, want)
		}
	}
	opens("the first key's", w1, true)
	r.Forget([]secret.Key{k1})
	opens("the first key's, forgotten", w1, false)
	opens("the second key's", w2, true)
	if ids := r.IDs(); len(ids) != 2 || ids[0] != k3.ID || ids[1] != k2.ID {
		t.Errorf("the ring holds %v", ids)
	}
	r.Forget([]secret.Key{k2})
	opens("the second key's, which is held", w2, true)
	r.Set([]secret.Key{k3})
	r.Forget([]secret.Key{k2})
	opens("the second key's, forgotten", w2, false)
}

// TestRingNeverMissesAKey unwraps what an old key wrapped while that becomes a former one
// and one of the ring's again.
func TestRingNeverMissesAKey(t *testing.T) {
	k1, k2 := secret.NewKey(), secret.NewKey()
	r := secret.NewRing("c-1", "", []secret.Key{k1})
	w, _ := r.Wrap("p", []byte("1"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20_000 {
			r.Set([]secret.Key{k2})
			r.Set([]secret.Key{k2, k1})
		}
	}()
	for n := 0; ; n++ {
		if _, err := r.Unwrap("p", w); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			t.Logf("opened %d times", n)
			return
		default:
		}
	}
}
