package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/superfly/ltx"
)

// Litestream's HTTP client gives one request 24 hours and has no timeout for a
// response's header, so a connection that dies without a word (a half-open
// socket, a dropped packet filter entry) would hold the sync loop for a day.

// stallAfter is how long the other side may be silent. Only tests change it.
var stallAfter = 20 * time.Second

// slowestUpload, in bytes per second, is what a healthy line always reaches; an
// upload of known size gets the time that this rate needs.
const slowestUpload = 32 << 10

// errStalled ends an operation that made no progress. It is temporary.
var errStalled = errors.New("no answer for " + stallAfter.String())

// watch cancels a context when it is not fed for a while.
type watch struct {
	after  time.Duration
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
}

func watchdog(ctx context.Context, after time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{after: after, cancel: cancel}
	w.timer = time.AfterFunc(after, func() { cancel(errStalled) })
	return ctx, w
}

// feed starts the wait anew.
func (w *watch) feed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Reset(w.after)
}

// pause stops the clock while it is the caller, not the replica, who is slow.
func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
}

// stop releases the watch and its context.
func (w *watch) stop() {
	w.pause()
	w.cancel(nil)
}

// cause puts the reason in the place of the "context canceled" that it led to.
func (w *watch) cause(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

// uploadTime is how long an upload of r may take in all.
func uploadTime(r io.Reader) time.Duration {
	s, ok := r.(io.ReadSeeker)
	if !ok {
		return stallAfter
	}
	pos, err := s.Seek(0, io.SeekCurrent)
	if err != nil {
		return stallAfter
	}
	end, err := s.Seek(0, io.SeekEnd)
	if err != nil {
		return stallAfter
	}
	if _, err := s.Seek(pos, io.SeekStart); err != nil {
		return stallAfter
	}
	return stallAfter + time.Duration(end-pos)*time.Second/slowestUpload
}

// stream feeds the watch with what the uploader takes. The uploader reads one
// part ahead at most, so a stalled connection stops it soon.
type stream struct {
	io.Reader
	watch *watch
}

func (s *stream) Read(p []byte) (int, error) {
	s.watch.pause() // producing the snapshot may be slow; that is no stall
	n, err := s.Reader.Read(p)
	s.watch.feed()
	return n, err
}

// body is a file being downloaded.
type body struct {
	io.ReadCloser
	ctx   context.Context
	watch *watch
}

func (b *body) Read(p []byte) (int, error) {
	b.watch.feed()
	n, err := b.ReadCloser.Read(p)
	b.watch.pause()
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.watch.cause(b.ctx, fmt.Errorf("%w: %w", errCut, err))
	}
	return n, err
}

// errCut marks an answer that ended before its end.
var errCut = errors.New("the connection broke off")

func (b *body) Close() error {
	defer b.watch.stop()
	return b.ReadCloser.Close()
}

// iterator is a list being read, page by page.
type iterator struct {
	ltx.FileIterator
	ctx    context.Context
	client *Client
	watch  *watch
	start  time.Time
	told   bool
}

func (i *iterator) Next() bool {
	i.watch.feed()
	ok := i.FileIterator.Next()
	i.watch.pause()
	if !ok {
		i.tell()
	}
	return ok
}

func (i *iterator) Err() error { return i.watch.cause(i.ctx, i.FileIterator.Err()) }

func (i *iterator) Close() error {
	i.tell()
	defer i.watch.stop()
	return i.watch.cause(i.ctx, i.FileIterator.Close())
}

func (i *iterator) tell() {
	if !i.told {
		i.told = true
		_ = i.client.done("list", -1, i.start, i.Err())
	}
}
