package restore

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

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

// emptyError says that an object of Litestream 0.3 has nothing in it. The format takes
// that for a file that ends well, so a restore would go without it.
type emptyError struct{ name string }

func (e *emptyError) Error() string { return e.name + " in the replica is damaged: it is empty" }

// notEmpty reads a file that counts as damaged when nothing is in it.
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
