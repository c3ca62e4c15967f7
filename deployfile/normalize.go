package deployfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// normalize turns the older forms of fly.toml into the one that Config describes, as
// Fly's own client does: files that it wrote years ago are still deployed today. What
// the forms mean stays; positions of what is moved stay those in the file.
func (b *binder) normalize(raw map[string]any) {
	b.rename(raw, "compute", "vm")
	b.rename(raw, "mount", "mounts")
	b.rename(raw, "service", "services")
	b.merge(raw, "env")
	b.merge(raw, "processes")
	b.groupNames(raw)
	if e, ok := raw["experimental"].(map[string]any); ok {
		if v, ok := e["kill_timeout"]; ok {
			if _, given := raw["kill_timeout"]; !given {
				raw["kill_timeout"] = v
				b.alias("experimental.kill_timeout", "kill_timeout")
			}
			delete(e, "kill_timeout")
		}
	}
	for _, s := range tables(raw["services"]) {
		b.rename(s, "port", "ports")
	}
}

// rename moves a section to the name that it has today, behind what is there already.
func (b *binder) rename(raw map[string]any, old, name string) {
	v, ok := raw[old]
	if !ok {
		return
	}
	moved, have := tables(v), tables(raw[name])
	if moved == nil || raw[name] != nil && have == nil {
		return // not a section: the name is reported as unknown
	}
	delete(raw, old)
	if len(have) == 0 {
		raw[name] = v
		b.alias(old, name)
		return
	}
	if _, list := raw[name].(map[string]any); list {
		b.alias(name, entryPath(name, 0))
	}
	for i := range moved {
		from := entryPath(old, i)
		if _, one := v.(map[string]any); one {
			from = old
		}
		b.alias(from, entryPath(name, len(have)+i))
	}
	raw[name] = append(slices.Clone(have), moved...)
}

// merge makes one table of a list of them: [[env]] for [env].
func (b *binder) merge(raw map[string]any, name string) {
	list := tables(raw[name])
	if _, one := raw[name].(map[string]any); one || list == nil || len(list) == 0 {
		return
	}
	out := map[string]any{}
	for i, t := range list {
		for k, v := range t {
			out[k] = v
			b.positions[join(name, k)] = at(b.positions, b.file, join(entryPath(name, i), k))
		}
	}
	raw[name] = out
}

// groupNames reads processes = ["web"], which names groups that run the image's command.
func (b *binder) groupNames(raw map[string]any) {
	list, ok := raw["processes"].([]any)
	if !ok {
		return
	}
	out := map[string]any{}
	for i, v := range list {
		name, ok := v.(string)
		if !ok {
			return
		}
		out[name] = ""
		b.positions[join("processes", name)] = at(b.positions, b.file, entryPath("processes", i))
	}
	raw["processes"] = out
}

// alias gives everything below the path from the same position below to.
func (b *binder) alias(from, to string) {
	for p, pos := range maps.Clone(b.positions) {
		if rest, ok := strings.CutPrefix(p, from); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			b.positions[to+rest] = pos
		}
	}
}

// tables returns the tables that a section consists of, nil for anything else.
func tables(v any) []map[string]any {
	switch v := v.(type) {
	case map[string]any:
		return []map[string]any{v}
	case []map[string]any:
		return v
	case []any:
		out := []map[string]any{}
		for _, e := range v {
			t, ok := e.(map[string]any)
			if !ok {
				return nil
			}
			out = append(out, t)
		}
		return out
	}
	return nil
}

// retired are keys that Fly's client takes and that ask for nothing there today. They
// are a warning with a reason. Lists are written without their numbers.
var retired = map[string]string{
	"experimental.private_network":       "every app is in a private network",
	"experimental.allowed_public_ports":  "the public ports are those of [[services]]",
	"experimental.use_zstd":              "the image's own compression is kept",
	"services.script_checks":             noChecks,
	"services.tcp_checks.restart_limit":  noChecks,
	"services.http_checks.restart_limit": noChecks,
	"http_service.checks.restart_limit":  noChecks,
	"checks.restart_limit":               noChecks,
}

// leftOut reports whether an unknown key may be left out with a warning: Fly's client
// ignores it too, or its value asks for nothing.
func (b *binder) leftOut(path, key string, value any, names []string) bool {
	path = join(path, key)
	if why, ok := retired[unnumbered(path)]; ok {
		b.warnf(path, "%s is left out: %s", path, why)
		return true
	}
	if !empty(value) {
		return false
	}
	b.warnf(path, "unknown key %q is left out: its value asks for nothing%s", path, didYouMean(key, names))
	return true
}

// unnumbered is a path without the numbers of list entries, and without the names that
// the developer chose in [checks].
func unnumbered(path string) string {
	var out []string
	for i, part := range strings.Split(path, ".") {
		part, _, _ = strings.Cut(part, "[")
		if i == 1 && out[0] == "checks" {
			continue
		}
		out = append(out, part)
	}
	return strings.Join(out, ".")
}

// empty reports whether a value asks for nothing: false, 0, "", or a list or table of such.
func empty(v any) bool {
	switch v := v.(type) {
	case bool:
		return !v
	case int64:
		return v == 0
	case float64:
		return v == 0
	case string:
		return v == ""
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !empty(e) })
	case []map[string]any:
		return !slices.ContainsFunc(v, func(e map[string]any) bool { return !empty(e) })
	case map[string]any:
		for _, e := range v {
			if !empty(e) {
				return false
			}
		}
		return true
	}
	return false
}

// pair reads concurrency = "20,25": the soft and the hard limit.
func (c *Concurrency) pair(s string) error {
	soft, hard, ok := strings.Cut(s, ",")
	if !ok {
		return fmt.Errorf("is %q; it must be a table, or \"SOFT,HARD\" such as \"20,25\"", s)
	}
	for _, n := range []struct {
		text string
		to   *int
	}{{soft, &c.SoftLimit}, {hard, &c.HardLimit}} {
		v, err := wholeNumber(strings.TrimSpace(n.text))
		if err != nil {
			return fmt.Errorf("is %q; it must be a table, or \"SOFT,HARD\" such as \"20,25\"", s)
		}
		*n.to = int(v)
	}
	c.Type = "requests"
	return nil
}
