package restore

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

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
