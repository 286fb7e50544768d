// Package durable writes small files. A crash leaves either the old file or the new one.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Note is a small file of ours in a folder. The folder is opened for each use, and the
// file is reached through it (see os.Root): a link in the folder can't lead
// outside. Whoever makes a Note knows its folder and name; whoever gets it decides what
// is written there.
type Note struct {
	path string
	room func() error // makes the folder; nil where it exists
}

// NoteAt returns the note at a path, in a folder that exists. It opens nothing.
func NoteAt(path string) Note { return Note{path: path} }

// Making returns the note in a folder that need not exist: room makes it, and is
// called before each write.
func (n Note) Making(room func() error) Note { return Note{n.path, room} }

// Path is where the note is.
func (n Note) Path() string { return n.path }

// Dir is the folder that the note is in.
func (n Note) Dir() string { return filepath.Dir(n.path) }

// Read returns what the note says. The error is fs.ErrNotExist where there is none.
func (n Note) Read() (data []byte, err error) {
	err = n.in(func(dir *os.Root, name string) error {
		data, err = dir.ReadFile(name)
		return err
	})
	if errors.Is(err, fs.ErrPermission) { // a folder that this user may only pass through
		return os.ReadFile(n.path)
	}
	return data, err
}

// Exists reports whether there is a note. One that can't be looked at counts as none.
func (n Note) Exists() bool {
	err := n.in(func(dir *os.Root, name string) error {
		_, err := dir.Stat(name)
		return err
	})
	if errors.Is(err, fs.ErrPermission) {
		_, err = os.Stat(n.path)
	}
	return err == nil
}

// Write replaces the note, or makes it. Everybody may read it: no note holds a secret.
// See WriteFile for what a crash leaves.
func (n Note) Write(data []byte) error {
	if n.room != nil {
		if err := n.room(); err != nil {
			return err
		}
	}
	return WriteFile(n.path, data, 0o644)
}

// Remove removes the note. If there is none, that is not an error.
func (n Note) Remove() error {
	err := n.in(func(dir *os.Root, name string) error { return dir.Remove(name) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (n Note) in(do func(dir *os.Root, name string) error) error { return InFolder(n.path, do) }

// InFolder opens the folder of the file at a path for one step, and passes it on with
// the file's name in it. Apps may replace their whole data folder by a rename, and a
// folder that stays open would be the old one.
func InFolder(path string, do func(dir *os.Root, name string) error) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(do(dir, filepath.Base(path)), dir.Close())
}

// WriteFile replaces the file at the path, or makes it, with the permissions perm
// whatever the umask is. When it returns nil the contents and the name are on the
// disk; on an error, and after a crash, the old file is there, or the new one. The
// caller sees to it that nobody else writes the file at the same time.
//
//	open   the folder; what follows is relative to it
//	unlink name.tmp (of a crash, maybe of another user, or a link to elsewhere)
//	open   name.tmp, which must be new
//	write, fchmod, fsync, close
//	rename name.tmp, name
//	fsync  the folder
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return InFolder(path, func(dir *os.Root, name string) error { return write(dir, name, data, perm) })
}

func write(dir *os.Root, name string, data []byte, perm fs.FileMode) error {
	tmp := name + ".tmp"
	if err := dir.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := dir.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
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
		return errors.Join(err, dir.Remove(tmp))
	}
	if err := dir.Rename(tmp, name); err != nil {
		return errors.Join(err, dir.Remove(tmp))
	}
	return syncRoot(dir)
}

func syncRoot(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// SyncDir returns when what was made, renamed and removed in a folder is on the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
