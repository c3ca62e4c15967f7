package warden

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"bulkhead/warden/cgroup"
	"bulkhead/warden/router"
)

// Teardown removes everything that a warden with this Config has ever made on the
// host: sandboxes with their processes, cgroups, the router namespace, the uplink,
// the host's packet rules, and the Machines' directories. No warden may run. It goes
// on after an error and returns all of them; it can be called again.
func Teardown(ctx context.Context, c Config) error {
	var errs []error
	groups, err := cgroup.Detect(groupName(c.Tag))
	if err == nil {
		err = groups.Destroy(ctx)
	}
	errs = append(errs, err)
	errs = append(errs, router.Destroy(router.Config{RunDir: c.RunDir, Tag: c.Tag, Host: c.Host}))
	for _, dir := range []string{filepath.Join(c.RunDir, "machines"), c.MachineDir, filepath.Join(c.RunDir, "netns")} {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
