package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bulkhead/role"
)

// groupName is the group of everything that may knock at the roles' shared
// sockets.
const groupName = "bulkhead"

// users are the system users of a machine's Bulkhead installations: all of them
// share these.
type users struct {
	uid   map[string]uint32 // by role
	gid   map[string]uint32 // by role
	group uint32            // of groupName
}

// of returns the owner for files of a role.
func (u *users) of(r string) owner { return owner{u.uid[r], u.gid[r]} }

// ensureUsers creates what is missing: one system group for all, and a system
// user with a group of its own for each unprivileged role. Names are constants:
// nothing that anybody typed reaches the commands.
func ensureUsers(ctx context.Context, h hook) (*users, error) {
	unlock, err := lockUsers()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := h.at("group %s", groupName); err != nil {
		return nil, err
	}
	g, err := ensureGroup(ctx, groupName)
	if err != nil {
		return nil, err
	}
	u := &users{uid: map[string]uint32{role.Warden: 0}, gid: map[string]uint32{role.Warden: 0}, group: g}
	for _, r := range []string{role.Controller, role.Worker, role.Edge} {
		name := "bulkhead-" + r
		if err := h.at("user %s", name); err != nil {
			return nil, err
		}
		gid, err := ensureGroup(ctx, name)
		if err != nil {
			return nil, err
		}
		uid, err := ensureUser(ctx, name)
		if err != nil {
			return nil, err
		}
		if uid == 0 {
			return nil, fmt.Errorf("user %s has user id 0; a role must not be root", name)
		}
		u.uid[r], u.gid[r] = uid, gid
	}
	return u, nil
}

// lockUsers keeps two installations on one machine from creating the same user at
// the same time.
func lockUsers() (func(), error) {
	f, err := os.OpenFile("/run/bulkhead-users.lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(30 * time.Second); ; {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return func() { f.Close() }, nil
		}
		if time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("%s is held by another bulkheadd for 30 seconds: %w", f.Name(), err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ensureGroup(ctx context.Context, name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		if err := command(ctx, "groupadd", "--system", name); err != nil {
			return 0, err
		}
		if g, err = user.LookupGroup(name); err != nil {
			return 0, fmt.Errorf("group %s was created and is not there: %w", name, err)
		}
	}
	return id(g.Gid)
}

func ensureUser(ctx context.Context, name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		err := command(ctx, "useradd", "--system", "--gid", name, "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name)
		if err != nil {
			return 0, err
		}
		if u, err = user.Lookup(name); err != nil {
			return 0, fmt.Errorf("user %s was created and is not there: %w", name, err)
		}
	}
	return id(u.Uid)
}

func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

// command runs one of the passwd package's programs.
func command(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed; install the package passwd", name)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, strings.TrimSpace(string(out)))
	}
	return nil
}
