package world_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bulkhead/fixture"
	"bulkhead/grant"
	"bulkhead/sandbox"
	"bulkhead/warden/runsc"
)

// bare is what a start through the platform is compared with: the same program,
// started without a platform, in a network namespace that is ready.
type bare struct {
	dir   string
	ns    *os.File // of the next start
	count int
}

// newBare unpacks img for runc; sealed is the same image for the sandbox.
func newBare(b *testing.B, img v1.Image, sealed string) *bare {
	r := &bare{dir: b.TempDir()}
	rootfs := filepath.Join(r.dir, "runc", "rootfs")
	if err := errors.Join(unpack(img, rootfs), os.MkdirAll(filepath.Join(r.dir, "sandbox", "rootfs"), 0o755),
		copyFile(sealed, filepath.Join(r.dir, "image.erofs"))); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.closeNetwork)
	return r
}

// unpack writes a plain tree of an image's files; the fixtures have no whiteouts.
func unpack(img v1.Image, dir string) error {
	rc := mutate.Extract(img)
	defer rc.Close()
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return os.MkdirAll(dir, 0o755)
		}
		if err != nil {
			return err
		}
		p := filepath.Join(dir, filepath.Clean("/"+h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(p, h.FileInfo().Mode().Perm())
		case tar.TypeReg:
			var body []byte
			if body, err = io.ReadAll(tr); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, body, h.FileInfo().Mode().Perm()))
			}
		}
		if err != nil {
			return err
		}
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// The two ends of the veth.
var (
	bareHost    = netip.MustParsePrefix("198.18.255.1/30")
	bareMachine = netip.MustParsePrefix("198.18.255.2/30")
)

const bareLink = "bh-bare"

// openNetwork makes a network namespace with an address that the host reaches. The
// sandbox takes the address off the interface, so each start needs a new one.
func (r *bare) openNetwork() error {
	r.closeNetwork()
	fail := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			r.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		fail <- err
	}()
	if err := <-fail; err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bareLink
	peer := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: peer, PeerNamespace: netlink.NsFd(int(r.ns.Fd()))}); err != nil {
		return err
	}
	inside, err := netlink.NewHandleAt(netns.NsHandle(r.ns.Fd()))
	if err != nil {
		return err
	}
	defer inside.Close()
	host, err := setUp(nil, bareLink, bareHost)
	if err != nil {
		return err
	}
	if _, err := setUp(inside, "lo", netip.Prefix{}); err != nil {
		return err
	}
	eth, err := setUp(inside, "eth0", bareMachine)
	if err != nil {
		return err
	}
	return errors.Join(
		inside.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: bareHost.Addr().AsSlice()}),
		netlink.NeighSet(&netlink.Neigh{LinkIndex: host.Attrs().Index, State: netlink.NUD_PERMANENT, IP: bareMachine.Addr().AsSlice(), HardwareAddr: peer}))
}

// setUp brings a link up with an address; h nil is the host.
func setUp(h *netlink.Handle, name string, addr netip.Prefix) (netlink.Link, error) {
	if h == nil {
		var err error
		if h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return nil, err
		}
		defer h.Close()
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if addr.IsValid() {
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}}); err != nil {
			return nil, err
		}
	}
	return link, h.LinkSetUp(link)
}

func (r *bare) closeNetwork() {
	if link, err := netlink.LinkByName(bareLink); err == nil {
		netlink.LinkDel(link)
	}
	if r.ns != nil {
		r.ns.Close()
		r.ns = nil
	}
}

// process is the Machine's first process, as the platform would start it.
func (r *bare) process() sandbox.Spec {
	return sandbox.Spec{Args: []string{"/staticgo"}, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/", Hostname: "bare", Instance: "bare", Machine: "bare"}
}

// netnsPath is the namespace for a process that has our descriptors' paths only.
func (r *bare) netnsPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.ns.Fd()) }

// sandbox measures "bulkhead-sandbox run" from its start to the first HTTP byte.
func (r *bare) sandbox(program string, extra ...string) (time.Duration, error) {
	dir := filepath.Join(r.dir, "sandbox")
	config, err := runsc.Bundle(r.process(), grant.Grant{CPUs: 1, MemoryMB: 256, DiskMB: 512, Inodes: 65536, Processes: 1024, OpenFiles: 65536}, runsc.Files{Image: filepath.Join(r.dir, "image.erofs")})
	if err != nil {
		return 0, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(config, &spec); err != nil {
		return 0, err
	}
	// runc's process has no init either: "bulkhead-init MODE DIR COMMAND".
	spec.Process.Args = spec.Process.Args[3:]
	return r.run(dir, &spec, func(id string) (start, remove *exec.Cmd) {
		state := filepath.Join(r.dir, "state-"+id)
		start = exec.Command(program, append(append(runsc.Flags(state), extra...), "run", "--bundle="+dir, id)...)
		start.ExtraFiles = []*os.File{os.Stderr} // runsc.LogFD
		return start, exec.Command("rm", "-rf", state)
	})
}

// runc measures "runc run" in the same way.
func (r *bare) runc() (time.Duration, error) {
	dir := filepath.Join(r.dir, "runc")
	p := r.process()
	spec := specs.Spec{
		Version: "1.0.2", Hostname: p.Hostname, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: p.Args, Env: p.Env, Cwd: p.Cwd, NoNewPrivileges: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			{Type: specs.NetworkNamespace},
		}},
	}
	return r.run(dir, &spec, func(id string) (start, remove *exec.Cmd) {
		return exec.Command("runc", "run", "--bundle", dir, id), exec.Command("runc", "delete", "--force", id)
	})
}

// run writes the bundle, starts, waits for the first byte and takes down again.
func (r *bare) run(dir string, spec *specs.Spec, command func(id string) (start, remove *exec.Cmd)) (took time.Duration, err error) {
	if err := r.openNetwork(); err != nil {
		return 0, err
	}
	for i, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = r.netnsPath()
		}
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644); err != nil {
		return 0, err
	}
	r.count++
	id := fmt.Sprintf("bulkhead-bare-%d-%d", os.Getpid(), r.count)
	start, remove := command(id)
	start.Env = []string{"PATH=" + os.Getenv("PATH")}
	begin := time.Now()
	if err := start.Start(); err != nil {
		return 0, err
	}
	defer func() {
		start.Process.Kill() // an attached sandbox dies with it
		start.Wait()
		if out, rerr := remove.CombinedOutput(); rerr != nil {
			err = errors.Join(err, fmt.Errorf("%v: %w: %s", remove.Args, rerr, out))
		}
	}()
	if err := firstByte(netip.AddrPortFrom(bareMachine.Addr(), fixture.StaticGoPort), 20*time.Second); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// firstByte asks until one byte of an answer came.
func firstByte(addr netip.AddrPort, limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		// Before there is an interface, nothing answers: a packet must not wait for TCP's
		// own second try.
		c, err := net.DialTimeout("tcp", addr.String(), 4*time.Millisecond)
		if err != nil {
			continue
		}
		c.SetDeadline(time.Now().Add(time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: bare\r\n\r\n")
		_, err = io.ReadFull(c, make([]byte, 1))
		c.Close()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("%v did not answer within %v", addr, limit)
}
