package replicate

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// While the replica is out of reach, what is captured piles up beside the
// database. It is worth keeping as long as a fresh snapshot would be more to
// upload, and never the app's last room.
const (
	// leastBacklog, in bytes, is always kept if there is room.
	leastBacklog = 64 << 20
	// scarce is which part of the disk must be free for what piles up to go on.
	scarce = 20
	// small, in bytes, is not worth dropping however full the disk is.
	small = 1 << 20
)

// tooMuch says why what was captured is to be dropped, or "".
func (r *Replicator) tooMuch() string {
	if r.db == nil {
		return ""
	}
	var backlog int64
	entries, err := os.ReadDir(r.db.LTXLevelDir(0))
	if err != nil {
		return ""
	}
	acked := r.got.get().Acked // Litestream keeps those a while
	for _, e := range entries {
		_, txid, err := ltx.ParseFilename(e.Name())
		if err != nil || txid <= acked {
			continue
		}
		if fi, err := e.Info(); err == nil {
			backlog += fi.Size()
		}
	}
	limit := int64(leastBacklog)
	if fi, err := os.Stat(r.cfg.DBPath); err == nil {
		limit = max(limit, fi.Size())
	}
	if backlog > limit {
		return fmt.Sprintf("it takes %d MB, more than the database and than %d MB", backlog>>20, leastBacklog>>20)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(r.db.LTXLevelDir(0), &st); err != nil || backlog < small {
		return ""
	}
	if st.Bavail < st.Blocks/scarce {
		return fmt.Sprintf("it takes %d MB, and less than 5%% of the disk is free", backlog>>20)
	}
	return ""
}

// noteDropping calls Config.Dropping. On a disk that is full even for a note, the
// newest file that is going to be dropped makes room for it: what the WAL no longer
// shows as its continuation leads to a snapshot, also after a crash right here.
func (r *Replicator) noteDropping(db *litestream.DB) error {
	if r.cfg.Dropping == nil {
		return nil
	}
	err := r.cfg.Dropping(r.got.get())
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	minTXID, maxTXID, listErr := db.MaxLTX()
	if listErr != nil || maxTXID == 0 {
		return err
	}
	if removeErr := os.Remove(db.LTXPath(0, minTXID, maxTXID)); removeErr != nil {
		return errors.Join(err, removeErr)
	}
	return r.cfg.Dropping(r.got.get())
}
