package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/durable"
)

// shelf is a replica in memory, with what can go wrong on the way to it.
type shelf struct {
	mu     sync.Mutex
	data   []byte
	tag    int
	age    time.Duration
	writes int

	away       atomic.Bool  // it does not answer
	loseNext   atomic.Int64 // so many writes are made and their answers lost
	ignore     atomic.Bool  // conditions are ignored
	ignoreTags atomic.Bool  // only those of a tag are
}

var errAway = errors.New("the bucket is away")

func (s *shelf) tagNow() string {
	if s.data == nil {
		return ""
	}
	return fmt.Sprint("tag", s.tag)
}

func (s *shelf) Read(context.Context) ([]byte, string, time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.away.Load():
		return nil, "", 0, errAway
	case s.data == nil:
		return nil, "", 0, os.ErrNotExist
	}
	return s.data, s.tagNow(), s.age, nil
}

func (s *shelf) Write(_ context.Context, data []byte, ifTag string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	obeys := !s.ignore.Load() && (ifTag == "" || !s.ignoreTags.Load())
	switch {
	case s.away.Load():
		return "", errAway
	case obeys && ifTag != s.tagNow():
		return "", os.ErrExist
	}
	s.data, s.age = data, 0
	s.tag++
	s.writes++
	if s.loseNext.Add(-1) >= 0 {
		return "", errAway
	}
	return s.tagNow(), nil
}

func (s *shelf) record() record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return decode(s.data)
}

const short = 600 * time.Millisecond

