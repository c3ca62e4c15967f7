package controller_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// deviation is a known difference between an answer and the OpenAPI file. Each has a
// reason, and the suite fails when one no longer occurs.
type deviation struct {
	name   string
	match  *regexp.Regexp // against "METHOD path code: problem"
	reason string
}

var deviations = []deviation{
	{"app is answered by POST /apps", regexp.MustCompile(`^POST /apps 201: undocumented body`), "the file has no body for 201; the Go client decodes an App"},
	{"bodies where the file has none", regexp.MustCompile(`^(POST|DELETE) /apps/\{app_name\}/machines/\{machine_id\}(/[a-z]+)? 200: undocumented body`), "documents and clients have {ok:true} and the like"},
	{"error codes beside the file's", regexp.MustCompile(`^[A-Z]+ \S+ (400|401|403|404|408|409|412|413|414|415|422|429|431|501|503): undocumented code`), "documented in prose, or seen; the body is the file's ErrorResponse"},
	{"name_taken", regexp.MustCompile(`^POST /apps 422: .*status.*`), "a status that newer clients read"},
	{"fields that clients read", regexp.MustCompile(`: .*property "(version|cordoned)" is unsupported`), "the Go client reads version and cordoned of a Machine"},
	{"what a token lacks", regexp.MustCompile(`(401|403): at "/status": value is not one of the allowed values`), "clients read from it that a discharge or single sign-on is missing"},
	{"why a deletion lasts", regexp.MustCompile(`^GET /apps.*: .*property "status_reason" is unsupported`), "an app that is being deleted says what it waits for"},
	{"bytes in base64", regexp.MustCompile(`/secretkeys.* (200|201): .*/(public_key|ciphertext|plaintext|signature)"`), "the file has arrays of integers, the Go client sends and reads base64; both are taken"},
	{"secrets' version and status", regexp.MustCompile(`/secrets 200: .*property "(version|status)" is unsupported`), "whether a secret is staged or deployed, and the version to ask for"},
	{"lease envelope", regexp.MustCompile(`/lease (200|201): .*property "(status|data)" is unsupported`), "the file has a bare Lease, documents and clients an envelope: both are sent"},
	{"bytes of a command", regexp.MustCompile(`/exec 200: .*property "(stdout|stderr)_base64" is unsupported`), "text cannot hold every byte"},
	{"autostop as old clients read it", regexp.MustCompile(`: .*/autostop".*`), "false, true or \"suspend\" in place of the words"},
}

// contract checks answers against the OpenAPI file.
type contract struct {
	router  routers.Router
	errBody *openapi3.Schema

	mu       sync.Mutex
	checked  int
	unknown  int            // answers of endpoints that the file does not have
	seen     map[string]int // by deviation
	problems []string
}

func newContract() (*contract, error) {
	l, err := loaded()
	if err != nil {
		return nil, err
	}
	return &contract{router: l.router, errBody: l.errBody, seen: map[string]int{}}, nil
}

// loaded reads the OpenAPI file, once.
var loaded = sync.OnceValues(func() (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromFile("testdata/machines-api.openapi.json")
	if err != nil {
		return nil, err
	}
	doc.Servers = openapi3.Servers{{URL: "/v1"}}
	// The file allows any further field everywhere, which would let every misspelling
	// pass: an object with named fields has these and no others.
	for _, s := range doc.Components.Schemas {
		closeObjects(s, map[*openapi3.Schema]bool{})
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, err
	}
	return &contract{router: router, errBody: doc.Components.Schemas["ErrorResponse"].Value}, nil
})

func closeObjects(ref *openapi3.SchemaRef, done map[*openapi3.Schema]bool) {
	if ref == nil || ref.Value == nil || done[ref.Value] {
		return
	}
	s := ref.Value
	done[s] = true
	if len(s.Properties) > 0 && s.AdditionalProperties.Schema == nil && s.AdditionalProperties.Has == nil {
		no := false
		s.AdditionalProperties.Has = &no
	}
	for _, p := range s.Properties {
		closeObjects(p, done)
	}
	closeObjects(s.Items, done)
	closeObjects(s.AdditionalProperties.Schema, done)
	for _, p := range s.AllOf {
		closeObjects(p, done)
	}
}

// check looks at one answer and notes what is wrong with it.
func (c *contract) check(method string, u *url.URL, code int, header http.Header, body []byte) {
	req := &http.Request{Method: method, URL: &url.URL{Path: u.Path, RawQuery: u.RawQuery}, Header: http.Header{}}
	route, params, err := c.router.FindRoute(req)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.unknown++
		return
	}
	c.checked++
	note := func(problem string) {
		line := fmt.Sprintf("%s %s %d: %s", method, route.Path, code, strings.ReplaceAll(problem, "\n", " "))
		for _, d := range deviations {
			if d.match.MatchString(line) {
				c.seen[d.name]++
				return
			}
		}
		c.problems = append(c.problems, line)
	}
	if header.Get("fly-request-id") == "" {
		note("no fly-request-id")
	}
	documented := route.Operation.Responses.Status(code)
	if documented == nil {
		note("undocumented code")
		for _, p := range validate(c.errBody, body) {
			note(p)
		}
		return
	}
	media := documented.Value.Content.Get("application/json")
	switch {
	case media == nil && len(body) > 0:
		note("undocumented body")
	case media != nil && len(body) == 0:
		note("no body")
	case media != nil:
		in := &openapi3filter.ResponseValidationInput{
			RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route},
			Status:                 code, Header: header, Options: &openapi3filter.Options{MultiError: true, IncludeResponseStatus: true},
		}
		in.SetBodyBytes(body)
		for _, p := range leaves(openapi3filter.ValidateResponse(context.Background(), in)) {
			note(p)
		}
	}
}

