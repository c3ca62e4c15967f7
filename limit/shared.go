package limit

import "time"

// What one of those who share a rate has of it, as one part in so many.
const (
	shareOfOne   = 4  // at most, for one token
	shareOfQuiet = 16 // of one user: who takes no more than this counts as quiet
	reserve      = 4  // of the burst: what is left for the quiet
)

// Shared holds each object to one rate, whoever asks and however many they are, so that
// no caller locks the others out:
//
//   - one token gets a quarter of the rate and of the burst;
//   - the last quarter of the burst is for users who ask seldom: no more often than a
//     sixteenth of the rate, with all their tokens together. Who wants to take it from
//     them needs sixteen users that do the same, not tokens, of which a user makes as
//     many as he likes.
//
// It remembers a bounded number of keys, as Rates does, for each of the three.
type Shared struct {
	whole, each, quiet *Rates
	left               float64 // of the burst, for the quiet
}

// NewShared returns a Shared of a rate for all together. A Rate of zero is no limit.
func NewShared(r Rate, max int) *Shared {
	part := func(n int) Rate { return Rate{PerSecond: r.PerSecond / float64(n), Burst: (r.Burst + n - 1) / n} }
	return &Shared{
		whole: NewRates(r, max), each: NewRates(part(shareOfOne), max), quiet: NewRates(part(shareOfQuiet), max),
		left: float64(r.Burst / reserve),
	}
}

// Take takes one of object's for a token of user and returns 0; or returns how long to
// wait, and whether that is because the token has had its share: else it is because all
// callers together have had theirs.
func (s *Shared) Take(object, user, token string, now time.Time) (wait time.Duration, share bool) {
	if wait := s.each.Take(object+" "+token, now); wait > 0 {
		return wait, true
	}
	left := s.left
	if s.quiet.Take(object+" "+user, now) == 0 {
		left = 0
	}
	return s.whole.takeLeaving(object, left, now), false
}
