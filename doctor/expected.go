package doctor

import (
	"path/filepath"
	"strings"
)

// What listeners are for. The names are those of docs/sockets.md.
const (
	publicHTTPS = "public HTTPS"
	publicHTTP  = "public HTTP"
	clusterPort = "cluster port"
	storeSocket = "etcd"
	controlOf   = "control socket of a sandbox"
	cardOf      = "network card of a Machine"
)

// unixNames are the sockets in the runtime directory.
var unixNames = map[string]string{
	"internal": "internal calls", "worker": "calls to the worker", "edge": "calls to the edge",
	"enroll": "enrolment of roles", "admin": "root of this host", "api": "the API, from the edge",
	"warden": "the warden, for the worker",
}

// mutualTLS are those that speak mutual TLS.
var mutualTLS = map[string]bool{clusterPort: true, "internal calls": true, "calls to the worker": true, "calls to the edge": true}

// expected returns what a listener is for, "" when nobody planned it.
func expected(p Platform, l *Listener) string {
	if l.Network == "tcp" && l.Namespace == "host" {
		for addr, what := range map[string]string{p.HTTPSAddr: publicHTTPS, p.HTTPAddr: publicHTTP, p.ClusterAddr: clusterPort} {
			if addr != "" && sameAddr(addr, l.Addr) {
				return what
			}
		}
	}
	if l.Network == "packet" && heldBy(l, "bulkhead-sandbox") && strings.HasPrefix(l.Namespace, "net:") {
		return cardOf
	}
	if l.Network != "unix" {
		return ""
	}
	dir, name := filepath.Split(l.Addr)
	switch {
	case filepath.Clean(dir) == p.RunDir:
		return unixNames[strings.TrimSuffix(name, ".sock")]
	case strings.HasPrefix(dir, filepath.Join(p.DataDir, "controller")+"/") && heldBy(l, "bulkhead-controller"):
		return storeSocket
	case heldBy(l, "bulkhead-shim") && name == "control" && filepath.Dir(filepath.Clean(dir)) == filepath.Join(p.RunDir, "machines"):
		return controlOf
	case heldBy(l, "bulkhead-sandbox") && strings.HasPrefix(l.Addr, "/state/runsc-"): // in the shim's file system
		return controlOf
	}
	return ""
}

// heldBy reports whether only processes of one program hold a listener.
func heldBy(l *Listener, program string) bool {
	for _, p := range l.Processes {
		if !strings.HasPrefix(p, program+" ") {
			return false
		}
	}
	return len(l.Processes) > 0
}

// sameAddr compares an address as configured with one as the kernel has it.
func sameAddr(configured, bound string) bool {
	split := func(s string) (host, port string) {
		i := strings.LastIndexByte(s, ':')
		host, port = strings.Trim(s[:max(i, 0)], "[]"), s[i+1:]
		if host == "" || host == "0.0.0.0" || host == "localhost" {
			if host == "localhost" {
				return "127.0.0.1", port
			}
			host = "::"
		}
		return host, port
	}
	ch, cp := split(configured)
	bh, bp := split(bound)
	return cp == bp && ch == bh
}
