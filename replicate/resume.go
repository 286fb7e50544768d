package replicate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// As long as Litestream holds its read transaction, nobody can reset the WAL. Between
// two lives of ours nobody holds one: the app starts first, or runs on without its
// bucket, checkpoints, and begins its WAL anew. What was in it and had not been
// captured is in the database file alone then. Litestream looks whether the frame
// where its last capture ended is still there; it is, as long as the new WAL is not
// that long, and then Litestream goes on with the new frames and never sees the
// others. (verify and detectFullCheckpoint in db.go: the salts of the last capture
// count as known, wherever its WAL went on to.)
//
// So a WAL may only be followed when it is the very one that was captured last: SQLite
// gives it other salts each time that it begins anew.

// errResetUnseen says that it is not.
var errResetUnseen = errors.New("the WAL was reset while nothing was captured from it")

// resumed is the capture that the next one is to follow; the zero value is followed
// by anything.
type resumed struct {
	txid  ltx.TXID
	salts [2]uint32
}

func resumeFrom(db *litestream.DB, captured ltx.TXID) resumed {
	h, err := headerOf(db.LTXPath(0, captured, captured))
	if err != nil {
		return resumed{} // what is wrong with it, Litestream finds out
	}
	return resumed{captured, [2]uint32{h.WALSalt1, h.WALSalt2}}
}

// canFollow reports whether the WAL of a database that nobody has captured from since
// is still the same. One that is gone or empty is Litestream's to judge: it takes a
// snapshot.
func (r resumed) canFollow(dbPath string) bool {
	salts, ok := walSalts(dbPath)
	return r.txid == 0 || !ok || salts == r.salts
}

// followed reports the same after the first capture, for what has happened before
// Litestream had its read transaction. The capture up to txid has not been uploaded.
func (r resumed) followed(db *litestream.DB, dbPath string, txid ltx.TXID) bool {
	if r.txid == 0 {
		return true
	}
	if txid <= r.txid {
		return r.canFollow(dbPath)
	}
	h, err := headerOf(db.LTXPath(0, r.txid+1, r.txid+1))
	return err == nil && r.salts == [2]uint32{h.WALSalt1, h.WALSalt2}
}

func headerOf(path string) (ltx.Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return ltx.Header{}, err
	}
	defer func() { _ = f.Close() }()
	h, _, err := ltx.PeekHeader(f)
	return h, err
}

// walSalts reads the salts of a database's WAL, which is safe at any time: they stand
// in its header, https://www.sqlite.org/fileformat.html#the_write_ahead_log.
func walSalts(dbPath string) (salts [2]uint32, ok bool) {
	f, err := os.Open(dbPath + "-wal")
	if err != nil {
		return salts, false
	}
	defer func() { _ = f.Close() }()
	var header [litestream.WALHeaderSize]byte
	if _, err := io.ReadFull(f, header[:]); err != nil {
		return salts, false
	}
	return [2]uint32{binary.BigEndian.Uint32(header[16:]), binary.BigEndian.Uint32(header[20:])}, true
}

// forget drops what was captured and can't be followed by what comes next.
func (r *Replicator) forget(db *litestream.DB) error {
	if err := r.noteDropping(db); err != nil {
		return fmt.Errorf("note what the database goes on from: %w", err)
	}
	if err := os.RemoveAll(db.LTXDir()); err != nil {
		return fmt.Errorf("drop what was captured before: %w", err)
	}
	return nil
}
