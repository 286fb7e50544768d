package restore

import (
	"database/sql"
	"errors"
	"math"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/slashacom/slasha-init/restore/fetch"
)

// The size that a plan leads to is known before it is read, and is the size of
// what is restored.
func TestDatabaseSize(t *testing.T) {
	cfg := config(t, filled(t, 100))
	p, err := locate(t.Context(), cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := fetch.Open(t.Context(), cfg.Client, p.files, fetch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(cfg.DBPath); err != nil || fi.Size() != plan.Size() {
		t.Errorf("%d bytes, said to be %d; %v", fi.Size(), plan.Size(), err)
	}
}

func TestCheckSpace(t *testing.T) {
	dir := t.TempDir()
	for _, enough := range []int64{0, 1, 4096} {
		if err := checkSpace(dir, enough); err != nil {
			t.Errorf("%d: %v", enough, err)
		}
	}
	err := checkSpace(dir, math.MaxInt64/2)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
}

// What each check finds: an index that does not match its table is found by the
// full one alone.
func TestChecks(t *testing.T) {
	cfg := config(t, filled(t, 50))
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for _, check := range []Check{Quick, Full, Off} {
		if err := Verify(t.Context(), cfg.DBPath, check); err != nil {
			t.Errorf("%s: %v", check.pragma(), err)
		}
	}
	writeWithoutIndex(t, cfg.DBPath)
	var damaged *DamagedError
	if err := Verify(t.Context(), cfg.DBPath, Full); !errors.As(err, &damaged) {
		t.Errorf("the full check: %v", err)
	}
	if err := Verify(t.Context(), cfg.DBPath, Quick); err != nil {
		t.Errorf("the quick check: %v", err)
	}
}

// writeWithoutIndex changes a row in a way that the table's index does not get to know
// of: while that is not in the schema. The quick check counts the index's entries.
func writeWithoutIndex(t *testing.T, path string) {
	t.Helper()
	do := func(f func(*sql.DB) error) {
		t.Helper()
		db, err := sql.Open("sqlite3", path)
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		_, err = db.Exec("PRAGMA writable_schema=ON")
		if err := errors.Join(err, f(db), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	var root int
	var stmt string
	do(func(db *sql.DB) error {
		err := db.QueryRow("SELECT rootpage, sql FROM sqlite_schema WHERE name = 'i'").Scan(&root, &stmt)
		if err == nil {
			_, err = db.Exec("DELETE FROM sqlite_schema WHERE name = 'i'")
		}
		return err
	})
	do(func(db *sql.DB) error {
		_, err := db.Exec("UPDATE t SET filler = 'not in the index' WHERE n = 7")
		return err
	})
	do(func(db *sql.DB) error {
		_, err := db.Exec("INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES ('index', 'i', 't', ?, ?)", root, stmt)
		return err
	})
}
