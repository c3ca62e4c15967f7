package token

import (
	"fmt"
	"slices"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"
)

// Kind is what a token is made for. The words are stored: never renamed or reused.
type Kind string

// The kinds.
const (
	Login       Kind = "login"        // a person's own, after logging in; bound to no organization
	Org         Kind = "org"          // everything an ordinary member may do in an organization
	Deploy      Kind = "deploy"       // everything about one app
	ReadOnly    Kind = "readonly"     // to see an organization, or one app of it
	MachineExec Kind = "machine-exec" // certain commands in an app's Machines, and to see them
	SSH         Kind = "ssh"          // to see an app, and get into its Machines
	WireGuard   Kind = "wireguard"    // peers of the organization's private network
	Metrics     Kind = "metrics"      // the metrics of an organization's apps, or of the platform
)

// Kinds are those that can be asked for; Login is made by logging in.
var Kinds = []Kind{Org, Deploy, ReadOnly, MachineExec, SSH, WireGuard, Metrics}

// ParseKind checks a kind that can be asked for.
func ParseKind(s string) (Kind, error) {
	if k := Kind(s); slices.Contains(Kinds, k) {
		return k, nil
	}
	return "", fmt.Errorf("%q is not a kind of token; there are %v", clip(s), Kinds)
}

// Scope is what a token of a kind is about, by numbers.
type Scope struct {
	Org uint64
	App uint64 // 0: none
	// Platform is set in place of Org for a token about the platform as a whole.
	Platform bool
	// Commands are those of a machine-exec token: the words that a command starts with, or,
	// if Exact, is.
	Commands [][]string
	Exact    bool
}

// Caveats are those that make a kind: a list for each token that it consists of. A token of any
// kind but Login names one organization, or is for the metrics of the platform.
func (k Kind) Caveats(s Scope) ([][]macaroon.Caveat, error) {
	if k == Login {
		return [][]macaroon.Caveat{nil}, nil
	}
	if s.Platform {
		if k != Metrics || s.Org != 0 || s.App != 0 || len(s.Commands) > 0 {
			return nil, fmt.Errorf("a token of kind %s is for an organization; for the platform there is kind %s", k, Metrics)
		}
		return list(&PlatformMetrics{}), nil
	}
	if s.Org == 0 {
		return nil, fmt.Errorf("a token of kind %s is for an organization", k)
	}
	org := &flyio.Organization{ID: s.Org, Mask: resset.ActionAll}
	member := &flyio.IsMember{}
	app := &flyio.Apps{Apps: resset.New[uint64](resset.ActionAll, s.App)}
	if s.App == 0 && (k == Deploy || k == MachineExec || k == SSH) {
		return nil, fmt.Errorf("a token of kind %s is for an app", k)
	}
	if len(s.Commands) > 0 && k != MachineExec {
		return nil, fmt.Errorf("commands are for a token of kind %s", MachineExec)
	}
	switch k {
	case Org:
		if s.App != 0 {
			return nil, fmt.Errorf("a token of kind %s is not for an app; use %s", k, Deploy)
		}
		return list(org, member), nil
	case Deploy:
		return list(org, member, app), nil
	case ReadOnly:
		see := &flyio.Organization{ID: s.Org, Mask: resset.ActionRead}
		if s.App != 0 {
			return list(see, member, app), nil
		}
		return list(see, member), nil
	case MachineExec:
		return list(org, member, app, OnlyCommands(s.Commands, s.Exact)), nil
	case SSH:
		read := resset.ActionRead
		return [][]macaroon.Caveat{
			{org, member, app, &read},
			{org, member, app, &flyio.Mutations{Mutations: []string{"issueCertificate", "addWireGuardPeer"}}},
		}, nil
	case Metrics:
		if s.App != 0 {
			return nil, fmt.Errorf("a token of kind %s is for an organization, not for an app", k)
		}
		see := &flyio.Organization{ID: s.Org, Mask: resset.ActionRead}
		return list(see, &flyio.FeatureSet{Features: resset.New(resset.ActionRead, FeatureMetrics)}), nil
	case WireGuard:
		return list(org, member, &resset.IfPresent{
			Ifs: macaroon.NewCaveatSet(
				&flyio.Apps{Apps: resset.ResourceSet[uint64, resset.Action]{}},
				&flyio.FeatureSet{Features: resset.New(resset.ActionAll, flyio.FeatureWireGuard)},
			),
			Else: resset.ActionRead,
		}), nil
	}
	return nil, fmt.Errorf("there is no kind of token %q", clip(string(k)))
}

// FeatureMetrics is the feature of an organization that a token of kind Metrics is held to.
const FeatureMetrics = "metrics"

func list(cs ...macaroon.Caveat) [][]macaroon.Caveat { return [][]macaroon.Caveat{cs} }

// OnlyCommands holds a token to commands that start with certain words, and otherwise to
// reading. Without any it is to reading alone.
func OnlyCommands(commands [][]string, exact bool) macaroon.Caveat {
	only := flyio.Commands{}
	for _, c := range commands {
		only = append(only, flyio.Command{Args: c, Exact: exact})
	}
	return &resset.IfPresent{Ifs: macaroon.NewCaveatSet(&only), Else: resset.ActionRead}
}
