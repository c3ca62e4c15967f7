package fake

import (
	"archive/tar"
	"bytes"
	"io"
)

// File returns a file of the process's Machine that does not come from its image, with
// the content that is secret, or nil.
func (p *Process) File(name string) (*tar.Header, []byte) {
	r := tar.NewReader(bytes.NewReader(p.Spec.Upper))
	for {
		h, err := r.Next()
		if err != nil {
			return nil, nil
		}
		if h.Name != "."+name {
			continue
		}
		for _, f := range p.Spec.SecretFiles {
			if f.Path == name {
				return h, f.Content
			}
		}
		b, _ := io.ReadAll(r)
		return h, b
	}
}
