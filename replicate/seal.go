package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// ErrUnsound says that files of the replica can't be merged for what is in them.
var ErrUnsound = errors.New("the replica has damaged or missing files")

// Seal ends a line in the replica, before another one begins: after a restore to
// a point in time the database is uploaded in full under the next transaction,
// and a compaction that reached over that place would merge the two, and keep of
// the old one only what it had before. So Seal compacts what is there now, level
// by level, and no later compaction has a reason to reach back.
//
// The error is ErrUnsound where the replica can be reached, but not be merged. It is
// the client's where it can't be reached, and ctx's when that ended.
func Seal(ctx context.Context, client Client, log *slog.Logger) error {
	door := &watchedDoor{Client: client}
	c := litestream.NewCompactor(door, log)
	for _, level := range litestream.DefaultCompactionLevels[1:] {
		_, err := c.Compact(ctx, level.Level)
		switch {
		case err == nil, errors.Is(err, litestream.ErrNoCompaction):
		case door.failed.Load(), ctx.Err() != nil:
			return fmt.Errorf("seal level %d: %w", level.Level, err)
		default:
			return fmt.Errorf("seal level %d: %w: %w", level.Level, ErrUnsound, err)
		}
	}
	return nil
}

// watchedDoor is a client that remembers whether reading or writing the replica
// failed, as opposed to making sense of what was read.
type watchedDoor struct {
	Client
	failed atomic.Bool
}

func (d *watchedDoor) note(err error) error {
	if err != nil && !errors.Is(err, io.EOF) {
		d.failed.Store(true)
	}
	return err
}

func (d *watchedDoor) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	itr, err := d.Client.LTXFiles(ctx, level, seek, useMetadata)
	return watchedList{itr, d}, d.note(err)
}

func (d *watchedDoor) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	rc, err := d.Client.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
	if err != nil {
		return nil, d.note(err)
	}
	return watchedBody{rc, d}, nil
}

func (d *watchedDoor) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	content := &watchedContent{Reader: r}
	info, err := d.Client.WriteLTXFile(ctx, level, minTXID, maxTXID, content)
	if !content.failed {
		_ = d.note(err)
	}
	return info, err
}

type watchedList struct {
	ltx.FileIterator
	door *watchedDoor
}

func (l watchedList) Err() error   { return l.door.note(l.FileIterator.Err()) }
func (l watchedList) Close() error { return l.door.note(l.FileIterator.Close()) }

type watchedBody struct {
	io.ReadCloser
	door *watchedDoor
}

func (b watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	return n, b.door.note(err)
}

// watchedContent is what a compaction produces; producing it can fail too.
type watchedContent struct {
	io.Reader
	failed bool
}

func (c *watchedContent) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.failed = c.failed || err != nil && !errors.Is(err, io.EOF)
	return n, err
}
