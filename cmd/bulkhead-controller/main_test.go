package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/role"
)

// TestMain is the program itself when the test calls it so.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_CONTROLLER") != "" {
		os.Args = []string{"bulkhead-controller", os.Getenv("RUN_CONTROLLER")}
		main()
	}
	os.Exit(m.Run())
}

// TestProgram starts the program as bulkheadd does, with a configuration and two
// inherited descriptors, asks it for a token, and stops it.
func TestProgram(t *testing.T) {
	dir, err := os.MkdirTemp("", "bh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	conf := role.Config{
		Role: role.Controller, Cluster: "c-1", Node: "n1", Host: 1, Region: "local", Domain: "t.localhost",
		DataDir: filepath.Join(dir, "data"), RunDir: dir, HTTPSAddr: "127.0.0.1:443", GrantKeyFile: filepath.Join(dir, "grant"),
	}
	b, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{conf.GrantKeyFile: k, filepath.Join(dir, "config.json"): b} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ready, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "RUN_CONTROLLER="+filepath.Join(dir, "config.json"), "LISTEN_FDS=2", "LISTEN_FDNAMES=admin:ready")
	cmd.ExtraFiles = []*os.File{f, readyW}
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readyW.Close()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	ready.SetReadDeadline(time.Now().Add(30 * time.Second))
	if got, err := io.ReadAll(ready); err != nil || string(got) != "ready\n" {
		cmd.Process.Kill()
		t.Fatalf("ready: %q %v: %s", got, err, errs.String())
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, "admin"))
	}}}
	resp, err := client.Post("http://admin/token?if_none=1", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 || !strings.Contains(string(body), "bh_") {
		t.Errorf("token: %d %s", resp.StatusCode, body)
	}
	cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("exit: %v: %s", err, errs.String())
		}
	case <-time.After(20 * time.Second):
		cmd.Process.Kill()
		t.Fatal("the program does not stop")
	}
	if strings.Contains(errs.String(), "bh_") {
		t.Error("the token is in the log")
	}
}
