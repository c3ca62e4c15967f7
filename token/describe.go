package token

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/superfly/macaroon"
	"github.com/superfly/macaroon/auth"
	"github.com/superfly/macaroon/flyio"
	"github.com/superfly/macaroon/resset"

	"bulkhead/key"
)

// Description is what can be read in a token without any key. Nobody has verified it.
type Description struct {
	ID        key.TokenID `json:"id,omitempty"` // of a cluster's own: what revoke takes
	Location  string      `json:"location"`
	Key       string      `json:"key,omitempty"` // the root key's id
	Discharge bool        `json:"discharge"`
	Until     *time.Time  `json:"until,omitempty"` // the earliest end that is written in it
	Caveats   []Line      `json:"caveats"`
}

// Line is one caveat in words; those inside it follow, one deeper.
type Line struct {
	Depth int    `json:"depth"`
	Type  uint64 `json:"type"`
	Name  string `json:"name"`
	Words string `json:"words"`
}

// Describe reads a header and says what its tokens hold, without verifying anything.
func Describe(header string) ([]Description, error) {
	b, err := Parse(header)
	if err != nil {
		return nil, err
	}
	var all []Description
	for _, o := range b.permissions {
		d := describe(o.m)
		if made, id, ok := idOf(o.m); ok {
			d.ID, d.Key = id, made.String()
		}
		all = append(all, d)
	}
	for _, o := range b.discharges {
		d := describe(o.m)
		d.Discharge = true
		all = append(all, d)
	}
	return all, nil
}

func describe(m *macaroon.Macaroon) Description {
	d := Description{Location: m.Location}
	d.Caveats = lines(m.UnsafeCaveats.Caveats, 0, nil)
	for _, c := range m.UnsafeCaveats.Caveats {
		if w, ok := c.(*macaroon.ValidityWindow); ok {
			if t := time.Unix(w.NotAfter, 0).UTC(); d.Until == nil || t.Before(*d.Until) {
				d.Until = &t
			}
		}
	}
	return d
}

func lines(caveats []macaroon.Caveat, depth int, to []Line) []Line {
	for _, c := range caveats {
		to = append(to, Line{Depth: depth, Type: uint64(c.CaveatType()), Name: c.Name(), Words: words(c)})
		if i, ok := c.(*resset.IfPresent); ok && i.Ifs != nil {
			to = lines(i.Ifs.Caveats, depth+1, to)
		}
	}
	return to
}

// words says what a caveat means. Each type that can be decoded has words: a test checks.
func words(c macaroon.Caveat) string {
	switch c := c.(type) {
	case *macaroon.ValidityWindow:
		return "only from " + stamp(c.NotBefore) + " until " + stamp(c.NotAfter)
	case *macaroon.Caveat3P:
		return "only with a discharge by " + clip(c.Location)
	case *macaroon.BindToParentToken:
		return fmt.Sprintf("only beside the token whose digest starts with %x", []byte(*c))
	case *macaroon.UnregisteredCaveat:
		return fmt.Sprintf("of a type that is not known here (%d): refused", c.Type)
	case *resset.IfPresent:
		return "where one of the following applies it holds; otherwise only " + mask(c.Else)
	case *resset.Action:
		return "only " + mask(*c)
	case *Session:
		return "only while session " + clip(c.ID) + " lives"
	case *FromAddress:
		return "only from " + some(c.Networks)
	case *AppNames:
		return "only apps of the names " + some(c.Names)
	case *PlatformMetrics:
		return "only the metrics of the whole platform"
	case *ForSession:
		return "nothing: this stands in tickets alone"
	}
	if s, ok := flyWords(c); ok {
		return s
	}
	return authWords(c)
}

