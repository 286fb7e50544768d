package restore

import (
	"errors"
	"math"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/slashacom/slasha-init/restore/fetch"
)

// The size that a plan leads to is known before it is read, and is the size of
// what is restored.
func TestDatabaseSize(t *testing.T) {
	cfg := config(t, filled(t, 100))
	p, err := cfg.locate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plan, err := fetch.Open(t.Context(), cfg.Source.Client, p.files, fetch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(cfg.Place.DBPath); err != nil || fi.Size() != plan.Size() {
		t.Errorf("%d bytes, said to be %d; %v", fi.Size(), plan.Size(), err)
	}
}

func TestCheckSpace(t *testing.T) {
	dir := t.TempDir()
	for _, enough := range []int64{0, 1, 4096} {
		if err := checkSpace(dir, enough); err != nil {
			t.Errorf("%d: %v", enough, err)
		}
	}
	err := checkSpace(dir, math.MaxInt64/2)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
}
