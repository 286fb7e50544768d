package replica

import (
	"context"
	"errors"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/wait"
	"github.com/slashacom/slasha-init/replica/lease"
	"github.com/slashacom/slasha-init/replica/storage"
)

const (
	// answering is how long a start waits for a replica to answer before it goes on
	// without the lease, if it may.
	answering = 3 * time.Second
	// givingBack is how long a stop may last beyond its own time. The last upload
	// has just worked, so this will not take as long.
	givingBack = time.Second
	// askLease is how often an idle database asks how the lease stands, which makes no
	// request: health reports a renewal that failed this soon.
	askLease = 10 * time.Second
)

// claim is the right of the one that holds the lease.
type claim struct {
	cfg     Config
	lease   *lease.Lease
	explain func(error) (sentence string, temporary bool)

	waiting waiting
	checked atomic.Int64 // when the replica answered a check, in nanoseconds of Unix time

	mu     sync.Mutex
	asked  bool               // somebody has tried to take the lease
	end    context.CancelFunc // of the renewals; nil before they have begun
	ended  chan struct{}      // closed when they have ended
	reason error              // why this container may never write again
}

func newClaim(cfg Config, store *storage.Client, explain func(error) (string, bool)) *claim {
	c := &claim{cfg: cfg, explain: explain, waiting: waiting{say: cfg.OnWaiting}}
	c.lease = lease.New(lease.Config{
		Store:   leaseStore{store},
		TTL:     cfg.TTL,
		Host:    cfg.Who,
		Replica: store.String(),
		OnState: c.changed,
		Logger:  cfg.Logger,
	})
	return c
}

// leaseStore keeps the lease's record in the replica.
type leaseStore struct{ store *storage.Client }

// leaseName is the record's name in our folder of the replica.
const leaseName = "lease.json"

func (s leaseStore) Read(ctx context.Context) (data []byte, tag string, age time.Duration, err error) {
	own, err := s.store.ReadOwn(ctx, leaseName)
	return own.Data, own.Tag, own.Age, err
}

func (s leaseStore) Write(ctx context.Context, data []byte, ifTag string) (string, error) {
	return s.store.WriteOwn(ctx, leaseName, data, ifTag)
}

// changed logs how the lease stands now. It must not ask the lease.
func (c *claim) changed(s lease.State) {
	switch s.Name {
	case lease.Held:
		c.cfg.Logger.Info("this instance holds the replica's lease", "epoch", s.Epoch)
	case lease.Lapsed:
		c.cfg.Logger.Warn("the replica's lease could not be renewed in time: nothing is uploaded until it is", "epoch", s.Epoch)
	case lease.Waiting:
		c.cfg.Logger.Warn("waiting for another instance to leave this replica", "instance", s.Holder, "for", c.cfg.Patience)
		c.waiting.because("waiting: " + (&lease.HeldError{By: s.Holder}).Error())
	}
}

func (c *claim) take(ctx context.Context, memory *durable.Note) error {
	c.remember(memory)
	err := c.try(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var held *lease.HeldError
	switch {
	case err == nil:
	case errors.Is(err, errors.ErrUnsupported) && c.cfg.Lease == Required:
		return exit.With(exit.Config, errors.New("--lease required: the replica's service does not support conditional writes, so there can be no lease; set auto or off, or use another service"))
	case errors.Is(err, errors.ErrUnsupported):
	case errors.As(err, &held):
		return held
	case c.cfg.Lease == Required:
		return exit.With(exit.Held, errors.New(c.cannot(err)))
	default:
		// The steps that follow deal with a replica that does not answer.
		sentence, _ := c.explain(err)
		c.cfg.Logger.Info("the replica's lease is not taken yet", "because", sentence)
	}
	c.waiting.over()
	c.keep()
	return nil
}

// try returns when the lease is held, when another instance has kept it for the whole
// patience, or when the replica does not answer. If the lease is required, try waits
// the whole patience for an answer too.
func (c *claim) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Patience)
	defer cancel()
	c.waiting.begin()
	defer c.waiting.end()
	for {
		attempt, cancel := context.WithCancel(ctx)
		bound := time.AfterFunc(answering, func() {
			if c.lease.State().Name != lease.Waiting {
				cancel()
			}
		})
		err := c.lease.Take(attempt)
		bound.Stop()
		cancel()
		if c.cfg.Lease != Required || err == nil || errors.Is(err, errors.ErrUnsupported) || ctx.Err() != nil {
			if errors.Is(err, context.Canceled) {
				err = context.DeadlineExceeded
			}
			return err
		}
		c.waiting.because(c.cannot(err))
		wait.For(ctx, time.Second)
	}
}

