package world_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/fixture"
	"bulkhead/privnet"
	"bulkhead/world"
)

// TestMachineReachesOnlyItsOwnNetwork dials from inside a Machine to everything
// it must not reach, and, as the control, to what it must.
func TestMachineReachesOnlyItsOwnNetwork(t *testing.T) {
	t.Parallel()
	w := world.Shared(t)
	w.CreateApp("reach-a", "reach-red")
	w.CreateApp("reach-b", "reach-red")
	w.CreateApp("reach-c", "reach-blue")
	config := func(app string) world.Config {
		return world.Config{"image": w.Push(app, fixture.StaticGo(t)), "services": world.HTTPService(8080)}
	}
	w.Run("reach-a", config("reach-a"))
	same := w.Run("reach-b", config("reach-b"))
	foreign := w.Run("reach-c", config("reach-c"))
	w.Eventually(10*time.Second, func() string { return answers(w, "reach-a", "/", 200, "") })

	// A host's service that listens everywhere, as a careless operator has it.
	host, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		for {
			c, err := host.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	hostPort := port(host.Addr().String())
	internet := internetHost(t)
	neighbour, ok := privnet.SlotOf(same.PrivateIP)
	if !ok {
		t.Fatalf("%s is no address of a machine", same.PrivateIP)
	}

	refused := map[string]string{
		"cloud metadata":              "169.254.169.254:80",
		"cloud metadata, IPv6":        "[fd00:ec2::254]:80",
		"private range 10/8":          "10.0.0.1:80",
		"private range 172.16/12":     "172.16.0.1:80",
		"private range 192.168/16":    "192.168.1.1:80",
		"shared range 100.64/10":      "100.64.0.1:80",
		"another network's machine":   "[" + foreign.PrivateIP + "]:8080",
		"the router":                  "[" + privnet.RouterAddr(1).String() + "]:22",
		"the gateway":                 privnet.GatewayIPv4.String() + ":" + hostPort,
		"a neighbour by its IPv4":     privnet.MachineIPv4(neighbour).String() + ":8080",
		"the edge's own port":         w.Ready.HTTPSAddr,
		"the host's loopback":         "127.0.0.1:" + hostPort,
		"the platform's own network":  "[fdaa::3]:53",
		"link-local router, internal": "[fe80::1]:" + hostPort,
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip := a.(*net.IPNet).IP
		if !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			refused["the host at "+ip.String()] = net.JoinHostPort(ip.String(), hostPort)
		}
	}
	var dials errgroup.Group
	for what, addr := range refused {
		dials.Go(func() error {
			switch got, err := dialFrom(w, "reach-a", addr); {
			case err != nil:
				return err
			case got != "":
				t.Errorf("%s (%s) was reached: %s", what, addr, got)
			}
			return nil
		})
	}
	if err := dials.Wait(); err != nil {
		t.Fatal(err)
	}
	for what, addr := range map[string]string{
		"a machine of its own network": "[" + same.PrivateIP + "]:8080",
		"a public address":             internet,
	} {
		if got, err := dialFrom(w, "reach-a", addr); err != nil || got == "" {
			t.Errorf("%s (%s) was not reached: the refusals above prove nothing: %v", what, addr, err)
		}
	}
	t.Logf("%d addresses refused", len(refused))
}

