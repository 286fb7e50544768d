// Package disk reports how much room a file system has, and which file on it one is.
package disk

import (
	"io/fs"
	"syscall"
)

// Free returns how many bytes of the folder's file system this process may still
// take, and how many the file system has in all. What is kept back for root does not
// count as free. The error is that of statfs(2).
func Free(dir string) (free, total int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	size := int64(st.Bsize) //nolint:unconvert // a different type on other architectures
	return int64(st.Bavail) * size, int64(st.Blocks) * size, nil
}

// Identity is what a file keeps when it is moved, and what no other file has meanwhile:
// unlike os.SameFile's answer, it can be noted. Both numbers are 0 where fi is not the
// system's.
func Identity(fi fs.FileInfo) (device, inode uint64) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev), st.Ino //nolint:unconvert // a different type on other architectures
	}
	return 0, 0
}
