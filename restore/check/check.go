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
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/mattn/go-sqlite3" // used in this package alone
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
	// Off has SQLite check nothing. The checksums of the replica's files are still checked.
	Off
)

// pragma is what SQLite is asked.
func (k Kind) pragma() string {
	if k == Full {
		return "integrity_check"
	}
	return "quick_check"
}

// Config is how a file is checked. The zero value is a quick check at full speed.
type Config struct {
	Kind Kind

	// Rest is called again and again while SQLite works, from a thread of SQLite's,
	// and may take its time. Optional.
	Rest func()

	// OnUnknown is called with each table that only the app's own SQLite can check,
	// and what it would need for that: a collation, or a function. Optional.
	OnUnknown func(table string, err error)
}

// File checks a database file that nobody else has open, and leaves no file
// beside it. It returns a *DamagedError when SQLite finds fault with it, and other
// errors when it can't be checked.
func File(ctx context.Context, path string, cfg Config) error {
	if cfg.Kind == Off {
		return nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("open the restored database: %w", err)
	}
	if fi.Size() < smallest { // SQLite takes an empty file for a sound database
		return &DamagedError{Finding: fmt.Sprintf("it has %d bytes", fi.Size())}
	}
	vfs, done := through(cfg.Rest)
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
	// With any size here, SQLite asks for pages in place, and windows.c answers that.
	if _, err := conn.ExecContext(ctx, "PRAGMA mmap_size = 1"); err != nil {
		return failure(ctx, err)
	}
	tables, err := tablesOf(ctx, conn)
	if err != nil {
		return failure(ctx, err)
	}
	err = ask(ctx, conn, "PRAGMA "+cfg.Kind.pragma()+"(1)") // until the first finding
	if !isUnknown(err) {
		return failure(ctx, err)
	}
	// The schema needs something that the app has and we don't, so SQLite begins with
	// nothing. One by one, it checks all the others. The list of free pages comes
	// with the schema's own table.
	for _, table := range tables {
		quoted := "'" + strings.ReplaceAll(table, "'", "''") + "'"
		err := ask(ctx, conn, "PRAGMA "+cfg.Kind.pragma()+"("+quoted+")")
		switch {
		case !isUnknown(err):
			if err := failure(ctx, err); err != nil {
				return err
			}
		case cfg.OnUnknown != nil:
			cfg.OnUnknown(table, err)
		}
	}
	return nil
}

// smallest is the size of the smallest database, in bytes: a page.
const smallest = 512

// tablesOf lists the tables, that of the schema first. Where that can't be read, the
// file is not a database.
func tablesOf(ctx context.Context, conn *sql.Conn) (tables []string, err error) {
	rows, err := conn.QueryContext(ctx, "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0")
	if err != nil {
		return nil, unreadable(err)
	}
	defer func() { _ = rows.Close() }()
	tables = []string{"sqlite_schema"}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, unreadable(err)
		}
		tables = append(tables, name)
	}
	return tables, unreadable(rows.Err())
}

// unreadable returns what an error means that comes from reading what every database has.
func unreadable(err error) error {
	if isUnknown(err) { // "unsupported file format", say
		return &DamagedError{Finding: err.Error()}
	}
	return err
}

// ask makes a check of SQLite's. The error is a *DamagedError, or SQLite's own.
func ask(ctx context.Context, conn *sql.Conn, pragma string) error {
	var finding string
	if err := conn.QueryRowContext(ctx, pragma).Scan(&finding); err != nil {
		return err
	}
	if finding != "ok" {
		return &DamagedError{Finding: finding}
	}
	return nil
}

// isUnknown reports whether SQLite did not understand a statement. Ours are right, so
// it is something in the schema that it did not understand.
func isUnknown(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && e.Code == sqlite3.ErrError
}

// failure returns what an error means: a *DamagedError when the file is damaged or is
// not a database.
func failure(ctx context.Context, err error) error {
	var e sqlite3.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB):
		return &DamagedError{Finding: err.Error()}
	case errors.As(err, &e):
		return fmt.Errorf("SQLite can't check the restored database: %w", err)
	}
	return err
}
