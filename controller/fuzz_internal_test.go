package controller

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/pires/go-proxyproto"
	"golang.org/x/net/http/httpguts"

	"bulkhead/fault"
	"bulkhead/role"
)

// oneConn is a listener with one connection.
type oneConn struct{ c chan net.Conn }

func (l oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.c; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l oneConn) Close() error   { return nil }
func (l oneConn) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// FuzzProxyHeader: the bytes in front of a connection are a PROXY header of version 2
// that says whose it is, and all that follows is read as it was sent; or nothing is.
func FuzzProxyHeader(f *testing.F) {
	for _, a := range []string{"192.0.2.7", "2001:db8::7"} {
		b, err := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.ParseIP(a), Port: 4242}, &net.TCPAddr{IP: net.ParseIP(a), Port: 443}).Format()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, "\x16\x03\x01hello"...))
		f.Add(b[:len(b)-3])
		local := append([]byte{}, b...)
		local[12] = 0x20
		f.Add(local)
		long := append([]byte{}, b...)
		long[14], long[15] = 0xff, 0xff
		f.Add(append(long, make([]byte, 300)...))
	}
	f.Add([]byte("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.1\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		in := oneConn{make(chan net.Conn, 1)}
		in.c <- far
		c, err := proxyListener(in).Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			near.SetDeadline(time.Now().Add(5 * time.Second))
			near.Write(b)
			near.Close()
		}()
		got, err := io.ReadAll(c)
		from := c.RemoteAddr()
		c.Close()
		if len(got) == 0 {
			return
		}
		if len(b) < 16 || !strings.HasPrefix(string(b), "\r\n\r\n\x00\r\nQUIT\n\x21") && !strings.HasPrefix(string(b), "\r\n\r\n\x00\r\nQUIT\n\x20") {
			t.Errorf("%q was let in without a header of version 2: %q, %v", b, got, err)
		}
		if !strings.HasSuffix(string(b), string(got)) || len(got) > len(b)-16 {
			t.Errorf("of %q it reads %q", b, got)
		}
		if from == nil || from.String() == "" && b[12] == 0x21 {
			t.Errorf("%q comes from nowhere", b)
		}
	})
}

// FuzzQuery: whatever stands in a query, what is read from it is within its bounds, and
// what is refused is the caller's mistake, told in a bounded sentence.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"state=started&timeout=10", "state=started,stopped&state=settled", "version=01ARZ3NDEKTSV4RRFFQ69G5FAV", "timeout=1h&force=true", "timeout=-1", "timeout=9223372036854775807s", "timeout=1e9h",
		"force", "force=&kill=maybe", "tail=0", "tail=99999999999999999999", "limit=-5", "signal=SIGTERM&timeout=%zz", "a;b", "state=%00", "instance_id=x", "from_event_id=" + strings.Repeat("a", 5000), "tail=٣",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r := &call{Request: &http.Request{Method: "GET", URL: &url.URL{Path: "/", RawQuery: query}, Header: http.Header{}}}
		refused := func(err error) bool {
			if err != nil && (!fault.Is(err, fault.Invalid) || len(err.Error()) > 1000) {
				t.Errorf("%q: %v", query, err)
			}
			return err != nil
		}
		if w, err := parseWait(r); !refused(err) && (w.limit < time.Second || w.limit > maxWait || len(w.states) == 0) {
			t.Errorf("%q waits %v for %v", query, w.limit, w.states)
		}
		if n, err := r.number("tail", 7, 1, 100); !refused(err) && (n < 1 || n > 100) {
			t.Errorf("%q is %d", query, n)
		}
		for _, name := range []string{"force", "kill"} {
			if v, err := r.flag(name); !refused(err) && v && !r.URL.Query().Has(name) {
				t.Errorf("%q sets %s", query, name)
			}
		}
		if d, err := queryDuration(r.URL.Query().Get("timeout")); !refused(err) && d < 0 {
			t.Errorf("%q lasts %v", query, d)
		}
	})
}

