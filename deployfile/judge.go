package deployfile

import (
	"encoding/base64"
	"strings"

	"bulkhead/fault"
	"bulkhead/machine"
)

// apiNames are the fields of the API that a deploy file calls otherwise.
var apiNames = strings.NewReplacer(
	".autostop", ".auto_stop_machines", ".autostart", ".auto_start_machines", ".max_retries", ".retries",
)

// judge checks each section by the rules of the platform, which would refuse it after the
// upload otherwise, and puts what they say at the section's place in the file.
func (f *File) judge(b *binder) {
	// check validates c. What it says about the field prefix is said about path; the
	// position is that of place, or of what is below it.
	check := func(place, path, prefix string, c machine.Config) {
		c.Image = "x"
		err := c.Validate()
		if err == nil {
			return
		}
		field, rest, _ := strings.Cut(fault.MessageOf(err), " ")
		below := apiNames.Replace(strings.TrimPrefix(field, prefix))
		b.errorf(place+below, "%s %s", path+below, rest)
	}
	for k, v := range f.Env {
		check(join("env", k), "env", "config.env", machine.Config{Env: map[string]string{k: string(v)}})
	}
	if f.KillSignal != "" {
		check("kill_signal", "kill_signal", "config.stop_config.signal", machine.Config{StopConfig: &machine.StopConfig{Signal: f.KillSignal}})
	}
	for g, cmd := range f.Processes {
		ws, _ := words(cmd) // a mistake in it is noted already
		check(join("processes", g), join("processes", g), "config.init.cmd", machine.Config{Init: &machine.Init{Cmd: ws}})
	}
	if e := f.Experimental; e != nil {
		check("experimental", "experimental", "config.init", machine.Config{Init: &machine.Init{Cmd: e.Cmd, Entrypoint: e.Entrypoint, Exec: e.Exec}})
	}
	if h := f.HTTPService; h != nil {
		check("http_service", "http_service", "config.services[0]", machine.Config{Services: []machine.Service{h.api()}})
	}
	for i, s := range f.Services {
		p := entry("services", i, len(f.Services), f)
		check(p, p, "config.services[0]", machine.Config{Services: []machine.Service{s.api()}})
	}
	for i, r := range f.Restart {
		p := entry("restart", i, len(f.Restart), f)
		check(p, p, "config.restart", machine.Config{Restart: r.api()})
	}
	for i, e := range f.Files {
		p := entry("files", i, len(f.Files), f)
		check(p, p, "config.files[0]", machine.Config{Files: []machine.File{e.api([]byte(e.RawValue))}})
	}
	f.judgeTogether(b)
}

// judgeTogether finds what is wrong only with all files of one Machine together.
func (f *File) judgeTogether(b *binder) {
	for _, g := range f.Groups() {
		c := machine.Config{Image: "x", Env: map[string]string{}}
		for k, v := range f.Env {
			c.Env[k] = string(v)
		}
		var from []string
		for i, e := range f.Files {
			if f.in(e.Processes, g) {
				c.Files = append(c.Files, e.api([]byte(e.RawValue)))
				from = append(from, entry("files", i, len(f.Files), f))
			}
		}
		err := c.Validate()
		if err == nil {
			continue
		}
		field, _, _ := strings.Cut(fault.MessageOf(err), " ")
		place := strings.TrimPrefix(field, "config.")
		for i, p := range from {
			if rest, ok := strings.CutPrefix(place, entryPath("files", i)); ok {
				place = p + rest
				break
			}
		}
		b.errorf(place, "%s", strings.ReplaceAll(fault.MessageOf(err), "config.", ""))
	}
}

// api is the file with its content, in the words of the API.
func (e *FileEntry) api(content []byte) machine.File {
	if e.SecretName != "" {
		return machine.File{GuestPath: e.GuestPath, SecretName: &e.SecretName}
	}
	raw := base64.StdEncoding.EncodeToString(content)
	return machine.File{GuestPath: e.GuestPath, RawValue: &raw}
}
