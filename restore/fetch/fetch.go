// Package fetch puts a database together from the LTX files of a replica.
//
// Litestream's own way merges all files of a plan through one stream: decoded,
// encoded and decoded again on one core, with every file of the plan open at
// once. Here the files, and pieces of the large ones, are read side by side;
// each page is decoded once and written to its place at once, unless a newer
// file has written it already. What is kept in memory is a page's rank (two
// bytes) and the buffers of the workers, whatever the sizes are.
//
// Every byte that was read counts into the checksum of its file, and Write
// returns nil only when all of them were right and every page of the database
// came from some file.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/superfly/ltx"
)

// Source is where LTX files are read from. A file that is not there is
// os.ErrNotExist. It is called from many goroutines.
type Source interface {
	// OpenLTXFile reads size bytes from offset.
	OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error)
}

// DamagedError says that a file of the replica is not what was once written.
type DamagedError struct {
	File    *ltx.FileInfo
	Finding string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s in the replica is damaged: %s", Name(e.File), e.Finding)
}

// VanishedError says that a file of the replica is not there any more. It is an
// os.ErrNotExist.
type VanishedError struct {
	File *ltx.FileInfo
	err  error
}

func (e *VanishedError) Error() string {
	return fmt.Sprintf("%s in the replica is gone", Name(e.File))
}
func (e *VanishedError) Unwrap() error { return e.err }

// ErrFormat says that a file is sound as far as it was read, but of a kind that
// only Litestream's own code reads: the first 0.5 versions packed pages
// differently, and LiteFS keeps checksums of whole databases.
var ErrFormat = errors.New("this kind of LTX file is not supported")

// Name is the name of a file's object below the replica's prefix.
func Name(f *ltx.FileInfo) string {
	return fmt.Sprintf("%04x/%s", f.Level, ltx.FormatFilename(f.MinTXID, f.MaxTXID))
}

// Options of a Plan. The zero value is what production uses.
type Options struct {
	// GiveUp reports errors that the same request will meet again. After any other
	// failure of a request, the rest of it is requested again, a few times.
	GiveUp func(error) bool

	// Workers is how many reads are made at once; 0 is as many as pay.
	Workers int

	piece int64         // size of a read; 0: by the size of the plan
	pause time.Duration // before the first repeated request, doubled each time; 0: firstPause
}

const (
	// A read is of some MiB, so that a round trip is little beside it, and a
	// failed one does not cost much.
	smallestPiece, largestPiece = 1 << 20, 8 << 20

	// mostWorkers is how many reads are under way at once. At 30 ms a request,
	// thousands of small files need about that many to keep two cores busy; a
	// few dozen large reads fill any line.
	mostWorkers, mostLargeReads = 128, 32

	// attempts is how often one read is tried without getting any further.
	attempts = 5

	// firstPause is before the second of them; it doubles with each.
	firstPause = 125 * time.Millisecond

	// smallestFrame is what the smallest page takes up in a file: its header, its
	// size, and a block of one literal.
	smallestFrame = frameHeader + 2
)

// Plan is files that make a database.
type Plan struct {
	src   Source
	opt   Options
	files []*ltx.FileInfo
	last  ltx.Header // of the last of them
	first *layout    // of the first of them, where it is large
}