func flyWords(c macaroon.Caveat) (string, bool) {
	switch c := c.(type) {
	case *flyio.Organization:
		if c.ID == 0 {
			return "any organization: " + mask(c.Mask), true
		}
		return fmt.Sprintf("only organization %d: %s", c.ID, mask(c.Mask)), true
	case *flyio.Apps:
		return "only apps " + set(c.Apps), true
	case *flyio.Machines:
		return "only Machines " + set(c.Machines), true
	case *flyio.Volumes:
		return "only volumes " + set(c.Volumes), true
	case *flyio.FeatureSet:
		return "of the organization's features only " + set(c.Features), true
	case *flyio.AppFeatureSet:
		return "of the app's features only " + set(c.Features), true
	case *flyio.MachineFeatureSet:
		return "of the Machine's features only " + set(c.Features), true
	case *flyio.Clusters:
		return "only clusters " + set(c.Clusters), true
	case *flyio.StorageObjects:
		return "only storage objects " + set(c.Prefixes), true
	case *flyio.Mutations:
		return "only the GraphQL mutations " + some(c.Mutations), true
	case *flyio.Commands:
		return "only the commands " + commands(*c), true
	case *flyio.FromMachine:
		return "only from Machine " + clip(c.ID), true
	case *flyio.FlySrc:
		return fmt.Sprintf("only from organization %q, app %q, Machine %q (empty: any)", clip(c.Organization), clip(c.App), clip(c.Instance)), true
	case *flyio.IsUser:
		return fmt.Sprintf("made for user %d (says who, forbids nothing)", c.ID), true
	case *flyio.IsMember:
		return "only what an ordinary member may do", true
	case *flyio.AllowedRoles:
		return "only what these roles may do: " + flyio.Role(*c).String(), true
	}
	return "", false
}

func authWords(c macaroon.Caveat) string {
	switch c := c.(type) {
	case *auth.ConfineUser:
		return fmt.Sprintf("discharged for user %d only", c.ID)
	case *auth.ConfineOrganization:
		return fmt.Sprintf("discharged for members of organization %d only", c.ID)
	case *auth.ConfineGoogleHD:
		return "discharged for the Google domain " + clip(string(*c)) + " only"
	case *auth.ConfineGitHubOrg:
		return fmt.Sprintf("discharged for members of GitHub organization %d only", *c)
	case *auth.MaxValidity:
		return fmt.Sprintf("discharged for at most %d seconds", uint64(*c))
	}
	b, err := json.Marshal(c)
	if err != nil {
		return c.Name()
	}
	if macaroon.IsAttestation(c) {
		return "attests " + clip(string(b))
	}
	return clip(string(b))
}

// stamp gives a time of a hostile token, which may be one that no calendar has.
func stamp(unix int64) string {
	if unix < 0 || unix > 1<<36 {
		return "Unix time " + strconv.FormatInt(unix, 10)
	}
	return time.Unix(unix, 0).UTC().Format(time.RFC3339)
}

func mask(a resset.Action) string {
	var w []string
	for _, n := range []struct {
		bit  resset.Action
		name string
	}{{resset.ActionRead, "read"}, {resset.ActionWrite, "write"}, {resset.ActionCreate, "create"}, {resset.ActionDelete, "delete"}, {resset.ActionControl, "control"}} {
		if a&n.bit != 0 {
			w = append(w, n.name)
		}
	}
	switch len(w) {
	case 0:
		return "nothing"
	case 5:
		return "every action"
	}
	return strings.Join(w, ", ")
}

func set[I resset.ID](s resset.ResourceSet[I, resset.Action]) string {
	if len(s) == 0 {
		return "(none)"
	}
	var w []string
	for _, id := range slices.Sorted(maps.Keys(s)) {
		if id == resset.ZeroID[I]() {
			w = append(w, "(any): "+mask(s[id]))
		} else {
			w = append(w, clip(fmt.Sprint(id))+": "+mask(s[id]))
		}
	}
	return strings.Join(w, "; ")
}

func some(list []string) string {
	if len(list) == 0 {
		return "(none)"
	}
	w := make([]string, len(list))
	for i, s := range list {
		w[i] = clip(s)
	}
	return strings.Join(w, ", ")
}

func commands(list flyio.Commands) string {
	if len(list) == 0 {
		return "(none)"
	}
	w := make([]string, len(list))
	for i, c := range list {
		how := "starting with"
		if c.Exact {
			how = "exactly"
		}
		w[i] = fmt.Sprintf("%s %q", how, clip(strings.Join(c.Args, " ")))
	}
	return strings.Join(w, "; ")
}
