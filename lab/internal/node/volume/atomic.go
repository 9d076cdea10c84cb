// Package volume makes the directories that Pods mount: Secrets, ConfigMaps, the downward API, projected volumes,
// service-account tokens, emptyDir and hostPath.
//
// What goes in: a Pod and a Source of the API objects it names. What comes out: a directory per volume whose content
// changes as one, by the kubelet's symlink swap, and when it should be looked at again.
// What it must not do: watch anything itself, or touch a path outside the directories given to it.
package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// File is one file of a payload.
type File struct {
	Data []byte
	Mode fs.FileMode
}

// Payload maps slash-separated relative paths to their files.
type Payload map[string]File

const (
	dataLink = "..data"
	newLink  = "..data_tmp"
)

// Write makes dir hold exactly payload, and reports whether anything changed. It is the kubelet's atomic writer: the files
// are written to a new `..TIMESTAMP` directory, `..data` is swapped to it by rename, and the visible names are symlinks
// through `..data`. So a reader sees all of the old content or all of the new, and a watcher of `..data` one event.
func Write(dir string, payload Payload) (bool, error) {
	for name := range payload {
		if err := checkName(name); err != nil {
			return false, err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if old != "" {
		same, err := holds(filepath.Join(dir, old), payload)
		if err != nil {
			return false, err
		}
		if same {
			return false, linkNames(dir, payload)
		}
	}
	stamp, err := writeNew(dir, payload)
	if err != nil {
		return false, err
	}
	tmp := filepath.Join(dir, newLink)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(stamp, tmp); err != nil {
		return false, err
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	if err := linkNames(dir, payload); err != nil {
		return true, err
	}
	if old != "" {
		if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
			return true, err
		}
	}
	return true, nil
}

func checkName(name string) error {
	clean := filepath.ToSlash(filepath.Clean(name))
	if name == "" || clean != name || filepath.IsAbs(name) || strings.HasPrefix(name, "..") {
		return fmt.Errorf("volume file %q: not a clean relative path", name)
	}
	return nil
}

// holds reports whether the directory has exactly the files of payload.
func holds(dir string, payload Payload) (bool, error) {
	seen := 0
	same := true
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := payload[filepath.ToSlash(rel)]
		if !ok {
			same = false
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path) //nolint:gosec // G122: nobody else writes below a volume
		if err != nil {
			return err
		}
		if !bytes.Equal(data, want.Data) || info.Mode().Perm() != want.Mode.Perm() {
			same = false
			return fs.SkipAll
		}
		seen++
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) { // cleaned up behind our back: write anew
		return false, nil
	}
	return same && seen == len(payload), err
}

// writeNew writes payload to a fresh time-stamped directory below dir and returns its name.
func writeNew(dir string, payload Payload) (string, error) {
	tmp, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o755); err != nil { //nolint:gosec // every container of the Pod reads it
		return "", err
	}
	for name, f := range payload {
		path := filepath.Join(tmp, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, f.Data, f.Mode.Perm()); err != nil {
			return "", err
		}
		if err := os.Chmod(path, f.Mode.Perm()); err != nil { // whatever the umask
			return "", err
		}
	}
	return filepath.Base(tmp), nil
}

// linkNames makes the visible names, and removes those that payload no longer has.
func linkNames(dir string, payload Payload) error {
	want := map[string]bool{}
	for name := range payload {
		first, _, _ := strings.Cut(name, "/")
		want[first] = true
	}
	names := make([]string, 0, len(want))
	for n := range want {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		err := os.Symlink(filepath.Join(dataLink, n), filepath.Join(dir, n))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") || want[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
