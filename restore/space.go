package restore

import (
	"context"
	"fmt"
	"io"
	"syscall"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// databaseSize reads from the last file of a plan how large the database is
// that the plan leads to, in bytes. It returns 0 for a file whose head says
// nothing that can be right: that it is damaged is found when it is restored.
func databaseSize(ctx context.Context, client litestream.ReplicaClient, last *ltx.FileInfo) (int64, error) {
	rc, err := client.OpenLTXFile(ctx, last.Level, last.MinTXID, last.MaxTXID, 0, ltx.HeaderSize)
	if err != nil {
		return 0, err
	}
	defer func() { _ = rc.Close() }()
	head := make([]byte, ltx.HeaderSize)
	if _, err := io.ReadFull(rc, head); err != nil {
		return 0, nil //nolint:nilerr // too short to be a file: damaged
	}
	var h ltx.Header
	if h.UnmarshalBinary(head) != nil || !ltx.IsValidPageSize(h.PageSize) {
		return 0, nil
	}
	return int64(h.Commit) * int64(h.PageSize), nil
}

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
