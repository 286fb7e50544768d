package restore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Of the time that a drill takes, it works for a quarter.
func TestPace(t *testing.T) {
	var now time.Time
	var worked, rested time.Duration
	p := &pace{now: func() time.Time { return now }, sleep: func(_ context.Context, d time.Duration) {
		rested += d
		now = now.Add(d)
	}}
	now = now.Add(time.Hour) // what was before it began does not count
	for range 1000 {
		p.rest(t.Context())
		now = now.Add(3 * time.Millisecond)
		worked += 3 * time.Millisecond
	}
	if share := worked.Seconds() / (worked + rested).Seconds(); share < 0.24 || share > 0.26 {
		t.Errorf("it works for %.2f of the time", share)
	}
	// A long wait for somebody else does not become a longer one.
	now, rested = now.Add(time.Minute), 0
	if p.rest(t.Context()); rested != longestRest {
		t.Errorf("it rests for %s", rested)
	}
	(*pace)(nil).rest(t.Context())
}

// The check with rests has the same verdicts as the one without, does rest, and ends
// when it is told to.
func TestVerifyGently(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a database, with % and ?.db")
	soundDB(t, path)
	var rests int
	p := &pace{now: func() func() time.Time {
		var now time.Time
		return func() time.Time { now = now.Add(workBetween); return now }
	}(), sleep: func(context.Context, time.Duration) { rests++ }}
	for _, check := range []Check{Quick, Full} {
		if err := verifyGently(t.Context(), path, check, p); err != nil {
			t.Errorf("a sound one: %v", err)
		}
	}
	if rests == 0 {
		t.Error("it did not rest")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < 4096+200; i++ {
		b[i] = 0xff
	}
	broken := filepath.Join(dir, "broken.db")
	if err := os.WriteFile(broken, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if err := verifyGently(t.Context(), broken, Quick, p); !errors.As(err, &damaged) {
		t.Errorf("a broken one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p.sleep = func(context.Context, time.Duration) { cancel() }
	if err := verifyGently(ctx, path, Quick, p); !errors.Is(err, context.Canceled) {
		t.Errorf("one that was told to end: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left beside the databases: %v, %v", left, err)
	}
}
