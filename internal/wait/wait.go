// Package wait waits for some time, unless something ends the wait.
package wait

import (
	"context"
	"time"
)

// For waits for d and returns true, or returns false as soon as ctx ends. It does not
// wait when d is not positive.
func For(ctx context.Context, d time.Duration) bool {
	Or(ctx, d, nil)
	return ctx.Err() == nil
}

// Or waits for d, until ctx ends, or until something comes from wake, whichever is
// first. It does not wait, and takes nothing from wake, when d is not positive.
func Or(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
}
