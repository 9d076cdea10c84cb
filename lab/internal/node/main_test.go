package node

import (
	"os"
	"testing"

	"ambitmesh.dev/ambit/lab/internal/node/test/nstest"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(nstest.Main(m))
}
