package controller_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"bulkhead/api/internalpb"
	"bulkhead/fault"
	"bulkhead/internal/await"
	"bulkhead/key"
	"bulkhead/role"
	"bulkhead/secret"
)

// TestObjectsOfInternalCalls makes each internal call that takes a machine, an app or a
// repository for one of the caller's own, one of another node, one that there is not, and
// one that is gone: it gets its own and learns nothing of the others, not even which of
// them there are.
func TestObjectsOfInternalCalls(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.app("gone")
	digest, layer := e.push("web:v1")
	e.want(200, "POST", "/v1/apps/web/secrets", config{"values": config{"KEY": "value"}}, nil)
	conf := config{"config": config{"image": "registry." + domain + "/web:v1"}}
	own := e.create("web", conf)
	e.wait("web", own.ID, "started")
	destroyed := e.create("web", conf)
	e.wait("web", destroyed.ID, "started")
	e.want(200, "DELETE", "/v1/apps/web/machines/"+destroyed.ID+"?force=true", nil, nil)
	e.wait("web", destroyed.ID, "destroyed")
	n := e.secondNode()
	n.w.controller = internalpb.NewControllerClient(e.dial(role.Worker, node2))
	foreign := e.create("web", conf)
	e.wait("web", foreign.ID, "started")
	if !n.has(foreign.ID) {
		t.Fatal("the second node did not get the machine")
	}
	e.want(202, "DELETE", "/v1/apps/gone", nil, nil)

	ctx := bounded(t)
	c := internalpb.NewControllerClient(e.dial(role.Worker, node))
	edge := internalpb.NewControllerClient(e.dial(role.Edge, node))
	receiver, err := secret.NewRecipient()
	if err != nil {
		t.Fatal(err)
	}
	instances := map[string]string{own.ID: own.InstanceID, foreign.ID: foreign.InstanceID, destroyed.ID: destroyed.InstanceID}
	calls := map[string]func(ctx context.Context, id string) error{
		"FetchManifest": func(ctx context.Context, id string) error {
			_, err := c.FetchManifest(ctx, &internalpb.FetchManifestRequest{MachineId: id, Repository: "web", Digest: string(digest)})
			return err
		},
		"FetchBlob": func(ctx context.Context, id string) error {
			_, err := fetchBlob(ctx, c, &internalpb.FetchBlobRequest{MachineId: id, Repository: "web", Digest: string(layer)})
			return err
		},
		"FetchSecrets": func(ctx context.Context, id string) error {
			_, err := c.FetchSecrets(ctx, &internalpb.FetchSecretsRequest{MachineId: id, InstanceId: instances[id], PublicKey: receiver.Public()})
			return err
		},
	}
	tried := 0
	for name, call := range calls {
		if err := call(ctx, own.ID); err != nil {
			t.Errorf("%s of its own: %v", name, err)
		}
		said := map[string]string{}
		for what, id := range map[string]string{
			"another node's": foreign.ID, "one that is not": string(key.NewMachineID()), "a destroyed one": destroyed.ID, "none": "", "a path": "../" + own.ID,
		} {
			err := call(ctx, id)
			if !fault.Is(err, fault.Denied) {
				t.Errorf("%s of %s: %v, want denied", name, what, err)
				continue
			}
			said[what] = without(err.Error(), id)
			tried++
		}
		if said["another node's"] != said["one that is not"] {
			t.Errorf("%s tells another node's machine from none: %q, %q", name, said["another node's"], said["one that is not"])
		}
	}

	// Secrets of Machines that run right now: not of one that a user stopped.
	e.want(200, "POST", "/v1/apps/web/machines/"+own.ID+"/stop", nil, nil)
	e.wait("web", own.ID, "stopped")
	if err := calls["FetchSecrets"](ctx, own.ID); !fault.Is(err, fault.Denied) {
		t.Errorf("secrets of a stopped machine: %v", err)
	}
	e.want(200, "DELETE", "/v1/apps/web/machines/"+own.ID+"?force=true", nil, nil)
	e.wait("web", own.ID, "destroyed")
	// The worker says so before the controller has written it down.
	await.True(t, "the node has the machine no more", func() bool { return fault.Is(calls["FetchManifest"](ctx, own.ID), fault.Denied) })
	for name, call := range calls {
		if err := call(ctx, own.ID); !fault.Is(err, fault.Denied) {
			t.Errorf("%s of one that was its own and is gone: %v", name, err)
		}
		tried++
	}

	// An edge: names of apps that exist, and no other name.
	for app, good := range map[string]bool{"web": true, "gone": false, "nowhere": false, "": false, "*": false, "api": false, "registry": false, "web.evil": false, "../web": false} {
		_, err := edge.IssueServerCertificate(ctx, &internalpb.IssueServerCertificateRequest{App: app, CsrDer: request(t)})
		if (err == nil) != good || !good && !fault.Is(err, fault.NotFound) {
			t.Errorf("a certificate for %q: %v", app, err)
		}
		tried++
	}

	// An observation of another node's Machine ends the stream.
	e.stopWorker()
	s, err := c.Sync(ctx)
	if err == nil {
		err = s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: &internalpb.Hello{Node: string(node), Capacity: &internalpb.Capacity{Cpus: 1, MemoryMb: 1}}}})
	}
	err = errors.Join(err, s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Observation{Observation: &internalpb.Observation{MachineId: foreign.ID, State: "destroyed", Seq: 1 << 40}}}))
	for err == nil {
		_, err = s.Recv()
	}
	if !fault.Is(err, fault.Denied) {
		t.Errorf("an observation of another node's machine: %v", err)
	}
	if st := e.machine("web", foreign.ID).State; st != "started" {
		t.Errorf("another node's machine is %s", st)
	}
	t.Logf("%d refused", tried)
}

// has reports whether the second node holds a Machine.
func (n *secondNode) has(id string) bool {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.machines[key.MachineID(id)] != nil
}

func without(s, id string) string { return strings.ReplaceAll(s, id, "ID") }
