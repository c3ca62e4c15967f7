package controller_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/controller"
	"bulkhead/internal/await"
	"bulkhead/token"
)

// cut is how one endpoint is called, on objects made for the call.
type cut struct {
	path    string                   // with {m} for the id of a fresh Machine
	body    any                      // or nil
	changes bool                     // false: the state must not change at all
	prepare func(e *env, id string)  // what the call needs beside a started Machine
	undo    func(e *env, app string) // puts the state back where destroying the app does not
}

// dropTokens revokes every token but the caller's own.
func dropTokens(e *env, _ string) {
	var out struct{ Tokens []controller.Token }
	e.get("/v1/orgs/personal/tokens", &out)
	for _, tok := range out.Tokens {
		e.want(200, "DELETE", "/v1/tokens/"+string(tok.ID), nil, nil)
	}
}

// dropPlatformTokens revokes those that are about no organization.
func dropPlatformTokens(e *env, _ string) {
	var out struct{ Tokens []controller.Token }
	e.get("/v1/tokens", &out)
	for _, tok := range out.Tokens {
		if tok.Kind == token.Metrics && tok.Org == "" {
			e.want(200, "DELETE", "/v1/tokens/"+string(tok.ID), nil, nil)
		}
	}
}

// dropInvitations takes every invitation back.
func dropInvitations(e *env, _ string) {
	var out struct{ Invitations []struct{ ID string } }
	e.get("/v1/orgs/personal/invitations", &out)
	for _, inv := range out.Invitations {
		e.want(200, "DELETE", "/v1/orgs/personal/invitations/"+inv.ID, nil, nil)
	}
}

// dropJoinTokens forgets those that nobody used.
func dropJoinTokens(e *env, _ string) { e.ctl.ForgetJoinTokens(e.t.Context()) }

// dropRootKeys leaves the root key of the caller's token.
func dropRootKeys(e *env, _ string) {
	var out struct{ Keys []controller.RootKey }
	e.get("/v1/platform/token_keys", &out)
	for _, k := range out.Keys {
		if k.Tokens == 0 {
			e.ctl.ForgetRootKey(e.t.Context(), k.ID) // the API keeps the one that makes tokens
		}
	}
}

// reads is a call that changes nothing.
func reads(path string) cut { return cut{path: path} }

// changes is one that does.
func changes(path string, body any) cut { return cut{path: path, body: body, changes: true} }

