package controller_test

import (
	"context"
	"encoding/base64"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/pires/go-proxyproto"

	"bulkhead/controller"
)

// front is a port of the loopback that leads to the api socket, as the edge does.
func (e *env) front() string {
	e.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer near.Close()
				far, err := net.Dial("unix", e.socks["api"])
				if err != nil {
					return
				}
				defer far.Close()
				src, dst := &net.TCPAddr{IP: net.IPv4(192, 0, 2, e.from), Port: 4242}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
				if _, err := proxyproto.HeaderProxyFromAddrs(2, src, dst).WriteTo(far); err != nil {
					return
				}
				go func() { io.Copy(far, near); far.Close() }()
				io.Copy(near, far)
			}()
		}
	}()
	return l.Addr().String()
}

// chromium is a real browser, which believes the cluster's certificate and no other. Each
// call of the function it returns opens a browser of its own, as far as pages can tell.
func (e *env) chromium() func() *tab {
	e.t.Helper()
	path, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		e.t.Fatal("chromium-headless-shell is missing: scripts/setup-tests installs it")
	}
	pin, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(e.pin, "="))
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	e.t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, // tests run as root, and it sees our own pages alone
		chromedp.UserDataDir(e.t.TempDir()),
		chromedp.Flag("host-resolver-rules", "MAP api."+domain+":8443 "+e.front()+", MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(pin)),
	)...)
	e.t.Cleanup(cancel)
	first, cancel := chromedp.NewContext(ctx)
	e.t.Cleanup(func() { chromedp.Cancel(first); cancel() })
	if err := chromedp.Do(first); err != nil {
		e.t.Fatal(err)
	}
	return func() *tab {
		ctx, cancel := chromedp.NewContext(first, chromedp.WithNewBrowserContext())
		e.t.Cleanup(cancel)
		if err := chromedp.Do(ctx); err != nil {
			e.t.Fatal(err)
		}
		return &tab{t: e.t, ctx: ctx}
	}
}

// tab is a browser with one page.
type tab struct {
	t      testing.TB
	ctx    context.Context
	device webauthn.AuthenticatorID
}

// do does one thing after the other, each for half a minute at most.
func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	for _, step := range steps {
		_, err := within(b, step)
		// The browser looks at all interfaces of the machine, and gives up loading a page when
		// one of them comes or goes, such as those of another test's Machines.
		for range 20 {
			if err == nil || !strings.Contains(err.Error(), "net::ERR_NETWORK_CHANGED") {
				break
			}
			b.t.Log("the machine's network changed; the page is loaded again")
			_, err = within(b, step)
		}
		if err != nil {
			at, _ := within(b, chromedp.Location())
			page, _ := within(b, chromedp.OuterHTML(chromedp.CSS("html")))
			b.t.Fatalf("%v, on %s: %s", err, at, page)
		}
	}
}

func within[T any](b *tab, a chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	return chromedp.Run(ctx, a)
}

func see(what string) chromedp.Action[chromedp.Void]   { return chromedp.WaitVisible(chromedp.CSS(what)) }
func click(what string) chromedp.Action[chromedp.Void] { return chromedp.Click(chromedp.CSS(what)) }

// text waits until something is seen, and says what it says.
func (b *tab) text(what string) string {
	b.t.Helper()
	b.do(see(what))
	s, err := within(b, chromedp.Text(chromedp.CSS(what)))
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// open goes to an address, also to one that differs behind the # alone.
func (b *tab) open(url string) {
	b.t.Helper()
	b.do(chromedp.Navigate("about:blank"), chromedp.Navigate(url))
}

// command is one of the protocol's.
func command[P, R any](b *tab, c cdp.Command[P, R], in P) R {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	out, err := chromedp.Call(ctx, c, in)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// plug gives the browser an authenticator of its own, which holds keys.
func (b *tab) plug(verifies bool, keys ...*webauthn.Credential) {
	b.t.Helper()
	command(b, webauthn.Enable, webauthn.EnableParams{})
	b.device = command(b, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal, HasResidentKey: true,
		HasUserVerification: true, IsUserVerified: verifies, AutomaticPresenceSimulation: true,
	}}).AuthenticatorID
	for _, k := range keys {
		// What the library would send beside these, this authenticator does not take.
		command(b, cdp.Command[map[string]any, cdp.Empty]{Method: webauthn.CommandAddCredential}, config{"authenticatorId": b.device, "credential": config{
			"credentialId": k.CredentialID, "isResidentCredential": true, "rpId": k.RpID, "privateKey": k.PrivateKey, "userHandle": k.UserHandle, "signCount": k.SignCount,
		}})
	}
}

