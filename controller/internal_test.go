package controller_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc"

	"bulkhead/api/internalpb"
	"bulkhead/controller"
	"bulkhead/fault"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/pki"
	"bulkhead/privnet"
	"bulkhead/role"
)

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// push puts an image of two layers into the cluster's registry, with a real client.
func (e *env) push(ref string) (digest key.Digest, layer key.Digest) {
	e.t.Helper()
	img, err := random.Image(300<<10, 2)
	if err != nil {
		e.t.Fatal(err)
	}
	r, err := name.ParseReference("registry." + domain + "/" + ref)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := remote.Write(r, img, remote.WithTransport(e.transport()), remote.WithAuth(&authn.Basic{Username: "x", Password: e.token})); err != nil {
		e.t.Fatalf("push %s: %v", ref, err)
	}
	d, _ := img.Digest()
	ls, _ := img.Layers()
	l, _ := ls[0].Digest()
	return key.Digest(d.String()), key.Digest(l.String())
}

func fetchBlob(ctx context.Context, c internalpb.ControllerClient, in *internalpb.FetchBlobRequest) ([]byte, error) {
	s, err := c.FetchBlob(ctx, in)
	if err != nil {
		return nil, err
	}
	var out []byte
	for {
		m, err := s.Recv()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m.Data...)
	}
}

// TestAWorkerGetsOnlyItsOwn makes every call that a worker can make, for a Machine
// of another node: each is refused. Control: the Machine's own worker gets it.
func TestAWorkerGetsOnlyItsOwn(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.app("other")
	digest, layer := e.push("web:v1")
	foreign, _ := e.push("other:v1")
	m := e.create("web", config{"config": config{"image": "registry." + domain + "/web:v1"}})
	if m.ImageRef.Digest != digest || m.ImageRef.Registry != "registry."+domain || m.ImageRef.Tag != "v1" {
		t.Errorf("resolved to %+v, want %s", m.ImageRef, digest)
	}
	e.worker.mu.Lock()
	if e.worker.reserveErr != nil {
		t.Errorf("the worker that is asked to reserve may not look at the image: %v", e.worker.reserveErr)
	}
	e.worker.mu.Unlock()
	ctx := bounded(t)
	own := internalpb.NewControllerClient(e.dial(role.Worker, node))
	thief := internalpb.NewControllerClient(e.dial(role.Worker, "n2"))

	got, err := own.FetchManifest(ctx, &internalpb.FetchManifestRequest{MachineId: m.ID, Repository: "web", Digest: string(digest)})
	if sum := sha256.Sum256(got.GetContent()); err != nil || "sha256:"+hex.EncodeToString(sum[:]) != string(digest) || got.MediaType == "" {
		t.Fatalf("own manifest: %v", err)
	}
	blob, err := fetchBlob(ctx, own, &internalpb.FetchBlobRequest{MachineId: m.ID, Repository: "web", Digest: string(layer)})
	if sum := sha256.Sum256(blob); err != nil || "sha256:"+hex.EncodeToString(sum[:]) != string(layer) {
		t.Fatalf("own blob: %v", err)
	}
	tail, err := fetchBlob(ctx, own, &internalpb.FetchBlobRequest{MachineId: m.ID, Repository: "web", Digest: string(layer), Offset: 100})
	if err != nil || string(tail) != string(blob[100:]) {
		t.Errorf("blob from an offset: %d bytes of %d, %v", len(tail), len(blob), err)
	}

	for what, in := range map[string]struct {
		c                     internalpb.ControllerClient
		machine, repo, digest string
	}{
		"another worker's machine":       {thief, m.ID, "web", string(digest)},
		"a machine that there is not":    {own, "00000000000000", "web", string(digest)},
		"no machine":                     {own, "", "web", string(digest)},
		"another repository":             {own, m.ID, "other", string(foreign)},
		"another image's digest":         {own, m.ID, "web", string(foreign)},
		"a path for a repository":        {own, m.ID, "../web", string(digest)},
		"another worker's, other digest": {thief, m.ID, "other", string(foreign)},
	} {
		if _, err := in.c.FetchManifest(ctx, &internalpb.FetchManifestRequest{MachineId: in.machine, Repository: in.repo, Digest: in.digest}); !fault.Is(err, fault.Denied) {
			t.Errorf("manifest for %s: %v, want Denied", what, err)
		}
		if _, err := fetchBlob(ctx, in.c, &internalpb.FetchBlobRequest{MachineId: in.machine, Repository: in.repo, Digest: in.digest}); !fault.Is(err, fault.Denied) {
			t.Errorf("blob for %s: %v, want Denied", what, err)
		}
	}

	// A sync as another node.
	s, err := thief.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: &internalpb.Hello{Node: string(node)}}})
	if _, err := s.Recv(); !fault.Is(err, fault.Denied) {
		t.Errorf("sync as another node: %v, want Denied", err)
	}

	// A sync as itself sees nothing of the other's, and may say nothing about it.
	s, snap := hello(t, ctx, thief, "n2", &internalpb.Observation{MachineId: m.ID, State: "destroyed", Seq: 1000})
	if len(snap.Assignments) != 0 {
		t.Errorf("another worker's snapshot has %v", snap.Assignments)
	}
	e.want(204, "POST", "/v1/apps/web/machines/"+m.ID+"/metadata/k", config{"value": "v"}, nil)
	e.want(200, "POST", "/v1/apps/web/machines/"+m.ID+"/cordon", nil, nil)
	s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Observation{Observation: &internalpb.Observation{MachineId: m.ID, State: "failed", Seq: 1000}}})
	for {
		got, err := s.Recv()
		if err != nil {
			if !fault.Is(err, fault.Denied) {
				t.Errorf("observation of another worker's machine: %v, want Denied", err)
			}
			break
		}
		if got.GetForget() == nil {
			t.Errorf("another worker was told %v", got)
		}
	}
	if got := e.machine("web", m.ID); got.State != "started" {
		t.Errorf("another worker's words made the machine %s", got.State)
	}
}

