package v2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group of this package.
const GroupName = "internal.gloo.solo.io"

// GroupVersion returns internal.gloo.solo.io/v2.
func GroupVersion() schema.GroupVersion { return schema.GroupVersion{Group: GroupName, Version: "v2"} }

// AddToScheme registers the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &IssuedCertificate{}, &IssuedCertificateList{}, &CertificateRequest{}, &CertificateRequestList{}, &PodBounceDirective{}, &PodBounceDirectiveList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
