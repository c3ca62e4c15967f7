package controller_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// attack is what an attacker does: a process of its own, so that the memory and the
// goroutines that a test counts are the server's.
type attack struct {
	Kind string
	Addr string        // a unix socket, or host:port
	Host string        // server name
	From byte          // last byte of the address in the PROXY header
	N    int           // frames; or connections
	Hold time.Duration // how long it holds connections that the server does not end
}

// outcome is what became of it.
type outcome struct {
	Kind string
	Sent int  // frames that were taken, or connections that were made
	Cut  bool // the server ended the connection
	Left int  // of the connections, those that are open after all
	Err  string
}

const attackerEnv = "BULKHEAD_TEST_ATTACKER"

// floodTime is how long a flood goes on. The server ends it within a fraction of that.
const floodTime = 30 * time.Second

// attackAll runs attacks at once in another process, and returns what became of each.
func attackAll(t *testing.T, attacks []attack) map[string]outcome {
	t.Helper()
	in, err := json.Marshal(attacks)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(bounded(t), os.Args[0], "-test.run=^TestAttacker$", "-test.count=1")
	cmd.Env = append(os.Environ(), attackerEnv+"="+string(in))
	out, err := cmd.Output()
	_, text, ok := strings.Cut(string(out), "outcomes: ")
	var all []outcome
	if err == nil && ok {
		err = json.NewDecoder(strings.NewReader(text)).Decode(&all)
	}
	if err != nil || len(all) != len(attacks) {
		t.Fatalf("the attacker: %v\n%s", err, out)
	}
	got := map[string]outcome{}
	for _, o := range all {
		if o.Err != "" {
			t.Errorf("%s: %s", o.Kind, o.Err)
		}
		got[o.Kind] = o
	}
	return got
}

// TestAttacker is the attacker's process; by itself it does nothing.
func TestAttacker(t *testing.T) {
	text := os.Getenv(attackerEnv)
	if text == "" {
		return
	}
	var attacks []attack
	if err := json.Unmarshal([]byte(text), &attacks); err != nil {
		t.Fatal(err)
	}
	out := make([]outcome, len(attacks))
	var wg sync.WaitGroup
	for i, a := range attacks {
		wg.Go(func() {
			out[i] = a.run()
			out[i].Kind = a.Kind
		})
	}
	wg.Wait()
	b, _ := json.Marshal(out)
	fmt.Printf("\noutcomes: %s\n", b)
}

func (a attack) run() outcome {
	if f := floods[a.Kind]; f != nil {
		return a.flood(f)
	}
	if h, ok := holds[a.Kind]; ok {
		return a.hold(h)
	}
	return outcome{Err: "no such attack"}
}

// dial connects as the edge does.
func (a attack) dial() (net.Conn, error) {
	if !strings.HasPrefix(a.Addr, "/") {
		return net.Dial("tcp", a.Addr)
	}
	c, err := net.Dial("unix", a.Addr)
	if err != nil {
		return nil, err
	}
	src, dst := &net.TCPAddr{IP: net.IPv4(192, 0, 2, a.From), Port: 4242}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
	_, err = proxyproto.HeaderProxyFromAddrs(2, src, dst).WriteTo(c)
	return c, err
}

func (a attack) secure(protocol string) (*tls.Conn, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(floodTime))
	t := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: a.Host, NextProtos: []string{protocol}}) // the attacker believes anything
	if err := t.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return t, nil
}

// floods are the frames of HTTP/2 that an attacker repeats, by name; i counts from 0.
var floods = map[string]func(fr *http2.Framer, head []byte, i int) error{
	"pings": func(fr *http2.Framer, _ []byte, i int) error { return fr.WritePing(false, [8]byte{byte(i)}) },
	"settings": func(fr *http2.Framer, _ []byte, i int) error {
		return fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(1000 + i)})
	},
	"windows": func(fr *http2.Framer, _ []byte, _ int) error { return fr.WriteWindowUpdate(0, 1) },
	"priorities": func(fr *http2.Framer, _ []byte, i int) error {
		return fr.WritePriority(uint32(2*i+1), http2.PriorityParam{})
	},
	"unknown": func(fr *http2.Framer, _ []byte, _ int) error { return fr.WriteRawFrame(0xbe, 0, 0, []byte("x")) },
	"resets": func(fr *http2.Framer, head []byte, i int) error { // CVE-2023-44487
		id := uint32(2*i + 1)
		if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndStream: true, EndHeaders: true}); err != nil {
			return err
		}
		return fr.WriteRSTStream(id, http2.ErrCodeCancel)
	},
	"requests": func(fr *http2.Framer, head []byte, i int) error {
		return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: head, EndStream: true, EndHeaders: true})
	},
	"continuations": func(fr *http2.Framer, head []byte, i int) error { // CVE-2024-27316
		if i == 0 {
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndStream: true})
		}
		return fr.WriteContinuation(1, false, field(i))
	},
	"empty continuations": func(fr *http2.Framer, head []byte, i int) error {
		if i == 0 {
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndStream: true})
		}
		return fr.WriteContinuation(1, false, nil)
	},
	"empty data": func(fr *http2.Framer, head []byte, i int) error { // CVE-2019-9518
		if i == 0 {
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: post(head), EndHeaders: true})
		}
		return fr.WriteData(1, false, nil)
	},
}

