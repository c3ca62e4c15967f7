package limit

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestRates: a burst, then the rate; each key for itself; and what is waited for comes.
func TestRates(t *testing.T) {
	l, now := NewRates(Rate{PerSecond: 2, Burst: 3}, 10), time.Unix(1000, 0)
	for i := range 3 {
		if w := l.Take("a", now); w != 0 {
			t.Fatalf("number %d of the burst waits %v", i, w)
		}
	}
	if w := l.Wait("a", now); w != 500*time.Millisecond {
		t.Errorf("the wait is %v, want 0.5 s", w)
	}
	for range 100 { // who is refused does not push the end away
		if w := l.Take("a", now); w != 500*time.Millisecond {
			t.Fatalf("beyond the burst the wait is %v, want 0.5 s", w)
		}
	}
	if w := l.Take("b", now); w != 0 {
		t.Errorf("another key waits %v", w)
	}
	now = now.Add(500 * time.Millisecond)
	if w := l.Take("a", now); w != 0 {
		t.Errorf("after the wait it waits %v", w)
	}
	if w := l.Take("a", now); w == 0 {
		t.Error("two were given where one had come back")
	}
	if w := l.Take("a", now.Add(-time.Hour)); w < 0 || w > 2*time.Hour {
		t.Errorf("with the clock back an hour the wait is %v", w)
	}
	none := NewRates(Rate{}, 10)
	for range 1000 {
		if none.Take("a", now) != 0 {
			t.Fatal("no limit is a limit")
		}
	}
	if none.Len() != 0 {
		t.Error("no limit remembers keys")
	}
}

// TestRatesAreBounded: a flood of keys is not remembered, and one that keeps on is
// held to its rate all the while.
func TestRatesAreBounded(t *testing.T) {
	l, now := NewRates(Rate{PerSecond: 1, Burst: 5}, 100), time.Unix(1000, 0)
	given := 0
	for i := range 100_000 {
		if i%50 == 0 && l.Take("busy", now) == 0 {
			given++
		}
		l.Take(fmt.Sprint(i), now)
	}
	if l.Len() != 100 {
		t.Errorf("%d keys are remembered, want 100", l.Len())
	}
	if given != 5 {
		t.Errorf("the busy one got %d, want its burst of 5", given)
	}
	now = now.Add(6 * time.Second)
	for range 40 {
		l.Take("busy", now)
	}
	if l.Len() != 1 {
		t.Errorf("%d keys are remembered after all were quiet, want 1", l.Len())
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "192.0.2.7:4242": "192.0.2.7", "[::ffff:192.0.2.7]:1": "192.0.2.7",
		"[2001:db8:1:2:3::4]:80": "2001:db8:1:2::/64", "2001:db8:1:2:ffff::": "2001:db8:1:2::/64",
		"fe80::1%eth0": "fe80::/64", "[fe80::1%eth0]:1": "fe80::/64", "@": "unknown", "": "unknown",
	} {
		if got := Address(in); got != want {
			t.Errorf("Address(%q) = %q, want %q", in, got, want)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	l, now := NewRates(Rate{PerSecond: 100, Burst: 300}, 10_000), time.Unix(1000, 0)
	keys := make([]string, 20_000)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l.Take(keys[i%len(keys)], now)
	}
}

// FuzzAddress: whatever a client's address is said to be, its key is short, and two
// addresses of one network have one.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"192.0.2.7:1", "[2001:db8:1:2:3::4]:80", "fe80::1%eth0", "::ffff:1.2.3.4", "@", "1.2.3.4:99999", "[::1%" + string(make([]byte, 100)) + "]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k := Address(s)
		if k == "" || len(k) > 45 {
			t.Errorf("Address(%q) = %q", s, k)
		}
		if p, err := netip.ParsePrefix(k); err == nil && (p.Bits() != 64 || Address(p.Addr().Next().String()) != k) {
			t.Errorf("Address(%q) = %q", s, k)
		}
	})
}
