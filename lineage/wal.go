package lineage

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// commitsInWAL counts the commits in the WAL that have not been captured. It is
// for a message: a frame that a crash tore counts too, and a WAL that can't be
// read counts for nothing. See https://www.sqlite.org/fileformat.html#the_write_ahead_log.
func commitsInWAL(dbPath string, here local) int {
	f, err := os.Open(dbPath + "-wal")
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, litestream.WALHeaderSize)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0
	}
	salts := string(head[16:24])
	pageSize := int(binary.BigEndian.Uint32(head[8:]))
	if pageSize < 512 || pageSize > 65536 {
		return 0
	}
	// What was captured last ends somewhere in this WAL, or was in an earlier one.
	if b, err := here.header(here.newest()); err == nil {
		var h ltx.Header
		if h.UnmarshalBinary(b) == nil && binary.BigEndian.Uint32(head[16:]) == h.WALSalt1 && binary.BigEndian.Uint32(head[20:]) == h.WALSalt2 {
			if _, err := f.Seek(h.WALOffset+h.WALSize, io.SeekStart); err != nil {
				return 0
			}
		}
	}
	n := 0
	r := bufio.NewReaderSize(f, 64<<10)
	for frame := make([]byte, litestream.WALFrameHeaderSize); ; {
		if _, err := io.ReadFull(r, frame); err != nil || string(frame[8:16]) != salts {
			return n // the rest is from before this WAL began anew
		}
		if binary.BigEndian.Uint32(frame[4:]) != 0 { // the database's size: the last frame of a commit
			n++
		}
		if _, err := r.Discard(pageSize); err != nil {
			return n
		}
	}
}