// validate checks a body against one schema.
func validate(s *openapi3.Schema, body []byte) []string {
	v, err := decodeJSON(body)
	if err != nil {
		return []string{"not JSON: " + err.Error()}
	}
	return leaves(s.VisitJSON(v, openapi3.MultiErrors()))
}

// leaves takes an error with many parts apart, so that each is judged alone.
func leaves(err error) []string {
	switch e := err.(type) {
	case nil:
		return nil
	case openapi3.MultiError:
		var out []string
		for _, p := range e {
			out = append(out, leaves(p)...)
		}
		return out
	case *openapi3.SchemaError:
		if e.Origin != nil {
			if in := leaves(e.Origin); len(in) > 1 {
				return in
			}
		}
		return []string{fmt.Sprintf("at %q: %s", "/"+strings.Join(e.JSONPointer(), "/"), e.Reason)}
	case *openapi3filter.ResponseError:
		if e.Err != nil {
			return leaves(e.Err)
		}
		return []string{e.Reason}
	}
	return []string{err.Error()}
}

// RoundTripper returns a transport that checks every answer on its way.
func (c *contract) RoundTripper(next http.RoundTripper) http.RoundTripper {
	return roundTripper{next: next, f: func(req *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err != nil || strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-ndjson") {
			return resp, err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		c.check(req.Method, req.URL, resp.StatusCode, resp.Header, body)
		return resp, nil
	}}
}

type roundTripper struct {
	f    func(*http.Request) (*http.Response, error)
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return t.f(r) }

// CloseIdleConnections lets http.Client.CloseIdleConnections through.
func (t roundTripper) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// total sums up all tests' contracts; see TestMain.
var total struct {
	mu               sync.Mutex
	checked, unknown int
	seen             map[string]int
}

// report fails the test for every problem, once each.
func (c *contract) report(t testing.TB) {
	c.mu.Lock()
	defer c.mu.Unlock()
	total.mu.Lock()
	total.checked += c.checked
	total.unknown += c.unknown
	if total.seen == nil {
		total.seen = map[string]int{}
	}
	for name, n := range c.seen {
		total.seen[name] += n
	}
	total.mu.Unlock()
	sort.Strings(c.problems)
	last := ""
	for _, p := range c.problems {
		if p != last {
			t.Errorf("an answer does not match the OpenAPI file: %s", p)
		}
		last = p
	}
}

// TestMain counts, when the whole suite has run, what the contract was held against:
// a deviation that no answer shows any more has to leave the list.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	removeTemplate()
	whole := flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == ""
	if code == 0 && whole {
		fmt.Printf("%d answers held against the OpenAPI file, %d of endpoints that it does not have\n", total.checked, total.unknown)
		for _, d := range deviations {
			fmt.Printf("deviation %q: %d answers (%s)\n", d.name, total.seen[d.name], d.reason)
			if total.seen[d.name] == 0 {
				fmt.Printf("FAIL: deviation %q no longer occurs\n", d.name)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// TestContractControl gives the checker broken answers: it must find each.
func TestContractControl(t *testing.T) {
	get := func(path string) *url.URL { return &url.URL{Path: path} }
	head := http.Header{"Fly-Request-Id": {"x"}, "Content-Type": {"application/json"}}
	for name, tc := range map[string]struct {
		method, path string
		code         int
		header       http.Header
		body         string
	}{
		"a number for a string":    {"GET", "/v1/apps/a", 200, head, `{"id": 7}`},
		"a misspelt field":         {"GET", "/v1/apps/a", 200, head, `{"nane": "a"}`},
		"null":                     {"GET", "/v1/apps/a", 200, head, `{"name": null}`},
		"deep inside":              {"GET", "/v1/apps/a/machines", 200, head, `[{"config": {"guest": {"cpus": "two"}}}]`},
		"an object for an array":   {"GET", "/v1/apps/a/machines", 200, head, `{}`},
		"a wrong enumeration":      {"GET", "/v1/apps/a/machines/m", 200, head, `{"host_status": "fine"}`},
		"no request id":            {"GET", "/v1/apps/a", 200, http.Header{"Content-Type": {"application/json"}}, `{}`},
		"a strange error":          {"GET", "/v1/apps/a", 404, head, `{"message": "gone"}`},
		"an undocumented code":     {"GET", "/v1/apps/a", 299, head, `{}`},
		"no body where one is":     {"GET", "/v1/apps/a", 200, head, ``},
		"text in place of JSON":    {"GET", "/v1/apps/a", 200, head, `ok`},
		"a body with no content":   {"PUT", "/v1/apps/a/machines/m/metadata", 204, head, `{}`},
		"nanoseconds for a text":   {"GET", "/v1/apps/a/machines/m", 200, head, `{"config": {"stop_config": {"timeout": 5000000000}}}`},
		"several at the same time": {"GET", "/v1/apps/a/machines/m", 200, head, `{"cordoned": true, "idd": "x"}`},
	} {
		c, err := newContract()
		if err != nil {
			t.Fatal(err)
		}
		c.check(tc.method, get(tc.path), tc.code, tc.header, []byte(tc.body))
		if len(c.problems) == 0 {
			t.Errorf("%s: not found", name)
		}
	}
	c, err := newContract()
	if err != nil {
		t.Fatal(err)
	}
	c.check("GET", get("/v1/apps/a"), 200, head, []byte(`{"id":"1","name":"a","machine_count":0}`))
	if len(c.problems) != 0 || c.checked != 1 {
		t.Errorf("a good answer: %v", c.problems)
	}
}
