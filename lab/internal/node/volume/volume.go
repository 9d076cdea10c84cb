package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Source reads the API objects that volumes name. A missing object is reported by an error that apierrors.IsNotFound
// recognises.
type Source interface {
	Secret(namespace, name string) (*corev1.Secret, error)
	ConfigMap(namespace, name string) (*corev1.ConfigMap, error)
	// Token asks for a service-account token bound to pod.
	Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (token string, expires time.Time, err error)
}

// Set is the volumes of one Pod. Its methods are for one goroutine.
type Set struct {
	dir    string // <pod>/volumes
	host   string // private stand-in for the host's root, for hostPath
	tokens map[tokenKey]*token
}

// NewSet keeps the volumes of a Pod below dir; hostPath volumes are paths below host.
func NewSet(dir, host string) *Set {
	return &Set{dir: dir, host: host, tokens: map[tokenKey]*token{}}
}

// Path is where the volume of this name is, outside.
func (s *Set) Path(v *corev1.Volume) string {
	if v.HostPath != nil {
		return filepath.Join(s.host, filepath.Clean("/"+v.HostPath.Path))
	}
	return filepath.Join(s.dir, v.Name)
}

// Sync brings every volume of pod up to date. next is when a token wants to be renewed (zero: never). An error says which
// volume; the others have been written all the same.
func (s *Set) Sync(ctx context.Context, src Source, pod *corev1.Pod, now time.Time) (next time.Time, err error) {
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := s.syncOne(ctx, src, pod, v, now); err != nil {
			errs = append(errs, fmt.Errorf("volume %q: %w", v.Name, err))
		}
	}
	for _, t := range s.tokens {
		if next.IsZero() || t.renew.Before(next) {
			next = t.renew
		}
	}
	return next, errors.Join(errs...)
}

func (s *Set) syncOne(ctx context.Context, src Source, pod *corev1.Pod, v *corev1.Volume, now time.Time) error {
	dir := s.Path(v)
	b := builder{ctx: ctx, set: s, src: src, pod: pod, volume: v.Name, now: now, payload: Payload{}}
	var err error
	switch {
	case v.EmptyDir != nil:
		return makeDir(dir, 0o777)
	case v.HostPath != nil:
		return hostPath(dir, v.HostPath)
	case v.Secret != nil:
		err = b.secret(v.Secret.SecretName, v.Secret.Items, isTrue(v.Secret.Optional), mode(v.Secret.DefaultMode))
	case v.ConfigMap != nil:
		err = b.configMap(v.ConfigMap.Name, v.ConfigMap.Items, isTrue(v.ConfigMap.Optional), mode(v.ConfigMap.DefaultMode))
	case v.DownwardAPI != nil:
		err = b.downward(v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode))
	case v.Projected != nil:
		err = b.projected(v.Projected)
	default:
		return errors.New("this kind of volume is not supported by the lab node")
	}
	if err != nil {
		return err
	}
	_, err = Write(dir, b.payload)
	return err
}

// makeDir makes an emptyDir, which is there already after a restart of the node.
func makeDir(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// hostPath checks or makes path as the type asks.
func hostPath(path string, v *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if v.Type != nil {
		kind = *v.Type
	}
	st, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	switch kind {
	case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
		// The real kubelet leaves an unset missing path to the runtime, which makes a directory.
		if missing {
			return os.MkdirAll(path, 0o755)
		}
		if kind != corev1.HostPathUnset && !st.IsDir() {
			return fmt.Errorf("hostPath %s is not a directory", v.Path)
		}
	case corev1.HostPathFileOrCreate:
		if missing {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
			if err != nil {
				return err
			}
			return f.Close()
		}
		if st.IsDir() {
			return fmt.Errorf("hostPath %s is not a file", v.Path)
		}
	case corev1.HostPathDirectory, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev:
		if missing {
			return fmt.Errorf("hostPath %s (%s) does not exist in the lab node's own host area", v.Path, kind)
		}
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }

// mode is the default mode of a volume's files; the API server has defaulted it to 0644.
func mode(m *int32) fs.FileMode {
	if m == nil {
		return 0o644
	}
	return fs.FileMode(*m) & fs.ModePerm //nolint:gosec // validated by the API server to 0..0777
}
