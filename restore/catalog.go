package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
	"golang.org/x/sync/errgroup"

	"github.com/slashacom/slasha-init/internal/levels"
	"github.com/slashacom/slasha-init/restore/check"
	"github.com/slashacom/slasha-init/restore/fetch"
)

// catalog is what a replica holds, listed once, so that a plan and the questions
// around it agree and cost one list of each level.
type catalog struct {
	Client
	levels levels.Files

	generations []string // of Litestream 0.3
}

// list lists the replica's files. exact asks for the time of each as its writer
// noted it, which costs one request for each file where the list does not have it.
func list(ctx context.Context, client Client, exact bool) (*catalog, error) {
	c := &catalog{Client: client}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		c.levels, err = levels.List(ctx, client, exact)
		return err
	})
	g.Go(func() (err error) {
		c.generations, err = client.GenerationsV3(ctx)
		return err
	})
	return c, g.Wait()
}

// LTXFiles lists what was listed, for litestream.CalcRestorePlan.
func (c *catalog) LTXFiles(_ context.Context, level int, seek ltx.TXID, _ bool) (ltx.FileIterator, error) {
	files := c.levels[level]
	from, _ := slices.BinarySearchFunc(files, seek, func(f *ltx.FileInfo, t ltx.TXID) int {
		if f.MinTXID < t {
			return -1
		}
		return 1
	})
	return ltx.NewFileInfoSliceIterator(files[from:]), nil
}

// without is the catalog without one file.
func (c *catalog) without(gone *ltx.FileInfo) *catalog {
	less := *c
	less.levels[gone.Level] = slices.DeleteFunc(slices.Clone(c.levels[gone.Level]), func(f *ltx.FileInfo) bool {
		return f.MinTXID == gone.MinTXID && f.MaxTXID == gone.MaxTXID
	})
	return &less
}

// upTo is the catalog without what goes on after a transaction.
func (c *catalog) upTo(txid ltx.TXID) *catalog {
	less := *c
	for level, files := range c.levels {
		less.levels[level] = slices.DeleteFunc(slices.Clone(files), func(f *ltx.FileInfo) bool { return f.MaxTXID > txid })
	}
	return &less
}

// before is the catalog of the files from before a moment, of all with the zero time.
func (c *catalog) before(at time.Time) *catalog {
	if at.IsZero() {
		return c
	}
	less := *c
	for level, files := range c.levels {
		less.levels[level] = slices.DeleteFunc(slices.Clone(files), func(f *ltx.FileInfo) bool { return !f.CreatedAt.Before(at) })
	}
	return &less
}

// merged reports whether a compacted file has a transaction: then its own file, and
// in time others of those that were merged, are gone as they should be.
func (c *catalog) merged(txid ltx.TXID) bool {
	for _, files := range c.levels[1:litestream.SnapshotLevel] {
		if slices.ContainsFunc(files, func(f *ltx.FileInfo) bool { return f.MinTXID <= txid && txid <= f.MaxTXID }) {
			return true
		}
	}
	return false
}

// newest is the last transaction that any file has, 0 for none.
func (c *catalog) newest() (txid ltx.TXID) {
	for _, files := range c.levels {
		for _, f := range files {
			txid = max(txid, f.MaxTXID)
		}
	}
	return txid
}

// example is the name of some file, or "".
func (c *catalog) example() string {
	for _, files := range c.levels {
		if len(files) > 0 {
			return fetch.Name(files[0])
		}
	}
	return ""
}

// updated is the time of the newest file.
func (c *catalog) updated() (at time.Time) {
	for _, files := range c.levels {
		for _, f := range files {
			if f.CreatedAt.After(at) {
				at = f.CreatedAt
			}
		}
	}
	return at
}

// plan returns the files that lead to what is wanted, or for the newest state as far
// as the files go without a gap. The error is litestream.ErrTxNotAvailable if they
// don't lead there.
func (c *catalog) plan(ctx context.Context, what What, log *slog.Logger) ([]*ltx.FileInfo, error) {
	at := what.Timestamp
	if what.TXID == 0 && at.IsZero() {
		// At a gap, Litestream returns an error without a type, but only when it plans
		// for the newest state.
		at = time.Unix(1<<40, 0)
	}
	return litestream.CalcRestorePlan(ctx, c, what.TXID, at, log)
}

// plan is what a restore will read.
type plan struct {
	catalog *catalog
	files   []*ltx.FileInfo // nil: Litestream restores what its version 0.3 wrote
	bytes   int64           // to read; 0 when not known
	txid    ltx.TXID        // that they lead to; 0 when not known
	gap     *gapError       // why they don't lead to what is wanted
}

