package limit

import (
	"strconv"
	"strings"

	"bulkhead/fault"
)

// Set is every rate of the public API. It is given as text: see ParseSet.
type Set struct {
	Token    Rate // calls with one token
	Object   Rate // one kind of change of one object, by all callers together (Shared)
	Read     Rate // one kind of look at one object, likewise
	Deletion Rate // deletions of apps, with one token
	Public   Rate // what needs no token, from one address
	Failure  Rate // calls without a good token, from one address
	Guess    Rate // bad tokens that claim to be the same one
}

// DefaultSet is generous, since the platform is its users' own: one token has a hundred
// times what Fly.io grants, and enough for its tools; beyond it is a program that has run
// wild.
// What guesses and what nobody is known for is held shorter.
var DefaultSet = Set{
	Token: Rate{1000, 3000}, Object: Rate{400, 1200}, Read: Rate{2000, 4000}, Deletion: Rate{150, 1000},
	Public: Rate{5, 100}, Failure: Rate{10, 300}, Guess: Rate{1, 20},
}

func (s *Set) fields() map[string]*Rate {
	return map[string]*Rate{"token": &s.Token, "object": &s.Object, "read": &s.Read, "deletion": &s.Deletion, "public": &s.Public, "failure": &s.Failure, "guess": &s.Guess}
}

// ParseSet reads rates such as "token=1000/3000 object=400/1200": a name, how many a
// second, and how many at once; what is not named is as in DefaultSet, and "token=off"
// is no limit. Empty text is DefaultSet. The limits of what needs no token cannot be
// switched off.
func ParseSet(text string) (Set, error) {
	set := DefaultSet
	seen := map[string]bool{}
	for word := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(word, "=")
		r := set.fields()[name]
		if r == nil || seen[name] {
			return Set{}, fault.New(fault.Invalid, "%q is not one of token, object, read, deletion, public, failure and guess, or stands twice", fault.Clip(word))
		}
		seen[name] = true
		if value == "off" && name != "public" && name != "failure" && name != "guess" {
			*r = Rate{}
			continue
		}
		rate, burst, _ := strings.Cut(value, "/")
		n, err1 := strconv.ParseFloat(rate, 64)
		b, err2 := strconv.Atoi(burst)
		if err1 != nil || err2 != nil || !(n >= 0.01 && n <= 1e6) || b < 1 || b > 1e6 {
			return Set{}, fault.New(fault.Invalid, "%q is not a name and a rate such as token=1000/3000 (a second / at once, each at most 1000000), or token=off for token, object, read and deletion", fault.Clip(word))
		}
		*r = Rate{n, b}
	}
	return set, nil
}
