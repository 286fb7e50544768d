package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/restore/check"
	"github.com/slashacom/slasha-init/restore/fetch"
)

// Fetch restores the replica into file, which must not exist, and verifies it.
// txid asks for a certain transaction, 0 for the newest or that of
// cfg.Timestamp. On error the file is not there.
func Fetch(ctx context.Context, cfg Config, file string, txid ltx.TXID) (Progress, error) {
	p, err := locate(ctx, cfg, txid)
	if err != nil {
		return Progress{}, failed(ctx, cfg, err)
	}
	return fetchPlan(ctx, cfg, file, txid, p)
}

// Foresee tells what a restore would lead to, as far as the replica's list does,
// and changes nothing. The error is a *Failure when there is nothing to restore,
// or no answer.
func Foresee(ctx context.Context, cfg Config) (Progress, error) {
	p, err := locate(ctx, cfg, 0)
	switch {
	case err == nil && p.gap != nil:
		return Progress{}, &Failure{Sentence: p.gap.Error(), Err: p.gap}
	case err == nil:
		return Progress{BytesTotal: p.bytes, TXID: p.txid}, nil
	case ctx.Err() != nil:
		return Progress{}, ctx.Err()
	case errors.Is(err, errNothing), errors.Is(err, litestream.ErrTxNotAvailable):
		return Progress{}, &Failure{Sentence: err.Error(), Err: err}
	}
	sentence, _ := cfg.Explain(err)
	return Progress{}, &Failure{Sentence: sentence, Err: err}
}

// fetchPlan is Fetch for a plan that is known.
func fetchPlan(ctx context.Context, cfg Config, file string, txid ltx.TXID, p plan) (Progress, error) {
	f := &fetching{cfg: cfg, file: file, txid: txid, client: &counting{Client: cfg.Client, pace: cfg.pace}}
	f.total.Store(p.bytes)
	start := time.Now()
	progress := func() Progress {
		return Progress{
			BytesDone: f.client.n.Load(), BytesTotal: f.total.Load(), Took: time.Since(start),
			TXID: ltx.TXID(f.leadsTo.Load()), Reason: cfg.reason,
			Newest: max(p.catalog.newest(), ltx.TXID(f.leadsTo.Load())),
		}
	}
	stop := tellEvery(250*time.Millisecond, func() {
		if cfg.OnProgress != nil {
			cfg.OnProgress(progress())
		}
	})
	err := f.run(ctx, p)
	stop()
	if err != nil {
		f.clear()
		err = failed(ctx, cfg, err)
	}
	return progress(), err
}

// failed is what the caller of a fetch is told.
func failed(ctx context.Context, cfg Config, err error) error {
	var told *Failure
	var damaged *check.DamagedError
	var object *fetch.DamagedError
	var empty *emptyError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &told):
		return told
	case errors.As(err, &damaged):
		return &Failure{Sentence: damaged.Error(), Err: err}
	case errors.Is(err, syscall.ENOSPC):
		return &Failure{Sentence: "the restore failed: no space left on the disk of " + cfg.DBPath, Err: err}
	case errors.As(err, &object):
		return &Failure{Sentence: "the restore failed: " + object.Error(), Err: err}
	case errors.As(err, &empty):
		return &Failure{Sentence: "the restore failed: " + empty.Error(), Err: err}
	}
	sentence, _ := cfg.Explain(err)
	return &Failure{Sentence: "the restore failed: " + sentence, Err: err}
}

// fetching is a restore into a file.
type fetching struct {
	cfg     Config
	file    string
	txid    ltx.TXID // asked for, or 0
	client  *counting
	total   atomic.Int64  // bytes to read
	leadsTo atomic.Uint64 // TXID
}

// mostPlans is how often files of a plan may vanish, each time making another
// plan necessary: compaction deletes what it has merged.
const mostPlans = 5

func (f *fetching) run(ctx context.Context, p plan) error {
	for n := 1; ; n++ {
		err := f.try(ctx, p)
		var gone *fetch.VanishedError
		if !errors.As(err, &gone) || n == mostPlans {
			return err
		}
		f.cfg.Logger.Info("a file of the replica was merged into another meanwhile, beginning again", "file", fetch.Name(gone.File))
		f.clear()
		if p, err = locate(ctx, f.cfg, f.txid); err != nil {
			return err
		}
	}
}

// try restores one plan.
func (f *fetching) try(ctx context.Context, p plan) error {
	f.leadsTo.Store(uint64(p.txid))
	if p.files == nil {
		opt := litestream.NewRestoreOptions()
		opt.OutputPath, opt.Timestamp = f.file, f.cfg.Timestamp
		if err := litestream.NewReplicaWithClient(nil, f.client).RestoreV3(ctx, opt); err != nil {
			return err
		}
		return f.verify(ctx)
	}
	if p.gap != nil {
		return f.salvage(ctx, p, p.gap)
	}
	_, err := f.assemble(ctx, p.files)
	var damaged *fetch.DamagedError
	switch {
	case errors.Is(err, fetch.ErrFormat), errors.Is(err, fetch.ErrIncomplete):
		return f.byLitestream(ctx, p, err)
	case errors.As(err, &damaged):
		return f.salvage(ctx, p, err)
	}
	return err
}

