package locksrv_test

import (
	"os"
	"testing"

	"isr/locksrv/locksrvtest"
)

func TestMain(m *testing.M) { os.Exit(locksrvtest.InMemory(m)) }
