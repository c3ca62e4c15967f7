package edge

import "strings"

// hostName returns a host in the one form in which names are compared: lower case, without
// a port and without the dot of the root. It is "" for what is no name. Server names of TLS,
// Host and :authority all come through here.
func hostName(typed string) string {
	host, _ := splitPort(typed)
	if host, dot := strings.CutSuffix(host, "."); dot {
		if strings.HasSuffix(host, ".") {
			return ""
		}
		return strings.ToLower(host)
	}
	return strings.ToLower(host)
}

// splitPort cuts the port, with its colon, off a host.
func splitPort(typed string) (host, port string) {
	i := strings.LastIndexByte(typed, ':')
	if i < 0 || strings.Trim(typed[i+1:], "0123456789") != "" {
		return typed, ""
	}
	return typed[:i], typed[i:]
}
