package restore

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"

	_ "github.com/mattn/go-sqlite3" // the SQLite that judges what was restored; used in this file alone
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
	return verify(ctx, path, check, "")
}

// verify is Verify, through a VFS unless that is "".
func verify(ctx context.Context, path string, check Check, vfs string) error {
	// immutable: no locks, no -wal and no -shm; the file is ours alone. SQLite reads
	// it page by page: a mapped file counts as our memory, and is no faster when it
	// is unloaded again and again so that it doesn't.
	query := "mode=ro&immutable=1"
	if vfs != "" {
		query += "&vfs=" + vfs
	}
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: query}).String()
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
	var finding string
	if err := conn.QueryRowContext(ctx, check.pragma()).Scan(&finding); err != nil {
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
