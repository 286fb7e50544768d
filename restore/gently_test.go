package restore

import (
	"context"
	"testing"
	"time"
)

// A drill works for a quarter of the time that it takes.
func TestPace(t *testing.T) {
	var now time.Time
	var worked, rested time.Duration
	p := &pace{now: func() time.Time { return now }, sleep: func(_ context.Context, d time.Duration) bool {
		rested += d
		now = now.Add(d)
		return true
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

// A drill rests while SQLite checks what it fetched, too.
func TestAGentleCheck(t *testing.T) {
	cfg := config(t, filled(t, 50))
	var fetched bool
	var rests int
	cfg.onStep = func(step string) { fetched = fetched || step == "fetched" }
	cfg.newPace = func() *pace {
		var now time.Time
		return &pace{
			now: func() time.Time { now = now.Add(workBetween); return now },
			sleep: func(context.Context, time.Duration) bool {
				if fetched {
					rests++
				}
				return true
			},
		}
	}
	drill := job{scratch: t.TempDir(), gently: true, find: cfg.locate, last: func(string, Progress) error { return nil }}
	if _, err := drill.do(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if rests == 0 {
		t.Error("it did not rest")
	}
}
