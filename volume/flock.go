package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/exit"
)

// HeldError says that another process holds the lock.
type HeldError struct {
	By string // how the holder described itself, "" if it did not
}

func (e *HeldError) Error() string {
	if e.By == "" {
		return "another instance holds this database"
	}
	return "another instance holds this database: " + e.By
}

// ExitCode is exit.Held.
func (e *HeldError) ExitCode() int { return exit.Held }

func isHeld(err error) bool {
	_, held := errors.AsType[*HeldError](err)
	return held
}

// Lock takes a lock alone for a person's restore, and notes in the file at the path who
// holds it. It does not wait: the error is a *HeldError when another process holds the
// lock. Where there can be no lock, Lock keeps nobody off. release removes the file.
func Lock(path string) (release func(), err error) {
	l, err := lockForPerson(path)
	if isHeld(err) {
		return nil, err
	}
	return l.release, nil
}

func lockForPerson(path string) (*flock, error) {
	return lockAlone(path, "slasha-init restore, "+Who())
}

// flock is an advisory lock on a file (flock(2)), held until it is released or the
// process ends, however that ends. It is not on the database: closing a file drops a
// process's POSIX locks on it, and Litestream's are among those. Nil is no lock.
type flock struct {
	file  *os.File
	path  string
	alone bool
}

// lockAlone takes the lock at the path, and notes in the file who holds it. It does not
// wait: the error is a *HeldError when another process holds the lock, alone or shared.
// Any other error says that there can be no lock here, as on some network file systems.
func lockAlone(path, who string) (*flock, error) {
	l, err := lock(path, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	// The note is only for people: an instance that can't write it holds the lock all
	// the same.
	if err := l.file.Truncate(0); err == nil {
		_, _ = l.file.WriteAt([]byte(who+"\n"), 0)
	}
	return l, nil
}

// lockShared takes the lock as one of several. It does not wait either.
func lockShared(path string) (*flock, error) { return lock(path, syscall.LOCK_SH) }

func lock(path string, how int) (*flock, error) {
	for {
		f, err := openLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			by := holder(f)
			_ = f.Close()
			return nil, &HeldError{By: by}
		case err != nil:
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		default:
			here, err := isAt(f, path)
			if here {
				return &flock{file: f, path: path, alone: how == syscall.LOCK_EX}, nil
			}
			if err != nil {
				_ = f.Close()
				return nil, err
			}
		}
		_ = f.Close() // its holder removed it between our two steps
	}
}

// openLock opens the file, or makes it, in its folder as that is now.
func openLock(path string) (f *os.File, err error) {
	err = durable.InFolder(path, func(dir *os.Root, name string) error {
		f, err = dir.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		return err
	})
	if errors.Is(err, fs.ErrPermission) {
		// The file or its folder is another user's. Reading is enough to lock it.
		return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	}
	return f, err
}

// isAt reports whether a file is still the one at the path. The error says that there
// is a link: somebody wants another file to be locked and written.
func isAt(f *os.File, path string) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(path)
	if err != nil {
		return false, nil //nolint:nilerr // it is gone
	}
	if there.Mode()&os.ModeSymlink != 0 {
		return false, fmt.Errorf("lock %s: %w", path, syscall.ELOOP)
	}
	return os.SameFile(mine, there), nil
}

// release gives the lock back. A holder that has it alone removes the file first:
// whoever has opened the file meanwhile finds that it is no longer at its path.
func (l *flock) release() {
	if l == nil {
		return
	}
	if here, _ := isAt(l.file, l.path); here && l.alone {
		_ = durable.InFolder(l.path, func(dir *os.Root, name string) error { return dir.Remove(name) })
	}
	_ = l.file.Close()
}

// longestNote is how much of a holder's note is read, in bytes.
const longestNote = 200

// holder reads who holds the lock, without control characters.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, longestNote))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
}
