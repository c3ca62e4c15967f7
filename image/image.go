// Package image keeps container images on a node, each as one sealed file.
//
// A Store takes an image from a Source (the cluster's registry, a remote one, a
// folder or archive), verifies every digest and size on the way, and has the
// layers laid over each other into one read-only EROFS file named after the
// digest of the image's manifest. Layers are hostile: they are never unpacked onto
// a file system, and they are parsed in a confined process of their own
// (cmd/bulkhead-unpack), which holds no more than its input, one output file, and
// the memory and CPU time that it is granted.
//
// Which process checks what: the Store computes the digests of the manifest, the
// configuration and the compressed layers while they stream, and parses the two
// JSON documents; the helper decompresses, reads tar, computes the digests of the
// uncompressed layers (diff ids), which the Store then compares with the
// configuration. A taken-over helper could therefore change what one image
// contains, and nothing else. Package image/tree says what becomes of each kind of
// tar entry.
//
// The Store is for Linux; OpenLayout, OpenArchive, Remote and Inspect, which the
// command-line tool uses as well, work everywhere.
package image

import (
	"bulkhead/key"
)

// Limits bound what an image may take. A zero field means its default.
type Limits struct {
	Manifest int64 // bytes of a manifest or index; default 4 MiB
	Config   int64 // bytes of an image configuration; default 1 MiB
	Layers   int   // layers of an image; default 256
	Unpacked int64 // bytes of all layers, uncompressed; default 16 GiB. It stops decompression bombs too
	Entries  int64 // tar entries of all layers, and directories made for them; default 1,000,000
	Path     int   // bytes of a name or of a link's target; default 4095
}

// withDefaults fills in what is zero.
func (l Limits) withDefaults() Limits {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&l.Manifest, 4<<20)
	def(&l.Config, 1<<20)
	def(&l.Unpacked, 16<<30)
	def(&l.Entries, 1_000_000)
	if l.Layers == 0 {
		l.Layers = 256
	}
	if l.Path == 0 {
		l.Path = 4095
	}
	return l
}

// Config is what Bulkhead uses of an image's configuration. Everything in it was
// written by a tenant; no string holds a NUL byte.
type Config struct {
	Env          []string          `json:"env,omitempty"` // NAME=value
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	User         string            `json:"user,omitempty"` // see Image.ResolveUser
	WorkingDir   string            `json:"working_dir,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp", sorted
	StopSignal   string            `json:"stop_signal,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Architecture string            `json:"architecture"` // as GOARCH
}

// Image is a sealed image in a Store. It is shared and must not be changed.
type Image struct {
	Digest key.Digest // of the image's manifest
	Path   string     // of the EROFS file, mode 0444
	Size   int64      // of the EROFS file, bytes; holes count
	Config Config

	sum           string // SHA-256 of the EROFS file, hexadecimal
	passwd, group []byte // /etc/passwd and /etc/group; nil when the image has none
}
