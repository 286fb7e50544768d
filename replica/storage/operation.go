package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"time"
)

// operation is one use of the replica: it ends when the replica is silent for too long
// (see watch), and its result is reported. Client has three kinds: do runs one to its
// end, open ends with the file that it opened, list with the list.
type operation struct {
	client *Client
	name   string // Op of its Result
	level  int
	began  time.Time
	ctx    context.Context // ends with the watch
	watch  *watch
}

// start begins an operation on a place that is ready. Where that fails, the operation has
// ended.
func (c *Client) start(ctx context.Context, name string, level int, patience time.Duration) (*operation, error) {
	op := &operation{client: c, name: name, level: level, began: time.Now()}
	op.ctx, op.watch = watchdog(ctx, patience)
	if err := c.place.ready(op.ctx); err != nil {
		return nil, op.end(err)
	}
	return op, nil
}

// end reports the result and returns the error with its reason.
func (o *operation) end(err error) error {
	defer o.watch.stop()
	err = o.watch.cause(o.ctx, err)
	o.report(err)
	return err
}

func (o *operation) report(err error) {
	// The caller's own cancellation says nothing about the replica.
	if o.client.cfg.OnResult == nil || errors.Is(err, context.Canceled) {
		return
	}
	now := time.Now()
	res := Result{Op: o.name, Level: o.level, At: now, Took: now.Sub(o.began), Err: err}
	if o.expected(err) {
		res.Err = nil
	}
	o.client.cfg.OnResult(res)
}

// expected reports whether an error is a good answer of the replica: there is no such
// file, a condition does not hold, or the place knows no conditions.
func (o *operation) expected(err error) bool {
	switch o.name {
	case "read":
		return errors.Is(err, os.ErrNotExist)
	case "lease":
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrExist) || errors.Is(err, errors.ErrUnsupported)
	}
	return false
}

// do runs an operation to its end.
func (c *Client) do(ctx context.Context, name string, level int, patience time.Duration, f func(*operation) error) error {
	op, err := c.start(ctx, name, level, patience)
	if err != nil {
		return err
	}
	return op.end(f(op))
}

// open opens a file. The operation's result is whether that worked; the watch lasts until
// the file is closed.
func (c *Client) open(ctx context.Context, f func(context.Context) (io.ReadCloser, error)) (io.ReadCloser, error) {
	op, err := c.start(ctx, "read", -1, stallAfter)
	if err != nil {
		return nil, err
	}
	rc, err := f(op.ctx)
	if err != nil {
		return nil, op.end(err)
	}
	op.watch.pause()
	op.report(nil)
	return &body{ReadCloser: rc, ctx: op.ctx, watch: op.watch}, nil
}

// list lists a folder of the place. The operation ends with the last page or with close.
func (c *Client) list(ctx context.Context, name string, want contents) (*list, error) {
	op, err := c.start(ctx, "list", -1, stallAfter)
	if err != nil {
		return nil, err
	}
	op.watch.pause()
	return &list{op: op, pages: c.place.list(name, want)}, nil
}

// list is a list being read, page by page.
type list struct {
	op    *operation
	pages pages
	asked bool // a page was requested
	ended bool
	err   error
}

// next returns the next page, which may be empty. It returns false after the last page,
// on an error (see err), and after close.
func (l *list) next() (page []entry, more bool) {
	if l.ended {
		return nil, false
	}
	l.asked = true
	l.op.watch.feed()
	page, last, err := l.pages.next(l.op.ctx)
	l.op.watch.pause()
	if err != nil {
		l.end(err)
		return nil, false
	}
	if last {
		l.end(nil)
	}
	return page, true
}

// close ends the list, also before its last page, and returns its error.
func (l *list) close() error {
	switch {
	case l.ended:
	case l.asked:
		l.end(nil)
	default: // there is no result to report
		l.op.watch.stop()
		l.ended = true
	}
	return l.err
}

func (l *list) end(err error) { l.ended, l.err = true, l.op.end(err) }

// all returns the whole folder.
func (c *Client) all(ctx context.Context, name string, want contents) ([]entry, error) {
	list, err := c.list(ctx, name, want)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for page, more := list.next(); more; page, more = list.next() {
		entries = append(entries, page...)
	}
	if err := list.close(); err != nil {
		return nil, err
	}
	return entries, nil
}
