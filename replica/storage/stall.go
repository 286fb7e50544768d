package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A connection may die silently (a half-open socket, a dropped packet filter entry), and
// HTTP has no limit of its own for an answer: the sync loop would hang. A request is ended
// here, and not by a timeout of the transport, as an upload may need minutes.

// stallAfter is how long the other side may be silent. Only tests change it.
var stallAfter = 20 * time.Second

// slowestUpload, in bytes per second, is what a healthy line always reaches. An upload of
// known size gets the time that this rate needs.
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

// feed restarts the wait.
func (w *watch) feed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Reset(w.after)
}

// pause stops the clock while the caller, and not the replica, is busy.
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

// cause replaces the "context canceled" that the watch led to by the reason.
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

// stream feeds the watch with what the uploader takes. The uploader reads one part ahead
// at most, so that a stalled connection soon stops it.
type stream struct {
	io.Reader
	watch *watch
}

func (s *stream) Read(p []byte) (int, error) {
	s.watch.pause() // making a snapshot may be slow, which is no stall
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
