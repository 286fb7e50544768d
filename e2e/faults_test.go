package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// Ways in which a bucket can fail, times things that apps do meanwhile. What must
// be true throughout, and afterwards, is in faults_truth_test.go. docs/faults.md
// explains the faults, and has the table of a whole run.
//
//	SLASHA_FAULTS=all        every combination, and the table goes into docs/faults.md
//	SLASHA_FAULTS_OUTAGE=2m  how long the outage of minutes is
//	SLASHA_SEED=N            repeats the choices of a run

// road is all that is between slasha-init and its bucket: a proxy that breaks
// connections, one that breaks requests, and the server.
type road struct {
	s3      *testbed.S3
	breaker *testbed.Breaker
	proxy   *testbed.Proxy
}

func newRoad(t *testing.T, seed uint64) *road {
	s3 := testbed.StartS3(t)
	breaker := testbed.StartBreaker(t, s3.Addr, seed)
	return &road{s3, breaker, testbed.StartProxy(t, breaker.Addr)}
}

// fault is a way in which a bucket can fail.
type fault struct {
	name string
	// out says that no upload is acknowledged while it lasts, so that health has to
	// report it as soon as there are commits.
	out        bool
	long       bool // it lasts as long as SLASHA_FAULTS_OUTAGE says
	begin, end func(*road)
}

// toxic is a fault by toxiproxy's names, of one direction or of both.
func toxic(kind string, attributes map[string]any, streams ...string) func(*road) {
	return func(r *road) {
		for _, stream := range streams {
			r.proxy.Toxic(kind, stream, attributes)
		}
	}
}

func heal(r *road) { r.proxy.Heal() }

func repair(r *road) { r.breaker.Heal() }

// most is the share of the requests that a fault hits which leaves some alone. The
// S3 clients try three times.
const most = 0.6

var faults = []fault{
	{name: "latency", begin: toxic("latency", map[string]any{"latency": 250}, "upstream", "downstream"), end: heal},
	{name: "jitter", begin: toxic("latency", map[string]any{"latency": 200, "jitter": 200}, "upstream", "downstream"), end: heal},
	{name: "bandwidth", begin: toxic("bandwidth", map[string]any{"rate": 50}, "upstream"), end: heal}, // kB/s
	{name: "reset", out: true, begin: toxic("reset_peer", map[string]any{"timeout": 20}, "downstream"), end: heal},
	{name: "half-open", out: true, begin: func(r *road) { r.breaker.Swallow() }, end: repair},
	{name: "cut reply", out: true, begin: toxic("limit_data", map[string]any{"bytes": 60}, "downstream"), end: heal},
	{name: "500 storm", out: true, begin: func(r *road) { r.breaker.Answer(1, http.StatusInternalServerError, "InternalError") }, end: repair},
	{name: "503 storm", begin: func(r *road) { r.breaker.Answer(most, http.StatusServiceUnavailable, "SlowDown") }, end: repair},
	{name: "429 storm", out: true, begin: func(r *road) { r.breaker.Answer(1, http.StatusTooManyRequests, "TooManyRequests") }, end: repair},
	{name: "lost reply", begin: func(r *road) { r.breaker.LoseReplies(most, http.MethodPut) }, end: repair},
	{name: "wrong credentials", out: true, begin: func(r *road) { r.s3.RevokeUser() }, end: func(r *road) { r.s3.GiveUser() }},
	{name: "outage of seconds", out: true, begin: func(r *road) { r.proxy.Cut() }, end: func(r *road) { r.proxy.Mend() }},
	{name: "outage of minutes", out: true, long: true, begin: func(r *road) { r.proxy.Cut() }, end: func(r *road) { r.proxy.Mend() }},
}

// workload is what the app does.
type workload struct {
	name string
	args []string // of guestbook's worker
	keep int64    // the app itself deletes all but the newest so many entries
	idle bool     // it writes one entry, and no more
}

var workloads = []workload{
	{name: "idle", args: []string{"--count", "1", "--every", "1h"}, idle: true},
	{name: "trickle", args: []string{"--every", "700ms"}},
	{name: "steady", args: []string{"--every", "10ms"}},
	{name: "burst", args: []string{"--burst", "300", "--every", "1500ms", "--size", "500", "--random"}},
	{name: "big transactions", args: []string{"--size", "400000", "--random", "--every", "300ms", "--keep", "50"}, keep: 50},
	{name: "VACUUM", args: []string{"--size", "1000", "--random", "--every", "20ms", "--keep", "500", "--sql", "VACUUM", "--sql-after", "60"}, keep: 500},
}

// faultCase is one combination, with all that the seed decides about it.
type faultCase struct {
	fault
	workload
	seed    uint64
	patient bool          // wait until health reports it for an idle app too, which takes up to a minute
	length  time.Duration // of the fault
	// killed: the fault comes a second time, and the container is killed. Otherwise
	// it is stopped after the first one.
	killed     bool
	killAfter  time.Duration // from the second time's beginning
	recovering bool          // the second time is over by then, and it is catching up
	eager      bool          // the kill waits for a promise that has just been made
}

