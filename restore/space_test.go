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
	p, err := locate(t.Context(), cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := fetch.Open(t.Context(), cfg.Client, p.files, fetch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(cfg.DBPath); err != nil || fi.Size() != plan.Size() {
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

// What each check finds: an index that does not match its table is found by the
// full one alone.
func TestChecks(t *testing.T) {
	cfg := config(t, filled(t, 50))
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for _, check := range []Check{Quick, Full, Off} {
		if err := Verify(t.Context(), cfg.DBPath, check); err != nil {
			t.Errorf("%s: %v", check.pragma(), err)
		}
	}
	b, err := os.ReadFile(cfg.DBPath)
	if err != nil {
		t.Fatal(err)
	}
	// A letter of the text in the index, which stands there as in the table.
	at := strings.LastIndex(string(b), "A")
	b[at] = 'B'
	if err := os.WriteFile(cfg.DBPath, b, 0o644); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if err := Verify(t.Context(), cfg.DBPath, Full); !errors.As(err, &damaged) {
		t.Errorf("the full check: %v", err)
	}
	if err := Verify(t.Context(), cfg.DBPath, Quick); err != nil {
		t.Errorf("the quick check: %v", err)
	}
}
