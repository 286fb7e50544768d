package main_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

// arena is one story. All of it is told by one goroutine; others only watch.
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

// tenure is one container, from its start to its end.
type tenure struct {
	*testbed.Process
	name          string
	place         *place
	began         time.Time
	acks          *ackLog
	said          *testbed.Output
	killed, stops bool // we have sent it a SIGKILL, a SIGTERM
	outage        bool // its bucket was away at a time
	stopSince     time.Time
	code          int
	frozen        []int // processes of the app that are stopped too
	watched       chan struct{}
	mu            sync.Mutex
	polls         []poll
}

// poll is one question to a health page.
type poll struct {
	asked, answered time.Time
	err             error
	healthz.Status
}

func (p poll) held() bool { return p.err == nil && p.Lease.State == "held" }

// ackLog takes an app's stdout.
type ackLog struct {
	mu   sync.Mutex
	rest []byte
	list []signedAck
	odd  []string // lines that are no acks
}

type signedAck struct {
	testbed.Ack
	name string // the signature of who wrote it
}

func (l *ackLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		var a signedAck
		var at string
		if _, err := fmt.Sscanf(string(line), "ack %d %s %s", &a.ID, &at, &a.name); err != nil {
			l.odd = append(l.odd, string(line))
			continue
		}
		if a.At, _ = time.Parse(time.RFC3339Nano, at); a.At.IsZero() {
			l.odd = append(l.odd, string(line))
			continue
		}
		l.list = append(l.list, a)
	}
}

func (l *ackLog) all() []signedAck {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.list)
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

func pids(p poll) (list []int) {
	for _, q := range p.Processes {
		list = append(list, q.PID)
	}
	return list
}

// start starts the container of a place.
func (a *arena) start(p *place) {
	p.n++
	l := &tenure{
		name: fmt.Sprintf("%s.%d", p.name, p.n), place: p, began: time.Now(), acks: &ackLog{},
		said: &testbed.Output{}, watched: make(chan struct{}), outage: !p.mendAt.IsZero(),
	}
	cmd := command(p.settings, testbed.SlashaInit(a.t), "--", testbed.Guestbook(a.t), "worker",
		"--db", p.volume, "--every", "20ms", "--stamp", "--chain", "--name", l.name)
	cmd.Stdout, cmd.Stderr = l.acks, l.said
	l.Process = testbed.StartCmd(a.t, cmd)
	p.now = l
	a.lives = append(a.lives, l)
	a.logf("%s is started, pid %d", l.name, l.Cmd.Process.Pid)
	go l.watch()
}

// watch asks its health page until it has ended.
func (l *tenure) watch() {
	defer close(l.watched)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.Done():
			return
		case <-tick.C:
		}
		l.ask()
	}
}

func (l *tenure) ask() poll {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	p := poll{asked: time.Now()}
	p.Status, p.err = healthz.Fetch(ctx, l.place.health)
	p.answered = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.polls = append(l.polls, p)
	return p
}

func (l *tenure) answers() []poll {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.polls)
}

// newest is the newest answer, if there is one.
func (l *tenure) newest() (poll, bool) {
	for _, p := range slices.Backward(l.answers()) {
		if p.err == nil {
			return p, true
		}
	}
	return poll{}, false
}

// signature is how the app with the pid signs.
func (l *tenure) signature(pid int) string { return fmt.Sprintf("%s.%d", l.name, pid) }

// signal sends a signal to slasha-init alone.
func (l *tenure) signal(sig syscall.Signal) {
	_ = l.Cmd.Process.Signal(sig) // it may have ended by itself
}

