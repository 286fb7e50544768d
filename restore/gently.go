package restore

import (
	"context"
	"time"
)

// A restore that nobody waits for, a drill, leaves most of a processor, and most of
// the line and the disk, to those whom somebody waits for: after each bit of work it
// rests for three times as long. The kernel's priorities are of threads, and Go's
// are not ours to choose.
const (
	restsFor    = 3
	longestRest = time.Second
	workBetween = 20 * time.Millisecond
)

// pace makes one goroutine rest. The nil pace never rests.
type pace struct {
	since time.Time // when the work began that has not been rested from

	now   func() time.Time
	sleep func(context.Context, time.Duration)
}

func (cfg Config) pace() *pace {
	switch {
	case !cfg.Gently:
		return nil
	case cfg.newPace != nil:
		return cfg.newPace()
	}
	return &pace{now: time.Now, sleep: sleep}
}

// rest rests from what was done since the last time, if that is worth it.
func (p *pace) rest(ctx context.Context) {
	if p == nil {
		return
	}
	now := p.now()
	switch worked := now.Sub(p.since); {
	case p.since.IsZero():
		p.since = now
	case worked >= workBetween:
		p.sleep(ctx, min(restsFor*worked, longestRest))
		p.since = p.now()
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
