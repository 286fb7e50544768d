package replicate

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/wait"
)

// holder hands the session of the moment to the compaction goroutine. The zero value
// holds none.
type holder struct {
	mu sync.Mutex
	s  *session
}

func (h *holder) put(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s = s
}

func (h *holder) get() *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.s
}

// restUntilCompaction is how long after the start the first compaction waits: a
// container that has just restored has better things to upload.
const restUntilCompaction = 20 * time.Second

// compactAgain is when a compaction that failed, or whose database was not there,
// is tried again.
const compactAgain = time.Minute

// compact runs Litestream's compactions and snapshots, one after the other and
// never two at once, until ctx ends. It closes the channel when it has ended.
func (r *Replicator) compact(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		levels := append(litestream.CompactionLevels{}, litestream.DefaultCompactionLevels[1:]...)
		levels = append(levels, &litestream.CompactionLevel{Level: litestream.SnapshotLevel, Interval: r.cfg.SnapshotInterval})
		due := make([]time.Time, len(levels))
		offset := rand.Float64() //nolint:gosec // not for secrets
		for i := range due {
			due[i] = time.Now().Add(restUntilCompaction)
		}
		for ctx.Err() == nil {
			for i, level := range levels {
				if now := time.Now(); now.Before(due[i]) {
					continue
				}
				due[i] = time.Now().Add(compactAgain)
				if r.compactLevel(ctx, level) {
					due[i] = spread(level.NextCompactionAt(time.Now()), level.Interval, offset)
				}
			}
			next := due[0]
			for _, t := range due[1:] {
				if t.Before(next) {
					next = t
				}
			}
			wait.For(ctx, max(time.Until(next), time.Second))
		}
	}()
	return done
}

// spread puts off what is due at a full interval by up to a tenth of it: containers
// by the dozen would otherwise upload their snapshots in the same second of the day,
// to one bucket, from one host's line. Litestream counts in full intervals, so later
// than that is not too early.
func spread(at time.Time, interval time.Duration, offset float64) time.Time {
	return at.Add(time.Duration(offset * float64(interval) / 10))
}

// compactLevel compacts a level and reports whether nothing is left to do there until
// its next time.
func (r *Replicator) compactLevel(ctx context.Context, level *litestream.CompactionLevel) (done bool) {
	defer func() {
		if p := recover(); p != nil {
			r.cfg.Logger.Error("a bug in slasha-init or Litestream, please report it", "panic", p, "stack", string(debug.Stack()))
			done = false
		}
	}()
	s := r.compactable.get()
	if s == nil {
		return false
	}
	made, err := s.store.CompactDB(ctx, s.db, level)
	switch {
	case err == nil, errors.Is(err, litestream.ErrNoCompaction), errors.Is(err, litestream.ErrCompactionTooEarly):
	case errors.Is(err, litestream.ErrDBNotReady), ctx.Err() != nil:
		return false
	default:
		r.cfg.Logger.Warn("compaction failed, trying again later", "level", level.Level, "error", err)
		return false
	}
	if level.Level == litestream.SnapshotLevel && err == nil {
		if !s.isThere() {
			// It was read while the app replaced the file, so it may hold pages of the old
			// one and of the new one's WAL, which Litestream opens by name.
			if err := r.cfg.Client.DeleteLTXFiles(ctx, []*ltx.FileInfo{made}); err != nil {
				r.cfg.Logger.Error("could not delete a snapshot that may mix two databases", "txid", made.MaxTXID.String(), "error", err)
			}
			return false
		}
		if err := s.store.EnforceSnapshotRetention(ctx, s.db); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Warn("could not delete old backups, trying again after the next snapshot", "error", err)
		}
	}
	return true
}
