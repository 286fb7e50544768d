package fetch

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/superfly/ltx"
)

// A page's rank is the place in the plan of the file that wrote it.
const (
	none      uint16 = 0     // no file did
	earlier   uint16 = 1     // a file of an earlier run
	firstRank uint16 = 2     // the first file of this run
	maxRank          = 65000 // files in a run
)

// pages is the database being written. Of two files with the same page the
// newer one wins, in whichever order they come.
type pages struct {
	file *os.File
	size uint32 // of a page, in bytes
	rank []uint16

	// lock guards rank and the writing. File systems let one writer into a file at a
	// time, and the others would spin while they wait.
	lock sync.Mutex
}

func newPages(f *os.File, size, count uint32) *pages {
	return &pages{file: f, size: size, rank: make([]uint16, count)}
}

// age makes all that was written older than what comes.
func (p *pages) age() {
	for i, r := range p.rank {
		if r != none {
			p.rank[i] = earlier
		}
	}
}

// ErrIncomplete says that the files, each sound, don't make a whole database.
var ErrIncomplete = errors.New("no file of the replica has it")

// complete checks that every page came from somewhere, but for the one that
// SQLite never writes.
func (p *pages) complete() error {
	for i, r := range p.rank {
		if pgno := uint32(i) + 1; r == none && pgno != ltx.LockPgno(p.size) {
			return fmt.Errorf("page %d of the database: %w", pgno, ErrIncomplete)
		}
	}
	return nil
}

// writer collects pages of one file that follow one another, and writes them
// together. Its buffer is a region of the database: as many pages, and beginning
// at a multiple of that.
type writer struct {
	*pages
	as    uint16
	buf   *[bufferSize]byte
	first uint32 // page in buf
	n     uint32 // pages in buf
}

func (p *pages) writer(rank uint16) *writer {
	return &writer{pages: p, as: rank, buf: buffers.Get().(*[bufferSize]byte)}
}

func (w *writer) release() {
	buffers.Put(w.buf)
	w.buf = nil
}

// region is where a page belongs, counted from 0.
func (w *writer) region(pgno uint32) uint32 { return (pgno - 1) / (bufferSize / w.size) }

// room returns the bytes that the caller fills with the page.
func (w *writer) room(pgno uint32) ([]byte, error) {
	if w.n > 0 && (pgno != w.first+w.n || w.region(pgno) != w.region(w.first)) {
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	if w.n == 0 {
		w.first = pgno
	}
	w.n++
	return w.page(w.n - 1), nil
}

func (w *writer) page(i uint32) []byte { return w.buf[i*w.size : (i+1)*w.size] }

// flush writes what was collected, but for the pages that a newer file has
// written, or that are past the end of the database.
func (w *writer) flush() error {
	defer func() { w.n = 0 }()
	w.lock.Lock()
	defer w.lock.Unlock()
	ours := func(i uint32) bool {
		at := w.first - 1 + i
		return at < uint32(len(w.rank)) && w.rank[at] <= w.as
	}
	for i := uint32(0); i < w.n; i++ {
		if !ours(i) {
			continue
		}
		from := i
		for ; i < w.n && ours(i); i++ {
			w.rank[w.first-1+i] = w.as
		}
		at := int64(w.first-1+from) * int64(w.size)
		if _, err := w.file.WriteAt(w.buf[from*w.size:i*w.size], at); err != nil {
			return err
		}
	}
	return nil
}
