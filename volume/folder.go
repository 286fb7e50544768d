package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/slashacom/slasha-init/internal/durable"
)

// Folder is our folder beside a database, .NAME.slasha, and names each file in it. The
// package that gets a file decides what is written there:
//
//	lead.lock, web.lock, follow.lock  volume: who leads, who serves, who follows
//	control.sock                      control: the socket for sync and restore
//	lease.json                        replica/lease: what this volume held last
//	adopted.json                      lineage: what a restored database continues
//	new-line                          lineage: a snapshot of a new line is due
//	restored.json                     restore: requests carried out, a swap under way
//	restore/                          restore: where a database is put together
//	restore/lock                      restore: keeps other people's restores out of it
//	aside/                            restore: databases that were set aside
//	verified.json, drill/             restore: the newest drill, and its scratch
//	*.tmp                             internal/durable: a note that is being written
type Folder struct{ path string }

// FolderOf returns the folder of the database at a path. It makes nothing.
func FolderOf(dbPath string) Folder {
	dir, name := filepath.Split(dbPath)
	return Folder{filepath.Join(dir, "."+name+".slasha")}
}

// Path is where the folder is, or will be.
func (f Folder) Path() string { return f.path }

// ControlSocket is the default path of the control socket.
func (f Folder) ControlSocket() string { return f.file("control.sock") }

// Lease is what this volume remembers of the lease that it held last.
func (f Folder) Lease() durable.Note { return f.note("lease.json") }

// Adopted is what a restored database continues, where nothing else beside it says so.
func (f Folder) Adopted() durable.Note { return f.note("adopted.json") }

// NewLine exists as long as the replica lacks a snapshot of a new line.
func (f Folder) NewLine() durable.Note { return f.note("new-line") }

// Restored is a list of the requests for a restore that were carried out, and the swap
// under way.
func (f Folder) Restored() durable.Note { return f.note("restored.json") }

// Verified is the outcome of the newest drill.
func (f Folder) Verified() durable.Note { return f.note("verified.json") }

// Scratch is the folder in which a database is put together.
func (f Folder) Scratch() string { return f.file("restore") }

// Aside is the folder of the databases that were set aside.
func (f Folder) Aside() string { return f.file("aside") }

// Drill is the folder in which a drill puts a database together.
func (f Folder) Drill() string { return f.file("drill") }

func (f Folder) note(name string) durable.Note {
	return durable.NoteAt(f.file(name)).Making(f.Make)
}

func (f Folder) file(name string) string { return filepath.Join(f.path, name) }

// MakeFolder makes the folder of a database where it does not exist yet, and what is
// above it. A new folder gets the owner of the folder around it.
func MakeFolder(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := MakeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make the database's folder: %w", err)
	}
	fi, err := os.Stat(parent)
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && os.Getuid() == 0 {
		_ = os.Chown(dir, int(st.Uid), int(st.Gid)) // may fail in a user namespace, where the folder still serves
	}
	return nil
}

// Make makes the folder, inside one that exists. The app's user may pass through it to
// the socket. Whoever may write the folder around it may write this one too, because an
// instance of another user may take over from the one that made it.
func (f Folder) Make() error {
	mode := os.FileMode(0o711)
	if fi, err := os.Stat(filepath.Dir(f.path)); err == nil {
		for _, class := range []os.FileMode{0o070, 0o007} {
			if writers(fi)&class != 0 {
				mode |= class
			}
		}
	}
	err := os.Mkdir(f.path, mode)
	if errors.Is(err, fs.ErrExist) {
		if fi, statErr := os.Stat(f.path); statErr == nil && !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: f.path, Err: syscall.ENOTDIR}
		}
	} else if err != nil {
		return err
	}
	if err := os.Chmod(f.path, mode); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err // another user's folder has got its mode from an instance of that user
	}
	return nil
}

// removeEmpty removes the folder if it is empty: then nothing has happened here.
func (f Folder) removeEmpty() { _ = syscall.Rmdir(f.path) }

// MayReplace reports whether a user may put another file in the database's place.
// Instances on one volume can run as several users.
func (f Folder) MayReplace(uid, gid uint32) bool {
	fi, err := os.Stat(filepath.Dir(f.path))
	if err != nil {
		return false
	}
	may := writers(fi)
	owner, ok := fi.Sys().(*syscall.Stat_t)
	return may&0o002 != 0 || ok && (may&0o020 != 0 && owner.Gid == gid || may&0o200 != 0 && owner.Uid == uid)
}

// writers are the mode bits of those who may replace any file in a folder. In a folder
// with the sticky bit, like /tmp, only owners may.
func writers(fi os.FileInfo) os.FileMode {
	if fi.Mode()&os.ModeSticky != 0 {
		return fi.Mode() & 0o200
	}
	return fi.Mode() & 0o222
}
