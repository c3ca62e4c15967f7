package token

import (
	"syscall"
	"testing"
	"time"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/key"
)

// BenchmarkVerify is all that a request costs for a token of six caveats: the header
// read, the signature checked, every caveat asked. Nothing is cached.
func BenchmarkVerify(b *testing.B) {
	r := ring(b)
	m, err := r.Mint(key.NewTokenID(), noon.Add(-time.Hour), noon.Add(time.Hour), []macaroon.Caveat{
		&flyio.Organization{ID: 7, Mask: resset.ActionAll},
		&flyio.Apps{Apps: resset.New[uint64](resset.ActionAll, 3)},
		&resset.IfPresent{Ifs: macaroon.NewCaveatSet(&flyio.Commands{{Args: []string{"ls"}}}), Else: resset.ActionAll},
		&FromAddress{Networks: []string{"198.51.100.0/24"}},
		ptr(resset.ActionRead | resset.ActionControl),
	})
	if err != nil {
		b.Fatal(err)
	}
	header := "FlyV1 " + m
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		p, err := Parse(header)
		if err != nil {
			b.Fatal(err)
		}
		v, err := r.Verify(p, noon)
		if err != nil {
			b.Fatal(err)
		}
		a := on(3, "r")
		a.At, a.From = noon, noonAddr
		if err := v[0].Allows(a); err != nil || len(v[0].Own) != 6 {
			b.Fatal(err, len(v[0].Own))
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// cpu is the processor time of this process: what a machine that others use too does not
// stretch as much as the clock.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
