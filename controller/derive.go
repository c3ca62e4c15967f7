package controller

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strconv"

	"bulkhead/api/internalpb"
	"bulkhead/controller/record"
	"bulkhead/key"
	"bulkhead/machine"
	"bulkhead/privnet"
)

// running returns the configs of Machines that run an older version than their record has:
// while an update fetches its image, the old version is routed to as it was.
func (r *routes) running(ctx context.Context, records []*record.Machine) (map[key.MachineID]*machine.Config, error) {
	var runs map[key.MachineID]*machine.Config
	for _, m := range records {
		s := r.c.view.get(m.ID)
		if s == nil || m.Gone != nil || s.State != machine.Started || s.Instance == m.Instance || s.Instance == "" {
			continue
		}
		v, _, err := record.Get[record.Version](ctx, r.c.store, record.VersionKey(m.App, m.ID, s.Instance))
		if err != nil {
			return nil, err
		}
		if v == nil { // so old that it is not kept
			continue
		}
		if runs == nil {
			runs = map[key.MachineID]*machine.Config{}
		}
		runs[m.ID] = v.Config
	}
	return runs, nil
}

// derive makes an app's route; known is false while a worker's report is missing.
// The route is nil for an app without services.
func (r *routes) derive(a key.AppName, records []*record.Machine, runs map[key.MachineID]*machine.Config, over bool) (route *internalpb.Route, known bool) {
	ports := map[int32]*portRoute{}
	var leaving []string
	for _, m := range records {
		s := r.c.view.get(m.ID)
		if m.Gone == nil && leaves(m, s) {
			leaving = append(leaving, string(m.ID))
		}
		conf := m.Config
		if old := runs[m.ID]; old != nil {
			conf = old
		}
		if m.Gone != nil || m.Desired == machine.WantDestroyed || len(conf.Services) == 0 {
			continue
		}
		if _, reported := r.c.view.node(m.Node); !reported && !over {
			return nil, false
		}
		for i := range conf.Services {
			addService(ports, m, s, &conf.Services[i])
		}
	}
	if len(ports) == 0 {
		return nil, true
	}
	route = &internalpb.Route{App: string(a)}
	slices.Sort(leaving)
	for _, p := range ports {
		sort.Slice(p.Backends, func(i, j int) bool {
			if p.Backends[i].MachineId != p.Backends[j].MachineId {
				return p.Backends[i].MachineId < p.Backends[j].MachineId
			}
			return p.Backends[i].Address < p.Backends[j].Address
		})
		p.Leaving = leaving
		route.Services = append(route.Services, p.ServiceRoute)
	}
	sort.Slice(route.Services, func(i, j int) bool { return route.Services[i].Port < route.Services[j].Port })
	return route, true
}

// portRoute is a public port while its route is made.
type portRoute struct {
	*internalpb.ServiceRoute
	said say // by which Machine its options are set
}

// say is how much a Machine has to say about how a port is served.
type say int

const (
	sayNone   say = iota // it takes no traffic: only while no other Machine does
	sayAsleep            // it takes traffic when it is woken
	sayAwake
)

// addService adds one Machine's service to the app's ports. Machines are seen in the
// order of their ids: where their configs differ, the first of those that take traffic
// says how a port is served.
func addService(ports map[int32]*portRoute, m *record.Machine, s *seen, svc *machine.Service) {
	if svc.Protocol == "udp" {
		return
	}
	for i := range svc.Ports {
		p := &svc.Ports[i]
		if p.Port == nil {
			continue
		}
		b, has := backendOf(m, s, svc, p)
		port := int32(*p.Port)
		sr := ports[port]
		if sr == nil {
			sr = &portRoute{ServiceRoute: &internalpb.ServiceRoute{Port: port}, said: -1}
			ports[port] = sr
		}
		if has > sr.said {
			sr.said, sr.Handlers, sr.ForceHttps, sr.H2Backend = has, p.Handlers, p.ForceHTTPS, h2Backend(p)
		}
		if b != nil {
			sr.Backends = append(sr.Backends, b)
		}
	}
}

func h2Backend(p *machine.Port) bool {
	return p.HTTPOptions != nil && p.HTTPOptions.H2Backend != nil && *p.HTTPOptions.H2Backend
}

// backendOf makes the backend of one public port; nil for a Machine that takes no traffic.
func backendOf(m *record.Machine, s *seen, svc *machine.Service, p *machine.Port) (*internalpb.Backend, say) {
	if s == nil || m.Cordoned || !ownAddress(m, s.PrivateIP) {
		return nil, sayNone
	}
	may, has := m.Config.Traffic(), sayAwake
	awake := s.State == machine.Started && wants(m, s) == machine.WantStarted
	if !awake {
		if has = sayAsleep; !may.Autostart || !wakeable(s.State) {
			return nil, sayNone
		}
	}
	b := &internalpb.Backend{
		MachineId: string(m.ID), Region: m.Region,
		Address:   net.JoinHostPort(s.PrivateIP, strconv.Itoa(svc.InternalPort)),
		SoftLimit: 20, LimitType: "connections",
		Options: &internalpb.BackendOptions{Handlers: p.Handlers, H2Backend: h2Backend(p)},
	}
	if slot, ok := privnet.SlotOf(s.PrivateIP); ok {
		b.Address4 = net.JoinHostPort(privnet.MachineIPv4(slot).String(), strconv.Itoa(svc.InternalPort))
	}
	if c := svc.Concurrency; c != nil {
		if c.Type != "" {
			b.LimitType = c.Type
		}
		if c.SoftLimit != 0 {
			b.SoftLimit = int32(c.SoftLimit)
		}
		b.HardLimit = int32(c.HardLimit)
	}
	if may.Autostart || may.Autostop {
		b.Asleep, b.Seq, b.Autostart, b.Autostop = !awake, s.Seq, may.Autostart, may.Autostop
	}
	return b, has
}

// leaves reports whether somebody stops, updates, restarts or destroys a Machine, so that
// a request which its process does not answer has not ended it.
func leaves(m *record.Machine, s *seen) bool {
	if s == nil {
		return false
	}
	switch s.State {
	case machine.Stopping, machine.Updating, machine.Replacing, machine.Destroying:
		return true
	case machine.Started:
		return m.Desired == machine.WantDestroyed || wants(m, s) != machine.WantStarted
	case machine.Restarting:
		return s.RestartNonce != m.RestartNonce || s.Instance != m.Instance
	}
	return false
}

// wakeable reports whether a Machine in this state that takes no requests now may be
// asked to come up: it is down, or on its way, or its worker has yet to hear of a stop.
func wakeable(s machine.State) bool {
	switch s {
	case machine.Started, machine.Stopped, machine.Suspended, machine.Stopping, machine.Starting, machine.Restarting, machine.Updating:
		return true
	}
	return false
}

// ownAddress reports whether an address that a worker reported is one of the
// Machine's own network: nobody may send the edge anywhere else.
func ownAddress(m *record.Machine, addr string) bool {
	ip, err := netip.ParseAddr(addr)
	return err == nil && ip.Zone() == "" && m.Network != 0 && privnet.Prefix(m.Network).Contains(ip)
}
