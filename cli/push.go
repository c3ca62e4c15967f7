package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/oklog/ulid/v2"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"bulkhead/client"
	"bulkhead/fault"
)

// architectures asks the cluster what it runs.
func architectures(ctx context.Context, api *client.Client) ([]string, error) {
	regions, err := api.Regions(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range regions {
		if len(r.Architectures) > 0 {
			return r.Architectures, nil
		}
	}
	return defaultArch(), nil
}

// resolveImage turns what the user named into a reference that the cluster can
// fetch: a reference as it is, an image on this computer pushed to the cluster's
// registry. It returns the port the image exposes, when there is exactly one.
func (s *session) resolveImage(ctx context.Context, api *client.Client, app string, image imageSource) (ref string,
	port int, err error) {
	if image.folder == "" && !isLocal(image.name) {
		return image.name, 0, checkReference(image.name)
	}
	arches, err := architectures(ctx, api)
	if err != nil {
		return "", 0, err
	}
	s.ui.progress("reading %s", image.name)
	stop := s.ui.waiting("reading " + image.name)
	img, err := openImage(image, arches)
	stop()
	if err != nil {
		return "", 0, err
	}
	defer func() { img.close() }()
	if err := s.squeeze(ctx, api, app, img); err != nil {
		return "", 0, err
	}
	ref, err = s.push(ctx, api, app, img)
	return ref, exposedPort(img), err
}

// push uploads an image to the cluster's registry, without the layers that are
// there already, and returns a reference by digest.
func (s *session) push(ctx context.Context, api *client.Client, app string, img *localImage) (string, error) {
	tag, err := name.NewTag(fmt.Sprintf("%s/%s:deployment-%s", api.Registry(), app,
		strings.ToLower(ulid.Make().String())), name.StrictValidation)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "%s/%s cannot be the name of an image", api.Registry(), app)
	}
	stop := s.ui.waiting("reading " + img.path) // a layer of unknown digest is read whole
	digest, err := img.Digest()
	var tracked *trackedImage
	if err == nil {
		tracked, err = s.track(ctx, img)
	}
	stop()
	if err != nil {
		return "", malformed(img.path, "%v", err)
	}
	err = remote.Write(tag, tracked,
		remote.WithContext(ctx),
		remote.WithTransport(api.Transport()),
		remote.WithAuth(bearer{ctx, api}),
		remote.WithUserAgent("bulkhead/"+version()),
	)
	tracked.finish(err == nil)
	if err != nil {
		return "", pushError(ctx, api, img.path, err)
	}
	return tag.Repository.Name() + "@" + digest.String(), nil
}

// bearer gives the registry the token as it is at each request: an upload may last longer
// than a discharge.
type bearer struct {
	ctx context.Context
	api *client.Client
}

// Authorization implements authn.Authenticator.
func (b bearer) Authorization() (*authn.AuthConfig, error) {
	t, err := b.api.Token(b.ctx)
	return &authn.AuthConfig{Username: "x", Password: t}, err
}

// pushError says why an upload failed.
func pushError(ctx context.Context, api *client.Client, path string, err error) error {
	if ctx.Err() != nil {
		return context.Canceled
	}
	var fe *fault.Error
	if errors.As(err, &fe) {
		return fe
	}
	var bad *blobError
	if errors.As(err, &bad) {
		return malformed(path, "%v", bad)
	}
	var te *transport.Error
	if !errors.As(err, &te) {
		return fault.Wrap(fault.Unavailable, err, "the upload to %s broke off: %v", api.Registry(), err)
	}
	k := fault.Internal
	switch {
	case te.StatusCode == http.StatusUnauthorized:
		k = fault.Unauthenticated
	case te.StatusCode == http.StatusForbidden:
		k = fault.Denied
	case te.StatusCode == http.StatusNotFound:
		k = fault.NotFound
	case te.StatusCode == http.StatusTooManyRequests:
		k = fault.TooMany
	case te.StatusCode/100 == 4:
		k = fault.Invalid
	case te.StatusCode == http.StatusServiceUnavailable, te.StatusCode == http.StatusBadGateway, te.StatusCode == http.StatusGatewayTimeout:
		k = fault.Unavailable
	}
	var texts []string
	for _, d := range te.Errors {
		t := d.Message
		if t == "" {
			t = string(d.Code)
		}
		texts = append(texts, t)
	}
	if len(texts) == 0 {
		texts = []string{fmt.Sprintf("status %d", te.StatusCode)}
	}
	return fault.Wrap(k, err, "the registry %s refused the image: %s", api.Registry(), strings.Join(texts, "; "))
}

// blobError is a layer that is not what the manifest says.
type blobError struct{ err error }

func (e *blobError) Error() string { return e.err.Error() }
func (e *blobError) Unwrap() error { return e.err }

// trackedImage is an image whose layers report how far their upload is.
type trackedImage struct {
	v1.Image
	layers []v1.Layer
	show   uploadView
}

// Layers returns the reporting layers.
func (t *trackedImage) Layers() ([]v1.Layer, error) { return t.layers, nil }

func (t *trackedImage) finish(ok bool) {
	for _, l := range t.layers {
		l := l.(*trackedLayer)
		if ok && !l.opened.Load() {
			t.show.skipped(l.id)
		}
	}
	t.show.end(ok)
}

// trackedLayer counts what is read of a layer.
type trackedLayer struct {
	v1.Layer
	id     int
	digest v1.Hash
	size   int64
	opened atomic.Bool
	show   uploadView
}