func (c *claim) cannot(err error) string {
	sentence, _ := c.explain(err)
	return "the replica's lease can't be taken: " + sentence
}

func (c *claim) takeOver(ctx context.Context, memory *durable.Note) {
	c.remember(memory)
	ctx, cancel := context.WithTimeout(ctx, answering)
	defer cancel()
	_ = c.lease.Take(ctx) // the uploads report why there is no lease
	c.keep()
}

// remember notes where the volume remembers its lease, and that the lease is about to be
// asked for.
func (c *claim) remember(memory *durable.Note) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
	c.lease.RememberIn(memory)
}

// keep renews the lease from now on, until abandon ends that or the lease is lost.
func (c *claim) keep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.end, c.ended = cancel, make(chan struct{})
	go func(ended chan<- struct{}) {
		defer close(ended)
		for !c.renew(ctx) && wait.For(ctx, renewAgain) {
		}
	}(c.ended)
}

// renewAgain is the pause after a bug has ended the renewals: as long as the lease is not
// renewed, it lapses, and nothing more is uploaded.
const renewAgain = time.Second

// renew renews the lease until ctx ends or another instance has taken it, which it
// reports. It returns false when a bug has ended it before: the app must not die of that.
func (c *claim) renew(ctx context.Context) (done bool) {
	defer func() {
		if p := recover(); p != nil {
			done = false
			c.cfg.Logger.Error("a bug in slasha-init or Litestream, please report it", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	err := c.lease.Keep(ctx, c.cfg.Patience)
	var lost *lease.LostError
	var held *lease.HeldError
	if !errors.As(err, &lost) && !errors.As(err, &held) {
		return true
	}
	c.cfg.Logger.Error("another instance writes this replica: the app is stopped, and nothing is uploaded", "error", err)
	c.mu.Lock()
	c.reason = err
	c.mu.Unlock()
	if c.cfg.OnLost != nil {
		c.cfg.OnLost(err)
	}
	return true
}

func (c *claim) abandon() {
	c.mu.Lock()
	end, ended := c.end, c.ended
	c.mu.Unlock()
	if end != nil {
		end()
		<-ended
	}
}

func (c *claim) release() bool {
	c.abandon()
	c.mu.Lock()
	asked := c.asked
	c.mu.Unlock()
	if !asked || c.lost() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), givingBack)
	defer cancel()
	if err := c.lease.Release(ctx); err != nil {
		sentence, _ := c.explain(err)
		c.cfg.Logger.Warn("the replica's lease was not given back: the next instance has to wait until it expires", "error", sentence, "time", c.cfg.TTL)
		return false
	}
	return true
}

func (c *claim) do(ctx context.Context, f func(context.Context) error) error {
	return c.lease.Do(ctx, f)
}

func (c *claim) valid() error                 { return c.lease.Valid() }
func (c *claim) reader(r io.Reader) io.Reader { return c.lease.Reader(r) }

func (c *claim) check(ctx context.Context, ask func(context.Context) error) error {
	fresh, err := c.lease.Check(checkInterval)
	if err != nil || fresh || time.Since(time.Unix(0, c.checked.Load())) < checkInterval {
		return err
	}
	if err := ask(ctx); err != nil {
		return err
	}
	c.checked.Store(time.Now().UnixNano())
	return nil
}

func (*claim) checkInterval() time.Duration { return askLease }

func (c *claim) missing() error {
	if s := c.lease.State().Name; s == lease.Held || s == lease.Unsupported {
		return nil
	}
	return &lease.NotHeldError{Err: context.DeadlineExceeded}
}

func (c *claim) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

func (c *claim) state() (string, uint64, string) {
	s := c.lease.State()
	return string(s.Name), s.Epoch, s.Holder
}

// waiting reports why a start waits for the lease. It reports nothing at other times,
// because the renewals may find another instance too.
type waiting struct {
	say func(sentence string) // may be nil

	mu   sync.Mutex
	on   bool // a start waits
	said bool // that was reported
}

func (w *waiting) begin() { w.set(true) }
func (w *waiting) end()   { w.set(false) }

func (w *waiting) set(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = on
}

// because reports why the start waits.
func (w *waiting) because(sentence string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.on && w.say != nil {
		w.said = true
		w.say(sentence)
	}
}

// over reports that the start goes on, if it was reported to wait.
func (w *waiting) over() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.said {
		w.said = false
		w.say("")
	}
}
