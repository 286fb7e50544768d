// Package wal reads the headers of a database's WAL and of the LTX files that were
// captured from it, here and in the replica. The two have the WAL's salts in common: SQLite chooses other ones
// each time that it begins the WAL anew, so they say whether a capture comes from the
// WAL that is there now.
//
// Reading the WAL of a live database is safe at any time. Opening and closing the
// database file is not, and nothing here does that. docs/design.md has the rule: this
// process never opens and closes the live database.
package wal

import (
	"encoding/binary"
	"io"
	"os"
)

// HeaderSize is the size of a WAL's header in bytes. Its layout, and that of the
// frames after it, is in https://www.sqlite.org/fileformat.html#the_write_ahead_log.
const HeaderSize = 32

// Header is what the header of a WAL says, unchecked: a crash may have torn it.
type Header struct {
	PageSize uint32    // in bytes
	Salts    [2]uint32 // each frame of this WAL has the same two; frames with others are left from before
}

// Open opens the WAL of the database at a path. The error is fs.ErrNotExist where it
// has none. The caller closes the file.
func Open(dbPath string) (*os.File, error) { return os.Open(dbPath + "-wal") }

// ReadHeader reads the header of a WAL, and no more than that. The error is io.EOF
// where the WAL is empty, and io.ErrUnexpectedEOF where it is shorter than a header.
func ReadHeader(r io.Reader) (Header, error) {
	var b [HeaderSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Header{}, err
	}
	return Header{
		PageSize: binary.BigEndian.Uint32(b[8:]),
		Salts:    [2]uint32{binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint32(b[20:])},
	}, nil
}

// Salts returns the salts of the WAL of the database at a path. ok is false where the
// WAL is missing, empty or can't be read.
func Salts(dbPath string) (salts [2]uint32, ok bool) {
	f, err := Open(dbPath)
	if err != nil {
		return salts, false
	}
	defer func() { _ = f.Close() }()
	h, err := ReadHeader(f)
	return h.Salts, err == nil
}
