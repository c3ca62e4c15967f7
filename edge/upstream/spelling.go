package upstream

// Spelling returns a header's canonical name as its standard spells it. Names are not
// case-sensitive, but some programs compare them byte for byte.
func Spelling(name string) string {
	switch name {
	case "Sec-Websocket-Accept":
		return "Sec-WebSocket-Accept"
	case "Sec-Websocket-Extensions":
		return "Sec-WebSocket-Extensions"
	case "Sec-Websocket-Key":
		return "Sec-WebSocket-Key"
	case "Sec-Websocket-Protocol":
		return "Sec-WebSocket-Protocol"
	case "Sec-Websocket-Version":
		return "Sec-WebSocket-Version"
	case "Etag":
		return "ETag"
	case "Www-Authenticate":
		return "WWW-Authenticate"
	case "Soapaction":
		return "SOAPAction"
	case "Content-Md5":
		return "Content-MD5"
	case "Mime-Version":
		return "MIME-Version"
	case "Dnt":
		return "DNT"
	case "Sec-Gpc":
		return "Sec-GPC"
	case "Nel":
		return "NEL"
	case "P3p":
		return "P3P"
	case "Sourcemap":
		return "SourceMap"
	case "X-Csrf-Token":
		return "X-CSRF-Token"
	case "X-Xsrf-Token":
		return "X-XSRF-TOKEN"
	case "X-Ua-Compatible":
		return "X-UA-Compatible"
	case "X-Xss-Protection":
		return "X-XSS-Protection"
	case "X-Dns-Prefetch-Control":
		return "X-DNS-Prefetch-Control"
	case "X-Webkit-Csp":
		return "X-WebKit-CSP"
	case "X-Request-Id":
		return "X-Request-ID"
	case "X-Correlation-Id":
		return "X-Correlation-ID"
	case "X-Http-Method-Override":
		return "X-HTTP-Method-Override"
	}
	return name
}
