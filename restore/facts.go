package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// plan is what a restore will read.
type plan struct {
	bytes int64 // to read
	size  int64 // of the database; 0 when not known
	txid  ltx.TXID
	older bool // than the newest of the replica
}

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
	if !needsReplica(db, f.Asked) {
		return f, plan{}, nil
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

// asked compares the request with what was carried out before.
func asked(cfg Config) (Asked, error) {
	if cfg.Request == "" {
		return No, nil
	}
	l, err := readLedger(cfg)
	switch {
	case err != nil:
		return No, err
	case l.Done != nil && l.Done.Request == cfg.Request:
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
	files, err := litestream.CalcRestorePlan(ctx, cfg.Client, 0, cfg.Timestamp, cfg.Logger)
	if err == nil {
		var p plan
		for _, f := range files {
			p.bytes += f.Size
			p.txid = max(p.txid, f.MaxTXID)
		}
		if p.size, err = databaseSize(ctx, cfg.Client, files[len(files)-1]); err != nil {
			return Unreachable, plan{}, err
		}
		if p.older, err = isOlder(ctx, cfg, p.txid); err != nil {
			return Unreachable, plan{}, err
		}
		return HasData, p, nil
	}
	if !errors.Is(err, litestream.ErrTxNotAvailable) {
		return Unreachable, plan{}, err
	}
	// Nothing to begin with: because it is of the older format, or because what
	// a restore begins with is lost, or because none of it is a backup.
	switch older, err := hasV3(ctx, cfg.Client); {
	case err != nil:
		return Unreachable, plan{}, err
	case older:
		var p plan
		if p.older, err = isOlder(ctx, cfg, 0); err != nil {
			return Unreachable, plan{}, err
		}
		return HasData, p, nil
	}
	switch file, err := anyFile(ctx, cfg.Client); {
	case err != nil:
		return Unreachable, plan{}, err
	case file != "" && !cfg.Timestamp.IsZero():
		return Incomplete, plan{}, fmt.Errorf("%w: there is no backup from before %s", litestream.ErrTxNotAvailable, cfg.Timestamp.UTC().Format(time.RFC3339))
	case file != "":
		return Incomplete, plan{}, fmt.Errorf("%w: there are files, like %s, but no snapshot that they continue", litestream.ErrNoSnapshots, file)
	}
	return Empty, plan{}, nil
}

// isOlder reports whether the replica has something newer than what a restore
// to a point in time leads to.
func isOlder(ctx context.Context, cfg Config, txid ltx.TXID) (bool, error) {
	if cfg.Timestamp.IsZero() {
		return false, nil
	}
	for level := 0; level <= litestream.SnapshotLevel; level++ {
		info, err := litestream.NewCompactor(cfg.Client, cfg.Logger).MaxLTXFileInfo(ctx, level)
		if err != nil || info.MaxTXID > txid {
			return err == nil, err
		}
	}
	return false, nil
}

func hasV3(ctx context.Context, client Client) (bool, error) {
	generations, err := client.GenerationsV3(ctx)
	if err != nil {
		return false, err
	}
	for _, g := range generations {
		snapshots, err := client.SnapshotsV3(ctx, g)
		if err != nil {
			return false, err
		}
		if len(snapshots) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// anyFile returns the name of some LTX file of any level, or "".
func anyFile(ctx context.Context, client Client) (string, error) {
	for level := 0; level <= litestream.SnapshotLevel; level++ {
		itr, err := client.LTXFiles(ctx, level, 0, false)
		if err != nil {
			return "", err
		}
		name := ""
		if itr.Next() {
			f := itr.Item()
			name = fmt.Sprintf("%04x/%s", level, ltx.FormatFilename(f.MinTXID, f.MaxTXID))
		}
		if err := itr.Close(); err != nil {
			return "", err
		}
		if name != "" {
			return name, nil
		}
	}
	return "", nil
}
