package controller

import (
	"encoding/json"
	"net/http"
	"strings"

	"bulkhead/api/local"
	"bulkhead/fault"
	"bulkhead/pki"
	"bulkhead/role"
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

// adminRoutes are the calls of the admin socket, by pattern; api/local has who may make each.
//
//	POST /token             makes a new one-time token; the one before is refused from then on
//	POST /token?if_none=1   only if there is none yet, otherwise 409
//	GET  /login             what is needed to log in, besides the token
//	POST /secrets/rotate-key  replaces the cluster key, or goes on with that
//	/ca, /ca/...            the certificate authority, see pki.CA.AdminRoutes
//	GET  /posture           what the operator's choices come to, for bulkheadd doctor
//	GET  /ready             200 once a worker is connected, 503 before
func (c *Controller) adminRoutes() map[string]http.HandlerFunc {
	routes := c.ca.AdminRoutes(c.noteAuthority, func(w http.ResponseWriter, err error) { writeError(w, c.log, err) })
	routes["POST /token"] = func(w http.ResponseWriter, r *http.Request) {
		token, err := c.mintClaim(r.Context(), r.URL.Query().Get("if_none") == "1")
		if err != nil {
			writeError(w, c.log, err)
			return
		}
		c.log.Info("one-time token of an operator made")
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(AdminToken{Token: token})
	}
	routes["GET /login"] = func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, AdminLogin{
			Pin: c.cert.pin(), CAPEM: string(c.ca.RootPEM()), APIURL: "https://" + c.apiHost(), Domain: c.cfg.Role.Domain,
		})
	}
	routes["POST /secrets/rotate-key"] = c.rotateKeyCall
	routes["GET /ready"] = func(w http.ResponseWriter, r *http.Request) {
		for _, n := range c.view.allNodes() {
			if n.Connected {
				writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
				return
			}
		}
		// Not an error of a request's: bulkheadd asks many times a second while it starts.
		writeJSON(w, http.StatusServiceUnavailable, errorBody{Error: "no worker is connected yet"})
	}
	routes["GET /posture"] = c.showPosture
	return routes
}

// adminHandler serves the admin socket for who may, as the kernel knows the caller, whatever
// the socket's file mode. Who may make none of its calls is told nothing of which there are.
func (c *Controller) adminHandler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range c.adminRoutes() {
		mux.HandleFunc(pattern, h)
	}
	audited := c.auditedAdmin(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := pki.PeerOf(r.Context())
		if err := c.mayAdmin(mux, r, p, ok); err != nil {
			c.log.Warn("admin socket: a caller was refused", "uid", p.UID, "pid", p.PID, "err", err)
			c.refusedLocal(role.SocketAdmin, r.Method+" "+cutTokens(r.URL.Path), p.UID)
			writeError(w, c.log, err)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
		audited.ServeHTTP(w, r)
	})
}

func (c *Controller) mayAdmin(mux *http.ServeMux, r *http.Request, p pki.Peer, known bool) error {
	if !known {
		return fault.New(fault.Denied, "the admin socket answers nobody whom the kernel does not know")
	}
	users := local.Users(c.cfg.Role.UIDs)
	if err := users.Admit(role.SocketAdmin, p.UID); err != nil {
		return err
	}
	_, pattern := mux.Handler(r)
	if pattern == "" {
		return nil // there is no such call, which is what the answer says
	}
	return users.Check(role.SocketAdmin, pattern, p.UID)
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
