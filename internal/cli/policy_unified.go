package cli

import (
	"fmt"
	"slices"
	"strings"
)

// unified compares two texts line by line, as `diff -u` prints it: hunks with three lines around what changed. Equal texts give "".
func unified(before, after string) string {
	a, b := lines(before), lines(after)
	ops := edits(a, b)
	var out strings.Builder
	const around = 3
	for i := 0; i < len(ops); {
		if ops[i].kind == ' ' {
			i++
			continue
		}
		start, end, quiet := max(0, i-around), i, 0
		for j := i; j < len(ops) && quiet <= 2*around; j++ {
			if quiet++; ops[j].kind != ' ' {
				end, quiet = j+1, 0
			}
		}
		stop := min(len(ops), end+around)
		hunk(&out, ops[start:stop])
		i = stop
	}
	return out.String()
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// edit is a line that stays (' '), goes ('-') or comes ('+'), with the numbers of the next lines on both sides.
type edit struct {
	kind byte
	text string
	a, b int
}

// edits is a shortest way from a to b, by the longest common subsequence. Manifests are short: quadratic is fine.
func edits(a, b []string) []edit {
	length := make([][]int, len(a)+1)
	for i := range length {
		length[i] = make([]int, len(b)+1)
	}
	for i, left := range slices.Backward(a) {
		for j, right := range slices.Backward(b) {
			if left == right {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	var out []edit
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, edit{' ', a[i], i, j})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || length[i+1][j] >= length[i][j+1]):
			out = append(out, edit{'-', a[i], i, j})
			i++
		default:
			out = append(out, edit{'+', b[j], i, j})
			j++
		}
	}
	return out
}

func hunk(out *strings.Builder, ops []edit) {
	var from, to int
	for _, o := range ops {
		if o.kind != '+' {
			from++
		}
		if o.kind != '-' {
			to++
		}
	}
	start := func(n, count int) string { // a side of no lines is named by the line before it
		if count == 0 {
			return fmt.Sprintf("%d,0", n)
		}
		return fmt.Sprintf("%d,%d", n+1, count)
	}
	fmt.Fprintf(out, "@@ -%s +%s @@\n", start(ops[0].a, from), start(ops[0].b, to))
	for _, o := range ops {
		fmt.Fprintf(out, "%c%s\n", o.kind, o.text)
	}
}