// assemble puts the database together and verifies it.
func (f *fetching) assemble(ctx context.Context, files []*ltx.FileInfo) (*fetch.Plan, error) {
	workers := 0 // as many as pay
	if f.cfg.Gently {
		workers = 1
	}
	p, err := fetch.Open(ctx, f.client, files, fetch.Options{Workers: workers, GiveUp: func(err error) bool {
		_, temporary := f.cfg.Explain(err)
		return !temporary
	}})
	if err != nil {
		return nil, err
	}
	f.total.Store(f.client.n.Load() + p.Bytes())
	if err := checkSpace(filepath.Dir(f.file), p.Size()); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(f.file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	// The disk begins at once, and not only with the fsync at the end.
	stop := tellEvery(50*time.Millisecond, func() {
		_ = unix.SyncFileRange(int(out.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	})
	err = p.Write(ctx, out)
	stop()
	if err != nil {
		return nil, err
	}
	f.cfg.step("fetched")
	// SQLite reads what is in the page cache while the disk takes it in.
	synced := make(chan error, 1)
	go func() { synced <- out.Sync() }()
	err = f.verify(ctx)
	return p, errors.Join(err, <-synced)
}

func (f *fetching) verify(ctx context.Context) error {
	cfg := check.Config{Kind: f.cfg.Check, OnUnknown: func(table string, err error) {
		f.cfg.Logger.Warn("SQLite can't check a table here, as that needs something of the app's; the checksums of its pages were right", "table", table, "error", err)
	}}
	if p := f.cfg.pace(); p != nil {
		cfg.Rest = func() { p.rest(ctx) }
	}
	return check.File(ctx, f.file, cfg)
}

// byLitestream restores what our own code can't, by Litestream's.
func (f *fetching) byLitestream(ctx context.Context, p plan, why error) error {
	f.cfg.Logger.Info("restoring by Litestream's own, slower way", "because", why)
	f.clear()
	opt := litestream.NewRestoreOptions()
	opt.OutputPath, opt.TXID = f.file, p.txid
	if err := litestream.NewReplicaWithClient(nil, f.client).Restore(ctx, opt); err != nil {
		return err
	}
	return f.verify(ctx)
}

// mostDamages is how many damaged files are gone around in search of something
// that is whole. Each costs another read of the replica.
const mostDamages = 10

// salvage looks for another way to the plan's end when a file of it is damaged:
// what was merged into it may still be there. Where there is none, it looks for
// the newest point before that is whole, and its error offers that; it is never
// taken unasked.
func (f *fetching) salvage(ctx context.Context, p plan, why error) error {
	c, err := p.catalog, why
	older := f.cfg
	older.Timestamp = time.Time{} // as far as it goes
	want := p.txid
	if p.gap != nil {
		want = p.gap.newest
	}
	for range mostDamages {
		var damaged *fetch.DamagedError
		var gone *fetch.VanishedError
		switch {
		case errors.As(err, &damaged):
			c = c.without(damaged.File)
		case ctx.Err() != nil, errors.As(err, &gone):
			return err
		case err != error(p.gap): //nolint:errorlint // that very one
			return why
		}
		f.clear()
		files, planErr := c.upTo(want).plan(ctx, older, 0)
		if planErr != nil {
			return why // nothing else to begin with
		}
		var whole *fetch.Plan
		if whole, err = f.assemble(ctx, files); err != nil {
			continue
		}
		if whole.TXID() == want {
			f.cfg.Logger.Warn("went around a damaged file: the replica holds the same in others", "damaged", why.Error())
			return nil
		}
		// Before is what Litestream compares with.
		at := whole.Time().Add(time.Millisecond).UTC().Format(time.RFC3339Nano)
		return &Failure{Err: why, Sentence: fmt.Sprintf(
			"the restore failed: %v; the newest state before that which is whole and was checked is that of %s (transaction %s): ask for it with that time as the timestamp to restore to",
			why, at, whole.TXID())}
	}
	return why
}

// clear removes what a failed try wrote.
func (f *fetching) clear() {
	for _, suffix := range []string{"", ".tmp", "-wal", "-shm", "-journal"} {
		_ = os.Remove(f.file + suffix)
	}
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
	n    atomic.Int64
	pace func() *pace
}

func (c *counting) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	rc, err := c.Client.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
	return c.count(ctx, rc, err)
}

func (c *counting) OpenSnapshotV3(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	rc, err := c.Client.OpenSnapshotV3(ctx, generation, index)
	rc, err = c.count(ctx, rc, err)
	return notEmpty(rc, err, litestream.SnapshotPathV3("", generation, index))
}

func (c *counting) OpenWALSegmentV3(ctx context.Context, generation string, index int, offset int64) (io.ReadCloser, error) {
	rc, err := c.Client.OpenWALSegmentV3(ctx, generation, index, offset)
	rc, err = c.count(ctx, rc, err)
	return notEmpty(rc, err, litestream.WALSegmentPathV3("", generation, index, offset))
}

func (c *counting) count(ctx context.Context, rc io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return &countingReader{rc, ctx, &c.n, c.pace()}, nil
}

type countingReader struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // of the request whose answer this is
	n    *atomic.Int64
	pace *pace
}

func (r *countingReader) Read(p []byte) (int, error) {
	r.pace.rest(r.ctx)
	n, err := r.ReadCloser.Read(p)
	r.n.Add(int64(n))
	return n, err
}

// emptyError says that an object of Litestream 0.3's has nothing in it. Its format
// takes that for a file that ends well, so that a restore would go without it.
type emptyError struct{ name string }

func (e *emptyError) Error() string { return e.name + " in the replica is damaged: it is empty" }

// notEmpty is a file that is damaged when nothing is in it.
func notEmpty(rc io.ReadCloser, err error, name string) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return &notEmptyReader{ReadCloser: rc, name: name}, nil
}

type notEmptyReader struct {
	io.ReadCloser
	name string
	some bool // of it was read
}

func (r *notEmptyReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.some = r.some || n > 0
	if errors.Is(err, io.EOF) && !r.some {
		return 0, &emptyError{r.name}
	}
	return n, err
}