func (c faultCase) String() string { return c.fault.name + "/" + c.workload.name }

// outcome is a line of the table.
type outcome struct {
	faultCase
	told, again       time.Duration // 0: never unhealthy
	lag               time.Duration
	commits, restored int
	promised, there   int // where it was killed
	ok                bool
}

// atOnce is how many cases run side by side: they mostly wait.
const atOnce = 7

// maxLag is what the containers of these tests are given as --max-lag.
const maxLag = 2 * time.Second

func TestFaults(t *testing.T) {
	t.Parallel()
	seed := chosenSeed(t)
	all := os.Getenv("SLASHA_FAULTS") == "all"
	outage := 9 * time.Second
	if s := os.Getenv("SLASHA_FAULTS_OUTAGE"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		outage = d
	}
	t.Logf("SLASHA_SEED=%d", seed)
	cases := chooseFaults(seed, all, outage)
	began := time.Now()
	var mu sync.Mutex
	var outcomes []outcome
	var running sync.WaitGroup
	turn := make(chan struct{}, atOnce)
	for _, c := range cases {
		turn <- struct{}{}
		running.Go(func() {
			defer func() { <-turn }()
			t.Run(c.String(), func(t *testing.T) {
				if raced() && (c.workload.name == "big transactions" || c.workload.name == "VACUUM") {
					t.Skip("Litestream's SQLite is so slow with the race detector that the app's wait for a lock ends before a checkpoint does")
				}
				o := outcome{faultCase: c}
				defer func() {
					o.ok = !t.Failed()
					mu.Lock()
					defer mu.Unlock()
					outcomes = append(outcomes, o)
				}()
				o.run(t)
			})
		})
	}
	running.Wait()
	if len(outcomes) == 0 {
		t.Skip("the seed did not choose this one; SLASHA_FAULTS=all runs every one")
	}
	table := faultTable(outcomes)
	t.Logf("%d of %d combinations in %s\n%s", len(outcomes), len(faults)*len(workloads), time.Since(began).Round(time.Second), table)
	if all && len(outcomes) == len(cases) {
		saveFaults(t, table, seed, outage, time.Since(began))
	}
}

