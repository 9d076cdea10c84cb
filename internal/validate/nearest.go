package validate

import "strings"

// Nearest finds the candidate that word was probably meant to be: equal but for case, or at an edit distance (transpositions count once) of
// at most a third of its length. ok is false when none is near. Ties go to the first candidate in order.
func Nearest(word string, candidates []string) (best string, ok bool) {
	limit := max(1, len(word)/3)
	for _, c := range candidates {
		if strings.EqualFold(c, word) {
			return c, true
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d <= limit && d < max(len(c), 2) {
			best, ok, limit = c, true, d-1
		}
	}
	return best, ok
}

// distance is the optimal string alignment distance.
func distance(a, b string) int {
	row := func() []int { return make([]int, len(b)+1) }
	before, prev, cur := row(), row(), row()
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
