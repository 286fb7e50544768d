package fetch

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/superfly/ltx"
)

// layout is where the pages of a large file are, in pieces that can be read side
// by side, and the checksum of what follows the pages.
type layout struct {
	file   *ltx.FileInfo
	index  int64    // its size, in bytes; 0 as long as it was not measured
	pieces []*piece // head and pages, in order; each filled by its worker

	crc     uint64 // of all from the end mark to before the checksum
	length  int64
	trailer [ltx.ChecksumSize]byte
}

// find reads the file's index, and calls found with each piece as soon as it is known.
// The index has, for each page in order, its number, offset and size as varints.
func (l *layout) find(ctx context.Context, src Source, opt Options, found func(from, to int64) error) error {
	if l.index == 0 {
		if err := l.measure(ctx, src, opt); err != nil {
			return err
		}
	}
	end := l.file.Size - footer - l.index // of the pages and the end mark
	r := newReader(ctx, src, l.file, end-endMark, l.file.Size, opt)
	defer r.release()
	take := func(n int) ([]byte, error) {
		b, err := r.next(n)
		if err == nil {
			l.crc, l.length = updateCRC(l.crc, b), l.length+int64(n)
		}
		return b, err
	}
	if b, err := take(endMark); err != nil {
		return err
	} else if [endMark]byte(b) != [endMark]byte{} {
		return l.damaged("its pages don't end where its index begins")
	}
	from, at := int64(0), int64(ltx.HeaderSize)
	for {
		var err error
		var entry [3]uint64 // page number, offset, size
		for i := range entry {
			if entry[i], err = l.varint(r, take); err != nil {
				return err
			}
			if entry[0] == 0 {
				break
			}
		}
		if entry[0] == 0 {
			break
		}
		if entry[1] != uint64(at) || entry[2] < smallestFrame || entry[2] > bufferSize {
			return l.damaged("its index has page %d at %d with %d bytes, after one that ends at %d", entry[0], entry[1], entry[2], at)
		}
		at += int64(entry[2])
		if at > end-endMark { // before it is requested
			return l.damaged("in its index page %d ends at byte %d, but its pages end at %d", entry[0], at, end-endMark)
		}
		if at-from >= opt.piece {
			if err := found(from, at); err != nil {
				return err
			}
			from = at
		}
	}
	if at != end-endMark {
		return l.damaged("its index ends at byte %d, but its pages end at %d", at, end-endMark)
	}
	if at > from {
		if err := found(from, at); err != nil {
			return err
		}
	}
	if _, err := take(footer - ltx.ChecksumSize); err != nil {
		return err
	}
	b, err := r.next(ltx.ChecksumSize)
	if err != nil {
		return err
	}
	copy(l.trailer[:], b)
	return nil
}

// measure reads the size of the file's index.
func (l *layout) measure(ctx context.Context, src Source, opt Options) error {
	r := newReader(ctx, src, l.file, l.file.Size-footer, l.file.Size, opt)
	defer r.release()
	b, err := r.next(footer)
	if err != nil {
		return err
	}
	size := binary.BigEndian.Uint64(b)
	if most := l.file.Size - footer - endMark - ltx.HeaderSize; most < 0 || size > uint64(most) || size == 0 {
		return l.damaged("its index would have %d bytes", size)
	}
	l.index = int64(size)
	return nil
}

// varint reads one number of the index. What follows the index is longer than
// the longest, so that many bytes are always there.
func (l *layout) varint(r *reader, take func(int) ([]byte, error)) (uint64, error) {
	b, err := r.peek(binary.MaxVarintLen64)
	if err != nil {
		return 0, err
	}
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, l.damaged("its index can't be read")
	}
	_, err = take(n)
	return v, err
}

func (l *layout) damaged(format string, args ...any) error {
	return &DamagedError{l.file, fmt.Sprintf(format, args...)}
}

// verify compares the file's checksum, when all pieces are read.
func (l *layout) verify() error {
	var crc uint64
	for _, p := range l.pieces {
		crc = joinCRC(crc, p.crc, p.length)
	}
	return compare(l.file, joinCRC(crc, l.crc, l.length), l.trailer[:])
}