// chooseFaults returns every combination, or for each fault two workloads: they are
// dealt like cards, so that each comes up about as often as the others.
func chooseFaults(seed uint64, all bool, outage time.Duration) []faultCase {
	random := rand.New(rand.NewPCG(seed, 0))
	var cases []faultCase
	var deck []workload
	for _, f := range faults {
		hand := workloads
		if !all {
			hand = nil
			for len(hand) < 2 {
				i := slices.IndexFunc(deck, func(w workload) bool { return len(hand) == 0 || w.name != hand[0].name })
				if i < 0 {
					more := slices.Clone(workloads)
					random.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
					deck = append(deck, more...)
					continue
				}
				hand = append(hand, deck[i])
				deck = slices.Delete(deck, i, i+1)
			}
		}
		for _, w := range hand {
			cases = append(cases, newFaultCase(f, w, seed, all, outage))
		}
	}
	// What takes long goes first, so that nothing is left over at the end.
	takes := func(c faultCase) int {
		switch {
		case c.long:
			return 0
		case c.fault.name == "half-open", c.idle && c.out && all:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(cases, func(a, b faultCase) int { return cmp.Compare(takes(a), takes(b)) })
	return cases
}

// newFaultCase decides by the seed and the names alone, so that a case is the same
// whichever others run.
func newFaultCase(f fault, w workload, seed uint64, patient bool, outage time.Duration) faultCase {
	h := fnv.New64a()
	_, _ = h.Write([]byte(f.name + "/" + w.name))
	random := rand.New(rand.NewPCG(seed, h.Sum64()))
	between := func(from, to time.Duration) time.Duration { return from + time.Duration(random.Int64N(int64(to-from))) }
	c := faultCase{
		fault: f, workload: w, seed: random.Uint64(), patient: patient,
		length:    between(2500*time.Millisecond, 4500*time.Millisecond),
		killed:    random.IntN(3) > 0,
		killAfter: between(0, 3*time.Second),
	}
	c.recovering = random.IntN(3) == 0
	c.eager = (!c.out || c.recovering) && random.IntN(4) > 0
	if c.long {
		c.length = outage
	}
	return c
}

// run is the story of a case: all is well, the fault, all is well again, perhaps the
// fault again and a kill in it and a start after it, and a clean stop.
func (o *outcome) run(t *testing.T) {
	road, vol := newRoad(t, o.seed), newVolume(t)
	db := vol.db(t)
	settings := append(road.s3.Settings(road.proxy.URL(), db), "SLASHA_MAX_LAG="+maxLag.String())
	app := worker(t, db, append([]string{"--stamp"}, o.args...)...)

	c := testbed.StartContainer(t, settings, app...)
	w := watch(t, c)
	w.working(o.workload, w.acked())

	began := time.Now()
	o.begin(road)
	if o.out && (!o.idle || o.patient) {
		told := w.await(90*time.Second, "it is unhealthy", func(s sample) bool { return s.asked.After(began) && !s.Healthy })
		if took := told.answered.Sub(began); !o.idle && took > tellWithin {
			t.Errorf("health reported the fault only after %s", took)
		}
	}
	<-time.After(time.Until(began.Add(o.length)))
	o.end(road)
	healed := time.Now()
	again := w.working(o.workload, healed)
	if told, ok := w.first(func(s sample) bool { return s.asked.After(began) && s.asked.Before(healed) && !s.Healthy }); ok {
		o.told, o.again = told.answered.Sub(began), again.answered.Sub(healed)
		last, _ := w.last(func(s sample) bool { return s.asked.Before(healed) && !s.Healthy })
		t.Logf("after %s: %s; last: %s", o.told.Round(time.Millisecond), text(told.HealthError), text(last.HealthError))
	}

	var before []testbed.Ack
	if o.killed {
		o.begin(road)
		half := o.killAfter
		if o.recovering {
			half /= 2
			<-time.After(half)
			o.end(road)
		}
		<-time.After(half)
		if o.eager {
			w.promised(2 * time.Second)
		}
		w.ending.Store(true)
		c.Kill()
		if !o.recovering {
			o.end(road)
		}
		before = c.Acks()
		promise := w.stop(before)
		o.lag = w.lag(before)
		o.promised, o.there = o.kept(t, road, before, promise)

		c = testbed.StartContainer(t, settings, app...)
		w = watch(t, c)
		w.working(o.workload, w.acked())
	}
	w.ending.Store(true)
	c.Signal(syscall.SIGTERM)
	if code := c.Wait(20 * time.Second); code != 0 {
		t.Fatalf("exit %d after a clean stop", code)
	}
	acks := c.Acks()
	w.stop(acks)
	o.lag = max(o.lag, w.lag(acks))
	acks = append(before, acks...)
	noSecret(t, c.Stderr.String())

	official, ours := filepath.Join(t.TempDir(), "official.db"), filepath.Join(t.TempDir(), "ours.db")
	road.s3.OfficialRestore(official)
	testbed.MustRun(t, road.s3.Settings(road.s3.URL(), db), time.Minute, testbed.SlashaInit(t), "restore", "--output", ours)
	samePages(t, official, ours)
	entries := testbed.Entries(t, official)
	if !slices.Equal(entries, testbed.Entries(t, ours)) {
		t.Error("the official command and ours restore other rows")
	}
	if live := testbed.Entries(t, db); !slices.Equal(entries, live) {
		t.Errorf("%d entries are restored, %d live", len(entries), len(live))
	}
	o.commits = len(acks)
	lost := o.lost(entries, acks)
	o.restored = o.commits - len(lost)
	if o.commits == 0 || len(lost) > 0 {
		t.Errorf("of %d commits %d are lost: %v", o.commits, len(lost), lost[:min(len(lost), 10)])
	}
	if dir := os.Getenv("SLASHA_KEEP"); dir != "" && t.Failed() {
		// What is there is the only witness of what happened.
		testbed.MustRun(t, nil, time.Minute, "cp", "-a", filepath.Dir(db), road.s3.Dir, dir)
	}
}

// samePages compares two restored files byte by byte.
func samePages(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("the official command restores %d bytes, ours %d, and they are not the same", len(x), len(y))
	}
}

func faultTable(outcomes []outcome) string {
	place := func(o outcome) int {
		f := slices.IndexFunc(faults, func(f fault) bool { return f.name == o.fault.name })
		return f*len(workloads) + slices.IndexFunc(workloads, func(w workload) bool { return w.name == o.workload.name })
	}
	slices.SortFunc(outcomes, func(a, b outcome) int { return cmp.Compare(place(a), place(b)) })
	seconds := func(d time.Duration) string {
		if d == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	var b strings.Builder
	b.WriteString("| fault | workload | unhealthy reported after | longest lag seen | healthy again after | commits | restored | result |\n|---|---|---|---|---|---|---|---|\n")
	for _, o := range outcomes {
		result := "ok"
		if o.killed {
			result = fmt.Sprintf("ok; killed: %d promised, %d there", o.promised, o.there)
		}
		if !o.ok {
			result = "FAILED"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d | %d | %s |\n", o.fault.name, o.workload.name,
			seconds(o.told), seconds(o.lag), seconds(o.again), o.commits, o.restored, result)
	}
	return b.String()
}

// saveFaults writes the table into the document.
func saveFaults(t *testing.T, table string, seed uint64, outage, took time.Duration) {
	t.Helper()
	testbed.WriteDocument(t, "faults.md", "faults", fmt.Sprintf("\n%s, %s. Seed %d, %d cases at once, %s in all; the outage of minutes was of %s.\n\n%s",
		testbed.Machine(), time.Now().UTC().Format(time.DateOnly), seed, atOnce, took.Round(time.Second), outage, table))
}
