package limit

import (
	"fmt"
	"testing"
	"time"
)

// flood is one user with n tokens who asks for an object until nothing more is given.
func flood(take func(user, token string) bool, user string, n int) (given int) {
	for i := range n {
		for refused := 0; refused < 3; {
			if take(user, fmt.Sprint(user, " ", i)) {
				given++
			} else {
				refused++
			}
		}
	}
	return given
}

// TestShared: an object's rate holds for all who ask, one token gets a quarter of it, and
// whoever asks seldom finds something left, whatever one user does with however many
// tokens. Controls: with one rate for all the flood locks the other out, and with a rate
// for each token it has no end.
func TestShared(t *testing.T) {
	now := time.Unix(1000, 0)
	s := NewShared(Rate{PerSecond: 16, Burst: 64}, 1000)
	var wait time.Duration
	var share bool
	take := func(user, token string) bool {
		wait, share = s.Take("o", user, token, now)
		return wait == 0
	}
	if n := flood(take, "mallory", 1); n != 16 || !share || wait != 250*time.Millisecond {
		t.Errorf("one token got %d of 64, then waits %v (share %v)", n, wait, share)
	}
	if n := flood(take, "mallory", 100); n != 32 || share { // token 0 has had its own
		t.Errorf("a hundred tokens of its user got %d more, want 32: all but the last quarter", n)
	}
	if !take("owner", "laptop") {
		t.Errorf("the owner waits %v", wait)
	}
	if n := flood(take, "owner", 3); n != 3 || share {
		t.Errorf("the owner got %d more of the last quarter, want 3", n)
	}
	if wait != (16-12+1)*time.Second/16 {
		t.Errorf("then he waits %v, want until a quarter is left again", wait)
	}
	for _, user := range []string{"a", "b", "c"} {
		if n := flood(take, user, 1); n != 4 {
			t.Errorf("user %s got %d, want 4", user, n)
		}
	}
	if take("d", "d") || share {
		t.Error("more was given than there is")
	}
	if w, _ := s.Take("another", "d", "d", now); w != 0 {
		t.Errorf("another object waits %v", w)
	}
	for range 20 { // a flood goes on, and the owner comes once a second
		now = now.Add(time.Second)
		flood(take, "mallory", 100)
		if !take("owner", "laptop") {
			t.Errorf("during the flood the owner waits %v", wait)
		}
	}
	none := NewShared(Rate{}, 10)
	for range 1000 {
		if w, _ := none.Take("o", "u", "t", now); w != 0 {
			t.Fatal("no limit is a limit")
		}
	}
	tiny := NewShared(Rate{PerSecond: 1, Burst: 1}, 10)
	if w, _ := tiny.Take("o", "u", "t", now); w != 0 {
		t.Errorf("the first of a rate of one waits %v", w)
	}

	one := NewRates(Rate{PerSecond: 16, Burst: 64}, 1000)
	flood(func(_, _ string) bool { return one.Take("o", now) == 0 }, "mallory", 1)
	if one.Take("o", now) == 0 {
		t.Error("control: with one rate for all, a flood locks nobody out")
	}
	each := NewRates(Rate{PerSecond: 16, Burst: 64}, 1000)
	if n := flood(func(_, token string) bool { return each.Take("o "+token, now) == 0 }, "mallory", 100); n <= 64 {
		t.Errorf("control: with a rate for each token, a hundred got %d of 64", n)
	}
}