func (b *tab) keys() []*webauthn.Credential {
	b.t.Helper()
	return command(b, webauthn.GetCredentials, webauthn.GetCredentialsParams{AuthenticatorID: b.device}).Credentials
}

// refused signs in and must not get in.
func (b *tab) refused(who, want string) {
	b.t.Helper()
	b.open(apiURL + "/login")
	b.do(click("#sign-in button"))
	if said := b.text(`[role=alert]:not(:empty)`); !strings.Contains(said, want) {
		b.t.Errorf("%s: %q, want %q", who, said, want)
	}
	b.open(apiURL + "/device")
	b.do(see("#sign-in")) // not signed in
}

// TestPasskeysInABrowser goes the whole way in Chromium, of which the authenticator alone
// is virtual: a link, a passkey, a sign-in, the approval of a command line. A browser
// without the passkey, devices that lie, and a copy of the passkey get nowhere.
func TestPasskeysInABrowser(t *testing.T) {
	e := newEnvWithoutWorker(t)
	browser := e.chromium()
	link := func(name string) string {
		var l controller.PasskeyLink
		e.want(201, "POST", "/v1/passkeys", config{"name": name}, &l)
		return l.URL
	}

	// A passkey is made.
	admin, url := browser(), link("chromium")
	admin.plug(true)
	admin.open(url)
	if user := admin.text("#user"); user != "admin" {
		t.Errorf("the page makes a passkey for %q", user)
	}
	admin.do(click("#make button"))
	if said := admin.text("#done"); !strings.Contains(said, "Passkey chromium of admin is kept") {
		t.Errorf("made: %q", said)
	}
	keys := admin.keys()
	if len(keys) != 1 || keys[0].RpID != "api."+domain || !keys[0].IsResidentCredential {
		t.Fatalf("the device holds %+v", keys)
	}
	admin.open(url)
	if said := admin.text("#trouble:not(:empty)"); !strings.Contains(said, "this link is over") {
		t.Errorf("a link a second time: %q", said)
	}
	admin.open(link("again"))
	admin.do(click("#make button"))
	if said := admin.text("#trouble:not(:empty)"); !strings.Contains(said, "has a passkey of yours already") {
		t.Errorf("a second one on the same device: %q", said)
	}

	// In the course of a login of a command line somebody signs in, and approves that.
	c := e.terminal(controller.CLIStart{Name: "laptop"})
	admin.open(c.AuthURL)
	admin.do(click("#sign-in button"))
	if code := admin.text("#code"); code != c.Code {
		t.Errorf("the page shows %q, and the terminal %q", code, c.Code)
	}
	admin.do(click(`button[value="approve"]`), see("#done"))
	got := c.poll(200)
	if got.User != "admin" || got.Method != "passkey" {
		t.Errorf("%+v", got)
	}
	e.want(200, "GET", "/v1/user", nil, nil, bearer(got.Token)...)

	// Who gets nowhere.
	stranger := browser()
	stranger.plug(true)
	stranger.refused("no passkey", "The device did not do it")
	careless := browser()
	careless.plug(false, keys...)
	careless.refused("a device that verified nobody", "The device did not do it")
	later := *keys[0]
	later.SignCount += 100
	for name, bits := range map[string]webauthn.SetResponseOverrideBitsParams{
		"a device that says it verified nobody": {IsBadUV: new(true)}, "a signature of nothing": {IsBogusSignature: new(true)},
	} {
		liar := browser()
		liar.plug(true, &later)
		bits.AuthenticatorID = liar.device
		command(liar, webauthn.SetResponseOverrideBits, bits)
		liar.refused(name, "was not accepted")
	}
	var inv struct{ Token string }
	e.want(201, "POST", "/v1/orgs/personal/invitations", config{"role": "viewer"}, &inv)
	hers := e.visitor().enrol(e, "hers", bearer(e.claim(inv.Token, "eve"))...)
	later.UserHandle = hers.Handle
	wrong := browser()
	wrong.plug(true, &later)
	wrong.refused("another user's handle", "not known here")
	copied := browser()
	copied.plug(true, keys...) // whose counter is as it was when it was copied
	copied.refused("a copy", "counter went back")
	admin.open(apiURL + "/device")
	admin.do(see("#sign-in")) // whoever came by it is out
	if a := e.do("GET", "/v1/user", nil, bearer(got.Token)...); a.code != 401 {
		t.Errorf("a token of a passkey that was copied: %d", a.code)
	}
}
