package node

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// images maps image references to programs in one folder.
type images struct{ dir string }

// imageError says why an image could not be "pulled".
type imageError struct{ msg string }

func (e imageError) Error() string { return e.msg }

// imageName is the last path component of an image reference, without tag and digest.
func imageName(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	name := path.Base(ref)
	name, _, _ = strings.Cut(name, ":")
	return name
}

// resolve finds the program of name in the folder, through symlinks.
func (im images) resolve(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, '/') || strings.HasPrefix(name, ".") {
		return "", imageError{fmt.Sprintf("%q is not a name of a lab image", name)}
	}
	p, err := filepath.EvalSymlinks(filepath.Join(im.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", imageError{fmt.Sprintf("no program %s for this image; the lab has: %s", filepath.Join(im.dir, name), im.list())}
	}
	if err != nil {
		return "", imageError{err.Error()}
	}
	return p, nil
}

func (im images) list() string {
	entries, err := os.ReadDir(im.dir)
	if err != nil {
		return err.Error()
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return strings.Join(names, ", ")
}

// program is what a container runs: the file outside, where it appears inside, and argv.
type program struct {
	file, path string
	args       []string
	imageID    string
}

// program applies the image convention to a container's image, command and args (both already expanded).
func (im images) program(ref string, command, args []string) (program, error) {
	name := imageName(ref)
	file, err := im.resolve(name)
	if err != nil {
		return program{}, err
	}
	id, err := imageID(name, file)
	if err != nil {
		return program{}, imageError{err.Error()}
	}
	inside := "/usr/local/bin/" + name
	if len(command) == 0 {
		return program{file: file, path: inside, args: append([]string{inside}, args...), imageID: id}, nil
	}
	// A command names another program of the folder, or a name that the image's own program goes by inside.
	base := path.Base(command[0])
	if other, err := im.resolve(base); err == nil {
		file = other
	}
	inside = "/usr/local/bin/" + base
	if path.IsAbs(command[0]) {
		inside = path.Clean(command[0])
	}
	return program{file: file, path: inside, args: append(append([]string{}, command...), args...), imageID: id}, nil
}

// imageID identifies the content well enough to see that a program was replaced, without reading hundreds of megabytes:
// a digest over size, time of change and the first 64 KiB, which hold a Go program's build id.
func imageID(name, file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	head := make([]byte, 64<<10)
	n, _ := f.ReadAt(head, 0)
	h.Write(head[:n])
	_ = binary.Write(h, binary.LittleEndian, []int64{st.Size(), st.ModTime().UnixNano()})
	return "lab.local/" + name + "@sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
