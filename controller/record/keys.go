package record

import (
	"fmt"
	"strings"
	"time"

	"bulkhead/key"
)

// The store's keys. Each kind of record has a prefix of its own, and nothing is
// listed that grows with what it does not concern: an app's Machines, a node's
// Machines and a Machine's versions each lie together.
//
//	/org/<slug>                        Org
//	/user/<id>                         User
//	/username/<name>                   UserName: names are given once
//	/member/<org>/<user id>            Member
//	/claim/<id>                        Claim: invitations, and the installation's own
//	/token/<id>                        Token
//	/sso/<org>                         SSO
//	/identity/<SHA-256>                identity: a person at a provider, and who that is here
//	/session/<SHA-256 of its secret>   Session
//	/passkey/<user id>/<SHA-256>       Passkey
//	/tokenkey/<id>                     RootKey: of tokens
//	/counter/<name>                    Counter
//	/cluster-key                       clusterKey: by which the right cluster key is known
//	/issuer                            issuerKeys: by which Machines' identity tokens are signed
//	/network/<org>/<name>              Network: the number of a private network, for ever
//	/app/<name>                        App
//	/machine/<app>/<id>                Machine
//	/version/<app>/<id>/<instance>     Version
//	/lease/<app>/<id>                  Lease
//	/name/<app>/<machine name>         the id of the Machine that has the name
//	/id/<id>                           Place: app and node of a Machine
//	/node/<node>/<id>                  Assigned: changes whenever the assignment does
//	/host/<node>                       Host: when a node was last there
//	/removed/<node>                    Removal: the node was removed and is refused
//	/secret/<app>                      appSecrets: the app's wrapped key, its secrets and secret keys
//	/audit/pending/<request id>        pendingRecord: of a change, until it is in the audit log
//	/tomb/<unix seconds>/<app>/<id>    when a destroyed Machine may be forgotten
const (
	PrefixApp     = "/app/"
	PrefixMachine = "/machine/"
	PrefixNode    = "/node/"
	PrefixTomb    = "/tomb/"
	PrefixHost    = "/host/"
	PrefixRemoved = "/removed/"
	KeyClusterKey = "/cluster-key"
	KeyIssuer     = "/issuer"
	PrefixOrg     = "/org/"
	PrefixUser    = "/user/"
	PrefixMember  = "/member/"
	PrefixClaim   = "/claim/"
	PrefixToken   = "/token/"
	PrefixSSO     = "/sso/"
	PrefixSession = "/session/"
	PrefixPasskey = "/passkey/"
	PrefixRootKey = "/tokenkey/"
)

// OrgKey is where an organization lies.
func OrgKey(slug string) string { return PrefixOrg + slug }

// UserKey is where a user lies.
func UserKey(id key.UserID) string { return PrefixUser + string(id) }

// UserNameKey is where a user's name lies.
func UserNameKey(name string) string { return "/username/" + name }

// MembersOf is the prefix of an organization's members.
func MembersOf(org string) string { return PrefixMember + org + "/" }

// ClaimKey is where a one-time token lies.
func ClaimKey(id string) string { return PrefixClaim + id }

// TokenKey is where the record of a token lies.
func TokenKey(id key.TokenID) string { return PrefixToken + string(id) }

// SSOKey is where an organization's single sign-on lies.
func SSOKey(org string) string { return PrefixSSO + org }

// SessionKey is where a session lies.
func SessionKey(id string) string { return PrefixSession + id }

// PasskeysOf is the prefix of a user's passkeys.
func PasskeysOf(id key.UserID) string { return PrefixPasskey + string(id) + "/" }

// IdentityKey is where a person at a provider lies, by the SHA-256 of issuer and subject.
func IdentityKey(sum string) string { return "/identity/" + sum }

// RootKeyKey is where a root key of tokens lies.
func RootKeyKey(id string) string { return PrefixRootKey + id }