// Compressed opens the layer for one attempt of its upload, checked against its
// digest on the way, so that a damaged layer is noticed here.
func (l *trackedLayer) Compressed() (io.ReadCloser, error) {
	l.opened.Store(true)
	r, err := l.Layer.Compressed()
	if err != nil {
		return nil, &blobError{err}
	}
	l.show.reset(l.id)
	return &countingReader{r: r, check: newVerifier(l.digest, l.size), layer: l}, nil
}

// countingReader reports and checks what is read.
type countingReader struct {
	r     io.ReadCloser
	check *verifier
	layer *trackedLayer
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.layer.show.add(c.layer.id, n)
	if verr := c.check.see(p[:n], err == io.EOF); verr != nil {
		return 0, &blobError{verr}
	}
	return n, err
}

func (c *countingReader) Close() error { return c.r.Close() }

// track wraps img with a view of its upload.
func (s *session) track(ctx context.Context, img *localImage) (*trackedImage, error) {
	ls, err := img.Layers()
	if err != nil {
		return nil, err
	}
	t := &trackedImage{Image: img.Image}
	var infos []layerInfo
	for i, l := range ls {
		d, err := l.Digest()
		if err != nil {
			return nil, err
		}
		size, err := l.Size()
		if err != nil {
			return nil, err
		}
		t.layers = append(t.layers, &trackedLayer{Layer: l, id: i, digest: d, size: size})
		infos = append(infos, layerInfo{short: d.Hex[:12], size: size})
	}
	var total int64
	for _, i := range infos {
		total += i.size
	}
	s.ui.progress("pushing %s %s: %s, %s", img.kind, img.path, plural(len(infos), "layer"), human(total))
	t.show = s.view(ctx, infos, "sent")
	for _, l := range t.layers {
		l.(*trackedLayer).show = t.show
	}
	return t, nil
}

// view shows how far layers are; verb says of one what it is when it is done.
func (s *session) view(ctx context.Context, infos []layerInfo, verb string) uploadView {
	switch {
	case s.ui.quiet:
		return noView{}
	case s.ui.errTTY && !s.ui.json && hasSize(s.env.Stderr):
		return newBarView(ctx, s.ui, infos)
	}
	// On a terminal without a size, such as that of a build system, no bar is drawn.
	return &lineView{ui: s.ui, infos: infos, verb: verb, done: make([]int64, len(infos)),
		stop: s.ui.waiting("waiting until all is " + verb)}
}

// hasSize reports whether a terminal says how wide it is.
func hasSize(w io.Writer) bool {
	f, ok := w.(interface{ Fd() uintptr })
	if !ok {
		return false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return err == nil && width > 0 && height > 0
}

// layerInfo is what a view shows of a layer.
type layerInfo struct {
	short string
	size  int64
}

// uploadView shows an upload. Its methods are called from several goroutines.
type uploadView interface {
	reset(layer int)     // the layer's upload starts, or starts again
	add(layer, n int)    // n bytes more were sent
	skipped(layer int)   // the registry had the layer
	end(everything bool) // the upload is over
}

// noView shows nothing.
type noView struct{}

func (noView) reset(int)    {}
func (noView) add(int, int) {}
func (noView) skipped(int)  {}
func (noView) end(bool)     {}

// lineView prints one line per layer when it is done.
type lineView struct {
	ui    *ui
	infos []layerInfo
	verb  string
	stop  func() // of the wait that a terminal shows
	mu    sync.Mutex
	done  []int64
}

func (v *lineView) reset(i int) {
	v.mu.Lock()
	v.done[i] = 0
	v.mu.Unlock()
}

func (v *lineView) add(i, n int) {
	v.mu.Lock()
	before := v.done[i]
	v.done[i] += int64(n)
	full := before < v.infos[i].size && v.done[i] >= v.infos[i].size
	v.mu.Unlock()
	if full {
		v.ui.progress("  %s  %s  %s", v.infos[i].short, human(v.infos[i].size), v.verb)
	}
}

func (v *lineView) skipped(i int) {
	v.ui.progress("  %s  %s  already there", v.infos[i].short, human(v.infos[i].size))
}

func (v *lineView) end(bool) { v.stop() }

// barView draws one bar per layer.
type barView struct {
	ui   *ui
	p    *mpb.Progress
	bars []*mpb.Bar
	full []int64 // what each bar counts to
}

func newBarView(ctx context.Context, u *ui, infos []layerInfo) *barView {
	u.drawn(true)
	v := &barView{ui: u, p: mpb.NewWithContext(ctx, mpb.WithOutput(u.err), mpb.WithWidth(30))}
	for _, i := range infos {
		v.full = append(v.full, max(i.size, 1))
		v.bars = append(v.bars, v.p.AddBar(max(i.size, 1),
			mpb.PrependDecorators(decor.Name("  "+i.short+" ")),
			mpb.AppendDecorators(decor.Counters(decor.SizeB1024(0), " % .1f / % .1f"), decor.Percentage(decor.WC{W: 6}))))
	}
	return v
}

func (v *barView) reset(i int)   { v.bars[i].SetCurrent(0) }
func (v *barView) add(i, n int)  { v.bars[i].IncrBy(n) }
func (v *barView) skipped(i int) { v.bars[i].SetCurrent(v.full[i]) }

func (v *barView) end(ok bool) {
	for i, b := range v.bars {
		if ok { // only at its full count does a bar end; one that has ended stays as it is
			b.SetCurrent(v.full[i])
		} else {
			b.Abort(false)
		}
	}
	v.p.Wait()
	v.ui.drawn(false)
}

// plural gives "1 layer" and "2 layers".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// human gives a number of bytes in a form people read.
func human(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
