package cli

import (
	"regexp"
	"time"

	"bulkhead/client"
)

// mostLogLines is how many lines of each Machine are looked through: the API gives no more.
const mostLogLines = 100_000

// logFilter is what --since, --until and --grep say.
type logFilter struct{ since, until, grep string }

// parse returns the test that a line must pass, nil where no flag was given.
func (f logFilter) parse(now time.Time, follow bool) (func(client.LogLine) bool, error) {
	if f == (logFilter{}) {
		return nil, nil
	}
	if f.until != "" && follow {
		return nil, usagef("--until and --follow exclude each other")
	}
	since, err := moment("since", f.since, now)
	if err != nil {
		return nil, err
	}
	until, err := moment("until", f.until, now)
	if err != nil {
		return nil, err
	}
	if !until.IsZero() && !since.Before(until) {
		return nil, usagef("--since %s is not before --until %s", f.since, f.until)
	}
	re, err := regexp.Compile(f.grep)
	if err != nil {
		return nil, usagef("--grep %q is not a regular expression: %v", f.grep, err)
	}
	return func(l client.LogLine) bool {
		return !l.Timestamp.Before(since) && (until.IsZero() || l.Timestamp.Before(until)) && re.MatchString(l.Message)
	}, nil
}

// moment reads a time, or how long ago it was; "" is the zero time.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", time.DateOnly} {
		if t, err := time.ParseInLocation(form, text, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, hint(usagef("--%s %q is neither a time nor a duration", flag, text), "use 2026-01-02T15:04:05Z, or 10m for ten minutes ago")
}
