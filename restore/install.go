package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/slashacom/slasha-init/internal/durable"
)

// What may stand beside a database and belongs to it. SQLite would apply a
// leftover -wal or -journal to a database that it does not belong to, and
// Litestream would go on counting from a leftover folder of its own.
var companions = []string{"-wal", "-shm", "-journal"}

// leftover returns a file that would be taken for part of a database at path, or
// "" when there is none.
func leftover(path string) string {
	for _, suffix := range companions {
		if _, err := os.Lstat(path + suffix); err == nil {
			return path + suffix
		}
	}
	return ""
}

// install moves a verified file to the database's path, where no database is.
//
// The system calls, in order: fchown, fchmod and fsync of the new file, rename
// of each leftover into our folder, fsync of the folder, rename of the new file,
// fsync of the folder. A crash before the last rename leaves no database, and
// the next start restores again; one after it leaves the whole new one.
func install(cfg Config, file string) error {
	dbPath := cfg.Place.DBPath
	dir := filepath.Dir(dbPath)
	if err := cfg.Place.MakeFolder(dir); err != nil {
		return err
	}
	like := dbPath // an empty file counts as no database, but its owner and mode were chosen
	if _, err := os.Stat(like); err != nil {
		like = dir
	}
	if err := own(file, like); err != nil {
		return fmt.Errorf("cannot finish the restored file: %w", err)
	}
	if err := setAsideLeftovers(cfg); err != nil {
		return err
	}
	if err := os.Rename(file, dbPath); err != nil {
		return fmt.Errorf("cannot move the restored database into place: %w", err)
	}
	if err := durable.SyncDir(dir); err != nil {
		return fmt.Errorf("cannot sync the database's folder: %w", err)
	}
	return nil
}

// own gives the file the owner of the folder, or of the file that it is to
// replace, and those of its permissions that make sense for a file, and brings it
// to the disk.
func own(file, like string) error {
	fi, err := os.Stat(like)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		// Only root can give files away, and in a user namespace not to everybody.
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, os.ErrPermission) && !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
	mode := fi.Mode().Perm() & 0o666
	if fi.Mode()&os.ModeSticky != 0 { // everybody may make files there, but may not change those of others
		mode &^= 0o022
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// setAsideLeftovers moves what an earlier database left behind into our folder.
// Nothing is deleted: a WAL may hold the only copy of somebody's last commits.
func setAsideLeftovers(cfg Config) error {
	aside := newAside(cfg.Place)
	moved := 0
	for _, path := range belongings(cfg.Place.DBPath) {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("cannot look at a leftover: %w", err)
		}
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return fmt.Errorf("cannot make a folder for leftovers: %w", err)
		}
		if err := os.Rename(path, filepath.Join(aside, filepath.Base(path))); err != nil {
			return fmt.Errorf("cannot set a leftover aside: %w", err)
		}
		cfg.Logger.Warn("set aside what an earlier database left behind", "path", path, "to", aside)
		moved++
	}
	if moved == 0 {
		return nil
	}
	if err := durable.SyncDir(aside); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(cfg.Place.DBPath))
}
