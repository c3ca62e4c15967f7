package deployfile

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// asAWhole are the sections that are refused or warned about as a whole (support.go).
var asAWhole = []any{
	Mount{}, HTTPCheck{}, TCPCheck{}, Check{}, MachineCheck{}, Static{}, Metrics{}, TLSOptions{}, HTTPResponse{}, ReplayCache{}, ProxyProtoOptions{},
}

// TestEveryKeyIsRead: a key that the grammar has and that nothing reads would be accepted
// without effect. Each is read where Machines are built, or where it is refused.
func TestEveryKeyIsRead(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../cli/*.go") // [build] and [deploy] are read there too
	if err != nil {
		t.Fatal(err)
	}
	var src strings.Builder
	for _, p := range append(files, more...) {
		if strings.HasSuffix(p, "_test.go") || p == "types.go" {
			continue
		}
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		src.Write(b)
	}
	whole := map[reflect.Type]bool{}
	for _, v := range asAWhole {
		whole[reflect.TypeOf(v)] = true
	}
	seen, n := map[reflect.Type]bool{}, 0
	var walk func(reflect.Type)
	walk = func(ty reflect.Type) {
		for ty.Kind() == reflect.Pointer || ty.Kind() == reflect.Slice || ty.Kind() == reflect.Map {
			ty = ty.Elem()
		}
		if ty.Kind() != reflect.Struct || seen[ty] || whole[ty] {
			return
		}
		seen[ty] = true
		for i := range ty.NumField() {
			f := ty.Field(i)
			if f.Tag.Get("toml") == "" {
				continue
			}
			n++
			if !strings.Contains(src.String(), "."+f.Name) {
				t.Errorf("nothing reads %s.%s (key %s)", ty.Name(), f.Name, f.Tag.Get("toml"))
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeOf(Config{}))
	if n < 80 {
		t.Errorf("only %d keys were looked at", n)
	}
}
