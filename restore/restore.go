// Package restore puts the right database at a path, or changes nothing.
//
// It gathers facts about the database and the replica, decides (see Decide),
// and where a restore is due it restores into a scratch folder on the same file
// system, verifies the result there, and moves it into place with one rename.
// Whatever happens before that rename leaves everything as it was.
package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// Client is a replica to read. It must offer the formats of Litestream 0.5 and
// 0.3 both: a replica of the older one would otherwise look empty.
type Client interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3

	// Empty reports whether the replica answered that it holds no backup in any
	// format.
	Empty(ctx context.Context) (bool, error)
}

// Config is what a restore needs. DBPath, StateDir and Client are required.
type Config struct {
	DBPath   string // absolute path of the database
	StateDir string // our own folder, on the file system of DBPath
	Client   Client

	// Explain turns an error of the client into one sentence and says whether
	// the same request may succeed later. Required.
	Explain func(error) (sentence string, temporary bool)

	// Patience is for how long a replica that does not answer is asked again
	// when the database is missing.
	Patience time.Duration

	// Request asks for a restore over the existing database, once: a request of
	// the same words is not carried out again. "" asks for none.
	Request string

	// Timestamp asks for the state at that moment instead of the newest. Zero
	// is the newest.
	Timestamp time.Time

	// Check is how what was restored is looked at before it counts.
	Check Check

	// Seal is called before a state that is older than the replica's newest takes
	// the database's place. What is uploaded from then on is a new line; it must
	// not be merged with the old one, which would then be lost. Required with
	// Timestamp.
	Seal func(context.Context) error

	// OnWaiting is called with the reason each time that a replica out of reach
	// is going to be asked again. Optional.
	OnWaiting func(sentence string)

	// OnProgress is called a few times a second during a restore, and with its
	// end, from one goroutine at a time. Optional.
	OnProgress func(Progress)

	Logger *slog.Logger

	asked  bool              // a restore was asked for, as opposed to needed
	onStep func(step string) // of tests, which crash there
}

func (cfg Config) step(name string) {
	if cfg.onStep != nil {
		cfg.onStep(name)
	}
}

// Progress is how far a restore is.
type Progress struct {
	BytesDone  int64 // read from the replica
	BytesTotal int64 // of the plan; 0 when not known
	Took       time.Duration
	TXID       ltx.TXID // that it leads to; 0 when not known
	Asked      bool     // somebody asked for it, as opposed to a missing database
}

// Rate is the average rate in bytes per second.
func (p Progress) Rate() int64 {
	if p.Took <= 0 {
		return 0
	}
	return int64(float64(p.BytesDone) / p.Took.Seconds())
}

// Outcome is what Run did.
type Outcome struct {
	Decision
	Progress Progress // of a restore
	Aside    string   // where the old database was moved to, or ""
}

// Failure is an error after which the app must not be started. The database is
// as it was.
type Failure struct {
	Sentence string // for a person
	Err      error
}

func (f *Failure) Error() string { return f.Sentence }
func (f *Failure) Unwrap() error { return f.Err }

// Run makes sure that the database at the path is the right one. It returns a
// *Failure when it can't, or the context's error when it was told to stop; in
// both cases nothing was changed.
func Run(ctx context.Context, cfg Config) (Outcome, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := recoverSwap(cfg); err != nil {
		return Outcome{}, &Failure{Sentence: fmt.Sprintf("cannot end a restore that was interrupted: %v", err), Err: err}
	}
	if err := os.RemoveAll(scratchDir(cfg)); err != nil {
		return Outcome{}, &Failure{Sentence: fmt.Sprintf("cannot clear what an earlier restore left behind: %v", err), Err: err}
	}
	facts, p, err := gather(ctx, cfg)
	if err != nil {
		return Outcome{}, err
	}
	cfg.asked = facts.Asked == Pending
	out := Outcome{Decision: Decide(facts), Progress: Progress{Asked: cfg.asked}}
	cfg.Logger.Info("decided", "action", out.Action.String(), "why", out.Why,
		"database", facts.Database.String(), "asked", facts.Asked.String(), "replica", facts.Replica.String())
	switch out.Action {
	case Fail:
		return out, &Failure{Sentence: out.Why, Err: facts.Err}
	case Fresh:
		// A WAL or journal of a database that is gone must not be applied to
		// the one that the app is about to make.
		if err := os.MkdirAll(filepath.Dir(cfg.DBPath), 0o755); err != nil {
			return out, &Failure{Sentence: fmt.Sprintf("cannot make the database's folder: %v", err), Err: err}
		}
		if err := setAsideLeftovers(cfg); err != nil {
			return out, &Failure{Sentence: err.Error(), Err: err}
		}
	case Restore:
		out.Progress, out.Aside, err = restore(ctx, cfg, facts, p)
	}
	if err == nil || ctx.Err() != nil {
		return out, errors.Join(err, ctx.Err())
	}
	return out, err
}

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

