package controller_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"bulkhead/api/execstream"
	"bulkhead/audit"
	"bulkhead/internal/await"
)

// execEnd is how a stream of frames ended.
type execEnd struct {
	code   int    // of the answer; 0 when it was 200
	stdout []byte // of the command
	last   execstream.Type
	json   string // of the last frame, or the answer's body
}

// stream runs a command over frames. A nil body sends no input and leaves it open.
func (e *env) stream(protocol, path, text, begin string, stdin []byte) (end execEnd) {
	e.t.Helper()
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		execstream.Write(w, execstream.Begin, []byte(begin))
		for at := 0; at < len(stdin); at += 10_000 {
			if execstream.Write(w, execstream.Stdin, stdin[at:min(len(stdin), at+10_000)]) != nil {
				return
			}
		}
		if stdin != nil {
			execstream.Write(w, execstream.StdinEnd, nil)
			w.Close()
		}
	}()
	req, err := http.NewRequest("POST", "https://api."+domain+path, r)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+text)
	req.Header.Set("Content-Type", execstream.MediaType)
	t := e.transportFor(protocol)
	defer t.CloseIdleConnections()
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		e.t.Fatalf("%s: %v", begin, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		return execEnd{code: resp.StatusCode, json: string(b)}
	}
	for frames := execstream.NewReader(resp.Body); ; {
		typ, b, err := frames.Next()
		if err != nil {
			if err != io.EOF {
				e.t.Fatalf("%s: %v", begin, err)
			}
			return end
		}
		if typ == execstream.Stdout {
			end.stdout = append(end.stdout, b...)
			continue
		}
		end.last, end.json = typ, string(b)
	}
}

// TestExecStream: bytes go through unchanged in both directions, over either protocol, and
// what is wrong is said in the answer or in the last frame.
func TestExecStream(t *testing.T) {
	e := newEnv(t)
	e.app("web")
	m := e.launch("web", image())
	path := "/v1/apps/web/machines/" + m.ID + "/exec/stream"
	in := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{7}).Read(in)
	for _, protocol := range []string{"h2", "http/1.1"} {
		if end := e.stream(protocol, path, e.token, `{"command":["cat","s3cret"]}`, in); end.last != execstream.Exit || end.json != `{"exit_code":3,"exit_signal":0}` || !bytes.Equal(end.stdout, in) {
			t.Errorf("%s: cat gave %d bytes of %d, %d %q %s", protocol, len(end.stdout), len(in), end.code, end.last, end.json)
		}
		if end := e.stream(protocol, path, e.token, `{"command":["flood","5000001"]}`, nil); end.last != execstream.Exit || len(end.stdout) != 5000001 {
			t.Errorf("%s: flood gave %d bytes, %q %s", protocol, len(end.stdout), end.last, end.json)
		}
		for begin, want := range map[string]string{
			`{"command":["fail"]}`:                      `does not exist in the image`,
			`{"command":[]}`:                            `command is missing`,
			`{"command":["cat"],"stdin":"x"}`:           `stdin does not belong into the first frame`,
			`{"command":["cat"],"timeout":86401}`:       `it must be 1 to 86400`,
			`nonsense`:                                  `JSON`,
			`{"command":["cat"],"container":"sidecar"}`: `no containers`,
		} {
			end := e.stream(protocol, path, e.token, begin, nil)
			var body struct{ Error string }
			if err := json.Unmarshal([]byte(end.json), &body); err != nil || end.code < 400 || !strings.Contains(body.Error, want) {
				t.Errorf("%s, %s: %d %s, want %q", protocol, begin, end.code, end.json, want)
			}
		}
	}
	e.refused(400, "content type", "POST", path, config{"command": []string{"cat"}})
	e.want(401, "POST", path, nil, nil, "Authorization", "")
	other := e.makeToken(config{"kind": "machine-exec", "app": "web", "commands": [][]string{{"flood"}}})
	if end := e.stream("h2", path, other.Token, `{"command":["cat"]}`, []byte{}); end.code != 403 {
		t.Errorf("a token for another command: %d %s", end.code, end.json)
	}
	// The record has the program, and none of its words.
	n := 0
	for _, r := range e.auditLog("personal") {
		if strings.HasSuffix(r.Action, "/exec/stream") && r.Result == audit.OK {
			if n++; r.Detail != "1 arguments" || r.Target != "command=cat" && r.Target != "command=flood" {
				t.Errorf("the record is %+v", r)
			}
		}
	}
	if n != 4 {
		t.Errorf("%d commands have a record, want 4", n)
	}
}

// sleepStream runs a command over frames that does not end by itself, and gives the last frame.
func (e *env) sleepStream(t *testing.T, path, text string) <-chan string {
	e.worker.mu.Lock()
	begun, killed := e.worker.execsBegun, e.worker.execsEnded
	e.worker.mu.Unlock()
	ended := make(chan string, 1)
	go func() {
		end := e.stream("h2", path, text, `{"command":["sleep"]}`, nil)
		await.True(e.t, "the command is killed", func() bool {
			e.worker.mu.Lock()
			defer e.worker.mu.Unlock()
			return e.worker.execsEnded > killed
		})
		ended <- string(end.last) + end.json
	}()
	// A request that ends before the worker has heard of it starts no command.
	await.True(e.t, "the command runs", func() bool {
		e.worker.mu.Lock()
		defer e.worker.mu.Unlock()
		return e.worker.execsBegun > begun
	})
	return ended
}
