package controller

import (
	"encoding/json"
	"net/http"
	"strings"

	"bulkhead/fault"
	"bulkhead/pki"
)

// AdminToken is the answer to POST /token on the admin socket: a one-time token with
// which an operator logs in, under a name of their own.
type AdminToken struct {
	Token string `json:"token"`
}

// AdminLogin is the answer to GET /login on the admin socket: what a client needs to
// know this cluster by.
type AdminLogin struct {
	Pin    string `json:"pin"`    // of the API's key; see pki.Pin
	CAPEM  string `json:"ca_pem"` // the cluster's root certificate
	APIURL string `json:"api_url"`
	Domain string `json:"domain"`
}

// adminHandler serves the admin socket: for root of this machine alone, as the
// kernel says, whatever the socket's file mode.
//
//	POST /token             makes a new one-time token; the one before is refused from then on
//	POST /token?if_none=1   only if there is none yet, otherwise 409
//	GET  /login             what is needed to log in, besides the token
//	POST /secrets/rotate-key  replaces the cluster key, or goes on with that
//	/ca, /ca/...            the certificate authority, see pki.CA.AdminHandler
//	GET  /posture           what the operator's choices come to, for bulkheadd doctor
//	GET  /ready             200 once a worker is connected, 503 before
func (c *Controller) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		token, err := c.mintClaim(r.Context(), r.URL.Query().Get("if_none") == "1")
		if err != nil {
			writeError(w, c.log, err)
			return
		}
		c.log.Info("one-time token of an operator made")
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(AdminToken{Token: token})
	})
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, AdminLogin{
			Pin: c.cert.pin(), CAPEM: string(c.ca.RootPEM()), APIURL: "https://" + c.apiHost(), Domain: c.cfg.Role.Domain,
		})
	})
	mux.HandleFunc("POST /secrets/rotate-key", c.rotateKeyCall)
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		for _, n := range c.view.allNodes() {
			if n.Connected {
				writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
				return
			}
		}
		// Not an error of a request's: bulkheadd asks many times a second while it starts.
		writeJSON(w, http.StatusServiceUnavailable, errorBody{Error: "no worker is connected yet"})
	})
	mux.HandleFunc("GET /posture", c.showPosture)
	ca := c.ca.AdminHandler(c.noteAuthority, func(w http.ResponseWriter, err error) { writeError(w, c.log, err) })
	mux.Handle("/ca", ca)
	mux.Handle("/ca/", ca)
	audited := c.auditedAdmin(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := pki.PeerOf(r.Context())
		if !ok || p.UID != 0 {
			c.log.Warn("admin socket: refused a caller who is not root", "uid", p.UID, "pid", p.PID)
			writeError(w, c.log, fault.New(fault.Denied, "the admin socket answers root alone"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
		audited.ServeHTTP(w, r)
	})
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// noteAuthority notes what root did with the certificate authority, and lets the
// controller's own certificates follow at once.
func (c *Controller) noteAuthority(r *http.Request, what string, err error) error {
	c.log.Info("certificate authority: "+what, "by", "root", "err", err)
	if err == nil {
		c.identity.RenewSoon()
	}
	return nil
}