// restore reads the database into the scratch folder, verifies it and moves it
// into place. It returns where the old one was set aside.
func restore(ctx context.Context, cfg Config, f Facts, p plan) (done Progress, aside string, err error) {
	scratch := scratchDir(cfg)
	defer func() { _ = os.RemoveAll(scratch) }()
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return Progress{}, "", &Failure{Sentence: fmt.Sprintf("cannot make the scratch folder: %v", err), Err: err}
	}
	if err := checkSpace(scratch, p.size); err != nil {
		return Progress{}, "", err
	}
	file := filepath.Join(scratch, filepath.Base(cfg.DBPath))
	done, err = Fetch(ctx, cfg, file, 0, p.bytes)
	if p.txid != 0 {
		done.TXID = p.txid
	}
	if err == nil && p.older {
		if err := cfg.Seal(ctx); err != nil {
			sentence, _ := cfg.Explain(err)
			return done, "", &Failure{Sentence: "cannot keep what is newer than the point in time: " + sentence, Err: err}
		}
	}
	switch {
	case err != nil:
		return done, "", err
	case f.Database == Present:
		aside, err = exchange(cfg, file, cfg.Request, done.TXID.String())
	default:
		err = installMissing(cfg, file, f, done)
	}
	if err != nil {
		return done, "", &Failure{Sentence: err.Error(), Err: err}
	}
	cfg.Logger.Info("restored", "path", cfg.DBPath, "txid", done.TXID.String(),
		"bytes", done.BytesDone, "took", done.Took.Round(time.Millisecond))
	return done, aside, nil
}

// installMissing puts the file where no database is, and notes that a request
// for it was carried out: the next start must not restore over what the app has
// written by then.
func installMissing(cfg Config, file string, f Facts, done Progress) error {
	if f.Asked == Pending {
		l, err := readLedger(cfg)
		if err != nil {
			return err
		}
		// Before the file is in place: a crash in between is followed by a restore
		// all the same, as long as the database is missing.
		l.Done = &carriedOut{Request: cfg.Request, At: time.Now().UTC(), TXID: done.TXID.String()}
		if err := l.write(cfg); err != nil {
			return err
		}
	}
	return Install(cfg, file)
}

// Fetch restores the replica into file, which must not exist, and verifies it.
// txid asks for a certain transaction, 0 for the newest or that of
// cfg.Timestamp; total is for the progress. On error the file is not there.
func Fetch(ctx context.Context, cfg Config, file string, txid ltx.TXID, total int64) (Progress, error) {
	client := &counting{Client: cfg.Client}
	start := time.Now()
	progress := func() Progress {
		return Progress{BytesDone: client.n.Load(), BytesTotal: total, Took: time.Since(start), TXID: txid, Asked: cfg.asked}
	}
	stop := tellEvery(250*time.Millisecond, func() {
		if cfg.OnProgress != nil {
			cfg.OnProgress(progress())
		}
	})
	opt := litestream.NewRestoreOptions()
	opt.OutputPath, opt.TXID, opt.Timestamp = file, txid, cfg.Timestamp
	err := litestream.NewReplicaWithClient(nil, client).Restore(ctx, opt)
	if err == nil {
		err = Verify(ctx, file, cfg.Check)
	}
	stop()
	done := progress()
	if err != nil {
		for _, suffix := range []string{"", ".tmp", "-wal", "-shm", "-journal"} {
			_ = os.Remove(file + suffix)
		}
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		var damaged *DamagedError
		if errors.As(err, &damaged) {
			return done, &Failure{Sentence: damaged.Error(), Err: err}
		}
		sentence, _ := cfg.Explain(err)
		return done, &Failure{Sentence: "the restore failed: " + sentence, Err: err}
	}
	return done, nil
}

// tellEvery calls tell at once and then at each interval, until the returned
// function is called, which tells a last time and returns when no call runs.
func tellEvery(every time.Duration, tell func()) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			tell()
			select {
			case <-quit:
				tell()
				return
			case <-tick.C:
			}
		}
	}()
	return func() { close(quit); <-done }
}

// counting counts what is read.
type counting struct {
	Client
	n atomic.Int64
}

func (c *counting) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	rc, err := c.Client.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
	return c.count(rc, err)
}

func (c *counting) OpenSnapshotV3(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	rc, err := c.Client.OpenSnapshotV3(ctx, generation, index)
	return c.count(rc, err)
}

func (c *counting) OpenWALSegmentV3(ctx context.Context, generation string, index int, offset int64) (io.ReadCloser, error) {
	rc, err := c.Client.OpenWALSegmentV3(ctx, generation, index, offset)
	return c.count(rc, err)
}

func (c *counting) count(rc io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return &countingReader{rc, &c.n}, nil
}

type countingReader struct {
	io.ReadCloser
	n *atomic.Int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.n.Add(int64(n))
	return n, err
}