// field is a header of 1 KiB, not indexed.
func field(i int) []byte {
	name := fmt.Sprintf("x-%d", i)
	b := append([]byte{0, byte(len(name))}, name...)
	b = append(b, 127, 0x81, 7) // the length 1024: 127 in the prefix, and 897
	return append(b, bytes.Repeat([]byte("v"), 1024)...)
}

// post makes a POST to a public endpoint of a GET.
func post(head []byte) []byte { return bytes.Replace(head, []byte{0x82}, []byte{0x83}, 1) }

// header encodes a GET.
func (a attack) header(path string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	enc.SetMaxDynamicTableSize(0)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", a.Host}, {":path", path}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: f[0] != ":method" && f[0] != ":scheme"})
	}
	return b.Bytes()
}

// flood sends N frames, and finds out whether the server has ended the connection by then:
// one that answers the ping after them has not.
func (a attack) flood(frame func(*http2.Framer, []byte, int) error) outcome {
	c, err := a.secure("h2")
	for i := 0; err != nil && i < 20; i++ { // a slow machine's handshake is ended, too
		<-time.After(100 * time.Millisecond)
		c, err = a.secure("h2")
	}
	if err != nil {
		return outcome{Err: err.Error()}
	}
	defer c.Close()
	w := bufio.NewWriterSize(c, 8<<10)
	io.WriteString(w, http2.ClientPreface)
	fr := http2.NewFramer(w, c)
	fr.WriteSettings()
	last := [8]byte{255, 254, 253}
	var alive, late atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				ne, ok := err.(net.Error)
				late.Store(ok && ne.Timeout())
				return
			}
			switch f := f.(type) {
			case *http2.PingFrame:
				if f.IsAck() && f.Data == last {
					alive.Store(true)
					return
				}
			case *http2.HeadersFrame: // an answer to headers that never end
				if strings.HasSuffix(a.Kind, "continuations") {
					alive.Store(true)
					return
				}
			}
		}
	}()
	head := a.header("/login")
	sent := 0
	for ; sent < a.N && err == nil; sent++ {
		err = frame(fr, head, sent)
	}
	if strings.HasSuffix(a.Kind, "continuations") && err == nil {
		err = fr.WriteContinuation(1, true, nil)
	}
	if err == nil {
		fr.WritePing(false, last)
		w.Flush()
	}
	<-ended // by an answer, by the server, or by the deadline
	return outcome{Sent: sent, Cut: !alive.Load() && !late.Load()}
}

// held is a connection that goes on for as long as the server lets it.
type held struct {
	tls  bool
	say  string // first
	drip string // then, every 50 ms
}

// holds are the ways to be slow, by name. %s is the host.
var holds = map[string]held{
	"silence":       {},
	"half a hello":  {say: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", drip: "x"},
	"idle":          {tls: true},
	"slow head":     {tls: true, say: "GET / HTTP/1.1\r\nHost: %s\r\n", drip: "X: y\r\n"},
	"slow body":     {tls: true, say: "POST /v1/tokens/authenticate HTTP/1.1\r\nHost: %s\r\nContent-Length: 90000\r\n\r\n", drip: "x"},
	"slow leftover": {tls: true, say: "POST /v1/apps HTTP/1.1\r\nHost: %s\r\nContent-Length: 90000\r\n\r\n", drip: "x"},
	"slow push":     {tls: true, say: "POST /v2/web/blobs/uploads/ HTTP/1.1\r\nHost: %s\r\nContent-Length: 90000\r\n\r\n", drip: "x"},
	"handshakes":    {tls: true, say: "close"},
}

// hold makes N connections, and counts those that the server has not ended after a.Hold.
func (a attack) hold(h held) outcome {
	var made, left atomic.Int32
	var wg sync.WaitGroup
	for range a.N {
		wg.Go(func() {
			var c net.Conn
			var err error
			if h.tls {
				c, err = a.secure("http/1.1")
			} else {
				c, err = a.dial()
			}
			if err != nil {
				return // the server's right
			}
			defer c.Close()
			made.Add(1)
			if h.say == "close" {
				return
			}
			c.SetDeadline(time.Now().Add(a.Hold)) // a handshake may take long on a busy machine
			if h.say != "" {
				io.WriteString(c, strings.Replace(h.say, "%s", a.Host, 1))
			}
			if h.drip != "" {
				go func() { // until the connection ends, or the reader closes it
					for range time.Tick(50 * time.Millisecond) {
						if _, err := io.WriteString(c, h.drip); err != nil {
							return
						}
					}
				}()
			}
			_, err = io.Copy(io.Discard, c)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				left.Add(1)
			}
		})
	}
	wg.Wait()
	return outcome{Sent: int(made.Load()), Left: int(left.Load())}
}
