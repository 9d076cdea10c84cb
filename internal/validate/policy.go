package validate

import (
	"k8s.io/apimachinery/pkg/util/validation/field"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// AccessPolicy checks a new or changed policy; old is nil for a new one.
func AccessPolicy(now, old *securityv2.AccessPolicy, o Options) (errs field.ErrorList) {
	return nil
}

// WarningsOfAccessPolicy says what is allowed but probably not meant.
func WarningsOfAccessPolicy(now *securityv2.AccessPolicy, o Options) []string {
	return nil
}
