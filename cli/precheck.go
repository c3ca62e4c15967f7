package cli

import (
	"context"
	"slices"
	"strings"

	"bulkhead/client"
	"bulkhead/fault"
	"bulkhead/machine"
)

// flagNames are the fields of a Machine's config that flags set.
var flagNames = strings.NewReplacer(
	"config.guest.memory_mb", "--memory", "config.guest.cpus", "--cpus", "config.guest.cpu_kind", "--cpu-kind",
	"config.env", "--env", "config.metadata", "--metadata", "config.init.cmd", "the command after \"--\"",
	"config.init.entrypoint", "--entrypoint", "config.services[0].internal_port", "--port", "config.", "",
)

// checkConfig checks a config by the platform's own rules, before anything is uploaded.
// What a deploy file says was checked when it was read: what is wrong here came by flags.
func checkConfig(c *machine.Config) error {
	c = c.Clone()
	c.Image = "x" // not known before the upload
	if err := c.Validate(); err != nil {
		return usagef("%s", flagNames.Replace(fault.MessageOf(err)))
	}
	return nil
}

// checkRegion refuses a region that the cluster does not have.
func checkRegion(ctx context.Context, api *client.Client, code string) error {
	regions, err := api.Regions(ctx)
	if err != nil {
		return err
	}
	var codes []string
	for _, r := range regions {
		codes = append(codes, r.Code)
	}
	if slices.Contains(codes, code) {
		return nil
	}
	return hint(usagef("--region %q: the cluster has no such region", code), "it has %s", strings.Join(codes, ", "))
}
