package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// The bounds are wide: a busy machine must not fail a test. They are there to
// distinguish late from never.
const (
	tellWithin = 30 * time.Second // from a fault to being unhealthy, with commits waiting
	healWithin = 90 * time.Second // a request that was swallowed is given up after 20 s, and more for what it carries
	// reading is more than passes between a promise's moment and the end of the read
	// of the WAL that it is about.
	reading     = 5 * time.Second
	silentUntil = 15 * time.Second // a commit is not in the bucket, and health says that all is well
)

// sample is one answer of the health page.
type sample struct {
	asked, answered time.Time
	healthz.Status
}

// watcher asks the health page of a container all the time.
type watcher struct {
	t      *testing.T
	c      *testbed.Container
	ending atomic.Bool // the page may be gone
	end    chan struct{}
	ended  chan struct{}

	asking  sync.Mutex // one at a time: the answers are in order
	mu      sync.Mutex
	samples []sample
}

func watch(t *testing.T, c *testbed.Container) *watcher {
	w := &watcher{t: t, c: c, end: make(chan struct{}), ended: make(chan struct{})}
	t.Cleanup(w.halt)
	go func() {
		defer close(w.ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-w.end:
				return
			case <-tick.C:
			}
			if _, err := w.ask(); err != nil && !w.ending.Load() {
				t.Errorf("the health page: %v", err)
				return
			}
		}
	}()
	return w
}

func (w *watcher) ask() (sample, error) {
	w.asking.Lock()
	defer w.asking.Unlock()
	s := sample{asked: time.Now()}
	var err error
	if s.Status, err = w.c.Health(); err != nil {
		return s, err
	}
	s.answered = time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples = append(w.samples, s)
	return s, nil
}

// promised returns when last_synced_at has just moved, or at the latest after the
// given time: what is promised is most likely to be a lie at that moment.
func (w *watcher) promised(atMost time.Duration) {
	w.t.Helper()
	end := time.Now().Add(atMost)
	var was time.Time
	for time.Now().Before(end) {
		s, err := w.ask()
		if err != nil {
			w.t.Fatal(err)
		}
		if !was.IsZero() && synced(s).After(was) {
			return
		}
		was = synced(s)
		<-time.After(2 * time.Millisecond)
	}
}

func (w *watcher) halt() {
	w.ending.Store(true)
	select {
	case <-w.end:
	default:
		close(w.end)
	}
	<-w.ended
}

// all returns the answers so far.
func (w *watcher) all() []sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clip(w.samples)
}

func (w *watcher) first(ok func(sample) bool) (sample, bool) {
	samples := w.all()
	i := slices.IndexFunc(samples, ok)
	if i < 0 {
		return sample{}, false
	}
	return samples[i], true
}

func (w *watcher) last(ok func(sample) bool) (found sample, is bool) {
	for _, s := range slices.Backward(w.all()) {
		if ok(s) {
			return s, true
		}
	}
	return sample{}, false
}

// await waits for an answer that ok accepts.
func (w *watcher) await(atMost time.Duration, what string, ok func(sample) bool) (found sample) {
	w.t.Helper()
	testbed.Eventually(w.t, atMost, func() error {
		select {
		case <-w.c.Done():
			w.t.Fatal("slasha-init ended")
		default:
		}
		var is bool
		if found, is = w.first(ok); is {
			return nil
		}
		samples := w.all()
		if len(samples) == 0 {
			return fmt.Errorf("%s: no answer at all", what)
		}
		s := samples[len(samples)-1].Status
		return fmt.Errorf("%s: it says healthy %v, %s, last synced %v, pending since %v", what, s.Healthy, text(s.HealthError), s.LastSyncedAt, s.PendingSince)
	})
	return found
}

// working waits until health says that all is well, and that everything from
// before the moment is in the bucket. Of an app that writes no more it does not say
// the moment: a commit that returned while the WAL was being read is in the bucket,
// and not promised.
func (w *watcher) working(load workload, moment time.Time) sample {
	w.t.Helper()
	from := time.Now()
	return w.await(healWithin, "it is healthy", func(s sample) bool {
		if s.asked.Before(from) || !s.Healthy || s.LastSyncedAt == nil {
			return false
		}
		return !synced(s).Before(moment) || load.idle && s.PendingSince == nil && text(s.TXID) == text(s.ReplicaTXID)
	})
}

// acked waits for the first commit, and returns when it had returned.
func (w *watcher) acked() time.Time {
	w.t.Helper()
	w.c.WaitAcked(1, 30*time.Second)
	return w.c.Acks()[0].At
}

