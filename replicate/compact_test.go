package replicate

import (
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
)

// A snapshot that is put off is never too early for Litestream, which counts in full
// intervals, and always before the next one.
func TestSpread(t *testing.T) {
	level := &litestream.CompactionLevel{Level: litestream.SnapshotLevel, Interval: 24 * time.Hour}
	now := time.Date(2026, 11, 24, 15, 0, 0, 0, time.UTC)
	full := level.NextCompactionAt(now)
	for _, offset := range []float64{0, 0.5, 0.999} {
		at := spread(full, level.Interval, offset)
		if at.Before(full) || !at.Before(full.Add(level.Interval/10)) {
			t.Errorf("%.3f: due at %s, %s after the full interval", offset, at, at.Sub(full))
		}
		if was := level.PrevCompactionAt(at); !was.Equal(full) {
			t.Errorf("%.3f: at %s Litestream counts from %s", offset, at, was)
		}
	}
}
