package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Three containers on two volumes, whose apps write all the time, and one replica.
// Round by round something is done to one of them. What must be true throughout,
// and of what is restored now and then, is in torture_truth_test.go.
//
//	SLASHA_TORTURE=n  rounds in all (200)
//	SLASHA_SEED=N     repeats the choices of a run; what comes of them also depends
//	                  on the machine

const (
	tortureRounds = 200
	arenaRounds   = 50 // each arena begins with an empty bucket
	arenasAtOnce  = 4  // they mostly wait
	checkEvery    = 17 // rounds
	tortureTTL    = 3 * time.Second
	pollEvery     = 150 * time.Millisecond
	endWithin     = 30 * time.Second // of a stop signal; its own time is much shorter
	leadWithin    = 90 * time.Second // of the end of all faults
)

func TestTorture(t *testing.T) {
	t.Parallel()
	seed := chosenSeed(t)
	rounds := tortureRounds
	if raced() {
		rounds /= 4 // it is slower, and others look at the rest
	}
	if s := os.Getenv("SLASHA_TORTURE"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		rounds = n
	}
	t.Logf("SLASHA_SEED=%d SLASHA_TORTURE=%d", seed, rounds)
	began := time.Now()
	var running sync.WaitGroup
	turn := make(chan struct{}, arenasAtOnce)
	for n := 0; n*arenaRounds < rounds; n++ {
		turn <- struct{}{}
		running.Go(func() {
			defer func() { <-turn }()
			t.Run(strconv.Itoa(n), func(t *testing.T) {
				a := newArena(t, seed, n)
				a.run(min(arenaRounds, rounds-n*arenaRounds))
			})
		})
	}
	running.Wait()
	t.Logf("%d rounds in %s", rounds, time.Since(began).Round(time.Second))
}

// arena is one story. One goroutine does all that happens in it; others only watch.
type arena struct {
	t      *testing.T
	seed   uint64
	random *rand.Rand
	began  time.Time
	s3     *testbed.S3
	places []*place
	lives  []*tenure // all that there have been
	ending bool      // who ends is not started again
	said   strings.Builder

	promises map[string]time.Time // by the app's signature: its commits before that are in the replica
	kept     []chained            // what the last check restored
	tally    map[string]int
	leaders  int // that were seen
	moves    int // of the lead to the other volume
}

// place is where a container runs, one after the other.
type place struct {
	name     string
	volume   string // path of the database
	kind     string // process type
	settings []string
	health   string // address
	proxy    *testbed.Proxy
	n        int       // starts so far
	now      *tenure   // nil while it is down
	startAt  time.Time // while it is down
	goOnAt   time.Time // while it is stopped, else zero
	mendAt   time.Time // while its bucket is cut off, else zero
}

func newArena(t *testing.T, seed uint64, n int) *arena {
	a := &arena{
		t: t, seed: seed, random: rand.New(rand.NewPCG(seed, uint64(n))), began: time.Now(),
		s3: testbed.StartS3(t), promises: make(map[string]time.Time), tally: make(map[string]int),
	}
	volumes := map[string]string{"a": newVolume(t).db(t), "b": newVolume(t).db(t)}
	t.Cleanup(a.leaveTraces) // before the volumes go
	for _, p := range []place{{name: "a-web", kind: "web"}, {name: "a-worker", kind: "worker"}, {name: "b-web", kind: "web"}} {
		p.volume = volumes[p.name[:1]]
		p.proxy = testbed.StartProxy(t, a.s3.Addr)
		p.health = testbed.FreeAddr(t)
		p.settings = append(a.s3.Settings(p.proxy.URL(), p.volume),
			"SLASHA_HEALTH_ADDR="+p.health, "SLASHA_PROCESS_TYPE="+p.kind, "SLASHA_LEASE_TTL="+tortureTTL.String(),
			"SLASHA_LOCK_TIMEOUT=4s", "SLASHA_SYNC_INTERVAL=50ms", "SLASHA_STOP_TIMEOUT=4s")
		a.places = append(a.places, &p)
	}
	return a
}

