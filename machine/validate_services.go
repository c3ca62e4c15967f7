package machine

import (
	"fmt"

	"bulkhead/fault"
)

// Ports at which the edge listens for the public. They are conventions: what
// bulkheadd was told to listen on may be other numbers.
const (
	PortHTTP  = 80
	PortHTTPS = 443
)

// services checks what the edge is to expose: HTTP, with TLS or without.
func (v *validator) services(ss []Service) {
	if len(ss) > MaxServices {
		v.bad("config.services", "has %d entries; at most %d are allowed", len(ss), MaxServices)
		return
	}
	taken := map[int]string{}
	for i := range ss {
		at := fmt.Sprintf("config.services[%d]", i)
		v.service(at, &ss[i])
		for j, p := range ss[i].Ports {
			if p.Port == nil {
				continue
			}
			at := fmt.Sprintf("%s.ports[%d].port", at, j)
			if other, ok := taken[*p.Port]; ok {
				v.bad(at, "is %d, which %s has already; a public port leads to one service", *p.Port, other)
			}
			taken[*p.Port] = at
		}
	}
}

func (v *validator) service(at string, s *Service) {
	switch s.Protocol {
	case "tcp", "":
	case "udp":
		v.bad(at+".protocol", "is \"udp\", but this version of Bulkhead exposes HTTP over TCP alone; use \"tcp\"")
	default:
		v.bad(at+".protocol", "is %q; it is \"tcp\"", fault.Clip(s.Protocol))
	}
	v.port(at+".internal_port", s.InternalPort)
	if len(s.Ports) > MaxServices {
		v.bad(at+".ports", "has %d entries; at most %d are allowed", len(s.Ports), MaxServices)
	}
	for i := range s.Ports {
		v.publicPort(fmt.Sprintf("%s.ports[%d]", at, i), &s.Ports[i])
	}
	if n := s.MinMachinesRunning; n != nil && (*n < 0 || *n > 10000) {
		v.bad(at+".min_machines_running", "is %d; it must be 0 to 10000", *n)
	}
	if c := s.Concurrency; c != nil {
		v.concurrency(at+".concurrency", c)
	}
	v.refuse(len(s.Checks) > 0, at+".checks", "does not run health checks")
	v.refuse(s.ForceInstanceKey != nil && *s.ForceInstanceKey != "", at+".force_instance_key", "does not pin requests to a machine by key")
}

func (v *validator) port(at string, n int) {
	if n < 1 || n > 65535 {
		v.bad(at, "is %d; it must be 1 to 65535", n)
	}
}

func (v *validator) publicPort(at string, p *Port) {
	v.refuse(p.StartPort != nil, at+".start_port", "exposes no ranges of ports")
	v.refuse(p.EndPort != nil, at+".end_port", "exposes no ranges of ports")
	if p.Port == nil {
		v.bad(at+".port", "is missing; it is 80 (http) or 443 (tls, http)")
		return
	}
	if *p.Port != PortHTTP && *p.Port != PortHTTPS {
		v.bad(at+".port", "is %d, but the edge of this version of Bulkhead listens on 80 and 443 alone; use one of them", *p.Port)
	}
	http := false
	for i, h := range p.Handlers {
		switch h {
		case "http":
			http = true
		case "tls":
		default:
			v.bad(fmt.Sprintf("%s.handlers[%d]", at, i), "is %q; this version of Bulkhead has the handlers \"http\" and \"tls\"", fault.Clip(h))
		}
	}
	if !http {
		v.bad(at+".handlers", "has no \"http\", but this version of Bulkhead exposes HTTP alone; use [\"http\"] or [\"tls\", \"http\"]")
	}
	v.refuse(p.TLSOptions != nil, at+".tls_options", "chooses TLS versions and protocols itself")
	v.refuse(p.ProxyProtoOptions != nil, at+".proxy_proto_options", "does not send the PROXY protocol to machines")
	if o := p.HTTPOptions; o != nil {
		v.refuse(o.Compress != nil && *o.Compress, at+".http_options.compress", "does not compress answers")
		v.refuse(o.IdleTimeout != nil, at+".http_options.idle_timeout", "has fixed timeouts")
		v.refuse(o.HeadersReadTimeout != nil, at+".http_options.headers_read_timeout", "has fixed timeouts")
		v.refuse(o.Response != nil, at+".http_options.response", "does not change an app's headers")
		v.refuse(len(o.ReplayCache) > 0, at+".http_options.replay_cache", "does not replay requests")
	}
}

func (v *validator) concurrency(at string, c *Concurrency) {
	if c.Type != "" && c.Type != "connections" && c.Type != "requests" {
		v.bad(at+".type", "is %q; it is \"connections\" or \"requests\"", fault.Clip(c.Type))
	}
	const most = 1_000_000
	if c.SoftLimit < 0 || c.SoftLimit > most {
		v.bad(at+".soft_limit", "is %d; it must be 0 to %d", c.SoftLimit, most)
	}
	if c.HardLimit < 0 || c.HardLimit > most {
		v.bad(at+".hard_limit", "is %d; it must be 0 to %d", c.HardLimit, most)
	}
	if c.HardLimit > 0 && c.SoftLimit > c.HardLimit {
		v.bad(at+".soft_limit", "is %d, above hard_limit %d", c.SoftLimit, c.HardLimit)
	}
}
