package main_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// The command line, as testscript files in testdata/script tell it.
func TestScripts(t *testing.T) {
	bins := t.TempDir()
	for name, bin := range map[string]string{"slasha-init": testbed.SlashaInit(t), "guestbook": testbed.Guestbook(t)} {
		if err := os.Symlink(bin, filepath.Join(bins, name)); err != nil {
			t.Fatal(err)
		}
	}
	occupied, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = occupied.Close() }) // the scripts run in parallel, after this function
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bins+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("OCCUPIED", occupied.Addr().String())
			env.Setenv("SLASHA_HEALTH_ADDR", "127.0.0.1:0")
			return nil
		},
	})
}
