package node

import (
	"os"
	"testing"

	"ambitmesh.dev/ambit/lab/internal/node/nstest"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(nstest.Main(m))
}
