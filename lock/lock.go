// Package lock keeps a second instance off a volume: one leads, that is restores
// and replicates the database, and the others wait or follow.
//
// It is an advisory lock on a file (flock(2)), which ends with the process that has
// it, however that ends. It is not one on the database: closing a file drops a
// process's POSIX locks on it, and Litestream's are among those.
package lock

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// HeldError says that another process has the lock.
type HeldError struct {
	By string // what the holder said of itself, "" if nothing
}

func (e *HeldError) Error() string {
	if e.By == "" {
		return "another instance holds this database"
	}
	return "another instance holds this database: " + e.By
}

// Lock is held until it is released or the process ends.
type Lock struct {
	file  *os.File
	alone bool
}

// Try takes the lock at the path, and notes in the file who has it. It does not
// wait: the error is a *HeldError when another process has it, alone or shared. Any
// other error says that there can be no lock here, as on some network file systems.
func Try(path, who string) (*Lock, error) {
	l, err := take(path, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	// Only for people: who can't write it holds the lock all the same.
	if err := l.file.Truncate(0); err == nil {
		_, _ = l.file.WriteAt([]byte(who+"\n"), 0)
	}
	return l, nil
}

// Share takes the lock as one of several. It does not wait either.
func Share(path string) (*Lock, error) { return take(path, syscall.LOCK_SH) }

func take(path string, how int) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
		if errors.Is(err, os.ErrPermission) {
			f, err = os.Open(path) // another user's; reading is enough to lock it
		}
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
		case isAt(f, path):
			return &Lock{file: f, alone: how == syscall.LOCK_EX}, nil
		}
		_ = f.Close() // removed by who had it, between our two steps
	}
}

// isAt reports whether a file is still the one at the path.
func isAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

// Release gives the lock back. Who has it alone removes the file first: whoever has
// opened it meanwhile finds that it is no longer at its path.
func (l *Lock) Release() error {
	var err error
	if l.alone {
		err = os.Remove(l.file.Name())
	}
	return errors.Join(err, l.file.Close())
}

// longestNote is how much of the file is told, in bytes.
const longestNote = 200

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
