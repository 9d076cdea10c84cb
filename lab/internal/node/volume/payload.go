package volume

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"ambitmesh.dev/ambit/lab/internal/node/downward"
)

// builder collects the payload of one volume.
type builder struct {
	ctx     context.Context
	set     *Set
	src     Source
	pod     *corev1.Pod
	volume  string
	now     time.Time
	payload Payload
}

func (b *builder) secret(name string, items []corev1.KeyToPath, optional bool, mode fs.FileMode) error {
	s, err := b.src.Secret(b.pod.Namespace, name)
	if err != nil {
		return ignoreMissing(err, optional)
	}
	return b.keys(fmt.Sprintf("Secret %q", name), s.Data, items, optional, mode)
}

func (b *builder) configMap(name string, items []corev1.KeyToPath, optional bool, mode fs.FileMode) error {
	cm, err := b.src.ConfigMap(b.pod.Namespace, name)
	if err != nil {
		return ignoreMissing(err, optional)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, cm.BinaryData)
	return b.keys(fmt.Sprintf("ConfigMap %q", name), data, items, optional, mode)
}

func ignoreMissing(err error, optional bool) error {
	if optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// keys adds all keys of data, or those that items name.
func (b *builder) keys(what string, data map[string][]byte, items []corev1.KeyToPath, optional bool, mode fs.FileMode) error {
	if len(items) == 0 {
		for k, v := range data {
			b.payload[k] = File{Data: v, Mode: mode}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("%s has no key %q", what, it.Key)
		}
		b.payload[path.Clean(it.Path)] = File{Data: v, Mode: itemMode(it.Mode, mode)}
	}
	return nil
}

func itemMode(m *int32, def fs.FileMode) fs.FileMode {
	if m == nil {
		return def
	}
	return mode(m)
}

func (b *builder) downward(items []corev1.DownwardAPIVolumeFile, mode fs.FileMode) error {
	for _, it := range items {
		var value string
		var err error
		switch {
		case it.FieldRef != nil:
			value, err = downward.Field(b.pod, it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			value, err = downward.Resource(b.pod, it.ResourceFieldRef.ContainerName, it.ResourceFieldRef)
		}
		if err != nil {
			return err
		}
		b.payload[path.Clean(it.Path)] = File{Data: []byte(value), Mode: itemMode(it.Mode, mode)}
	}
	return nil
}

func (b *builder) projected(v *corev1.ProjectedVolumeSource) error {
	m := mode(v.DefaultMode)
	for i := range v.Sources {
		s := &v.Sources[i]
		var err error
		switch {
		case s.Secret != nil:
			err = b.secret(s.Secret.Name, s.Secret.Items, isTrue(s.Secret.Optional), m)
		case s.ConfigMap != nil:
			err = b.configMap(s.ConfigMap.Name, s.ConfigMap.Items, isTrue(s.ConfigMap.Optional), m)
		case s.DownwardAPI != nil:
			err = b.downward(s.DownwardAPI.Items, m)
		case s.ServiceAccountToken != nil:
			err = b.token(s.ServiceAccountToken, m)
		default:
			err = fmt.Errorf("source %d of the projected volume is not supported by the lab node", i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type tokenKey struct {
	volume, audience string
	seconds          int64
}

type token struct {
	value string
	renew time.Time
}

// token adds a service-account token, asking for a new one when the one we have is past 80 % of its life, as the kubelet does.
func (b *builder) token(v *corev1.ServiceAccountTokenProjection, m fs.FileMode) error {
	seconds := int64(3600)
	if v.ExpirationSeconds != nil {
		seconds = *v.ExpirationSeconds
	}
	key := tokenKey{b.volume, v.Audience, seconds}
	t := b.set.tokens[key]
	if t == nil || !b.now.Before(t.renew) {
		value, expires, err := b.src.Token(b.ctx, b.pod, v.Audience, seconds)
		if err != nil {
			if t == nil {
				return fmt.Errorf("service-account token: %w", err)
			}
			// Keep the one we have, which still has a fifth of its life, and try again soon.
			t.renew = b.now.Add(10 * time.Second)
		} else {
			t = &token{value: value, renew: renewAt(b.now, expires)}
			b.set.tokens[key] = t
		}
	}
	b.payload[path.Clean(v.Path)] = File{Data: []byte(t.value), Mode: m}
	return nil
}

// renewAt is when a token issued at now is renewed: at 80 % of its life, and daily at the latest.
func renewAt(now, expires time.Time) time.Time {
	at := now.Add(expires.Sub(now) * 8 / 10)
	if day := now.Add(24 * time.Hour); day.Before(at) {
		return day
	}
	return at
}
