package key_test

import (
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/fault"
	"bulkhead/key"
)

// FuzzParse: what an identifier's grammar takes is what was given, and safe in a
// path, a log line and a DNS name; all else is refused as the caller's mistake.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"web", "a-b-c1", "", "-a", "a-", "api", "Web", "wеb", "a/../b", "a%2fb", "a\x00b", "a\nb", "ａ", "a.b", strings.Repeat("a", 63), strings.Repeat("a", 64),
		"0123456789abcd", "0123456789ABCD", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "81ARZ3NDEKTSV4RRFFQ69G5FAV", "sha256:" + strings.Repeat("0f", 32), "sha256:" + strings.Repeat("0F", 32), "web\n", "u_0123456789abcdef", "t_0123456789abcdeF", "ann@example.com", "a..b", "@a", "a@",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		app, err1 := key.ParseAppName(s)
		node, err2 := key.ParseNode(s)
		machine, err3 := key.ParseMachineID(s)
		instance, err4 := key.ParseInstanceID(s)
		digest, err5 := key.ParseDigest(s)
		user, err6 := key.ParseUserID(s)
		token, err7 := key.ParseTokenID(s)
		name, err8 := key.ParseUserName(s)
		org, err9 := key.ParseOrg(s)
		for _, p := range []struct {
			got  string
			err  error
			safe string // beside lower-case letters and digits
			max  int
		}{
			{string(app), err1, "-", 63}, {string(node), err2, "-", 63}, {string(machine), err3, "", 14},
			{string(instance), err4, "ABCDEFGHJKMNPQRSTVWXYZ", 26}, {string(digest), err5, ":", 71},
			{string(user), err6, "_", 18}, {string(token), err7, "_", 18}, {name, err8, "._+@-", 128}, {org, err9, "-", 63},
		} {
			if p.err != nil {
				if p.got != "" || len(p.err.Error()) > 600 || !fault.Is(p.err, fault.Invalid) && !fault.Is(p.err, fault.Unprocessable) {
					t.Errorf("%q: %q, %v", s, p.got, p.err)
				}
				continue
			}
			if p.got != s || len(s) == 0 || len(s) > p.max || filepath.Base(s) != s || s == "." || s == ".." {
				t.Errorf("%q was taken as %q", s, p.got)
			}
			for _, c := range s {
				if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune(p.safe, c) {
					t.Errorf("%q was taken, with %q", s, c)
				}
			}
		}
	})
}
