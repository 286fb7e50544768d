package replicate

import (
	"fmt"
	"os"

	"github.com/slashacom/slasha-init/internal/disk"
)

// While the replica is out of reach, what is captured piles up beside the
// database. It is worth keeping as long as a fresh snapshot would be more to
// upload, and must never take the app's last room.
const (
	// leastBacklog, in bytes, is always kept if there is room.
	leastBacklog = 64 << 20
	// scarce is the part of the disk that must be free for the backlog to grow: one in
	// so many.
	scarce = 20
	// small, in bytes: a smaller backlog is not worth dropping, however full the disk
	// is.
	small = 1 << 20
)

// tooMuch returns why the backlog is to be dropped, or "".
func (s *session) tooMuch() string {
	var backlog int64
	files, err := localFiles(s.db)
	if err != nil {
		return ""
	}
	acked := s.cfg.Line.Acked() // Litestream keeps those a while
	for _, f := range files {
		if f.txid > acked {
			backlog += f.size
		}
	}
	limit := int64(leastBacklog)
	if fi, err := os.Stat(s.cfg.DBPath); err == nil {
		limit = max(limit, fi.Size())
	}
	if backlog > limit {
		return fmt.Sprintf("it takes %d MB, more than the database and more than %d MB", backlog>>20, leastBacklog>>20)
	}
	if backlog < small {
		return ""
	}
	free, total, err := disk.Free(s.db.LTXLevelDir(0))
	if err != nil || free >= total/scarce {
		return ""
	}
	return fmt.Sprintf("it takes %d MB, and less than 5%% of the disk is free", backlog>>20)
}
