package cacerts

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// Files of a plugged-in CA, as istiod wants them (istio: security/pkg/pki/ca). Where tls.crt is there too, it wins.
const (
	caCertFile   = pki.FileCACert
	caKeyFile    = pki.FileCAKey
	chainFile    = pki.FileCertChain
	rootFile     = pki.FileRootCert
	crlFile      = pki.FileCRL
	tlsCert      = pki.FileTLSCert
	tlsKey       = pki.FileTLSKey
	tlsAuthority = pki.FileTLSRoot
	tlsType      = "kubernetes.io/tls"
)

// wanted are the files of cacerts by a directive: all of them, or an error.
func wanted(d *directive, have map[string]slot, stored *secret, now time.Time) (map[string][]byte, error) {
	o := d.order(d.Signer)
	s, ok := have[o.ID]
	if !ok {
		return nil, fmt.Errorf("the key of intermediate %q is not there", o.ID)
	}
	if err := checkChain(*o, s, d.roots, true, now); err != nil {
		return nil, fmt.Errorf("the chain of intermediate %q: %w", o.ID, err)
	}
	chain, err := parse(o.Chain)
	if err != nil {
		return nil, fmt.Errorf("the chain of intermediate %q: %w", o.ID, err)
	}
	files := map[string][]byte{
		caCertFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0].Raw}),
		caKeyFile:  s.keyPEM, chainFile: o.Chain, rootFile: d.Bundle,
	}
	if len(d.CRL) > 0 {
		var old []byte
		if stored != nil {
			old = stored.data[crlFile]
		}
		if files[crlFile], err = withOwnCRL(d.CRL, old, chain[0], s.key, now); err != nil {
			return nil, fmt.Errorf("the revocation list of intermediate %q: %w", o.ID, err)
		}
	}
	if err := checkFiles(files, now); err != nil {
		return nil, err
	}
	return files, nil
}

// action is what is to be done to cacerts.
type action string

const (
	nothing action = ""
	create  action = "create"
	update  action = "update"
	// replace deletes it and makes it anew: the type of a Secret can't be changed, and that of kubernetes.io/tls demands tls.crt, which istiod would prefer.
	replace action = "replace"
)

// decide says what to do to cacerts so that it holds files, or why it is left as it is. overwritten: content of somebody else's was overwritten for this directive before; it has come
// back since, and is not fought.
func decide(stored *secret, files map[string][]byte, adopt, overwritten bool) (act action, held string) {
	if stored == nil {
		return create, ""
	}
	owner := stored.owner()
	ours := owner == mesh.OwnerValue
	foreign := ""
	if ours {
		foreign = stored.foreign()
	}
	switch {
	case ours && foreign == "" && sameData(stored.data, files):
		return nothing, ""
	case ours && foreign == "":
	case ours && sameData(stored.data, files): // put back by hand
	case overwritten:
		return nothing, fmt.Sprintf("%s has changed Secret %s again after it was adopted: it is left as it is; stop that first", orOwner(foreign, owner), CACertsName)
	case !adopt && ours:
		return nothing, fmt.Sprintf("%s has changed Secret %s since it was written: it is left as it is, and the rotation waits; stop that, then delete the Secret (it is written anew) or let the policy adopt it", foreign, CACertsName)
	case !adopt:
		return nothing, fmt.Sprintf("secret %s belongs to %s: it is left alone; let the policy adopt it, or take it from there first", CACertsName, owner)
	}
	if stored.immutable {
		return nothing, fmt.Sprintf("secret %s is immutable: delete it (it is written anew), or make it anew without `immutable: true`", CACertsName)
	}
	if stored.kind == tlsType {
		return replace, ""
	}
	return update, ""
}

func orOwner(foreign, owner string) string {
	if foreign != "" {
		return foreign
	}
	return owner
}

var labelValue = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)

// dress gives a Secret the content and the labels of the certificate workflow (facts/api.md 1.4); what others put beside them stays.
func dress(u *unstructured.Unstructured, files map[string][]byte, cluster mesh.ClusterName, policy string) {
	fill(u, files)
	labels := u.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	namespace, name, _ := strings.Cut(policy, "/")
	maps.Copy(labels, map[string]string{
		mesh.OwnerLabel: mesh.OwnerValue, "reconciler.mesh.gloo.solo.io/name": "cert-agent",
		"context.mesh.gloo.solo.io/cluster": string(cluster), "context.mesh.gloo.solo.io/namespace": u.GetNamespace(),
	})
	if labelValue.MatchString(namespace) && labelValue.MatchString(name) {
		maps.Copy(labels, map[string]string{
			"gloo.solo.io/parent_group": "admin.gloo.solo.io", "gloo.solo.io/parent_version": "v2", "gloo.solo.io/parent_kind": "RootTrustPolicy",
			"gloo.solo.io/parent_namespace": namespace, "gloo.solo.io/parent_name": name,
		})
	}
	u.SetLabels(labels)
	annotations := u.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[hashAnnotation] = contentHash(files)
	u.SetAnnotations(annotations)
}

// describe is what the observation says of cacerts, and the certificates in it; nil: there is none.
func describe(s *secret) (out *mesh.CACerts, mentioned []*x509.Certificate, problems []string) {
	if s == nil {
		return nil, nil, nil
	}
	out = &mesh.CACerts{Owner: s.owner()}
	_, out.TLSLayout = s.data[tlsCert]
	certs := func(file string) (all []mesh.Fingerprint) {
		parsed, err := parse(s.data[file])
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s of Secret %s can't be read: %v", file, CACertsName, err))
		}
		mentioned = append(mentioned, parsed...)
		return fingerprints(parsed)
	}
	var signer []mesh.Fingerprint
	bundle := s.data[rootFile]
	if out.TLSLayout {
		signer, out.Roots, bundle = certs(tlsCert), certs(tlsAuthority), s.data[tlsAuthority]
		out.Chain = append(append(out.Chain, signer...), out.Roots...)
	} else {
		signer, out.Chain, out.Roots = certs(caCertFile), certs(chainFile), certs(rootFile)
	}
	if len(signer) > 0 {
		out.Signer = signer[0]
	}
	if crl := s.data[crlFile]; len(crl) > 0 && !out.TLSLayout {
		out.CRL = mesh.FingerprintOf(crl)
	}
	if out.Owner == mesh.OwnerValue {
		out.Foreign = s.foreign()
	} else {
		out.Bundle = bytes.Clone(bundle)
	}
	return out, mentioned, problems
}