func testLease(t *testing.T, s Store, change func(*Config)) *Lease {
	t.Helper()
	cfg := Config{Store: s, TTL: short, Host: "host " + t.Name(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

// remembering gives a lease its memory, in a file.
func remembering(l *Lease, file string) *Lease {
	note := durable.NoteAt(file)
	l.RememberIn(&note)
	return l
}

func keep(t *testing.T, l *Lease) (ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := make(chan error, 1)
	done := make(chan struct{})
	go func() { defer close(done); c <- l.Keep(ctx, time.Minute) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func take(t *testing.T, l *Lease, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return l.Take(ctx)
}

// do writes nothing, and looks at the replica afterwards.
func do(l *Lease) error {
	return cmp.Or(l.Do(context.Background(), func(context.Context) error { return nil }), l.Valid())
}

func TestTakeAndRelease(t *testing.T) {
	s := &shelf{}
	first, second := testLease(t, s, nil), testLease(t, s, nil)
	if err := do(first); err == nil || first.Valid() == nil {
		t.Error("something was uploaded before the lease was taken")
	}
	if err := take(t, first, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	keep(t, first)
	var held *HeldError
	if err := take(t, second, 3*short); !errors.As(err, &held) || !strings.Contains(held.By, "host TestTakeAndRelease, epoch 1") {
		t.Errorf("the second: %v", err)
	}
	if err := do(first); err != nil {
		t.Errorf("the first: %v", err)
	}
	if err := do(second); !errors.As(err, &held) || !errors.As(second.Valid(), &held) {
		t.Errorf("the second's upload: %v", err)
	}
	if err := first.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := do(first); err == nil || first.Valid() == nil {
		t.Error("something was uploaded after the lease was given back")
	}
	start := time.Now()
	if err := take(t, second, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took >= short {
		t.Errorf("a lease that was given back was waited for, %v", took)
	}
	if s := second.State(); s.Name != Held || s.Epoch != 2 {
		t.Errorf("the second: %+v", s)
	}
}

// A lease waits for a holder that has vanished for a whole TTL, on its own clock.
func TestAbandoned(t *testing.T) {
	s := &shelf{}
	if err := take(t, testLease(t, s, nil), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	second := testLease(t, s, nil)
	if err := take(t, second, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < short {
		t.Errorf("taken after %v, before the first's could have ended", took)
	}
}

// An instance that waits for a holder goes on waiting while the replica is away: that
// says nothing about the holder.
func TestWaitingOutlastsAnOutage(t *testing.T) {
	s := &shelf{}
	first, second := testLease(t, s, func(c *Config) { c.TTL = time.Hour }), testLease(t, s, nil)
	if err := take(t, first, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	taken := make(chan error, 1)
	go func() { taken <- take(t, second, 30*time.Second) }()
	eventually(t, func() bool { return second.State().Name == Waiting })
	s.away.Store(true)
	eventually(t, func() bool { _, err := second.Check(0); return err != nil })
	s.away.Store(false)
	if err := first.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Error(err)
	}
}

// How long to wait depends on the holder's TTL, not on one's own.
func TestAbandonedWithALongerTTL(t *testing.T) {
	s := &shelf{}
	if err := take(t, testLease(t, s, func(c *Config) { c.TTL = time.Hour }), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	second := testLease(t, s, nil)
	var held *HeldError
	if err := take(t, second, 3*short); !errors.As(err, &held) {
		t.Errorf("the second: %v", err)
	}
	s.age = 2 * time.Hour // as the server says
	if err := take(t, second, 5*time.Second); err != nil {
		t.Errorf("after two hours: %v", err)
	}
}

// The volume's own lease is taken back at once, with a higher epoch: also when
// the answer to the first write was lost, and only the volume knows of it.
func TestTakenBack(t *testing.T) {
	s := &shelf{}
	file := filepath.Join(t.TempDir(), "lease.json")
	here := func() *Lease {
		return remembering(testLease(t, s, func(c *Config) { c.TTL, c.Replica = time.Hour, "s3://b/p" }), file)
	}
	if err := take(t, here(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	s.loseNext.Store(1)
	second := here()
	if err := take(t, second, 5*time.Second); !errors.Is(err, errAway) {
		t.Fatalf("a lost answer: %v", err)
	}
	third := here()
	if err := take(t, third, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := third.State(); got.Name != Held || got.Epoch != 3 {
		t.Errorf("the third: %+v", got)
	}
	if m, err := load(durable.NoteAt(file)); err != nil || len(m.Owners) != 1 || m.Epoch != 3 || m.Replica != "s3://b/p" {
		t.Errorf("the volume remembers %+v, %v", m, err)
	}
	// Another instance has written since, so it is a stranger's.
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	var held *HeldError
	if err := take(t, here(), 200*time.Millisecond); !errors.As(err, &held) {
		t.Errorf("without the memory: %v", err)
	}
}

// A copy of a volume is not the volume: there, the one that the note names may be
// alive, on the original.
func TestACopyOfTheVolume(t *testing.T) {
	s := &shelf{}
	volume := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	on := func(dir string) *Lease {
		l := testLease(t, s, func(c *Config) { c.TTL, c.Replica = time.Hour, "s3://b/p" })
		return remembering(l, filepath.Join(dir, "lease.json"))
	}
	if err := take(t, on(volume), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	duplicate := volume + " copied"
	if out, err := exec.Command("cp", "-a", volume, duplicate).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var held *HeldError
	if err := take(t, on(duplicate), 200*time.Millisecond); !errors.As(err, &held) {
		t.Errorf("on a copy: %v", err)
	}
	moved := volume + " mounted elsewhere"
	if err := os.Rename(volume, moved); err != nil {
		t.Fatal(err)
	}
	if err := take(t, on(moved), 5*time.Second); err != nil {
		t.Errorf("on the volume itself: %v", err)
	}
}

func TestMemoryThatCantBeRead(t *testing.T) {
	s := &shelf{}
	file := filepath.Join(t.TempDir(), "lease.json")
	if err := os.WriteFile(file, []byte("\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := remembering(testLease(t, s, nil), file)
	if err := take(t, l, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if m, err := load(durable.NoteAt(file)); err != nil || len(m.Owners) != 1 {
		t.Errorf("the volume remembers %+v, %v", m, err)
	}
}

// The answer to a renewal is lost: what is found then is our own.
func TestLostAnswers(t *testing.T) {
	s := &shelf{}
	l := testLease(t, s, nil)
	s.loseNext.Store(1)
	if err := take(t, l, 5*time.Second); !errors.Is(err, errAway) {
		t.Fatalf("the first write: %v", err)
	}
	if err := take(t, l, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	keep(t, l)
	for range 3 {
		s.mu.Lock()
		before := s.writes
		s.mu.Unlock()
		s.loseNext.Store(1)
		eventually(t, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.writes > before+1
		})
		if err := do(l); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.State(); got.Name != Held || got.Epoch != 1 {
		t.Errorf("%+v", got)
	}
}

// A start that is stopped before it knows that it has the lease gives it back all
// the same.
func TestReleaseOfWhatIsNotKnownToBeOurs(t *testing.T) {
	s := &shelf{}
	l := testLease(t, s, nil)
	s.loseNext.Store(1)
	if err := take(t, l, 5*time.Second); !errors.Is(err, errAway) {
		t.Fatal(err)
	}
	if err := l.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := s.record(); !got.Released || got.Owner != l.p.me {
		t.Errorf("%+v", got)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came to that")
		}
	}
}

// The replica is away for longer than the TTL: uploads that are under way end,
// none begins, and all goes on when it is back, if no other instance came between.
func TestLapse(t *testing.T) {
	s := &shelf{}
	l := testLease(t, s, nil)
	if err := take(t, l, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	keep(t, l)
	long := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		long <- l.Do(context.Background(), func(ctx context.Context) error {
			close(begun)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	<-begun
	time.Sleep(2 * short) // renewals carry it on
	select {
	case err := <-long:
		t.Fatalf("an upload ended while the lease was renewed: %v", err)
	default:
	}
	s.away.Store(true)
	var not *NotHeldError
	if err := <-long; !errors.As(err, &not) || !errors.Is(err, errAway) {
		t.Errorf("the upload: %v", err)
	}
	if err := do(l); !errors.As(err, &not) || !errors.As(l.Valid(), &not) {
		t.Errorf("the next: %v", err)
	}
	if got := l.State(); got.Name != Lapsed {
		t.Errorf("%+v", got)
	}
	if _, err := l.Check(time.Hour); !errors.Is(err, errAway) {
		t.Errorf("check: %v", err)
	}
	s.away.Store(false)
	eventually(t, func() bool { return do(l) == nil })
	if got := l.State(); got.Name != Held || got.Epoch != 1 {
		t.Errorf("%+v", got)
	}
	if fresh, err := l.Check(time.Hour); !fresh || err != nil {
		t.Errorf("check: %t, %v", fresh, err)
	}
}

// Another instance has come between: the lease is lost for good, and the record of the
// other one is not touched.
func TestLost(t *testing.T) {
	s := &shelf{}
	l := testLease(t, s, nil)
	if err := take(t, l, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	ended := keep(t, l)
	s.away.Store(true)
	eventually(t, func() bool { return l.State().Name == Lapsed })
	s.mu.Lock()
	s.data, s.tag = record{Epoch: 7, Owner: "other", Host: "elsewhere", TTLSeconds: 3600}.encode(), s.tag+1
	s.mu.Unlock()
	s.away.Store(false)
	var lost *LostError
	if err := <-ended; !errors.As(err, &lost) || lost.By != "elsewhere, epoch 7" {
		t.Errorf("Keep: %v", err)
	}
	if err := do(l); !errors.As(err, &lost) || !errors.As(l.Valid(), &lost) {
		t.Errorf("an upload: %v", err)
	}
	if err := l.Release(context.Background()); err != nil {
		t.Errorf("release: %v", err)
	}
	if got := s.record(); got.Owner != "other" || got.Released {
		t.Errorf("the other's record is now %+v", got)
	}
}

// The record was deleted, by a person or by a rule of the bucket.
func TestRecordDeleted(t *testing.T) {
	s := &shelf{}
	l := testLease(t, s, nil)
	if err := take(t, l, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	keep(t, l)
	s.mu.Lock()
	s.data = nil
	s.mu.Unlock()
	eventually(t, func() bool { return s.record().Owner == l.p.me })
	if got := l.State(); got.Name != Held || got.Epoch != 1 {
		t.Errorf("%+v", got)
	}
}

// A service that ignores conditions is detected, and no instance has to wait for what
// the probe has written. Uploads go on without a lease.
func TestUnsupported(t *testing.T) {
	for name, change := range map[string]func(*shelf){
		"all":     func(s *shelf) { s.ignore.Store(true) },
		"of tags": func(s *shelf) { s.ignoreTags.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			s := &shelf{}
			change(s)
			for range 2 {
				l := testLease(t, s, nil)
				if err := take(t, l, 5*time.Second); !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("take: %v", err)
				}
				if got := l.State(); got.Name != Unsupported {
					t.Errorf("%+v", got)
				}
				if err := do(l); err != nil {
					t.Errorf("an upload: %v", err)
				}
				if err := l.Keep(context.Background(), time.Minute); !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("keep: %v", err)
				}
			}
		})
	}
}

// Many want it at once, again and again: one has it at a time.
func TestOneOfMany(t *testing.T) {
	s := &shelf{}
	var writing atomic.Int64
	var took [5]int
	var all sync.WaitGroup
	for i := range took {
		all.Go(func() {
			for range 5 {
				l := testLease(t, s, nil)
				if err := take(t, l, 30*time.Second); err != nil {
					t.Error(err)
					return
				}
				err := l.Do(context.Background(), func(context.Context) error {
					if n := writing.Add(1); n != 1 {
						t.Errorf("%d write at once", n)
					}
					writing.Add(-1)
					return nil
				})
				if err == nil {
					took[i]++
				}
				if err := l.Release(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got := s.record(); got.Epoch < 25 || !got.Released {
		t.Errorf("%+v after %v", got, took)
	}
}

// A clock that jumps, as that of a machine that was stopped does, closes the fence
// before anything else is done: also for what is in the middle of an upload.
func TestAJumpOfTheClock(t *testing.T) {
	s := &shelf{}
	var jump atomic.Int64
	l := newLease(Config{Store: s, TTL: time.Hour, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
		func() at { return clock() + time.Duration(jump.Load()) })
	if err := take(t, l, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	err := l.Do(context.Background(), func(ctx context.Context) error {
		if ctx.Err() != nil {
			t.Error("the fence is closed from the start")
		}
		jump.Store(int64(2 * time.Hour))
		select {
		case <-ctx.Done():
		default:
			t.Error("the context goes on")
		}
		child, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		if child.Err() == nil {
			t.Error("a request that begins now goes on")
		}
		return nil // it has got through all the same
	})
	var not *NotHeldError
	if !errors.As(err, &not) {
		t.Errorf("an upload that ended after the lease: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record{Epoch: 3, Owner: "me", TTLSeconds: 60}.encode())
	f.Add([]byte(`{"owner":"x","ttl_seconds":1e300,"host":"\u001b[31m"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := decode(data)
		if r.Owner == "" {
			t.Error("nobody's")
		}
		if d := r.ttl(time.Minute); d <= 0 || d > longestTTL {
			t.Errorf("a TTL of %v", d)
		}
		if h := r.holder(); len(h) > 600 || strings.ContainsFunc(h, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			t.Errorf("the holder is called %q", h)
		}
	})
}
