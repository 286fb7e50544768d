package restore

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/restore/check"
	"github.com/slashacom/slasha-init/restore/fetch"
)

// job is one restore. Each kind of restore reads the replica into a scratch folder and
// verifies the result there. Only the last step differs.
type job struct {
	scratch string // a folder that exists, on the file system that the database is for
	reason  Reason
	gently  bool // leaves most of a processor and of the line to others: nobody waits for it

	// find returns the files to read.
	find func(context.Context) (plan, error)

	// last does with the verified file what the restore is for. A file that it leaves
	// where it is goes away with the folder.
	last func(file string, got Progress) error
}

// do restores. It returns a *Failure, the cause of the end of ctx, or the error of the
// last step as it is.
func (j job) do(ctx context.Context, cfg Config) (Progress, error) {
	p, err := j.find(ctx)
	if err != nil {
		return Progress{}, failed(ctx, cfg, err)
	}
	file := filepath.Join(j.scratch, "restored")
	got, err := j.build(ctx, cfg, file, p)
	if err != nil {
		return got, err
	}
	return got, j.last(file, got)
}

// build builds the database of a plan in file, which must not exist, and verifies it.
// On an error the file is not there.
func (j job) build(ctx context.Context, cfg Config, file string, p plan) (Progress, error) {
	b := newBuilder(cfg, file, j.gently)
	b.total.Store(p.bytes)
	start := time.Now()
	progress := func() Progress {
		return Progress{
			BytesDone: b.client.n.Load(), BytesTotal: b.total.Load(), Took: time.Since(start),
			TXID: ltx.TXID(b.leadsTo.Load()), Reason: j.reason,
			Newest: max(p.catalog.newest(), ltx.TXID(b.leadsTo.Load())),
		}
	}
	report := func() {
		if cfg.OnProgress != nil {
			cfg.OnProgress(progress())
		}
	}
	err := during(func() error { return b.build(ctx, p) }, 250*time.Millisecond, report)
	if err != nil {
		b.clear()
		err = failed(ctx, cfg, err)
	}
	return progress(), err
}

// Foresee returns what a restore would lead to, as far as the replica's list shows
// it, and changes nothing. The error is a *Failure when there is nothing to restore,
// or no answer, and the cause of the end of ctx when that has ended. Of cfg it uses
// What, Source and Logger.
func Foresee(ctx context.Context, cfg Config) (Progress, error) {
	p, err := cfg.locate(ctx)
	switch {
	case err == nil && p.gap != nil:
		return Progress{}, &Failure{Sentence: p.gap.Error(), Err: p.gap}
	case err == nil:
		return Progress{BytesTotal: p.bytes, TXID: p.txid}, nil
	case ctx.Err() != nil:
		return Progress{}, context.Cause(ctx)
	case errors.Is(err, errNothing), errors.Is(err, litestream.ErrTxNotAvailable):
		return Progress{}, &Failure{Sentence: err.Error(), Err: err}
	}
	sentence, _ := cfg.Source.Explain(err)
	return Progress{}, &Failure{Sentence: sentence, Err: err}
}

// failed turns an error of reading and verifying into one for the caller.
func failed(ctx context.Context, cfg Config, err error) error {
	var failure *Failure
	var damaged *check.DamagedError
	var object *fetch.DamagedError
	var empty *emptyError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &failure):
		return failure
	case errors.As(err, &damaged):
		return &Failure{Sentence: damaged.Error(), Err: err}
	case errors.Is(err, syscall.ENOSPC):
		return &Failure{Sentence: "the restore failed: no space left on the disk of " + cfg.Place.DBPath, Err: err}
	case errors.As(err, &object):
		return &Failure{Sentence: "the restore failed: " + object.Error(), Err: err}
	case errors.As(err, &empty):
		return &Failure{Sentence: "the restore failed: " + empty.Error(), Err: err}
	}
	sentence, _ := cfg.Source.Explain(err)
	return &Failure{Sentence: "the restore failed: " + sentence, Err: err}
}

// during does the work, and meanwhile calls do at once, at each interval and at the end.
// When it returns, or panics because the work did, no call runs.
func during(work func() error, every time.Duration, do func()) error {
	quit, done := make(chan struct{}), make(chan struct{})
	defer func() { close(quit); <-done }()
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			do()
			select {
			case <-quit:
				do()
				return
			case <-tick.C:
			}
		}
	}()
	return work()
}
