package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"bulkhead/client"
	"bulkhead/fault"
)

// plainLayers is an image whose layers are not compressed yet, as "docker save" writes it.
type plainLayers struct {
	config []byte
	layers []plainLayer
}

// plainLayer is one of them.
type plainLayer struct {
	diffID v1.Hash
	size   int64
	open   func() (io.ReadCloser, error)
}

// squeezed is a layer as it was compressed once.
type squeezed struct {
	Digest v1.Hash `json:"digest"`
	Size   int64   `json:"size"`
}

// squeeze compresses the layers of an image, each once, into files of a temporary folder
// from which they are then uploaded. A layer that was pushed from here before, and that
// the registry still has, is not compressed again. It shows its progress.
func (s *session) squeeze(ctx context.Context, api *client.Client, app string, img *localImage) error {
	p := img.plain
	if p == nil {
		return nil
	}
	removeLeftLayers()
	dir, err := os.MkdirTemp("", layersFolder)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot make a temporary folder for the layers: %v", err)
	}
	before := img.close
	img.close = func() { os.RemoveAll(dir); before() }
	known := s.readSqueezed()
	done := map[v1.Hash]squeezed{}
	var todo []plainLayer
	asking := s.ui.waiting("asking the registry what it has")
	for _, l := range p.layers {
		if _, twice := done[l.diffID]; twice {
			continue
		}
		if k, ok := known[l.diffID.String()]; ok && hasBlob(ctx, api, app, k.Digest) {
			done[l.diffID] = k
			continue
		}
		done[l.diffID] = squeezed{}
		todo = append(todo, l)
	}
	asking()
	var infos []layerInfo
	var total int64
	for _, l := range todo {
		infos = append(infos, layerInfo{short: l.diffID.Hex[:12], size: l.size})
		total += l.size
	}
	show := uploadView(noView{})
	if len(todo) > 0 {
		s.ui.progress("compressing %s of %s, %s", plural(len(todo), "layer"), img.path, human(total))
		show = s.view(ctx, infos, "compressed")
	}
	for i, l := range todo {
		out, err := l.squeeze(ctx, dir, func(n int) { show.add(i, n) })
		if err != nil {
			show.end(false)
			if ctx.Err() != nil {
				return context.Canceled
			}
			return imageError(img.path, err)
		}
		done[l.diffID] = out
		known[l.diffID.String()] = out
	}
	show.end(true)
	s.writeSqueezed(known)
	img.Image, err = p.image(dir, done)
	if err != nil {
		return malformed(img.path, "%v", err)
	}
	return nil
}

// layersFolder is the name of temporary folders of layers.
const layersFolder = "bulkhead-layers-*"

// removeLeftLayers removes what commands that were killed have left. A folder that is a day
// old is no longer written to.
func removeLeftLayers() {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), layersFolder))
	for _, dir := range old {
		if st, err := os.Lstat(dir); err == nil && st.IsDir() && time.Since(st.ModTime()) > 24*time.Hour {
			_ = os.RemoveAll(dir) // that of another user stays
		}
	}
}

// squeeze compresses one layer into a file of dir that has its digest as name, and checks
// it against the digest that the image's configuration states.
func (l plainLayer) squeeze(ctx context.Context, dir string, count func(int)) (squeezed, error) {
	r, err := l.open()
	if err != nil {
		return squeezed{}, err
	}
	defer r.Close()
	f, err := os.CreateTemp(dir, "layer-*")
	if err != nil {
		return squeezed{}, err
	}
	defer f.Close()
	plain, packed := sha256.New(), sha256.New()
	size := &countingWriter{}
	zw, err := gzip.NewWriterLevel(io.MultiWriter(f, packed, size), gzip.BestSpeed)
	if err != nil {
		return squeezed{}, err
	}
	buf := make([]byte, 256<<10)
	for {
		n, rerr := r.Read(buf)
		if n > 0 {
			plain.Write(buf[:n])
			if _, err := zw.Write(buf[:n]); err != nil {
				return squeezed{}, err
			}
			count(n)
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return squeezed{}, rerr
		}
		if ctx.Err() != nil {
			return squeezed{}, ctx.Err()
		}
	}
	if err := zw.Close(); err != nil {
		return squeezed{}, err
	}
	if got := hex.EncodeToString(plain.Sum(nil)); got != l.diffID.Hex {
		return squeezed{}, fmt.Errorf("a layer has the digest sha256:%s, and its configuration says %s", got, l.diffID)
	}
	out := squeezed{Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(packed.Sum(nil))}, Size: size.n}
	return out, os.Rename(f.Name(), filepath.Join(dir, out.Digest.Hex))
}

type countingWriter struct{ n int64 }

func (w *countingWriter) Write(p []byte) (int, error) { w.n += int64(len(p)); return len(p), nil }

// image is the image with its compressed layers. The files of layers that the registry has
// are not in dir: nobody reads them.
func (p *plainLayers) image(dir string, done map[v1.Hash]squeezed) (v1.Image, error) {
	hash, size, err := v1.SHA256(bytes.NewReader(p.config))
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2,
		Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Size: size, Digest: hash}}
	for _, l := range p.layers {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.DockerLayer, Size: done[l.diffID].Size,
			Digest: done[l.diffID].Digest})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	blobs := func(name string) (io.ReadCloser, error) {
		if name == blobName(hash) {
			return io.NopCloser(bytes.NewReader(p.config)), nil
		}
		f, err := os.Open(filepath.Join(dir, filepath.Base(name)))
		if os.IsNotExist(err) {
			return nil, fmt.Errorf("the registry has lost the layer %s since it was asked; push again", filepath.Base(name))
		}
		return f, err
	}
	return partial.CompressedToImage(&layoutImage{blobs: blobs, manifest: raw, mediaType: types.DockerManifestSchema2})
}

// hasBlob asks the registry for a layer. An answer that is not a clear yes is a no.
func hasBlob(ctx context.Context, api *client.Client, app string, d v1.Hash) bool {
	token, err := api.Token(ctx)
	if err != nil {
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead,
		"https://"+api.Registry()+"/v2/"+app+"/blobs/"+d.String(), nil)
	if err != nil {
		return false
	}
	req.SetBasicAuth("x", token)
	resp, err := api.Transport().RoundTrip(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// maxSqueezed bounds what is remembered of layers.
const maxSqueezed = 2000

// readSqueezed reads what is remembered of layers that were compressed here: by the digest
// of the content what it is compressed. Anything that cannot be read is nothing.
func (s *session) readSqueezed() map[string]squeezed {
	known := map[string]squeezed{}
	if path, err := s.configPathOrErr(); err == nil {
		if b, err := os.ReadFile(layersPath(path)); err != nil || json.Unmarshal(b,
			&known) != nil || len(known) > maxSqueezed {
			known = map[string]squeezed{}
		}
	}
	return known
}

// writeSqueezed remembers layers. It is a cache: when it cannot be written, nothing is lost.
func (s *session) writeSqueezed(known map[string]squeezed) {
	path, err := s.configPathOrErr()
	b, merr := json.Marshal(known)
	if err == nil && merr == nil && len(known) > 0 {
		_ = writePrivate(layersPath(path), b)
	}
}

func layersPath(config string) string { return filepath.Join(filepath.Dir(config), "layers.json") }
