package fake

import (
	"crypto/ed25519"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/fault"
	"bulkhead/grant"
	"bulkhead/key"
	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/sandbox/sandboxtest"
)

// world is a Host that knows the suite's program, good specs for it, and what grants them.
func world(t *testing.T) (*Host, func(args ...string) sandbox.Spec, sandboxtest.Grant) {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := NewHost()
	h.GrantKey, h.Node = pub, "n1"
	h.Install("testapp", func(p *Process) int {
		return sandboxtest.App(p.Spec.Args[1:], sandboxtest.Process{
			Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Done: p.Done, Handle: p.Handle, Env: p.Env, Connect: p.Connect,
			File: func(name string) string {
				h, b := p.File(name)
				if h == nil {
					return "no such file"
				}
				return sandboxtest.DescribeFile(uint32(h.Mode), uint32(h.Uid), uint32(h.Gid), b)
			},
		})
	})
	var slot atomic.Uint32
	t.Cleanup(h.PowerCut)
	regrant := func(s sandbox.Spec, generation int64, ends time.Time) sandbox.Spec {
		g := grant.Grant{Machine: s.Machine, Instance: s.Instance, Node: "n1", Network: 1, Generation: generation, CPUs: 1, MemoryMB: 128, MaxPIDs: 64}
		if !ends.IsZero() {
			g.Ends = ends.Unix()
		}
		s.Grant, s.GrantSignature, err = grant.Sign(priv, g)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return h, func(args ...string) sandbox.Spec {
		s := sandbox.Spec{
			Machine: key.NewMachineID(), Instance: key.NewInstanceID(), Slot: privnet.Slot(slot.Add(1)),
			Image: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
			Args:  append([]string{"/testapp"}, args...), Env: []string{"PATH=/"}, Cwd: "/", Hostname: "m",
		}
		return regrant(s, 1, grant.End("n1", time.Now()))
	}, regrant
}

func TestSuite(t *testing.T) {
	sandboxtest.Run(t, func(t *testing.T) (sandbox.Runtime, func(...string) sandbox.Spec, sandboxtest.Grant) {
		return world(t)
	})
}

// TestHooks: a failure before has no effect, one after a start is undone.
func TestHooks(t *testing.T) {
	h, spec, _ := world(t)
	s := spec("sleep")
	h.After = func(op string, _ key.MachineID) error {
		if op == "start" {
			return fault.New(fault.Unavailable, "the answer was lost")
		}
		return nil
	}
	if _, err := h.Start(t.Context(), s); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
	if list, _ := h.List(t.Context()); len(list) != 0 {
		t.Fatalf("a start that failed left %v", list)
	}
	h.After = nil
	if _, err := h.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	h.PowerCut()
	if _, err := h.Attach(t.Context(), s.Machine); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	if h.Starts(s.Machine) != 2 {
		t.Fatalf("%d starts", h.Starts(s.Machine))
	}
}