// hello opens a sync and returns the snapshot.
func hello(t *testing.T, ctx context.Context, c internalpb.ControllerClient, n string, obs ...*internalpb.Observation) (grpc.BidiStreamingClient[internalpb.FromWorker, internalpb.ToWorker], *internalpb.Snapshot) {
	t.Helper()
	s, err := c.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&internalpb.FromWorker{Kind: &internalpb.FromWorker_Hello{Hello: &internalpb.Hello{Node: n, Observations: obs}}}); err != nil {
		t.Fatal(err)
	}
	m, err := s.Recv()
	if err != nil || m.GetSnapshot() == nil {
		t.Fatalf("the first message down is %v, %v", m, err)
	}
	return s, m.GetSnapshot()
}

// TestAssignmentCarriesAGrant checks what the worker gets.
func TestAssignment(t *testing.T) {
	e := newEnv(t)
	e.want(201, "POST", "/v1/apps", config{"name": "web", "network": "blue"}, nil)
	e.app("web2")
	a, b := e.launch("web", image()), e.launch("web2", image())
	e.worker.mu.Lock()
	defer e.worker.mu.Unlock()
	as, other := e.worker.machines[key.MachineID(a.ID)].a, e.worker.machines[key.MachineID(b.ID)].a
	var conf machine.Config
	if err := json.Unmarshal(as.Config, &conf); err != nil || conf.Guest.MemoryMB != 256 {
		t.Errorf("config %s: %v", as.Config, err)
	}
	var g, h struct {
		Network  int
		Machine  string
		MemoryMB int `json:"memory_mb"`
		MaxPIDs  int `json:"max_pids"`
	}
	json.Unmarshal(as.Grant, &g)
	json.Unmarshal(other.Grant, &h)
	if g.Machine != a.ID || g.MemoryMB != 256 || g.MaxPIDs == 0 || g.Network == 0 || g.Network == h.Network || len(as.GrantSignature) != 64 {
		t.Errorf("grants %s and %s", as.Grant, other.Grant)
	}
	if as.Region != "local" || as.Desired != "started" || as.App != "web" || as.InstanceId != a.Version {
		t.Errorf("assignment %v", as)
	}
}

// TestImagesOfTheOrganization: an app may use another's image of its organization.
func TestImagesOfTheOrganization(t *testing.T) {
	e := newEnv(t)
	e.app("base")
	e.app("web")
	digest, _ := e.push("base/runtime:v1")
	m := e.create("web", config{"config": config{"image": "registry." + domain + ":8443/base/runtime:v1"}})
	if m.ImageRef.Digest != digest || m.ImageRef.Repository != "base/runtime" {
		t.Errorf("resolved to %+v", m.ImageRef)
	}
	m = e.create("web", config{"config": config{"image": "registry." + domain + "/base/runtime@" + string(digest)}})
	if m.ImageRef.Digest != digest {
		t.Errorf("resolved to %+v", m.ImageRef)
	}
	// The registry asks for a token as everything does.
	resp, err := (&http.Client{Transport: e.transport()}).Get("https://registry." + domain + "/v2/")
	if err != nil || resp.StatusCode != 401 {
		t.Errorf("registry without a token: %v %v", resp, err)
	}
}