// dialFrom asks the test server inside a Machine to connect to addr; "" means that
// it could not.
func dialFrom(w *world.World, app, addr string) (string, error) {
	status, body, err := w.Get(app, world.Query("/dial", "ms", "1500", "addr", addr))
	if err != nil || status != 200 {
		return "", fmt.Errorf("/dial: %d %q %w", status, body, err)
	}
	var d struct {
		OK    bool   `json:"ok"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal([]byte(body), &d); err != nil || !d.OK && d.Error == "" {
		return "", fmt.Errorf("/dial answered %q: %w", body, err)
	}
	if !d.OK {
		return "", nil
	}
	return body, nil
}

// internetHost makes a host with a public address in a network namespace and
// returns the address of a service there.
func internetHost(t *testing.T) string {
	t.Helper()
	ns := fmt.Sprintf("bhnet%d", os.Getpid())
	sh := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	sh("ip", "netns", "add", ns)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	sh("ip", "link", "add", ns[:min(len(ns), 13)]+"v", "type", "veth", "peer", "name", "eth0", "netns", ns)
	t.Cleanup(func() { exec.Command("ip", "link", "del", ns[:min(len(ns), 13)]+"v").Run() })
	sh("ip", "addr", "add", "11.77.1.1/30", "dev", ns[:min(len(ns), 13)]+"v")
	sh("ip", "link", "set", ns[:min(len(ns), 13)]+"v", "up")
	sh("ip", "-n", ns, "addr", "add", "11.77.1.2/30", "dev", "eth0")
	sh("ip", "-n", ns, "link", "set", "eth0", "up")
	cmd := exec.Command("ip", "netns", "exec", ns, "python3", "-m", "http.server", "8080")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if why := world.Until(patience, func() string {
		c, err := net.DialTimeout("tcp", "11.77.1.2:8080", time.Second)
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	}); why != "" {
		t.Fatalf("the public host does not answer from the host: %s", why)
	}
	return "11.77.1.2:8080"
}

// TestMachineIsInGVisor asks the kernel that the app sees who it is.
func TestMachineIsInGVisor(t *testing.T) {
	w := world.Shared(t)
	w.CreateApp("gvisor", "")
	m := w.Run("gvisor", world.Config{"image": w.Push("gvisor", fixture.Busybox(t)), "init": map[string]any{"exec": []string{"/bin/busybox", "sleep", "1000"}}})
	if r := w.Exec("gvisor", m.ID, "/bin/busybox", "dmesg"); !strings.Contains(r.Stdout, "Starting gVisor") {
		t.Errorf("dmesg: %+v", r)
	}
	if r := w.Exec("gvisor", m.ID, "/bin/busybox", "cat", "/proc/version"); !strings.Contains(r.Stdout, "gvisor") {
		t.Errorf("/proc/version: %+v", r)
	}
	if r := w.Exec("gvisor", m.ID, "/bin/busybox", "grep", "MemTotal", "/proc/meminfo"); !strings.Contains(r.Stdout, " 262144 kB") {
		t.Errorf("a machine of 256 MiB sees %q", r.Stdout)
	}

	t.Run("TestSandboxProcessesFromOutside", func(t *testing.T) { auditProcesses(t, w) })
	t.Run("TestAuditSeesWhatIsWrong", func(t *testing.T) { auditOfTheWeak(t, w, m.ID) })
	t.Run("TestNoCredentialInAnEnvironment", func(t *testing.T) { noCredentials(t, w, "gvisor", m.ID) })
	t.Run("TestEdgeRunsInTheRouterNamespace", func(t *testing.T) {
		host, _ := os.Readlink("/proc/self/ns/net")
		edge, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", w.Role("edge")))
		if err != nil || edge == host {
			t.Errorf("the edge's network is %q (%v), the host's %q", edge, err, host)
		}
	})
	t.Run("TestRolesHoldNoCapability", func(t *testing.T) {
		for _, role := range []string{"controller", "worker", "edge"} {
			st := status(t, w.Role(role))
			if st["CapEff"] != zeroCaps || st["CapPrm"] != zeroCaps || st["NoNewPrivs"] != "1" || strings.HasPrefix(st["Uid"], "0\t") {
				t.Errorf("%s: uid %s, capabilities %s, no_new_privs %s", role, st["Uid"], st["CapEff"], st["NoNewPrivs"])
			}
		}
		if st := status(t, w.Role("warden")); st["CapBnd"] == "000001ffffffffff" {
			t.Error("the warden keeps every capability")
		}
	})
}

const zeroCaps = "0000000000000000"

// status reads /proc/<pid>/status; nil when the process is gone.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.TrimSpace(v)
	}
	return m
}