// cuts has a row for every endpoint; {a} is a fresh app.
func cuts() map[string]cut {
	const m, M = "/v1/apps/{app}/machines/{machine}", "/v1/apps/{a}/machines/{m}"
	stopped := func(e *env, id string) {
		e.want(200, "POST", strings.ReplaceAll("/v1/apps/cut/machines/{m}/stop", "{m}", id), nil, nil)
		e.wait("cut", id, "stopped")
	}
	rows := map[string]cut{
		"GET /healthz": reads("/healthz"), "GET /metrics": reads("/metrics"),
		"GET /v1/apps": reads("/v1/apps"), "GET /v1/apps/{app}": reads("/v1/apps/{a}"),
		"POST /v1/apps":                     {path: "/v1/apps", body: config{"name": "made", "org_slug": "personal"}, changes: true, undo: func(e *env, _ string) { e.do("DELETE", "/v1/apps/made", nil) }},
		"DELETE /v1/apps/{app}":             {path: "/v1/apps/{a}", changes: true},
		"GET /v1/apps/{app}/ip_assignments": reads("/v1/apps/{a}/ip_assignments"),
		"GET /v1/apps/{app}/logs":           reads("/v1/apps/{a}/logs?follow=true"),
		"GET /v1/apps/{app}/machines":       reads("/v1/apps/{a}/machines"),
		"POST /v1/apps/{app}/machines":      changes("/v1/apps/{a}/machines", config{"config": image(), "lease_ttl": 30}),
		"GET " + m:                          reads(M),
		"POST " + m:                         changes(M, config{"config": config{"image": "docker.example/library/app:1", "env": config{"NEW": "1"}}}),
		"DELETE " + m:                       changes(M+"?force=true", nil),
		"POST " + m + "/start":              {path: M + "/start", changes: true, prepare: stopped},
		"POST " + m + "/stop":               changes(M+"/stop", config{"signal": "SIGTERM"}),
		"POST " + m + "/suspend":            changes(M+"/suspend", nil),
		"POST " + m + "/restart":            changes(M+"/restart", nil),
		"POST " + m + "/signal":             {path: M + "/signal", body: config{"signal": "SIGUSR1"}},
		"POST " + m + "/cordon":             changes(M+"/cordon", nil),
		"POST " + m + "/uncordon":           {path: M + "/uncordon", changes: true, prepare: func(e *env, id string) { e.want(200, "POST", "/v1/apps/cut/machines/"+id+"/cordon", nil, nil) }},
		"POST /v1/tokens/oidc":              {path: "/v1/tokens/oidc", body: config{"aud": "x"}}, // refused: no Machine asks
		"GET /v1/platform/issuer":           reads("/v1/platform/issuer"),
		"POST /v1/platform/issuer/rotate":   {path: "/v1/platform/issuer/rotate", body: config{}},
		"GET " + m + "/wait":                reads(M + "/wait?state=stopped&timeout=60"),
		"GET " + m + "/events":              reads(M + "/events"),
		"GET " + m + "/versions":            reads(M + "/versions"),
		"POST " + m + "/exec/stream":        {path: M + "/exec/stream", body: config{"command": []string{"true"}}},
		"POST " + m + "/exec":               {path: M + "/exec", body: config{"command": []string{"true"}}},
		"GET " + m + "/ps":                  reads(M + "/ps"),
		"GET " + m + "/ports":               reads(M + "/ports"),
		"GET " + m + "/logs":                reads(M + "/logs?follow=true"),
		"GET " + m + "/lease":               reads(M + "/lease"),
		"POST " + m + "/lease":              changes(M+"/lease", config{"ttl": 30}),
		"DELETE " + m + "/lease":            changes(M+"/lease", nil), // without its nonce: refused; nothing is released
		"GET " + m + "/metadata":            reads(M + "/metadata"),
		"PUT " + m + "/metadata":            changes(M+"/metadata", config{"metadata": config{"k": "v"}}),
		"PATCH " + m + "/metadata":          changes(M+"/metadata", config{"metadata": config{"k": "v"}}),
		"GET " + m + "/metadata/{key}":      reads(M + "/metadata/k"),
		"POST " + m + "/metadata/{key}":     changes(M+"/metadata/k", config{"value": "v"}),
		"DELETE " + m + "/metadata/{key}": {path: M + "/metadata/k", changes: true, prepare: func(e *env, id string) {
			e.want(204, "POST", "/v1/apps/cut/machines/"+id+"/metadata/k", config{"value": "v"}, nil)
		}},
		"GET /v1/apps/{app}/secrets":                       reads("/v1/apps/{a}/secrets"),
		"POST /v1/apps/{app}/secrets":                      changes("/v1/apps/{a}/secrets", config{"values": config{"A": "v", "B": "w"}}),
		"GET /v1/apps/{app}/secrets/{secret}":              {path: "/v1/apps/{a}/secrets/A", prepare: someSecrets},
		"POST /v1/apps/{app}/secrets/{secret}":             changes("/v1/apps/{a}/secrets/A", config{"value": "v"}),
		"DELETE /v1/apps/{app}/secrets/{secret}":           {path: "/v1/apps/{a}/secrets/A", changes: true, prepare: someSecrets},
		"GET /v1/apps/{app}/secretkeys":                    reads("/v1/apps/{a}/secretkeys"),
		"GET /v1/apps/{app}/secretkeys/{secret}":           {path: "/v1/apps/{a}/secretkeys/k", prepare: someSecrets},
		"POST /v1/apps/{app}/secretkeys/{secret}":          changes("/v1/apps/{a}/secretkeys/k", config{"type": "hs256", "value": make([]byte, 32)}),
		"DELETE /v1/apps/{app}/secretkeys/{secret}":        {path: "/v1/apps/{a}/secretkeys/k", changes: true, prepare: someSecrets},
		"POST /v1/apps/{app}/secretkeys/{secret}/generate": changes("/v1/apps/{a}/secretkeys/k/generate", config{"type": "hs256"}),
		"POST /v1/apps/{app}/secretkeys/{secret}/encrypt":  {path: "/v1/apps/{a}/secretkeys/k/encrypt", body: config{"plaintext": "aGk="}, prepare: someSecrets},
		"POST /v1/apps/{app}/secretkeys/{secret}/decrypt":  {path: "/v1/apps/{a}/secretkeys/k/decrypt", body: config{"ciphertext": "aGk="}, prepare: someSecrets},
		"POST /v1/apps/{app}/secretkeys/{secret}/sign":     {path: "/v1/apps/{a}/secretkeys/k/sign", body: config{"plaintext": "aGk="}, prepare: someSecrets},
		"POST /v1/apps/{app}/secretkeys/{secret}/verify":   {path: "/v1/apps/{a}/secretkeys/k/verify", body: config{"plaintext": "aGk="}, prepare: someSecrets},

		"GET " + m + "/memory": reads(M + "/memory"),

		"POST /v1/claim":                       {path: "/v1/claim", body: config{"name": "x"}}, // refused: the caller is somebody already
		"GET /v1/user":                         reads("/v1/user"),
		"POST /v1/invitations/accept":          {path: "/v1/invitations/accept", body: config{"token": "bh_c_0000000000000000.x"}},
		"GET /v1/users":                        reads("/v1/users"),
		"GET /v1/platform/domains":             reads("/v1/platform/domains"),
		"PUT /v1/platform/domains/{domain}":    {path: "/v1/platform/domains/example.com", body: config{"organization": "personal"}, changes: true, undo: func(e *env, _ string) { e.do("DELETE", "/v1/platform/domains/example.com", nil) }},
		"DELETE /v1/platform/domains/{domain}": changes("/v1/platform/domains/none.example", nil),
		"PATCH /v1/users/{user}":               {path: "/v1/users/admin", body: config{"operator": true}, changes: true},
		"DELETE /v1/users/{user}":              changes("/v1/users/admin", nil), // refused: the last operator
		"GET /v1/orgs":                         reads("/v1/orgs"),
		"POST /v1/orgs":                        {path: "/v1/orgs", body: config{"slug": "cut"}, changes: true, undo: func(e *env, _ string) { e.do("DELETE", "/v1/orgs/cut", nil) }},
		"GET /v1/orgs/{org}":                   reads("/v1/orgs/personal"),
		"DELETE /v1/orgs/{org}": {path: "/v1/orgs/cut", changes: true, prepare: func(e *env, _ string) {
			e.want(201, "POST", "/v1/orgs", config{"slug": "cut"}, nil)
		}, undo: func(e *env, _ string) { e.do("DELETE", "/v1/orgs/cut", nil) }},
		"GET /v1/orgs/{org}/sso":                         reads("/v1/orgs/personal/sso"),
		"PUT /v1/orgs/{org}/sso":                         changes("/v1/orgs/personal/sso", config{"issuer": "http://127.0.0.1:1", "client_id": "c", "domains": []string{"example.com"}, "role": "viewer"}),
		"DELETE /v1/orgs/{org}/sso":                      changes("/v1/orgs/personal/sso", nil),
		"GET /v1/sessions":                               reads("/v1/sessions"),
		"DELETE /v1/sessions/{session}":                  changes("/v1/sessions/all", nil),
		"GET /v1/passkeys":                               reads("/v1/passkeys"),
		"POST /v1/passkeys":                              {path: "/v1/passkeys", body: config{"name": "x"}}, // a link, in memory
		"DELETE /v1/passkeys/{passkey}":                  changes("/v1/passkeys/0000000000000000", nil),
		"GET /v1/orgs/{org}/members":                     reads("/v1/orgs/personal/members"),
		"PUT /v1/orgs/{org}/members/{user}":              changes("/v1/orgs/personal/members/admin", config{"role": "owner"}),
		"DELETE /v1/orgs/{org}/members/{user}":           changes("/v1/orgs/personal/members/admin", nil), // refused: the last owner
		"GET /v1/orgs/{org}/invitations":                 reads("/v1/orgs/personal/invitations"),
		"POST /v1/orgs/{org}/invitations":                {path: "/v1/orgs/personal/invitations", body: config{"role": "viewer"}, changes: true, undo: dropInvitations},
		"DELETE /v1/orgs/{org}/invitations/{invitation}": changes("/v1/orgs/personal/invitations/c_0000000000000000", nil),

		"PATCH /v1/orgs/{org}":                 changes("/v1/orgs/personal", config{"token_max_expiry": ""}),
		"GET /v1/orgs/{org}/tokens":            reads("/v1/orgs/personal/tokens"),
		"POST /v1/orgs/{org}/tokens":           {path: "/v1/orgs/personal/tokens", body: config{"kind": "org"}, changes: true, undo: dropTokens},
		"DELETE /v1/orgs/{org}/tokens/{token}": changes("/v1/orgs/personal/tokens/t_0000000000000000", nil),
		"POST /v1/apps/{app}/deploy_token":     {path: "/v1/apps/{a}/deploy_token", changes: true, undo: dropTokens},
		"GET /v1/tokens":                       reads("/v1/tokens"),
		"GET /v1/tokens/current":               reads("/v1/tokens/current"),
		"DELETE /v1/tokens/{token}":            changes("/v1/tokens/t_0000000000000000", nil),
		"POST /v1/platform/join_tokens":        {path: "/v1/platform/join_tokens", body: config{"role": "worker"}, changes: true, undo: dropJoinTokens},
		"GET /v1/orgs/{org}/metrics":           reads("/v1/orgs/personal/metrics"),
		"POST /v1/platform/tokens":             {path: "/v1/platform/tokens", body: config{"kind": "metrics"}, changes: true, undo: dropPlatformTokens},
		"GET /v1/platform/token_keys":          reads("/v1/platform/token_keys"),
		"POST /v1/platform/token_keys":         {path: "/v1/platform/token_keys", changes: true, undo: dropRootKeys},
		"DELETE /v1/platform/token_keys/{key}": changes("/v1/platform/token_keys/0000000000000000", nil),

		"GET /v1/orgs/{org}/machines":      reads("/v1/orgs/personal/machines"),
		"GET /v1/orgs/{org}/audit":         reads("/v1/orgs/personal/audit?after=1000000&wait=60"),
		"GET /v1/platform/audit":           reads("/v1/platform/audit"),
		"GET /v1/audit/key":                reads("/v1/audit/key"),
		"GET /v1/audit/log/{path...}":      reads("/v1/audit/log/checkpoint"),
		"GET /v1/platform/regions":         reads("/v1/platform/regions"),
		"GET /v1/platform/nodes":           reads("/v1/platform/nodes"),
		"POST /v1/platform/placements":     {path: "/v1/platform/placements", body: config{"org_slug": "personal"}},
		"DELETE /v1/platform/nodes/{node}": {path: "/v1/platform/nodes/n2?force=true", changes: true, undo: takeBack},
		"POST /v1/platform/nodes/{node}/readmit": {path: "/v1/platform/nodes/n2/readmit", changes: true, undo: takeBack, prepare: func(e *env, _ string) {
			e.want(200, "DELETE", "/v1/platform/nodes/n2?force=true", nil, nil)
		}},
	}
	return rows
}