// FuzzAuthorization: whatever stands in the header, the token is what stands behind
// the scheme, and a header of another scheme has none.
func FuzzAuthorization(f *testing.F) {
	for _, s := range []string{"Bearer bh_x", "FlyV1 fm2_a,fm2_b", "bearer  x ", "Basic eDp5", "Digest x", "Bearer", "Bearer\tx", "Bearer x y", "", "FLYV1 \x00", "Bearer " + strings.Repeat("x", 70_000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !httpguts.ValidHeaderFieldValue(s) {
			return // net/http lets none in
		}
		r := httptest.NewRequest("GET", "/v1/apps", nil)
		r.Header["Authorization"] = []string{s}
		token := tokenOf(r)
		if len(token) > len(s) || !strings.Contains(s, token) {
			t.Errorf("%q holds %q", s, token)
		}
		scheme, _, _ := strings.Cut(s, " ")
		if !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "FlyV1") && token != "" {
			t.Errorf("%q holds %q", s, token)
		}
	})
}

// FuzzReference: a reference to the cluster's own registry is taken for one in every
// spelling that the worker would fetch from there, and names a repository.
func FuzzReference(f *testing.F) {
	c := &Controller{cfg: Config{Role: role.Config{Domain: "test.localhost"}}}
	d := "sha256:" + strings.Repeat("0f", 32)
	for _, s := range []string{
		"registry.test.localhost/web", "registry.test.localhost:8443/web:v1", "REGISTRY.test.localhost/web@" + d, "registry.test.localhost/web:v1@" + d, "nginx", "nginx:1", "ghcr.io/a/b@" + d,
		"registry.test.localhost/", "registry.test.localhost/../x:y", "registry.test.localhost/a:b:c", "registry.test.localhost/a@@", "registry.test.localhost:x/a", "evil/registry.test.localhost/web", "registry.test.localhost@evil/x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		img, own, err := c.parseOwn(s)
		if err != nil {
			if !own || !fault.Is(err, fault.Invalid) || len(err.Error()) > 400 {
				t.Errorf("%q: %v, %v", s, own, err)
			}
			return
		}
		if ref, err := name.ParseReference(s); err == nil && !own {
			host := ref.Context().RegistryStr()
			if h, _, err := net.SplitHostPort(host); err == nil {
				host = h
			}
			if strings.EqualFold(host, c.registryHost()) {
				t.Errorf("%q is at %s and not taken for the cluster's own", s, host)
			}
		}
		if own && (img.repo == "" || img.tag == "" && img.digest == "" || !strings.Contains(s, img.repo)) {
			t.Errorf("%q is %+v", s, img)
		}
	})
}

// FuzzForm: a request whose form is taken has one way to be read: its path is clean
// however its escapes are written, and its query gives all its parameters.
func FuzzForm(f *testing.F) {
	for _, s := range [][3]string{
		{"/v1/apps/web/machines", "", "application/json"}, {"/v1/apps/../x", "a=b", ""}, {"/v1/apps/%2e%2e/x", "", "text/plain"}, {"/v1//apps", "a;b", "application/json; charset=utf-8"},
		{"/v1/apps/a%2fb", "%zz", "multipart/form-data"}, {"/v1/apps/%00", "a&b&c", "application/x+json"}, {"/v1/apps/%ff", "", "APPLICATION/JSON"}, {"/", strings.Repeat("a&", 200), ""}, {"/v1/аpps", "", "application/json\x00"},
		{"/v1/apps/.", "", ""}, {"/v1/apps/", "", ""}, {"/./v1", "", ""}, {"/v1/apps/a%0d%0ab", "a=%0d%0a", ""}, {"http://evil.example/v1/apps", "x", ""}, {"*", "", ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, target, query, media string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return // net/http lets none in
		}
		u.RawQuery = query
		r := &http.Request{Method: "POST", URL: u, RequestURI: target + "?" + query, Header: http.Header{"Content-Type": {media}}}
		if err := checkMedia(r.Header); err != nil && len(err.Error()) > 1000 {
			t.Errorf("%q: %v", media, err)
		}
		err = checkSize(r)
		if err == nil {
			err = checkForm(r)
		}
		if err != nil {
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.TooLarge {
				t.Errorf("%q: %v", target, err)
			}
			return
		}
		if len(r.RequestURI) > maxTarget {
			t.Errorf("%d bytes were taken", len(r.RequestURI))
		}
		if p := u.EscapedPath(); strings.HasPrefix(p, "/") && path.Clean(p) != p && path.Clean(p)+"/" != p {
			t.Errorf("the path %q was taken", p)
		}
		if strings.ContainsAny(u.Path, "\r\n\x00") {
			t.Errorf("the path %q was taken", u.Path)
		}
		if v, err := url.ParseQuery(query); err != nil || len(v) > maxParameters {
			t.Errorf("the query %q was taken", query)
		}
	})
}
