package image

import (
	"strconv"
	"strings"

	"bulkhead/fault"
)

// maxID is the largest user or group id that an image may ask for.
const maxID = 1<<31 - 2

// ResolveUser finds the numbers of a user as an image configuration or a Machine's
// config names one: "", "user", "uid", "user:group", "uid:gid" and the mixes. Names
// are looked up in the image's own /etc/passwd and /etc/group, as they were when the
// image was sealed; "" is root. Without a group it is the user's own, or 0 for a
// number that /etc/passwd does not know, and groups are those that /etc/group lists
// the user in; with a group there are no others. home is "/" when nothing else is
// known. The error is Unprocessable.
func (i *Image) ResolveUser(user string) (uid, gid uint32, groups []uint32, home string, err error) {
	return resolveUser(i.passwd, i.group, user)
}

func resolveUser(passwd, group []byte, spec string) (uid, gid uint32, groups []uint32, home string, err error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	home = "/"
	u, known := findUser(passwd, name)
	switch n, numeric := parseID(name); {
	case known:
		uid, gid, name = u.uid, u.gid, u.name
		if strings.HasPrefix(u.home, "/") {
			home = u.home
		}
	case numeric:
		uid = n
	default:
		return 0, 0, nil, "", fault.New(fault.Unprocessable, "user %q is not in the image's /etc/passwd", fault.Clip(name))
	}
	if hasGroup && groupName != "" {
		gid, err = findGroup(group, groupName)
		return uid, gid, nil, home, err
	}
	if known {
		groups = groupsOf(group, name, gid)
	}
	return uid, gid, groups, home, nil
}

type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

// findUser looks a user up by name or, failing that, by number. Lines that make no
// sense are passed over, as C libraries do.
func findUser(passwd []byte, want string) (passwdEntry, bool) {
	id, numeric := parseID(want)
	var byID *passwdEntry
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 6 || f[0] == "" {
			continue
		}
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if !ok1 || !ok2 {
			continue
		}
		e := passwdEntry{f[0], uid, gid, f[5]}
		if f[0] == want {
			return e, true
		}
		if numeric && uid == id && byID == nil {
			byID = &e
		}
	}
	if byID != nil {
		return *byID, true
	}
	return passwdEntry{}, false
}

// findGroup looks a group up by name or number; a number need not be listed.
func findGroup(group []byte, want string) (uint32, error) {
	for line := range strings.Lines(string(group)) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 3 || f[0] != want {
			continue
		}
		if gid, ok := parseID(f[2]); ok {
			return gid, nil
		}
	}
	if gid, ok := parseID(want); ok {
		return gid, nil
	}
	return 0, fault.New(fault.Unprocessable, "group %q is not in the image's /etc/group", fault.Clip(want))
}

// maxGroups is how many supplementary groups a process gets.
const maxGroups = 64

// groupsOf lists the groups that name is a member of, without gid.
func groupsOf(group []byte, name string, gid uint32) []uint32 {
	var ids []uint32
	seen := map[uint32]bool{gid: true}
	for line := range strings.Lines(string(group)) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 4 || len(ids) == maxGroups {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if id, ok := parseID(f[2]); ok && member == name && !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}
