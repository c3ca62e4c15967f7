package pki

import (
	"encoding/json"
	"net/http"

	"bulkhead/fault"
)

// AdminRoutes are, by pattern, what the operator does with the authority, below /ca of the
// controller's admin socket, which only root can call:
//
//	GET  /ca                   Status
//	GET  /ca/root-key          the root's key in PEM, while it lies on the disk
//	POST /ca/root-key?state=S  the key was sealed, or is to be discarded: remove it
//	POST /ca/request           make keys for new intermediates; IssuerRequests
//	POST /ca/install?now=1     Issuers: take them into use
//	POST /ca/finish            end the overlap of two roots at once
//
// The root's key is with the caller while intermediates change, never here. noted is told
// of each change that was made or refused; its error is the answer. fail writes an error.
func (ca *CA) AdminRoutes(noted func(r *http.Request, what string, err error) error, fail func(http.ResponseWriter, error)) map[string]http.HandlerFunc {
	routes := map[string]http.HandlerFunc{}
	answer := func(w http.ResponseWriter, v any, err error) {
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	change := func(pattern, what string, f func(*http.Request) (any, error)) {
		routes[pattern] = func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			if nerr := noted(r, what, err); err == nil {
				err = nerr
			}
			answer(w, v, err)
		}
	}
	routes["GET /ca"] = func(w http.ResponseWriter, r *http.Request) { answer(w, ca.Status(), nil) }
	change("GET /ca/root-key", "root key read", func(*http.Request) (any, error) {
		b, err := ca.ClearRootKey()
		return map[string]string{"pem": string(b)}, err
	})
	change("POST /ca/root-key", "root key removed", func(r *http.Request) (any, error) {
		err := ca.DropRootKey(r.URL.Query().Get("state"))
		return ca.Status(), err
	})
	change("POST /ca/request", "intermediates requested", func(*http.Request) (any, error) { return ca.Request() })
	change("POST /ca/install", "intermediates installed", func(r *http.Request) (any, error) {
		var in Issuers
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the certificates cannot be read")
		}
		err := ca.Install(in, r.URL.Query().Get("now") == "1")
		return ca.Status(), err
	})
	change("POST /ca/finish", "root overlap ended", func(*http.Request) (any, error) {
		err := ca.Finish()
		return ca.Status(), err
	})
	return routes
}