// Open looks at what the files of a restore plan lead to: in order of TXID
// without a gap, the first a snapshot. It takes one round trip: a small read of the
// last file, and beside it one of the first.
func Open(ctx context.Context, src Source, files []*ltx.FileInfo, opt Options) (*Plan, error) {
	p := &Plan{src: src, opt: opt, files: needed(files)}
	if len(p.files) == 0 || p.files[0].MinTXID != 1 {
		return nil, errors.New("fetch: the plan does not begin with a snapshot")
	}
	var total int64
	for _, f := range p.files {
		total += f.Size
	}
	if opt.piece == 0 {
		p.opt.piece = min(max(total/mostLargeReads, smallestPiece), largestPiece)
	}
	last := p.files[len(p.files)-1]
	g, ctx := newGroup(ctx)
	g.Go(func() (err error) {
		p.last, err = head(ctx, src, last, p.opt)
		return err
	})
	if p.files[0].Size > p.opt.piece {
		p.first = &layout{file: p.files[0]}
		g.Go(func() error { return p.first.measure(ctx, src, p.opt) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if int64(p.last.Commit) > total/smallestFrame+1 { // one page is not in any file
		return nil, &DamagedError{last, fmt.Sprintf("it says that the database has %d pages, more than all files can hold", p.last.Commit)}
	}
	return p, nil
}

// Bytes is how much Write will read, when no request fails.
func (p *Plan) Bytes() (n int64) {
	for _, f := range p.files {
		n += f.Size
		if f.Size > p.opt.piece {
			n += footer // read before the rest, for where the index is
		}
	}
	return n
}

// Size is how large the database is, in bytes.
func (p *Plan) Size() int64 { return int64(p.last.Commit) * int64(p.last.PageSize) }

// TXID is the last transaction that the database has.
func (p *Plan) TXID() ltx.TXID { return p.last.MaxTXID }

// Time is when that was replicated.
func (p *Plan) Time() time.Time { return time.UnixMilli(p.last.Timestamp) }

// Write writes the database into out, which must be empty and open for writing.
// It does not sync it.
//
// The error is a *DamagedError, a *VanishedError, ErrFormat, ErrIncomplete, ctx's,
// or that of the source or of out; then what out holds is of no use.
func (p *Plan) Write(ctx context.Context, out *os.File) error {
	if err := out.Truncate(p.Size()); err != nil {
		return err
	}
	j := &job{src: p.src, opt: p.opt, first: p.first, pages: newPages(out, p.last.PageSize, p.last.Commit)}
	for files := range slices.Chunk(p.files, maxRank) {
		if err := j.run(ctx, files); err != nil {
			return err
		}
		j.pages.age()
	}
	return j.pages.complete()
}

// needed leaves out the files whose transactions a later one has too: the first
// snapshot of a replica, say, beside the compacted file that begins with it.
func needed(files []*ltx.FileInfo) []*ltx.FileInfo {
	var out []*ltx.FileInfo
	for _, f := range files {
		for len(out) > 0 && out[len(out)-1].MinTXID >= f.MinTXID {
			out = out[:len(out)-1]
		}
		out = append(out, f)
	}
	return out
}

// head reads the header of a file.
func head(ctx context.Context, src Source, f *ltx.FileInfo, opt Options) (h ltx.Header, err error) {
	r := newReader(ctx, src, f, 0, min(f.Size, ltx.HeaderSize), opt)
	defer r.release()
	b, err := r.next(ltx.HeaderSize)
	if err != nil {
		return h, err
	}
	return h, parseHeader(b, f, &h)
}

// parseHeader reads and judges a file's header.
func parseHeader(b []byte, f *ltx.FileInfo, h *ltx.Header) error {
	if err := h.UnmarshalBinary(b); err != nil {
		return &DamagedError{f, err.Error()}
	}
	if err := h.Validate(); err != nil {
		return &DamagedError{f, err.Error()}
	}
	if h.MinTXID != f.MinTXID || h.MaxTXID != f.MaxTXID {
		return &DamagedError{f, fmt.Sprintf("it holds the transactions %s to %s", h.MinTXID, h.MaxTXID)}
	}
	if !h.NoChecksum() {
		return fmt.Errorf("%s: %w", Name(f), ErrFormat)
	}
	return nil
}

// job is the restore of files whose ranks fit.
type job struct {
	src   Source
	opt   Options
	first *layout // of the plan's first file, where that is large and was measured
	pages *pages
}

// piece is a part of a file that one worker reads: some pages, and for a small
// file all of it.
type piece struct {
	file     *ltx.FileInfo
	rank     uint16 // the file's place in the plan
	from, to int64  // bytes

	// What the worker found: the checksum of these bytes, pages unpacked, and
	// their number unpacked.
	crc    uint64
	length int64
}

// whole says that the piece is all of a file, head to trailer.
func (p *piece) whole() bool { return p.from == 0 && p.to == p.file.Size }

// run reads the files and returns when all are read and their checksums known
// to be right.
func (j *job) run(ctx context.Context, files []*ltx.FileInfo) error {
	var large []*layout
	work := make(chan *piece)
	g, gctx := newGroup(ctx)
	for range j.workers(files) {
		g.Go(func() error {
			for p := range work {
				if err := j.read(gctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() (err error) {
		defer close(work)
		large, err = j.find(gctx, files, work)
		return err
	})
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	for _, l := range large {
		if err := l.verify(); err != nil {
			return err
		}
	}
	return nil
}

// mostIndexes is how many indexes are read at once.
const mostIndexes = 8

// find hands out the pieces of the files, the newest first, so that of a page that
// many files have, mostly one version is written. It returns the large files, whose
// checksums are known only when all of their pieces are read.
func (j *job) find(ctx context.Context, files []*ltx.FileInfo, work chan<- *piece) (large []*layout, err error) {
	g, ctx := newGroup(ctx)
	g.SetLimit(mostIndexes)
	send := func(p *piece) error {
		select {
		case work <- p:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for i, f := range slices.Backward(files) {
		if f.Size <= j.opt.piece {
			continue
		}
		l := &layout{file: f}
		if j.first != nil && j.first.file == f {
			l = j.first
		}
		large = append(large, l)
		g.Go(func() error {
			return l.find(ctx, j.src, j.opt, func(from, to int64) error {
				p := &piece{file: f, rank: firstRank + uint16(i), from: from, to: to}
				l.pieces = append(l.pieces, p)
				return send(p)
			})
		})
	}
	for i, f := range slices.Backward(files) {
		if f.Size > j.opt.piece {
			continue
		}
		if err := send(&piece{file: f, rank: firstRank + uint16(i), to: f.Size}); err != nil {
			break // a finder has failed, and Wait returns its error
		}
	}
	return large, g.Wait()
}

// workers is how many reads of these files are worth making at once.
func (j *job) workers(files []*ltx.FileInfo) int {
	if j.opt.Workers != 0 {
		return j.opt.Workers
	}
	var reads, size int64
	for _, f := range files {
		reads += f.Size/j.opt.piece + 1
		size += f.Size
	}
	if size/reads < smallestPiece/2 {
		return int(min(reads, mostWorkers))
	}
	return int(min(reads, mostLargeReads))
}

// read reads a piece and writes its pages.
func (j *job) read(ctx context.Context, p *piece) error {
	r := newReader(ctx, j.src, p.file, p.from, p.to, j.opt)
	defer r.release()
	w := j.pages.writer(p.rank)
	defer w.release()
	d := &decoder{r: r, w: w, file: p.file, pageSize: j.pages.size}
	if err := d.decode(p); err != nil {
		return err
	}
	p.crc, p.length = d.crc, d.length
	return w.flush()
}

// buffers are of a size that a page in its packed form always fits in, and that
// makes few system calls.
const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}
