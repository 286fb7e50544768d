package replicate

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// errGone ends the uploads of a session that has ended, because the file was
// replaced or because the last upload is over.
var errGone = errors.New("this database is no longer replicated from here")

// acknowledged is the client of one session. It counts the L0 files that the replica
// has taken, and reports to the line how far all files go.
type acknowledged struct {
	Client
	line Line
	n    atomic.Int64
	gone atomic.Bool // upload no more
}

// WriteLTXFile uploads a file, unless the session has ended.
func (a *acknowledged) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, rd io.Reader) (*ltx.FileInfo, error) {
	if a.gone.Load() {
		return nil, errGone
	}
	info, err := a.Client.WriteLTXFile(ctx, level, minTXID, maxTXID, rd)
	switch {
	case err == nil:
		a.line.Uploaded(maxTXID)
	case level == litestream.SnapshotLevel:
		a.line.Tried(maxTXID)
	}
	if err == nil && level == 0 {
		a.n.Add(1)
	}
	return info, err
}