// watchRoutes collects routes until the stream ends.
func watchRoutes(t *testing.T, e *env) <-chan *internalpb.RouteUpdate {
	t.Helper()
	s, err := internalpb.NewControllerClient(e.dial(role.Edge, node)).WatchRoutes(bounded(t), &internalpb.WatchRoutesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan *internalpb.RouteUpdate, 1000)
	go func() {
		defer close(out)
		for {
			u, err := s.Recv()
			if err != nil {
				return
			}
			out <- u
		}
	}()
	return out
}

// until reads updates until one is as wanted.
func until(t *testing.T, us <-chan *internalpb.RouteUpdate, want func(*internalpb.RouteUpdate) bool) *internalpb.RouteUpdate {
	t.Helper()
	limit := time.After(40 * time.Second)
	var last *internalpb.RouteUpdate
	for {
		select {
		case u, ok := <-us:
			if !ok {
				t.Fatalf("the stream ended; the last update was %v", last)
			}
			if last = u; want(u) {
				return u
			}
		case <-limit:
			t.Fatalf("no such update within 40 s; the last was %v", last)
		}
	}
}

func backends(n int) func(*internalpb.RouteUpdate) bool {
	return func(u *internalpb.RouteUpdate) bool {
		return u.GetRoute() != nil && len(u.Route.Services) == 2 && len(u.Route.Services[1].Backends) == n
	}
}

func synced(u *internalpb.RouteUpdate) bool { return u.Synced }

func web() config {
	return config{"image": "docker.example/app", "services": []config{{
		"internal_port": 8080, "protocol": "tcp", "concurrency": config{"type": "requests", "soft_limit": 7, "hard_limit": 9},
		"ports": []config{{"port": 80, "handlers": []string{"http"}, "force_https": true}, {"port": 443, "handlers": []string{"tls", "http"}}},
	}}}
}

func TestRoutes(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.app("silent")
	us := watchRoutes(t, e)
	until(t, us, synced)
	m := e.launch("web", web())
	e.launch("silent", image()) // has no services: no route
	u := until(t, us, backends(1))
	s := u.Route.Services
	b := s[1].Backends[0]
	if s[0].Port != 80 || !s[0].ForceHttps || s[1].Port != 443 || strings.Join(s[1].Handlers, " ") != "tls http" ||
		b.MachineId != m.ID || b.Address != "["+e.machine("web", m.ID).PrivateIP+"]:8080" || b.SoftLimit != 7 || b.HardLimit != 9 || b.LimitType != "requests" || b.Region != "local" {
		t.Errorf("route %v", u)
	}
	if slot, ok := privnet.SlotOf(e.machine("web", m.ID).PrivateIP); !ok || b.Address4 != privnet.MachineIPv4(slot).String()+":8080" {
		t.Errorf("its address by IPv4 is %q", b.Address4)
	}
	base := "/v1/apps/web/machines/" + m.ID
	e.want(200, "POST", base+"/cordon", nil, nil)
	until(t, us, backends(0))
	e.want(200, "POST", base+"/uncordon", nil, nil)
	until(t, us, backends(1))
	second := e.launch("web", web())
	until(t, us, backends(2))
	e.want(200, "POST", base+"/stop", nil, nil)
	until(t, us, backends(1))

	// An edge that comes later gets everything, once, and then synced.
	late := watchRoutes(t, e)
	n := 0
	until(t, late, func(u *internalpb.RouteUpdate) bool {
		if u.Route != nil {
			n++
		}
		return u.Synced
	})
	if n != 1 {
		t.Errorf("a new edge got %d routes, want 1", n)
	}
	e.want(200, "DELETE", "/v1/apps/web/machines/"+second.ID+"?force=true", nil, nil)
	until(t, us, backends(0))
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	until(t, us, func(u *internalpb.RouteUpdate) bool { return u.RemovedApp == "web" })
}