// gapError says that the files don't lead to the transaction that is wanted: the
// newest of all, or of the time that was given.
type gapError struct{ newest, missing ltx.TXID }

func (e *gapError) Error() string {
	return fmt.Sprintf("the replica goes on to transaction %s, but has no file with transaction %s", e.newest, e.missing)
}

// isUnsound reports whether an error of a drill is about what the replica holds, and
// not about reaching it or about this machine.
func isUnsound(err error) bool {
	var gap *gapError
	var object *fetch.DamagedError
	var database *check.DamagedError
	var empty *emptyError
	var differs *differsError
	return errors.As(err, &gap) || errors.As(err, &empty) || errors.As(err, &object) || errors.As(err, &database) ||
		errors.As(err, &differs) || errors.Is(err, errNothing) || errors.Is(err, litestream.ErrTxNotAvailable)
}

// errNothing says that there is nothing that a restore could begin with.
var errNothing = errors.New("the replica holds no backup")

// locate finds the files to restore from. It returns errNothing when the replica has
// no backup of any kind, and litestream.ErrTxNotAvailable when it has one, but nothing
// that leads to what is wanted.
func (cfg Config) locate(ctx context.Context) (plan, error) {
	txid, at := cfg.What.TXID, cfg.What.Timestamp
	c, err := list(ctx, cfg.Source.Client, !at.IsZero())
	if err != nil {
		return plan{}, err
	}
	files, err := c.plan(ctx, cfg.What, cfg.Logger)
	if err != nil && !errors.Is(err, litestream.ErrTxNotAvailable) {
		return plan{}, err
	}
	if txid == 0 {
		v3, v3err := prefersV3(ctx, cfg, c, files)
		if v3err != nil {
			return plan{}, v3err
		}
		if v3 {
			return plan{catalog: c}, nil
		}
	}
	if err != nil {
		return plan{}, nothing(ctx, cfg, c)
	}
	p := plan{catalog: c, files: files, txid: files[len(files)-1].MaxTXID}
	for _, f := range files {
		p.bytes += f.Size
	}
	switch wanted := c.before(at).newest(); {
	case txid != 0, wanted <= p.txid:
	case at.IsZero(), !c.merged(p.txid + 1):
		p.gap = &gapError{newest: wanted, missing: p.txid + 1}
	default:
		cfg.Logger.Info("the state at that moment was merged with later ones; restoring the state before it", "txid", p.txid.String(), "wanted", wanted.String())
	}
	return p, nil
}

// nothing returns the error that says why there is no plan.
func nothing(ctx context.Context, cfg Config, c *catalog) error {
	file := c.example()
	if file == "" && len(c.generations) > 0 {
		_, updated, err := litestream.NewReplicaWithClient(nil, cfg.Source.Client).TimeBoundsV3(ctx, cfg.Source.Client)
		if err != nil {
			return err
		}
		if !updated.IsZero() {
			file = "generations/" + c.generations[0]
		}
	}
	switch {
	case file == "":
		return errNothing
	case !cfg.What.Timestamp.IsZero() && c.before(cfg.What.Timestamp).example() == "":
		return fmt.Errorf("%w: there is no backup from before %s", litestream.ErrTxNotAvailable, cfg.What.Timestamp.UTC().Format(time.RFC3339))
	default:
		return fmt.Errorf("%w: there are files, like %s, but no snapshot that they continue", litestream.ErrTxNotAvailable, file)
	}
}

// prefersV3 reports whether to restore what Litestream 0.3 left in the replica. The
// rule is that of Litestream 0.5: take the newer of the two; for a point in time, take
// the one with the newer snapshot before it.
func prefersV3(ctx context.Context, cfg Config, c *catalog, files []*ltx.FileInfo) (bool, error) {
	if len(c.generations) == 0 {
		return false, nil
	}
	if cfg.What.Timestamp.IsZero() {
		_, updated, err := litestream.NewReplicaWithClient(nil, cfg.Source.Client).TimeBoundsV3(ctx, cfg.Source.Client)
		return err == nil && updated.After(c.updated()), err
	}
	var best time.Time
	for _, g := range c.generations {
		snapshots, err := cfg.Source.Client.SnapshotsV3(ctx, g)
		if err != nil {
			return false, err
		}
		for _, s := range snapshots {
			if !s.CreatedAt.After(cfg.What.Timestamp) && s.CreatedAt.After(best) {
				best = s.CreatedAt
			}
		}
	}
	if len(files) == 0 { // if there are newer files without a snapshot, an older backup is not what is wanted
		return best.After(c.before(cfg.What.Timestamp).updated()), nil
	}
	return best.After(files[0].CreatedAt), nil
}
