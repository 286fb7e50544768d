package restore

import (
	"context"
	"time"

	"github.com/slashacom/slasha-init/internal/wait"
)

// Nobody waits for a drill. It leaves most of a processor, of the line and of the disk
// to what somebody waits for: after each bit of work it rests for three times as long.
// The kernel's priorities belong to threads, and we can't choose those in Go.
const (
	restsFor    = 3
	longestRest = time.Second
	workBetween = 20 * time.Millisecond
)

// pace makes one goroutine rest. The nil pace never rests.
type pace struct {
	since time.Time // when the work began that has not been rested from

	now   func() time.Time
	sleep func(context.Context, time.Duration) bool
}

// pace returns the pace of one goroutine that works for the restore.
func (b *builder) pace() *pace {
	switch {
	case !b.gently:
		return nil
	case b.cfg.newPace != nil:
		return b.cfg.newPace()
	}
	return &pace{now: time.Now, sleep: wait.For}
}

// rest rests from the work since the last rest, if that is worth it.
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