// run plays the rounds. The seed decides on all that is done, and on when.
func (a *arena) run(rounds int) {
	a.settle(0)
	a.checked(a.lead()) // there is something to lose
	for n := 1; n <= rounds; n++ {
		var all int
		for _, d := range deeds {
			all += d.weight
		}
		pick := a.random.IntN(all)
		i := 0
		for ; pick >= deeds[i].weight; i++ {
			pick -= deeds[i].weight
		}
		d, p := deeds[i], a.places[a.random.IntN(len(a.places))]
		if leader := a.leader(); a.random.IntN(2) == 0 && leader != nil {
			p = leader // most can go wrong there
		}
		long := a.between(100*time.Millisecond, 2*time.Second)
		if a.random.IntN(5) < 2 {
			long = a.between(tortureTTL+500*time.Millisecond, 2*tortureTTL)
		}
		pause := a.between(50*time.Millisecond, 1700*time.Millisecond)
		if a.random.IntN(5) == 0 {
			pause = a.between(0, 50*time.Millisecond)
		}
		name := d.name
		if p.now == nil && (d.name == "kill" || d.name == "stop" || strings.HasPrefix(d.name, "freeze")) {
			name, p.startAt = "start", time.Now()
		} else {
			d.do(a, p, long)
		}
		a.tally[name]++
		a.logf("round %d: %s %s (%s)", n, name, p.name, long.Round(time.Millisecond))
		a.settle(pause)
		if n%checkEvery == 0 || n == rounds {
			a.check(n == rounds)
		}
	}
	a.report()
}

// leader is where somebody said last that the lease is held, or nil.
func (a *arena) leader() *place {
	var found *place
	var at time.Time
	for _, p := range a.places {
		if p.now == nil {
			continue
		}
		if s, ok := p.now.newest(); ok && s.held() && s.asked.After(at) {
			found, at = p, s.asked
		}
	}
	return found
}

// lead lets all faults end, and waits for somebody who leads and whose app writes.
// It returns when all that this one had committed is in the replica.
func (a *arena) lead() *tenure {
	a.t.Helper()
	for _, p := range a.places {
		if !p.goOnAt.IsZero() {
			a.goOn(p)
		}
		if !p.mendAt.IsZero() {
			a.mend(p)
		}
		p.startAt = time.Now()
	}
	from := time.Now()
	why := "nobody holds the lease"
	for time.Since(from) < leadWithin {
		a.settle(50 * time.Millisecond)
		for _, p := range a.places {
			l := p.now
			if l == nil || l.stops || l.killed {
				continue
			}
			s, ok := l.newest()
			if !ok || s.asked.Before(from) || !s.held() || !s.Healthy || s.Phase != healthz.Running || len(s.Processes) != 1 {
				continue
			}
			app := l.signature(s.Processes[0].PID)
			if acks := l.acks.all(); len(acks) == 0 || acks[len(acks)-1].name != app || acks[len(acks)-1].At.Before(from) {
				why = l.name + " holds the lease, and its app does not write"
				continue
			}
			asked := time.Now()
			code, _, said := testbed.Run(a.t, p.settings, 30*time.Second, testbed.SlashaInit(a.t), "sync", "--timeout", "10s")
			after := l.ask()
			if code != 0 || !after.held() || after.Lease.Epoch != s.Lease.Epoch || !slices.Equal(pids(after), pids(s)) {
				why = fmt.Sprintf("%s: sync: exit %d, %s", l.name, code, said)
				a.logf("%s", why)
				continue
			}
			a.logf("%s leads after %s, epoch %d, and is synced", l.name, time.Since(from).Round(time.Millisecond), s.Lease.Epoch)
			a.promise(app, asked)
			return l
		}
	}
	a.fatalf("nobody leads %s after the last fault: %s", leadWithin, why)
	return nil
}

