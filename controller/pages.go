package controller

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"regexp"
	"strings"

	"bulkhead/controller/record"
	"bulkhead/fault"
)

// The pages at which people sign in. They need no script but passkeys do; everything that
// changes something is a form with a token of this browser and this session.

//go:embed pages
var pageFiles embed.FS

var pageTemplates = template.Must(template.ParseFS(pageFiles, "pages/*.html"))

// Cookies. Both are for this host alone, unseen by scripts, and not sent with what other
// sites begin, but for their links.
const (
	cookieSession = "__Host-bulkhead"
	cookieBrowser = "__Host-bulkhead-browser" // tells browsers apart before anybody signs in
)

// pageHeaders say what a page may do: nothing but what it came with.
func pageHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "publickey-credentials-get=(self), publickey-credentials-create=(self)")
	h.Set("Strict-Transport-Security", "max-age=31536000")
}

// page is what every template gets.
type page struct {
	Title string
	CSRF  string
	User  string // who is signed in, if anybody
	Data  any
}

// show writes a page.
func (c *Controller) show(r *call, code int, name, title string, data any) (int, any, error) {
	p := page{Title: title, Data: data, CSRF: c.csrf(r)}
	if s := c.browserSession(r); s != nil {
		if u := c.directory.User(s.User); u != nil {
			p.User = u.Name
		}
	}
	var b bytes.Buffer
	if err := pageTemplates.ExecuteTemplate(&b, name, p); err != nil {
		return 0, nil, err
	}
	r.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	r.w.WriteHeader(code)
	r.w.Write(b.Bytes())
	return 0, nil, errAnswered
}

// writeErrorPage shows a person why not.
func (c *Controller) writeErrorPage(w http.ResponseWriter, r *call, log *slog.Logger, err error) {
	code, ok := httpStatus[fault.KindOf(err)]
	if !ok {
		code = http.StatusInternalServerError
	}
	if code >= 500 {
		log.Error("request failed", "err", err)
	} else {
		log.Info("request refused", "err", err)
	}
	var f *fault.Error
	word := ""
	if errors.As(err, &f) {
		word = f.Status
	}
	c.show(r, code, "error.html", "This did not work", map[string]string{"Message": fault.MessageOf(err), "Code": word, "Request": r.id})
}

// seeOther sends the browser on, to a page of this host.
func seeOther(r *call, to string) (int, any, error) {
	r.w.Header().Set("Location", to)
	r.w.WriteHeader(http.StatusSeeOther)
	return 0, nil, errAnswered
}

// publicURL is the address of a path of the API, as the world reaches it.
func (c *Controller) publicURL(path string) string {
	host := "api." + c.cfg.Role.Domain
	if port := portOf(c.cfg.Role.HTTPSAddr); port != "" && port != "443" {
		host += ":" + port
	}
	return "https://" + host + path
}

// browser is the value that tells this browser from others; it is made at the first visit.
func (r *call) browser() string {
	if v, err := r.Cookie(cookieBrowser); err == nil && len(v.Value) == 43 {
		return v.Value
	}
	v := newSecret()
	ck := &http.Cookie{Name: cookieBrowser, Value: v, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	http.SetCookie(r.w, ck)
	r.AddCookie(ck) // for the rest of this request
	return v
}

// csrf is the token of this browser's forms, and of this session's.
func (c *Controller) csrf(r *call) string {
	m := hmac.New(sha256.New, c.csrfKey[:])
	m.Write([]byte(r.browser()))
	if s, err := r.Cookie(cookieSession); err == nil {
		m.Write([]byte("|" + s.Value))
	}
	return hex.EncodeToString(m.Sum(nil))
}

// maxForm bounds a form's body.
const maxForm = 16 << 10

// form reads a form that this browser was given by us. Everything else is refused: a form
// of another site's, or one of a page from before a restart or another sign-in.
func (c *Controller) form(r *call) error {
	r.Body = http.MaxBytesReader(r.w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return fault.New(fault.Invalid, "the form cannot be read")
	}
	return c.ours(r, r.PostForm.Get("csrf"))
}

// ours checks that a request was begun by a page of ours in this browser.
func (c *Controller) ours(r *call, token string) error {
	site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
	// With no-referrer a browser says "null" for its origin, and Sec-Fetch-Site tells.
	same := site == "same-origin" || site == "" && origin == strings.TrimSuffix(c.publicURL("/"), "/")
	if !same || !hmac.Equal([]byte(token), []byte(c.csrf(r))) {
		return fault.New(fault.Denied, "this form is not, or no longer, one of this server's pages; go back, load the page again and repeat").WithStatus("csrf")
	}
	return nil
}

// browserSession is the session that this browser's cookie names, if it lives.
func (c *Controller) browserSession(r *call) *record.Session {
	ck, err := r.Cookie(cookieSession)
	if err != nil || ck.Value == "" {
		return nil
	}
	s := c.directory.Lives(sessionID(ck.Value), now())
	if s == nil || s.Kind != kindBrowser {
		return nil
	}
	c.touch(r.Context(), s)
	return s
}

// setSession gives the browser its session. A browser has one.
func setSession(r *call, secret string) {
	http.SetCookie(r.w, &http.Cookie{Name: cookieSession, Value: secret, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func clearSession(r *call) {
	http.SetCookie(r.w, &http.Cookie{Name: cookieSession, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// nextRE are the pages that a sign-in may lead to.
var nextRE = regexp.MustCompile(`^/(device|cli/[A-Za-z0-9_-]{16,64}|3p/[A-Za-z0-9_-]{16,64})$`)

// next checks where somebody wants to go after signing in.
func next(s string) string {
	if nextRE.MatchString(s) {
		return s
	}
	return "/login"
}

// uiFile answers the pages' style and script.
func (c *Controller) uiFile(r *call) (int, any, error) {
	types := map[string]string{"style.css": "text/css; charset=utf-8", "passkey.js": "text/javascript; charset=utf-8"}
	name := r.PathValue("file")
	b, err := pageFiles.ReadFile("pages/" + name)
	if types[name] == "" || err != nil {
		return 0, nil, fault.New(fault.NotFound, "no such file: %s", fault.Clip(name))
	}
	r.w.Header().Set("Content-Type", types[name])
	r.w.Header().Set("Cache-Control", "private, max-age=300")
	r.w.Write(b)
	return 0, nil, errAnswered
}
