package fault

import "strings"

// Nearest returns the name at edit distance 1 or 2 from key, or the one that
// differs only in dashes and underscores; "" when there is none.
func Nearest(key string, names []string) string {
	best, dist := "", 3
	key = strings.ToLower(key)
	for _, n := range names {
		d := distance(strings.ReplaceAll(key, "-", "_"), strings.ReplaceAll(strings.ToLower(n), "-", "_"))
		if d < dist && d < len(n)/2+1 && d < len(key) {
			best, dist = n, d
		}
	}
	return best
}

// distance is the Levenshtein distance, for short strings.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cur := row[j]
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(row[j]+1, row[j-1]+1, prev+cost)
			prev = cur
		}
	}
	return row[len(b)]
}
