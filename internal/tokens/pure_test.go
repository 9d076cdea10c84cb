package tokens_test

import (
	"testing"

	"ambitmesh.dev/ambit/test/golist"
)

func TestPure(t *testing.T) { golist.Pure(t) }
