// Package durable writes small files that a crash leaves as they were, or as they
// were to be.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at the path, or makes it, with the permissions perm
// whatever the umask is. When it returns nil the contents and the name are on the
// disk; on an error, and after a crash, the old file is there, or the new one. Two at
// the same time are the caller's to prevent.
//
//	unlink path.tmp (of a crash, maybe of another user, or a link to elsewhere)
//	open   path.tmp, which must be new
//	write, fchmod, fsync, close
//	rename path.tmp, path
//	fsync  the folder
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir returns when what was made, renamed and removed in a folder is on the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
