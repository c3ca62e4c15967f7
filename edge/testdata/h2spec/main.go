// H2spec runs the HTTP/2 conformance suite of that name against a server on
// loopback: h2spec HOST PORT REPORT.xml [SECTION...]. HOST is only a name: it
// resolves to 127.0.0.1. It is a module of its own, so that the suite's
// dependencies stay out of Bulkhead's.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
	"golang.org/x/net/dns/dnsmessage"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: h2spec HOST PORT REPORT.xml [SECTION...]")
		os.Exit(2)
	}
	port, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go answer(theirs)
		return ours, nil
	}}
	_, err = h2spec.Run(&config.Config{Host: os.Args[1], Port: port, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000,
		JUnitReport: os.Args[3], TLS: true, Insecure: true, Sections: os.Args[4:]})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// answer says 127.0.0.1 to every question, over DNS's TCP form.
func answer(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	for err == nil && n < 2 {
		var m int
		m, err = c.Read(buf[n:])
		n += m
	}
	var q dnsmessage.Message
	if err != nil || q.Unpack(buf[2:n]) != nil || len(q.Questions) == 0 {
		return
	}
	q.Response, q.Authoritative = true, true
	q.Additionals = nil
	if q.Questions[0].Type == dnsmessage.TypeA {
		q.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
			Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	}
	b, err := q.Pack()
	if err != nil {
		return
	}
	_, _ = c.Write(append([]byte{byte(len(b) >> 8), byte(len(b))}, b...))
}