// TestRoutesTravelAtOnce: a change is sent when it happens and not at the next look
// at a clock. The figures are for the log; "make bench-routes" holds them against the
// promise.
func TestRoutesTravelAtOnce(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	us := watchRoutes(t, e)
	m := e.launch("web", web())
	until(t, us, backends(1))
	took := travel(t, e, us, m.ID)
	slices.Sort(took)
	t.Logf("median %v, slowest %v", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > time.Second {
		t.Errorf("half of the routes took more than a second: %v", took)
	}
}

// travel measures 20 changes.
func travel(t *testing.T, e *env, us <-chan *internalpb.RouteUpdate, id string) []time.Duration {
	t.Helper()
	var took []time.Duration
	for i := range 20 {
		path, want := "/cordon", 0
		if i%2 == 1 {
			path, want = "/uncordon", 1
		}
		e.want(200, "POST", "/v1/apps/web/machines/"+id+path, nil, nil)
		u := until(t, us, backends(want))
		took = append(took, time.Since(time.Unix(0, u.Route.ChangedAtNs)))
	}
	return took
}

// TestRoutesAfterARestart: an edge keeps its route until the worker has reported.
func TestRoutesAfterARestart(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.launch("web", web())
	e.stopWorker()
	e.stop()
	e.startController()
	us := watchRoutes(t, e)
	select {
	case u := <-us:
		t.Fatalf("before the worker has reported an edge is told %v", u)
	case <-time.After(300 * time.Millisecond):
	}
	e.connectWorker()
	until(t, us, backends(1))
	until(t, us, synced)
	// Nor does a worker that goes away take its routes along.
	e.stopWorker()
	e.waitNode(false)
	late := watchRoutes(t, e)
	until(t, late, backends(1))
}

// TestRoutesAfterTheGrace: a worker that never comes back loses its routes.
func TestRoutesAfterTheGrace(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	e.launch("web", web())
	e.stopWorker()
	e.stop()
	e.cfg.RouteGrace = 200 * time.Millisecond
	e.startController()
	us := watchRoutes(t, e)
	until(t, us, backends(0))
	until(t, us, synced)
}

func TestIssueServerCertificate(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	edge := internalpb.NewControllerClient(e.dial(role.Edge, node))
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	csr, err := pki.NewCSR(k)
	if err != nil {
		t.Fatal(err)
	}
	ctx := bounded(t)
	resp, err := edge.IssueServerCertificate(ctx, &internalpb.IssueServerCertificateRequest{App: "web", CsrDer: csr})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(resp.ChainDer[0])
	if err != nil || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "web."+domain {
		t.Errorf("certificate for %v, %v", leaf.DNSNames, err)
	}
	for _, app := range []string{"nope", "api", "registry", "", "web." + domain, "*"} {
		if _, err := edge.IssueServerCertificate(ctx, &internalpb.IssueServerCertificateRequest{App: app, CsrDer: csr}); !fault.Is(err, fault.NotFound) {
			t.Errorf("certificate for %q: %v, want NotFound", app, err)
		}
	}
	worker := internalpb.NewControllerClient(e.dial(role.Worker, node))
	if _, err := worker.IssueServerCertificate(ctx, &internalpb.IssueServerCertificateRequest{App: "web", CsrDer: csr}); !fault.Is(err, fault.Denied) {
		t.Errorf("certificate for a worker: %v, want Denied", err)
	}
}

// TestDeletedAppsComeToAnEnd deletes an app while the worker is away, and kills the
// controller between.
func TestDeletedAppsComeToAnEnd(t *testing.T) {
	e := newEnv(t)
	e.cfg.AckLimit = 100 * time.Millisecond
	e.stop()
	e.startController()
	e.waitNode(true)
	e.app("web")
	m := e.launch("web", image())
	e.stopWorker()
	e.waitNode(false)
	e.want(202, "DELETE", "/v1/apps/web", nil, nil)
	var a controller.App
	if e.get("/v1/apps/web", &a); a.Status != "deleting" {
		t.Errorf("app: %+v", a)
	}
	e.refused(422, "taken", "POST", "/v1/apps", config{"name": "web"})
	e.stop()
	e.startController()
	e.connectWorker()
	e.awaitNoApp("web")
	e.app("web")
	var list []controller.Machine
	if e.get("/v1/apps/web/machines?include_deleted=true", &list); len(list) != 0 {
		t.Errorf("a new app has the old one's machine %s: %+v", m.ID, list)
	}
}
