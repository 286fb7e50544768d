package replicate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// Which file is replicated, and what of it may follow what the replica has: a
// database appears late, is replaced, or comes back from a time when nobody looked.

// follow opens the database when it is there, and again when the app has put
// another file into its place: Litestream would go on with the old one, for ever
// and without a word.
func (r *Replicator) follow(ctx context.Context) error {
	if len(r.leaked) > 0 {
		return errLeaked
	}
	fi, err := os.Stat(r.cfg.DBPath)
	if errors.Is(err, os.ErrNotExist) {
		if r.gone++; r.db != nil && r.gone > 1 {
			return fmt.Errorf("%s %w", r.cfg.DBPath, errDeleted)
		}
		return nil // not yet, or just now being replaced
	} else if err != nil {
		return fmt.Errorf("look at database: %w", err)
	}
	r.gone = 0
	if r.db != nil {
		was := r.db.FileInfo()
		if was == nil || os.SameFile(was, fi) {
			return nil
		}
		r.cfg.Logger.Warn("the database file was replaced by another: replicating the new one from a fresh snapshot")
		if err := r.abandon(ctx); err != nil {
			return err
		}
	}
	pageSize, err := pageSizeOf(r.cfg.DBPath, fi)
	if err != nil || pageSize == 0 {
		return err
	}
	if !r.admitted && r.cfg.Admit != nil {
		if err := r.cfg.Admit(ctx); err != nil {
			return err
		}
	}
	r.admitted = true
	return r.open(ctx, pageSize)
}

// errLeaked says that a bug has left the database open.
var errLeaked = errors.New("replication was ended by a bug that has left the database open: start the container again")

// errDeleted says that what is replicated is at no path any more.
var errDeleted = errors.New("was deleted while the app had it open: what the app writes now is lost when it ends, also for its backup")

// errNoDatabase says that the file at the path can't be replicated.
var errNoDatabase = errors.New("is not an SQLite database, or an encrypted one: it can't be replicated")

// pageSizeOf returns the page size of a database, and 0 as long as the file is none
// yet. An app makes the file first and chooses page size and encoding with its
// first write; Litestream's opening of an empty file would choose for it. Only
// called while Litestream does not have the file open.
func pageSizeOf(path string, fi os.FileInfo) (uint32, error) {
	const magic = "SQLite format 3\x00" // https://www.sqlite.org/fileformat.html#the_database_header
	if fi.Size() < 100 {
		return 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("look at database: %w", err)
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, len(magic)+2)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, fmt.Errorf("look at database: %w", err)
	}
	switch string(head[:len(magic)]) {
	case magic:
		size := uint32(binary.BigEndian.Uint16(head[len(magic):]))
		if size == 1 {
			size = 65536
		}
		return size, nil
	case string(make([]byte, len(magic))):
		return 0, nil // room for one
	}
	return 0, fmt.Errorf("%s %w", path, errNoDatabase)
}

// open readies Litestream, with all of its own monitors off.
func (r *Replicator) open(ctx context.Context, pageSize uint32) error {
	r.client = &acknowledged{Client: r.cfg.Client, got: r.got}
	db := litestream.NewDB(r.cfg.DBPath)
	db.MonitorInterval = 0
	replica := litestream.NewReplicaWithClient(db, r.client)
	replica.MonitorEnabled = false
	db.Replica = replica

	store := litestream.NewStore([]*litestream.DB{db}, litestream.DefaultCompactionLevels)
	store.CompactionMonitorEnabled = false
	store.L0RetentionCheckInterval = 0 // DB.Compact enforces it after each compaction
	store.HeartbeatCheckInterval = 0
	store.SnapshotInterval = r.cfg.SnapshotInterval
	store.SnapshotRetention = r.cfg.Retention
	store.SetShutdownSyncTimeout(0) // one try: Finish has tried before
	if err := store.Open(ctx); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if err := r.begin(ctx, db, pageSize); err != nil {
		return err
	}
	r.other = false
	r.store, r.db = store, db
	return nil
}

