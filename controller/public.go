package controller

import (
	"errors"
	"net"
	"net/http"
	"net/netip"

	"bulkhead/fault"
)

// publicEndpoint is a route that answers callers without a token: what somebody needs who
// wants to sign in. Each finds out by itself who it speaks to, if it must.
type publicEndpoint struct {
	pattern string
	why     string // it has no token
	page    bool   // a browser shows it: an error is a page too
	h       handler
}

// publicEndpoints lists all there are. Each is limited per address.
func (c *Controller) publicEndpoints() []publicEndpoint {
	const signIn, cli = "signs somebody in", "the CLI's session has a secret of its own"
	const addPasskey = "the link has a secret of its own"
	const about = "answers about the tokens in its body"
	return []publicEndpoint{
		{"GET /login", signIn, true, c.loginPage},
		{"POST /login/sso", signIn, true, c.startSSO},
		{"POST /login/passkey/begin", signIn, false, c.beginPasskeySignIn},
		{"POST /login/passkey", signIn, true, c.finishPasskeySignIn},
		{"GET /passkeys/add", addPasskey, true, c.passkeyPage},
		{"POST /passkeys/begin", addPasskey, false, c.beginPasskey},
		{"POST /passkeys/add", addPasskey, true, c.finishPasskey},
		{"GET /sso/callback", signIn, true, c.finishSSO},
		{"POST /logout", "ends the browser's session", true, c.logoutBrowser},
		{"GET /cli/{id}", "asks the browser's session", true, c.approvalPage},
		{"POST /cli/{id}", "asks the browser's session", true, c.approve},
		{"GET /device", "asks the browser's session", true, c.devicePage},
		{"POST /device", "asks the browser's session", true, c.enterCode},
		{"GET /ui/{file}", "style and script of the pages", true, c.uiFile},
		{"GET /oidc/{org}/.well-known/openid-configuration", "finds the keys of identity tokens", false, c.issuerDiscovery},
		{"GET /oidc/{org}/.well-known/jwks", "the keys of identity tokens", false, c.issuerKeySet},
		{"POST /v1/cli_sessions", cli, false, c.startCLI},
		{"POST /v1/cli_sessions/{id}/poll", cli, false, c.pollCLI},
		{"POST " + dischargeInit, "the session has a secret of its own", false, c.askDischarge},
		{"GET " + dischargePoll, "the answer has a secret name", false, c.pollDischarge},
		{"GET /3p/{id}", "asks the browser's session", true, c.dischargePage},
		{"POST /3p/{id}", "asks the browser's session", true, c.decideDischarge},
		{"POST /v1/tokens/authenticate", about, false, c.authenticateTokens},
		{"POST /v1/tokens/authorize", about, false, c.authorizeTokens},
		{"GET /v1/ca", "certificates are public, and the pin says whose they are", false, c.rootCertificates},
		{"POST /v1/join", "a node has its join token in the body", false, c.joinNode},
	}
}

// handlePublic runs one public endpoint.
func (c *Controller) handlePublic(e publicEndpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r := req.Context().Value(callKey{}).(*call)
		r.Request = req
		log := c.log.With("request", r.id)
		if e.page {
			pageHeaders(w.Header())
		}
		code, body, err := 0, any(nil), c.rates.allowPublic(req)
		if err == nil {
			code, body, err = c.watched(r, e)
		} else {
			w.Header().Set("Connection", "close") // with HTTP/2, too: it ends after what is under way
		}
		if req.Context().Err() != nil && err != nil {
			return // the client is gone
		}
		setRetryAfter(w, fault.RetryAfterOf(err))
		switch {
		case errors.Is(err, errAnswered):
		case err != nil && e.page:
			c.writeErrorPage(w, r, log, err)
		case err != nil:
			writeError(w, log, err)
		default:
			writeJSON(w, code, body)
		}
	})
}

// rootCertificates answers with the root certificates that count now, for clients that
// check names by them: browsers.
func (c *Controller) rootCertificates(*call) (int, any, error) {
	return http.StatusOK, map[string]string{"pem": string(c.ca.RootPEM())}, nil
}

// from is the client's address, as the edge tells it.
func (r *call) from() netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(host)
	return a.Unmap().WithZone("")
}
