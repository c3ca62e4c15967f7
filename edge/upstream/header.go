package upstream

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Origin is what the edge tells a Machine about a request, in headers that no
// client can set.
type Origin struct {
	ClientIP     string
	ForwardedFor string // X-Forwarded-For: the client, then the edge's own address
	Proto        string // "http" or "https"
	Port         string // public port
	Region       string
	Via          string
	RequestID    string
}

// Hop names the headers that belong to one connection: those of RFC 9110 section
// 7.6.1 and those that a Connection header lists.
type Hop struct{ listed []string }

// HopOf reads the Connection header of h.
func HopOf(h http.Header) Hop {
	var hop Hop
	for _, v := range h["Connection"] {
		for t := range strings.SplitSeq(v, ",") {
			switch t = strings.TrimSpace(t); {
			case t == "" || strings.EqualFold(t, "close") || strings.EqualFold(t, "keep-alive"):
			default:
				hop.listed = append(hop.listed, http.CanonicalHeaderKey(t))
			}
		}
	}
	return hop
}

// Has reports whether the Connection header lists name (canonical).
func (h Hop) Has(name string) bool {
	for _, l := range h.listed {
		if l == name {
			return true
		}
	}
	return false
}

// Drops reports whether the canonical header name ends at this hop.
func (h Hop) Drops(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Content-Length", "Host":
		return true
	}
	return len(h.listed) > 0 && h.Has(name)
}

// separators may stand in a header's name (RFC 9110 section 5.6.2), besides the dash.
const separators = "!#$%&'*+.^_`|~"

// Spoofs reports whether a client's header, by its canonical name, claims what only
// the edge may say: where a request comes from and what it asked for. Every separator counts
// as a dash, because CGI and its heirs make the same variable of them. No proxy in front of
// the edge is trusted. Fly-Force-Instance-Id and its kin are a client's to set
// on Fly, but nothing here acts on them, and they pass.
func Spoofs(name string) bool {
	switch name[0] {
	case 'F', 'X', 'V', 'T', 'C', 'P', 'W':
	default:
		return false
	}
	if strings.ContainsAny(name, separators) {
		name = http.CanonicalHeaderKey(strings.Map(func(r rune) rune {
			if strings.ContainsRune(separators, r) {
				return '-'
			}
			return r
		}, name))
	}
	switch name {
	case "Forwarded", "X-Forwarded", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "Client-Ip", "True-Client-Ip",
		"Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Cf-Pseudo-Ipv4", "Fastly-Client-Ip", "X-Azure-Clientip", "X-Azure-Socketip",
		"X-Envoy-External-Address", "X-Appengine-User-Ip", "X-Proxyuser-Ip", "X-Remote-Ip", "X-Remote-Addr", "X-Originating-Ip",
		"X-Original-Forwarded-For", "X-Original-Remote-Addr", "Proxy-Client-Ip", "Wl-Proxy-Client-Ip",
		"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Original-Host", "X-Host", "X-Http-Host-Override",
		"Proxy": // HTTP_PROXY in CGI's environment
		return true
	case "Fly-Prefer-Region", "Fly-Force-Region", "Fly-Prefer-Instance-Id", "Fly-Force-Instance-Id":
		return false
	}
	return strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "Fly-")
}

// Each calls line for every header of the request that goes to the Machine, the
// edge's own included. Via is extended, not replaced.
func (o *Origin) Each(h http.Header, hop Hop, line func(name, value string)) {
	for k, vv := range h {
		if k == "Via" || k == "" || hop.Drops(k) || Spoofs(k) {
			continue
		}
		k = Spelling(k)
		for _, v := range vv {
			line(k, v)
		}
	}
	via := o.Via
	if vv := h["Via"]; len(vv) > 0 && !hop.Has("Via") {
		via = strings.Join(vv, ", ") + ", " + o.Via
	}
	line("Via", via)
	line("Fly-Client-Ip", o.ClientIP)
	line("Fly-Forwarded-Port", o.Port)
	line("Fly-Region", o.Region)
	line("Fly-Request-Id", o.RequestID)
	line("X-Forwarded-For", o.ForwardedFor)
	line("X-Forwarded-Proto", o.Proto)
	line("X-Forwarded-Port", o.Port)
	if o.Proto == "https" {
		line("X-Forwarded-Ssl", "on")
	} else {
		line("X-Forwarded-Ssl", "off")
	}
}

// TrailersWanted reports whether the client says that it reads trailers.
func TrailersWanted(h http.Header) bool {
	for _, v := range h["Te"] {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), "trailers") {
				return true
			}
		}
	}
	return false
}

// TrailerAllowed reports whether a client's trailer field may go to the Machine:
// it is well formed, and no framing, hop or edge header in disguise.
func TrailerAllowed(name, value string) bool {
	return httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(value) &&
		httpguts.ValidTrailerHeader(name) && !Hop{}.Drops(name) && !Spoofs(name) && name != "Via"
}