// someSecrets gives the app a secret and a secret key.
func someSecrets(e *env, _ string) {
	e.want(200, "POST", "/v1/apps/cut/secrets", config{"values": config{"A": "v"}}, nil)
	e.want(201, "POST", "/v1/apps/cut/secretkeys/k/generate", config{"type": "nacl_auth"}, nil)
}

// takeBack lets the second node in again.
func takeBack(e *env, _ string) {
	if e.nodes()[node2].State == "removed" {
		e.want(200, "POST", "/v1/platform/nodes/n2/readmit", nil, nil)
	}
	e.waitNodeState(node2, "connected")
}

// TestCallsThatAreCutOff cuts the connection of a call to every endpoint at several
// instants: in its head, in its body, and while it is being answered. What is left
// is the state before or the state after the call, no third one, and nothing that the
// call held. Of the instants after the whole request the seed chooses one for each
// endpoint; "make soak-calls" tries all.
func TestCallsThatAreCutOff(t *testing.T) {
	e := newEnv(t)
	n := e.secondNode()
	n.w.memory = 1 // it takes part, and gets no Machine
	n.unplug()
	e.waitNodeState(node2, "unreachable")
	n.connect()
	e.waitNodeState(node2, "connected")
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("BULKHEAD_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("seed %d (BULKHEAD_SEED)", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	rows, count := cuts(), 0
	e.get("/v1/platform/issuer", nil) // waits until its first key is there
	e.app("there")                    // what is not supported yet says so of an app that there is
	for _, pattern := range e.ctl.Endpoints() {
		row, ok := rows[pattern]
		if !ok {
			if unsupported(e, pattern, "there") {
				continue
			}
			t.Errorf("%s has no row: say what a call that is cut off leaves", pattern)
			continue
		}
		delete(rows, pattern)
		count += e.cutOff(pattern, row, rnd)
	}
	for pattern := range rows {
		t.Errorf("%s has a row and is no endpoint", pattern)
	}
	t.Logf("%d calls cut off", count)
	quiet(t, e)
}

// unsupported reports whether an endpoint only says that it is not there yet.
func unsupported(e *env, pattern, app string) bool {
	method, path, ok := strings.Cut(pattern, " ")
	if !ok {
		method, path = "GET", pattern
	}
	path = strings.NewReplacer("{rest...}", "x", "{app}", app, "{org}", "personal", "{machine}", "01234567890123", "{ip}", "x").Replace(path)
	return e.do(method, path, nil).code == 501
}

// cutOff makes the calls of one row, each on fresh objects.
func (e *env) cutOff(pattern string, row cut, rnd *rand.Rand) (count int) {
	e.t.Helper()
	method, _, _ := strings.Cut(pattern, " ")
	// An app and its Machine cost the time of a start: calls that are not about them do
	// without.
	needs := row.prepare != nil || strings.Contains(row.path, "{a}")
	fresh := func() (id, path string) {
		if !needs {
			return "", row.path
		}
		e.app("cut")
		id = e.launch("cut", image()).ID
		if row.prepare != nil {
			row.prepare(e, id)
		}
		return id, strings.NewReplacer("{a}", "cut", "{m}", id).Replace(row.path)
	}
	clear := func() {
		if row.undo != nil {
			row.undo(e, "cut")
		}
		if needs && e.do("DELETE", "/v1/apps/cut", nil).code != 404 {
			e.awaitNoApp("cut")
		}
	}
	_, path := fresh()
	before := e.state()
	done := before
	if row.changes {
		// The state after is what the call leaves that is not cut off.
		began := time.Now()
		e.do(method, path, row.body)
		// On a machine that has much else to do, what follows takes longer.
		done = e.settled(max(150*time.Millisecond, 4*time.Since(began)), func(string) bool { return true })
	}
	clear()
	early, late := []string{"in the head"}, []string{"at once", "soon", "later"}
	if row.changes && row.body != nil {
		early = append(early, "after the head", "in the body")
	}
	if os.Getenv("BULKHEAD_CUTS") != "all" {
		late = []string{late[rnd.IntN(len(late))]}
	}
	_, path = fresh()
	for i, at := range slices.Concat(early, late) {
		if row.changes && i > len(early) { // the one before may have been carried out
			clear()
			_, path = fresh()
		}
		calls := serving()
		e.sendAndCut(method, path, row.body, at, rnd)
		count++
		// What the server has read of it, it may still be about to do.
		await.True(e.t, fmt.Sprintf("%s cut off %s is no longer served", pattern, at), func() bool { return serving() <= calls })
		last := e.settled(0, func(state string) bool { return state == before || state == done })
		if last != before && last != done {
			e.t.Fatalf("%s cut off %s leaves\n%s\nwhich is neither what was before\n%s\nnor what the whole call leaves\n%s", pattern, at, last, before, done)
		}
		if i < len(early) && e.state() != before {
			e.t.Errorf("%s cut off %s was carried out", pattern, at)
		}
	}
	clear()
	return count
}

// state is the state of the store, in one string.
func (e *env) state() string {
	e.t.Helper()
	all, err := e.ctl.State(context.Background())
	if err != nil {
		e.t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// settled returns the state once it is one of those that ok accepts and the store does not
// change it for a while; or, after 40 seconds, as it is.
func (e *env) settled(while time.Duration, ok func(state string) bool) string {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 40*time.Second)
	defer cancel()
	changes := e.ctl.Changes(ctx)
	last := e.state()
	for since := time.Now(); ; {
		var quiet <-chan time.Time // never, for a state that is not to stay
		if ok(last) {
			if while == 0 {
				return last
			}
			quiet = time.After(while - time.Since(since))
		}
		select {
		case <-quiet:
			return last
		case <-ctx.Done():
			return e.state()
		case <-changes:
			if now := e.state(); now != last {
				last, since = now, time.Now()
			}
		}
	}
}

// sendAndCut sends as much of a request as is said, and closes the connection without
// a word.
func (e *env) sendAndCut(method, path string, body any, at string, rnd *rand.Rand) {
	e.t.Helper()
	conn, err := e.dialAPI(context.Background(), "api."+domain+":443", &tls.Config{RootCAs: e.roots, NextProtos: []string{"http/1.1"}})
	if err != nil {
		e.t.Fatal(err)
	}
	defer conn.NetConn().Close()
	var b []byte
	if body != nil {
		if b, err = json.Marshal(body); err != nil {
			e.t.Fatal(err)
		}
	}
	head := []byte(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: api.%s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", method, path, domain, e.token, len(b)))
	var wait time.Duration
	switch at {
	case "in the head":
		head, b = head[:rnd.IntN(len(head)-4)+1], nil
	case "after the head":
		b = nil
	case "in the body":
		b = b[:len(b)/2]
	case "soon":
		wait = time.Duration(rnd.IntN(3000)) * time.Microsecond
	case "later":
		wait = time.Duration(rnd.IntN(30)) * time.Millisecond
	}
	if _, err := conn.Write(append(head, b...)); err != nil {
		e.t.Fatal(err)
	}
	<-time.After(wait) // the instant of the cut
}

// handlers counts the goroutines that serve a call of the API, serving those that
// serve a connection.
func handlers() int { return goroutines("bulkhead/controller.", ".handle.func") }
func serving() int  { return goroutines("net/http.(*conn).serve(", "") }

// stacks is the room for those of all goroutines, which tests count many times.
var stacks []byte

// goroutines counts the frames whose function begins and goes on as is said. What the
// compiler inlines stands between.
func goroutines(begins, has string) (n int) {
	if stacks == nil {
		stacks = make([]byte, 8<<20)
	}
	for line := range bytes.Lines(stacks[:runtime.Stack(stacks, true)]) {
		if bytes.HasPrefix(line, []byte(begins)) && bytes.Contains(line, []byte(has)) {
			n++
		}
	}
	return n
}

// quiet fails unless, soon, no call is served and nothing is held.
func quiet(t *testing.T, e *env) {
	t.Helper()
	// The control: a call that goes on is seen.
	ctx, cancel := context.WithCancel(context.Background())
	e.app("open")
	m := e.launch("open", image())
	go e.openCall(ctx, "/v1/apps/open/machines/"+m.ID+"/logs?follow=true")
	await.True(e.t, "a call that goes on is seen", func() bool { return handlers() > 0 && e.ctl.Held()["log streams"] == 1 })
	cancel()
	var held []string
	await.True(e.t, "no call is served any more, and nothing is held", func() bool {
		held = held[:0]
		for what, n := range e.ctl.Held() {
			if n != 0 {
				held = append(held, fmt.Sprintf("%d %s", n, what))
			}
		}
		slices.Sort(held)
		return len(held) == 0 && handlers() == 0
	})
}

// openCall makes a call and reads it until ctx ends.
func (e *env) openCall(ctx context.Context, path string) {
	conn, err := e.dialAPI(ctx, "api."+domain+":443", &tls.Config{RootCAs: e.roots, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return
	}
	defer conn.NetConn().Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: api.%s\r\nAuthorization: Bearer %s\r\n\r\n", path, domain, e.token)
	<-ctx.Done()
}
