package replicate

import (
	"errors"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/wal"
)

// As long as Litestream holds its read transaction, the WAL can't be reset. Between two
// lives of ours there is no such transaction: the app starts first, or runs on without
// its bucket, checkpoints, and begins its WAL anew. Commits that had not been captured
// from it are in the database file alone then. Litestream checks whether the frame
// where its last capture ended is still there; it is, as long as the new WAL is not
// that long, and then Litestream goes on with the new frames and never sees the
// others. (verify and detectFullCheckpoint in db.go: the salts of the last capture
// count as known, wherever its WAL went on to.)
//
// So a WAL may only be followed when it is the very one that was captured last: SQLite
// gives it other salts each time that it begins anew.

// errResetUnseen says that the WAL is another one.
var errResetUnseen = errors.New("the WAL was reset while nothing was captured from it")

// resumed is the capture that the next one is to follow. Anything may follow the zero
// value.
type resumed struct {
	txid  ltx.TXID
	salts [2]uint32
}

// canFollow reports whether the WAL is still the same, while nothing has been captured
// since. If it is gone or empty, Litestream takes a snapshot by itself.
func (r resumed) canFollow(dbPath string) bool {
	salts, ok := wal.Salts(dbPath)
	return r.txid == 0 || !ok || salts == r.salts
}

// followed reports the same after the first capture, because the WAL may have been
// reset before Litestream had its read transaction. The capture up to txid has not been
// uploaded.
func (r resumed) followed(db *litestream.DB, dbPath string, txid ltx.TXID) bool {
	if r.txid == 0 {
		return true
	}
	if txid <= r.txid {
		return r.canFollow(dbPath)
	}
	h, err := wal.ReadLTX(db.LTXPath(0, r.txid+1, r.txid+1))
	return err == nil && r.salts == wal.SaltsOf(h)
}
