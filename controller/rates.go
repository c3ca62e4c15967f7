package controller

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bulkhead/controller/access"
	"bulkhead/fault"
	"bulkhead/limit"
	"bulkhead/token"
)

// rates are the limits on how often callers may call. Each remembers a bounded number
// of keys; a request costs a few look-ups, whoever else calls.
type rates struct {
	token    *limit.Rates  // a caller's calls, by token
	changes  *limit.Shared // by kind of call and object, whoever calls
	reads    *limit.Shared // the same, of what changes nothing
	deletion *limit.Rates  // of apps, by token
	public   *limit.Rates  // what needs no token, by address
	failures *limit.Rates  // failed authentication, by address
	guesses  *limit.Rates  // failed authentication, by the token id that was claimed
	codes    *limit.Rates  // codes of devices that people type, by address and by user
	machines *limit.Rates  // what a Machine does over its own socket that has a record, by Machine
	fetches  *limit.Rates  // secrets that workers ask for, by Machine

	refused *prometheus.CounterVec // by limit
	failed  prometheus.Counter
}

// rememberedKeys bounds the memory of each limit: about 250 bytes a key.
const rememberedKeys = 20_000

// codeRate is not to be configured: the codes are short, because people type them.
var codeRate = limit.Rate{PerSecond: 1.0 / 60, Burst: 10}

// What a hostile app does over its socket, and a worker that was taken over asks for, has
// a record each time: without a bound of its own, one of them would fill the audit log's
// disk and hold up everybody's changes. Neither is to be configured: an identity token is
// good for ten minutes, and no Machine starts as often.
var (
	machineRate = limit.Rate{PerSecond: 2, Burst: 100}
	fetchRate   = limit.Rate{PerSecond: 1, Burst: 30}
)

func newRates(l limit.Set, m *prometheus.Registry) *rates {
	r := &rates{
		token: limit.NewRates(l.Token, rememberedKeys), changes: limit.NewShared(l.Object, rememberedKeys), reads: limit.NewShared(l.Read, rememberedKeys),
		deletion: limit.NewRates(l.Deletion, rememberedKeys), public: limit.NewRates(l.Public, rememberedKeys),
		failures: limit.NewRates(l.Failure, rememberedKeys), guesses: limit.NewRates(l.Guess, rememberedKeys),
		codes: limit.NewRates(codeRate, rememberedKeys), machines: limit.NewRates(machineRate, rememberedKeys), fetches: limit.NewRates(fetchRate, rememberedKeys),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bulkhead_api_limited_total", Help: "Requests of the public API that were refused because there were too many, by limit."}, []string{"limit"}),
		failed:  prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_api_authentication_failures_total", Help: "Requests with no token or a bad one."}),
	}
	m.MustRegister(r.refused, r.failed)
	return r
}

// take is nil, or the refusal of a call that came too soon.
func (r *rates) take(l *limit.Rates, name, key, what string) error {
	wait := l.Take(key, time.Now())
	if wait == 0 {
		return nil
	}
	r.refused.WithLabelValues(name).Inc()
	return tooMany(wait, "too many %s", what)
}

func tooMany(wait time.Duration, format string, args ...any) *fault.Error {
	return fault.New(fault.TooMany, format, args...).WithRetryAfter(wait)
}

// claimedID returns the id that a token says it has, whether that is true or not; empty
// when it says none.
func claimedID(text string) string {
	if t, ok := strings.CutPrefix(text, claimPrefix); ok {
		if id, _, ok := strings.Cut(t, "."); ok && claimRE.MatchString(id) {
			return id
		}
		return ""
	}
	b, err := token.Parse(text)
	if err != nil {
		return ""
	}
	return string(b.Claimed())
}

// identify is authentication within the limits: who is known is held to the rate of its
// token, and who is not to that of its address.
func (c *Controller) identify(text, from string, authenticate func() (access.Caller, error)) (access.Caller, error) {
	who, err := authenticate()
	if fault.Is(err, fault.Unauthenticated) {
		return access.Caller{}, c.rates.failedAuth(from, claimedID(text), err)
	}
	if err != nil {
		return access.Caller{}, err
	}
	return who, c.rates.take(c.rates.token, "token", who.RateKey(), "calls with this token")
}

// allow holds a call to every rate that it falls under, but that of its token. What a
// Machine does, and does not only read, has one for all of it together.
func (r *rates) allow(who access.Caller, e endpoint, req *http.Request) error {
	if who.Kind == access.ByMachine && e.recorded() {
		if err := r.take(r.machines, "machine", who.RateKey(), "changes and identity tokens of one machine"); err != nil {
			return err
		}
	}
	return r.allowCall(who, req)
}

// objectParts are the parts of a path that together name what a call is about. A Machine
// is named with its app, which the caller was found to have a right to: with its id alone
// a stranger could use up its limit from an app of his own.
var objectParts = []string{"org", "app", "machine", "user", "node"}

// allowCall holds all callers of an object together to the rate of doing one thing to it,
// and each of them to its share, so that none locks the others out. What names no object
// has the rate of its token alone.
func (r *rates) allowCall(who access.Caller, req *http.Request) error {
	object, last := "", ""
	for _, name := range objectParts {
		if v := req.PathValue(name); v != "" {
			object, last = object+" "+v, v
		}
	}
	if object == "" {
		return nil
	}
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		return r.takeShare(r.reads, "read", req.Pattern+object, last, who)
	}
	if req.Pattern == "DELETE /v1/apps/{app}" {
		if err := r.take(r.deletion, "deletion", who.RateKey(), "deletions of apps"); err != nil {
			return err
		}
	}
	return r.takeShare(r.changes, "object", req.Pattern+object, last, who)
}

// takeShare is take of what several callers share.
func (r *rates) takeShare(l *limit.Shared, name, key, object string, who access.Caller) error {
	wait, share := l.Take(key, who.UserKey(), who.RateKey(), time.Now())
	switch {
	case wait == 0:
		return nil
	case share:
		r.refused.WithLabelValues(name + "_share").Inc()
		return tooMany(wait, "too many calls of this kind for %s with this token", fault.Clip(object))
	}
	r.refused.WithLabelValues(name).Inc()
	return tooMany(wait, "too many calls of this kind for %s, by all callers together", fault.Clip(object))
}

// allowPublic holds an address to the rate of what needs no token.
func (r *rates) allowPublic(req *http.Request) error {
	return r.take(r.public, "public", limit.Address(req.RemoteAddr), "requests from this address")
}

// failedAuth is asked after a token was found to be bad, and returns err, or the
// refusal of an address that sends too many bad ones, or of too many attempts at one
// token. A good token is never held up by it: it was looked at first, which costs
// microseconds, so that who shares an address with somebody that guesses, or whose
// token's id is known to one, is not locked out.
func (r *rates) failedAuth(from, claimed string, err error) error {
	r.failed.Inc()
	now := time.Now()
	wait := r.failures.Take(limit.Address(from), now)
	if claimed != "" {
		wait = max(wait, r.guesses.Take(claimed, now))
	}
	if wait == 0 {
		return err
	}
	r.refused.WithLabelValues("authentication").Inc()
	return tooMany(wait, "too many requests without a good token")
}
