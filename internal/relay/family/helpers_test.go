package family

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// edited changes single bytes of data: each edit is a position (two bytes) and a value. Keys and certificates are new at each
// start; edits of them can be kept and repeated all the same.
func edited(data, edits []byte) []byte {
	out := slices.Clone(data)
	for ; len(edits) >= 3; edits = edits[3:] {
		out[(int(edits[0])<<8|int(edits[1]))%len(out)] = edits[2]
	}
	return out
}
