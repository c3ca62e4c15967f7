// Package local says who may do what over the unix sockets of one machine on which the
// kernel, and no certificate, says who calls: those of the warden, of enrolment and of root.
// (Calls over mutual TLS are the matter of api/rpc.)
//
// It is the one place that decides it, as api/rpc is for those. Whoever serves such a socket
// asks twice: Admit before it reads anything of a connection, so that nothing that a stranger
// sends is looked at, and Check when it knows what the caller wants.
package local

import (
	"slices"

	"bulkhead/fault"
	"bulkhead/role"
)

// Root is what user id 0 is called in Policy. The warden runs as root, and is nobody else here.
const Root = "root"

// Row says who may make one call.
type Row struct {
	Socket string   // by its name in package role
	Call   string   // an operation of the warden, or a pattern of HTTP
	May    []string // roles, or Root
	What   string   // what it comes to, in words
}

// Policy says who may make a call; one that has no row is refused to everybody, root among them.
// docs/internal-calls.md is written from it.
var Policy = []Row{
	{role.SocketWarden, "ping", []string{role.Worker}, "nothing"},
	{role.SocketWarden, "start", []string{role.Worker}, "a Machine for which the controller signed a grant"},
	{role.SocketWarden, "ack", []string{role.Worker}, "the start before it, on the same connection; alone it is refused as invalid"},
	{role.SocketWarden, "attach", []string{role.Worker}, "a Machine that was started"},
	{role.SocketWarden, "signal", []string{role.Worker}, "a Machine that was started"},
	{role.SocketWarden, "exec", []string{role.Worker}, "a Machine that was started"},
	{role.SocketWarden, "processes", []string{role.Worker}, "a Machine that was started"},
	{role.SocketWarden, "listen", []string{role.Worker}, "a Machine that was started"},
	{role.SocketWarden, "remove", []string{role.Worker}, "a Machine that was started"},
	{role.SocketWarden, "list", []string{role.Worker}, "all sandboxes of the node"},
	{role.SocketWarden, "metrics", []string{role.Worker}, "the warden's own counters, and what Machines use"},

	{role.SocketEnroll, "POST /", []string{role.Worker, role.Edge}, "the caller's own identity, whatever it asks for"},

	{role.SocketAdmin, "POST /token", []string{Root}, "a one-time token that makes an operator"},
	{role.SocketAdmin, "GET /login", []string{Root}, "what the cluster is known by; no secret"},
	{role.SocketAdmin, "POST /secrets/rotate-key", []string{Root}, "the cluster key"},
	{role.SocketAdmin, "GET /ready", []string{Root}, "whether a worker is connected"},
	{role.SocketAdmin, "GET /posture", []string{Root}, "what the operator's choices come to"},
	{role.SocketAdmin, "GET /ca", []string{Root}, "the state of the authority; no secret"},
	{role.SocketAdmin, "GET /ca/root-key", []string{Root}, "the root's key, while it lies on the disk"},
	{role.SocketAdmin, "POST /ca/root-key", []string{Root}, "its removal"},
	{role.SocketAdmin, "POST /ca/request", []string{Root}, "requests for new intermediates"},
	{role.SocketAdmin, "POST /ca/install", []string{Root}, "their certificates"},
	{role.SocketAdmin, "POST /ca/finish", []string{Root}, "the end of an old root"},
}

// Users are the user ids of a machine's roles, by role, as in role.Config.
type Users map[string]uint32

// Caller says what a user id is on this machine: Root, a role, or "" for everybody else. An
// id that two roles share is neither of them, and no role is root.
func (u Users) Caller(uid uint32) string {
	if uid == 0 {
		return Root
	}
	found := ""
	for name, id := range u {
		if id != uid {
			continue
		}
		if found != "" {
			return ""
		}
		found = name
	}
	return found
}

// Admit refuses a user who may make no call of a socket.
func (u Users) Admit(socket string, uid uint32) error {
	caller := u.Caller(uid)
	for _, r := range Policy {
		if r.Socket == socket && caller != "" && slices.Contains(r.May, caller) {
			return nil
		}
	}
	return fault.New(fault.Denied, "user %d may not speak to the %s socket", uid, socket)
}

// Check refuses a user who may not make a call.
func (u Users) Check(socket, call string, uid uint32) error {
	caller := u.Caller(uid)
	for _, r := range Policy {
		if r.Socket == socket && r.Call == call && caller != "" && slices.Contains(r.May, caller) {
			return nil
		}
	}
	return fault.New(fault.Denied, "user %d may not call %q on the %s socket", uid, call, socket)
}
