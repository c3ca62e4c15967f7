package world_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bulkhead/world"
)

// writers is a load of clients that note what was acknowledged to them.
type writers struct {
	w     *world.World
	image string // of app "load"

	mu      sync.Mutex
	count   int
	apps    []string          // acknowledged creates
	deleted []string          // acknowledged deletes of apps
	meta    map[string]int    // Machine → highest number acknowledged as its metadata n
	cordon  map[string]bool   // Machine → as acknowledged
	gone    []string          // Machines whose destruction was acknowledged
	leases  map[string]string // Machine → description, by which anybody knows a lease
	pushed  map[string]string // reference → digest
}

// clients of each kind that write at once.
const writersOfEachKind = 2

// writing makes the app that the writers write to.
func writing(w *world.World, image v1.Image) *writers {
	w.CreateApp("load", "")
	return &writers{w: w, image: w.Push("load", image), meta: map[string]int{}, cordon: map[string]bool{},
		leases: map[string]string{}, pushed: map[string]string{}}
}

// run writes until ctx ends.
func (l *writers) run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range writersOfEachKind {
		for _, f := range []func(context.Context, string) error{l.writeApps, l.writeMachine, l.push} {
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					if f(ctx, fmt.Sprintf("c%d-%d", i, n)) != nil { // the platform is going down
						select {
						case <-ctx.Done():
						case <-time.After(time.Millisecond):
						}
					}
				}
			})
		}
	}
	wg.Wait()
}

// ack notes under the lock something that was acknowledged.
func (l *writers) ack(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	f()
}

// acknowledged is how many writes were acknowledged so far.
func (l *writers) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// call makes a call of the API; an error says that nothing is known.
func (l *writers) call(ctx context.Context, method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, l.w.Ready.APIURL+"/v1"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+l.w.Ready.Token)
	resp, err := l.w.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	if out == nil {
		return nil // the status line is the word
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// writeApps makes an app, and deletes every third.
func (l *writers) writeApps(ctx context.Context, id string) error {
	app := "app-" + id
	if err := l.call(ctx, "POST", "/apps", map[string]any{"name": app, "org_slug": "personal"}, nil); err != nil {
		return err
	}
	if len(id)%3 != 0 {
		l.ack(func() { l.apps = append(l.apps, app) })
		return nil
	}
	if err := l.call(ctx, "DELETE", "/apps/"+app, nil, nil); err != nil {
		return err
	}
	l.ack(func() { l.deleted = append(l.deleted, app) })
	return nil
}

// writeMachine makes a Machine that is not started, and changes it.
func (l *writers) writeMachine(ctx context.Context, id string) error {
	var m world.Machine
	at := "/apps/load/machines"
	if err := l.call(ctx, "POST", at, map[string]any{"skip_launch": true, "config": world.Config{"image": l.image}}, &m); err != nil {
		return err
	}
	at += "/" + m.ID
	l.ack(func() { l.meta[m.ID] = 0 })
	for n := 1; n <= 5; n++ {
		if err := l.call(ctx, "POST", at+"/metadata/n", map[string]any{"value": fmt.Sprint(n)}, nil); err != nil {
			return err
		}
		l.ack(func() { l.meta[m.ID] = n })
	}
	if err := l.call(ctx, "POST", at+"/cordon", nil, nil); err != nil {
		return err
	}
	l.ack(func() { l.cordon[m.ID] = true })
	if len(id)%3 == 0 {
		// From here on it may be gone although nobody said so.
		l.mu.Lock()
		delete(l.meta, m.ID)
		delete(l.cordon, m.ID)
		l.mu.Unlock()
		if err := l.call(ctx, "DELETE", at+"?force=true", nil, nil); err != nil {
			return err
		}
		l.ack(func() { l.gone = append(l.gone, m.ID) })
		return nil
	}
	words := fmt.Sprintf("taken at %d", time.Now().UnixNano())
	if err := l.call(ctx, "POST", at+"/lease", map[string]any{"ttl": 3600, "description": words}, nil); err != nil {
		return err
	}
	l.ack(func() { l.leases[m.ID] = words })
	return nil
}

// push pushes an image of two small layers under a tag of its own.
func (l *writers) push(ctx context.Context, id string) error {
	img := smallImage(id)
	_, port, _ := net.SplitHostPort(l.w.Ready.HTTPSAddr)
	ref, err := name.ParseReference("registry." + l.w.Ready.Domain + ":" + port + "/load:" + id)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img, l.remote(ctx)...); err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	l.ack(func() { l.pushed[ref.String()] = digest.String() })
	return nil
}

