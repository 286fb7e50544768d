package fetch

import (
	"encoding/binary"
	"fmt"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"
)

// An LTX file of today's Litestream is:
//
//	header       100 bytes
//	pages        each: page number (4), flags (2), size (4), an LZ4 block
//	end mark     6 zero bytes
//	index        of the pages; see layout
//	index size   8
//	trailer      16, the last 8 the checksum of all before, pages unpacked
const (
	frameHeader = ltx.PageHeaderSize + 4
	endMark     = ltx.PageHeaderSize
	footer      = 8 + ltx.TrailerSize
)

// decoder takes the pages out of a piece of a file.
type decoder struct {
	r        *reader
	w        *writer
	file     *ltx.FileInfo
	pageSize uint32

	crc    uint64 // of what was read, pages unpacked
	length int64  // of that
	pgno   uint32 // the last page
}

// decode reads the piece, and where it is a whole file checks its checksum.
func (d *decoder) decode(p *piece) error {
	if p.from == 0 {
		if err := d.header(); err != nil {
			return err
		}
	}
	for d.r.left() > 0 {
		if p.whole() {
			if b, err := d.r.peek(endMark); err != nil {
				return err
			} else if [endMark]byte(b) == [endMark]byte{} {
				return d.rest()
			}
		}
		if err := d.page(); err != nil {
			return err
		}
	}
	if p.whole() {
		return d.damaged("it ends without a trailer")
	}
	return nil
}

func (d *decoder) damaged(format string, args ...any) error {
	return &DamagedError{d.file, fmt.Sprintf(format, args...)}
}

func (d *decoder) count(b []byte) {
	d.crc = updateCRC(d.crc, b)
	d.length += int64(len(b))
}

func (d *decoder) header() error {
	b, err := d.r.next(ltx.HeaderSize)
	if err != nil {
		return err
	}
	var h ltx.Header
	if err := parseHeader(b, d.file, &h); err != nil {
		return err
	}
	if h.PageSize != d.pageSize {
		return d.damaged("its pages have %d bytes, but those of the newest file have %d", h.PageSize, d.pageSize)
	}
	d.count(b)
	return nil
}

// page reads one page and hands it on.
func (d *decoder) page() error {
	b, err := d.r.next(frameHeader)
	if err != nil {
		return err
	}
	pgno, flags, packed := binary.BigEndian.Uint32(b), binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint32(b[6:])
	switch {
	case pgno <= d.pgno:
		return d.damaged("page %d follows page %d", pgno, d.pgno)
	case flags == 0:
		return fmt.Errorf("%s: %w", Name(d.file), ErrFormat)
	case flags != ltx.PageHeaderFlagSize:
		return d.damaged("page %d has the unknown flags %#x", pgno, flags)
	case int(packed) > lz4.CompressBlockBound(int(d.pageSize)):
		return d.damaged("page %d takes up %d bytes", pgno, packed)
	}
	d.pgno = pgno
	d.count(b)
	if b, err = d.r.next(int(packed)); err != nil {
		return err
	}
	page, err := d.w.room(pgno)
	if err != nil {
		return err
	}
	if n, err := lz4.UncompressBlock(b, page); err != nil || n != len(page) {
		return d.damaged("page %d can't be unpacked", pgno)
	}
	d.count(page)
	return nil
}

// rest reads what follows the pages, and compares the checksums.
func (d *decoder) rest() error {
	for d.r.left() > ltx.ChecksumSize {
		b, err := d.r.next(int(min(d.r.left()-ltx.ChecksumSize, bufferSize)))
		if err != nil {
			return err
		}
		d.count(b)
	}
	b, err := d.r.next(ltx.ChecksumSize)
	if err != nil {
		return err
	}
	return compare(d.file, d.crc, b)
}

// compare compares a checksum with that of a file's trailer.
func compare(f *ltx.FileInfo, crc uint64, trailer []byte) error {
	if want := binary.BigEndian.Uint64(trailer); crc|uint64(ltx.ChecksumFlag) != want {
		return &DamagedError{f, "its checksum does not match"}
	}
	return nil
}
