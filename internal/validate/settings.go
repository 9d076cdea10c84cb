package validate

import (
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// WorkspaceSettings checks new or changed settings; old is nil for new ones.
func WorkspaceSettings(now, old *adminv2.WorkspaceSettings, o Options) (errs field.ErrorList) {
	return nil
}

// WarningsOfWorkspaceSettings says what is allowed but has no effect, or is probably not meant.
func WarningsOfWorkspaceSettings(now *adminv2.WorkspaceSettings, o Options) []string {
	return nil
}
