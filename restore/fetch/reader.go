package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/superfly/ltx"
)

// reader reads a range of a file, and asks again for the rest of it when a
// request fails half way.
type reader struct {
	ctx  context.Context
	src  Source
	file *ltx.FileInfo
	opt  Options

	body     io.ReadCloser // of the request under way, or nil
	at, end  int64         // the range that is not yet in buf
	buf      *[bufferSize]byte
	from, to int // what of buf is not yet taken
	failed   int // requests in a row that brought nothing
}

func newReader(ctx context.Context, src Source, f *ltx.FileInfo, from, to int64, opt Options) *reader {
	return &reader{ctx: ctx, src: src, file: f, opt: opt, at: from, end: to, buf: buffers.Get().(*[bufferSize]byte)}
}

// release ends the request under way and gives the buffer back.
func (r *reader) release() {
	r.hangUp()
	buffers.Put(r.buf)
	r.buf = nil
}

func (r *reader) hangUp() {
	if r.body != nil {
		_ = r.body.Close()
		r.body = nil
	}
}

// left is how many bytes of the range are not yet taken.
func (r *reader) left() int64 { return r.end - r.at + int64(r.to-r.from) }

// next takes n bytes, at most a buffer's size. They are valid until the next call.
func (r *reader) next(n int) ([]byte, error) {
	b, err := r.peek(n)
	if err == nil {
		r.from += n
	}
	return b, err
}

// peek returns the next n bytes without taking them.
func (r *reader) peek(n int) ([]byte, error) {
	if n > bufferSize || int64(n) > r.left() {
		return nil, &DamagedError{r.file, fmt.Sprintf("it ends %d bytes early", int64(n)-r.left())}
	}
	for r.to-r.from < n {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	return r.buf[r.from : r.from+n], nil
}

// fill reads more into the buffer.
func (r *reader) fill() error {
	if r.from > 0 {
		r.to = copy(r.buf[:], r.buf[r.from:r.to])
		r.from = 0
	}
	err := r.ask()
	if err == nil {
		room := min(int64(bufferSize-r.to), r.end-r.at)
		var n int
		n, err = r.body.Read(r.buf[r.to : r.to+int(room)])
		r.to, r.at = r.to+n, r.at+int64(n)
		if n > 0 {
			r.failed = 0
			return nil // an error comes again with the next read
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, io.EOF) { // a connection that is cut is ErrUnexpectedEOF
			err = errShort
		}
	}
	return r.failure(err)
}

// ask makes the request for what is left, unless it is under way.
func (r *reader) ask() (err error) {
	if r.body == nil {
		r.body, err = r.src.OpenLTXFile(r.ctx, r.file.Level, r.file.MinTXID, r.file.MaxTXID, r.at, r.end-r.at)
	}
	return err
}

// errShort is an answer that ends well and early, as that of a file which is
// shorter than it was when it was listed.
var errShort = errors.New("the answer is too short")

// failure waits before the next try, or says that there will be none.
func (r *reader) failure(err error) error {
	r.hangUp()
	r.failed++
	switch {
	case r.ctx.Err() != nil:
		return context.Cause(r.ctx)
	case errors.Is(err, os.ErrNotExist):
		return &VanishedError{r.file, err}
	case r.failed < attempts && (errors.Is(err, errShort) || r.opt.GiveUp == nil || !r.opt.GiveUp(err)):
		select {
		case <-time.After(cmp.Or(r.opt.pause, firstPause) << (r.failed - 1)):
			return nil
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	case errors.Is(err, errShort):
		return &DamagedError{r.file, fmt.Sprintf("it ends at byte %d of %d", r.at, r.file.Size)}
	}
	return fmt.Errorf("read %s: %w", Name(r.file), err)
}
