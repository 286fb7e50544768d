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

	"github.com/slashacom/slasha-init/internal/levels"
)

// session is one database file that Litestream has open. It ends in one of the ways at
// the top of ending.go. The next one is a new value.
type session struct {
	cfg    Config // of the Replicator
	client *acknowledged
	store  *litestream.Store
	db     *litestream.DB
	before handover // from the session before

	baseline string  // file that stands for the replica's newest; "" from the first capture on. See breakOff
	resumed  resumed // what the first capture is to follow; the zero value after it
	anchor   bool    // the next upload is to be followed by a snapshot

	ending  bool      // what was captured is being dropped
	synced  bool      // an upload or a comparison has succeeded
	unsure  time.Time // when the WAL was read for an upload that failed, or whose answer was lost
	missing int       // looks in a row that found no file
}

// openSession opens the database at the path, or returns nil as long as there is
// none. All of Litestream's own monitors are off. What the session before has left
// stays to be handed over where there is an error.
func openSession(ctx context.Context, cfg Config, before handover) (*session, error) {
	pageSize, err := pageSizeOf(cfg.DBPath)
	if err != nil || pageSize == 0 {
		return nil, err
	}
	if err := cfg.Line.Admit(ctx); err != nil {
		return nil, err
	}
	s := &session{cfg: cfg, before: before, unsure: before.unsure}
	s.client = &acknowledged{Client: cfg.Client, line: cfg.Line}
	s.db = litestream.NewDB(cfg.DBPath)
	s.db.MonitorInterval = 0
	s.db.Replica = litestream.NewReplicaWithClient(s.db, s.client)
	s.db.Replica.MonitorEnabled = false

	s.store = litestream.NewStore([]*litestream.DB{s.db}, litestream.DefaultCompactionLevels)
	s.store.CompactionMonitorEnabled = false
	s.store.L0RetentionCheckInterval = 0 // DB.Compact enforces it after each compaction
	s.store.HeartbeatCheckInterval = 0
	s.store.SnapshotInterval = cfg.SnapshotInterval
	s.store.SnapshotRetention = cfg.Retention
	s.store.SetShutdownSyncTimeout(0) // one try: Finish has tried before
	if err := s.store.Open(ctx); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := s.begin(ctx, pageSize); err != nil {
		s.close(ctx) // Litestream opens the file with the first capture, so this closes none
		return nil, err
	}
	return s, nil
}

// pageSizeOf returns the page size of a database in bytes, and 0 as long as there is
// no file, or it is not a database yet. An app makes the file first and chooses page
// size and encoding with its first write; Litestream's opening of an empty file would
// choose for it. Only call it while Litestream does not have the file open.
func pageSizeOf(path string) (uint32, error) {
	const magic = "SQLite format 3\x00" // https://www.sqlite.org/fileformat.html#the_database_header
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, nil // not yet, or just now being replaced
	case err != nil:
		return 0, fmt.Errorf("look at database: %w", err)
	case fi.Size() < 100:
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
		return 0, nil // room for a database
	}
	return 0, fmt.Errorf("%s %w", path, errNoDatabase)
}

// begin makes sure that what is captured next can follow what the replica has.
func (s *session) begin(ctx context.Context, pageSize uint32) error {
	if s.before.anew {
		if err := s.removeCaptured(); err != nil { // the session before may have failed to
			return err
		}
	}
	had, err := lookAtCaptured(s.db)
	if err != nil {
		return err
	}
	before, err := s.pageSizeBefore(ctx, had)
	if err != nil {
		return fmt.Errorf("look at what was uploaded last: %w", err)
	}
	if before != 0 && before != pageSize {
		s.cfg.Logger.Warn("the database's page size has changed: a fresh snapshot follows, as pages of two sizes can't be merged", "from", before, "to", pageSize)
		if err := s.cfg.Line.Begin(); err != nil {
			return fmt.Errorf("note that a snapshot is due: %w", err)
		}
		// The WAL can't be read from where the last capture ended, either.
		if err := s.dropEarlier(); err != nil {
			return err
		}
		had = captured{}
	}
	if had.newest != 0 {
		s.resumed = had.resume()
		if !s.resumed.canFollow(s.cfg.DBPath) {
			if err := s.dropEarlier(); err != nil {
				return err
			}
			s.cfg.Logger.Warn(errResetUnseen.Error() + ": replicating from a fresh snapshot")
			s.resumed, had = resumed{}, captured{}
		}
	}
	s.anchor = s.cfg.Line.IsNew()
	if s.anchor {
		if err := Seal(ctx, s.client, s.cfg.Logger); errors.Is(err, ErrUnsound) {
			s.cfg.Logger.Warn("part of what the replica had before can't be kept for long", "error", err)
		} else if err != nil {
			return err
		}
	}
	s.baseline = had.baseline
	if had == (captured{}) {
		s.baseline, err = breakOff(ctx, s.db)
	}
	return err
}

// pageSizeBefore returns the page size of what was captured last, or else of what
// the replica has last, in bytes, and 0 where neither says one.
func (s *session) pageSizeBefore(ctx context.Context, had captured) (uint32, error) {
	if had.newest != 0 {
		return had.header.PageSize, nil
	}
	files, err := levels.List(ctx, s.client, false)
	if err != nil {
		return 0, err
	}
	newest := levels.Newest(files[:]...)
	if newest.MaxTXID == 0 {
		return 0, nil
	}
	h, err := headerThere(ctx, s.client, newest)
	return h.PageSize, err
}

// isReplaced looks at the path. It returns true when another file is there than the
// one that is open.
func (s *session) isReplaced() (bool, error) {
	fi, err := os.Stat(s.cfg.DBPath)
	if errors.Is(err, os.ErrNotExist) {
		if s.missing++; s.missing > 1 {
			return false, fmt.Errorf("%s %w", s.cfg.DBPath, errDeleted)
		}
		return false, nil // the app may be replacing it just now
	} else if err != nil {
		return false, fmt.Errorf("look at database: %w", err)
	}
	s.missing = 0
	was := s.db.FileInfo() // nil until the first capture
	return was != nil && !os.SameFile(was, fi), nil
}

// isThere reports whether the file that is open is still the one at the path.
func (s *session) isThere() bool {
	was := s.db.FileInfo()
	fi, err := os.Stat(s.cfg.DBPath)
	return was == nil || err == nil && os.SameFile(was, fi)
}

// hasDropped reports whether an earlier session dropped something for want of room,
// and no snapshot has been uploaded since.
func (s *session) hasDropped() bool { return s.before.dropped && !s.synced }
