package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/benbjohnson/litestream"
)

// gather finds out what Decide needs to know, and no more: where the database
// is present, the app's start must not wait for the network.
func gather(ctx context.Context, cfg Config) (Facts, plan, error) {
	db, err := database(cfg.DBPath)
	if err != nil {
		return Facts{}, plan{}, &Failure{Sentence: err.Error(), Err: err}
	}
	f := Facts{Database: db}
	if f.Asked, err = asked(cfg); err != nil {
		return Facts{}, plan{}, &Failure{Sentence: err.Error(), Err: err}
	}
	if !needsReplica(db, f.Asked) && !isStale(ctx, cfg, &f) {
		return f, plan{}, ctx.Err()
	}
	if f.Lineage == Stale {
		cfg.Timestamp = time.Time{} // which is for a restore that is asked for
	}
	var p plan
	deadline := time.Now().Add(cfg.Patience)
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 4*time.Second) {
		f.Replica, p, f.Err = look(ctx, cfg)
		if ctx.Err() != nil {
			return f, p, ctx.Err()
		}
		if f.Replica != Unreachable {
			return f, p, nil
		}
		sentence, temporary := cfg.Explain(f.Err)
		f.Err = &Failure{Sentence: sentence, Err: f.Err}
		if !temporary || time.Now().Add(pause).After(deadline) {
			return f, p, nil
		}
		if cfg.OnWaiting != nil {
			cfg.OnWaiting(sentence)
		}
		cfg.Logger.Warn("the replica does not answer, asking again", "error", sentence, "giving_up_in", time.Until(deadline).Round(time.Second))
		select {
		case <-ctx.Done():
			return f, p, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// comparing is for how long a database that is there waits for the replica: the
// app's start must not depend on it. What is not known by then is found out before
// the first upload.
const comparing = 3 * time.Second

// isStale compares a database that is there with the replica, fills in the facts,
// and reports whether the replica's newest state is to be restored.
func isStale(ctx context.Context, cfg Config, f *Facts) bool {
	f.OnStale = cfg.OnStale
	if cfg.Compare == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, comparing)
	defer cancel()
	c, err := cfg.Compare(ctx)
	switch {
	case err != nil:
		f.Replica, f.Err = Unreachable, err
	case c.Empty:
		f.Replica = Empty
	case c.Stale:
		f.Lineage, f.HowStale = Stale, c.How
	default:
		f.Lineage = Continues
	}
	return f.Lineage == Stale && f.OnStale == RestoreStale
}

// asked compares the request with what was carried out before.
func asked(cfg Config) (Asked, error) {
	if cfg.Force {
		return Pending, nil
	}
	if cfg.Request == "" {
		return No, nil
	}
	l, err := readLedger(cfg)
	switch {
	case err != nil:
		return No, err
	case l.has(cfg.Request):
		return CarriedOut, nil
	}
	return Pending, nil
}

// database tells what is at the path.
func database(path string) (Database, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Missing, nil
	case err != nil:
		return Missing, fmt.Errorf("cannot look at the database: %w", err)
	case fi.IsDir():
		return Missing, fmt.Errorf("%s is a folder, not a database", path)
	case fi.Size() > 0:
		return Present, nil
	}
	if wal, err := os.Stat(path + "-wal"); err == nil && wal.Size() > 0 {
		return Present, nil
	}
	return Missing, nil
}

// look asks the replica what it has.
func look(ctx context.Context, cfg Config) (Replica, plan, error) {
	switch empty, err := cfg.Client.Empty(ctx); {
	case err != nil:
		return Unreachable, plan{}, err
	case empty:
		return Empty, plan{}, nil
	}
	p, err := locate(ctx, cfg, 0)
	cfg.step("listed")
	switch {
	case err == nil:
		return HasData, p, nil
	case errors.Is(err, errNothing):
		return Empty, plan{}, nil // what is there is no backup
	case errors.Is(err, litestream.ErrTxNotAvailable):
		return Incomplete, plan{}, err
	}
	return Unreachable, plan{}, err
}
