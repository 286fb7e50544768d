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
	return "the replica's newest state is damaged: SQLite's quick_check says: " + e.Finding
}

// Verify runs PRAGMA quick_check on a database file that nobody else has open,
// and leaves no file beside it. It returns a *DamagedError when SQLite finds
// fault with it.
//
// It must never see the live database: closing a file drops all POSIX locks
// that this process has on it, Litestream's too.
func Verify(ctx context.Context, path string) error {
	// immutable: no locks, no -wal and no -shm; the file is ours alone.
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "mode=ro&immutable=1"}).String()
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return fmt.Errorf("open the restored database: %w", err)
	}
	defer func() { _ = db.Close() }()
	var finding string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&finding); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &DamagedError{Finding: err.Error()}
	}
	if finding != "ok" {
		return &DamagedError{Finding: finding}
	}
	return nil
}