// check ends all containers in an order of the seed's choice, when the leader had
// everything in the replica, looks at what can be restored, and starts them again.
func (a *arena) check(atEnd bool) {
	a.t.Helper()
	leader := a.lead()
	how := []string{"kill", "stop", "mixed"}[a.random.IntN(3)]
	a.logf("all are ended: %s", how)
	a.ending = true
	order := slices.Clone(a.places)
	a.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, p := range order {
		mixed := a.random.IntN(2) == 0
		if how == "kill" || how == "mixed" && mixed {
			a.kill(p)
		} else {
			a.stop(p)
		}
		if pause := a.between(0, 300*time.Millisecond); pause < 150*time.Millisecond {
			a.settle(pause)
		}
	}
	for slices.ContainsFunc(a.places, func(p *place) bool { return p.now != nil }) {
		a.settle(10 * time.Millisecond)
	}
	a.checked(leader)
	a.ending = atEnd
	for _, p := range a.places {
		p.startAt = time.Now().Add(a.between(0, 300*time.Millisecond))
	}
}

// promise notes that the commits of an app before a moment are in the replica.
func (a *arena) promise(app string, before time.Time) {
	if before.After(a.promises[app]) {
		a.promises[app] = before
	}
}

func (a *arena) report() {
	var names []string
	for name := range a.tally {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Compare(a.tally[y], a.tally[x]) })
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, ", %d %s", a.tally[name], name)
	}
	var commits int
	for _, l := range a.lives {
		commits += len(l.acks.all())
	}
	a.t.Logf("%s: %d commits, %d in the end, %d leaders, %d moves to the other volume%s", time.Since(a.began).Round(time.Second), commits, len(a.kept), a.leaders, a.moves, b.String())
}

// between is a duration of the seed's choice.
func (a *arena) between(from, to time.Duration) time.Duration {
	return from + time.Duration(a.random.Int64N(int64(to-from)))
}

func (a *arena) logf(format string, args ...any) {
	fmt.Fprintf(&a.said, "%8.3f %s\n", time.Since(a.began).Seconds(), fmt.Sprintf(format, args...))
}

// errorf fails the test, and goes on.
func (a *arena) errorf(format string, args ...any) {
	a.t.Helper()
	a.logf("WRONG: "+format, args...)
	a.t.Errorf("after %.3f s: "+format, append([]any{time.Since(a.began).Seconds()}, args...)...)
}

func (a *arena) fatalf(format string, args ...any) {
	a.t.Helper()
	a.errorf(format, args...)
	a.t.FailNow()
}

// leaveTraces keeps, of an arena that failed, all there is to look at.
func (a *arena) leaveTraces() {
	if !a.t.Failed() {
		return
	}
	dir := filepath.Join(testbed.Root(), ".cache", "torture", fmt.Sprintf("%d-%s", a.seed, filepath.Base(a.t.Name())))
	_ = os.RemoveAll(dir)
	err := os.CopyFS(filepath.Join(dir, "bucket"), os.DirFS(filepath.Join(a.s3.Dir, a.s3.Bucket)))
	for _, p := range a.places {
		_ = os.CopyFS(filepath.Join(dir, p.name[:1]), os.DirFS(filepath.Dir(p.volume))) // sockets can't be copied
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "story.log"), []byte(a.said.String()), 0o644))
	for _, l := range a.lives {
		var b strings.Builder
		b.WriteString(l.said.String())
		fmt.Fprintf(&b, "\n--- acks\n")
		for _, k := range l.acks.all() {
			fmt.Fprintln(&b, k.ID, k.At.Format(time.RFC3339Nano), k.name)
		}
		fmt.Fprintf(&b, "\n--- polls\n")
		for _, p := range l.answers() {
			if p.err != nil {
				fmt.Fprintln(&b, p.asked.UTC().Format(time.RFC3339Nano), p.err)
				continue
			}
			fmt.Fprintln(&b, p.asked.UTC().Format(time.RFC3339Nano), p.Phase, p.Lease, "synced", synced(sample{Status: p.Status}).Format(time.RFC3339Nano), "healthy", p.Healthy, text(p.HealthError), "pids", pids(p))
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, l.name+".log"), []byte(b.String()), 0o644))
	}
	a.t.Logf("SLASHA_SEED=%d; all there is to look at was left in %s, %v; the end of the story:\n%s", a.seed, dir, err, last(a.said.String(), 5000))
}

func last(s string, most int) string { return s[max(0, len(s)-most):] }
