package volume

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/slashacom/slasha-init/internal/durable"
)

// Folder is our folder beside a database, .NAME.slasha, and names each file in it. What
// is written there is the business of the one who gets the file:
//
//	lead.lock, web.lock, follow.lock  volume: who leads, who serves, who follows
//	control.sock                      control: the socket for sync and restore
//	lease.json                        replica/lease: what this volume held last
//	adopted.json                      lineage: what a restored database continues
//	new-line                          lineage: a snapshot of a new line is due
//	restored.json                     restore: requests carried out, a swap under way
//	restore/                          restore: where a database is put together
//	aside/                            restore: databases that were set aside
//	verified.json, drill/             restore: the newest drill, and its scratch
type Folder struct{ path string }

// FolderOf returns the folder of the database at a path. It makes nothing.
func FolderOf(dbPath string) Folder {
	dir, name := filepath.Split(dbPath)
	return Folder{filepath.Join(dir, "."+name+".slasha")}
}

// Path is where the folder is, or will be.
func (f Folder) Path() string { return f.path }

// ControlSocket is the default path of the control socket.
func (f Folder) ControlSocket() string { return filepath.Join(f.path, "control.sock") }

// Lease is what this volume remembers of the lease that it held last.
func (f Folder) Lease() durable.Note { return f.note("lease.json") }

// Adopted is what the database goes on from, where nothing else beside it says so.
func (f Folder) Adopted() durable.Note { return f.note("adopted.json") }

// NewLine is there as long as the replica lacks a snapshot of a new line.
func (f Folder) NewLine() durable.Note { return f.note("new-line") }

// Restored is which requests for a restore were carried out, and the swap under way.
func (f Folder) Restored() durable.Note { return f.note("restored.json") }

// Verified is the outcome of the newest drill.
func (f Folder) Verified() durable.Note { return f.note("verified.json") }

// Scratch is the folder in which a database is put together.
func (f Folder) Scratch() string { return filepath.Join(f.path, "restore") }

// Aside is the folder of the databases that were set aside.
func (f Folder) Aside() string { return filepath.Join(f.path, "aside") }

// Drill is the folder in which a drill puts a database together.
func (f Folder) Drill() string { return filepath.Join(f.path, "drill") }

func (f Folder) note(name string) durable.Note {
	return durable.NoteAt(filepath.Join(f.path, name)).Making(f.Make)
}

// Make makes the folder, inside one that exists. The app's user may pass through it to
// the socket, and whoever may write the folder around it may write this one too: an
// instance of another user takes over from the one that made it.
func (f Folder) Make() error {
	mode := os.FileMode(0o711)
	if fi, err := os.Stat(filepath.Dir(f.path)); err == nil {
		for _, class := range []os.FileMode{0o070, 0o007} {
			if writers(fi)&class != 0 {
				mode |= class
			}
		}
	}
	if err := os.Mkdir(f.path, mode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Chmod(f.path, mode); err != nil && !errors.Is(err, os.ErrPermission) {
		return err // if the folder is another user's, that one has set its mode
	}
	return nil
}

// MayReplace reports whether a user may put another file in the database's place:
// instances on one volume can be of several users.
func (f Folder) MayReplace(uid, gid uint32) bool {
	fi, err := os.Stat(filepath.Dir(f.path))
	if err != nil {
		return false
	}
	may := writers(fi)
	owner, ok := fi.Sys().(*syscall.Stat_t)
	return may&0o002 != 0 || ok && (may&0o020 != 0 && owner.Gid == gid || may&0o200 != 0 && owner.Uid == uid)
}

// writers are the bits of those who may put a file into the place of another's in a
// folder. In one like /tmp, with the sticky bit, only owners may.
func writers(fi os.FileInfo) os.FileMode {
	if fi.Mode()&os.ModeSticky != 0 {
		return fi.Mode() & 0o200
	}
	return fi.Mode() & 0o222
}
