package controller

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
//	/org/<slug>                        org
//	/user/<id>                         user
//	/username/<name>                   userName: names are given once
//	/member/<org>/<user id>            member
//	/claim/<id>                        claim: invitations, and the installation's own
//	/token/<id>                        tokenRecord
//	/sso/<org>                         ssoConfig
//	/identity/<SHA-256>                identity: a person at a provider, and who that is here
//	/session/<SHA-256 of its secret>   signedIn
//	/passkey/<user id>/<SHA-256>       passkeyRecord
//	/tokenkey/<id>                     rootKey: of tokens
//	/counter/<name>                    counter
//	/cluster-key                       clusterKey: by which the right cluster key is known
//	/issuer                            issuerKeys: by which Machines' identity tokens are signed
//	/network/<org>/<name>              network: the number of a private network, for ever
//	/app/<name>                        app
//	/machine/<app>/<id>                record
//	/version/<app>/<id>/<instance>     version
//	/lease/<app>/<id>                  lease
//	/name/<app>/<machine name>         the id of the Machine that has the name
//	/id/<id>                           place: app and node of a Machine
//	/node/<node>/<id>                  assigned: changes whenever the assignment does
//	/host/<node>                       host: when a node was last there
//	/removed/<node>                    removal: the node was removed and is refused
//	/secret/<app>                      appSecrets: the app's wrapped key, its secrets and secret keys
//	/audit/pending/<request id>        pendingRecord: of a change, until it is in the audit log
//	/tomb/<unix seconds>/<app>/<id>    when a destroyed Machine may be forgotten
const (
	prefixApp     = "/app/"
	prefixMachine = "/machine/"
	prefixNode    = "/node/"
	prefixTomb    = "/tomb/"
	prefixHost    = "/host/"
	prefixRemoved = "/removed/"
	keyClusterKey = "/cluster-key"
	keyIssuer     = "/issuer"
	prefixOrg     = "/org/"
	prefixUser    = "/user/"
	prefixMember  = "/member/"
	prefixClaim   = "/claim/"
	prefixToken   = "/token/"
	prefixSSO     = "/sso/"
	prefixSession = "/session/"
	prefixPasskey = "/passkey/"
	prefixRootKey = "/tokenkey/"
)

func orgKey(slug string) string              { return prefixOrg + slug }
func userKey(id key.UserID) string           { return prefixUser + string(id) }
func userNameKey(name string) string         { return "/username/" + name }
func membersOf(org string) string            { return prefixMember + org + "/" }
func claimKey(id string) string              { return prefixClaim + id }
func tokenKey(id key.TokenID) string         { return prefixToken + string(id) }
func ssoKey(org string) string               { return prefixSSO + org }
func sessionKey(id string) string            { return prefixSession + id }
func passkeysKey(id key.UserID) string       { return prefixPasskey + string(id) + "/" }
func identityKey(sum string) string          { return "/identity/" + sum }
func rootKeyKey(id string) string            { return prefixRootKey + id }
func counterKey(name string) string          { return "/counter/" + name }
func networkKey(org, name string) string     { return "/network/" + org + "/" + name }
func appKey(app key.AppName) string          { return prefixApp + string(app) }
func machinesOf(app key.AppName) string      { return prefixMachine + string(app) + "/" }
func versionsOfApp(a key.AppName) string     { return "/version/" + string(a) + "/" }
func leasesOf(app key.AppName) string        { return "/lease/" + string(app) + "/" }
func namesOf(app key.AppName) string         { return "/name/" + string(app) + "/" }
func idKey(id key.MachineID) string          { return "/id/" + string(id) }
func secretsKey(app key.AppName) string      { return "/secret/" + string(app) }
func nodePrefix(n key.Node) string           { return prefixNode + string(n) + "/" }
func hostKey(n key.Node) string              { return prefixHost + string(n) }
func removedKey(n key.Node) string           { return prefixRemoved + string(n) }
func nameKey(a key.AppName, n string) string { return namesOf(a) + n }

func passkeyKey(id key.UserID, sum string) string { return passkeysKey(id) + sum }

func memberKey(org string, id key.UserID) string { return membersOf(org) + string(id) }

func machineKey(app key.AppName, id key.MachineID) string { return machinesOf(app) + string(id) }
func leaseKey(app key.AppName, id key.MachineID) string   { return leasesOf(app) + string(id) }
func nodeKey(n key.Node, id key.MachineID) string         { return nodePrefix(n) + string(id) }

func versionsOf(app key.AppName, id key.MachineID) string {
	return versionsOfApp(app) + string(id) + "/"
}

func versionKey(app key.AppName, id key.MachineID, v key.InstanceID) string {
	return versionsOf(app, id) + string(v)
}

// tombKey sorts by time, so that the collector reads from the front.
func tombKey(at time.Time, app key.AppName, id key.MachineID) string {
	return fmt.Sprintf("%s%012d/%s/%s", prefixTomb, at.Unix(), app, id)
}

// parseTombKey is the inverse of tombKey.
func parseTombKey(k string) (at time.Time, app key.AppName, id key.MachineID, ok bool) {
	parts := strings.Split(strings.TrimPrefix(k, prefixTomb), "/")
	if len(parts) != 3 {
		return at, "", "", false
	}
	var sec int64
	if _, err := fmt.Sscanf(parts[0], "%d", &sec); err != nil {
		return at, "", "", false
	}
	return time.Unix(sec, 0), key.AppName(parts[1]), key.MachineID(parts[2]), true
}

// lastPart is what follows the last slash of a key.
func lastPart(k string) string { return k[strings.LastIndexByte(k, '/')+1:] }

// appOfMachineKey is the app in a key below prefixMachine.
func appOfMachineKey(k string) key.AppName {
	app, _, _ := strings.Cut(strings.TrimPrefix(k, prefixMachine), "/")
	return key.AppName(app)
}
