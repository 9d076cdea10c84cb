package node

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"ambitmesh.dev/ambit/lab/internal/node/downward"
)

// configSource reads the objects a container's environment names; volume.Source includes it.
type configSource interface {
	Secret(namespace, name string) (*corev1.Secret, error)
	ConfigMap(namespace, name string) (*corev1.ConfigMap, error)
}

// environment is the variables of one container, as the kubelet makes them: service variables, then envFrom, then env with
// $(VAR) references to what stands before. It returns them as a map (for expansion of command and args) and sorted.
func environment(pod *corev1.Pod, c *corev1.Container, services []*corev1.Service, api netip.AddrPort, src configSource) (map[string]string, error) {
	env := serviceEnv(pod, services, api)
	env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	env["HOME"] = "/root"
	env["HOSTNAME"] = hostname(pod)
	for _, from := range c.EnvFrom {
		if err := addFrom(env, pod.Namespace, from, src); err != nil {
			return nil, err
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			env[e.Name] = downward.Expand(e.Value, env)
			continue
		}
		value, ok, err := valueFrom(pod, c, e.ValueFrom, src)
		if err != nil {
			return nil, fmt.Errorf("env %s: %w", e.Name, err)
		}
		if ok {
			env[e.Name] = value
		}
	}
	return env, nil
}

func environ(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

func addFrom(env map[string]string, namespace string, from corev1.EnvFromSource, src configSource) error {
	var data map[string]string
	switch {
	case from.ConfigMapRef != nil:
		cm, err := src.ConfigMap(namespace, from.ConfigMapRef.Name)
		if err != nil {
			return ignoreOptional(err, from.ConfigMapRef.Optional)
		}
		data = cm.Data
	case from.SecretRef != nil:
		s, err := src.Secret(namespace, from.SecretRef.Name)
		if err != nil {
			return ignoreOptional(err, from.SecretRef.Optional)
		}
		data = make(map[string]string, len(s.Data))
		for k, v := range s.Data {
			data[k] = string(v)
		}
	}
	for k, v := range data {
		env[from.Prefix+k] = v
	}
	return nil
}

func ignoreOptional(err error, optional *bool) error {
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return nil
	}
	return err
}

func valueFrom(pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, src configSource) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = downward.Field(pod, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		name := from.ResourceFieldRef.ContainerName
		if name == "" {
			name = c.Name
		}
		value, err = downward.Resource(pod, name, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := src.ConfigMap(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, ignoreOptional(err, ref.Optional)
		}
		value, ok = cm.Data[ref.Key]
		return value, ok, missingKey(ok, ref.Optional, "ConfigMap", pod.Namespace, ref.Name, ref.Key)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := src.Secret(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, ignoreOptional(err, ref.Optional)
		}
		data, ok := s.Data[ref.Key]
		return string(data), ok, missingKey(ok, ref.Optional, "Secret", pod.Namespace, ref.Name, ref.Key)
	}
	return "", false, errors.New("this kind of valueFrom is not supported by the lab node")
}

func missingKey(ok bool, optional *bool, kind, namespace, name, key string) error {
	if ok || (optional != nil && *optional) {
		return nil
	}
	return fmt.Errorf("couldn't find key %s in %s %s/%s", key, kind, namespace, name)
}

// serviceEnv is KUBERNETES_SERVICE_HOST and its like for the API server, and the variables of the Services of the Pod's own
// namespace unless enableServiceLinks is false.
func serviceEnv(pod *corev1.Pod, services []*corev1.Service, api netip.AddrPort) map[string]string {
	env := map[string]string{}
	addService(env, "KUBERNETES", api.Addr().String(), []corev1.ServicePort{{Name: "https", Port: int32(api.Port()), Protocol: corev1.ProtocolTCP}})
	if pod.Spec.EnableServiceLinks != nil && !*pod.Spec.EnableServiceLinks {
		return env
	}
	for _, s := range services {
		if s.Namespace != pod.Namespace || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 || s.Name == "kubernetes" {
			continue
		}
		addService(env, envName(s.Name), s.Spec.ClusterIP, s.Spec.Ports)
	}
	return env
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }

func addService(env map[string]string, prefix, host string, ports []corev1.ServicePort) {
	env[prefix+"_SERVICE_HOST"] = host
	env[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(ports[0].Port))
	for i, p := range ports {
		port, proto := strconv.Itoa(int(p.Port)), string(p.Protocol)
		if p.Name != "" {
			env[prefix+"_SERVICE_PORT_"+envName(p.Name)] = port
		}
		url := strings.ToLower(proto) + "://" + host + ":" + port
		if i == 0 {
			env[prefix+"_PORT"] = url
		}
		base := prefix + "_PORT_" + port + "_" + strings.ToUpper(proto)
		env[base] = url
		env[base+"_PROTO"] = strings.ToLower(proto)
		env[base+"_PORT"] = port
		env[base+"_ADDR"] = host
	}
}

func hostname(pod *corev1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	const maxHostname = 63 // Linux allows 64 with the terminator
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	return name
}
