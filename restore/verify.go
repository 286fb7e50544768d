package restore

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "github.com/mattn/go-sqlite3" // the SQLite that judges what was restored; used in this file alone
	"golang.org/x/sys/unix"
)

// DamagedError says that SQLite does not accept a restored file.
type DamagedError struct{ Finding string }

func (e *DamagedError) Error() string {
	return "the restored database is damaged: SQLite's check says: " + e.Finding
}

// Check is how a restored database is looked at before it counts.
type Check int

const (
	// Quick is PRAGMA quick_check: all but whether indexes match their tables.
	Quick Check = iota
	// Full is PRAGMA integrity_check: that too, which takes several times as long.
	Full
	// Off is none. The checksums of the replica's files are looked at all the same.
	Off
)

// pragma is what SQLite is asked; it stops at the first finding.
func (c Check) pragma() string {
	if c == Full {
		return "PRAGMA integrity_check(1)"
	}
	return "PRAGMA quick_check(1)"
}

// Verify checks a database file that nobody else has open, and leaves no file
// beside it. It returns a *DamagedError when SQLite finds fault with it.
//
// It must never see the live database: closing a file drops all POSIX locks
// that this process has on it, Litestream's too.
func Verify(ctx context.Context, path string, check Check) error {
	if check == Off {
		return nil
	}
	// immutable: no locks, no -wal and no -shm; the file is ours alone.
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "mode=ro&immutable=1"}).String()
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return fmt.Errorf("open the restored database: %w", err)
	}
	defer func() { _ = db.Close() }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return checked(ctx, err)
	}
	defer func() { _ = conn.Close() }()
	// A mapped file is checked in half the time of one that is read page by page.
	var size int64
	if err := conn.QueryRowContext(ctx, fmt.Sprintf("PRAGMA mmap_size=%d", int64(1)<<40)).Scan(&size); err != nil {
		return checked(ctx, err)
	}
	var mapped memory
	stop := tellEvery(2*time.Millisecond, func() {
		if mapped.to == 0 {
			mapped = mapping(path)
		}
		mapped.unload()
	})
	var finding string
	err = conn.QueryRowContext(ctx, check.pragma()).Scan(&finding)
	stop()
	if err != nil {
		return checked(ctx, err)
	}
	if finding != "ok" {
		return &DamagedError{Finding: finding}
	}
	return nil
}

// checked is what an error of SQLite means: that the file is none, unless it was
// told to stop.
func checked(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &DamagedError{Finding: err.Error()}
}

// memory is a range of addresses.
type memory struct{ from, to uintptr }

// mapping finds where the file at path is mapped; the zero range if it is not.
func mapping(path string) (m memory) {
	fi, err := os.Stat(path)
	if err != nil {
		return m
	}
	inode := fmt.Sprint(fi.Sys().(*syscall.Stat_t).Ino)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(maps)) {
		// from-to permissions offset device inode path
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[4] != inode || filepath.Base(fields[len(fields)-1]) != filepath.Base(path) {
			continue
		}
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.from, &m.to); err != nil {
			return memory{}
		}
	}
	return m
}

// unload takes the pages of a mapped file out of this process's memory. They stay
// in the page cache and come back when they are touched, so this only bounds how
// much of a large database counts as ours while it is checked.
//
// The range must still be that file's: of any other memory the contents would be
// lost. SQLite's unix VFS keeps a mapping until the file is closed, as long as
// its size and the limit stay the same (unixUnmapfile and who calls it).
func (m memory) unload() {
	if m.to > m.from {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
	}
}
