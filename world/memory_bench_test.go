package world

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"bulkhead/fixture"
)

// BenchmarkFreedSecrets measures how many values of secrets are still somewhere in the
// memory of a role after the Machine that had them was stopped, and its app's secrets were
// unset: 20 values of 24 bytes to 8 KiB in each round, set over one connection that stays
// open and by the command line. It prints, for each role, values found and in all.
//
//	go test ./world -run '^$' -bench FreedSecrets -benchtime 5x
func BenchmarkFreedSecrets(b *testing.B) {
	w := Start(b)
	w.CreateApp("freed", "")
	image := w.Push("freed", fixture.StaticGo(b))
	m := w.Run("freed", Config{"image": image})
	w.Must("POST", "/apps/freed/machines/"+m.ID+"/stop", nil, nil)
	w.Wait("freed", m.ID, "stopped", 30*time.Second)
	raw := make([]byte, 6)
	rand.Read(raw)
	tag := []byte(core + hex.EncodeToString(raw))
	roles := []string{"controller", "worker", "warden", "edge"}
	total, found := 0, map[string]int{}
	var values [][]byte
	for b.Loop() {
		set, args := map[string]any{}, []string{"secrets", "set", "--app", "freed", "--stage"}
		for i := range 20 {
			rand.Read(raw)
			v := string(tag) + hex.EncodeToString(raw)
			values = append(values, []byte(v))
			v += strings.Repeat("x", []int{0, 100, 1000, 8000}[i%4])
			if i < 10 {
				set[fmt.Sprint("V", i)] = v
			} else {
				args = append(args, fmt.Sprintf("V%d=%s", i, v))
			}
		}
		total += 20
		w.Must("POST", "/apps/freed/secrets", map[string]any{"values": set}, nil)
		w.MustCLI(args...)
		w.Must("POST", "/apps/freed/machines/"+m.ID+"/start", nil, nil)
		w.Wait("freed", m.ID, "started", 30*time.Second)
		w.Must("POST", "/apps/freed/machines/"+m.ID+"/stop", nil, nil)
		w.Wait("freed", m.ID, "stopped", 30*time.Second)
		time.Sleep(5 * time.Second)
		for _, role := range roles {
			in, err := InMemory(w.Role(role), values)
			if err != nil {
				b.Fatal(err)
			}
			places := 0
			for _, n := range in {
				places += n
			}
			found[role] += len(in)
			b.Logf("%s: %d of %d values are in memory, at %d places", role, len(in), len(values), places)
		}
		values = values[:0]
	}
	for _, role := range roles {
		b.ReportMetric(100*float64(found[role])/float64(total), "%-"+role)
	}
}