// goOn lets a container that is stopped go on.
func (a *arena) goOn(p *place) {
	p.goOnAt = time.Time{}
	if p.now == nil {
		return
	}
	a.logf("%s goes on", p.now.name)
	for _, pid := range p.now.frozen {
		if isChild(pid, p.now.Cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	p.now.frozen = nil
	p.now.signal(syscall.SIGCONT)
	if p.now.stops {
		p.now.stopSince = time.Now()
	}
}

// isChild guards against a process id that belongs to somebody else by now.
func isChild(pid, parent int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(stat, []byte(") "))
	f := bytes.Fields(after)
	return len(f) > 1 && string(f[1]) == strconv.Itoa(parent)
}

func (a *arena) mend(p *place) {
	p.mendAt = time.Time{}
	a.logf("the bucket of %s is back", p.name)
	p.proxy.Heal()
}

// settle lets the time pass, and does what is due: as a platform would, it starts
// again what has ended.
func (a *arena) settle(d time.Duration) {
	a.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); ; <-tick.C {
		now := time.Now()
		for _, p := range a.places {
			if !p.goOnAt.IsZero() && now.After(p.goOnAt) {
				a.goOn(p)
			}
			if !p.mendAt.IsZero() && now.After(p.mendAt) {
				a.mend(p)
			}
			if p.now != nil {
				a.look(p)
			} else if !a.ending && now.After(p.startAt) {
				a.start(p)
			}
		}
		if !now.Before(end) {
			return
		}
	}
}

// look finds out whether the container of a place has ended.
func (a *arena) look(p *place) {
	l := p.now
	select {
	case <-l.Done():
		<-l.watched
		l.code = l.Wait(time.Second)
		a.logf("%s has ended, exit %d", l.name, l.code)
		p.now, p.goOnAt = nil, time.Time{}
		p.startAt = time.Now().Add(a.between(20*time.Millisecond, 400*time.Millisecond))
		a.judgeEnd(l)
	default:
		if l.stops && p.goOnAt.IsZero() && time.Since(l.stopSince) > endWithin {
			a.fatalf("%s has not ended %s after SIGTERM", l.name, endWithin)
		}
	}
}

// deed is what is done in a round. Where the container is down, it is started.
type deed struct {
	name   string
	weight int
	do     func(a *arena, p *place, d time.Duration)
}

var deeds = []deed{
	{"kill", 4, func(a *arena, p *place, _ time.Duration) { a.kill(p) }},
	{"stop", 3, func(a *arena, p *place, _ time.Duration) { a.stop(p) }},
	{"freeze", 4, func(a *arena, p *place, d time.Duration) { a.freeze(p, d, false) }},
	{"freeze with its app", 2, func(a *arena, p *place, d time.Duration) { a.freeze(p, d, true) }},
	{"cut off", 4, func(a *arena, p *place, d time.Duration) { a.cut(p, d, p.proxy.Cut) }},
	{"swallow what is sent by", 3, func(a *arena, p *place, d time.Duration) {
		a.cut(p, d, func() { p.proxy.Toxic("timeout", "upstream", map[string]any{"timeout": 0}) })
	}},
	{"down", 2, func(a *arena, p *place, d time.Duration) {
		a.kill(p)
		a.gone(p)
		p.startAt = time.Now().Add(d)
	}},
	{"host down with", 3, func(a *arena, p *place, d time.Duration) { a.hostDown(p, d) }},
	{"lose the volume of", 1, func(a *arena, p *place, d time.Duration) {
		a.hostDown(p, d)
		dir := filepath.Dir(p.volume)
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
			a.fatalf("%v", err)
		}
	}},
	{"restart the bucket's server, not", 1, func(a *arena, _ *place, _ time.Duration) {
		for _, q := range a.places {
			if q.now != nil {
				q.now.outage = true
			}
		}
		a.s3.Down()
		a.s3.Up()
	}},
	{"leave alone", 2, func(*arena, *place, time.Duration) {}},
}

// cut takes the bucket away from a place, unless it is away already.
func (a *arena) cut(p *place, d time.Duration, how func()) {
	if p.mendAt.IsZero() {
		how()
	}
	p.mendAt = time.Now().Add(d)
	if p.now != nil {
		p.now.outage = true
	}
}

// hostDown kills all that runs on a volume, for a while.
func (a *arena) hostDown(p *place, d time.Duration) {
	a.t.Helper()
	for _, q := range a.places {
		if q.volume == p.volume {
			a.kill(q)
		}
	}
	for _, q := range a.places {
		if q.volume == p.volume {
			a.gone(q)
			q.startAt = time.Now().Add(d)
		}
	}
}

func (a *arena) kill(p *place) {
	if p.now != nil {
		p.now.killed = true
		p.now.signal(syscall.SIGKILL)
	}
}

func (a *arena) stop(p *place) {
	if p.now != nil && !p.now.stops {
		p.now.stops, p.now.stopSince = true, time.Now()
		p.now.signal(syscall.SIGTERM)
	}
}

// freeze stops a container's slasha-init for a while, as a machine does that is
// moved, and the app too or, as when it alone hangs, not.
func (a *arena) freeze(p *place, d time.Duration, all bool) {
	l := p.now
	if l == nil {
		return
	}
	l.signal(syscall.SIGSTOP)
	if s, ok := l.newest(); ok && all {
		for _, pid := range pids(s) {
			if isChild(pid, l.Cmd.Process.Pid) && syscall.Kill(pid, syscall.SIGSTOP) == nil {
				l.frozen = append(l.frozen, pid)
			}
		}
	}
	p.goOnAt = time.Now().Add(d)
}

// gone waits until the container of a place has ended, and its app with it: that
// has the container's stdout.
func (a *arena) gone(p *place) {
	a.t.Helper()
	if p.now == nil {
		return
	}
	l := p.now
	l.Wait(endWithin)
	a.look(p)
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

// chained is an entry of the sample app, with what it says of the one before.
type chained struct {
	id             int64
	name, at, prev string
}

// history reads all rows of a database that nothing has open.
func history(path string) (rows []chained, err error) {
	db, err := sql.Open("sqlite3", "file:"+path+"?mode=rw")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var check string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&check); err != nil || check != "ok" {
		return nil, fmt.Errorf("integrity_check: %q, %w", check, err)
	}
	found, err := db.Query("SELECT id, name, at, prev FROM entries ORDER BY id")
	if err != nil {
		return nil, err
	}
	defer func() { _ = found.Close() }()
	for found.Next() {
		var r chained
		if err := found.Scan(&r.id, &r.name, &r.at, &r.prev); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, found.Err()
}
