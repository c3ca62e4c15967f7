package cli

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bzipped is what "docker save" writes, with one layer, compressed with bzip2: Go cannot.
const bzipped = "" +
	"QlpoOTFBWSZTWfMDr0cAAV/fgt2AcAX/8CgEHhr/995qAgAICDABOIISpojQ0FPJojwk9Tyh6hoNNGRso9DAAAAAaAAAAABI" +
	"pT0mKaY1HqZPFMg0MI0xHqNNMTmbrXbQEWD4sEl6sXCYQhGO7ZXG8F8rBiqhLZSEAlBCGAdplGMZcCAn14N8+jZucdrVx8TI" +
	"UV0zRkanYMhV3hZw+ScjvJwxh6NCMQIoUUoCj4998zQClA+oGCXpfj2sMZl4bncXn+Po/DHSQiBLHExahyNQdUjUH4cF0BRK" +
	"x0jvN6NimSrgXWKLeqRgJkhYGlz7yK1LDB37rjm5RZycJxT3erlF2Ff3pAya2xmy3yg69Qm1GZv+sMVMt3PQGz+JixcUhwI1" +
	"jt92bZnG2/mrLZeIZZzblCT1UKforihaVWOAQTRrCCBKfzW3RSzBgjTAHRewyVcwq09HUEnx+yQ2WrakIP8XckU4UJDzA69H"

// TestCompressedArchives: bzip2 is read, and what cannot be read is named.
func TestCompressedArchives(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	b, err := base64.StdEncoding.DecodeString(bzipped)
	if err != nil {
		t.Fatal(err)
	}
	img, err := openImage(imageSource{name: write("image.tar.bz2", b)}, []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	defer img.close()
	if img.kind != "docker archive" || img.plain == nil || len(img.plain.layers) != 1 {
		t.Errorf("%s, %+v", img.kind, img.plain)
	}
	for _, tc := range []struct{ how, head string }{{"xz", "\xfd7zXZ\x00"}, {"lzip", "LZIP"}, {"lz4",
		"\x04\x22\x4d\x18"}} {
		_, err := openImage(imageSource{name: write("image.tar."+tc.how, []byte(tc.head+"rest of it"))}, []string{"amd64"})
		if err == nil || !strings.Contains(err.Error(), "it is compressed with "+tc.how+", which is not supported") {
			t.Errorf("%s: %v", tc.how, err)
		} else if h := classify(err); h.exit != ExitUsage || !strings.Contains(h.hint, tc.how+" -d") {
			t.Errorf("%s: exit code %d, hint %q", tc.how, h.exit, h.hint)
		}
	}
	_, err = openImage(imageSource{name: write("cut.tar.bz2", b[:len(b)/2])}, []string{"amd64"})
	if err == nil || !strings.Contains(err.Error(), "compression is damaged") {
		t.Errorf("a cut archive: %v", err)
	}
}
