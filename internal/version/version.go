// Package version holds the product's version, set at link time.
//
// In: -ldflags "-X ambitmesh.dev/ambit/internal/version.Version=...". Out: Version. Nothing else belongs here.
package version

// Version is the product's version, without a leading v. Its line follows the API line it is compatible with.
var Version = "2.12.0" //nolint:gochecknoglobals // set by the linker