// begin makes sure that what is captured next can follow what the replica has.
func (r *Replicator) begin(ctx context.Context, db *litestream.DB, pageSize uint32) error {
	r.resumed = resumed{}
	_, captured, err := db.MaxLTX()
	if err != nil {
		return err
	}
	before, err := r.lastPageSize(ctx, db, captured)
	if err != nil {
		return fmt.Errorf("look at what was uploaded last: %w", err)
	}
	if before != 0 && before != pageSize {
		r.cfg.Logger.Warn("the database's page size has changed: a fresh snapshot follows, as pages of two sizes can't be merged", "from", before, "to", pageSize)
		if r.cfg.OnNewLine != nil {
			if err := r.cfg.OnNewLine(); err != nil {
				return fmt.Errorf("note that a snapshot is due: %w", err)
			}
		}
		// Nor can the WAL be read from where the last capture ended.
		if err := r.forget(db); err != nil {
			return err
		}
		r.anchor, captured = true, 0
	}
	if captured != 0 && r.baseline == "" {
		r.resumed = resumeFrom(db, captured)
		if !r.resumed.canFollow(r.cfg.DBPath) {
			if err := r.forget(db); err != nil {
				return err
			}
			r.cfg.Logger.Warn(errResetUnseen.Error() + ": replicating from a fresh snapshot")
			captured = 0
		}
	}
	if r.anchor {
		if err := Seal(ctx, r.client, r.cfg.Logger); errors.Is(err, ErrUnsound) {
			r.cfg.Logger.Warn("not all of what the replica had before can be kept for long", "error", err)
		} else if err != nil {
			return err
		}
	}
	if r.other || captured == 0 {
		r.baseline, err = breakOff(ctx, db)
	}
	return err
}

// lastPageSize returns the page size of what was captured last, or else of what the
// replica has last, and 0 where there is nothing. It also finds the baseline that a
// start before this one left.
func (r *Replicator) lastPageSize(ctx context.Context, db *litestream.DB, captured ltx.TXID) (uint32, error) {
	if captured != 0 {
		path := db.LTXPath(0, captured, captured)
		f, err := os.Open(path)
		if err != nil {
			return 0, nil //nolint:nilerr // what is wrong with it, Litestream finds out
		}
		defer func() { _ = f.Close() }()
		h, _, err := ltx.PeekHeader(f)
		switch {
		case err != nil:
			return 0, nil //nolint:nilerr // the same
		case h.WALSalt1 != 0 || h.WALSalt2 != 0:
			return h.PageSize, nil
		}
		r.baseline = path
	}
	newest, err := newestOfAll(ctx, db.Replica)
	if err != nil || newest.MaxTXID == 0 {
		return 0, err
	}
	rc, err := r.client.OpenLTXFile(ctx, newest.Level, newest.MinTXID, newest.MaxTXID, 0, ltx.HeaderSize)
	if err != nil {
		return 0, err
	}
	defer func() { _ = rc.Close() }()
	h, _, err := ltx.PeekHeader(rc)
	if err != nil {
		return 0, nil //nolint:nilerr // a damaged file has no say here
	}
	return h.PageSize, nil
}

// begun is called when something has been captured: what only stood for the
// replica's newest goes, and compaction may begin.
func (r *Replicator) begun(pos ltx.Pos) error {
	if r.baseline != "" {
		if r.baseline == r.db.LTXPath(0, pos.TXID, pos.TXID) {
			return nil // nothing yet
		}
		if err := os.Remove(r.baseline); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("capture: %w", err)
		}
		r.baseline = ""
	}
	r.openForCompaction(r.store, r.db)
	return nil
}

// mend makes a failed turn's error one that the next turn can get over. What was
// captured and is neither here nor in the replica can't be uploaded any more: a
// bucket whose newest files were deleted, or a folder of Litestream's that was
// cleared. A snapshot has it all.
func (r *Replicator) mend(ctx context.Context, err error) error {
	if why := r.tooMuch(); why != "" {
		r.cfg.Logger.Error("what was captured and can't be uploaded is dropped: when the replica is back it gets a fresh snapshot", "because", why)
		r.dropped = true
		return errors.Join(err, r.abandon(ctx))
	}
	if errors.Is(err, errResetUnseen) {
		r.cfg.Logger.Warn(err.Error() + ": replicating from a fresh snapshot")
		r.asks.hurry()
		return r.abandon(ctx)
	}
	var local *litestream.LTXError
	if !errors.As(err, &local) || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, litestream.ErrLTXCorrupted) {
		return err
	}
	r.cfg.Logger.Warn("the replica and what was captured here don't meet any more: replicating from a fresh snapshot", "error", err)
	r.asks.hurry()
	return r.abandon(ctx)
}

// abandon lets go of a database whose file is no longer at its path, and drops
// what was captured of it and not uploaded. Litestream reads the WAL by name, so
// what it captures from now on, and may have captured just before, mixes the old
// file with the new one's WAL.
func (r *Replicator) abandon(ctx context.Context) error {
	if err := r.noteDropping(r.db); err != nil {
		return fmt.Errorf("note what the database goes on from: %w", err)
	}
	r.openForCompaction(nil, nil)
	r.client.gone.Store(true)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := r.store.Close(ctx); err != nil {
		r.cfg.Logger.Debug("closing the replaced database", "error", err)
	}
	dir := r.db.LTXDir()
	r.store, r.db, r.synced, r.other, r.admitted = nil, nil, false, true, false
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("drop what was captured of the replaced database: %w", err)
	}
	return nil
}
