package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const patchTimeout = 5 * time.Second

// assign gives every Service of type LoadBalancer an address, writes it to the status, and returns all addresses by
// namespace/name. The status is the only memory: an address in it is kept.
func (p *Proxy) assign(ctx context.Context, services []*corev1.Service) (map[string]netip.Addr, error) {
	// A silent API server must not hold up the listeners.
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	have, write := plan(services, p.cfg.LBCIDR)
	var errs []error
	for _, s := range services {
		ingress, ok := write[s.Namespace+"/"+s.Name]
		if !ok {
			continue
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": s.UID},
			"status":   map[string]any{"loadBalancer": map[string]any{"ingress": ingress}},
		})
		if err != nil {
			return have, err
		}
		_, err = p.cfg.Client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			errs = append(errs, fmt.Errorf("address of Service %s/%s: %w", s.Namespace, s.Name, err))
		}
	}
	return have, errors.Join(errs...)
}

// plan decides: have is every Service's address, write the status ingress lists that differ from what they should be. It
// is pure; Services are served in the order of their age, so that the outcome does not depend on the order of the cache.
func plan(services []*corev1.Service, cidr netip.Prefix) (have map[string]netip.Addr, write map[string][]corev1.LoadBalancerIngress) {
	have, write = map[string]netip.Addr{}, map[string][]corev1.LoadBalancerIngress{}
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	used := map[netip.Addr]bool{}
	var waiting []*corev1.Service
	for _, s := range services {
		key := s.Namespace + "/" + s.Name
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.DeletionTimestamp != nil {
			// The API server clears the status when the type changes; nothing to do here.
			continue
		}
		if s.Spec.LoadBalancerClass != nil {
			continue
		}
		if a := current(s); a.IsValid() && cidr.Contains(a) && !used[a] {
			have[key], used[a] = a, true
			continue
		}
		waiting = append(waiting, s)
	}
	for _, s := range waiting {
		a := wanted(s, cidr, used)
		if !a.IsValid() {
			continue
		}
		key := s.Namespace + "/" + s.Name
		have[key], used[a] = a, true
		mode := corev1.LoadBalancerIPModeVIP
		write[key] = []corev1.LoadBalancerIngress{{IP: a.String(), IPMode: &mode}}
	}
	return have, write
}

func current(s *corev1.Service) netip.Addr {
	for _, i := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(i.IP); err == nil {
			return a
		}
	}
	return netip.Addr{}
}

// wanted is the address that the Service asks for, when it is free, else the first free one.
func wanted(s *corev1.Service, cidr netip.Prefix, used map[netip.Addr]bool) netip.Addr {
	if a, err := netip.ParseAddr(s.Spec.LoadBalancerIP); err == nil && cidr.Contains(a) && !used[a] {
		return a
	}
	for a := cidr.Masked().Addr().Next(); cidr.Contains(a); a = a.Next() {
		if b := a.As4(); !used[a] && b[3] != 0 && b[3] != 255 {
			return a
		}
	}
	return netip.Addr{}
}
