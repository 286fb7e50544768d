package lease

import (
	"context"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// clock counts on while the machine sleeps, as Go's own monotonic clock does not:
// see CLOCK_BOOTTIME in clock_gettime(2).
func clock() at {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Since(start)
	}
	return at(ts.Nano())
}

// start is for a system without that clock, which Linux has had since 2.6.39.
var start = time.Now()

// fence ends what is under way when the lease is no longer valid. A process that
// was stopped and goes on must not write one more byte, and it may go on anywhere:
// so the clock is read before each step, and a timer ends what only waits.
type fence struct {
	isOpen func() (left time.Duration)

	mu     sync.Mutex
	timer  *time.Timer
	ctx    context.Context // ends when the fence closes
	cancel context.CancelFunc
	shut   bool // for good
}

func (f *fence) init(isOpen func() time.Duration) {
	f.isOpen = isOpen
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.cancel()
}

// opened notes that the fence is open, or open for longer. It is called with the
// lease's lock held.
func (f *fence) opened() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut {
		return
	}
	f.renew()
	if f.timer == nil {
		f.timer = time.AfterFunc(0, f.expire)
		return
	}
	f.timer.Reset(0)
}

func (f *fence) renew() {
	if f.ctx.Err() != nil {
		f.ctx, f.cancel = context.WithCancel(context.Background())
	}
}

// expire ends the context if its time is over, and otherwise waits until then.
func (f *fence) expire() {
	left := f.isOpen()
	f.mu.Lock()
	defer f.mu.Unlock()
	if left <= 0 || f.shut {
		f.cancel()
		return
	}
	f.renew() // it was opened while an earlier call of this found it closed
	f.timer.Reset(left)
}

// close closes the fence for good.
func (f *fence) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shut = true
	f.cancel()
}

func (f *fence) context() (context.Context, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ctx, !f.shut
}

// isOpen returns for how long something may still be written.
func (l *Lease) isOpen() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	if !l.p.open(now) {
		return 0
	}
	return l.p.until - now
}

// Do runs f, which writes the replica, while the lease is valid: its context ends
// with the lease, and goes on with each renewal. If f is not done by then, it has
// failed, whatever it returns, because its outcome is not known: the error is a
// *NotHeldError or a *LostError. Where no lease can be had, f runs without one.
func (l *Lease) Do(ctx context.Context, f func(ctx context.Context) error) error {
	if l.State().Name == Unsupported {
		return f(ctx)
	}
	valid, usable := l.fence.context()
	if err := l.barred(usable); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(valid, cancel)()
	err := f(fenced{ctx, l})
	if why := l.barred(true); why != nil {
		return why
	}
	return err
}

// Valid returns nil while something may be written. All that was read of the replica
// until then is ours, or older than our lease. Else the error is a *NotHeldError or a
// *LostError. Where no lease can be had it is nil.
func (l *Lease) Valid() error {
	if l.State().Name == Unsupported {
		return nil
	}
	_, usable := l.fence.context()
	return l.barred(usable)
}

// barred returns why nothing may be written now, or nil.
func (l *Lease) barred(usable bool) error {
	if usable && l.isOpen() > 0 {
		return nil
	}
	s := l.State()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch s.Name {
	case Lost:
		return &LostError{By: s.Holder}
	case Waiting:
		return &NotHeldError{Err: &HeldError{By: s.Holder}}
	}
	return &NotHeldError{Err: l.failure}
}

// Reader returns r, to be read within Do: it ends when the lease does. It can seek and
// read at an offset if r can, because uploaders look for that.
func (l *Lease) Reader(r io.Reader) io.Reader {
	plain := reader{r, l}
	s, ok := r.(io.ReadSeeker)
	if !ok {
		return plain
	}
	if at, ok := r.(io.ReaderAt); ok {
		return readerAt{reader: plain, Seeker: s, at: at}
	}
	return struct {
		reader
		io.Seeker
	}{plain, s}
}

type reader struct {
	r     io.Reader
	lease *Lease
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.lease.Valid(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

type readerAt struct {
	reader
	io.Seeker
	at io.ReaderAt
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.lease.Valid(); err != nil {
		return 0, err
	}
	return r.at.ReadAt(p, off)
}

// fenced is a context that looks at the clock whenever it is asked.
type fenced struct {
	context.Context
	lease *Lease
}

// over is a closed channel.
var over = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

func (f fenced) Done() <-chan struct{} {
	if f.lease.isOpen() <= 0 {
		return over
	}
	return f.Context.Done()
}

func (f fenced) Err() error {
	if err := f.Context.Err(); err != nil {
		return err
	}
	if f.lease.isOpen() <= 0 {
		return context.Canceled
	}
	return nil
}
