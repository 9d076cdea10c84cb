package rotation

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/report"
)

const (
	// sheetPause is the least time between two looks at what is to be shown, and sheetPace between two writes: a thousand clusters in a phase take some minutes, and nothing that decides
	// waits for a write that nobody decides by.
	sheetPause = time.Second
	sheetPace  = 20 * time.Millisecond
	sheetRetry = 30 * time.Second
	// sheetRecord is the value of storeLabel on them.
	sheetRecord = "issuance"
)

// sheets shows people how clusters get their intermediates: IssuedCertificates, CertificateRequests and PodBounceDirectives. It writes behind the keeper's back, and nothing is read from
// them but their names, so that none stays.
type sheets struct {
	client    client.Client
	namespace string
	log       *slog.Logger
	bell      chan struct{} // capacity 1

	mu    sync.Mutex
	next  []report.Trust
	prune bool
	csrs  requests // of the slots in next, also of those whose agents have had their answer
}

// requests are CSRs (DER) by cluster and slot.
type requests map[mesh.ClusterName]map[string][]byte

// sheet is an object: what it has to say, or what it says.
type sheet struct{ spec, status map[string]any }

type sheetKey struct{ kind, name string }

func newSheets(c client.Client, namespace string, log *slog.Logger) *sheets {
	return &sheets{client: c, namespace: namespace, log: log, bell: make(chan struct{}, 1)}
}

// show makes all the latest. With prune they are everything there is.
func (s *sheets) show(all []report.Trust, b *Board, prune bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	csrs := requests{}
	for i := range all {
		for c, d := range all[i].Step.Directives {
			sent := b.look(c).requests
			csrs[c] = map[string][]byte{}
			for _, slot := range d.Intermediates {
				if csr := sent[slot.ID]; csr != nil {
					csrs[c][slot.ID] = csr
				} else if csr = s.csrs[c][slot.ID]; csr != nil {
					csrs[c][slot.ID] = csr
				}
			}
		}
	}
	s.next, s.prune, s.csrs = all, prune, csrs
	s.ring()
}

// run writes what is latest until ctx ends.
func (s *sheets) run(ctx context.Context) {
	var have map[sheetKey]sheet
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.bell:
		}
		var err error
		if have == nil {
			have, err = s.load(ctx)
		}
		pause := sheetPause
		if err == nil {
			err = s.write(ctx, have)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("how intermediates are issued is not shown, trying again", "error", err)
			have, pause = nil, sheetRetry
			s.ring()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (s *sheets) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// load finds those of an earlier leader.
func (s *sheets) load(ctx context.Context) (map[sheetKey]sheet, error) {
	have := map[sheetKey]sheet{}
	for _, kind := range []string{"IssuedCertificate", "CertificateRequest", "PodBounceDirective"} {
		var l unstructured.UnstructuredList
		l.SetGroupVersionKind(sheetKind(kind + "List"))
		if err := s.client.List(ctx, &l, client.InNamespace(s.namespace), client.MatchingLabels{storeLabel: sheetRecord}); err != nil {
			return nil, fmt.Errorf("list %ss: %w", kind, err)
		}
		for i := range l.Items {
			var old sheet
			old.spec, _, _ = unstructured.NestedMap(l.Items[i].Object, "spec")
			old.status, _, _ = unstructured.NestedMap(l.Items[i].Object, "status")
			have[sheetKey{kind, l.Items[i].GetName()}] = old
		}
	}
	return have, nil
}

func sheetKind(kind string) schema.GroupVersionKind { return issuancev2.GroupVersion().WithKind(kind) }

// write brings have to what is latest.
func (s *sheets) write(ctx context.Context, have map[sheetKey]sheet) error {
	s.mu.Lock()
	inputs, csrs, prune := s.next, s.csrs, s.prune
	s.mu.Unlock()
	want := map[sheetKey]sheet{}
	for i := range inputs {
		if err := sheetsOf(inputs[i], csrs, want); err != nil {
			return err
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(have), compareSheets) {
		if _, ok := want[key]; ok || !prune {
			continue
		}
		if err := client.IgnoreNotFound(s.client.Delete(ctx, s.object(key))); err != nil {
			return fmt.Errorf("delete %s %s: %w", key.kind, key.name, err)
		}
		delete(have, key)
		time.Sleep(sheetPace)
	}
	for _, key := range slices.SortedFunc(maps.Keys(want), compareSheets) {
		next := want[key]
		old, exists := have[key]
		if next.spec == nil { // it was answered before this server led: the one that is there keeps its request
			next.spec = old.spec
		}
		if exists && reflect.DeepEqual(next, old) {
			continue
		}
		delete(have, key)
		err := s.put(ctx, key, next, !exists || !reflect.DeepEqual(next.spec, old.spec))
		switch {
		case err == nil:
			have[key] = next
		case !apierrors.IsNotFound(err): // deleted meanwhile by somebody: made again the next time
			return fmt.Errorf("%s %s: %w", key.kind, key.name, err)
		}
		time.Sleep(sheetPace)
	}
	return nil
}

func compareSheets(a, b sheetKey) int {
	return cmp.Or(strings.Compare(a.kind, b.kind), strings.Compare(a.name, b.name))
}

// sheetsOf adds those of a policy.
func sheetsOf(in report.Trust, csrs requests, out map[sheetKey]sheet) error {
	all := report.Issuances(in, func(c mesh.ClusterName, slot string) []byte { return csrs[c][slot] })
	add := func(kind, name string, spec, status any) (err error) {
		var s sheet
		if s.spec, err = plain(spec); err == nil {
			s.status, err = plain(status)
		}
		out[sheetKey{kind, name}] = s
		return err
	}
	for i := range all.Certificates {
		c := &all.Certificates[i]
		if err := add("IssuedCertificate", c.Name, c.Spec, c.Status); err != nil {
			return err
		}
	}
	for i := range all.Requests {
		r := &all.Requests[i]
		var spec any
		if r.Spec.CertificateSigningRequest != nil {
			spec = r.Spec
		}
		if err := add("CertificateRequest", r.Name, spec, r.Status); err != nil {
			return err
		}
	}
	for i := range all.Bounces {
		b := &all.Bounces[i]
		if err := add("PodBounceDirective", b.Name, b.Spec, b.Status); err != nil {
			return err
		}
	}
	return nil
}

// plain is v as JSON has it, nil for nil.
func plain(v any) (map[string]any, error) {
	if v == nil {
		return nil, nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	return out, json.Unmarshal(raw, &out)
}

func (s *sheets) object(key sheetKey) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(sheetKind(key.kind))
	u.SetNamespace(s.namespace)
	u.SetName(key.name)
	return u
}

// put applies the spec, if it has changed, and the status.
func (s *sheets) put(ctx context.Context, key sheetKey, next sheet, spec bool) error {
	owner := []client.ApplyOption{client.FieldOwner(report.FieldManager), client.ForceOwnership}
	if spec {
		u := s.object(key)
		u.SetLabels(map[string]string{storeLabel: sheetRecord, mesh.OwnerLabel: mesh.OwnerValue})
		if next.spec != nil {
			u.Object["spec"] = next.spec
		}
		if err := s.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), owner...); err != nil {
			return err
		}
	}
	u := s.object(key)
	u.Object["status"] = next.status
	return s.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(report.FieldManager), client.ForceOwnership)
}