func (l *writers) remote(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithTransport(l.w.Client().Transport),
		remote.WithAuth(&authn.Basic{Username: "x", Password: l.w.Ready.Token}), remote.WithRetryStatusCodes(), remote.WithRetryBackoff(remote.Backoff{Steps: 1})}
}

// smallImage is an image that no other id gives.
func smallImage(id string) v1.Image {
	img := v1.Image(empty.Image)
	for _, part := range []string{"a", "b"} {
		layer := static.NewLayer(bytes.Repeat([]byte(id+part), 2000), types.DockerLayer)
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer}); err != nil {
			panic(err)
		}
	}
	return img
}

// lost lists what was acknowledged and is not there.
func (l *writers) lost() (out []string) {
	ctx := context.Background()
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, app := range l.apps {
		if err := l.call(ctx, "GET", "/apps/"+app, nil, nil); err != nil {
			say("app %s: %v", app, err)
		}
	}
	for _, app := range l.deleted {
		if l.call(ctx, "GET", "/apps/"+app, nil, nil) == nil {
			say("app %s was deleted and is there", app)
		}
	}
	var ms []world.Machine
	if err := l.call(ctx, "GET", "/apps/load/machines?include_deleted=true", nil, &ms); err != nil {
		return append(out, err.Error())
	}
	byID := map[string]world.Machine{}
	for _, m := range ms {
		byID[m.ID] = m
	}
	for id, n := range l.meta {
		m, ok := byID[id]
		if !ok {
			say("machine %s is not there", id)
			continue
		}
		if meta, _ := m.Config["metadata"].(map[string]any); n > 0 && !slices.Contains([]any{fmt.Sprint(n), fmt.Sprint(n + 1)}, meta["n"]) {
			say("machine %s: metadata %v, and %d was acknowledged", id, m.Config["metadata"], n)
		}
	}
	for id := range l.cordon {
		if m, ok := byID[id]; ok && !m.Cordoned {
			say("machine %s is not cordoned any more", id)
		}
	}
	for _, id := range l.gone {
		if m, ok := byID[id]; ok && m.State != "destroyed" && m.State != "destroying" {
			say("machine %s was destroyed and is %s", id, m.State)
		}
	}
	for id, words := range l.leases {
		var lease struct {
			Description string `json:"description"`
		}
		if err := l.call(ctx, "GET", "/apps/load/machines/"+id+"/lease", nil, &lease); err != nil || lease.Description != words {
			say("machine %s: lease %q, and %q was acknowledged: %v", id, lease.Description, words, err)
		}
	}
	for ref, digest := range l.pushed {
		if why := l.pulled(ctx, ref, digest); why != "" {
			say("image %s: %s", ref, why)
		}
	}
	return out
}

// pulled fetches an image whole, which checks its digests.
func (l *writers) pulled(ctx context.Context, at, digest string) string {
	ref, err := name.ParseReference(at)
	if err != nil {
		return err.Error()
	}
	img, err := remote.Image(ref, l.remote(ctx)...)
	if err != nil {
		return err.Error()
	}
	if d, err := img.Digest(); err != nil || d.String() != digest {
		return fmt.Sprintf("it is %v, and %s was acknowledged: %v", d, digest, err)
	}
	layers, err := img.Layers()
	if err != nil {
		return err.Error()
	}
	for _, layer := range layers {
		rc, err := layer.Compressed()
		if err != nil {
			return err.Error()
		}
		_, err = io.Copy(io.Discard, rc)
		rc.Close()
		if err != nil {
			return err.Error()
		}
	}
	return ""
}

// cutUnderLoad runs the writers until a random number of writes more is acknowledged,
// takes the power in the middle of the next ones, and starts the
// platform again from what the disk had got.
func cutUnderLoad(t testing.TB, d *world.Disk, w *world.World, l *writers, r *rand.Rand) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.run(ctx); close(done) }()
	enough := l.acknowledged() + 10 + r.IntN(50)
	w.Eventually(30*time.Second, func() string {
		if n := l.acknowledged(); n < enough {
			return fmt.Sprintf("%d writes were acknowledged, want %d", n, enough)
		}
		return ""
	})
	d.Cut()
	w.PowerCut()
	stop()
	<-done
	d.Reboot()
	w.Up()
}
