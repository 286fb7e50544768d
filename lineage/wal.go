package lineage

import (
	"bufio"
	"encoding/binary"
	"io"

	"github.com/benbjohnson/litestream"

	"github.com/slashacom/slasha-init/internal/wal"
)

// commitsInWAL counts the commits in the WAL that have not been captured. It is for a
// message: a frame that a crash tore counts too, and a WAL that can't be read counts
// for nothing. See https://www.sqlite.org/fileformat.html#the_write_ahead_log.
func commitsInWAL(dbPath string, here local) int {
	f, err := wal.Open(dbPath)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	head, err := wal.ReadHeader(f)
	if err != nil || head.PageSize < 512 || head.PageSize > 65536 {
		return 0
	}
	// The last capture ends somewhere in this WAL, or was made from an earlier one.
	if h, err := wal.ReadLTX(here.path(here.newest())); err == nil && wal.SaltsOf(h) == head.Salts {
		if _, err := f.Seek(h.WALOffset+h.WALSize, io.SeekStart); err != nil {
			return 0
		}
	}
	n := 0
	r := bufio.NewReaderSize(f, 64<<10)
	for frame := make([]byte, litestream.WALFrameHeaderSize); ; {
		if _, err := io.ReadFull(r, frame); err != nil || salts(frame) != head.Salts {
			return n // the rest is from before this WAL began anew
		}
		if binary.BigEndian.Uint32(frame[4:]) != 0 { // the database's size: the last frame of a commit
			n++
		}
		if _, err := r.Discard(int(head.PageSize)); err != nil {
			return n
		}
	}
}

// salts returns the salts of a frame.
func salts(frame []byte) [2]uint32 {
	return [2]uint32{binary.BigEndian.Uint32(frame[8:]), binary.BigEndian.Uint32(frame[12:])}
}
