package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// content reads the visible files of a volume, through its links.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(rel string)
	walk = func(rel string) {
		entries, err := os.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			p := filepath.Join(rel, e.Name())
			st, err := os.Stat(filepath.Join(dir, p))
			if err != nil {
				t.Fatal(err)
			}
			if st.IsDir() {
				walk(p)
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, p))
			if err != nil {
				t.Fatal(err)
			}
			out[p] = string(b)
		}
	}
	walk("")
	return out
}

func payload(files map[string]string) Payload {
	p := Payload{}
	for k, v := range files {
		p[k] = File{Data: []byte(v), Mode: 0o644}
	}
	return p
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	steps := []struct {
		name    string
		files   map[string]string
		changed bool
	}{
		{"first", map[string]string{"a": "1", "sub/b": "2"}, true},
		{"same", map[string]string{"a": "1", "sub/b": "2"}, false},
		{"changed", map[string]string{"a": "one", "sub/b": "2"}, true},
		{"removed and added", map[string]string{"c/d/e": "3"}, true},
		{"empty", map[string]string{}, true},
		{"back", map[string]string{"a": "1"}, true},
	}
	for _, s := range steps {
		before, _ := os.Readlink(filepath.Join(dir, dataLink))
		changed, err := Write(dir, payload(s.files))
		if err != nil || changed != s.changed {
			t.Fatalf("%s: changed %v, %v; want changed %v", s.name, changed, err, s.changed)
		}
		if diff := cmp.Diff(s.files, content(t, dir)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", s.name, diff)
		}
		after, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil || (before != after) != s.changed {
			t.Errorf("%s: ..data %q then %q, %v", s.name, before, after, err)
		}
		// The old directory is gone, and so is the temporary link.
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var hidden []string
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") {
				hidden = append(hidden, e.Name())
			}
		}
		if diff := cmp.Diff([]string{dataLink, after}, hidden, cmp.Transformer("sorted", func(s []string) map[string]bool {
			m := map[string]bool{}
			for _, n := range s {
				m[n] = true
			}
			return m
		})); diff != "" {
			t.Errorf("%s: left in the volume (-want +got)\n%s", s.name, diff)
		}
	}
}

func TestWriteMode(t *testing.T) {
	dir := t.TempDir()
	if _, err := Write(dir, Payload{"key": {Data: []byte("k"), Mode: 0o400}}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, "key"))
	if err != nil || st.Mode().Perm() != 0o400 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if changed, err := Write(dir, Payload{"key": {Data: []byte("k"), Mode: 0o444}}); err != nil || !changed {
		t.Errorf("another mode is a change: %v, %v", changed, err)
	}
}

func TestWriteRefusesPathsThatLeadOut(t *testing.T) {
	for _, name := range []string{"", "/etc/x", "../x", "a/../../x", "..data", "a//b"} {
		if _, err := Write(t.TempDir(), Payload{name: {}}); err == nil {
			t.Errorf("%q was written", name)
		}
	}
}

// A reader of two files of one volume never sees one old and one new.
func TestWriteIsAtomic(t *testing.T) {
	dir := t.TempDir()
	if _, err := Write(dir, payload(map[string]string{"cert": "0", "key": "0"})); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			// As fsnotify users do: resolve ..data once, then read both.
			link, err := os.Readlink(filepath.Join(dir, dataLink))
			if err != nil {
				done <- err
				return
			}
			cert, err1 := os.ReadFile(filepath.Join(dir, link, "cert"))
			key, err2 := os.ReadFile(filepath.Join(dir, link, "key"))
			if err1 != nil || err2 != nil {
				continue // swapped and removed meanwhile: read again
			}
			if string(cert) != string(key) {
				done <- errors.New("saw cert " + string(cert) + " with key " + string(key))
				return
			}
		}
	}()
	for i := range 200 {
		v := string(rune('a' + i%26))
		if _, err := Write(dir, payload(map[string]string{"cert": v, "key": v})); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// objects is a Source in memory; tokens are numbered.
type objects struct {
	secrets map[string]*corev1.Secret
	maps    map[string]*corev1.ConfigMap
	issued  int
	fail    error
	now     time.Time
}

func missing(kind, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: kind}, name)
}

func (o *objects) Secret(_, name string) (*corev1.Secret, error) {
	if s := o.secrets[name]; s != nil {
		return s, nil
	}
	return nil, missing("secrets", name)
}

func (o *objects) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	if c := o.maps[name]; c != nil {
		return c, nil
	}
	return nil, missing("configmaps", name)
}

