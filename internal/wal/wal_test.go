package wal

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"io"
	"path/filepath"
	"testing"

	_ "github.com/mattn/go-sqlite3"
)

// SQLite's own WAL, before and after it has begun anew.
func TestSalts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	if _, ok := Salts(path); ok {
		t.Error("the salts of a WAL that is missing")
	}
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1)
	run := func(stmts ...string) {
		t.Helper()
		for _, stmt := range stmts {
			if _, err := db.Exec(stmt); err != nil {
				t.Fatal(err)
			}
		}
	}
	run("PRAGMA page_size=8192", "PRAGMA journal_mode=wal", "CREATE TABLE t (n INTEGER)")
	first, ok := Salts(path)
	if !ok || first == [2]uint32{} {
		t.Errorf("%x, %v", first, ok)
	}
	run("INSERT INTO t VALUES (1)")
	if same, _ := Salts(path); same != first {
		t.Errorf("the WAL goes on, and its salts are %x after %x", same, first)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ReadHeader(f)
	if err != nil || h.PageSize != 8192 || h.Salts != first {
		t.Errorf("%+v, %v", h, err)
	}
	frame := make([]byte, 24)
	_, err = io.ReadFull(f, frame)
	if err != nil || binary.BigEndian.Uint32(frame[8:]) != first[0] || binary.BigEndian.Uint32(frame[12:]) != first[1] {
		t.Errorf("what follows the header is not a frame of this WAL: %x, %v", frame, err)
	}
	_ = f.Close()
	run("PRAGMA wal_checkpoint(RESTART)", "INSERT INTO t VALUES (2)")
	if other, ok := Salts(path); !ok || other == first {
		t.Errorf("the WAL has begun anew, and its salts are %x still", other)
	}
	run("PRAGMA wal_checkpoint(TRUNCATE)")
	if salts, ok := Salts(path); ok {
		t.Errorf("an empty WAL has the salts %x", salts)
	}
}

func TestReadHeaderOfAShortWAL(t *testing.T) {
	for size, want := range map[int]error{0: io.EOF, HeaderSize - 1: io.ErrUnexpectedEOF} {
		if h, err := ReadHeader(bytes.NewReader(make([]byte, size))); err != want || h != (Header{}) { //nolint:errorlint // as io.ReadFull has it
			t.Errorf("%d bytes: %+v, %v", size, h, err)
		}
	}
}
