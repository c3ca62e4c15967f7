package warden

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"bulkhead/privnet"
	"bulkhead/sandbox"
	"bulkhead/warden/router"
)

// TestIsolation tries, from inside a Machine, to reach what must not be reached.
// Package router has the finer tests, without sandboxes.
func TestIsolation(t *testing.T) {
	w := newWorld(t).start()
	addr := func(s sandbox.Spec, n privnet.Network) string {
		return net.JoinHostPort(privnet.MachineAddr(n, w.config.Host, s.Slot).String(), "8080")
	}
	server, friend, stranger := w.specIn(7, "serve", "8080"), w.specIn(7, "sleep"), w.specIn(8, "serve", "8080")
	for _, s := range []sandbox.Spec{server, friend, stranger} {
		w.begin(s)
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	targets := map[string]string{
		"another network":             addr(stranger, 8),
		"another network's IPv4":      fmt.Sprintf("%s:8080", privnet.MachineIPv4(stranger.Slot)),
		"its own network's IPv4":      fmt.Sprintf("%s:8080", privnet.MachineIPv4(server.Slot)),
		"the metadata service":        "169.254.169.254:80",
		"the router":                  fmt.Sprintf("[%s]:%d", privnet.RouterAddr(w.config.Host), port),
		"the gateway":                 fmt.Sprintf("%s:%d", privnet.GatewayIPv4, port),
		"the sandbox's own loopback":  fmt.Sprintf("127.0.0.1:%d", port),
		"the sandbox's own loopback6": fmt.Sprintf("[::1]:%d", port),
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP; !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			targets["the host at "+ip.String()] = net.JoinHostPort(ip.String(), fmt.Sprint(port))
		}
	}
	for what, to := range targets {
		if code, out := w.run(friend.Machine, "dial", to); code == 0 || out == "connected" {
			t.Errorf("a Machine reaches %s at %s", what, to)
		}
	}
	if code, out := w.run(friend.Machine, "dial", addr(server, 7)); code != 0 {
		t.Errorf("a Machine does not reach its own network: %s", out)
	}
	if code, out := w.run(friend.Machine, "raw"); code == 0 || !strings.Contains(out, "not permitted") {
		t.Errorf("raw socket: %d %q", code, out)
	}
	forged := fmt.Sprintf("[%s]:5000", privnet.MachineAddr(8, w.config.Host, 99))
	if code, out := w.run(friend.Machine, "send", forged, addr(server, 7)); code == 0 {
		t.Errorf("the sandbox itself sends with a forged source: %q", out)
	}

	// The control: without the packet rules the dial to another network succeeds.
	c, err := nftables.New(nftables.WithNetNSFd(int(w.server.router.Namespace().Fd())))
	if err != nil {
		t.Fatal(err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "bulkhead"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if code, out := w.run(friend.Machine, "dial", addr(stranger, 8)); code != 0 {
		t.Errorf("without rules another network is not reached either (%s): this test tests nothing", out)
	}
}

// TestEdgeReachesMachines talks to a Machine from where the edge runs, with much
// data both ways.
func TestEdgeReachesMachines(t *testing.T) {
	w := newWorld(t).start()
	spec := w.spec("serve", "8080")
	w.begin(spec)
	const size = 8 << 20
	dial := func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = router.Do(w.server.router.Namespace(), func() error {
			c, err = net.Dial(network, addr)
			return err
		})
		return c, err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: testTime}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("http://[%s]:8080/?%d", privnet.MachineAddr(7, w.config.Host, spec.Slot), size)
	began := time.Now()
	resp, err := client.Post(url, "text/plain", bytes.NewReader(make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	first, rest, _ := strings.Cut(string(body), "\n")
	if want := fmt.Sprintf("got %d from [%s]:", size, privnet.RouterAddr(w.config.Host)); !strings.HasPrefix(first, want) {
		t.Errorf("the Machine says %q, want %q", first, want)
	}
	if err != nil || len(rest) != size || strings.Trim(rest, "x") != "" {
		t.Errorf("%d bytes came, %v", len(rest), err)
	}
	t.Logf("%d MiB each way took %s", size>>20, time.Since(began))
}
