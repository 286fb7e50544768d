package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/restore/check"
	"github.com/slashacom/slasha-init/restore/fetch"
)

// builder builds one database in a file, from what the replica has.
type builder struct {
	cfg     Config
	file    string
	gently  bool
	client  *counting
	total   atomic.Int64  // bytes to read
	leadsTo atomic.Uint64 // TXID
}

func newBuilder(cfg Config, file string, gently bool) *builder {
	b := &builder{cfg: cfg, file: file, gently: gently}
	b.client = &counting{Client: cfg.Source.Client, pace: b.pace}
	return b
}

// mostPlans is how often files of a plan may vanish, each time making another
// plan necessary: compaction deletes what it has merged.
const mostPlans = 5

func (b *builder) build(ctx context.Context, p plan) error {
	for n := 1; ; n++ {
		err := b.try(ctx, p)
		var gone *fetch.VanishedError
		if !errors.As(err, &gone) || n == mostPlans {
			return err
		}
		b.cfg.Logger.Info("a file of the replica was merged into another meanwhile, beginning again", "file", fetch.Name(gone.File))
		b.clear()
		if p, err = b.cfg.locate(ctx); err != nil {
			return err
		}
	}
}

// try restores one plan.
func (b *builder) try(ctx context.Context, p plan) error {
	b.leadsTo.Store(uint64(p.txid))
	if p.files == nil {
		opt := litestream.NewRestoreOptions()
		opt.OutputPath, opt.Timestamp = b.file, b.cfg.What.Timestamp
		if err := litestream.NewReplicaWithClient(nil, b.client).RestoreV3(ctx, opt); err != nil {
			return err
		}
		return b.verify(ctx)
	}
	if p.gap != nil {
		return b.salvage(ctx, p, p.gap)
	}
	_, err := b.assemble(ctx, p.files)
	var damaged *fetch.DamagedError
	switch {
	case errors.Is(err, fetch.ErrFormat), errors.Is(err, fetch.ErrIncomplete):
		return b.byLitestream(ctx, p, err)
	case errors.As(err, &damaged):
		return b.salvage(ctx, p, err)
	}
	return err
}

// assemble puts the database together and verifies it.
func (b *builder) assemble(ctx context.Context, files []*ltx.FileInfo) (*fetch.Plan, error) {
	workers := 0 // as many as pay
	if b.gently {
		workers = 1
	}
	p, err := fetch.Open(ctx, b.client, files, fetch.Options{Workers: workers, GiveUp: func(err error) bool {
		_, temporary := b.cfg.Source.Explain(err)
		return !temporary
	}})
	if err != nil {
		return nil, err
	}
	b.total.Store(b.client.n.Load() + p.Bytes())
	if err := checkSpace(filepath.Dir(b.file), p.Size()); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(b.file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	// The disk begins to write at once, and not only with the fsync at the end.
	write := func() { _ = unix.SyncFileRange(int(out.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) }
	if err := during(func() error { return p.Write(ctx, out) }, 50*time.Millisecond, write); err != nil {
		return nil, err
	}
	b.cfg.step("fetched")
	// SQLite reads what is in the page cache while the disk takes it in.
	synced := make(chan error, 1)
	go func() { synced <- out.Sync() }()
	err = b.verify(ctx)
	return p, errors.Join(err, <-synced)
}

func (b *builder) verify(ctx context.Context) error {
	cfg := check.Config{Kind: b.cfg.Check, OnUnknown: func(table string, err error) {
		b.cfg.Logger.Warn("SQLite can't check this table, because it needs a function or collation of the app's; the checksums of its pages are right", "table", table, "error", err)
	}}
	if p := b.pace(); p != nil {
		cfg.Rest = func() { p.rest(ctx) }
	}
	return check.File(ctx, b.file, cfg)
}

// byLitestream restores with Litestream's code what our own can't restore.
func (b *builder) byLitestream(ctx context.Context, p plan, why error) error {
	b.cfg.Logger.Info("restoring with Litestream's own, slower code", "because", why)
	b.clear()
	opt := litestream.NewRestoreOptions()
	opt.OutputPath, opt.TXID = b.file, p.txid
	if err := litestream.NewReplicaWithClient(nil, b.client).Restore(ctx, opt); err != nil {
		return err
	}
	return b.verify(ctx)
}

// mostDamages is how many damaged files are gone around in search of something
// that is whole. Each costs another read of the replica.
const mostDamages = 10

// salvage looks for another way to the plan's end when a file of it is damaged:
// the files that were merged into it may still be there. Where there is none, it looks
// for the newest whole state before the damage, and its error offers that state. It is
// restored only when somebody asks for it.
func (b *builder) salvage(ctx context.Context, p plan, why error) error {
	c, err := p.catalog, why
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
		b.clear()
		files, planErr := c.upTo(want).plan(ctx, What{}, b.cfg.Logger) // as far as it goes
		if planErr != nil {
			return why // nothing else to begin with
		}
		var whole *fetch.Plan
		if whole, err = b.assemble(ctx, files); err != nil {
			continue
		}
		if whole.TXID() == want {
			b.leadsTo.Store(uint64(want))
			b.cfg.Logger.Warn("a file of the replica is damaged; its content was restored from other files", "damaged", why.Error())
			return nil
		}
		// Litestream takes the files from before the timestamp.
		at := whole.Time().Add(time.Millisecond).UTC().Format(time.RFC3339Nano)
		return &Failure{Err: why, Sentence: fmt.Sprintf(
			"the restore failed: %v; the newest whole state before it, which was checked, is from %s (transaction %s); to restore it, use that time as the timestamp",
			why, at, whole.TXID())}
	}
	return why
}

// clear removes what a failed try wrote.
func (b *builder) clear() {
	for _, suffix := range []string{"", ".tmp", "-wal", "-shm", "-journal"} {
		_ = os.Remove(b.file + suffix)
	}
}