func (o *objects) Token(_ context.Context, _ *corev1.Pod, audience string, seconds int64) (string, time.Time, error) {
	if o.fail != nil {
		return "", time.Time{}, o.fail
	}
	o.issued++
	return audience + "-" + string(rune('0'+o.issued)), o.now.Add(time.Duration(seconds) * time.Second), nil
}

func TestSync(t *testing.T) {
	yes, mode, seconds := true, int32(0o440), int64(1000)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", Labels: map[string]string{"b": "2", "a": "1"}}}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", Items: []corev1.KeyToPath{{Key: "k", Path: "dir/file", Mode: &mode}}}}},
		{Name: "optional", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none", Optional: &yes}}},
		{Name: "map", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
		{Name: "all", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "istio-ca", ExpirationSeconds: &seconds, Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
		}}}},
	}
	now := time.Unix(1e9, 0)
	src := &objects{
		now:     now,
		secrets: map[string]*corev1.Secret{"s": {Data: map[string][]byte{"k": []byte("v"), "other": nil}}},
		maps:    map[string]*corev1.ConfigMap{"c": {Data: map[string]string{"x": "y"}, BinaryData: map[string][]byte{"z": {0}}}},
	}
	set := NewSet(t.TempDir(), t.TempDir())
	sync := func(at time.Time) (time.Time, error) { src.now = at; return set.Sync(t.Context(), src, pod, at) }
	read := func(i int) map[string]string { return content(t, set.Path(&pod.Spec.Volumes[i])) }

	next, err := sync(now)
	if err != nil {
		t.Fatal(err)
	}
	if want := now.Add(800 * time.Second); !next.Equal(want) {
		t.Errorf("token renewed at %v, want %v", next, want)
	}
	want := []map[string]string{
		{"dir/file": "v"},
		{},
		{"x": "y", "z": "\x00"},
		{"token": "istio-ca-1", "x": "y", "z": "\x00", "labels": "a=\"1\"\nb=\"2\""},
	}
	for i := range want {
		if diff := cmp.Diff(want[i], read(i)); diff != "" {
			t.Errorf("volume %s (-want +got)\n%s", pod.Spec.Volumes[i].Name, diff)
		}
	}

	// Nothing is renewed early; at 80 % it is; when that fails, the old token stays and it is tried again soon.
	if _, err := sync(now.Add(799 * time.Second)); err != nil || src.issued != 1 {
		t.Errorf("issued %d, %v", src.issued, err)
	}
	src.fail = errors.New("API away")
	at := now.Add(800 * time.Second)
	if next, err = sync(at); err != nil || !next.Equal(at.Add(10*time.Second)) || read(3)["token"] != "istio-ca-1" {
		t.Errorf("failed renewal: next %v, %v, token %q", next, err, read(3)["token"])
	}
	src.fail = nil
	if _, err = sync(next); err != nil || read(3)["token"] != "istio-ca-2" {
		t.Errorf("renewal: %v, token %q", err, read(3)["token"])
	}

	// The optional Secret appears; a required key disappears, which is an error that leaves the file.
	src.secrets["none"] = &corev1.Secret{Data: map[string][]byte{"late": []byte("here")}}
	delete(src.secrets["s"].Data, "k")
	if _, err = sync(next); err == nil {
		t.Error("a missing key is no error")
	}
	if diff := cmp.Diff(map[string]string{"late": "here"}, read(1)); diff != "" {
		t.Errorf("optional Secret (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"dir/file": "v"}, read(0)); diff != "" {
		t.Errorf("Secret without its key (-want +got)\n%s", diff)
	}
}

func TestSyncWithoutRequiredSecret(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}}}
	_, err := NewSet(t.TempDir(), t.TempDir()).Sync(t.Context(), &objects{}, pod, time.Now())
	if !apierrors.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}

func TestHostPathStaysInItsArea(t *testing.T) {
	host := t.TempDir()
	set := NewSet(t.TempDir(), host)
	dirOrCreate, file, dir := corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathDirectory
	for _, c := range []struct {
		path string
		kind *corev1.HostPathType
		ok   bool
	}{
		{"/var/lib/x", nil, true},
		{"/var/lib/y", &dirOrCreate, true},
		{"/../../etc", &dirOrCreate, true},
		{"/no/file", &file, false},
		{"/no/dir", &dir, false},
		{"/var/lib/x", &dir, true},
	} {
		v := corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: c.path, Type: c.kind}}}
		pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{v}}}
		_, err := set.Sync(t.Context(), &objects{}, pod, time.Now())
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.path, err)
		}
		if p := set.Path(&v); !strings.HasPrefix(p, host+"/") {
			t.Errorf("%s: leads out, to %s", c.path, p)
		}
		if _, err := os.Stat(set.Path(&v)); c.ok && errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: was not made", c.path)
		}
	}
}