// stop ends the watch, checks that what health reported was true, and returns the last
// promise of last_synced_at. acks are the commits of the same container.
func (w *watcher) stop(acks []testbed.Ack) (promise time.Time) {
	w.t.Helper()
	w.halt()
	samples := w.all()
	if len(samples) == 0 || len(acks) == 0 {
		w.t.Fatalf("%d answers of the health page, %d commits", len(samples), len(acks))
	}
	for _, s := range samples {
		if wrong := judge(s, promise, acks); wrong != "" {
			w.t.Errorf("at %s: %s", s.answered.UTC().Format(time.RFC3339Nano), wrong)
			break // the others would say the same
		}
		promise = synced(s)
	}
	return promise
}

// judge says what is not true in an answer, or "".
func judge(s sample, before time.Time, acks []testbed.Ack) string {
	switch at := synced(s); {
	case at.Before(before):
		return fmt.Sprintf("last_synced_at went back from %s to %s", before, at)
	case at.After(s.answered):
		return fmt.Sprintf("last_synced_at is %s, in the future", at)
	}
	if s.Healthy != (s.HealthError == nil) {
		return fmt.Sprintf("healthy is %v and health_error %s", s.Healthy, text(s.HealthError))
	}
	if s.HealthError != nil {
		if e := *s.HealthError; strings.TrimSpace(e) == "" || strings.Contains(e, "\n") {
			return fmt.Sprintf("health_error is not a sentence: %q", e)
		}
		for _, secret := range []string{testbed.UserSecret, testbed.UserKey} {
			if strings.Contains(*s.HealthError, secret) {
				return "health_error has a secret"
			}
		}
	}
	if late := unpromised(s, acks, reading); s.Healthy && late > maxLag+silentUntil {
		return fmt.Sprintf("healthy, but a commit has not been in the bucket for %s; last_synced_at is %s", late, synced(s))
	}
	return ""
}

// synced is what the answer promises, or the zero time.
func synced(s sample) time.Time {
	if s.LastSyncedAt == nil {
		return time.Time{}
	}
	return time.Time(*s.LastSyncedAt)
}

// unpromised returns the age of the oldest commit that the answer did not promise to be
// in the bucket. It leaves out commits that returned until a while after the promised
// moment. It measures from the outside, by the app's clock.
func unpromised(s sample, acks []testbed.Ack, while time.Duration) time.Duration {
	at := synced(s).Add(while)
	i, _ := slices.BinarySearchFunc(acks, at, func(a testbed.Ack, at time.Time) int { return a.At.Compare(at) })
	if i == len(acks) || acks[i].At.After(s.asked) {
		return 0
	}
	return s.asked.Sub(acks[i].At)
}

// lag is the longest time that a commit was seen without being promised. It takes
// the answer's word for it that none is pending.
func (w *watcher) lag(acks []testbed.Ack) (longest time.Duration) {
	for _, s := range w.all() {
		if s.PendingSince != nil {
			longest = max(longest, unpromised(s, acks, 0))
		}
	}
	return longest
}

// kept looks, after a kill, whether what was promised is in the bucket. It returns
// how many commits were promised, and how many are there.
func (c faultCase) kept(t *testing.T, r *road, acks []testbed.Ack, promise time.Time) (promised, there int) {
	t.Helper()
	i := slices.IndexFunc(acks, func(a testbed.Ack) bool { return !a.At.Before(promise) })
	if i < 0 {
		i = len(acks)
	}
	if i == 0 && !c.idle {
		t.Errorf("the promise of %s was about nothing", promise)
	}
	restored := filepath.Join(t.TempDir(), "killed.db")
	r.s3.OfficialRestore(restored)
	entries := testbed.Entries(t, restored)
	if lost := c.lost(entries, acks[:i]); len(lost) > 0 {
		t.Errorf("last_synced_at was %s; of %d commits before that %d are lost: %v", promise, i, len(lost), lost[:min(len(lost), 10)])
	}
	return i, len(acks) - len(c.lost(entries, acks))
}

// lost returns the commits that are not among the entries, and that the app has not
// deleted by itself: it deletes one when that many newer ones are there.
func (c faultCase) lost(entries []testbed.Entry, acks []testbed.Ack) (lost []int64) {
	have := make(map[int64]bool, len(entries))
	var newest int64
	for _, e := range entries {
		have[e.ID] = true
		newest = max(newest, e.ID)
	}
	for _, a := range acks {
		if !have[a.ID] && (c.keep == 0 || a.ID > newest-c.keep) {
			lost = append(lost, a.ID)
		}
	}
	return lost
}
