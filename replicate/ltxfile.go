package replicate

import (
	"context"
	"errors"
	"os"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/wal"
)

// localFile is a file that Litestream has beside the database: what it captured, one
// transaction in each, and the baseline of breakOff.
type localFile struct {
	txid ltx.TXID
	size int64 // in bytes
	path string
}

// localFiles lists them, in the order of their transactions.
func localFiles(db *litestream.DB) ([]localFile, error) {
	entries, err := os.ReadDir(db.LTXLevelDir(0)) // sorted by name, which begins with the number
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var files []localFile
	for _, e := range entries {
		minTXID, maxTXID, err := ltx.ParseFilename(e.Name())
		if err != nil {
			continue // not an LTX file
		}
		if fi, err := e.Info(); err == nil { // else Litestream has just removed it
			files = append(files, localFile{maxTXID, fi.Size(), db.LTXPath(0, minTXID, maxTXID)})
		}
	}
	return files, nil
}

// captured is what an earlier session has left beside the database. The zero value is
// nothing.
type captured struct {
	newest   ltx.TXID   // the newest transaction, 0 for none
	header   ltx.Header // of its file; zero where it can't be read, and Litestream finds out why
	baseline string     // the path of breakOff's file, where it is still there
}

func lookAtCaptured(db *litestream.DB) (captured, error) {
	var had captured
	files, err := localFiles(db)
	if err != nil || len(files) == 0 {
		return had, err
	}
	// A baseline is older than everything that follows it. It may be the newest file,
	// when nothing was captured after it. It may also be left over from a session that
	// ended between a capture and the baseline's removal.
	if wal.IsBaseline(files[0].path) {
		had.baseline = files[0].path
		files = files[1:]
	}
	if len(files) > 0 {
		newest := files[len(files)-1]
		had.newest = newest.txid
		if h, err := wal.ReadLTX(newest.path); err == nil {
			had.header = h
		}
	}
	return had, nil
}

// resume returns what the next capture is to follow.
func (c captured) resume() resumed {
	if c.header == (ltx.Header{}) {
		return resumed{}
	}
	return resumed{c.newest, wal.SaltsOf(c.header)}
}

// headerThere reads the header of a file in the replica. It is zero where the file is
// damaged or can't be read to the end of its header: such a file decides nothing here.
func headerThere(ctx context.Context, client Client, file ltx.FileInfo) (h ltx.Header, err error) {
	b, err := wal.FetchLTX(ctx, client, file.Level, file.MinTXID, file.MaxTXID)
	var cut *wal.CutError
	if err != nil && !errors.As(err, &cut) {
		return ltx.Header{}, err
	}
	if h.UnmarshalBinary(b) != nil {
		return ltx.Header{}, nil //nolint:nilerr // the same
	}
	return h, nil
}
