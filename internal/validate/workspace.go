package validate

import (
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// Workspace checks a new or changed workspace; old is nil for a new one.
func Workspace(now, old *adminv2.Workspace, o Options) (errs field.ErrorList) {
	return nil
}

// WarningsOfWorkspace says what is allowed but probably not meant.
func WarningsOfWorkspace(now *adminv2.Workspace, o Options) []string {
	return nil
}
