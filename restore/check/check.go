// Package check has SQLite judge a database file that was put together from a
// replica, before anybody uses it.
//
// It holds the one SQLite library of this program that is written in C, and it
// must never see the live database: closing a file drops all POSIX locks that this
// process has on it, Litestream's too.
package check

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"

	_ "github.com/mattn/go-sqlite3" // used in this package alone
)

// DamagedError says that SQLite does not accept a restored file.
type DamagedError struct{ Finding string }

func (e *DamagedError) Error() string {
	return "the restored database is damaged: SQLite's check says: " + e.Finding
}

// Kind is how a restored database is looked at before it counts.
type Kind int

const (
	// Quick is PRAGMA quick_check: all but whether indexes match their tables.
	Quick Kind = iota
	// Full is PRAGMA integrity_check: that too, which takes several times as long.
	Full
	// Off is none. The checksums of the replica's files are looked at all the same.
	Off
)

// pragma is what SQLite is asked; it stops at the first finding.
func (k Kind) pragma() string {
	if k == Full {
		return "PRAGMA integrity_check(1)"
	}
	return "PRAGMA quick_check(1)"
}

// File checks a database file that nobody else has open, and leaves no file
// beside it. It returns a *DamagedError when SQLite finds fault with it.
//
// rest is called again and again while SQLite works, from a thread of SQLite's, and
// may take its time. Nil lets SQLite work at full speed.
func File(ctx context.Context, path string, kind Kind, rest func()) error {
	if kind == Off {
		return nil
	}
	vfs, done := through(rest)
	defer done()
	// immutable: no locks, no -wal and no -shm; the file is ours alone.
	vfs.Set("mode", "ro")
	vfs.Set("immutable", "1")
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: vfs.Encode()}).String()
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return fmt.Errorf("open the restored database: %w", err)
	}
	defer func() { _ = db.Close() }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return failure(ctx, err)
	}
	defer func() { _ = conn.Close() }()
	// Any size has SQLite ask for pages in place, which windows.c answers.
	if _, err := conn.ExecContext(ctx, "PRAGMA mmap_size = 1"); err != nil {
		return failure(ctx, err)
	}
	var finding string
	if err := conn.QueryRowContext(ctx, kind.pragma()).Scan(&finding); err != nil {
		return failure(ctx, err)
	}
	if finding != "ok" {
		return &DamagedError{Finding: finding}
	}
	return nil
}

// failure is what an error of SQLite means: that the file is none, unless it was
// told to stop.
func failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &DamagedError{Finding: err.Error()}
}
