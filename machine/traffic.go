package machine

// Traffic is what a Machine's config lets its traffic do to it: be started by a
// request that waits, be stopped when no request comes.
type Traffic struct {
	Autostart bool
	Autostop  bool
	// Min is how many Machines of Group run at least when idle ones are stopped.
	Min int
	// Group is which of an app's Machines are counted for Min: those of one process
	// group. Empty for a Machine without services.
	Group string
}

// defaultGroup is the process group of Machines that name none.
const defaultGroup = "app"

// Traffic sums up the services' autostart, autostop and min_machines_running. One
// service with autostart is enough to be woken for; but only a Machine all of whose
// services have autostop is idle when they are. "suspend" counts as "stop".
func (c *Config) Traffic() Traffic {
	t := Traffic{Autostop: len(c.Services) > 0}
	for i := range c.Services {
		s := &c.Services[i]
		t.Autostart = t.Autostart || s.Autostart != nil && *s.Autostart
		t.Autostop = t.Autostop && s.Autostop != nil && *s.Autostop != "off" && *s.Autostop != ""
		if s.MinMachinesRunning != nil {
			t.Min = max(t.Min, *s.MinMachinesRunning)
		}
	}
	if c.DisableMachineAutostart != nil && *c.DisableMachineAutostart {
		t.Autostart = false
	}
	if len(c.Services) > 0 {
		t.Group = c.Metadata["fly_process_group"]
		if t.Group == "" {
			t.Group = defaultGroup
		}
	}
	return t
}
