package ui

import (
	"embed"
	"io/fs"
)

// The built application is committed, so that Go alone builds the server: `make web` builds it anew.
//
//go:embed all:dist
var dist embed.FS

// Files is the built application.
func Files() fs.FS {
	files, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // the folder is embedded
	}
	return files
}
