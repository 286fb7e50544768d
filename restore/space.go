package restore

import (
	"fmt"
	"syscall"
)

// spare is what is left free beside a restored database, for its WAL and for what
// Litestream keeps, in bytes.
const spare = 1 << 20

// checkSpace fails when the folder's file system has no room for so many bytes.
func checkSpace(dir string, need int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil || need == 0 {
		return nil //nolint:nilerr // not known; a disk that is full is found when it is
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // other types on other architectures
	if free >= need+spare {
		return nil
	}
	err := fmt.Errorf("the database needs %d MB beside it to be restored, and %s has %d MB free", (need+spare)>>20+1, dir, free>>20)
	return &Failure{Sentence: err.Error(), Err: syscall.ENOSPC}
}
