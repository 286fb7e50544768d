package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/benbjohnson/litestream"

	"github.com/slashacom/slasha-init/internal/wait"
)

// found is what gather has found out.
type found struct {
	facts
	what What // what is to be restored, if a restore is made
	plan plan // leads to it, where the replica has data
}

// gather finds out what decide needs to know, and no more: where the database is
// present, the app's start must not wait for the network.
func gather(ctx context.Context, cfg Config) (found, error) {
	f := found{facts: facts{OnStale: cfg.OnStale}, what: cfg.What}
	var err error
	if f.Database, err = databaseAt(cfg.Place.DBPath); err != nil {
		return f, &Failure{Sentence: err.Error(), Err: err}
	}
	if f.Asked, err = asked(cfg.Place, cfg.What.Request); err != nil {
		return f, &Failure{Sentence: err.Error(), Err: err}
	}
	if !needsReplica(f.Database, f.Asked) {
		c, err := compare(ctx, cfg)
		switch {
		case err != nil:
			f.Replica, f.Err = unreachable, err
		case c.Empty:
			f.Replica = empty
		default:
			f.Compared = &c
		}
		if !f.isStale() || f.OnStale == FailStale {
			return f, context.Cause(ctx)
		}
		f.what = What{} // the newest state, whatever was requested before
	}
	return f, f.ask(ctx, cfg)
}

// comparing is how long a database that is there waits for the replica: the app's
// start must not depend on it. If the two could not be compared by then, they are
// compared before the first upload.
const comparing = 3 * time.Second

// compare compares a database that is there with the replica. It asks only once.
func compare(ctx context.Context, cfg Config) (Comparison, error) {
	if cfg.Line.Compare == nil {
		return Comparison{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, comparing)
	defer cancel()
	return cfg.Line.Compare(ctx)
}

// ask asks the replica what it has, again and again for as long as cfg has patience. The
// error is the cause of the end of ctx.
func (f *found) ask(ctx context.Context, cfg Config) error {
	cfg.What = f.what
	deadline := time.Now().Add(cfg.Source.Patience)
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 4*time.Second) {
		f.Replica, f.plan, f.Err = look(ctx, cfg)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if f.Replica != unreachable {
			return nil
		}
		sentence, temporary := cfg.Source.Explain(f.Err)
		f.Err = &Failure{Sentence: sentence, Err: f.Err}
		if !temporary || time.Now().Add(pause).After(deadline) {
			return nil
		}
		if cfg.OnWaiting != nil {
			cfg.OnWaiting(sentence)
		}
		cfg.Logger.Warn("the replica does not answer, asking again", "error", sentence, "giving_up_in", time.Until(deadline).Round(time.Second))
		if !wait.For(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

// asked compares the request with what was carried out before.
func asked(p Place, r Request) (askedFor, error) {
	switch {
	case r.now:
		return askedPending, nil
	case r.id == "":
		return askedNothing, nil
	}
	l, err := readLedger(p)
	switch {
	case err != nil:
		return askedNothing, err
	case l.has(r.id):
		return askedBefore, nil
	}
	return askedPending, nil
}

// databaseAt looks at what is at the path.
func databaseAt(path string) (databaseState, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return missing, nil
	case err != nil:
		return missing, fmt.Errorf("cannot look at the database: %w", err)
	case fi.IsDir():
		return missing, fmt.Errorf("%s is a folder, not a database", path)
	case fi.Size() > 0:
		return present, nil
	}
	if wal, err := os.Stat(path + "-wal"); err == nil && wal.Size() > 0 {
		return present, nil
	}
	return missing, nil
}

// look asks the replica what it has.
func look(ctx context.Context, cfg Config) (replicaState, plan, error) {
	switch none, err := cfg.Source.Client.Empty(ctx); {
	case err != nil:
		return unreachable, plan{}, err
	case none:
		return empty, plan{}, nil
	}
	p, err := cfg.locate(ctx)
	cfg.step("listed")
	switch {
	case err == nil:
		return hasData, p, nil
	case errors.Is(err, errNothing):
		return empty, plan{}, nil // there are files, but not a backup
	case errors.Is(err, litestream.ErrTxNotAvailable):
		return incomplete, plan{}, err
	}
	return unreachable, plan{}, err
}
