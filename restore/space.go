package restore

import (
	"fmt"
	"syscall"

	"github.com/slashacom/slasha-init/internal/disk"
)

// spare is what is left free beside a restored database, for its WAL and for what
// Litestream keeps, in bytes.
const spare = 1 << 20

// checkSpace fails when the folder's file system has no room for so many bytes.
func checkSpace(dir string, need int64) error {
	free, _, err := disk.Free(dir)
	if err != nil || need == 0 {
		return nil //nolint:nilerr // not known; a write finds a disk that is full
	}
	if free >= need+spare {
		return nil
	}
	err = fmt.Errorf("restoring the database needs %d MB of free disk, and %s has %d MB free", (need+spare)>>20+1, dir, free>>20)
	return &Failure{Sentence: err.Error(), Err: syscall.ENOSPC}
}