// CounterKey is where the last number of a sequence lies.
func CounterKey(name string) string { return "/counter/" + name }

// NetworkKey is where a private network lies.
func NetworkKey(org, name string) string { return "/network/" + org + "/" + name }

// AppKey is where an app lies.
func AppKey(app key.AppName) string { return PrefixApp + string(app) }

// MachinesOf is the prefix of an app's Machines.
func MachinesOf(app key.AppName) string { return PrefixMachine + string(app) + "/" }

// VersionsOfApp is the prefix of the versions of an app's Machines.
func VersionsOfApp(a key.AppName) string { return "/version/" + string(a) + "/" }

// LeasesOf is the prefix of the leases of an app's Machines.
func LeasesOf(app key.AppName) string { return "/lease/" + string(app) + "/" }

// NamesOf is the prefix of the names of an app's Machines.
func NamesOf(app key.AppName) string { return "/name/" + string(app) + "/" }

// IDKey is where the place of a Machine lies.
func IDKey(id key.MachineID) string { return "/id/" + string(id) }

// SecretsKey is where an app's secrets lie.
func SecretsKey(app key.AppName) string { return "/secret/" + string(app) }

// NodePrefix is the prefix of a node's Machines.
func NodePrefix(n key.Node) string { return PrefixNode + string(n) + "/" }

// HostKey is where a node lies.
func HostKey(n key.Node) string { return PrefixHost + string(n) }

// RemovedKey is where a node's removal lies.
func RemovedKey(n key.Node) string { return PrefixRemoved + string(n) }

// NameKey is where the name of a Machine lies.
func NameKey(a key.AppName, n string) string { return NamesOf(a) + n }

// PasskeyKey is where a passkey lies, by the SHA-256 of its id.
func PasskeyKey(id key.UserID, sum string) string { return PasskeysOf(id) + sum }

// MemberKey is where a member lies.
func MemberKey(org string, id key.UserID) string { return MembersOf(org) + string(id) }

// MachineKey is where a Machine lies.
func MachineKey(app key.AppName, id key.MachineID) string { return MachinesOf(app) + string(id) }

// LeaseKey is where a Machine's lease lies.
func LeaseKey(app key.AppName, id key.MachineID) string { return LeasesOf(app) + string(id) }

// NodeKey is where a Machine lies under its node.
func NodeKey(n key.Node, id key.MachineID) string { return NodePrefix(n) + string(id) }

// VersionsOf is the prefix of a Machine's versions.
func VersionsOf(app key.AppName, id key.MachineID) string {
	return VersionsOfApp(app) + string(id) + "/"
}

// VersionKey is where a version of a Machine's config lies.
func VersionKey(app key.AppName, id key.MachineID, v key.InstanceID) string {
	return VersionsOf(app, id) + string(v)
}

// TombKey sorts by time, so that the collector reads from the front.
func TombKey(at time.Time, app key.AppName, id key.MachineID) string {
	return fmt.Sprintf("%s%012d/%s/%s", PrefixTomb, at.Unix(), app, id)
}

// ParseTombKey is the inverse of TombKey.
func ParseTombKey(k string) (at time.Time, app key.AppName, id key.MachineID, ok bool) {
	parts := strings.Split(strings.TrimPrefix(k, PrefixTomb), "/")
	if len(parts) != 3 {
		return at, "", "", false
	}
	var sec int64
	if _, err := fmt.Sscanf(parts[0], "%d", &sec); err != nil {
		return at, "", "", false
	}
	return time.Unix(sec, 0), key.AppName(parts[1]), key.MachineID(parts[2]), true
}

// LastPart is what follows the last slash of a key.
func LastPart(k string) string { return k[strings.LastIndexByte(k, '/')+1:] }

// AppOfMachineKey is the app in a key below PrefixMachine.
func AppOfMachineKey(k string) key.AppName {
	app, _, _ := strings.Cut(strings.TrimPrefix(k, PrefixMachine), "/")
	return key.AppName(app)
}
