package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/replica/lease"
)

// Writer is the replica for uploads, and the only client that can write it: each upload
// and each deletion is run by right.do, and so only under the lease. What it lists is
// sure to be ours. Its other reads are those of Replica.
type Writer struct {
	readOnly
	right right
}

// WriteLTXFile uploads one file, under the lease; see Replica.While for the errors.
func (w *Writer) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (info *ltx.FileInfo, err error) {
	err = w.right.do(ctx, func(ctx context.Context) error {
		info, err = w.store.WriteLTXFile(ctx, level, minTXID, maxTXID, w.right.reader(r))
		return err
	})
	return info, markFinal(err)
}

// DeleteLTXFiles deletes files, under the lease; see Replica.While for the errors. Files
// that are missing count as deleted.
func (w *Writer) DeleteLTXFiles(ctx context.Context, files []*ltx.FileInfo) error {
	return markFinal(w.right.do(ctx, func(ctx context.Context) error { return w.store.DeleteLTXFiles(ctx, files) }))
}

// LTXFiles lists what the replica has. It fails when that may be another instance's:
// that instance's transactions have the numbers of ours that are missing, so ours would
// pass for uploaded. The error comes when the iterator has been read, or is closed.
func (w *Writer) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	itr, err := w.store.LTXFiles(ctx, level, seek, useMetadata)
	if err != nil {
		return nil, err
	}
	return ownFiles{itr, w.right}, nil
}

// ownFiles reports at its end whether what it has listed is ours.
type ownFiles struct {
	ltx.FileIterator
	right right
}

func (f ownFiles) Err() error   { return markFinal(cmp.Or(f.FileIterator.Err(), f.right.valid())) }
func (f ownFiles) Close() error { return markFinal(cmp.Or(f.FileIterator.Close(), f.right.valid())) }

// Check returns why the replica does not work, or nil. It makes a request only where
// no renewal of the lease has been made of late.
func (w *Writer) Check(ctx context.Context) error { return w.right.check(ctx, w.store.Check) }

// CheckInterval is how often an idle database calls Check.
func (w *Writer) CheckInterval() time.Duration { return w.right.checkInterval() }

// markFinal explains an error after which this instance may never write again, because
// the lease is lost. Its method Final is that of the *lease.LostError in it.
func markFinal(err error) error {
	var lost *lease.LostError
	if errors.As(err, &lost) {
		return fmt.Errorf("this instance may not write the replica: %w", err)
	}
	return err
}
